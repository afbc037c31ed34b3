"""Options of a request that comes from outside as a JSON object, and what is told of its result.

Contract: every name and type is checked before anything is read or decoded; what is wrong is one
`OptionError`.  Ranges are checked by the engine, which says the same to programs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from mt3_runtime.arguments.argument_checks import as_choice
from mt3_runtime.engine import PriorityName
from mt3_runtime.errors import OptionError
from mt3_runtime.files.formats import FORMATS, render
from mt3_runtime.notes.note_events import NoteEvent, NoteOn

if TYPE_CHECKING:
    from mt3_runtime.transcription import Progress, Transcription

EVENTS = "events"
"""The format in which notes come while the recording is decoded, and the result at the end."""

LONGEST_OPTIONS = 65_536
"""Bytes of a request's options; a list of all 128 programs by name takes 3,000."""

#: Options of `Engine.submit` that a request may have, and the types of their values.
_TYPES: dict[str, tuple[type, ...]] = {
    "auto_filter": (bool, str),
    "decoding": (str,),
    "instruments": (str, list),
    "exclude": (str, list),
    "grammar": (bool,),
    "min_confidence": (int, float),
    "smooth": (bool,),
}

#: What a request says of itself.
_OWN: dict[str, tuple[type, ...]] = {
    "format": (str,),
    "deadline": (int, float),
    "priority": (str,),
    "client": (str,),
}


@dataclass(frozen=True)
class RequestOptions:
    """What a request asks for.

    Attributes:
        format: One of `mt3_runtime.files.formats.FORMATS`, or `EVENTS`.
        deadline: Seconds after which it is given up; None for never.
        priority: As of `Engine.submit`.
        client: As there.
        options: The others of `Engine.submit`.
    """

    format: str = "json"
    deadline: float | None = None
    priority: PriorityName = "interactive"
    client: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes, *, events: bool) -> RequestOptions:
        """Reads a JSON object; nothing at all stands for an empty one.

        Args:
            data: UTF-8.
            events: Whether `EVENTS` may be asked for.

        Raises:
            OptionError: It is none, or has something that means nothing.
        """
        if len(data) > LONGEST_OPTIONS:
            raise OptionError(f"The options have {len(data)} bytes; at most {LONGEST_OPTIONS}.")
        try:
            found = json.loads(data) if data.strip() else {}
        except (ValueError, RecursionError) as error:
            raise OptionError(f"The options are no JSON object: {error}.") from error
        if not isinstance(found, dict):
            raise OptionError("The options are no JSON object.")
        return cls.of(found, events=events)

    @classmethod
    def of(cls, found: Mapping[str, Any], *, events: bool) -> RequestOptions:
        """The same of a mapping; arguments and errors as of `parse`."""
        known = _TYPES | _OWN
        for name, value in found.items():
            if name not in known:
                raise OptionError(f"There is no option {name!r}; expected {', '.join(known)}.")
            kinds = known[name]
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                expected = " or ".join(kind.__name__ for kind in kinds)
                raise OptionError(f"The option {name} is {value!r}; expected {expected}.")
        own = {name: found[name] for name in _OWN if name in found}
        formats = (*FORMATS, EVENTS) if events else FORMATS
        if own.get("format", "json") not in formats:
            raise OptionError(f"format is {own['format']!r}; expected one of {', '.join(formats)}.")
        if "priority" in own:
            as_choice("priority", own["priority"], get_args(PriorityName))
        return cls(**own, options={name: found[name] for name in _TYPES if name in found})


def summary(result: Transcription) -> dict[str, Any]:
    """What is told of a result beside its notes, as JSON values."""
    return {
        "notes": len(result.notes),
        "duration": round(result.duration, 6),
        "model": result.model,
        "token_digest": result.token_digest,
        "warnings": result.warnings,
    }


def event_lines(events: Iterable[NoteEvent], progress: Progress) -> bytes:
    """What is told of a segment, a JSON object a line.

    ``{"type": "note_on", "number", "time", "pitch", "velocity", "program", "is_drum"}`` and
    ``{"type": "note_off", "number", "time"}`` as the model says it, before filters, then
    ``{"type": "progress", "seconds_done", "seconds_total", "notes"}``.
    """
    items: list[dict[str, Any]] = []
    for event in events:
        if isinstance(event, NoteOn):
            items.append({"type": "note_on", **dataclasses.asdict(event)})
        else:
            items.append({"type": "note_off", "number": event.number, "time": event.time})
    items.append({"type": "progress", **dataclasses.asdict(progress)})
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def done_line(result: Transcription) -> bytes:
    """The last line, of type ``done``: `summary`, and as ``result`` what a JSON file has."""
    whole = json.loads(render(result, "json"))
    return json.dumps({"type": "done", **summary(result), "result": whole}).encode() + b"\n"
