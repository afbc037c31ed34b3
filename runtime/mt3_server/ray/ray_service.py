"""Transcription as a Ray Serve deployment: one engine a replica, answers whole or as they come.

Contract: ``POST`` with an audio file as the body, options as query parameters.  The answer is the
file that ``format`` names, its summary in the header ``X-MT3-Summary``; with ``format=events``, or
``Accept: application/x-ndjson``, what is told of each segment as JSON lines, and a last line of
type ``done`` with the result, or ``error`` with the reason.  A client that goes away ends its work.
Uploads are read by a process of the replica's, under the limits for files of strangers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING, Any

from mt3_runtime.errors import (
    AudioError,
    DeadlineError,
    EngineBusyError,
    EngineError,
    MT3Error,
    OptionError,
)
from mt3_runtime.files.formats import render
from mt3_runtime.imports.extras import require
from mt3_runtime.reading.reader_limits import ReaderLimits
from mt3_server.request_options import EVENTS, RequestOptions, done_line, event_lines, summary

if TYPE_CHECKING:
    from mt3_runtime.notes.note_events import NoteEvent
    from mt3_runtime.transcription import Handle, Progress, Tell

NDJSON = "application/x-ndjson"

_MEDIA = {
    "midi": "audio/midi",
    "json": "application/json",
    "jsonl": NDJSON,
    "csv": "text/csv; charset=utf-8",
}

#: Status codes of HTTP; the first kind that an error is of.
_STATUS: tuple[tuple[type[MT3Error], int], ...] = (
    (EngineBusyError, 503),
    (EngineError, 503),
    (DeadlineError, 504),
    (OptionError, 422),
    (AudioError, 400),
)

#: Requests that a replica takes at a time; it refuses more than the engine has room for itself.
ONGOING = 64


class TranscribeReplica:
    """A replica: one loaded model, one engine.

    Args:
        load: Arguments of `mt3_runtime.loading.load_model`.
        readers: Processes that read uploads; with 0 the replica does, and there are no limits.
        most_bytes: Of an upload.
    """

    def __init__(
        self, load: Mapping[str, Any], readers: int = 1, most_bytes: int = 200 << 20
    ) -> None:
        from mt3_runtime.loading import load_model  # noqa: PLC0415  on the worker alone

        self._model = load_model(**load)
        self._model.warmup()
        limits = ReaderLimits.untrusted() if readers else None
        self._engine = self._model.engine(readers=readers, limits=limits)
        self._most = most_bytes

    def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        health = self._engine.health()
        if not health.healthy:
            raise RuntimeError(health.error or "the engine does not move")

    async def __call__(self, request: Any) -> Any:
        """Answers a request of HTTP, as Starlette has it."""
        web = require("starlette.responses", "a service with Ray Serve", "ray")
        try:
            options = parse_query(request.query_params, request.headers.get("accept", ""))
            body = await self._read(request)
            if options.format == EVENTS:
                feed = Feed()
                handle = self._submit(body, options, feed.tell)
                handle.add_done_callback(feed.end)
                return web.StreamingResponse(lines(feed, handle), media_type=NDJSON)
            result = await self._submit(body, options)
        except MT3Error as error:
            code = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
            return web.JSONResponse(told(error), status_code=code)
        content = await asyncio.to_thread(render, result, options.format)
        headers = {"X-MT3-Summary": json.dumps(summary(result))}
        return web.Response(content, media_type=_MEDIA[options.format], headers=headers)

    def _submit(self, body: bytes, options: RequestOptions, tell: Tell | None = None) -> Handle:
        """Hands a request to the engine; errors of `Engine.submit`."""
        return self._engine.submit(
            BytesIO(body),
            priority=options.priority,
            client=options.client,
            deadline=options.deadline,
            events=tell,
            **options.options,
        )

    async def _read(self, request: Any) -> bytes:
        """The body of a request.

        Raises:
            AudioError: There is none, or it is too large.
        """
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._most:
                raise AudioError(
                    f"The upload has more than {self._most} bytes; send a shorter one."
                )
            parts.append(part)
        if not size:
            raise AudioError("The upload is empty; expected the bytes of an audio file.")
        return b"".join(parts)


def parse_query(query: Mapping[str, str], accept: str) -> RequestOptions:
    """The options in a query; numbers and booleans are written as in JSON.

    Raises:
        OptionError: One of them means nothing.
    """
    found: dict[str, Any] = {}
    for name, text in query.items():
        whole = name in ("instruments", "exclude", "client", "format", "priority", "decoding")
        try:
            found[name] = text if whole else json.loads(text)
        except ValueError:
            found[name] = text
    if NDJSON in accept:
        found.setdefault("format", EVENTS)
    return RequestOptions.of(found, events=True)


def told(error: BaseException) -> dict[str, str]:
    """An error as a JSON object."""
    return {"type": type(error).__name__, "message": str(error)}


class Feed:
    """Brings what an engine tells on its own thread to the event loop that made this."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def tell(self, events: list[NoteEvent], progress: Progress) -> None:
        """Called by the engine."""
        self._put(event_lines(events, progress))

    def end(self, _handle: Any) -> None:
        """Called when the recording is done, has failed or was cancelled."""
        self._put(None)

    async def next(self) -> bytes | None:
        """The lines of the next segment; None at the end."""
        return await self._queue.get()

    def _put(self, item: bytes | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)


async def lines(feed: Feed, handle: Handle) -> AsyncIterator[bytes]:
    """What is told of a recording, and its result; whoever stops to take it ends the work."""
    try:
        while (part := await feed.next()) is not None:
            yield part
        if (error := handle.exception()) is not None:
            yield json.dumps({"type": "error", "error": told(error)}).encode() + b"\n"
        else:
            yield await asyncio.to_thread(done_line, handle.result())
    finally:
        handle.cancel()


def service(
    model: str | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    replicas: int = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    readers: int = 1,
    name: str = "mt3",
) -> Any:
    """Makes a Ray Serve application; hand it to ``ray.serve.run``.

    Args:
        model: As of `mt3_runtime.loading.load_model`, on each worker.
        device: As there.
        threads: As there; by default as many as a replica has cores.
        replicas: How many; each loads the model.
        cpus: Cores that each has for itself.
        gpus: GPUs that each has for itself.
        readers: Processes of each that read uploads under limits.
        name: Of the deployment.

    Raises:
        MissingDependencyError: Ray Serve is not installed.
    """
    serve = require("ray.serve", "a service with Ray Serve", "ray")
    load = {"model": model, "device": device, "threads": threads or max(1, int(cpus))}
    deployment = serve.deployment(
        TranscribeReplica,
        name=name,
        num_replicas=replicas,
        max_ongoing_requests=ONGOING,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    )
    return deployment.bind(load, readers)
