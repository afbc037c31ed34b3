"""What measures look at, and what they answer.

Contract: a measure is a function from a `Take` to `Observed`, made known by `measure` with its unit
and what it needs.  `measured` calls it where that is there; otherwise, or of too few observations,
the value is None and the reason is said.  Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_analysis.assessment.alignment import CHORD_GAP_S, Alignment
from mt3_analysis.assessment.performance import Floats, Integers, Performance

FEWEST = 8
"""Observations below which a measure says nothing."""

MISSING: dict[str, str] = {
    "velocity": "needs velocities: these are all the same, or not known",
    "pedal": "needs the pedal: nothing is known of it",
    "score": "needs a score",
    "timing": "needs played onsets: these lie on a grid, as written",
}
"""Why a measure has no value, by what it needs."""


class Observed(NamedTuple):
    """A value, and the number of observations it is made of."""

    value: float
    number: int


@dataclass(frozen=True)
class Measured:
    """A measure of one take.

    Attributes:
        name: Of the measure.
        value: In its unit; None if it could not be measured.
        unit: Of the value.
        count: Observations.
        reason: Why there is no value.
    """

    name: str
    value: float | None
    unit: str
    count: int
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Measure:
    """A measure.

    Attributes:
        name: The function's.
        unit: Of its values.
        needs: What must be known.
        compute: The function.
        fewest: Observations it takes at least.
    """

    name: str
    unit: str
    needs: frozenset[str]
    compute: Callable[[Take], Observed]
    fewest: int

    @property
    def definition(self) -> str:
        """Its docstring, as one line."""
        return " ".join((self.compute.__doc__ or "").split())

    def of(self, take: Take) -> Measured:
        """Measures a take."""
        lacking = [need for need in sorted(self.needs) if need not in take.known]
        if lacking:
            return Measured(self.name, None, self.unit, 0, MISSING[lacking[0]])
        with np.errstate(all="ignore"):
            value, count = self.compute(take)
        if count < self.fewest or not np.isfinite(value):
            reason = f"{count} observations; expected {self.fewest} or more"
            return Measured(self.name, None, self.unit, count, reason)
        return Measured(self.name, float(value), self.unit, count)


Measuring = Callable[["Take"], Observed]


class Group(dict[str, Measure]):
    """The measures of a module by name; `measure` adds to it."""

    def measure(
        self, unit: str, *needs: str, fewest: int = FEWEST
    ) -> Callable[[Measuring], Measuring]:
        """Makes a function known as a measure.

        Args:
            unit: Of its values.
            needs: ``velocity``, ``pedal``, ``score``, ``timing``.
            fewest: Observations it takes at least.
        """

        def known(function: Measuring) -> Measuring:
            name = function.__name__
            self[name] = Measure(name, unit, frozenset(needs), function, fewest)
            return function

        return known


@dataclass(frozen=True, eq=False)
class Take:
    """A performance with what measures share of it.

    Attributes:
        performance: Notes and pedals.
        alignment: To a score, if there is one.
    """

    performance: Performance
    alignment: Alignment | None = None

    @cached_property
    def known(self) -> frozenset[str]:
        """What is known beside notes."""
        timing = frozenset() if self.performance.on_grid else frozenset({"timing"})
        score = frozenset() if self.alignment is None else frozenset({"score"})
        return self.performance.known | timing | score

    @cached_property
    def chord(self) -> Integers:
        """Index of each note's chord, int64 [n]: onsets that lie close together."""
        if not len(self.performance):
            return np.zeros(0, np.int64)
        gaps = np.diff(self.performance.onset_s)
        return np.append(0, np.cumsum(gaps > CHORD_GAP_S)).astype(np.int64)

    @cached_property
    def chord_s(self) -> Floats:
        """Mean onset of each chord, float64 [c]."""
        return means(self.chord, self.performance.onset_s)

    @cached_property
    def gap_s(self) -> Floats:
        """From each chord to the next, float64 [c - 1]."""
        return np.diff(self.chord_s)

    @cached_property
    def top(self) -> Integers:
        """Index of the highest note of each chord, int64 [c]."""
        order = np.lexsort((-self.performance.pitch, self.chord))
        return order[np.flatnonzero(np.diff(self.chord[order], prepend=-1))]

    @cached_property
    def length_s(self) -> Floats:
        """How long each key is held, float64 [n]; NaN for notes without a length."""
        length = self.performance.offset_s - self.performance.onset_s
        return np.where(length > 0.0, length, np.nan)

    @cached_property
    def next_s(self) -> Floats:
        """From each note to the next chord, float64 [n]; NaN in the last one."""
        later = np.append(self.chord_s, np.nan)[self.chord + 1]
        return later - self.performance.onset_s

    @cached_property
    def beats(self) -> tuple[Floats, Floats, Integers, Floats]:
        """Of the aligned chords of the score: position [c] in quarters, mean onset [c], notes [c].

        The last is by how much each matched note is off its chord's mean onset, [m] seconds.
        """
        if self.alignment is None or not len(self.alignment.matched):
            none = np.zeros(0)
            return none, none, np.zeros(0, np.int64), none
        written, played = self.alignment.matched.T
        chord = self.alignment.score.chord_of()[written]
        order = np.argsort(chord, kind="stable")
        _, index = np.unique(chord[order], return_inverse=True)
        onset = self.performance.onset_s[played[order]]
        middle = means(index, onset)
        position = means(index, self.alignment.score.onset_q[written[order]])
        counts = np.bincount(index)
        return position, middle, counts, onset - middle[index]

    @cached_property
    def pace(self) -> tuple[Floats, Floats, Floats]:
        """Between aligned chords: seconds a quarter, what is usual around there, quarters; [g]."""
        position, onset, _, _ = self.beats
        quarters = np.diff(position)
        there = quarters >= 1 / 16
        pace = np.maximum(np.diff(onset)[there], 1e-3) / quarters[there]
        return pace, running_median(pace, 8), quarters[there]


def measured(take: Take, measures: Iterable[Measure]) -> dict[str, Measured]:
    """Measures a take in every respect."""
    return {measure.name: measure.of(take) for measure in measures}


def means(index: Integers, values: Floats) -> Floats:
    """Mean of the values of each index 0..k, float64 [k + 1]."""
    if not len(index):
        return np.zeros(0)
    return np.bincount(index, values) / np.bincount(index)


def running_median(values: Floats, around: int) -> Floats:
    """Median of each value with so many on either side, float64 [n]."""
    if not len(values):
        return values
    padded = np.pad(values, around, mode="reflect" if len(values) > around else "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * around + 1)
    return np.asarray(np.median(windows, axis=1))


def running_mean(values: Floats, around: int) -> Floats:
    """Mean of each value with so many on either side, float64 [n]."""
    if not len(values):
        return values
    ones = np.ones(2 * around + 1)
    weight = np.convolve(np.ones(len(values)), ones, "same")
    return np.asarray(np.convolve(values, ones, "same")[: len(values)] / weight[: len(values)])


def summary(values: npt.NDArray[Any], how: Callable[..., Any]) -> Observed:
    """A statistic of the values that are numbers."""
    kept = values[np.isfinite(values)]
    return Observed(float(how(kept)) if len(kept) else np.nan, len(kept))


def quantile(values: npt.NDArray[Any], share: float) -> Observed:
    """The value below which such a share lies."""
    return summary(values, lambda kept: np.quantile(kept, share))
