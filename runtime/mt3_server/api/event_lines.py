"""Events of a transcription as lines of JSON (NDJSON) or server-sent events (SSE).

Contract: `EventFeed` brings what an engine tells on its own thread to the event loop, in order and
without anybody waiting; a client that reads slowly slows itself.  Objects have a ``type``:
``note_on``, ``note_off``, ``progress``, and at the end ``done`` with the result, or ``error``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mt3_runtime.files.formats import render
from mt3_runtime.notes.instruments import instrument_name
from mt3_runtime.notes.note_events import NoteEvent, NoteOn

if TYPE_CHECKING:
    from mt3_runtime.transcription import Progress, Transcription

NDJSON, SSE = "application/x-ndjson", "text/event-stream"
"""Media types of the two."""

Told = tuple[list[NoteEvent], "Progress"]


class EventFeed:
    """What is told of one recording; made on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Told | None] = asyncio.Queue()

    def tell(self, events: list[NoteEvent], progress: Progress) -> None:
        """Called by the engine."""
        self._put((events, progress))

    def end(self, _handle: Future[Transcription]) -> None:
        """Called when the recording is done, has failed or was cancelled."""
        self._put(None)

    async def next(self) -> Told | None:
        """What is told next; None at the end."""
        return await self._queue.get()

    def _put(self, item: Told | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)


def event_object(event: NoteEvent) -> dict[str, Any]:
    """A note event as a JSON object."""
    if isinstance(event, NoteOn):
        return {
            "type": "note_on",
            "number": event.number,
            "time": round(event.time, 6),
            "pitch": event.pitch,
            "velocity": event.velocity,
            "program": event.program,
            "instrument": instrument_name(event.program, is_drum=event.is_drum),
            "is_drum": event.is_drum,
        }
    return {
        "type": "note_off",
        "number": event.number,
        "time": round(event.time, 6),
        "kept": event.note is not None,
    }


def progress_object(progress: Progress) -> dict[str, Any]:
    """How far a recording is."""
    total = progress.seconds_total
    return {
        "type": "progress",
        "seconds_done": round(progress.seconds_done, 6),
        "seconds_total": None if total is None else round(total, 6),
        "notes": progress.notes,
    }


def done_object(result: Transcription) -> dict[str, Any]:
    """The end of a recording: what its JSON file has, and what beside it is known."""
    return {
        "type": "done",
        "token_digest": result.token_digest,
        "warnings": result.warnings,
        "result": json.loads(render(result, "json")),
    }


def as_line(item: dict[str, Any], media_type: str) -> bytes:
    """One object as a line, or as an event."""
    text = json.dumps(item, allow_nan=False)
    if media_type == SSE:
        return f"event: {item['type']}\ndata: {text}\n\n".encode()
    return f"{text}\n".encode()


async def lines(feed: EventFeed, first: Told | None, media_type: str) -> AsyncIterator[bytes]:
    """What is told, a piece for every segment; ``first`` was taken out before."""
    told = first
    while told is not None:
        events, progress = told
        objects = [*map(event_object, events), progress_object(progress)]
        yield b"".join(as_line(item, media_type) for item in objects)
        told = await feed.next()
