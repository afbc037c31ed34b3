"""mt3-infer's features and leakage rules against its own code; see recipes/mt3_infer_goldens.py."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_runtime.audio.log_mel import FeatureConfig, FeatureExtractor
from mt3_runtime.leakage.leakage_report import classic
from mt3_runtime.notes.note import Note
from tests.parity.recipes.mt3_infer_goldens import (
    ACTIONS,
    GOLDEN,
    PLAYERS,
    SIGNALS,
    STRIDE,
    counts,
)

#: By how much our features with our filters differ from ours with torchaudio's, at most and on
#: average: a power of ten that is rounded otherwise moves the edge of a triangle, and of 512 up to
#: 8 kHz some touch a single frequency.
FILTER_NOISE = np.array([5.6e-4, 5.9e-6])


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("signal", SIGNALS)
def test_features(golden, signal):
    """Within twice the rounding noise of the original: two float32 programs err independently."""
    features = FeatureExtractor(FeatureConfig.mt3_infer())(SIGNALS[signal]()[:32768])
    difference = np.abs(features.reshape(-1)[::STRIDE] - golden[signal])
    worst, average = 2 * golden[f"{signal}_noise"] + FILTER_NOISE
    assert difference.max() <= worst
    assert difference.mean() <= average
    assert golden[f"{signal}_rest"] == 0.0  # the row that we leave out says nothing


def test_classic_rules(golden):
    """All files of up to seven drums, basses, chromatic percussions and pianos."""
    found = []
    for numbers in counts():
        notes = [
            Note(float(k), k + 0.5, 60, 90, program, is_drum=channel == 9)
            for (channel, program), number in zip(PLAYERS, numbers, strict=True)
            for k in range(number)
        ]
        kept, report = classic(notes)
        if report.moved:
            found.append(ACTIONS.index("all to drums"))
            assert all(note.is_drum for note in kept)
            assert len(kept) == len(notes)
        else:
            found.append(ACTIONS.index("drums only" if report.removed else "nothing"))
            assert len(kept) == (numbers[0] if report.removed else len(notes))
    expected = golden["actions"].reshape(-1)
    # mt3-infer also rebuilds files in which it finds drums and nothing else.
    alone = np.array([not any(numbers[1:]) for numbers in counts()])
    assert np.array_equal(np.array(found)[~alone], expected[~alone])
    assert not np.any(np.array(found)[alone])
