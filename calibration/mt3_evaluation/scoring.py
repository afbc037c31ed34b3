"""Matches notes with labels and counts true positives: precision, recall, F1.

Definitions.  Matching is one to one and as large as possible (mir_eval does it), and only notes of
equal *key* can match; what the key is makes the metric:

* Onset: pitched notes; the key is the pitch, programs are ignored.  Onsets lie within 50 ms.
* Onset and offset: offsets, too, lie within 50 ms, or within a fifth of the label's duration.
* Drum onset: drums; the key is one of five classes (`DRUM_KEYS`), into which General MIDI keys are
  folded.  A key that belongs to none, a hand clap or a cowbell, can only be wrong.
* Multi-instrument (MT3's own): pitched notes match by onset, offset, pitch and instrument, drums by
  onset and key.  The instrument is nothing (``flat``), the MIDI class, which is the program divided
  by 8 (``class``), or the program (``full``).

F1 is twice the matches divided by labels and notes together, which equals the harmonic mean of
precision and recall, and MT3's sums over instruments, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mt3_runtime.imports.extras import require
from mt3_runtime.notes.instruments import PROGRAMS_PER_FAMILY
from mt3_runtime.notes.note import Note

TOLERANCE = 0.05
"""Seconds between onsets, and between offsets, that still count as equal (MIREX, mir_eval, MT3)."""

OFFSET_RATIO = 0.2
"""Share of the label's duration by which an offset may be off, if that is more (the same)."""

SHORTEST = 0.01
"""Seconds; mir_eval refuses intervals without length, and drum labels have none."""

PORTION = 500
"""Labels and notes that are matched at a time, at least."""

DRUM_KEYS = {
    "KD": (35, 36),  # kicks
    "SD": (37, 38, 40),  # snares, side stick
    "HH": (42, 44, 46),  # hi-hats
    "TT": (41, 43, 45, 47, 48, 50),  # toms
    "CY": (49, 51, 52, 53, 55, 57, 59),  # crashes and rides
}
"""General MIDI percussion keys of each drum class; the first stands for the class in labels."""

_FOLDED = {key: keys[0] for keys in DRUM_KEYS.values() for key in keys}

Granularity = Literal["flat", "class", "full"]
Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class Score:
    """Matches, labels and notes, counted; scores of several recordings add up.

    Attributes:
        matched: Pairs of a label and a note.
        labels: Labels, matched or not.
        notes: Notes, matched or not.
    """

    matched: int
    labels: int
    notes: int

    @property
    def precision(self) -> float | None:
        """Share of the notes that are right; None without notes."""
        return self.matched / self.notes if self.notes else None

    @property
    def recall(self) -> float | None:
        """Share of the labels that were found; None without labels."""
        return self.matched / self.labels if self.labels else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the two; None if there is neither a label nor a note."""
        whole = self.labels + self.notes
        return 2 * self.matched / whole if whole else None

    def __add__(self, other: Score) -> Score:
        return Score(
            self.matched + other.matched, self.labels + other.labels, self.notes + other.notes
        )

    def __str__(self) -> str:
        values = (self.precision, self.recall, self.f1)
        figures = " ".join("-" if value is None else f"{value:.3f}" for value in values)
        return f"P R F1 {figures} ({self.labels} labels, {self.notes} notes)"


def score_notes(labels: Iterable[Note], notes: Iterable[Note], *, offsets: bool = False) -> Score:
    """Onset F1 of the pitched notes, or onset-offset F1; drums are left out."""
    sides = pitched(labels), pitched(notes)
    return Score(len(match(*sides, by_pitch, offsets=offsets)), *map(len, sides))


def score_drums(labels: Iterable[Note], notes: Iterable[Note]) -> Score:
    """Drum-onset F1; pitched notes are left out."""
    sides = drums(labels), drums(notes)
    return Score(len(match(*sides, by_drum_class)), *map(len, sides))


def score_instruments(
    labels: Sequence[Note],
    notes: Sequence[Note],
    *,
    granularity: Granularity,
    drum_keys: bool = True,
) -> Score:
    """MT3's multi-instrument F1.

    Args:
        labels: Of all instruments, drums included.
        notes: The same.
        granularity: What an instrument is, see the module.
        drum_keys: Drums match by their exact key, as in MT3; else by their class.
    """
    pairs = match_instruments(labels, notes, granularity=granularity, drum_keys=drum_keys)
    return Score(len(pairs), len(labels), len(notes))


def match(
    labels: Sequence[Note],
    notes: Sequence[Note],
    key: Callable[[Note], Hashable],
    *,
    offsets: bool = False,
) -> Pairs:
    """The largest one-to-one matching of labels and notes with equal key.

    Args:
        labels: In any order.
        notes: In any order.
        key: Only notes with equal keys can match.
        offsets: Offsets must agree, too.

    Returns:
        Pairs of indices into ``labels`` and ``notes``.

    Raises:
        MissingDependencyError: mir_eval is not installed.
    """
    matcher = _matcher(offsets=offsets)
    pairs: Pairs = []
    for mine, theirs in _portions(labels, notes, key):
        if mine and theirs:
            found = matcher(_intervals(labels, mine), _intervals(notes, theirs))
            pairs += [(mine[i], theirs[j]) for i, j in found]
    return sorted(pairs)


def match_instruments(
    labels: Sequence[Note],
    notes: Sequence[Note],
    *,
    granularity: Granularity,
    drum_keys: bool = True,
) -> Pairs:
    """The matching of `score_instruments`; arguments as there, result as of `match`."""

    def key(note: Note) -> Hashable:
        return (instrument(note, granularity), note.pitch)

    drum_key = by_pitch if drum_keys else by_drum_class
    pairs: Pairs = []
    for wanted, by, offsets in ((False, key, True), (True, drum_key, False)):
        places = [[i for i, n in enumerate(s) if n.is_drum == wanted] for s in (labels, notes)]
        mine, theirs = places
        found = match([labels[i] for i in mine], [notes[j] for j in theirs], by, offsets=offsets)
        pairs += [(mine[i], theirs[j]) for i, j in found]
    return sorted(pairs)


def instrument(note: Note, granularity: Granularity = "class") -> int:
    """A number for the instrument of a note; -1 for drums, whatever their program."""
    if note.is_drum:
        return -1
    divisors = {"flat": 128, "class": PROGRAMS_PER_FAMILY, "full": 1}
    return note.program // divisors[granularity]


def by_pitch(note: Note) -> int:
    """Key: the pitch, or the percussion key."""
    return note.pitch


def by_class_and_pitch(note: Note) -> tuple[int, int]:
    """Key: MIDI class and pitch."""
    return instrument(note), note.pitch


def by_drum_class(note: Note) -> int:
    """Key: the first percussion key of the drum's class; its own, if it belongs to none."""
    return _FOLDED.get(note.pitch, note.pitch)


def before(notes: Iterable[Note], seconds: float) -> list[Note]:
    """Notes that begin before a time."""
    return [note for note in notes if note.onset < seconds]


def pitched(notes: Iterable[Note]) -> list[Note]:
    """Notes that are no drums."""
    return [note for note in notes if not note.is_drum]


def drums(notes: Iterable[Note]) -> list[Note]:
    """Notes that are drums."""
    return [note for note in notes if note.is_drum]


def _portions(
    labels: Sequence[Note], notes: Sequence[Note], key: Callable[[Note], Hashable]
) -> Iterator[tuple[list[int], list[int]]]:
    """Indices of labels and notes that may match one another.

    All of a portion have one key.  Portions also end at rests, as nothing matches across them and
    mir_eval's memory grows with the square of their size.
    """
    groups: defaultdict[Hashable, list[tuple[float, int, int]]] = defaultdict(list)
    for side, members in enumerate((labels, notes)):
        for index, note in enumerate(members):
            groups[key(note)].append((note.onset, side, index))
    for group in groups.values():
        portion: tuple[list[int], list[int]] = ([], [])
        last = 0.0
        for onset, side, index in sorted(group):
            if onset > last + 2 * TOLERANCE and len(portion[0]) + len(portion[1]) >= PORTION:
                yield portion
                portion = ([], [])
            portion[side].append(index)
            last = onset
        yield portion


def _intervals(notes: Sequence[Note], places: Sequence[int]) -> npt.NDArray[np.float64]:
    """Onsets and offsets [n, 2] in seconds."""
    chosen = [notes[i] for i in places]
    return np.array([(n.onset, max(n.offset, n.onset + SHORTEST)) for n in chosen], np.float64)


def _matcher(*, offsets: bool) -> Callable[[Any, Any], Pairs]:
    """The matching of mir_eval as a function of two arrays of intervals [n, 2]."""
    mir_eval = require("mir_eval.transcription", "A score", "calibration")  # 1 s

    def with_offsets(labels: Any, notes: Any) -> Pairs:
        equal = [np.full(len(side), 440.0) for side in (labels, notes)]  # keys are equal already
        found: Pairs = mir_eval.match_notes(
            labels, equal[0], notes, equal[1], TOLERANCE, offset_ratio=OFFSET_RATIO
        )
        return found

    def onsets_only(labels: Any, notes: Any) -> Pairs:
        found: Pairs = mir_eval.match_note_onsets(labels, notes, TOLERANCE)
        return found

    return with_offsets if offsets else onsets_only
