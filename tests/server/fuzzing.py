"""Requests and sockets as hypothesis makes them from the OpenAPI document, and what must hold."""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_from_bytes

from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from mt3_server.openapi_document import openapi
from tests.pace import HANGS, until

PATHS = openapi()["paths"]
ALLOWED = {503, 507}
"""Statuses from 500 on that may occur."""

ENOUGH = 0.05
"""Seconds of silence after which a socket counts as taken; nothing is judged by it."""

TEXTS = st.text(max_size=40) | st.sampled_from(
    ["", "\0", "../../etc/passwd", "http://127.0.0.1/x", "\u202e", "nan", "inf", "1e309", "-1",
     "x" * 3000, "true", "midi", "tiny", "bass, drums", "0", "99999999999999999999", "\ud83d\ude00",
     "%00", "\r\nX: y", "'; --", "{{7*7}}"]
)  # fmt: skip


@dataclass
class Asked:
    """One request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


def of_schema(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    """Values that a schema allows, as text."""
    if "enum" in schema:
        return st.sampled_from([str(value) for value in schema["enum"]])
    if schema.get("type") == "number":
        return st.floats(schema.get("minimum", 0), schema.get("maximum", 1e3)).map(repr)
    if schema.get("type") == "boolean":
        return st.sampled_from(["true", "false"])
    return st.sampled_from(["piano", "bass", "drums", "tiny", "40"])


def bodies(audio: bytes) -> st.SearchStrategy[tuple[dict[str, str], bytes]]:
    """Bodies with their headers: bytes, damaged audio, forms and what looks like them."""

    @st.composite
    def damaged(draw) -> bytes:
        data = bytearray(audio)
        for place in draw(st.lists(st.integers(0, len(data) - 1), max_size=6)):
            data[place] = draw(st.integers(0, 255))
        return bytes(data[: draw(st.integers(0, len(data)))])

    whole = st.integers(0, 9).map(lambda number: audio if number == 0 else audio[:number])
    content = st.one_of(st.binary(max_size=100), damaged(), whole)

    @st.composite
    def form(draw) -> tuple[dict[str, str], bytes]:
        boundary = draw(st.sampled_from(["b", "--", "x" * 70, "x" * 300]))
        parts = []
        for _ in range(draw(st.integers(0, 4))):
            name = draw(TEXTS | st.sampled_from(["file", "format", "instruments", "model"]))
            head = f'Content-Disposition: form-data; name="{name}"'
            if draw(st.booleans()):
                head += f'; filename="{draw(TEXTS)}"'
            value = draw(content | TEXTS.map(lambda text: text.encode("utf-8", "replace")))
            parts.append(
                f"--{boundary}\r\n{head}\r\n\r\n".encode("utf-8", "replace") + value + b"\r\n"
            )
        end = draw(st.sampled_from([f"--{boundary}--\r\n", "", f"--{boundary}"])).encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        data = b"".join(parts) + end
        return kind, data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data

    kinds = st.sampled_from(["", "audio/flac", "application/json", "multipart/form-data", "\xff"])
    plain = st.tuples(kinds.map(lambda kind: {"Content-Type": kind}), content)
    return plain | form()


def requests(audio: bytes) -> st.SearchStrategy[Asked]:
    """Requests to all paths: some as documented, some with anything in their place."""
    operations = sorted(
        (path, method.upper()) for path, item in PATHS.items() for method in item
        if method in ("get", "post", "delete")
    )  # fmt: skip
    headers = st.dictionaries(
        st.sampled_from(["Accept", "Origin", "Host", "Authorization", "Range", "Expect", "X-Odd",
                         "Accept-Encoding", "Upgrade", "Connection"]),
        st.sampled_from(["application/x-ndjson", "text/event-stream", "*/*", "null", "localhost",
                         "https://evil.example", "Bearer x", "bytes=0-1", "websocket", "Upgrade",
                         "100-continue", "\xff", ""]),
        max_size=3,
    )  # fmt: skip

    @st.composite
    def made(draw) -> Asked:
        path, method = draw(st.sampled_from(operations))
        operation = PATHS[path][method.lower()]
        numbers = st.sampled_from(["0" * 32, "..", "%2e%2e%2f"]) | TEXTS.map(
            lambda text: quote(text, safe="", errors="replace")
        )
        target = path.replace("{job}", draw(numbers))
        asked = []
        for parameter in operation.get("parameters", ()):
            if draw(st.integers(0, 5)) == 0:
                value = draw(of_schema(parameter["schema"]) | TEXTS)
                asked.append(f"{parameter['name']}={quote(value, errors='replace')}")
        if draw(st.integers(0, 9)) == 0:
            asked.append(quote_from_bytes(draw(st.binary(max_size=20)), safe="=&"))
        if asked:
            target += "?" + "&".join(asked)
        if draw(st.integers(0, 9)) == 0:
            method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD",
                                           "OPTIONS", "TRACE", "ODD"]))  # fmt: skip
        kind, body = draw(bodies(audio)) if method == "POST" else ({}, b"")
        given = draw(headers) if draw(st.integers(0, 3)) == 0 else {}
        return Asked(method, target, {**kind, **given}, body)

    return made()


def sessions(audio: bytes) -> st.SearchStrategy[list[str | bytes]]:
    """What a client of a live input sends, in any order."""
    start = {"type": "start", "rate": 16000, "format": "s16le"}
    odd = st.fixed_dictionaries(
        {"type": st.sampled_from(["start", "end", "x"])},
        optional={
            "rate": st.sampled_from([16000, 0, -1, 1e9, "x", None, True, 8000]),
            "channels": st.sampled_from([1, 2, 0, 99, "x", None]),
            "format": st.sampled_from(["s16le", "f32le", "webm", 3, None]),
            "model": st.sampled_from(["tiny", "../x", 3]),
            "instruments": st.sampled_from(["piano", "nobody", [], 3]),
            "min_confidence": st.sampled_from([0.1, 9, "x", True]),
        },
    ).map(json.dumps)
    message = st.one_of(
        st.just(json.dumps(start)), st.just(audio), st.just(json.dumps({"type": "end"})), odd,
        st.binary(max_size=50), TEXTS,
    )  # fmt: skip
    return st.lists(message, max_size=6)


def ask(port: int, asked: Asked) -> int:
    """Sends a request and checks its answer; returns its status, 0 if there was none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANGS)
    try:
        try:
            connection.putrequest(asked.method, asked.target, skip_host="Host" in asked.headers,
                                  skip_accept_encoding=True)  # fmt: skip
            for name, value in asked.headers.items():
                connection.putheader(name, value.encode("latin-1"))
            connection.putheader("Content-Length", str(len(asked.body)))
            connection.endheaders()
            with suppress(ConnectionError):
                connection.send(asked.body)
            answer = connection.getresponse()
            text = answer.read()
        except (ConnectionError, http.client.HTTPException, ValueError):
            return 0  # no HTTP any more, or nothing that the client's library sends
        status = answer.status
        assert status < 500 or status in ALLOWED, (asked, status, text[:300])
        if (
            status >= 400
            and asked.method != "HEAD"
            and answer.headers["content-type"] == "application/json"
        ):
            error = json.loads(text)
            assert error.get("message") or error.get("status"), (asked, text)
            assert b"Traceback" not in text
        if status in (429, 503):
            assert answer.headers["retry-after"] or b"status" in text
        return status
    finally:
        connection.close()


def talk(port: int, messages: list[str | bytes]) -> int:
    """Sends what a client of a live input says; returns the code it was closed with, 0 if not."""
    try:
        with connect(f"ws://127.0.0.1:{port}/v1/live", proxy=None, close_timeout=2, max_size=None,
                     ping_interval=None) as socket:  # fmt: skip
            try:
                for message in messages:
                    socket.send(message)
                while True:
                    socket.recv(timeout=ENOUGH)
            except TimeoutError:
                return 0
            except ConnectionClosed as closed:
                code = closed.rcvd.code if closed.rcvd else 0
                assert code in (0, 1000, 1003, 1007, 1008, 1009, 1013), (messages, code)
                return code
    except (InvalidHandshake, ConnectionError, UnicodeError):
        return 0
    return 0


_watching: list[tuple[Path, list[str]]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if threading.current_thread() is threading.main_thread():
        return  # hypothesis; the service has other threads
    if not _watching or event not in ("open", "os.rename", "os.mkdir", "os.symlink", "os.link"):
        return
    root, found = _watching[-1]
    path, mode = arguments[0], arguments[1] if event == "open" else "w"
    if not isinstance(path, str | bytes | os.PathLike):
        return
    flags = arguments[2] if event == "open" else os.O_WRONLY
    if (isinstance(mode, str) and set(mode) & set("wax+")) or (
        isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    ):
        real = os.path.realpath(os.fsdecode(path))
        if not Path(real).is_relative_to(root) and real != os.devnull:
            found.append(real)


sys.addaudithook(_audit)


@contextmanager
def writes_elsewhere(root: Path):
    """Collects the files that this process opens for writing outside a folder."""
    found: list[str] = []
    _watching.append((Path(os.path.realpath(root)), found))
    try:
        yield found
    finally:
        _watching.pop()


def files_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Memory of this process in KiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def settle(found) -> None:
    """Waits until nothing of a service is under way."""
    with found.client() as client:
        while jobs := client.get("/v1/jobs").json()["jobs"]:
            for job in jobs:
                client.delete(f"/v1/jobs/{job['id']}")
    found.idle()
    until(lambda: not [t for t in threading.enumerate() if t.name == "mt3 live"])
    until(lambda: not found.server.server_state.connections)
