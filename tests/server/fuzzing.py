"""Requests and sockets from the OpenAPI document and what hypothesis draws, and what must hold.

Hypothesis draws a corpus of texts, bodies and sessions; requests combine its parts by the document,
at random from a seed.  So many of them cost little to make, and each is in the message if it fails.
They are sent over a connection (`ask`, `talk`), or straight to the application (`ask_many`), as the
server would hand them over.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import sys
import threading
from collections.abc import Awaitable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote, quote_from_bytes, unquote

from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from mt3_server.openapi_document import openapi
from tests.pace import HANGS, until
from tests.server.running import Running

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


def value_of(schema: dict[str, Any], random: Random) -> str:
    """A value that a schema allows, as text."""
    if "enum" in schema:
        return str(random.choice(schema["enum"]))
    if schema.get("type") == "number":
        return repr(random.uniform(schema.get("minimum", 0), schema.get("maximum", 1e3)))
    if schema.get("type") == "boolean":
        return random.choice(["true", "false"])
    return random.choice(["piano", "bass", "drums", "tiny", "40"])


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


@dataclass(repr=False)
class Corpus:
    """What requests are made of; a failure shows its request, and not all of this."""

    texts: list[str]
    binaries: list[bytes]
    bodies: list[tuple[dict[str, str], bytes]]
    sessions: list[list[str | bytes]]


def corpora(audio: bytes, live: bytes) -> st.SearchStrategy[Corpus]:
    """Corpora of some dozen parts: hypothesis draws no more than a few thousand bytes at a time."""
    return st.builds(
        Corpus,
        st.lists(TEXTS, min_size=10, max_size=10),
        st.lists(st.binary(max_size=20), min_size=5, max_size=5),
        st.lists(bodies(audio), min_size=10, max_size=10),
        st.lists(sessions(live), min_size=8, max_size=8),
    )


OPERATIONS = sorted(
    (path, method.upper()) for path, item in PATHS.items() for method in item
    if method in ("get", "post", "delete")
)  # fmt: skip
COSTLY = {"/v1/assessment", "/v1/genre", "/v1/tags"}
"""Each request that reaches one of these starts a reader process, which takes half a second."""

WEIGHTS = [0.05 if path in COSTLY else 1.0 for path, _ in OPERATIONS]
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "ODD"]
HEADERS = ["Accept", "Origin", "Host", "Authorization", "Range", "Expect", "X-Odd",
           "Accept-Encoding", "Upgrade", "Connection"]  # fmt: skip
VALUES = ["application/x-ndjson", "text/event-stream", "*/*", "null", "localhost",
          "https://evil.example", "Bearer x", "bytes=0-1", "websocket", "Upgrade",
          "100-continue", "\xff", ""]  # fmt: skip


def combined(corpus: Corpus, random: Random) -> Asked:
    """A request to any path: partly as documented, partly with anything in its place."""
    ((path, method),) = random.choices(OPERATIONS, WEIGHTS)
    operation = PATHS[path][method.lower()]
    job = random.choice(["0" * 32, "..", "%2e%2e%2f", *corpus.texts])
    target = path.replace("{job}", quote(job, safe="%", errors="replace"))
    asked = []
    for parameter in operation.get("parameters", ()):
        if random.random() < 1 / 6:
            text = random.choice(corpus.texts)
            value = value_of(parameter["schema"], random) if random.random() < 0.5 else text
            asked.append(f"{parameter['name']}={quote(value, errors='replace')}")
    if random.random() < 0.1:
        asked.append(quote_from_bytes(random.choice(corpus.binaries), safe="=&"))
    if asked:
        target += "?" + "&".join(asked)
    if random.random() < 0.1:
        method = random.choice(METHODS)
    kind, body = random.choice(corpus.bodies) if method == "POST" else ({}, b"")
    some = random.sample(HEADERS, random.randrange(4)) if random.random() < 0.25 else []
    return Asked(method, target, {**kind, **{name: random.choice(VALUES) for name in some}}, body)


def sessions(audio: bytes) -> st.SearchStrategy[list[str | bytes]]:
    """What a client of a live input sends, in any order."""
    start = {"type": "start", "rate": 16000, "format": "s16le"}
    odd = st.fixed_dictionaries(
        {"type": st.sampled_from(["start", "end", "x"])},
        optional={
            "rate": st.sampled_from([16000, 0, -1, 1e9, "x", None, True, 8000]),
            "channels": st.sampled_from([1, 2, 0, 99, "x", None]),
            "format": st.sampled_from([*["s16le", "f32le", "mp4"] * 3, "webm", "ogg", 3, None]),
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


def check(asked: Asked, status: int, headers: dict[str, str], text: bytes) -> None:
    """Checks an answer; its headers are in lower case."""
    assert status < 500 or status in ALLOWED, (asked, status, text[:300])
    kind = headers.get("content-type")
    if status >= 400 and asked.method != "HEAD" and kind == "application/json":
        error = json.loads(text)
        assert error.get("message") or error.get("status"), (asked, text)
        assert b"Traceback" not in text
    if status in (429, 503):
        assert headers.get("retry-after") or b"status" in text


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
        check(asked, answer.status, dict(answer.headers.items()), text)
        return answer.status
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
                assert code in CODES, (messages, code)
                return code
    except (InvalidHandshake, ConnectionError, UnicodeError):
        return 0
    return 0


CODES = (0, 1000, 1003, 1007, 1008, 1009, 1013)
"""With which a socket may be closed; 0 stands for not at all."""

TOGETHER = 8
"""Requests under way at once."""


def ask_many(found: Running, several: list[Asked], random: Random) -> list[int]:
    """Hands requests to the application, in pieces, and checks their answers.

    Returns:
        Their statuses; 0 where the client left in the middle.
    """

    async def one(asked: Asked, cuts: list[int], *, leaves: bool) -> int:
        pieces = [asked.body[a:b] for a, b in pairwise([0, *sorted(cuts), len(asked.body)])]
        messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        messages[-1]["more_body"] = False
        if leaves:
            messages[-1] = {"type": "http.disconnect"}
        exchange = _Exchange(messages)
        await found.app(_scope(found, asked), exchange.receive, exchange.send)
        if not exchange.status:
            assert leaves, asked
            return 0
        check(asked, exchange.status, exchange.headers, bytes(exchange.text))
        return 0 if exchange.status == 499 else exchange.status

    plans = [
        (asked, random.choices(range(len(asked.body) + 1), k=random.randrange(3)),
         random.random() < 0.02)
        for asked in several
    ]  # fmt: skip
    return found.run(_each(one(asked, cuts, leaves=leaves) for asked, cuts, leaves in plans))


def talk_many(found: Running, several: list[list[str | bytes]]) -> list[int]:
    """Hands the messages of sockets to the application; returns the codes they are closed with."""

    async def one(messages: list[str | bytes]) -> int:
        exchange = _Exchange([
            {"type": "websocket.connect"},
            *({"type": "websocket.receive", "bytes" if isinstance(m, bytes) else "text": m}
              for m in messages),
            {"type": "websocket.disconnect", "code": 1001},
        ])  # fmt: skip
        scope = _scope(found, Asked("GET", "/v1/live", {}, b""))
        scope |= {"type": "websocket", "scheme": "ws", "subprotocols": []}
        await found.app(scope, exchange.receive, exchange.send)
        assert exchange.code in CODES, (messages, exchange.code)
        return exchange.code

    return found.run(_each(map(one, several)))


async def _each(work: Iterable[Awaitable[int]]) -> list[int]:
    """What some work comes to, a few at a time."""
    room = asyncio.Semaphore(TOGETHER)

    async def held(each: Awaitable[int]) -> int:
        async with room:
            return await each

    return await asyncio.gather(*map(held, work))


def _scope(found: Running, asked: Asked) -> dict[str, Any]:
    """A request as uvicorn hands it over."""
    path, _, query = asked.target.partition("?")
    headers = {"Host": f"127.0.0.1:{found.port}", **asked.headers}
    headers["Content-Length"] = str(len(asked.body))
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "server": ("127.0.0.1", found.port), "client": ("127.0.0.1", 1), "scheme": "http",
        "method": asked.method, "root_path": "", "path": unquote(path),
        "raw_path": path.encode(), "query_string": query.encode(), "state": {},
        "headers": [(name.lower().encode(), value.encode("latin-1"))
                    for name, value in headers.items()],
    }  # fmt: skip


class _Exchange:
    """The client's end of a request, or of a socket."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self._messages = iter(messages)
        self._closed = asyncio.Event()
        self.status = self.code = 0
        self.headers: dict[str, str] = {}
        self.text = bytearray()

    async def receive(self) -> dict[str, Any]:
        if (message := next(self._messages, None)) is not None:
            if message["type"] == "websocket.disconnect":
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closed.wait(), ENOUGH)
            return message
        await asyncio.Event().wait()  # it stays, and says nothing
        raise AssertionError

    async def send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        elif kind == "http.response.body":
            self.text += message.get("body", b"")
        elif kind == "websocket.close":
            self.code = message["code"]
            self._closed.set()


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
