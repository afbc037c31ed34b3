"""Reads and writes notes as MIDI, JSON, JSON lines and CSV.

Four formats, all deterministic (equal notes give equal bytes):

========  =====================================================================================
midi      Type 1 MIDI file, see `mt3_runtime.files.midi`; confidences and reports are not in it.
json      One object: ``format`` ("mt3-runtime.notes"), ``version`` (1), ``model``, ``duration``
          in seconds, ``notes``, ``segments`` (the reports, see `SegmentReport`) and ``leakage``
          (see `LeakageReport`); ``lineup`` (who may occur and why) if evidence chose one;
          ``stem_files`` (which file got which model and why) of a separated song.
jsonl     One note object per line; can be written while the transcription runs.
csv       Header (`CSV_FIELDS`), one note per line.
========  =====================================================================================

A note object has ``onset`` and ``offset`` (seconds), ``pitch``, ``velocity``, ``program``,
``instrument`` (General MIDI name, or "Drums"), ``is_drum``, ``confidence`` and ``probabilities``
(an object, see `Probabilities`; null or, in csv, nothing for tokens that a note does not have).
Times have microseconds; neither infinity nor NaN is ever written.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

from mt3_runtime.arguments.argument_checks import as_path
from mt3_runtime.errors import OptionError
from mt3_runtime.files.csv_table import Row, decode_text, read_table
from mt3_runtime.files.midi import from_midi, to_midi
from mt3_runtime.files.midi_reader import read_midi
from mt3_runtime.leakage.leakage_report import LeakageReport
from mt3_runtime.notes.base import SegmentReport
from mt3_runtime.notes.instruments import instrument_name
from mt3_runtime.notes.note import Note, Probabilities, check_notes

FORMATS = ("midi", "json", "jsonl", "csv")
"""Names of the formats."""

SUFFIXES = {
    ".mid": "midi",
    ".midi": "midi",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
}
"""Format by file name suffix, in lower case."""

DOCUMENT_FORMAT = "mt3-runtime.notes"
DOCUMENT_VERSION = 1

_PROBABILITY = {name: f"{name}_probability" for name in Probabilities._fields}
"""Names of the tokens' probabilities in csv files."""

_NUMBERS = ("onset", "offset", "pitch", "velocity", "program", "is_drum", "confidence")

CSV_FIELDS = (*_NUMBERS, *_PROBABILITY.values())

DECIMALS = 6
"""Digits behind the point of times and confidences: a microsecond, far below any model's step."""

DEFAULT_VELOCITY = 100
"""Velocity of notes in files that do not tell one (label files)."""


@runtime_checkable
class HasNotes(Protocol):
    """A result with notes; ``segments``, ``duration`` and ``model`` are used where they exist."""

    @property
    def notes(self) -> Sequence[Note]:
        """The notes."""


def render(
    source: HasNotes | Sequence[Note],
    format: str,  # noqa: A002 (the word that users type)
    *,
    tempo: float = 120.0,
) -> bytes:
    """Write a transcription, or bare notes, in a format.

    Args:
        source: An object with ``notes``, or a sequence of notes.
        format: One of `FORMATS`.
        tempo: Quarters per minute of a MIDI file; no other format has one.

    Raises:
        OptionError: The format is unknown, or a note is not valid (see `check_notes`).
    """
    check_format(format)
    notes = check_notes(source.notes if isinstance(source, HasNotes) else source)
    if format == "midi":
        buffer = io.BytesIO()
        to_midi(notes, tempo=tempo).save(file=buffer)
        return buffer.getvalue()
    if format == "json":
        return (_to_json(_document(source, notes)) + "\n").encode()
    if format == "jsonl":
        return "".join(note_to_json_line(note) + "\n" for note in notes).encode()
    return _csv(notes).encode()


def check_format(name: str) -> None:
    """Raise `OptionError` unless ``name`` is one of `FORMATS`."""
    if not isinstance(name, str) or name not in FORMATS:
        raise OptionError(f"unknown format {name!r}; expected one of {', '.join(FORMATS)}")


def format_from_suffix(path: str | os.PathLike[str]) -> str:
    """The format that a file name asks for.

    Raises:
        OptionError: The suffix says nothing; name the format instead.
    """
    suffix = as_path("path", path).suffix.lower()
    if suffix not in SUFFIXES:
        raise OptionError(
            f"cannot tell the format of {str(path)!r} from its suffix; use one of "
            f"{', '.join(SUFFIXES)}, or name a format ({', '.join(FORMATS)})"
        )
    return SUFFIXES[suffix]


def note_to_json_line(note: Note) -> str:
    """One note as a JSON object, without a line end.

    Raises:
        OptionError: The note is not valid (see `check_notes`).
    """
    check_notes((note,))
    return _to_json(_note_object(note))


def _note_object(note: Note) -> dict[str, Any]:
    return {
        "onset": _rounded(note.onset),
        "offset": _rounded(note.offset),
        "pitch": int(note.pitch),
        "velocity": int(note.velocity),
        "program": int(note.program),
        "instrument": instrument_name(note.program, is_drum=note.is_drum),
        "is_drum": bool(note.is_drum),
        "confidence": _rounded(note.confidence),
        "probabilities": {
            name: None if value is None else _rounded(value)
            for name, value in note.probabilities._asdict().items()
        },
    }


def _document(source: object, notes: Sequence[Note]) -> dict[str, Any]:
    duration: float | None = getattr(source, "duration", None)
    model = getattr(source, "model", None)
    digest: str | None = getattr(source, "token_digest", None)
    segments: Sequence[SegmentReport] = getattr(source, "segments", ())
    leakage: LeakageReport | None = getattr(source, "leakage", None)
    smoothing: LeakageReport | None = getattr(source, "smoothing", None)
    warnings: Sequence[str] | None = getattr(source, "warnings", None)
    lineup: Any = getattr(source, "lineup", None)
    stem_files: Sequence[Mapping[str, Any]] = getattr(source, "stem_files", ())
    return {
        "format": DOCUMENT_FORMAT,
        "version": DOCUMENT_VERSION,
        "model": None if model is None else str(model),
        "duration": None if duration is None else _rounded(duration),
        "token_digest": digest,
        "warnings": None if warnings is None else list(warnings),
        "notes": [_note_object(note) for note in notes],
        "segments": [{**asdict(s), "start": _rounded(s.start)} for s in segments],
        "leakage": None if leakage is None else leakage.to_dict(),
        "smoothing": None if smoothing is None else smoothing.to_dict(),
        **({} if lineup is None else {"lineup": lineup.to_dict()}),
        **({"stem_files": [dict(file) for file in stem_files]} if stem_files else {}),
    }


def _csv(notes: Sequence[Note]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for note in notes:
        values = _note_object(note)
        values["is_drum"] = int(values["is_drum"])
        probabilities = values["probabilities"].values()  # the writer leaves None empty
        writer.writerow([*(values[name] for name in _NUMBERS), *probabilities])
    return buffer.getvalue()


def _rounded(value: float) -> float:
    return round(float(value), DECIMALS) + 0.0  # + 0.0 turns -0.0 into 0.0


def _to_json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise OptionError(f"cannot write infinity or NaN: {error}; correct the result") from error


def load_notes(
    path: str | os.PathLike[str],
    format: str | None = None,  # noqa: A002 (as in `render`)
) -> list[Note]:
    """Read the notes of a file in any of the formats, or of a label file (csv).

    Args:
        path: The file.
        format: One of `FORMATS`; by default told by the suffix.

    Raises:
        OptionError: The file cannot be read, or is not in that format.
    """
    file = as_path("path", path)
    name = format_from_suffix(file) if format is None else format
    check_format(name)
    try:
        data = file.read_bytes()
    except (OSError, ValueError) as error:  # such as a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"cannot read {str(path)!r}: {reason}") from error
    try:
        return PARSERS[name](data)
    except OptionError as error:
        raise OptionError(f"{str(path)!r}: {error}") from error


def parse_midi(data: bytes) -> list[Note]:
    """Notes of a MIDI file, see `read_midi` and `from_midi`.

    Raises:
        OptionError: It is not a MIDI file, or it is damaged.
    """
    return _checked(from_midi(read_midi(data)))


def parse_json(data: bytes | str) -> list[Note]:
    """Notes of a json document.

    Raises:
        OptionError: It is not such a document, or it is from a newer version.
    """
    document = _from_json(data, "the file")
    if not isinstance(document, dict) or document.get("format") != DOCUMENT_FORMAT:
        raise OptionError(f"expected a json object with format {DOCUMENT_FORMAT!r}")
    if document.get("version") != DOCUMENT_VERSION:
        raise OptionError(
            f"expected version {DOCUMENT_VERSION} of {DOCUMENT_FORMAT}, got "
            f"{document.get('version')!r}; install a newer mt3-runtime"
        )
    notes = document.get("notes")
    if not isinstance(notes, list):
        raise OptionError("expected a list of notes")
    return _checked([_note(item, f"note {index}") for index, item in enumerate(notes)])


def parse_jsonl(data: bytes | str) -> list[Note]:
    """Notes of json lines; empty lines are skipped.

    Raises:
        OptionError: A line is not a note object.
    """
    lines = enumerate(decode_text(data).split("\n"), 1)
    return _checked([_note(_from_json(s, f"line {n}"), f"line {n}") for n, s in lines if s.strip()])


def parse_csv(data: bytes | str) -> list[Note]:
    """Notes of a csv file with at least the columns onset, offset and pitch, see `csvtable`.

    Missing columns and empty cells mean velocity 100, program 0, no drum, confidence 1, unknown
    probabilities; other columns are ignored.

    Raises:
        OptionError: A needed column is missing, or a value is not a number; line and column are
            named.
    """
    _, rows = read_table(data, ("onset", "offset", "pitch"))
    return _checked([_note(_item(row), f"line {line}") for line, row in rows])


PARSERS: Mapping[str, Callable[[bytes], list[Note]]] = {
    "midi": parse_midi,
    "json": parse_json,
    "jsonl": parse_jsonl,
    "csv": parse_csv,
}
"""The inverse of `render`, by format."""


def _from_json(data: bytes | str, where: str) -> Any:
    try:
        return json.loads(decode_text(data))
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{where} is not valid JSON: {error}") from error


def _item(row: Row) -> dict[str, Any]:
    """The note object of a csv line."""
    item = {name: _cell(text) for name, text in row.items() if text}
    return item | {"probabilities": {name: item.get(c) for name, c in _PROBABILITY.items()}}


def _cell(text: str) -> float | str:
    """The number in a csv cell; other content is returned as it is, for `_note` to refuse."""
    words = {"true": 1.0, "false": 0.0}  # how spreadsheets and pandas write is_drum
    try:
        return words[text.lower()] if text.lower() in words else float(text)
    except ValueError:
        return text


def _note(item: Any, where: str) -> Note:
    """A note from an object of names and numbers."""
    if not isinstance(item, Mapping):
        raise OptionError(f"{where}: expected a note object, got {type(item).__name__}")

    def real(name: str, default: float | None = None) -> float:
        return _real(item.get(name, default), name, where)

    def whole(name: str, default: float | None = None, most: int = 127) -> int:
        value = real(name, default)
        if not (value.is_integer() and 0 <= value <= most):
            raise OptionError(f"{where}: {name} is {value}, expected a whole number of 0..{most}")
        return int(value)

    return Note(
        onset=real("onset"),
        offset=real("offset"),
        pitch=whole("pitch"),
        velocity=whole("velocity", DEFAULT_VELOCITY),
        program=whole("program", 0),
        is_drum=bool(whole("is_drum", 0, 1)),
        confidence=real("confidence", 1.0),
        probabilities=_probabilities(item.get("probabilities"), where),
    )


def _probabilities(item: Any, where: str) -> Probabilities:
    if item is None:
        return Probabilities()
    if not isinstance(item, Mapping):
        raise OptionError(f"{where}: probabilities is {item!r}, expected an object")
    known = {name: item.get(name) for name in Probabilities._fields}
    return Probabilities(
        **{
            name: None if value is None else _real(value, f"probability of the {name}", where)
            for name, value in known.items()
        }
    )


def _real(value: Any, name: str, where: str) -> float:
    if not isinstance(value, int | float):
        raise OptionError(f"{where}: {name} is {value!r}, expected a number")
    try:
        return float(value)
    except OverflowError:
        raise OptionError(f"{where}: {name} is too large") from None


def _checked(notes: list[Note]) -> list[Note]:
    check_notes(notes)
    return notes
