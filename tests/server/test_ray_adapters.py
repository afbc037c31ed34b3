"""The Ray adapters without Ray: plans, results, the journal, actors, options of the service."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import soundfile

import mt3_server.ray
from mt3_runtime.batch.records.journal import NAME
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.engine import Engine
from mt3_runtime.errors import (
    AudioNotFoundError,
    MissingDependencyError,
    OptionError,
    OutputError,
)
from mt3_runtime.files.formats import render
from mt3_runtime.loading import load_model
from mt3_server.ray import ray_batch, ray_service, transcribe_files
from mt3_server.ray.object_store import Store, is_remote
from mt3_server.ray.ray_actor import Outcome, TranscribeActor, Work
from mt3_server.ray.ray_service import TranscribeReplica, parse_query
from mt3_server.request_options import EVENTS


class Dataset:
    """Ray Data in this process: blocks of files through one actor, and rows out."""

    repeats = losses = 0
    blocks: ClassVar[list[int]] = []

    def __init__(self, items, blocks) -> None:
        self._items, self._count = items, blocks

    def map_batches(self, kind, *, fn_constructor_args, **how):
        assert how["max_restarts"] == -1
        assert how["max_task_retries"] == 2
        actor, rows = kind(*pickle.loads(pickle.dumps(fn_constructor_args))), []
        for block in np.array_split(np.arange(len(self._items)), self._count):
            items = [self._items[index] for index in block]
            made = actor({name: np.array([i[name] for i in items]) for name in ("index", "path")})
            rows += [dict(zip(made, values, strict=True))
                     for values in zip(*made.values(), strict=True)]  # fmt: skip
        actor._engine.close()
        actor._model.close()
        rows += rows[: self.repeats]
        self._rows = rows[self.losses :]
        return self

    def iter_rows(self):
        yield from self._rows


class FakeData:
    DataContext = SimpleNamespace(get_current=lambda: SimpleNamespace(max_errored_blocks=0))

    @staticmethod
    def from_items(items, override_num_blocks):
        Dataset.blocks.append(override_num_blocks)
        return Dataset(items, override_num_blocks)

    @staticmethod
    def ActorPoolStrategy(size):  # noqa: N802  its name
        return size


@pytest.fixture
def ray(monkeypatch):
    """Ray Data that is none; what it does can be set."""
    real = ray_batch.require
    monkeypatch.setattr(
        ray_batch, "require",
        lambda name, *rest: FakeData if name == "ray.data" else real(name, *rest),
    )  # fmt: skip
    monkeypatch.setattr(Dataset, "repeats", 0)
    monkeypatch.setattr(Dataset, "losses", 0)
    monkeypatch.setattr(Dataset, "blocks", [])
    return Dataset


@pytest.fixture
def songs(audio, tmp_path) -> Path:
    folder = tmp_path / "songs"
    (folder / "inner").mkdir(parents=True)
    for index, name in enumerate(("a.wav", "b.flac", "inner/a.wav", "inner/c.wav", "inner/c.flac")):
        soundfile.write(folder / name, audio[index * 4000 : index * 4000 + 40_000], 16_000)
    (folder / "text.txt").write_text("no audio")
    (folder / ".hidden.wav").write_bytes(b"")
    return folder


def run(songs, out, model, **options):
    options = {"formats": ("midi", "jsonl"), "readers": 0, "device": "cpu"} | options
    return transcribe_files([str(songs)], str(out), model=str(model), **options)


def test_results_are_those_of_calls(ray, songs, tiny_bundle, tmp_path):
    report = run(songs, tmp_path / "out", tiny_bundle, actors=3)
    assert (report.count("done"), report.count("failed")) == (5, 0)
    assert ray.blocks == [3]
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.mid")}
    assert names == {"a.mid", "b.mid", "inner/a.mid", "inner/c.wav.mid", "inner/c.flac.mid"}
    with load_model(tiny_bundle, threads=1) as model:
        for row in report.rows:
            alone = model.transcribe_notes(row.source)
            assert row.notes == len(alone.notes)
            for name in row.outputs:
                kind = "midi" if name.endswith(".mid") else "jsonl"
                assert (tmp_path / "out" / name).read_bytes() == render(alone, kind)


def test_a_second_call_skips_and_mends(ray, songs, tiny_bundle, tmp_path):
    out = tmp_path / "out"
    run(songs, out, tiny_bundle)
    assert run(songs, out, tiny_bundle).count("skipped") == 5
    (out / "a.mid").unlink()
    soundfile.write(songs / "b.flac", np.zeros(20_000, np.float32), 16_000)
    report = run(songs, out, tiny_bundle)
    assert {Path(row.source).name for row in report.rows if row.status == "done"} == {
        "a.wav", "b.flac",
    }  # fmt: skip
    other = run(songs, out, tiny_bundle, min_confidence=0.5)
    assert [row.error for row in other.rows] == ["OptionError"] * 5
    again = run(songs, out, tiny_bundle, min_confidence=0.5, restart=True)
    assert again.count("done") == 5


def test_mt3_transcribe_goes_on_with_it(ray, songs, tiny_bundle, tmp_path, capsys):
    """One journal: what Ray has done is done, and the other way round."""
    out = tmp_path / "out"
    run(songs / "a.wav", out, tiny_bundle, formats=("midi",))
    words = ["transcribe", str(songs), "-o", str(out), "-m", str(tiny_bundle), "--device", "cpu"]
    assert main(words) == ExitCode.OK
    assert "1 file done before" in capsys.readouterr().err
    report = transcribe_files(
        [str(songs / "b.flac")], str(out), model=str(tiny_bundle), formats=("midi",), readers=0
    )
    assert report.count("skipped") == 1


def test_files_of_others_are_not_replaced(ray, songs, tiny_bundle, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.mid").write_bytes(b"mine")
    report = run(songs, out, tiny_bundle)
    assert (report.count("done"), report.count("failed")) == (4, 1)
    assert (out / "a.mid").read_bytes() == b"mine"
    (out / "b.mid").write_bytes(b"edited")
    soundfile.write(songs / "b.flac", np.zeros(20_000, np.float32), 16_000)
    report = run(songs, out, tiny_bundle)
    assert [Path(row.source).name for row in report.rows if row.status == "failed"] == [
        "a.wav", "b.flac",
    ]  # fmt: skip
    assert (out / "b.mid").read_bytes() == b"edited"
    report = run(songs, out, tiny_bundle, overwrite=True)
    assert report.count("failed") == 0
    assert (out / "a.mid").read_bytes()[:4] == b"MThd"


def test_rows_that_come_twice_are_dropped_and_lost_ones_are_failures(
    ray, songs, tiny_bundle, tmp_path
):
    ray.repeats, ray.losses = 3, 2
    told = []
    report = run(songs, tmp_path / "out", tiny_bundle, tell=told.append)
    assert report.repeated == 1  # the first two come from what is given again
    assert report.count("done") == 5
    ray.repeats, ray.losses = 0, 2
    report = run(songs, tmp_path / "lost", tiny_bundle)
    assert [row.error for row in report.rows if row.status == "failed"] == ["lost", "lost"]
    ray.losses = 0
    report = run(songs, tmp_path / "lost", tiny_bundle)
    assert (report.count("done"), report.count("skipped")) == (2, 3)
    lines = (tmp_path / "out" / NAME).read_text("utf-8").splitlines()
    done = [item["source"] for item in map(json.loads, lines) if item["status"] == "done"]
    assert len(done) == len(set(done)) == 5
    assert len(told) == 5


def test_a_bad_file_fails_alone(ray, songs, tiny_bundle, tmp_path):
    (songs / "bad.wav").write_bytes(b"RIFF and nothing")
    (songs / "empty.mp3").write_bytes(b"")
    report = run(songs, tmp_path / "out", tiny_bundle)
    assert (report.count("done"), report.count("failed")) == (5, 2)
    assert {row.error for row in report.rows if row.status == "failed"} == {"AudioError"}
    report.save(str(tmp_path / "report.json"))
    assert json.loads((tmp_path / "report.json").read_text())["failed"] == 2


def test_shards_share_the_work(ray, songs, tiny_bundle, tmp_path):
    done = []
    for shard in ("1/2", "2/2"):
        report = run(songs, tmp_path / "out", tiny_bundle, shard=shard)
        done += [row.source for row in report.rows if row.status == "done"]
    assert len(done) == len(set(done)) == 5


def test_a_device_that_fails_is_said_and_opened_again(tiny_bundle, songs):
    actor = TranscribeActor(Work(load={"model": str(tiny_bundle)}, readers=0))
    try:
        assert isinstance(actor._engine, Engine)
        actor._engine.close()
        batch = {"index": np.array([4]), "path": np.array([str(songs / "a.wav")])}
        made = actor(batch)
        assert made["index"] == [4]
        assert pickle.loads(made["outcome"][0]).contents["midi"][:4] == b"MThd"
        taken = actor._outcome(ray_service.EngineError("gone"), 0.0)
        assert (taken.error, taken.message) == ("device", "gone")
        assert isinstance(taken, Outcome)
    finally:
        actor._engine.close()
        actor._model.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"actors": 0}, "actors is 0"),
        ({"actors": True}, "actors is True"),
        ({"retries": -1}, "retries is -1"),
        ({"formats": ("midi", "mp3")}, "unknown format 'mp3'"),
        ({"shard": "3/2"}, "no shard"),
        ({"confidence": 1}, "no option 'confidence'"),
        ({"auto_filter": "maybe"}, "auto_filter is 'maybe'"),
        ({"instruments": "kazoo"}, "kazoo"),
    ],
)
def test_options_that_mean_nothing_are_refused(ray, songs, tiny_bundle, tmp_path, options, said):
    with pytest.raises(OptionError, match=said):
        run(songs, tmp_path / "out", tiny_bundle, **options)
    assert not list(tmp_path.glob("out/*"))


def test_places_that_will_not_do_are_refused(ray, songs, tiny_bundle, tmp_path):
    with pytest.raises(AudioNotFoundError, match="no such file"):
        run(tmp_path / "none", tmp_path / "out", tiny_bundle)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(AudioNotFoundError, match="no audio file"):
        run(tmp_path / "nothing", tmp_path / "out", tiny_bundle)
    with pytest.raises(OutputError, match="inside the model"):
        run(songs, tiny_bundle, tiny_bundle)
    shutil.copytree(songs / "inner", tmp_path / "more")
    with pytest.raises(OptionError, match="would have one name"):
        transcribe_files(
            [str(songs), str(tmp_path / "more")], str(tmp_path / "out"), model=str(tiny_bundle)
        )


def test_names_of_stores():
    assert is_remote("s3://bucket/x")
    assert not is_remote("/x")
    assert not is_remote("C:/x")
    store = Store("/tmp/x/")
    assert (store.root, store.remote) == ("/tmp/x", False)


BLOCKED = """
import sys
for name in {names!r}:
    sys.modules[name] = None
from mt3_server import ray
from mt3_runtime.errors import MissingDependencyError
for call in (lambda: ray.transcribe_files([{songs!r}], {out!r}, model={model!r}),
             lambda: ray.service({model!r}),
             lambda: ray.transcribe_files(["s3://x/y"], {out!r}, model={model!r})):
    try:
        call()
    except MissingDependencyError as error:
        print(str(error).count("[ray]"), "ray[data,serve]" in str(error), len(str(error)) < 400)
"""


def test_the_extra_is_named_where_it_is_absent(songs, tiny_bundle, tmp_path):
    code = BLOCKED.format(
        names=["ray", "pyarrow"], songs=str(songs), out=str(tmp_path / "out"),
        model=str(tiny_bundle),
    )  # fmt: skip
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert told.splitlines() == ["1 True True"] * 3
    assert not (tmp_path / "out").exists()


def test_the_name_ray_hides_nothing():
    code = "import mt3_server.ray.ray_batch, sys; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert mt3_server.ray.transcribe_files is transcribe_files
    with pytest.raises(AttributeError):
        mt3_server.ray.init  # noqa: B018  that of the package ray


# --- the service


@pytest.mark.parametrize(
    ("query", "accept", "expected"),
    [
        ({}, "*/*", ("json", None, {})),
        ({"format": "midi", "min_confidence": "0.5"}, "", ("midi", None, {"min_confidence": 0.5})),
        ({"grammar": "true", "deadline": "7"}, "", ("json", 7, {"grammar": True})),
        ({"instruments": "33"}, "application/x-ndjson", (EVENTS, None, {"instruments": "33"})),
        ({"format": "csv"}, "application/x-ndjson", ("csv", None, {})),
    ],
)
def test_queries(query, accept, expected):
    options = parse_query(query, accept)
    assert (options.format, options.deadline, options.options) == expected


@pytest.mark.parametrize("query", [{"min_confidence": "high"}, {"grammar": "1"}, {"x": "1"},
                                   {"format": "wav"}])  # fmt: skip
def test_queries_that_mean_nothing_are_refused(query):
    with pytest.raises(OptionError):
        parse_query(query, "")


class Answer:
    def __init__(self, content, *, status_code=200, headers=None, media_type=""):
        self.content, self.code, self.headers = content, status_code, headers or {}
        self.media_type = media_type


class Asked:
    """A request of Starlette."""

    def __init__(self, body: bytes, accept="", **query) -> None:
        self._body, self.query_params, self.headers = body, query, {"accept": accept}

    async def stream(self):
        for at in range(0, len(self._body) + 1, 50_000):
            yield self._body[at : at + 50_000]


@pytest.fixture(scope="module")
def replica(tiny_bundle):
    made = TranscribeReplica({"model": str(tiny_bundle), "threads": 2}, readers=0,
                             most_bytes=8_000_000)  # fmt: skip
    yield made
    made._engine.close()
    made._model.close()


@pytest.fixture(autouse=True)
def starlette(monkeypatch):
    fake = SimpleNamespace(Response=Answer, JSONResponse=Answer, StreamingResponse=Answer)
    monkeypatch.setattr(ray_service, "require", lambda *_: fake)


def wav(samples) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_a_replica_answers_as_a_call_does(replica, audio):
    data = wav(audio[:50_000])
    alone = replica._model.transcribe_notes(io.BytesIO(data))

    async def ask():
        whole = await replica(Asked(data, format="midi"))
        told = await replica(Asked(data, accept="application/x-ndjson"))
        return whole, [json.loads(line) async for part in told.content for line in
                       part.splitlines()]  # fmt: skip

    whole, lines = asyncio.run(ask())
    assert whole.content == render(alone, "midi")
    assert json.loads(whole.headers["X-MT3-Summary"])["token_digest"] == alone.token_digest
    assert lines[-1]["type"] == "done"
    assert lines[-1]["token_digest"] == alone.token_digest
    assert sum(line["type"] == "progress" for line in lines) >= len(alone.segments)
    replica.check_health()


@pytest.mark.parametrize(
    ("body", "query", "code"),
    [(b"", {}, 400), (b"text " * 99, {}, 400), (b"RIFF", {"formats": "x"}, 422),
     (b"RIFF", {"min_confidence": "9"}, 422), (bytes(8_100_000), {}, 400)],
)  # fmt: skip
def test_what_is_wrong_with_a_request_is_said(replica, body, query, code):
    answer = asyncio.run(replica(Asked(body, **query)))
    assert answer.code == code
    assert set(answer.content) == {"type", "message"}


def test_a_wrong_file_ends_its_stream_with_an_error(replica):
    async def ask():
        told = await replica(Asked(b"no audio " * 50, format="events"))
        return [json.loads(part) async for part in told.content]

    assert asyncio.run(ask())[-1]["error"]["type"] == "AudioError"


def test_whoever_stops_to_listen_ends_the_work(replica, audio):
    async def ask():
        told = await replica(Asked(wav(np.tile(audio, 12)), format="events"))
        async for _ in told.content:
            break
        await told.content.aclose()

    asyncio.run(ask())
    assert replica._engine.health().recordings == 0


def test_a_full_or_broken_engine_is_said(replica, audio, monkeypatch):
    monkeypatch.setattr(replica._engine, "_most", 0)
    assert asyncio.run(replica(Asked(wav(audio[:16_000])))).code == 503
    monkeypatch.setattr(replica._engine, "_error", RuntimeError("gone"))
    with pytest.raises(RuntimeError, match="gone"):
        replica.check_health()


def test_absence_is_one_sentence(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(MissingDependencyError, match=r"\[ray\]"):
        ray_service.service()
