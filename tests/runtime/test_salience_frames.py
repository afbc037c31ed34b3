"""Salience frames: cheaper ways to the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_runtime.audio.log_mel import FeatureConfig, FeatureExtractor
from mt3_runtime.audio.segments import SegmentConfig, cut
from mt3_runtime.errors import OptionError
from mt3_runtime.leakage.harmonics import LOW_PITCH, LOWEST, SURROUNDINGS, surroundings
from mt3_runtime.leakage.partials import (
    CLEAR,
    LOW_CLEAR,
    LOW_PARTIALS,
    PARTIALS,
    PIANO,
    TUNING,
    PitchClarity,
)
from mt3_runtime.leakage.salience_frames import SalienceSpectra
from mt3_runtime.reading import ReadingPlan
from mt3_runtime.reading.reading_plan import read_parts
from tests.sounds import tune


def levels(rows: int, count: int) -> np.ndarray:
    return (np.random.default_rng(count).standard_normal((rows, count)) * 2 - 3).astype(np.float32)


@pytest.mark.parametrize("count", [15, 16, 30, 64, 384, 896])
def test_surroundings_are_differences_of_sums(count):
    level = levels(7, count)
    sums = np.concatenate([np.zeros((7, 1)), np.cumsum(level, axis=1, dtype=np.float64)], axis=1)
    for place in range(count):
        first = min(max(place - SURROUNDINGS, LOWEST), count - 1)
        last = min(max(place + SURROUNDINGS + 1, LOWEST + SURROUNDINGS), count)
        expected = ((sums[:, last] - sums[:, first]) / (last - first)).astype(np.float32)
        assert np.array_equal(surroundings(level)[:, place], expected)


@pytest.mark.parametrize(("spacing", "used"), [(7.8125, 896), (7.8125, 64), (10.77, 650)])
def test_clarity_pitch_by_pitch(spacing, used):
    level = levels(5, used)
    around = surroundings(level)
    found = PitchClarity(spacing, used)(level, around)
    for pitch in range(PIANO[0], PIANO[1] + 1):
        low = pitch < LOW_PITCH
        prominence = []
        for number in range(1, (LOW_PARTIALS if low else PARTIALS) + 1):
            centre = number * (440.0 * 2.0 ** ((pitch - 69) / 12)) / spacing
            reach = max(1.0, centre * TUNING)
            if not low and np.ceil(centre + reach) + 1 >= used:
                continue
            first = int(min(np.floor(centre - reach), used - 2))
            end = max(int(min(np.ceil(centre + reach) + 1, used - 1)), first + 1)
            peak = level[:, first:end].max(axis=1)
            prominence.append(peak - around[:, min(round(centre), used - 1)])
        ranked = np.sort(np.array(prominence).reshape(len(prominence), 5), axis=0)
        if low:
            expected = ranked.mean(axis=0) / LOW_CLEAR
        elif len(ranked):
            expected = (ranked[-1] + ranked[max(len(ranked) - 2, 0)]) / (2.0 * CLEAR)
        else:
            expected = np.full(5, -np.inf)
        assert np.allclose(found[:, pitch - PIANO[0]], expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("seconds", [0.1, 2.048, 2.2, 9.7])
def test_spectra_of_features_are_those_of_salience(seconds):
    audio = tune(seconds, 16000)[:, 0]
    segments, config = SegmentConfig(), FeatureConfig()
    parts = [*read_parts([audio], ReadingPlan(16000, segments, config, salience=True))]
    alone = SalienceSpectra(16000).hear(audio)
    for field in ("clarity", "power", "level", "tones", "amplitudes"):
        joined = np.concatenate([getattr(part.salience, field) for part in parts])
        assert np.array_equal(joined, getattr(alone, field)), field
    assert parts[-1].salience.samples == alone.samples == sum(part.samples for part in parts)
    extract = FeatureExtractor(config)
    for part, segment in zip(parts, cut([audio], segments), strict=True):
        assert np.array_equal(part.data, extract(segment.samples))


def test_other_features_share_nothing():
    spectra = SalienceSpectra(16000)
    assert spectra.shares(FeatureConfig(), 32768)
    assert not spectra.shares(FeatureConfig(), 32767)
    assert not spectra.shares(FeatureConfig.yourmt3_mel(), 32768)
    assert not spectra.shares(FeatureConfig(hop=100), 32768)


def test_plans_that_make_no_sense():
    with pytest.raises(OptionError, match="segments="):
        ReadingPlan(features=FeatureConfig())
    with pytest.raises(OptionError, match="one rate"):
        ReadingPlan(8000, SegmentConfig())
