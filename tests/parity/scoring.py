"""How well notes agree with labels.

Definitions (mir_eval does the matching, which is one to one and as large as possible):

* Onset F1: a note counts if its pitch is right and its onset within 50 ms of a label's.  Programs
  are ignored, drums are left out.
* Onset-offset F1: its offset, too, must lie within 50 ms or a fifth of the label's duration.
* Drum-onset F1: a drum counts if its class is right and its onset within 50 ms.  General MIDI keys
  are folded to five classes (`DRUM_KEYS`); a key that belongs to none, a hand clap or a cowbell,
  can only be wrong.  Labels of MDB Drums' class OT count as snares: in these recordings they are
  side sticks.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from mir_eval.transcription import precision_recall_f1_overlap
from mir_eval.util import midi_to_hz

from mt3_runtime.notes import Note

TOLERANCE = 0.05
OFFSET_RATIO = 0.2
SHORTEST = 0.01
"""Seconds; mir_eval refuses intervals without length, and drum labels have none."""

DRUM_KEYS = {
    "KD": (35, 36),  # kicks
    "SD": (37, 38, 40),  # snares, side stick
    "HH": (42, 44, 46),  # hi-hats
    "TT": (41, 43, 45, 47, 48, 50),  # toms
    "CY": (49, 51, 52, 53, 55, 57, 59),  # crashes and rides
}
_FOLDED = {key: keys[0] for keys in DRUM_KEYS.values() for key in keys}


class Score(NamedTuple):
    """Precision, recall and F1, and how many labels and notes were compared."""

    precision: float
    recall: float
    f1: float
    labels: int
    notes: int

    def __str__(self) -> str:
        figures = " ".join(f"{value:.3f}" for value in self[:3])
        return f"P R F1 {figures} ({self.labels} labels, {self.notes} notes)"


def read_notes(path: Path) -> list[Note]:
    """Labels of pitched notes: a table of onset, offset [s], pitch and program."""
    return [
        Note(float(row["onset"]), float(row["offset"]), int(row["pitch"]), 100, int(row["program"]))
        for row in _rows(path)
    ]


def read_drums(path: Path) -> list[Note]:
    """Labels of drums: a table of onset [s] and class."""
    keys = {name: keys[0] for name, keys in DRUM_KEYS.items()} | {"OT": 37}
    return [
        Note(float(row["onset"]), float(row["onset"]), keys[row["class"]], 100, is_drum=True)
        for row in _rows(path)
    ]


def score_notes(labels: Iterable[Note], notes: Iterable[Note], *, offsets: bool = False) -> Score:
    """Onset F1 of pitched notes, or onset-offset F1."""
    ratio = OFFSET_RATIO if offsets else None
    pitched = [[note for note in side if not note.is_drum] for side in (labels, notes)]
    return _score(*pitched, pitch=lambda note: note.pitch, ratio=ratio)


def score_drums(labels: Iterable[Note], notes: Iterable[Note]) -> Score:
    """Drum-onset F1."""
    drums = [[note for note in side if note.is_drum] for side in (labels, notes)]
    return _score(*drums, pitch=lambda note: _FOLDED.get(note.pitch, note.pitch), ratio=None)


def before(notes: Iterable[Note], seconds: float) -> list[Note]:
    """Notes that begin before a time."""
    return [note for note in notes if note.onset < seconds]


def _score(
    labels: Sequence[Note],
    notes: Sequence[Note],
    *,
    pitch: Callable[[Note], int],
    ratio: float | None,
) -> Score:
    sides = [_arrays(side, pitch) for side in (labels, notes)]
    precision, recall, f1, _ = precision_recall_f1_overlap(
        *sides[0], *sides[1], onset_tolerance=TOLERANCE, offset_ratio=ratio
    )
    return Score(precision, recall, f1, len(labels), len(notes))


def _arrays(
    notes: Sequence[Note], pitch: Callable[[Note], int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    intervals = [(note.onset, max(note.offset, note.onset + SHORTEST)) for note in notes]
    frequencies = midi_to_hz(np.array([pitch(note) for note in notes], np.float64))
    return np.array(intervals, np.float64).reshape(-1, 2), frequencies


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
