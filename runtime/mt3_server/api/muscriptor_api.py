"""Endpoints of MuScriptor's server in its shape, so that its clients can switch.

``GET /health``, ``GET /instruments``, ``POST /transcribe`` (server-sent events whose data has a
``type``: ``progress``, ``start``, ``end``, and at last ``transcription_complete`` with a MIDI file
in base64) and ``POST /transcribe/midi``.  Form fields: ``file``, ``instruments`` (any number),
``detect_tempo``, ``strict_instruments`` and ``tempo_bpm`` of earlier versions.  What they ask for
that is not done here is refused, not left out: ``detect_tempo=true``, ``remove_vocals=true``.
Errors have a ``detail``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from mt3_runtime.errors import OptionError
from mt3_runtime.files.midi import MAX_TEMPO, MIN_TEMPO
from mt3_runtime.notes.note_events import NoteEvent, NoteOn
from mt3_server.api.event_lines import SSE, EventFeed, Told
from mt3_server.api.request_work import (
    caller_of,
    count_upload,
    result_of,
    service_of,
    while_there,
)
from mt3_server.api.result_files import contents
from mt3_server.api.transcribe_query import WORDS, TranscribeQuery
from mt3_server.api.transcription_route import STREAM_HEADERS
from mt3_server.protection.refusals import Refusal, refusal_of
from mt3_server.protection.request_bodies import receive_upload

if TYPE_CHECKING:
    from mt3_runtime.transcription import Handle
    from mt3_server.protection.request_bodies import Upload

GROUPS: Mapping[str, tuple[int, ...]] = {
    "acoustic_piano": (0, 1, 3, 6, 7),
    "electric_piano": (2, 4, 5),
    "chromatic_percussion": (*range(8, 16),),
    "organ": (*range(16, 24),),
    "acoustic_guitar": (24, 25),
    "clean_electric_guitar": (26, 27, 28),
    "distorted_electric_guitar": (29, 30, 31),
    "acoustic_bass": (32, 35),
    "electric_bass": (33, 34, 36, 37, 38, 39),
    "violin": (40,),
    "viola": (41,),
    "cello": (42,),
    "contrabass": (43,),
    "orchestral_harp": (46,),
    "timpani": (47,),
    "string_ensemble": (44, 45, 48, 49),
    "synth_strings": (50, 51),
    "voice": (52, 53, 54),
    "orchestra_hit": (55,),
    "trumpet": (56, 59),
    "trombone": (57,),
    "tuba": (58,),
    "french_horn": (60,),
    "brass_section": (61, 62, 63),
    "soprano_and_alto_sax": (64, 65),
    "tenor_sax": (66,),
    "baritone_sax": (67,),
    "oboe": (68,),
    "english_horn": (69,),
    "bassoon": (70,),
    "clarinet": (71,),
    "flutes": (*range(72, 80),),
    "synth_lead": (*range(80, 88),),
    "synth_pad": (*range(88, 96),),
    "drums": (),
}
"""Names of its instruments, and the General MIDI programs of each."""

PATHS = ("/health", "/instruments", "/transcribe", "/transcribe/midi")

_NAME_OF = {program: name for name, programs in GROUPS.items() for program in programs}
_FIELDS = ("instruments", "strict_instruments", "tempo_bpm", "detect_tempo", "remove_vocals")


async def health(_request: Request) -> Response:
    """Says that it is there."""
    return JSONResponse({"status": "ok"})


async def instruments(_request: Request) -> Response:
    """The names that may be asked for."""
    return JSONResponse({"instruments": list(GROUPS)})


async def transcribe_midi(request: Request) -> Response:
    """An upload in, a MIDI file out."""
    service, caller = service_of(request), caller_of(request)
    upload, query = await _taken_in(request)
    try:
        result = await result_of(request, service.submit(upload.file.path, query, caller.name))
    finally:
        upload.file.remove()
    content, _ = contents(result, "midi", tempo=query.tempo)
    disposition = 'attachment; filename="result.mid"'
    return Response(content, 200, {"content-disposition": disposition}, "audio/midi")


async def transcribe(_request: Request) -> Response:
    """An upload in, events out."""
    return _Events(media_type=SSE)


class _Events(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Receives the upload and sends what comes of it."""
        request = Request(scope, receive, send)
        service, caller = service_of(request), caller_of(request)
        upload, query = await _taken_in(request)
        try:
            feed = EventFeed()
            handle = service.submit(upload.file.path, query, caller.name, events=feed.tell)
            handle.add_done_callback(feed.end)
            try:
                first = await while_there(request, feed.next())
                if first is None:
                    handle.result()  # raises what went wrong
                seconds = _segment_seconds(request, query)
                pieces = _pieces(handle, feed, first, query.tempo, seconds)
                await while_there(request, _send_all(send, pieces))
            finally:
                if handle.cancel():
                    service.metrics.cancelled.labels("client").inc()
        finally:
            upload.file.remove()


async def _taken_in(request: Request) -> tuple[Upload, TranscribeQuery]:
    service = service_of(request)
    service.check_ready(None)
    upload = await receive_upload(request, service.spool, service.settings)
    try:
        count_upload(request, upload)
        query = _query([*request.query_params.multi_items(), *upload.fields])
    except BaseException:
        upload.file.remove()
        raise
    return upload, query


def _query(pairs: list[tuple[str, str]]) -> TranscribeQuery:
    """What is asked for.

    Raises:
        Refusal: An instrument is not known, or a value is wrong.
    """
    names = [value for name, value in pairs if name == "instruments" and value]
    given = {name: value for name, value in pairs if name != "instruments"}
    unknown = [name[:40] for name in names if name not in GROUPS]
    if unknown:
        raise Refusal(400, "option", f"unknown instrument name(s): {', '.join(unknown)}")
    for name in given:
        if name not in _FIELDS:
            raise Refusal(400, "option", f"There is no option {name[:40]!r} here.")
    if given.get("detect_tempo", "false") not in ("false", "best-effort"):
        raise Refusal(422, "option", "The tempo is not detected here; ask without detect_tempo.")
    if _flag(given, "remove_vocals"):
        raise Refusal(422, "option", "Vocals are not removed here; ask without remove_vocals.")
    if _flag(given, "strict_instruments") and not names:
        raise Refusal(400, "option", "strict_instruments requires a non-empty instruments list")
    wanted = [str(program) for name in names for program in GROUPS[name]]
    wanted += ["drums"] if "drums" in names else []
    asked = [("instruments", ",".join(wanted))] if wanted else []
    tempo = given.get("tempo_bpm", "120")
    try:
        return TranscribeQuery.of([*asked, ("tempo", tempo)])
    except OptionError:
        raise Refusal(
            400, "option", f"tempo_bpm is a number from {MIN_TEMPO:g} to {MAX_TEMPO:g}."
        ) from None


def _flag(given: Mapping[str, str], name: str) -> bool:
    text = given.get(name, "false").lower()
    if text not in WORDS:
        raise Refusal(400, "option", f"{name} is true or false.")
    return WORDS[text]


def _segment_seconds(request: Request, query: TranscribeQuery) -> float:
    model = service_of(request).keeper(query.model).model
    return model.info.segments.samples / model.sample_rate


async def _pieces(
    handle: Handle, feed: EventFeed, first: Told | None, tempo: float, segment: float
) -> AsyncIterator[bytes]:
    """The events as they come, and the file."""
    told = first
    total: int | None = None
    while told is not None:
        events, progress = told
        length = progress.seconds_total or progress.seconds_done
        if total is None:
            total = max(1, round(length / segment + 0.5))
            yield _data({"type": "progress", "completed": 0, "total": total})
        yield b"".join(_data(_object(event)) for event in events)
        done = min(total, round(progress.seconds_done / segment + 0.5))
        yield _data({"type": "progress", "completed": done, "total": total})
        told = await feed.next()
    try:
        midi, _ = contents(handle.result(), "midi", tempo=tempo)
    except Exception as error:  # noqa: BLE001  it is in the answer: its status was sent before
        yield _data({"type": "error", "detail": refusal_of(error).message})
        return
    yield _data({
        "type": "transcription_complete",
        "data": base64.b64encode(midi).decode(),
        "quantized_midi": None,
        "beat_grid": None,
    })  # fmt: skip


def _object(event: NoteEvent) -> dict[str, Any]:
    if isinstance(event, NoteOn):
        name = "drums" if event.is_drum else _NAME_OF.get(event.program, f"program_{event.program}")
        return {
            "type": "start",
            "pitch": event.pitch,
            "start_time": event.time,
            "index": event.number,
            "instrument": name,
        }
    return {"type": "end", "end_time": event.time, "start_event_index": event.number}


def _data(item: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(item, allow_nan=False)}\n\n".encode()


async def _send_all(send: Send, pieces: AsyncIterator[bytes]) -> None:
    headers = {"content-type": f"{SSE}; charset=utf-8", **STREAM_HEADERS}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})
    async for piece in pieces:
        if piece:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
