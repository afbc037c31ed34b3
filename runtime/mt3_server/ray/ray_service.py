"""Transcription as a Ray Serve deployment: one engine a replica, answers whole or note by note.

Contract: ``POST`` with an audio file as the body, options as query parameters.  The answer is the
file that ``format`` names, its summary in the header ``X-MT3-Summary``; with ``format=events``, or
``Accept: application/x-ndjson``, note-on and note-off events as segments complete, an object a
line, and a last line ``{"done": true, ...}``, or ``{"error": ...}`` with the reason.  A client that
goes away ends its work.  Uploads are read by a process of the replica's, under the limits for files
of strangers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from functools import partial
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
from mt3_server.request_options import EVENTS, RequestOptions, event_line, summary

if TYPE_CHECKING:
    from mt3_runtime.events.event_streams import EventStream

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
                stream = self._engine.open_events(
                    BytesIO(body), client=options.client, **options.options
                )
                return web.StreamingResponse(lines(stream), media_type=NDJSON)
            result = await self._engine.submit(
                BytesIO(body),
                priority=options.priority,
                client=options.client,
                deadline=options.deadline,
                **options.options,
            )
        except MT3Error as error:
            code = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
            return web.JSONResponse(told(error), status_code=code)
        content = await asyncio.to_thread(render, result, options.format)
        headers = {"X-MT3-Summary": json.dumps(summary(result))}
        return web.Response(content, media_type=_MEDIA[options.format], headers=headers)

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


def told(error: MT3Error) -> dict[str, str]:
    """An error as a JSON object."""
    return {"type": type(error).__name__, "message": str(error)}


async def lines(stream: EventStream) -> AsyncIterator[bytes]:
    """The events of a recording as lines; whoever stops to take them ends the work."""
    count = 0
    following = partial(next, stream, None)
    try:
        while (event := await asyncio.to_thread(following)) is not None:
            count += 1
            yield event_line(event)
        yield json.dumps({"done": True, "events": count}).encode() + b"\n"
    except MT3Error as error:
        yield json.dumps({"error": told(error)}).encode() + b"\n"
    finally:
        stream.cancel()


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
