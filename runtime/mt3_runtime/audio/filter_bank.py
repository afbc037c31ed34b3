"""Window functions and mel filter banks, rounded as the originals round them.

TensorFlow (Magenta) and torchaudio (everyone else) build their filters from the same HTK mel scale
and differ in one point: the sides of TensorFlow's triangles are straight on the mel axis, those of
torchaudio's on the axis of frequency.  Both compute in float32 throughout, so that is done here
too, in their order of rounding.  Logarithm, power and cosine are the correctly rounded ones, the
same on every machine; the originals' are off by one unit in the last place for some arguments.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]

_BAND_FILTERS = 16
"""Filters per band.  32 bands of 16 need 1/32 of the multiplications of the whole matrix."""


def hann_window(size: int) -> Matrix:
    """Periodic Hann window: 0.5 - 0.5 cos(2 pi j / size), float32 [size].

    The phase is rounded to float32 as TensorFlow does, the cosine correctly rounded; nine of ten
    values equal TensorFlow's bit by bit, the others differ in the last place.
    """
    phase = np.float32(2.0 * np.pi) * np.arange(size, dtype=np.float32) / np.float32(size)
    half = np.float32(0.5)
    return half - half * np.cos(phase.astype(np.float64)).astype(np.float32)


def mel_triangles_in_mel(
    *, sample_rate: int, fft_size: int, bins: int, low_hz: float, high_hz: float
) -> Matrix:
    """TensorFlow's ``linear_to_mel_weight_matrix``; mel(f) = 1127 ln(1 + f / 700 Hz).

    Given TensorFlow's logarithms it is equal bit by bit; the other rounding moves single weights by
    up to 9e-5.

    Returns:
        float32 [fft_size / 2 + 1, bins]; row 0 (DC) is zero.
    """
    hertz = np.linspace(0.0, sample_rate / 2, fft_size // 2 + 1).astype(np.float32)[1:]
    mel = _mel(hertz)[:, np.newaxis]
    low, high = _mel(np.array([low_hz, high_hz], np.float32))
    steps = np.arange(bins + 2, dtype=np.float32)
    edges = low + (high - low) / np.float32(bins + 1) * steps
    return np.concatenate([np.zeros((1, bins), np.float32), _triangles(mel, edges)])


def _mel(hertz: Matrix) -> Matrix:
    ratio = np.float32(1.0) + hertz / np.float32(700.0)
    return np.float32(1127.0) * np.log(ratio.astype(np.float64)).astype(np.float32)


def mel_triangles_in_hz(
    *, sample_rate: int, fft_size: int, bins: int, low_hz: float, high_hz: float
) -> Matrix:
    """What torchaudio's ``melscale_fbanks`` gives without norm; mel(f) = 2595 log10(1 + f / 700).

    Returns:
        float32 [fft_size / 2 + 1, bins].
    """
    low, high = (2595.0 * math.log10(1.0 + hertz / 700.0) for hertz in (low_hz, high_hz))
    mel = _linspace(low, high, bins + 2) / np.float32(2595.0)
    powers = np.power(10.0, mel.astype(np.float64)).astype(np.float32)
    edges = np.float32(700.0) * (powers - np.float32(1.0))
    hertz = _linspace(0.0, sample_rate // 2, fft_size // 2 + 1)
    return _triangles(hertz[:, np.newaxis], edges)


def _linspace(start: float, stop: float, count: int) -> Matrix:
    """As torch.linspace: float32 steps, counted from the nearer end."""
    first, last = np.float32(start), np.float32(stop)
    step = (last - first) / np.float32(count - 1)
    index = np.arange(count, dtype=np.float32)
    from_end = last - step * (np.float32(count - 1) - index)
    return np.where(index < count // 2, first + step * index, from_end)


def _triangles(positions: Matrix, edges: Matrix) -> Matrix:
    """Weights at ``positions`` [n, 1] of triangles between ``edges`` [m + 2]: [n, m]."""
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (positions - left) / (centre - left)
    falling = (right - positions) / (right - centre)
    return np.maximum(np.minimum(rising, falling), np.float32(0.0))


class Band(NamedTuple):
    """Neighbouring filters and the frequencies they touch."""

    rows: slice
    filters: slice
    weights: Matrix


def split_bands(matrix: Matrix) -> list[Band]:
    """Cuts a filter bank [frequencies, filters] into bands, without the zeros around each."""
    bands = []
    for first in range(0, matrix.shape[1], _BAND_FILTERS):
        filters = slice(first, min(first + _BAND_FILTERS, matrix.shape[1]))
        used = np.flatnonzero(matrix[:, filters].any(axis=1))
        rows = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)
        bands.append(Band(rows, filters, np.ascontiguousarray(matrix[rows, filters])))
    return bands
