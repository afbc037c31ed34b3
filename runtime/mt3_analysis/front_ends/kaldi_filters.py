"""Kaldi's log filter bank as audio spectrogram transformers read it.

Every frame loses its mean, is pre-emphasised (its first sample counts as its own predecessor),
windowed with a symmetric Hann window, filled up and transformed; mel triangles are straight on the
mel axis.  Filters that contain no frequency give the logarithm of the floor: -15.94.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.filter_bank import mel_triangles_in_mel
from mt3_runtime.bundles.classifier import KaldiConfig

Floats = npt.NDArray[np.float32]

#: float32's machine epsilon: the smallest energy, in place of silence.
FLOOR = np.float32(1.1920928955078125e-07)

#: Frames that are transformed at once: 1 MB of spectra.
_BATCH = 512


def kaldi_filters(samples: Floats, config: KaldiConfig) -> Floats:
    """Log energies of mel filters.

    Args:
        samples: Mono float32 [n], -1 to 1.
        config: Sizes and frequencies; its ``frames``, ``mean`` and ``divisor`` play no part.

    Returns:
        float32 [frames, bins]; frames = 1 + (n - frame) // hop, none where n < frame.
    """
    if len(samples) < config.frame:
        return np.zeros((0, config.bins), np.float32)
    window, filters = _tables(config)
    frames = np.lib.stride_tricks.sliding_window_view(samples, config.frame)[:: config.hop]
    found = np.empty((len(frames), config.bins), np.float32)
    for first in range(0, len(frames), _BATCH):
        part: Floats = frames[first : first + _BATCH].astype(np.float32)
        part -= part.mean(axis=1, keepdims=True)
        shifted = np.concatenate([part[:, :1], part[:, :-1]], axis=1)
        part -= np.float32(config.pre_emphasis) * shifted
        spectrum = np.fft.rfft(part * window, config.fft, axis=1)
        energy = np.square(np.abs(spectrum)) @ filters
        found[first : first + len(part)] = np.log(np.maximum(energy, FLOOR))
    return found


def kaldi_features(samples: Floats, config: KaldiConfig) -> Floats:
    """Normalised log energies of one window.

    What is too long is cut; what is too short is filled up with zeros before normalisation, as the
    original does, so that the end of a short recording is 0.467 and not silence.

    Returns:
        float32 [config.frames, bins].
    """
    found = kaldi_filters(samples, config)[: config.frames]
    filled = np.zeros((config.frames, config.bins), np.float32)
    filled[: len(found)] = found
    return (filled - np.float32(config.mean)) / np.float32(config.divisor)


@functools.cache
def _tables(config: KaldiConfig) -> tuple[Floats, Floats]:
    """Window [frame] and filters [fft / 2 + 1, bins]."""
    phase = 2.0 * np.pi * np.arange(config.frame) / (config.frame - 1)
    window = (0.5 - 0.5 * np.cos(phase)).astype(np.float32)
    filters = mel_triangles_in_mel(
        sample_rate=config.sample_rate,
        fft_size=config.fft,
        bins=config.bins,
        low_hz=config.low_hz,
        high_hz=config.high_hz,
    )
    return window, filters
