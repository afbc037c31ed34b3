"""Reference labels of recordings: notes or drum onsets, and what of them is known.

A missing label is not a silent one.  Of a band of which only the drums are labelled, nothing can be
said about the other instruments, so `Labels` carries its own scope and metrics outside it do not
apply.  Files are found by the recording's name:

====================  =====================================================================
NAME.notes.csv        columns onset, offset (seconds), pitch, and program where it is known;
                      says nothing about drums
NAME.drums.csv        columns onset and class (KD SD HH TT CY, or OT); says nothing about
                      anything else
NAME.mid, NAME.midi   everything that sounds, with exact programs and percussion keys
NAME.jsonl            the same, one note object per line
====================  =====================================================================

The two tables go together; otherwise the first of these that exists is taken.  MDB Drums' class OT
counts as snares: in its recordings these are side sticks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mt3_evaluation.scoring import DRUM_KEYS
from mt3_runtime.errors import OptionError
from mt3_runtime.files.csv_table import Row, decode_text, read_table
from mt3_runtime.files.formats import DEFAULT_VELOCITY, load_notes
from mt3_runtime.notes.note import MAX_TIME, Note

NOTES_SUFFIX = ".notes.csv"
DRUMS_SUFFIX = ".drums.csv"
SUFFIXES = (NOTES_SUFFIX, DRUMS_SUFFIX, ".mid", ".midi", ".jsonl")
"""Names of label files end in these."""

_CLASS_KEYS = {name: keys[0] for name, keys in DRUM_KEYS.items()} | {"OT": 37}


@dataclass(frozen=True)
class Labels:
    """Labels of one recording.

    Attributes:
        notes: The notes, drums among them.
        pitched: Whether the pitched notes are known.
        drums: Whether the drums are known.
        programs: Whether the programs of the pitched notes are known.
        drum_keys: Whether exact percussion keys are known, not only classes.
        files: Where they come from.
    """

    notes: tuple[Note, ...]
    pitched: bool = True
    drums: bool = True
    programs: bool = True
    drum_keys: bool = True
    files: tuple[Path, ...] = ()

    def covers(self, note: Note) -> bool:
        """Whether notes of this kind are known: only then one that is not there is wrong."""
        return self.drums if note.is_drum else self.pitched


def find_labels(name: str, folder: Path) -> tuple[Path, ...]:
    """The label files of a recording in a folder; empty if there are none."""
    found = [path for suffix in SUFFIXES if (path := folder / (name + suffix)).is_file()]
    tables = [path for path in found if _is_table(path)]
    return tuple(tables or found[:1])


def labelled_names(folder: Path) -> list[str]:
    """Names of all recordings that have labels in a folder, in order."""
    names = {
        path.name[: -len(suffix)]
        for path in folder.iterdir()
        for suffix in SUFFIXES
        if path.name.endswith(suffix) and path.is_file()
    }
    return sorted(names)


def read_labels(files: Sequence[Path]) -> Labels:
    """Reads the label files of one recording: both tables, or one file of another kind.

    Raises:
        OptionError: A file cannot be read or is not what its name says; file and line are named.
    """
    tables = [path for path in files if _is_table(path)]
    if not tables:
        (path,) = files
        text = path.name.endswith(".jsonl")
        notes = _note_lines(path) if text else load_notes(path)
        return Labels(tuple(notes), files=(path,))
    melodic = [path for path in tables if not path.name.endswith(DRUMS_SUFFIX)]
    known: list[Note] = []
    for path in tables:
        known += read_drums(path) if path.name.endswith(DRUMS_SUFFIX) else read_notes(path)
    return Labels(
        tuple(sorted(known)),
        pitched=bool(melodic),
        drums=len(melodic) < len(tables),
        programs=bool(melodic) and all("program" in _columns(path) for path in melodic),
        drum_keys=False,
        files=tuple(tables),
    )


def read_notes(path: Path) -> list[Note]:
    """Labels of pitched notes from a table of onset, offset [s], pitch and program.

    Raises:
        OptionError: As in `read_labels`.
    """
    notes = []
    for where, row in _rows(path, ("onset", "offset", "pitch")):
        notes.append(_note(row, where))
        if notes[-1].is_drum:
            raise OptionError(f"{where}: a drum among pitched notes; expected it in a .drums.csv.")
    return notes


def read_drums(path: Path) -> list[Note]:
    """Labels of drums from a table of onset [s] and class.

    Raises:
        OptionError: As in `read_labels`.
    """
    notes = []
    for where, row in _rows(path, ("onset", "class")):
        name = str(row["class"]).strip()
        if name not in _CLASS_KEYS:
            expected = ", ".join(_CLASS_KEYS)
            raise OptionError(f"{where}: the class is {name!r}, expected one of {expected}.")
        values = {"onset": row["onset"], "offset": row["onset"], "pitch": _CLASS_KEYS[name]}
        notes.append(_note({**values, "is_drum": True}, where))
    return notes


def is_transcription(notes: Iterable[Note], path: Path) -> bool:
    """Whether a file was made by `mt3 transcribe`, which writes beside the recording by default.

    It leaves its name in MIDI files and confidences in the others.
    """
    if path.suffix in (".mid", ".midi"):
        return b"mt3-runtime" in path.read_bytes()[:200]
    return any(note.confidence != 1.0 for note in notes)


def _is_table(path: Path) -> bool:
    return path.name.endswith(".csv")


def _note_lines(path: Path) -> list[Note]:
    notes = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"{where}: this is not valid JSON ({error}).") from error
        if not isinstance(item, dict):
            raise OptionError(f'{where}: expected a note object such as {{"onset": 0.5, ...}}.')
        notes.append(_note(item, where))
    return notes


def _columns(path: Path) -> list[str]:
    return _table(path, ())[0]


def _rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Every row of a table behind the words that name its file and line."""
    _, rows = _table(path, needed)
    try:
        for line, row in rows:
            yield f"{path}, line {line}", row
    except OptionError as error:
        raise OptionError(f"{path}, {error}.") from error


def _table(path: Path, needed: Sequence[str]) -> tuple[list[str], Iterator[tuple[int, Row]]]:
    text = _text(path)
    try:
        return read_table(text, needed)
    except OptionError as error:
        raise OptionError(f"{path}, {error}.") from error


def _text(path: Path) -> str:
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}.") from error
    except OptionError as error:
        raise OptionError(f"{path} is not UTF-8 text: {error}.") from error


def _note(item: Mapping[str, Any], where: str) -> Note:
    """A note from the numbers of a line, or from texts of numbers."""
    onset, offset = (_number(item, name, where) for name in ("onset", "offset"))
    if not 0 <= onset <= offset <= MAX_TIME:
        raise OptionError(
            f"{where}: the note spans {onset:g}..{offset:g} s, expected 0 <= onset <= offset, "
            "and at most 1e9."
        )
    return Note(
        onset,
        offset,
        _whole(item, "pitch", where),
        _whole(item, "velocity", where, DEFAULT_VELOCITY),
        _whole(item, "program", where, 0),
        is_drum=_whole(item, "is_drum", where, 0) > 0,
        confidence=_number(item, "confidence", where, 1.0),
    )


def _whole(item: Mapping[str, Any], name: str, where: str, default: float | None = None) -> int:
    value = _number(item, name, where, default)
    if value != int(value) or not 0 <= value <= 127:
        raise OptionError(f"{where}: {name} is {value:g}, expected a whole number of 0..127.")
    return int(value)


def _number(item: Mapping[str, Any], name: str, where: str, default: float | None = None) -> float:
    value = item.get(name, default)
    if value == "" and default is not None:  # an empty cell
        value = default
    try:
        number = float(value)  # None and the like: TypeError
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise OptionError(f"{where}: {name} is {value!r}, expected a number.")
    return number
