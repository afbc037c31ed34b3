"""Metrics of an evaluation: onset, offset, program and drum F1; when each applies, what it counts.

Every metric is a quotient of counts, kept per window of two seconds, so that recordings can be
pooled by adding counts and judged by drawing windows (`mt3_evaluation.bootstrap`).  A metric that
says nothing about a recording, because its labels do not, is None and not 0.

=============  ====================================================================================
onset          onset F1 of pitched notes, whatever their program
offset         onset-and-offset F1, the same
drums          drum-onset F1, keys folded to classes
flat           MT3's multi-instrument F1 without instruments,
class          with MIDI classes,
full           and with exact programs (all three include the drums, where these are labelled)
leaked         share of the notes that are on instruments which the labels do not have at all
phi            number of instruments in the notes, divided by that in the labels (MR-MT3's ratio)
right          share of the notes matched by onset that are on the right instrument
=============  ====================================================================================

Instruments of the last three are MIDI classes, and drums.  ``right`` compares two largest
matchings, with and without the class, so it does not depend on which of two equal notes was taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mt3_evaluation.labels import Labels
from mt3_evaluation.scoring import (
    Granularity,
    Pairs,
    Score,
    by_class_and_pitch,
    by_drum_class,
    by_pitch,
    drums,
    instrument,
    match,
    match_instruments,
    pitched,
)
from mt3_runtime.notes.note import Note

WINDOW = 2.0
"""Seconds; about one segment of MT3, within which errors depend on one another."""


@dataclass(frozen=True)
class Measure:
    """What a metric counted in one recording.

    Attributes:
        units: Numerator and denominator per window, int64 [windows, 2].
        score: Matches, labels and notes, where the metric is an F1.
    """

    units: npt.NDArray[np.int64]
    score: Score | None = None

    @property
    def total(self) -> npt.NDArray[np.int64]:
        """Numerator and denominator of the recording, int64 [2]."""
        return np.asarray(self.units.sum(axis=0))

    @property
    def value(self) -> float:
        """The metric for the recording."""
        numerator, denominator = self.total
        return float(numerator / denominator)


def measure(labels: Labels, notes: Iterable[Note]) -> dict[str, Measure]:
    """All metrics of a recording that its labels allow.

    Args:
        labels: What is known about it.
        notes: What a model found in it; kinds of notes that are not labelled are left out.
    """
    covered = [note for note in notes if labels.covers(note)]
    found = {name: metric(labels, covered) for name, metric in METRICS.items()}
    return {name: value for name, value in found.items() if value is not None and value.total[1]}


def found_by_family(labels: Labels, notes: Iterable[Note]) -> dict[int, npt.NDArray[np.int64]]:
    """What became of the pitched labels of each General MIDI family.

    Args:
        labels: What is known about a recording, programs included.
        notes: What a model found in it.

    Returns:
        By number of the family, int64 [3]: labels, how many of them were found by onset and pitch,
        and how many so by a note of the same family.
    """
    wanted, covered = pitched(labels.notes), pitched(filter(labels.covers, notes))
    counts: defaultdict[int, npt.NDArray[np.int64]] = defaultdict(lambda: np.zeros(3, np.int64))
    for label in wanted:
        counts[instrument(label)][0] += 1
    for place, key in ((1, by_pitch), (2, by_class_and_pitch)):
        for i, _ in match(wanted, covered, key):
            counts[instrument(wanted[i])][place] += 1
    return dict(counts)


_Metric = Callable[[Labels, Sequence[Note]], Measure | None]


def _onset(labels: Labels, notes: Sequence[Note]) -> Measure | None:
    sides = pitched(labels.notes), pitched(notes)
    return f1_measure(*sides, match(*sides, by_pitch)) if sides[0] else None


def _offset(labels: Labels, notes: Sequence[Note]) -> Measure | None:
    sides = pitched(labels.notes), pitched(notes)
    return f1_measure(*sides, match(*sides, by_pitch, offsets=True)) if sides[0] else None


def _drums(labels: Labels, notes: Sequence[Note]) -> Measure | None:
    sides = drums(labels.notes), drums(notes)
    return f1_measure(*sides, match(*sides, by_drum_class)) if sides[0] else None


def _instruments(granularity: Granularity) -> _Metric:
    def metric(labels: Labels, notes: Sequence[Note]) -> Measure | None:
        known = labels.pitched and (labels.programs or granularity == "flat")
        if not known or not labels.notes:
            return None
        pairs = match_instruments(
            labels.notes, notes, granularity=granularity, drum_keys=labels.drum_keys
        )
        return f1_measure(labels.notes, notes, pairs)

    return metric


def _leaked(labels: Labels, notes: Sequence[Note]) -> Measure | None:
    if not labels.programs:
        return None
    true = {instrument(label) for label in labels.notes}
    strays = [note.onset for note in notes if instrument(note) not in true]
    return Measure(_windows(strays, [note.onset for note in notes]))


def _phi(labels: Labels, notes: Sequence[Note]) -> Measure | None:
    if not labels.programs:
        return None
    counts = [len({instrument(note) for note in side}) for side in (notes, labels.notes)]
    return Measure(np.array([counts], np.int64))  # of the whole recording: no windows


def _right(labels: Labels, notes: Sequence[Note]) -> Measure | None:
    if not labels.programs:
        return None
    sides = pitched(labels.notes), pitched(notes)
    right, matched = (
        [sides[0][i].onset for i, _ in match(*sides, key)] for key in (by_class_and_pitch, by_pitch)
    )
    return Measure(_windows(right, matched))


#: All metrics by name, in the order of the report.
METRICS: Mapping[str, _Metric] = {
    "onset": _onset,
    "offset": _offset,
    "drums": _drums,
    "flat": _instruments("flat"),
    "class": _instruments("class"),
    "full": _instruments("full"),
    "leaked": _leaked,
    "phi": _phi,
    "right": _right,
}


def f1_measure(labels: Sequence[Note], notes: Sequence[Note], pairs: Pairs) -> Measure:
    """F1 as the share of labels and notes that are matched, each in its own window."""
    matched = [labels[i].onset for i, _ in pairs] + [notes[j].onset for _, j in pairs]
    whole = [note.onset for note in (*labels, *notes)]
    return Measure(_windows(matched, whole), Score(len(pairs), len(labels), len(notes)))


def _windows(numerator: Sequence[float], denominator: Sequence[float]) -> npt.NDArray[np.int64]:
    """How many of the times lie in each window: int64 [windows that hold any, 2]."""
    times = np.array([*numerator, *denominator], np.float64)
    _, places = np.unique(times // WINDOW, return_inverse=True)
    sides = places[: len(numerator)], places[len(numerator) :]
    length = int(places.max(initial=-1)) + 1
    return np.stack([np.bincount(side, minlength=length) for side in sides], axis=1)
