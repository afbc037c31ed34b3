"""The log-mel spectrogram MT3 was trained on, in numpy alone.

Contract: :class:`LogMel` maps the samples of ONE segment to float32 [frames, bins].  Frame i sees
samples [i * hop, i * hop + fft_size) of that segment, zeros beyond its end and nothing of the next
segment, so the last 15 frames of every segment fade out; computing one long spectrogram and slicing
it would give other values.  Rows after the audio are exactly 0.0, which is *not* silence (silence
is ln 1e-5 = -11.5): the network was trained on that.

Values follow the TensorFlow operation of the original: periodic Hann window, magnitude (not power),
triangles linear in mel (not in Hz), no area normalisation, top edge 7600 Hz (not the Nyquist
frequency), natural logarithm with a floor for exact zeros only.  The filter bank is evaluated in
float32 because TensorFlow does so; float64 would be further from what the weights have seen.

A segment of 2 s costs one core 1.4 ms, nearly all of it the FFT.  Each filter touches at most ten
frequency bins, so the filter bank is applied in bands: small products that OpenBLAS runs in the
calling thread, where one large product would wake its thread pool beside the network's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import OptionError
from mt3_runtime.schema import read_fields

_MEL_SCALE = np.float32(1127.0)
"""HTK mel scale: mel(f) = 1127 ln(1 + f / 700 Hz)."""

_MEL_CORNER = np.float32(700.0)

_MAX_SIZE, _MAX_RATE = 1 << 14, 1 << 20
"""Bounds of the configured sizes and rate: they become allocations, and come from a file."""

_BAND_FILTERS = 16
"""Filters per band.  32 bands of 16 need 1/32 of the multiplications of the whole matrix."""

_CHUNK_FRAMES = 64
"""Frames worked on at once: the scratch stays in the L2 cache (twice as fast as 256), and the
largest band product, 64 x 82 x 16, below the 2**18 multiplications that OpenBLAS spreads over
threads."""


@dataclass(frozen=True)
class LogMelConfig:
    """Parameters of the spectrogram; the defaults are Magenta's ``mt3`` model.

    Attributes:
        sample_rate: [Hz].
        frames: Rows of the result, the length of a full segment in hops.
        hop: Samples between frames.
        fft_size: Length of window and FFT, in samples.
        bins: Number of mel filters.
        low_hz: Lower edge of the first filter [Hz].
        high_hz: Upper edge of the last filter [Hz].
        floor: Takes the place of filter outputs that are exactly zero, before the logarithm.
    """

    sample_rate: int = 16000
    frames: int = 256
    hop: int = 128
    fft_size: int = 2048
    bins: int = 512
    low_hz: float = 20.0
    high_hz: float = 7600.0
    floor: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("sample_rate", "frames", "hop", "fft_size", "bins"):
            value = getattr(self, name)
            limit = _MAX_RATE if name == "sample_rate" else _MAX_SIZE
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
                raise OptionError(
                    f"{name} of log-mel is {value!r}; expected a whole number from 1 to {limit}."
                )
        for name in ("low_hz", "high_hz", "floor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise OptionError(f"{name} of log-mel is {value!r}; expected a number.")
        if self.fft_size % 2:
            raise OptionError(f"fft_size of log-mel is {self.fft_size}; expected an even number.")
        if not 0.0 <= self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise OptionError(
                f"log-mel edges are {self.low_hz} and {self.high_hz} Hz; expected "
                f"0 <= low_hz < high_hz <= {self.sample_rate / 2:g}."
            )
        if not 0.0 < self.floor < math.inf:
            raise OptionError(f"floor of log-mel is {self.floor}; expected a positive number.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LogMelConfig:
        """Inverse of :meth:`to_dict`; unknown or missing keys raise `BundleError`."""
        return read_fields(cls, data, "features")


class LogMel:
    """Log-mel spectrogram of single segments.  Immutable after construction, hence thread-safe.

    Attributes:
        config: What it was built from.
    """

    def __init__(self, config: LogMelConfig | None = None) -> None:
        self.config = config or LogMelConfig()
        self._window = hann_window(self.config.fft_size)
        self._bands = _bands(mel_matrix(self.config))

    def __call__(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Compute the features of one segment.

        Args:
            samples: float32 [n], mono at ``config.sample_rate``, 1 <= n <= frames * hop, without
                padding other than what belongs to the segment.

        Returns:
            float32 [frames, bins]; rows from ceil(n / hop) on are exactly 0.0.

        Raises:
            OptionError: ``samples`` has another type, shape or length.
        """
        config = self.config
        if samples.dtype != np.float32 or samples.ndim != 1:
            raise OptionError(
                f"A segment is {samples.dtype} of shape {samples.shape}; expected float32 [n]."
            )
        if not 1 <= len(samples) <= config.frames * config.hop:
            raise OptionError(
                f"A segment has {len(samples)} samples; expected 1 to {config.frames * config.hop}."
            )
        valid = -(-len(samples) // config.hop)
        padded = np.zeros((valid - 1) * config.hop + config.fft_size, np.float32)
        padded[: len(samples)] = samples[: len(padded)]
        frames = np.lib.stride_tricks.sliding_window_view(padded, config.fft_size)[:: config.hop]
        features = np.zeros((config.frames, config.bins), np.float32)
        for start in range(0, valid, _CHUNK_FRAMES):
            stop = min(start + _CHUNK_FRAMES, valid)
            self._log_mel(frames[start:stop], features[start:stop])
        return features

    def _log_mel(self, frames: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
        """Fill ``out`` [k, bins] from ``frames`` [k, fft_size]."""
        magnitude = np.abs(np.fft.rfft(frames * self._window))
        for band in self._bands:
            np.matmul(magnitude[:, band.rows], band.weights, out=out[:, band.filters])
        np.copyto(out, np.float32(self.config.floor), where=out <= 0.0)
        np.log(out, out=out)


def hann_window(size: int) -> npt.NDArray[np.float32]:
    """Periodic Hann window: 0.5 - 0.5 cos(2 pi j / size), float32 [size].

    The phase is rounded to float32 as TensorFlow does, the cosine correctly rounded; nine of ten
    values equal TensorFlow's bit by bit, the others differ in the last place.
    """
    phase = np.float32(2.0 * np.pi) * np.arange(size, dtype=np.float32) / np.float32(size)
    half = np.float32(0.5)
    return half - half * np.cos(phase.astype(np.float64)).astype(np.float32)


def mel_matrix(config: LogMelConfig) -> npt.NDArray[np.float32]:
    """Filter bank, float32 [fft_size / 2 + 1, bins]; row 0 (DC) is zero.

    Every step is float32, in the order TensorFlow's ``linear_to_mel_weight_matrix`` rounds in;
    given TensorFlow's logarithms it is equal bit by bit.  The logarithm here is the correctly
    rounded one, the same on every machine; TensorFlow's is one unit in the last place off for a
    tenth of the arguments, which moves single weights by up to 9e-5.
    """
    one = np.float32(1.0)
    count = config.fft_size // 2
    hertz = np.linspace(0.0, config.sample_rate / 2, count + 1).astype(np.float32)[1:]
    mel = _mel(hertz)[:, np.newaxis]
    low, high = _mel(np.array([config.low_hz, config.high_hz], np.float32))
    steps = np.arange(config.bins + 2, dtype=np.float32)
    edges = low + (high - low) / np.float32(config.bins + 1) * steps
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (mel - left) / (centre - left)
    falling = (right - mel) / (right - centre)
    weights = np.maximum(np.minimum(rising, falling), one - one)
    return np.concatenate([np.zeros((1, config.bins), np.float32), weights])


def _mel(hertz: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    ratio = np.float32(1.0) + hertz / _MEL_CORNER
    return _MEL_SCALE * np.log(ratio.astype(np.float64)).astype(np.float32)


class _Band(NamedTuple):
    """Neighbouring filters and the frequency bins they touch."""

    rows: slice
    filters: slice
    weights: npt.NDArray[np.float32]


def _bands(matrix: npt.NDArray[np.float32]) -> list[_Band]:
    bands = []
    for first in range(0, matrix.shape[1], _BAND_FILTERS):
        filters = slice(first, min(first + _BAND_FILTERS, matrix.shape[1]))
        used = np.flatnonzero(matrix[:, filters].any(axis=1))
        rows = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)
        bands.append(_Band(rows, filters, np.ascontiguousarray(matrix[rows, filters])))
    return bands
