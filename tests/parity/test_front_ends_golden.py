"""YourMT3's and MR-MT3's features against values of their own code (see recipes/front_ends.py).

A tolerance is twice the rounding noise of the original on the same signal, as the golden has it:
two float32 implementations err independently.  Where there are filters, ours add to that, because
a power of ten that is rounded otherwise moves the edge of a triangle.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mt3_runtime.audio.log_mel import FeatureConfig, FeatureExtractor, filter_matrix
from mt3_runtime.audio.sources import load_audio
from tests.parity.recipes.front_ends import FULL, GOLDEN, SIGNALS, STRIDE, partial
from tests.parity.recipes.log_mel import RECORDING, RECORDING_SEGMENT

EXTRACTORS = {name: FeatureExtractor(getattr(FeatureConfig, name)()) for name in FULL}
FILTER_NOISE = {
    "mr_mt3": np.array([1.4e-5, 1.7e-7]),
    "yourmt3_mel": np.array([1.8e-4, 9.3e-7]),
    "yourmt3_linear": np.zeros(2),
}
"""By how much our features with our filters differ from ours with torchaudio's on these signals, at
most (in one bin, which a filter of YourMT3 hardly touches) and on average."""


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def compare(golden, front_end, signal, samples):
    key, expected = f"{front_end}.{signal}", golden[f"{front_end}.{signal}"]
    features = EXTRACTORS[front_end](samples)
    difference = features.reshape(-1)[::STRIDE] - expected
    worst, average = 2 * golden[f"{key}_noise"] + FILTER_NOISE[front_end]
    assert np.abs(difference).max() <= worst
    assert abs(features.mean(dtype=np.float64) - golden[f"{key}_mean"]) <= worst / 5
    if EXTRACTORS[front_end].config.scaling == "segment":
        # The segment's minimum is one bin, whose noise moves all others with it, low ones most.
        moved = 1 - expected
        difference -= moved * difference.mean() / moved.mean()
    assert np.abs(difference).mean() <= average


@pytest.mark.parametrize("front_end", FULL)
@pytest.mark.parametrize("signal", SIGNALS)
def test_full_segments(golden, front_end, signal):
    compare(golden, front_end, signal, SIGNALS[signal]()[: FULL[front_end]])


@pytest.mark.parametrize("front_end", FULL)
def test_the_end_of_a_recording(golden, front_end):
    compare(golden, front_end, "partial", partial(front_end))


@pytest.mark.parametrize("front_end", FULL)
def test_real_recording(golden, front_end, shared: Path):
    samples = load_audio(shared / "audio" / RECORDING)[RECORDING_SEGMENT]
    compare(golden, front_end, "recording", samples[: FULL[front_end]])


@pytest.mark.parametrize("front_end", ["mr_mt3", "yourmt3_mel"])
def test_filters_are_torchaudios_up_to_its_powers(golden, front_end):
    ours = filter_matrix(EXTRACTORS[front_end].config)
    theirs = golden[f"{front_end}.filters"]
    assert np.array_equal(ours.reshape(-1)[::STRIDE] > 0, theirs > 0)
    assert np.abs(ours.reshape(-1)[::STRIDE] - theirs).max() < 1e-4
