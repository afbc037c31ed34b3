"""Our log-mel against values of Magenta's own TensorFlow operation (see recipes/log_mel.py).

Bins below 1e-4 of their frame's peak are left out where said so: there the rounding noise of the
FFT decides, and any two FFT libraries differ by whole nats.
"""

from __future__ import annotations

import numpy as np
import pytest

from mt3_runtime.audio import log_mel as features
from mt3_runtime.audio.log_mel import FeatureConfig, FeatureExtractor, filter_matrix
from mt3_runtime.audio.sources import load_audio
from tests.parity.recipes.log_mel import GOLDEN, RECORDING, RECORDING_SEGMENT, SIGNALS, STRIDE

FLOOR = np.log(np.float32(1e-5))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def compare(log_mel, samples, golden, name):
    """Differences at the stored positions, and which of them are well above FFT noise."""
    rows = log_mel(samples)[: -(-len(samples) // log_mel.config.hop)]
    audible = rows > rows.max(axis=1, keepdims=True) + np.log(1e-4)
    difference = np.abs(rows.reshape(-1)[::STRIDE] - golden[name])
    assert rows.mean(dtype=np.float64) == pytest.approx(float(golden[f"{name}_mean"]), abs=1e-6)
    return difference, audible.reshape(-1)[::STRIDE]


@pytest.mark.parametrize("name", SIGNALS)
def test_broadband_signals(golden, name):
    difference, audible = compare(FeatureExtractor(), SIGNALS[name](), golden, name)
    silent = np.abs(golden[name] - FLOOR) < 2e-6
    assert (audible | silent).all()
    assert difference[silent].max() < 2e-6
    assert difference.max() < 2e-4
    assert difference.mean() < 1e-5


def test_real_recording(golden, shared):
    path = shared / "audio" / RECORDING
    difference, audible = compare(
        FeatureExtractor(), load_audio(path)[RECORDING_SEGMENT], golden, "recording"
    )
    assert audible.mean() > 0.95
    assert difference[audible].max() < 2e-4
    assert difference.mean() < 1e-5


def test_filter_bank_is_tensorflows_up_to_its_logarithm(golden):
    matrix = filter_matrix(FeatureConfig())
    theirs = np.zeros_like(matrix)
    theirs[golden["mel_rows"], golden["mel_columns"]] = golden["mel_weights"]
    assert np.array_equal(matrix != 0, theirs != 0)
    assert np.abs(matrix - theirs).max() < 1e-4
    assert np.count_nonzero(matrix != theirs) <= 200


@pytest.mark.parametrize("name", SIGNALS)
def test_with_tensorflows_filter_bank_only_rounding_remains(golden, name, monkeypatch):
    theirs = np.zeros((1025, 512), np.float32)
    theirs[golden["mel_rows"], golden["mel_columns"]] = golden["mel_weights"]
    monkeypatch.setattr(features, "filter_matrix", lambda config: theirs)
    difference, _ = compare(FeatureExtractor(), SIGNALS[name](), golden, name)
    assert difference.max() < 7e-5
    assert difference.mean() < 1e-6
