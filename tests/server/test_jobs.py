"""Jobs: they outlive their connection and the service; results are kept for a while."""

from __future__ import annotations

import io
import json
import time
import zipfile

import pytest

from mt3_runtime.errors import OutputError
from mt3_runtime.files.formats import FORMATS, render
from mt3_server.kept_jobs import job_runner, job_store
from mt3_server.kept_jobs.job_store import DONE, FAILED, MOST_BEGUN, JobStore
from mt3_server.protection.refusals import Refusal
from mt3_server.protection.upload_spool import UploadSpool
from mt3_server.settings import Settings
from tests.pace import until
from tests.server.running import running

JOBS = "/v1/jobs"


def done(client, job: str) -> dict:
    while (told := client.get(f"{JOBS}/{job}").json())["status"] not in (DONE, FAILED):
        time.sleep(0.05)
    return told


def test_a_job_goes_on_when_its_client_has_left(served, client, model, upload):
    expected = model.transcribe_notes(io.BytesIO(upload), grammar=True)
    with served.client() as other:
        answer = other.post(JOBS, params={"grammar": "true"}, content=upload)
    assert answer.status_code == 202
    job = answer.json()["id"]
    assert answer.headers["location"] == f"{JOBS}/{job}"
    told = done(client, job)
    assert told["result"]["token_digest"] == expected.token_digest
    for form in FORMATS:
        got = client.get(f"{JOBS}/{job}/result", params={"format": form})
        assert got.content == render(expected, form)
    stems = client.get(f"{JOBS}/{job}/result", params={"split": "stems", "format": "json"})
    assert zipfile.ZipFile(io.BytesIO(stems.content)).namelist()
    assert job in [one["id"] for one in client.get(JOBS).json()["jobs"]]
    assert not (served.service.spool.jobs / job / "upload").exists()
    assert client.delete(f"{JOBS}/{job}").status_code == 204
    assert client.get(f"{JOBS}/{job}").status_code == 404
    assert not (served.service.spool.jobs / job).exists()
    assert served.service.spool.used == sum(
        path.stat().st_size for path in served.service.spool.jobs.glob("*/*")
    )


def test_a_job_that_fails_says_why(client):
    job = client.post(JOBS, content=b"no audio at all").json()["id"]
    told = done(client, job)
    assert told["status"] == FAILED
    assert told["error"]["type"] == "format"
    answer = client.get(f"{JOBS}/{job}/result")
    assert answer.status_code == 409
    assert told["error"]["message"] in answer.json()["message"]


def test_a_job_that_is_deleted_is_called_off(served, client, audio):
    import numpy as np

    from tests.server.running import flac

    long = flac(np.tile(audio, 40), served.service.spool.folder / "long.flac")
    job = client.post(JOBS, params={"decoding": "t5x"}, content=long).json()["id"]
    until(lambda: client.get(f"{JOBS}/{job}").json()["progress"])
    assert client.get(f"{JOBS}/{job}/result").status_code == 409
    assert client.delete(f"{JOBS}/{job}").status_code == 204
    until(lambda: not served.service.keeper(None).health().recordings)
    assert served.metric('mt3_cancelled_total{why="deleted"}') >= 1


@pytest.mark.parametrize("job", ["0" * 32, "..", "%2e%2e%2f", "a" * 5000, "x%00y", "\u202e"])
def test_there_is_no_job_of_another_number(client, job):
    for suffix in ("", "/result"):
        assert client.get(f"{JOBS}/{job}{suffix}").status_code in (404, 405)


def test_the_next_service_goes_on_with_what_is_left(model, upload, tmp_path, monkeypatch):
    monkeypatch.setattr(job_runner, "MOST_RUNNING", 0)
    with running(model, tmp_path, drain=0.1) as found, found.client() as client:
        jobs = [client.post(JOBS, content=upload).json()["id"] for _ in range(2)]
        assert client.get(f"{JOBS}/{jobs[0]}").json()["status"] == "queued"
    monkeypatch.undo()
    (tmp_path / "uploads" / ("0" * 32 + ".upload")).write_bytes(b"left by a killed service")
    (tmp_path / "jobs" / ("f" * 32)).mkdir()  # killed before its record was written
    with running(model, tmp_path) as found, found.client() as client:
        for job in jobs:
            assert done(client, job)["status"] == DONE
        assert len(client.get(JOBS).json()["jobs"]) == 2
        assert not list((tmp_path / "uploads").iterdir())


def test_a_job_that_ends_the_process_is_not_begun_for_ever(model, upload, tmp_path):
    spool = UploadSpool(tmp_path, most=1 << 30, free=0)
    store = JobStore(spool, Settings(spool=tmp_path))
    file = spool.new()
    file.write(upload)
    job = store.add(file, {"model": "tiny"}, "127.0.0.1")
    for _ in range(MOST_BEGUN):
        job = store.begin(job)
    spool.close()
    with running(model, tmp_path) as found, found.client() as client:
        assert done(client, job.id)["error"]["type"] == "crashed"


def test_results_are_forgotten_in_time(model, upload, tmp_path):
    with running(model, tmp_path, keep=0.5) as found, found.client() as client:
        job = client.post(JOBS, content=upload).json()["id"]
        until(lambda: client.get(f"{JOBS}/{job}").status_code == 404)
        until(lambda: not list((tmp_path / "jobs").iterdir()))
        assert found.service.spool.used == 0


def test_a_client_has_a_bounded_number_of_jobs(model, upload, tmp_path):
    with running(model, tmp_path, jobs_per_client=1) as found, found.client() as client:
        job = client.post(JOBS, content=upload).json()["id"]
        refused = client.post(JOBS, content=upload)
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
        done(client, job)
        client.delete(f"{JOBS}/{job}")
        assert client.post(JOBS, content=upload).status_code == 202


def test_a_folder_has_one_service(tmp_path):
    spool = UploadSpool(tmp_path, most=1 << 30, free=0)
    with pytest.raises(OutputError, match="Another service"):
        UploadSpool(tmp_path, most=1 << 30, free=0)
    spool.close()
    UploadSpool(tmp_path, most=1 << 30, free=0).close()


def test_a_full_disk_is_507_and_nothing_stays(model, upload, tmp_path):
    with running(model, tmp_path / "a", spool_bytes=1000) as found, found.client() as client:
        for path in ("/v1/transcriptions", JOBS, "/transcribe/midi"):
            files = {"file": ("x", upload)} if path.endswith("midi") else None
            answer = client.post(path, content=None if files else upload, files=files)
            assert answer.status_code == 507, answer.text
        assert not list((tmp_path / "a" / "uploads").iterdir())
        assert not list((tmp_path / "a" / "jobs").iterdir())
        assert found.service.spool.used == 0
    with running(model, tmp_path / "b", free_bytes=1 << 60) as found, found.client() as client:
        assert client.post("/v1/transcriptions", content=upload).status_code == 507


def test_a_disk_that_fills_up_while_a_result_is_written(tmp_path, monkeypatch):
    import errno

    spool = UploadSpool(tmp_path, most=1 << 30, free=0)
    store = JobStore(spool, Settings(spool=tmp_path))
    file = spool.new()
    file.write(b"x")

    def full(*_: object) -> None:
        raise OutputError("cannot write") from OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(job_store, "write_atomic", full)
    with pytest.raises(OutputError):
        store.add(file, {}, "me")
    assert not list(spool.jobs.iterdir())
    file.remove()
    assert spool.used == 0
    with pytest.raises(Refusal):
        store.get("0" * 32, "me")
    json.dumps(str(store))
    spool.close()
