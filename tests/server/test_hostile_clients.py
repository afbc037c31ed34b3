"""Clients that mean harm: bombs, frames that may not be, names, and load at the end."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import resource
import signal
import socket
import struct
import threading
import zipfile
from contextlib import suppress
from urllib.parse import quote_from_bytes

import httpx
import numpy as np
import pytest
import soundfile
from websockets.sync.client import connect

from mt3_runtime.audio.recorder_files.ogg_packets import BEGINS, ogg_page
from mt3_server.settings import token_digest_of
from tests.pace import HANGS, until
from tests.recorder_streams import ogg_opus, packets_of
from tests.server.running import running
from tests.server.test_bad_clients import HEAD, NAMES, V1, B, raw, status
from tests.server.test_service_process import JOBS, ask, process

MOST_SECONDS = 30.0
"""Of a recording that the service takes; bombs hold more."""


def silence(form: str, seconds: float, **options) -> bytes:
    """A file of so much of it at 16 kHz, in pieces: libvorbis has them on the stack."""
    held = io.BytesIO()
    with soundfile.SoundFile(held, "w", 16000, 1, format=form, **options) as file:
        for _ in range(int(seconds)):
            file.write(np.zeros(16000, np.int16))
    return held.getvalue()


def tiny_packets(count: int) -> bytes:
    """An Ogg file whose packets have two bytes and last 120 ms each."""
    head, _ = packets_of(ogg_opus(0.5))
    pages = [ogg_page(head, 0, 0, BEGINS), ogg_page(b"OpusTags" + bytes(8), 0, 1)]
    pages += [ogg_page(b"\xe7\x30", 5760 * (n + 1), n + 2) for n in range(count)]
    return b"".join(pages)


@pytest.fixture(scope="module")
def strict(model, tmp_path_factory):
    with running(model, tmp_path_factory.mktemp("spool"), audio_seconds=MOST_SECONDS) as found:
        yield found
        found.idle()


@pytest.mark.parametrize(
    "bomb",
    [
        silence("FLAC", 2000.0),
        silence("MP3", 600.0),
        silence("OGG", 600.0, subtype="VORBIS"),
        tiny_packets(4000),
        silence("FLAC", 20.0) * 4,  # joined: each is short enough
        silence("RF64", 60.0),
    ],
    ids=["FLAC", "MP3", "Vorbis", "Opus", "joined", "RF64"],
)
def test_bombs_of_every_format_are_413(strict, bomb):
    with strict.client() as client:
        answer = client.post(V1, content=bomb)
    assert answer.status_code == 413, answer.text
    assert "longer than 30 s" in answer.json()["message"]


def test_nothing_is_unpacked(strict, upload):
    """What is compressed is no audio, whatever its header says."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("song.wav", bytes(10**7))
    with strict.client() as client:
        for content in (gzip.compress(bytes(10**7)), gzip.compress(upload), held.getvalue()):
            for coding in ({}, {"content-encoding": "gzip"}):
                answer = client.post(V1, content=content, headers=coding)
                assert answer.status_code in (400, 415), answer.text


# --- frames


def frame(opcode: int, payload: bytes = b"", *, last: bool = True, mask: bool = True,
          reserved: int = 0) -> bytes:  # fmt: skip
    head = bytes([last << 7 | reserved << 4 | opcode])
    size = len(payload)
    if size < 126:
        head += bytes([mask << 7 | size])
    elif size < 1 << 16:
        head += bytes([mask << 7 | 126]) + struct.pack(">H", size)
    else:
        head += bytes([mask << 7 | 127]) + struct.pack(">Q", size)
    return head + (bytes(4) if mask else b"") + payload  # a mask of zeros changes nothing


HANDSHAKE = (
    "GET /v1/live HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n"
    "Sec-WebSocket-Version: 13\r\n\r\n"
).encode()
START = json.dumps({"type": "start", "rate": 16000}).encode()
TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """The frames that a service has sent, behind its answer to the handshake."""
    found, at = [], data.index(b"\r\n\r\n") + 4
    while at + 2 <= len(data):
        opcode, size = data[at] & 15, data[at + 1] & 127
        at += 2
        if size == 126:
            (size,), at = struct.unpack_from(">H", data, at), at + 2
        found.append((opcode, data[at : at + size]))
        at += size
    return found


@pytest.mark.parametrize(
    ("sent", "codes"),
    [
        (frame(0, b"goes on"), {1002}),  # a part of a message that was not begun
        (frame(TEXT, START, mask=False), {1002}),
        (frame(3), {1002}),
        (frame(11), {1002}),
        (frame(TEXT, START, reserved=4), {1002}),  # compression was not agreed on
        (frame(TEXT, START, last=False) + frame(TEXT, START), {1002}),
        (frame(TEXT, START, last=False) + frame(BINARY, bytes(64)), {1002}),
        (frame(PING, bytes(200)), {1002}),
        (frame(PING, b"x", last=False), {1002}),
        (frame(CLOSE, b"x"), {1002}),
        (frame(CLOSE, struct.pack(">H", 5)), {1002}),
        (frame(TEXT, b"\xff\xfe"), {1007}),
        (frame(TEXT, START) + frame(TEXT, b"\xc0\x80"), {1007}),
        (b"\x82\xff" + struct.pack(">Q", 1 << 62) + bytes(4), {1009}),
        (b"\x82\xff" + struct.pack(">Q", (1 << 64) - 1) + bytes(4), {1002, 1009}),
        (frame(TEXT, START) + frame(BINARY, bytes(700_000), last=False)
         + frame(0, bytes(700_000)), {1009}),
        (frame(BINARY, bytes(640)) + frame(TEXT, START), {1008}),  # audio first
        (frame(TEXT, START) + frame(TEXT, START), {1008}),
    ],
)  # fmt: skip
def test_frames_that_may_not_be_end_their_socket_alone(served, sent, codes):
    with served.connect() as made:
        made.sendall(HANDSHAKE)
        data = b""
        while b"\r\n\r\n" not in data:
            data += made.recv(65536)
        assert status(data) == 101
        with suppress(ConnectionError):
            made.sendall(sent)
        with suppress(ConnectionError):
            while more := made.recv(65536):
                data += more
    closed = [payload for opcode, payload in frames(data) if opcode == CLOSE]
    assert closed
    assert struct.unpack_from(">H", closed[0])[0] in codes
    until(lambda: not served.service.keeper(None).health().live)
    with connect(f"ws://127.0.0.1:{served.port}/v1/live", proxy=None) as other:
        other.send(START.decode())
        assert json.loads(other.recv(HANGS))["type"] == "ready"


@pytest.mark.parametrize("early", [frame(BINARY, bytes(640)), frame(TEXT, START), b"\0"])
def test_what_comes_with_the_handshake_is_told_and_not_lost(served, early):
    answer = raw(served, HANDSHAKE + early)
    assert status(answer) == 400
    error = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert "before the handshake" in error["message"]


def test_a_message_may_come_in_single_bytes_between_pings(served):
    with served.connect() as made:
        made.sendall(HANDSHAKE)
        data = made.recv(65536)
        for number in range(len(START)):
            opcode, last = (0 if number else TEXT), number == len(START) - 1
            made.sendall(frame(PING, b"?") + frame(opcode, START[number : number + 1], last=last))
        while b'"ready"' not in data:
            data += made.recv(65536)
    assert [opcode for opcode, _ in frames(data)].count(10) == len(START)


def test_a_flood_of_pings_slows_nobody_down(served, client, upload):
    flooding = threading.Event()

    def flood() -> None:
        with served.connect() as made:
            made.settimeout(0.2)
            with suppress(ConnectionError, TimeoutError):
                made.sendall(HANDSHAKE)
                made.recv(65536)
                made.sendall(frame(TEXT, START))
                while not flooding.is_set():
                    made.sendall(frame(PING, bytes(100)) * 100)

    threads = [threading.Thread(target=flood) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert client.post(V1, content=upload).status_code == 200
    finally:
        flooding.set()
        for thread in threads:
            thread.join(HANGS)
    until(lambda: not served.service.keeper(None).health().live)


@pytest.mark.parametrize(
    "changed",
    [
        HANDSHAKE.replace(b"Sec-WebSocket-Key", b"X-Key"),
        HANDSHAKE.replace(b"Version: 13", b"Version: 7"),
        HANDSHAKE.replace(b"GET", b"POST"),
        HANDSHAKE.replace(b"/v1/live", b"/v1/models"),
        HANDSHAKE.replace(b"Sec-WebSocket-Key: ", b"Sec-WebSocket-Key: !"),
    ],
)
def test_handshakes_that_are_none_are_refused(served, changed):
    answer = raw(served, changed, shut=True)
    assert status(answer) in (0, *range(400, 500))


# --- halves and names


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nfLaCx\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nffff\r\nfLaC",
        HEAD + b"Content-Length: 900000\r\n\r\nfLaC",
        HEAD
        + f"Content-Type: multipart/form-data; boundary={B}\r\nContent-Length: 9000\r\n\r\n"
        f'--{B}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nfLaC'.encode(),
        HEAD
        + f"Content-Type: multipart/form-data; boundary={B}\r\nContent-Length: 9000\r\n\r\n"
        f"--{B}\r\nContent-Dispo".encode(),
        HEAD.replace(b"/v1/transcriptions", b"/v1/jobs") + b"Content-Length: 9000\r\n\r\nfLaC",
        HEAD.replace(b"/v1/transcriptions", b"/transcribe") + b"Content-Length: 9000\r\n\r\nfLaC",
    ],
)
@pytest.mark.parametrize("shut", [True, False])
def test_halves_of_every_kind_leave_nothing(served, sent, shut):
    if shut:
        assert status(raw(served, sent, shut=True)) < 500
    else:
        with served.connect() as made:
            made.sendall(sent)
    served.idle()
    assert served.service.spool.used == sum(
        path.stat().st_size for path in served.service.spool.jobs.glob("*/*")
    )


@pytest.mark.parametrize("path", [JOBS, "/transcribe/midi"])
@pytest.mark.parametrize("name", NAMES)
def test_names_are_never_paths_of_jobs_either(served, client, upload, path, name):
    root = served.service.spool.folder
    before = {each for each in root.parent.rglob("*") if not each.is_relative_to(root / "jobs")}
    shown = name.encode("utf-8", "surrogatepass").replace(b'"', b"%22").replace(b"\r\n", b"%0D%0A")
    head = f'--{B}\r\nContent-Disposition: form-data; name="file"; filename="'.encode()
    body = head + shown + b'"\r\n\r\n' + upload + f"\r\n--{B}--\r\n".encode()
    kind = {"content-type": f"multipart/form-data; boundary={B}"}
    answer = client.post(path, content=body, headers=kind)
    assert answer.status_code in (200, 202, 400), answer.text
    if answer.status_code == 202:
        job = answer.json()["id"]
        until(lambda: client.get(f"{JOBS}/{job}").json()["status"] in ("done", "failed"))
        told = client.get(f"{JOBS}/{job}").text + str(client.get(f"{JOBS}/{job}/result").headers)
        assert len(name) < 5 or name not in told
        files = {each.name for each in (root / "jobs" / job).iterdir()}
        assert all(each.isascii() and len(each) < 40 for each in files)
        assert client.delete(f"{JOBS}/{job}").status_code in (200, 204)
    served.idle()
    after = {each for each in root.parent.rglob("*") if not each.is_relative_to(root / "jobs")}
    assert after == before


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_names_of_options_are_one_refusal(client, upload, name):
    query = quote_from_bytes(name.encode("utf-8", "surrogatepass"), safe="")
    answer = client.post(f"{V1}?{query}=x", content=upload)
    assert answer.status_code == 422, answer.text
    assert len(answer.text) < 2000


def test_a_token_is_asked_for_before_the_body(model, tmp_path):
    tokens = frozenset({token_digest_of("correct-horse-battery-staple")})
    with running(model, tmp_path, tokens=tokens) as found, found.connect() as made:
        made.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n")
        answer = made.recv(65536)
    assert status(answer) == 401
    assert not list(found.service.spool.uploads.iterdir())


# --- the end, and a disk that is full


def test_sigterm_under_load_answers_everybody(tiny_bundle, tmp_path, upload):
    """What was let in is answered whole; who comes later is told, or finds no port."""
    spool, answers, refused, stop = tmp_path / "spool", [], [], threading.Event()
    with process(tiny_bundle, spool, "--drain", "5") as (url, started, log):
        expected = ask(url, V1, upload).content

        def load() -> None:
            while not stop.is_set():
                try:
                    answers.append(ask(url, V1, upload))
                except httpx.TransportError as error:  # the port is closed
                    ending = stop.is_set() or "draining" in log.read_text()
                    refused.append(ending and "complete message" not in str(error))
                    return

        job = ask(url, JOBS, upload).json()["id"]
        with connect(url.replace("http", "ws") + "/v1/live", proxy=None) as live:
            live.send(START.decode())
            assert json.loads(live.recv(HANGS))["type"] == "ready"
            live.send(bytes(32000))
            threads = [threading.Thread(target=load) for _ in range(6)]
            for thread in threads:
                thread.start()
            until(lambda: len(answers) >= 6)
            started.send_signal(signal.SIGTERM)
            until(lambda: "draining" in log.read_text())
            stop.set()
            for thread in threads:
                thread.join(HANGS)
        assert started.wait(HANGS) == 0
    assert not [thread for thread in threads if thread.is_alive()]
    assert all(refused)
    for answer in answers:
        assert answer.status_code in (200, 503)
        assert answer.status_code == 503 or answer.content == expected
    assert len([a for a in answers if a.status_code == 200]) >= 6
    assert not list((spool / "uploads").iterdir())
    assert (spool / "jobs" / job).is_dir()
    assert json.loads(log.read_text().splitlines()[-1])["event"] == "ended"


def test_kill_under_load_leaves_what_the_next_one_clears(tiny_bundle, tmp_path, upload):
    spool = tmp_path / "spool"
    with process(tiny_bundle, spool) as (url, started, _):
        assert ask(url, V1, upload).status_code == 200  # a reader process runs now
        host, port = url.removeprefix("http://").split(":")
        halves = [socket.create_connection((host, int(port))) for _ in range(4)]
        for made in halves:
            made.sendall(HEAD + f"Content-Length: {len(upload)}\r\n\r\n".encode() + upload[:5000])
        until(lambda: len(list((spool / "uploads").iterdir())) == 4)
        readers = [int(pid) for pid in os.listdir("/proc") if pid.isdigit()
                   and _parent(int(pid)) == started.pid]  # fmt: skip
        assert readers
        started.send_signal(signal.SIGKILL)
        started.wait(HANGS)
        for made in halves:
            made.close()
    until(lambda: not [pid for pid in readers if _parent(pid) not in (0, None)])
    with process(tiny_bundle, spool) as (url, started, _):
        assert not list((spool / "uploads").iterdir())
        assert ask(url, V1, upload).status_code == 200
        started.send_signal(signal.SIGTERM)
        assert started.wait(HANGS) == 0


def _parent(pid: int) -> int | None:
    """The process that started another one; 0 if it is done for, None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return 0 if state == "Z" else int(parent)


def test_a_disk_that_takes_no_more_is_507(tiny_bundle, tmp_path, upload):
    """The system refuses to write: files of this process may have 200 kB."""

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    spool = tmp_path / "spool"
    large = silence("WAV", 10.0)
    assert len(large) > 300_000
    with process(tiny_bundle, spool, before=confine) as (url, started, _):
        for path in (V1, JOBS):
            answer = ask(url, path, large)
            assert answer.status_code == 507, answer.text
            assert answer.json()["type"] == "storage"
        assert not list((spool / "uploads").iterdir())
        assert not list((spool / "jobs").iterdir())
        assert ask(url, V1, upload[:150_000]).status_code == 200
        started.send_signal(signal.SIGTERM)
        assert started.wait(HANGS) == 0
