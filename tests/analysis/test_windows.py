"""Windows of long recordings, scores of logits, front ends at their bounds."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt3_analysis.front_ends.feature_makers import features_of
from mt3_analysis.front_ends.kaldi_filters import kaldi_filters
from mt3_analysis.networks.classifier_session import open_classifier, probability, share
from mt3_analysis.networks.windows import cut_windows
from mt3_export.classifiers.classifier_writer import export_classifier
from mt3_runtime.bundles.classifier import (
    FrontEnd,
    KaldiConfig,
    MagnitudeConfig,
    WaveConfig,
    WindowSpec,
)
from tests.classifier_networks import ast_folder, wave_folder

KALDI = KaldiConfig(16000, 400, 160, 512, 128, 20.0, 8000.0, 0.97, 1024, -4.2677393, 9.1379948)
TAPER = tuple(map(float, np.hanning(400)))


@given(
    total=st.integers(0, 300),
    samples=st.integers(1, 60),
    hop=st.integers(1, 60),
    shortest=st.integers(1, 60),
    pieces=st.lists(st.integers(0, 50), max_size=20),
)
def test_windows_cover_everything_once_and_do_not_depend_on_blocks(
    total, samples, hop, shortest, pieces
):
    spec = WindowSpec(samples, min(hop, samples), min(shortest, samples))
    audio = np.arange(1, total + 1, dtype=np.float32)
    ends = np.cumsum(pieces)
    blocks = np.split(audio, ends[ends < total])
    windows = list(cut_windows(blocks, spec))
    whole = list(cut_windows([audio], spec))
    assert [w.start for w in windows] == [w.start for w in whole]
    heard = set()
    for window in windows:
        expected = audio[window.start : window.start + spec.samples]
        assert np.array_equal(window.samples, expected)
        assert len(window.samples) >= spec.shortest
        assert set(window.samples) - heard
        heard |= set(window.samples)
    missing = total - len(heard)
    assert missing < spec.shortest


def test_memory_does_not_depend_on_the_length():
    def blocks(number):
        for _ in range(number):
            yield np.ones(16000, np.float32)

    def peak(number):
        tracemalloc.start()
        count = sum(1 for _ in cut_windows(blocks(number), WindowSpec(164080, 163840, 400)))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return count, found

    (few, short), (many, long) = peak(30), peak(600)
    assert (few, many) == (3, 59)
    assert long < 1.2 * short


@pytest.mark.parametrize(
    ("samples", "frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (164080, 1024)]
)
def test_only_whole_frames_are_made(samples, frames):
    assert kaldi_filters(np.ones(samples, np.float32), KALDI).shape == (frames, 128)


def test_silence_is_the_floor_and_filling_is_not():
    found = features_of(np.zeros(16000, np.float32), FrontEnd(kaldi=KALDI))
    assert found.shape == (1024, 128)
    assert found[97, 5] == pytest.approx((np.log(2.0**-23) + 4.2677393) / 9.1379948, abs=1e-6)
    assert found[98:].max() == found[98:].min() == pytest.approx(0.467, abs=1e-3)


def test_normalised_samples_have_no_level():
    front_end = FrontEnd(wave=WaveConfig(16000, normalise=True))
    audio = np.sin(np.arange(8000) / 9).astype(np.float32)
    one, other = (features_of(gain * audio + 0.1, front_end) for gain in (0.1, 0.7))
    assert np.abs(one - other).max() < 1e-3
    assert one.std() == pytest.approx(1.0, abs=1e-4)
    assert np.isfinite(features_of(np.zeros(800, np.float32), front_end)).all()


def test_magnitudes_of_a_tone_stand_where_it_is():
    config = MagnitudeConfig(16000, 400, 160, 512, 96, TAPER)
    tone = np.sin(2 * np.pi * 1000 * np.arange(9000) / 16000).astype(np.float32)
    found = features_of(tone, FrontEnd(magnitude=config))
    assert found.shape == (96, 257)
    assert (found[:53].argmax(axis=1) == 32).all()
    assert found[57:].max() == 0.0


def test_share_and_probability():
    logits = np.array([[0.0, np.log(3.0)], [-800.0, 800.0]], np.float32)
    assert share(logits) == pytest.approx(np.array([[0.25, 0.75], [0.0, 1.0]]))
    assert probability(logits) == pytest.approx(np.array([[0.5, 0.75], [0.0, 1.0]]))


def test_silent_windows_are_not_run(tmp_path, audio):
    export_classifier(ast_folder(tmp_path / "s"), tmp_path / "b", name="tiny")
    classifier = open_classifier(tmp_path / "b", threads=1)
    blocks = [np.zeros(164080, np.float32), audio]
    rows = list(classifier.hear(blocks))
    assert [row.logits is None for row in rows] == [True, False]
    assert rows[1].start == 10.24
    assert rows[1].end == pytest.approx(10.255 + len(audio) / 16000)
    assert list(classifier.hear([])) == []


def test_stored_halves_change_little(tmp_path, audio):
    source = wave_folder(tmp_path / "s")
    for storage in ("fp16", "fp32"):
        export_classifier(source, tmp_path / storage, name="tiny", storage=storage)
    half, full = (open_classifier(tmp_path / s, threads=1).logits(audio) for s in ("fp16", "fp32"))
    assert 0 < np.abs(share(half) - share(full)).max() < 2e-3
