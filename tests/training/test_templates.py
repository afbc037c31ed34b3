"""Templates recognise what they are made for, in the runtime's own features."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_runtime.audio.log_mel import FeatureConfig, FeatureExtractor
from mt3_training.networks.templates import band_templates, pitch_templates

CONFIG = FeatureConfig(frames=32)
FIRST, COUNT = 21, 88


def tone(pitch: int, level: float = 0.1) -> np.ndarray:
    """Six fading partials over a little noise."""
    time = np.arange(CONFIG.frames * CONFIG.hop) / CONFIG.sample_rate
    hertz = 440.0 * 2 ** ((pitch - 69) / 12)
    partials = [0.7**n * np.sin(2 * np.pi * n * hertz * time + n) for n in range(1, 7)]
    noise = 1e-4 * np.random.default_rng(pitch).standard_normal(len(time))
    return (level * sum(partials) + noise).astype(np.float32)


@pytest.mark.parametrize("pitch", [40, 52, 60, 67, 76, 88])
def test_a_tone_is_recognised_by_its_own_template(pitch):
    heard = FeatureExtractor(CONFIG)(tone(pitch))[8] @ pitch_templates(CONFIG, FIRST, COUNT)
    assert FIRST + int(heard.argmax()) == pitch


def test_templates_do_not_hear_how_loud_it_is():
    templates = pitch_templates(CONFIG, FIRST, COUNT)
    sounding = np.abs(templates).sum(axis=0) > 0
    assert sounding.all()
    np.testing.assert_allclose(templates.sum(axis=0), 0.0, atol=1e-6)
    # A twentieth of a logarithm is what the noise floor leaves of a tenth of the level.
    quiet, loud = (FeatureExtractor(CONFIG)(tone(67, level))[8] @ templates for level in (0.1, 0.2))
    assert abs(quiet[67 - FIRST] - loud[67 - FIRST]) < 0.5 < loud[67 - FIRST]


def test_bands_tell_low_noises_from_high_ones():
    rng = np.random.default_rng(0)
    high = rng.standard_normal(CONFIG.frames * CONFIG.hop)
    low = np.convolve(high, np.ones(64) / 64, "same")
    templates = band_templates(CONFIG, 24)
    heard = [FeatureExtractor(CONFIG)(x.astype(np.float32))[8] @ templates for x in (low, high)]
    assert heard[0][0] > heard[1][0]
    assert heard[0][-1] < heard[1][-1]
    np.testing.assert_allclose(templates.sum(axis=0), (1 - 0.8) / 3, atol=1e-5)
