"""Spectral onsets of single frequencies, and whether they are harmonics of given pitches.

Contract: `setting_in` turns two spectra, of a moment and of the one before, into a vector that says
how far each frequency stands out among what is new; the product of two such vectors says how alike
they sound.  `Harmonics.share` says how much of one belongs to the harmonics of some pitches.

A string, a reed or a bar with a resonator has harmonics.  A drum that rings has frequencies too,
and always the same ones; but they are not harmonics, of whatever pitch a model writes down for it.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

HIGHEST_HZ = 3000.0
"""Above, drums are noise and tones have little."""

LOWEST, SURROUNDINGS = 3, 12
"""First frequency of a spectrum that counts, as below recordings have anything or nothing (23 Hz);
and frequencies to either side that a frequency is compared with (94 Hz)."""

NEW = 0.3
"""log10 of the factor (6 dB) by which a frequency is louder than before if it is new."""

LEAST = 1.0
"""log10 by which all new frequencies together stand out, if there are any (root of the sum of
squares)."""

HARMONICS, WIDTH = 10, 0.015
"""How many count, and their width to either side: a share of their frequency, but one frequency of
the spectrum at least."""

LOW_PITCH, HIGH_PITCH = 55, 90
"""G3: below, kicks and toms have their fundamentals.  F#6: above, there is only one harmonic, and a
cowbell has as much."""


def surroundings(level: npt.NDArray[np.float32]) -> FloatArray:
    """The mean of each frequency's neighbours and itself, as far as there are any: [k, n]."""
    rows, count = level.shape
    reach = SURROUNDINGS
    # Sums of all frequencies ahead of one; where there is none to ask for, the nearest that counts.
    sums = np.empty((rows, reach + count + 1 + reach))
    np.cumsum(level, axis=1, out=sums[:, reach + 1 : reach + 1 + count])
    sums[:, : reach + LOWEST] = sums[:, reach + LOWEST, np.newaxis]
    sums[:, reach + 1 + count :] = sums[:, reach + count, np.newaxis]
    within = sums[:, 2 * reach + 1 :] - sums[:, :count]
    within[:, : LOWEST - 1] = within[:, LOWEST - 1, np.newaxis]  # the first surroundings are one
    within /= _widths(count)
    return within.astype(np.float32)


@cache
def _widths(count: int) -> npt.NDArray[np.float64]:
    """How many frequencies the surroundings of each have."""
    places = np.arange(count)
    first = np.clip(places - SURROUNDINGS, LOWEST, count - 1)
    last = np.clip(places + SURROUNDINGS + 1, LOWEST + SURROUNDINGS, count)
    return (last - first).astype(np.float64)


def setting_in(level: FloatArray, before: FloatArray) -> FloatArray:
    """What stands out of the surroundings and is new, scaled to length 1; zeros if nothing is.

    Args:
        level: log10 of the amplitudes, float32 [n].
        before: The same of the moment before.
    """
    stands_out = np.maximum(level - surroundings(level[np.newaxis])[0], 0.0)
    new = np.where(level - before > NEW, stands_out, np.float32(0.0))
    new[: 2 * LOWEST] = 0.0
    length = float(np.linalg.norm(new))
    return np.asarray(new / length if length > LEAST else np.zeros_like(new), np.float32)


class Harmonics:
    """Where the harmonics of every pitch lie; those of low pitches without the fundamental.

    Args:
        spacing: Hz between two frequencies of a spectrum.
        used: Number of frequencies.
    """

    def __init__(self, spacing: float, used: int) -> None:
        hertz = 440.0 * 2.0 ** ((np.arange(128) - 69) / 12)
        centres = np.outer(hertz, np.arange(1, HARMONICS + 1)) / spacing
        reach = np.maximum(1.0, WIDTH * centres)
        low, high = np.floor(centres - reach + 0.5), np.floor(centres + reach + 0.5)
        low[:LOW_PITCH, 0] = used  # no fundamental
        places = np.arange(used)
        self._own = np.zeros((128, used), np.bool_)
        for first, last in zip(low.T[..., np.newaxis], high.T[..., np.newaxis], strict=True):
            self._own |= (first <= places) & (places <= last)

    def share(self, tones: npt.NDArray[np.floating[Any]], pitches: Collection[int]) -> float:
        """How much of the tones belongs to pitches: 1 is all, 0 as much as would by chance.

        Args:
            tones: Of `setting_in`.
            pitches: MIDI pitches that begin there, one or more.
        """
        own = self._own[list(pitches)].any(axis=0)
        chance = float(own.mean())
        return (float(np.sum(np.square(tones[own], dtype=np.float64))) - chance) / (1.0 - chance)
