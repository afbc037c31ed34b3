"""Clients that are slow, vanish, send half of something, or too much: others do not notice."""

from __future__ import annotations

import asyncio
import io
import resource
import socket
import struct
import threading
import time
from contextlib import suppress

import httpx
import numpy as np
import pytest
import soundfile

from mt3_server import uvicorn_server
from tests.pace import HANGS, until
from tests.server.running import flac, running

V1 = "/v1/transcriptions"
HEAD = b"POST /v1/transcriptions HTTP/1.1\r\nHost: localhost\r\n"


def raw(found, data: bytes, *, shut: bool = False) -> bytes:
    """All that is answered to some bytes."""
    with found.connect() as made:
        with suppress(ConnectionError):
            made.sendall(data)
            if shut:
                made.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionError):
            while more := made.recv(65536):
                answer += more
        return answer


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def test_a_half_upload_leaves_nothing(served, upload):
    for share in (0, 1, len(upload) // 2):
        with served.connect() as made:
            made.sendall(HEAD + f"Content-Length: {len(upload)}\r\n\r\n".encode() + upload[:share])
        served.idle()


def test_a_client_that_vanishes_with_a_reset_leaves_nothing(served, upload):
    for sent in (upload[:1000], upload):
        made = served.connect()
        made.sendall(HEAD + f"Content-Length: {len(upload)}\r\n\r\n".encode() + sent)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        made.close()
        served.idle()


@pytest.mark.parametrize("accept", ["*/*", "application/x-ndjson"])
def test_a_client_that_leaves_frees_its_rows(served, audio, tmp_path, accept):
    """Nothing more of its recording is read or decoded, and it is counted."""
    long = flac(np.tile(audio, 40), tmp_path / "long.flac")
    before = served.metric('mt3_cancelled_total{why="client"}')
    keeper = served.service.keeper(None)
    with served.connect() as made:
        head = HEAD + f"Accept: {accept}\r\nContent-Length: {len(long)}\r\n\r\n".encode()
        made.sendall(head + long)
        until(lambda: keeper.health().decoding)
    until(lambda: not keeper.health().recordings)
    until(lambda: not keeper.health().decoding and not keeper.health().waiting)
    until(lambda: served.metric('mt3_cancelled_total{why="client"}') == before + 1)
    served.idle()


def sent_slowly(made: socket.socket) -> bytes:
    """What is answered to a byte now and then."""
    answers: list[bytes] = []

    def answered() -> list[bytes]:
        with suppress(ConnectionError):
            made.sendall(b"x")
        with suppress(TimeoutError):
            answers.append(made.recv(65536))
        return answers

    until(answered)
    return answers[0]


def test_a_body_that_is_too_slow_is_given_up(model, tmp_path, upload):
    with running(model, tmp_path, patience=0.3) as found:
        with found.connect() as made:
            made.sendall(HEAD + b"Content-Length: 1000\r\n\r\nxx")
            assert status(made.recv(65536)) == 408
        with found.connect() as made:  # never silent for long, and never quick
            made.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
            made.settimeout(0.1)
            assert status(sent_slowly(made)) == 408
        found.idle()


def test_a_header_that_never_ends_is_cut_off(model, tmp_path, monkeypatch):
    monkeypatch.setattr(uvicorn_server, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(uvicorn_server, "_LOOK_SECONDS", 0.1)
    with running(model, tmp_path) as found:
        with found.connect() as made:
            made.sendall(b"GET /version HTTP/1.1\r\nHost: loc")
            assert made.recv(100) == b""
        with found.connect() as made, suppress(ConnectionError):
            assert made.recv(100) == b""
        assert httpx.get(found.url + "/version", trust_env=False).status_code == 200


def test_a_client_that_takes_no_answer_is_cut_off(model, tmp_path, upload):
    """It slows nobody else down; its connection ends."""
    with running(model, tmp_path, patience=0.5) as found:
        made = found.connect()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        asked = b"GET /v1/instruments HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with suppress(ConnectionError, TimeoutError):
            made.settimeout(5.0)
            for _ in range(400):
                made.sendall(asked)
        with found.client() as other:
            assert other.post(V1, content=upload).status_code == 200
        until(lambda: len(found.server.server_state.connections) <= 1)
        made.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Content-Length: 99999999999999999999\r\n\r\n",
        HEAD + b"Content-Length: 999999999999\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(served, data):
    answer = raw(served, data, shut=True)
    assert status(answer) in (0, 400, 404, 413, 421, 431)
    assert b"Traceback" not in answer


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(model, tmp_path):
    with running(model, tmp_path, body_bytes=1000) as found, found.client() as client:
        assert client.post(V1, content=b"x" * 1001).status_code == 413

        def pieces():
            for _ in range(100):
                yield b"x" * 100

        assert client.post(V1, content=pieces()).status_code == 413
        with found.connect() as made:
            made.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 1001\r\n\r\n")
            assert status(made.recv(65536)) == 413
        found.idle()


B = "----boundary"
FORM = f"multipart/form-data; boundary={B}"


def part(name: str, content: str = "x", extra: str = "") -> str:
    return f'--{B}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n{content}\r\n'


FILE = part("file", "not audio", '; filename="a.wav"')


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", FILE),
        ("multipart/form-data; boundary=" + "b" * 500, FILE),
        (FORM, ""),
        (FORM, "nonsense"),
        (FORM, FILE),  # cut off
        (FORM, FILE + f"--{B}"),
        (FORM, part("format", "midi") + f"--{B}--\r\n"),  # no file
        (FORM, FILE + FILE + f"--{B}--\r\n"),  # two
        (FORM, part("a") * 50 + FILE + f"--{B}--\r\n"),
        (FORM, part("format", "x" * 10_000) + FILE + f"--{B}--\r\n"),
        (FORM, f"--{B}\r\nContent-Type: text/plain\r\n\r\nx\r\n--{B}--\r\n"),
        (FORM, f"--{B}\r\n" + "X: y\r\n" * 1000 + f"\r\nx\r\n--{B}--\r\n"),
        (FORM, f"--{B}\r\nX: " + "y" * 100_000 + f"\r\n\r\nx\r\n--{B}--\r\n"),
        (FORM, f"--{B}\r\nContent-Disposition: form-data; filename=x\r\n\r\nx\r\n--{B}--\r\n"),
    ],
)
@pytest.mark.parametrize("path", [V1, "/v1/jobs", "/transcribe"])
def test_malformed_forms_are_refused(served, client, kind, body, path):
    answer = client.post(path, content=body.encode(), headers={"content-type": kind})
    assert answer.status_code == 400, answer.text
    assert answer.json()["type"] in ("multipart", "no_file", "files", "fields")
    served.idle()


NAMES = ["../../../etc/passwd", "..\\..\\x", "/etc/passwd", "a\0b", "x" * 4096, "\u202egnp.exe",
         "con", "", ".", "\r\nX-Evil: 1", '"; filename="b', "\ud83d\ude00.flac"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_uploads_are_never_paths(served, client, upload, name, tmp_path, caplog):
    caplog.set_level("INFO", "mt3_server")
    before = set(served.service.spool.folder.rglob("*"))
    shown = name.encode("utf-8", "surrogatepass").replace(b'"', b"%22")
    shown = shown.replace(b"\r\n", b"%0D%0A")
    head = f'--{B}\r\nContent-Disposition: form-data; name="file"; filename="'.encode()
    body = head + shown + b'"\r\n\r\n' + upload + f"\r\n--{B}--\r\n".encode()
    answer = client.post(V1, content=body, headers={"content-type": FORM})
    assert answer.status_code in (200, 400)
    assert 'filename="result.mid"' in answer.headers.get(
        "content-disposition", 'filename="result.mid"'
    )
    assert "x-evil" not in answer.headers
    served.idle()
    assert set(served.service.spool.folder.rglob("*")) == before
    said = " ".join(str(vars(record).get("facts")) for record in caplog.records)
    assert len(name) < 5 or name not in said


def wav(seconds: float, rate: int = 8000) -> bytes:
    held = io.BytesIO()
    soundfile.write(held, np.zeros(int(seconds * rate), np.int16), rate, format="FLAC")
    return held.getvalue()


def test_decompression_bombs_are_bounded(model, tmp_path):
    """Hours of silence in a few hundred kilobytes; what their header says is not believed."""
    bomb = wav(3000.0)
    assert len(bomb) < 200_000
    with running(model, tmp_path, audio_seconds=60.0) as found, found.client() as client:
        for data in (bomb, bomb[:22] + bytes(4) + bomb[26:]):  # with its length left out
            answer = client.post(V1, content=data)
            assert answer.status_code == 413, answer.text
            assert answer.json()["message"].startswith("The upload is longer than 60 s")
        found.idle()


@pytest.mark.parametrize(
    "data",
    [b"\x64\xa3\x01\x00" + bytes(2000), b".snd\0\0\0\x18" + bytes(100), b"PK\x03\x04" + bytes(50),
     b"\x89PNG\r\n\x1a\n", b"<html>", bytes(5000), b"\x1f\x8b\x08" + bytes(50)],
)  # fmt: skip
def test_formats_that_are_not_accepted_are_415_or_400(client, data):
    answer = client.post(V1, content=data)
    assert answer.status_code in (400, 415)
    assert answer.json()["message"].startswith("The upload is ")


def test_an_upload_that_kills_its_reader_takes_nobody_along(served, client, upload):
    """The reader process is killed while it reads; the others are answered."""
    import os
    import signal

    keeper = served.service.keeper(None)
    answers: list[httpx.Response] = []

    def ask() -> None:
        with served.client() as other:
            answers.append(other.post(V1, content=upload))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: keeper.engine._pool.pids)
    for pid in keeper.engine._pool.pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(HANGS)
    codes = sorted(answer.status_code for answer in answers)
    assert len(codes) == 4
    assert set(codes) <= {200, 400}
    assert codes.count(400) <= 1
    assert client.post(V1, content=upload).status_code == 200


def test_a_thousand_connections_at_once(model, tmp_path, upload):
    """All are answered, or told at once when to come again; memory is bounded."""

    async def ask(number: int, gate: asyncio.Event) -> int:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", found.port)
        except ConnectionError:
            return -1
        await gate.wait()
        head = HEAD + f"Content-Length: {len(upload)}\r\nConnection: close\r\n\r\n".encode()
        reading = asyncio.create_task(reader.read())  # it may be told before it has sent all
        with suppress(ConnectionError):
            writer.write(head + upload)
            await writer.drain()
        try:
            answer = await reading
        except ConnectionError:
            answer = b""
        writer.close()
        if status(answer) in (429, 503):
            assert b"retry-after:" in answer.lower(), number
        return status(answer)

    async def all_of_them() -> list[int]:
        gate = asyncio.Event()
        tasks = [asyncio.create_task(ask(number, gate)) for number in range(1000)]
        await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(*tasks)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        with running(model, tmp_path, requests=24, burst=10_000) as found:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            codes = asyncio.run(all_of_them())
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            found.idle()
            with found.client() as client:
                assert client.post(V1, content=upload).status_code == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    counts = {code: codes.count(code) for code in set(codes)}
    print(counts, grown)
    assert set(codes) <= {200, 429, 503}, counts
    assert codes.count(200) >= 24, counts
    assert grown < 300 * 1024, grown  # kilobytes


def test_idle_connections_are_bounded(model, tmp_path):
    with running(model, tmp_path, connections=5) as found:
        held = [found.connect() for _ in range(5)]
        until(lambda: len(found.server.server_state.connections) == 5)
        answer = raw(found, b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status(answer) == 503
        assert b"retry-after" in answer
        for each in held:
            each.close()
        until(lambda: not found.server.server_state.connections)
        assert httpx.get(found.url + "/version", trust_env=False).status_code == 200


@pytest.mark.parametrize("accept", ["*/*", "application/x-ndjson"])
def test_no_answer_tells_where_uploads_lie(served, client, upload, accept):
    """A file that is cut off is transcribed with a warning, which names it; so do errors."""
    from tests.server.running import json_lines

    cut = upload[: len(upload) * 2 // 3]
    for content in (cut, b"fLaC" + bytes(100), b"nothing"):
        answer = client.post(V1, content=content, headers={"accept": accept})
        assert str(served.service.spool.folder) not in answer.text
        assert ".upload" not in answer.text
        if answer.status_code == 200 and accept != "*/*":
            assert any("he upload" in text for text in json_lines(answer.text)[-1]["warnings"])
    job = client.post("/v1/jobs", content=cut).json()["id"]
    while client.get(f"/v1/jobs/{job}").json()["status"] not in ("done", "failed"):
        time.sleep(0.05)
    told = client.get(f"/v1/jobs/{job}")
    assert "he upload" in str(told.json())
    assert "/jobs/" not in told.text
    assert str(served.service.spool.folder) not in told.text
