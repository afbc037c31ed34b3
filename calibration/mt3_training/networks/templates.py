"""Log-mel templates of pitches and noises, for initial weights.

Contract: columns of weights over mel bins, to be applied to the runtime's own log-mel features; a
column's result is a mean of logarithms less another mean, so it does not depend on the level of a
recording.  They are where training begins (`mt3_training.networks.initialisation`), and are free to
change there.

Mel filters below 600 Hz are narrower than the distance of the FFT's frequencies, so about a fifth
of them hear nothing and say the same at all times; they get no weight.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.log_mel import FeatureConfig, filter_matrix
from mt3_runtime.errors import OptionError

FloatArray = npt.NDArray[np.float32]

HARMONICS = 8
"""Partials a pitch is recognised by, as far as the spectrogram reaches."""

FADE = 0.8
"""Weight of a partial relative to the one below it."""

WIDTH = 0.015
"""Standard deviation of a partial relative to its frequency, a quarter of a semitone, ..."""

SHORTEST_WIDTH = 5.0
"""... but at least so many Hz: the window's main lobe is 31 Hz wide."""

ASIDE = 2.0 ** (1.5 / 12.0)
"""Ratio of frequencies between which no partial is expected, one and a half semitones, ..."""

SHORTEST_ASIDE = 16.0
"""... but at least so many Hz."""

BAND_SCALE, BAND_CONTRAST = 1.0 / 3.0, 0.8
"""A band's scale beside the pitches', and how much of the mean of all bands is taken off."""


def pitch_templates(config: FeatureConfig, first: int, count: int) -> FloatArray:
    """Weights that say how much a pitch sounds.

    Args:
        config: The features.
        first: Lowest MIDI pitch.
        count: How many pitches.

    Returns:
        float32 [bins, count]: mean over the partials, less half of the mean on either side.
    """
    active, hertz = _active(config)
    highest = 0.95 * hertz[-1]
    weights = np.zeros((config.bins, count), np.float32)
    for index in range(count):
        base = 440.0 * 2.0 ** ((first + index - 69) / 12.0)
        column = np.zeros(len(active))
        for number in range(1, HARMONICS + 1):
            partial = number * base
            if partial > highest:
                break
            below = min(partial / ASIDE, partial - SHORTEST_ASIDE)
            above = max(partial * ASIDE, partial + SHORTEST_ASIDE)
            beside = 0.5 * (_bump(hertz, below) + _bump(hertz, above))
            column += FADE ** (number - 1) * (_bump(hertz, partial) - beside)
        weights[active, index] = column / max(np.maximum(column, 0.0).sum(), 1e-9)
    return weights


def band_templates(config: FeatureConfig, count: int) -> FloatArray:
    """Weights that say how loud bands of equal numbers of bins are, for noises and drums.

    Returns:
        float32 [bins, count].
    """
    active, _ = _active(config)
    weights = np.zeros((config.bins, count), np.float32)
    weights[active] = -BAND_CONTRAST / len(active)
    for index, part in enumerate(np.array_split(active, count)):
        weights[part, index] += 1.0 / len(part)
    return BAND_SCALE * weights


def _active(config: FeatureConfig) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The mel bins that hear anything, and the middle of what each hears in Hz."""
    filters = filter_matrix(config)
    if filters is None:
        raise OptionError("templates are made for mel filters; these features have none.")
    matrix = filters.astype(np.float64)
    hertz = np.arange(len(matrix)) * (config.sample_rate / config.fft_size)
    weight = matrix.sum(axis=0)
    active = np.flatnonzero(weight > 0.0)
    return active, (hertz @ matrix)[active] / weight[active]


def _bump(hertz: npt.NDArray[np.float64], centre: float) -> npt.NDArray[np.float64]:
    """A bell of sum 1 around a frequency; nothing where no bin is near."""
    bell = np.exp(-0.5 * ((hertz - centre) / max(SHORTEST_WIDTH, WIDTH * centre)) ** 2)
    total = bell.sum()
    return bell / total if total > 1e-9 else np.zeros_like(bell)
