"""`mt3 serve` as a process: start, end, kill, and models that do not load."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from mt3_runtime.backends.ort_cpu import InPlaceLane
from mt3_runtime.cli import ExitCode, main
from tests.pace import HANGS, until
from tests.server.running import running

V1, JOBS = "/v1/transcriptions", "/v1/jobs"


@contextmanager
def process(bundle: Path, spool: Path, *options: str, before: Callable[[], None] | None = None):
    """A service in a process of its own: its address, the process, and its log."""
    log = spool.parent / f"{spool.name}-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "mt3_runtime", "serve", "-m", f"tiny={bundle}", "--port", "0",
               "--threads", "2", "--spool", str(spool), *options]  # fmt: skip
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stderr=out, preexec_fn=before) as started,  # noqa: PLW1509  limits alone
    ):
        try:
            until(lambda: b"listening" in log.read_bytes() or started.poll() is not None)
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            yield next(line["url"] for line in lines if line["event"] == "listening"), started, log
        finally:
            if started.poll() is None:
                started.kill()


def ask(url: str, path: str, content: bytes | None = None, **options) -> httpx.Response:
    method = "GET" if content is None else "POST"
    return httpx.request(method, url + path, content=content, timeout=HANGS, trust_env=False,
                         **options)  # fmt: skip


def test_sigterm_lets_what_is_under_way_end(tiny_bundle, tmp_path, upload):
    with process(tiny_bundle, tmp_path / "spool") as (url, started, log):
        expected = ask(url, V1, upload).content
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as made:
            made.sendall(
                f"POST {V1} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(upload)}"
                "\r\n\r\n".encode()
                + upload[:-10]
            )
            until(lambda: list((tmp_path / "spool" / "uploads").iterdir()))
            started.send_signal(signal.SIGTERM)
            until(lambda: "draining" in log.read_text())
            made.sendall(upload[-10:])
            answer = made.makefile("rb").read()
        assert started.wait(HANGS) == 0
    status = int(answer.split(b" ", 2)[1])
    # It was let in before the signal or it is told that the service ends; never cut off.
    assert status in (200, 503)
    assert status == 503 or answer.endswith(expected)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines][-1] == "ended"
    assert not list((tmp_path / "spool" / "uploads").iterdir())


def finished(spool: Path) -> list[Path]:
    return [path for path in spool.glob("jobs/*/job.json") if "done" in path.read_text()]


def test_kill_under_load_leaves_whole_jobs_only(tiny_bundle, tmp_path, upload, model):
    import io

    digest = model.transcribe_notes(io.BytesIO(upload)).token_digest
    spool = tmp_path / "spool"
    jobs: list[str] = []
    for count in (1, 3):
        with process(tiny_bundle, spool) as (url, started, _):
            jobs += [ask(url, JOBS, upload).json()["id"] for _ in range(4)]
            until(lambda count=count: len(finished(spool)) >= count)
            started.send_signal(signal.SIGKILL)
            started.wait(HANGS)
    with process(tiny_bundle, spool) as (url, started, _):
        for job in jobs:
            while ask(url, f"{JOBS}/{job}").json()["status"] != "done":
                time.sleep(0.1)
            assert ask(url, f"{JOBS}/{job}").json()["result"]["token_digest"] == digest
            assert ask(url, f"{JOBS}/{job}/result").content.startswith(b"MThd")
        started.send_signal(signal.SIGTERM)
        assert started.wait(HANGS) == 0
    assert not list((spool / "uploads").iterdir())


def test_logs_hold_no_names_unless_asked(tiny_bundle, tmp_path, upload):
    for options, held in (((), False), (("--log-names",), True)):
        with process(tiny_bundle, tmp_path / "spool", *options) as (url, started, log):
            files = {"file": ("my-secret-song.flac", upload)}
            assert (
                httpx.post(url + V1, files=files, timeout=HANGS, trust_env=False).status_code == 200
            )
            started.send_signal(signal.SIGINT)
            assert started.wait(HANGS) == 0
        text = log.read_text()
        assert ("my-secret-song" in text) == held
        for line in text.splitlines():
            assert {"time", "level", "event"} <= set(json.loads(line))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["-m", "no such model"], ExitCode.UNUSABLE),
        (["-m", "{damaged}"], ExitCode.UNUSABLE),
        (["-m", "a={bundle}", "-m", "a={bundle}"], ExitCode.USAGE),
        (["-m", "{bundle}", "--device", "cuda:99"], ExitCode.UNUSABLE),
        (["-m", "{bundle}", "--host", "0.0.0.0"], ExitCode.USAGE),
        (["-m", "{bundle}", "--token-file", "{damaged}/nothing"], ExitCode.USAGE),
        (["-m", "{bundle}", "--host", "203.0.113.7", "--no-auth"], ExitCode.FAILED),
        (["-m", "{bundle}", "--port", "{port}"], ExitCode.FAILED),
        (["-m", "{bundle}", "--spool", "{file}"], ExitCode.FAILED),
        (["-m", "{bundle}", "--drain", "nan"], ExitCode.USAGE),
    ],
)
def test_what_cannot_be_served_is_said_before_the_port_opens(
    tiny_bundle, tmp_path, capsys, monkeypatch, options, code
):
    damaged, file = tmp_path / "damaged", tmp_path / "file"
    damaged.mkdir()
    (damaged / "bundle.json").write_text("{}")
    file.write_text("x")
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"bundle": tiny_bundle, "damaged": damaged, "file": file,
                 "port": taken.getsockname()[1]}  # fmt: skip
        words = [word.format(**names) for word in options]
        if "--port" not in words:
            words += ["--port", "0"]
        assert main(["serve", *words]) == code
    said = capsys.readouterr().err
    assert "error" in said
    assert "Traceback" not in said
    assert "listening" not in said


def test_a_device_that_fails_is_told_and_replaced(model, tmp_path, upload, monkeypatch):
    """In mid-run: who waits is told, the service is not ready, and works again when it does."""
    with running(model, tmp_path) as found, found.client() as client:
        assert client.get("/health/ready").status_code == 200
        true, left = InPlaceLane.step, [5]

        def step(lane, rows):
            left[0] -= 1
            if left[0] <= 0:
                raise RuntimeError("the device is gone")
            return true(lane, rows)

        monkeypatch.setattr(InPlaceLane, "step", step)
        answer = client.post(V1, content=upload)
        assert answer.status_code == 503
        assert "the device is gone" in answer.json()["message"]
        assert answer.headers["retry-after"]
        until(lambda: client.get("/health/ready").status_code == 503)
        assert client.post(V1, content=upload).status_code == 503
        until(lambda: client.get("/health/live").status_code == 503)  # it should be replaced
        job_taken = client.post(JOBS, content=upload).status_code
        assert job_taken == 503
        monkeypatch.setattr(InPlaceLane, "step", true)
        until(lambda: client.get("/health/ready").status_code == 200)
        assert client.get("/health/live").status_code == 200
        assert client.post(V1, content=upload).status_code == 200
        found.idle()


def test_events_end_with_an_error_when_the_device_fails(model, tmp_path, audio, monkeypatch):
    import numpy as np

    from tests.server.running import flac, json_lines

    long = flac(np.tile(audio, 20), tmp_path / "long.flac")
    with running(model, tmp_path / "spool") as found, found.client() as client:
        accept = {"accept": "application/x-ndjson"}
        true = InPlaceLane.step
        with client.stream("POST", V1, content=long, headers=accept) as answer:
            pieces = answer.iter_text()
            first = next(pieces)

            def fail(lane, rows):
                raise RuntimeError("the device is gone")

            monkeypatch.setattr(InPlaceLane, "step", fail)
            items = json_lines(first + "".join(pieces))
        monkeypatch.setattr(InPlaceLane, "step", true)
        assert items[0]["type"] in ("note_on", "note_off", "progress")
        assert items[-1]["type"] == "error"
        assert items[-1]["error"] == "engine"


def test_nothing_of_it_is_imported_unless_it_serves():
    code = (
        "import sys; from mt3_runtime.cli import main; main(['serve', '--help']);"
        "sys.exit(any(name in sys.modules for name in ('starlette', 'uvicorn', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0
