"""Makes the features of a window, in whichever of the three ways a bundle names.

Contract: `features_of` is a pure function of samples and a manifest's front end.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mt3_analysis.front_ends.kaldi_filters import kaldi_features
from mt3_runtime.bundles.classifier import FrontEnd, KaldiConfig, MagnitudeConfig

Floats = npt.NDArray[np.float32]

#: Added to the variance of samples that are normalised, as the original does.
_VARIANCE_FLOOR = 1e-7


def features_of(samples: Floats, front_end: FrontEnd) -> Floats:
    """Features of one window.

    Args:
        samples: Mono float32 [n] at the front end's rate.
        front_end: The manifest's.

    Returns:
        float32 [frames, bins] of filter banks and magnitudes; [n] of samples.
    """
    config = front_end.chosen
    if isinstance(config, KaldiConfig):
        return kaldi_features(samples, config)
    if isinstance(config, MagnitudeConfig):
        return magnitudes(samples, config)
    return normalised(samples) if config.normalise else samples


def normalised(samples: Floats) -> Floats:
    """Samples of mean 0 and variance 1; silence stays silence."""
    found: Floats = (samples - samples.mean()) / np.sqrt(samples.var() + _VARIANCE_FLOOR)
    return found.astype(np.float32)


def magnitudes(samples: Floats, config: MagnitudeConfig) -> Floats:
    """Magnitudes of a short-time Fourier transform of a window; what it lacks is silence.

    Transformed in float64, as TensorFlow Lite does: an 8-bit network behind it turns the smallest
    difference into a step now and then.

    Returns:
        float32 [config.frames, fft / 2 + 1].
    """
    length = (config.frames - 1) * config.hop + config.frame
    filled = np.zeros(length, np.float32)
    filled[: len(samples)] = samples[:length]
    frames = np.lib.stride_tricks.sliding_window_view(filled, config.frame)[:: config.hop]
    windowed = frames * np.array(config.taper, np.float32)
    spectrum = np.fft.rfft(windowed.astype(np.float64), config.fft, axis=1)
    return np.abs(spectrum.astype(np.complex64))
