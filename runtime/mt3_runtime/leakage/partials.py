"""Pitch clarity: how far the partials of every pitch stand out from a spectrum.

Contract: `PitchClarity` takes log10 spectra and the mean level of each frequency's surroundings,
and gives the clarity of each pitch of a piano.  A partial lies where its spectrum is loudest,
within half a semitone.  Frames are the last axis in here: a range of frequencies is then a range of
rows, which are taken and compared as wholes, five times as fast as columns.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mt3_runtime.leakage.harmonics import LOW_PITCH

PARTIALS, LOW_PARTIALS = 4, 8
"""How many are looked for, of a low pitch (below `LOW_PITCH`) more: its first ones are as close as
what a kick has, and raise their own surroundings."""

TUNING = 0.03
"""A partial may lie off by this share of its frequency (half a semitone)."""

PIANO = (21, 108)
"""Pitches that are told apart; others count as the nearest of these."""

CLEAR, LOW_CLEAR = 0.95, 0.48
"""log10 of the prominence that makes a pitch clear: 19 dB of its two clearest partials, of a low
one 10 dB of all on average (docs/leakage.md has the evidence)."""


class PitchClarity:
    """Where the partials of every pitch lie in a spectrum.

    The clarity of a pitch is the mean prominence of the two clearest of its first four partials, in
    units of `CLEAR`; of a low pitch, that of all of the first eight, in units of `LOW_CLEAR`.

    Args:
        spacing: Hz between two of its frequencies.
        used: Number of frequencies.
    """

    def __init__(self, spacing: float, used: int) -> None:
        pitches = np.arange(PIANO[0], PIANO[1] + 1)
        self._low = int(np.count_nonzero(pitches < LOW_PITCH))  # the first ones
        numbers = np.arange(1, LOW_PARTIALS + 1)
        centres = np.outer(numbers, 440.0 * 2.0 ** ((pitches - 69) / 12)) / spacing
        reach = np.maximum(1.0, centres * TUNING)
        self._unheard = (np.ceil(centres + reach) + 1 >= used)[:PARTIALS, self._low :]
        first = np.minimum(np.floor(centres - reach), used - 2).astype(np.int64)
        end = np.minimum(np.ceil(centres + reach) + 1, used - 1).astype(np.int64)
        self._peaks = _RangeMaxima(
            self._looked_for(first), self._looked_for(np.maximum(end, first + 1))
        )
        self._centres = self._looked_for(np.minimum(np.rint(centres).astype(np.int64), used - 1))

    def _looked_for(self, of: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The partials that matter, of all [partials, pitches]: low pitches, then the others."""
        return np.concatenate([of[:, : self._low].ravel(), of[:PARTIALS, self._low :].ravel()])

    def __call__(
        self, level: npt.NDArray[np.float32], around: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float16]:
        """Clarity of pitches: log10 levels [k, frequencies] in, [k, pitches] out."""
        count = len(level)
        stands_out = self._peaks(np.ascontiguousarray(level.T))
        stands_out -= np.take(around, self._centres, axis=1).T
        split = LOW_PARTIALS * self._low
        found = np.empty((count, PIANO[1] + 1 - PIANO[0]), np.float16)
        low = _mean_of_eight(stands_out[:split].reshape(LOW_PARTIALS, self._low, count))
        found[:, : self._low] = (low / np.float32(LOW_CLEAR)).T
        high = stands_out[split:].reshape(PARTIALS, len(found.T) - self._low, count)
        high[self._unheard] = -np.inf
        best, second = _two_largest_of_four(high)
        second = np.where(np.isfinite(second), second, best)
        found[:, self._low :] = ((best + second) / np.float32(2.0 * CLEAR)).T
        return found


def _mean_of_eight(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean over the first axis, added in pairs."""
    pairs = values[0::2] + values[1::2]
    fours = pairs[0::2] + pairs[1::2]
    return np.asarray((fours[0] + fours[1]) / np.float32(8.0))


def _two_largest_of_four(
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The largest along the first axis, and the second."""
    high, low = np.maximum(values[:2], values[2:]), np.minimum(values[:2], values[2:])
    second = np.maximum(np.minimum(high[0], high[1]), np.maximum(low[0], low[1]))
    return np.maximum(high[0], high[1]), second


class _RangeMaxima:
    """The largest of some ranges of the rows of a matrix.

    A range is covered by two, which may overlap, of the next lower power of two; the maxima of all
    ranges of such a length come from two of half of it.

    Args:
        first: First row of each range, int64 [n].
        end: The row behind its last one.
    """

    def __init__(self, first: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> None:
        doublings = np.log2(end - first).astype(np.int64)
        self._parts = [
            (places, first[places], end[places] - 2**doubling)
            for doubling in range(int(doublings.max()) + 1)
            for places in [np.flatnonzero(doublings == doubling)]
        ]
        self._count = len(first)

    def __call__(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Maxima [n, k] of values [rows, k]."""
        found = np.empty((self._count, values.shape[1]), values.dtype)
        for doubling, (places, first, second) in enumerate(self._parts):
            if doubling:
                half = 2 ** (doubling - 1)
                values = np.maximum(values[:-half], values[half:])
            found[places] = np.maximum(values[first], values[second])
        return found
