"""``POST /v1/transcriptions``: an upload in, a file of notes or a stream of events out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mt3_runtime.transcription import Handle
from mt3_server.api.event_lines import NDJSON, SSE, EventFeed, Told, as_line, done_object, lines
from mt3_server.api.request_work import (
    caller_of,
    result_of,
    service_of,
    taken_in,
    while_there,
)
from mt3_server.api.result_files import ACCEPTED, attachment, contents, headers, without_paths
from mt3_server.protection.refusals import refusal_of

STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""Of answers that come in pieces: nothing between us and the client may hold them back."""


async def transcribe(request: Request) -> Response:
    """Transcribes an upload."""
    service, caller = service_of(request), caller_of(request)
    accepted = request.headers.get("accept", "")
    for media_type in (NDJSON, SSE):
        if media_type in accepted:
            return EventResponse(media_type)
    async with taken_in(request) as (upload, query):
        begun = time.monotonic()
        handle = service.submit(upload.file.path, query, caller.name)
        result = await result_of(request, handle)
        wanted = query.format or next((f for m, f in ACCEPTED.items() if m in accepted), "midi")
        make = partial(contents, result, wanted, tempo=query.tempo, split=query.split)
        content, kind = await asyncio.to_thread(make)
        caller.facts |= {
            "audio_seconds": round(result.duration, 3),
            "work_seconds": round(time.monotonic() - begun, 4),
            "notes": len(result.notes),
        }
    return Response(content, headers=attachment(kind) | headers(result))


class EventResponse(Response):
    """The events of a transcription as its segments complete, then the result.

    The status is sent with the first event, so what cannot be read at all has its own.
    """

    def __init__(self, media_type: str) -> None:
        super().__init__(media_type=media_type)
        self._media_type = media_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Receives the upload and sends what comes of it."""
        request = Request(scope, receive, send)
        service, caller = service_of(request), caller_of(request)
        async with taken_in(request) as (upload, query):
            feed = EventFeed()
            handle = service.submit(upload.file.path, query, caller.name, events=feed.tell)
            handle.add_done_callback(feed.end)
            try:
                first = await while_there(request, feed.next())
                if first is None:
                    handle.result()  # raises what went wrong
                await while_there(request, self._send(send, self._pieces(handle, feed, first)))
            finally:
                if handle.cancel():
                    service.metrics.cancelled.labels("client").inc()

    async def _pieces(
        self, handle: Handle, feed: EventFeed, first: Told | None
    ) -> AsyncIterator[bytes]:
        async for piece in lines(feed, first, self._media_type):
            yield piece
        try:
            item = done_object(without_paths(handle.result()))
        except Exception as error:  # noqa: BLE001  it is in the answer: its status was sent before
            refusal = refusal_of(error)
            item = {"type": "error", "error": refusal.why, "message": refusal.message}
        yield as_line(item, self._media_type)

    async def _send(self, send: Send, pieces: AsyncIterator[bytes]) -> None:
        headers = {"content-type": self._media_type, **STREAM_HEADERS}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
