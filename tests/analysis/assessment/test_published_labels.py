"""The published functions against numbers reckoned by hand from their definitions."""

import numpy as np
import pytest

from mt3_analysis.assessment.performance import Performance
from mt3_analysis.assessment.published_labels import (
    PUBLISHED,
    AudioStatistics,
    LabelInput,
    published_labels,
)

QUIET = AudioStatistics(1500.0, 30.0, 2.0, 4.0, 0.45, 120.0)


def take(gaps=None, loud=None, lengths=None, pedal=None, pitch=None):
    """100 notes, one every half second, but for what is given."""
    count = 100
    on = np.concatenate(([0.0], np.cumsum(np.full(count - 1, 0.5) if gaps is None else gaps)))
    off = on + (np.full(count, 0.4) if lengths is None else lengths)
    velocity = np.full(count, 64) if loud is None else loud
    heights = 60 + np.arange(count) % 2 if pitch is None else pitch
    pedals = None if pedal is None else {64: pedal}
    return Performance.from_arrays(on, off, pitch=heights, velocity=velocity, pedals=pedals)


def score(name, audio=None, tempi=(120.0,), **changes):
    return published_labels(LabelInput(take(**changes), tempi, audio))[name]


LOUD = np.where(np.arange(100) % 2 == 0, 40, 100)


def lengths(short, long):
    return np.where(np.arange(100) % 2 == 0, short, long)


def near(distance):
    """A pedal that moves so many seconds behind 40 notes."""
    return [(0.5 * i + distance, 127 * (i % 2)) for i in range(40)]


RARE = [*((3.0 * i, 127 * (i % 2)) for i in range(1, 21)), (60.0, 0)]


@pytest.mark.parametrize(
    ("name", "expected", "given"),
    [
        ("note_count_complexity", 90 - 5 * (100 / 49.9 - 1), {}),
        ("pitch_range_complexity", 95.0, {}),
        ("pitch_range_complexity", 85 - 0.5 * 12, {"pitch": 40 + 36 * (np.arange(100) % 2)}),
        ("pitch_range_complexity", 73 - 0.3 * 12, {"pitch": 30 + 60 * (np.arange(100) % 2)}),
        ("timing_variance", 100.0, {}),
        ("tempo_stability", 95.0, {}),
        ("tempo_stability", 85 - 100 * (0.1 - 0.05), {"tempi": (90.0, 110.0)}),
        ("tempo_stability", 75 - 50 * (0.2 - 0.15), {"tempi": (80.0, 120.0)}),
        ("tempo_stability", 67.5 - 25 * (0.5 - 0.3), {"tempi": (50.0, 150.0)}),
        ("velocity_range", 50.0, {}),
        ("velocity_range", 75 + 0.75 * 10, {"loud": LOUD}),
        ("velocity_range", 90 + 0.2 * 10, {"loud": np.where(np.arange(100) % 2 == 0, 20, 100)}),
        ("velocity_range", 60 + 0.75 * 10, {"loud": np.where(np.arange(100) % 2 == 0, 40, 80)}),
        ("velocity_smoothing", 98.0, {}),
        ("velocity_smoothing", 50.0, {"loud": LOUD}),
        ("velocity_smoothing", 75 + 2.14 * 5, {"loud": 50 + 10 * (np.arange(100) % 2)}),
        ("note_duration_variance", 55.0, {}),
        ("note_duration_variance", 95.0, {"lengths": lengths(0.1, 0.3)}),
        ("note_duration_variance", 70 + 150 * 0.05, {"lengths": lengths(0.3, 0.5)}),
        ("pedal_coherence", 70.0, {}),
        ("pedal_coherence", 85 + 0.5 * 20, {"pedal": RARE}),
        ("pedal_coherence", 55.0, {"pedal": [(0.2 * i, 127 * (i % 2)) for i in range(1, 200)]}),
        ("pedal_timing", 75.0, {}),
        ("pedal_timing", 90 + 0.33 * 10, {"pedal": near(0.02)}),
        ("pedal_timing", 75 + 0.21 * 50, {"pedal": near(0.05)}),
        ("pedal_timing", 55.0, {"pedal": near(0.25)}),
        ("phrasing_coherence", 60.0, {}),
        ("spectral_centroid", 100.0, {"audio": QUIET}),
        ("inharmonicity", 87.5, {"audio": QUIET}),
        ("attack_transients", 50.0, {"audio": QUIET}),
        ("dynamic_contour", 95.0, {"audio": QUIET}),
        ("temporal_coherence", 90.0, {"audio": QUIET}),
        ("combined_quality", (90 + 50) / 2, {"audio": QUIET}),
        ("combined_quality", (90 + 90 + 50) / 3, {"audio": QUIET, "tempi": (100.0, 101.0)}),
        ("spectral_centroid", None, {}),
        ("combined_quality", None, {}),
    ],
)  # fmt: skip
def test_scores(name, expected, given):
    found = score(name, **given)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-6))


@pytest.mark.parametrize(
    ("field", "value", "name", "expected"),
    [
        ("centroid_hz", 600.0, "spectral_centroid", 74.0),
        ("centroid_hz", 2500.0, "spectral_centroid", 80.0),
        ("centroid_hz", 4000.0, "spectral_centroid", 60.0),
        ("contrast_db", 22.0, "inharmonicity", 79.0),
        ("contrast_db", 17.0, "inharmonicity", 69.0),
        ("onset_mean", 4.0, "attack_transients", 60.0),
        ("loudness_variation", 0.25, "dynamic_contour", 77.5),
        ("loudness_variation", 0.7, "dynamic_contour", 65.0),
        ("loudness_variation", 2.0, "dynamic_contour", 60.0),
        ("onset_periodicity", 70.0, "temporal_coherence", 81.0),
        ("onset_periodicity", 10.0, "temporal_coherence", 63.0),
    ],
)
def test_scores_of_audio(field, value, name, expected):
    from dataclasses import replace

    audio = replace(QUIET, **{field: value})
    assert score(name, audio=audio) == pytest.approx(expected, abs=1e-6)


def test_timing_variance_is_taken_from_the_grid_of_the_median_gap():
    gaps = np.full(99, 0.5)
    gaps[0] = 0.52  # all later onsets lie 20 ms behind the grid
    assert score("timing_variance", gaps=gaps) == pytest.approx(80 + 0.75 * (30 - 19.8), abs=1e-6)


def test_there_are_two_for_each_of_eight_dimensions():
    assert len(PUBLISHED) == 8
    assert len(published_labels(LabelInput(take()))) == 16
    none = Performance.from_arrays([], [], pitch=[])
    assert published_labels(LabelInput(none))["note_count_complexity"] is None
