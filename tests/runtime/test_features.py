from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.errors import BundleError, OptionError
from mt3_runtime.features import LogMel, LogMelConfig, hann_window, mel_matrix

MT3 = LogMelConfig()
LOG_MEL = LogMel()
SILENCE = np.float32(np.log(1e-5))


def noise(n, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, n).astype(np.float32)


def slow_log_mel(samples, config=MT3):
    """The definition in float64, with this module's own window and filters."""
    padded = np.concatenate([samples, np.zeros(config.fft_size)])
    starts = range(0, len(samples), config.hop)
    frames = np.stack([padded[start:][: config.fft_size] for start in starts])
    spectrum = np.fft.rfft(frames * hann_window(config.fft_size).astype(np.float64))
    mel = np.abs(spectrum) @ mel_matrix(config).astype(np.float64)
    out = np.zeros((config.frames, config.bins))
    out[: len(frames)] = np.log(np.where(mel <= 0, config.floor, mel))
    return out


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 32768), st.integers(0, 100))
def test_equals_the_definition(n, seed):
    samples = noise(n, seed)
    features, expected = LOG_MEL(samples), slow_log_mel(samples)
    assert features.dtype == np.float32
    assert features.shape == (256, 512)
    loud = expected > expected.max(axis=1, keepdims=True) + np.log(1e-4)
    assert np.abs(features - expected)[loud].max() < 2e-4
    valid = -(-n // 128)
    assert not features[valid:].any()
    assert features[:valid].any(axis=1).all()


def test_published_values_of_the_original():
    n = np.arange(32768)
    features = LOG_MEL((((7919 * n) % 2001 - 1000) / 2000).astype(np.float32))
    values = {
        (0, 0): -0.34511,
        (0, 1): -11.51293,
        (0, 2): -0.45005,
        (0, 100): -1.72097,
        (0, 300): 0.24915,
        (0, 511): 1.69626,
        (100, 50): -0.50913,
        (128, 256): 0.00888,
        (240, 400): 0.65287,
        (255, 0): -3.22663,
        (255, 511): -2.54739,
    }
    for position, value in values.items():
        assert features[position] == pytest.approx(value, abs=1.5e-4)
    assert features.mean(dtype=np.float64) == pytest.approx(0.385444, abs=2e-6)
    assert features.std(dtype=np.float64) == pytest.approx(1.482442, abs=2e-6)


def test_filter_bank():
    matrix = mel_matrix(MT3)
    assert matrix.dtype == np.float32
    assert matrix.shape == (1025, 512)
    assert np.count_nonzero(matrix) == 1934
    assert matrix.sum(dtype=np.float64) == pytest.approx(967.769, abs=1e-3)
    used = np.flatnonzero(matrix.any(axis=1))
    assert (used[0], used[-1]) == (3, 972)
    assert np.flatnonzero(~matrix.any(axis=0)).tolist() == [1, 10]
    assert np.count_nonzero(matrix, axis=0).max() == 10
    spots = {
        (3, 0): 0.99944,
        (4, 2): 0.74668,
        (4, 3): 0.25332,
        (5, 4): 0.51672,
        (253, 275): 0.52325,
        (503, 390): 0.50448,
        (972, 511): 0.15805,
    }
    for position, weight in spots.items():
        assert matrix[position] == pytest.approx(weight, abs=1e-4)


def test_products_stay_below_the_size_from_which_openblas_uses_threads():
    sizes = [64 * band.weights.size for band in LOG_MEL._bands]
    assert len(sizes) == 32
    assert max(sizes) < 2**18  # multiplications; CPU time then equals wall time


def test_filters_without_a_frequency_bin_say_silence():
    features = LOG_MEL(noise(32768))
    assert np.allclose(features[:, [1, 10]], SILENCE, rtol=0, atol=2e-6)


def test_silence_is_not_padding():
    features = LOG_MEL(np.zeros(1280, np.float32))
    assert np.allclose(features[:10], SILENCE, rtol=0, atol=2e-6)
    assert not features[10:].any()


def test_small_values_are_not_floored():
    features = LOG_MEL(noise(32768) * np.float32(1e-8))
    assert features.min() < -15


def test_frames_see_nothing_beyond_the_segment():
    samples = noise(32768)
    faded = LOG_MEL(samples[:16384])
    whole = LOG_MEL(samples)
    assert np.array_equal(faded[:113], whole[:113])  # frame 112 ends at sample 16384
    assert np.abs(faded[113:128] - whole[113:128]).max(axis=1).min() > 0.01


def test_gain_is_an_offset():
    samples = noise(32768)
    loud = [bin_ for bin_ in range(512) if bin_ not in (1, 10)]
    shift = LOG_MEL(samples * np.float32(0.5)) - LOG_MEL(samples)
    assert np.allclose(shift[:, loud], np.log(0.5), rtol=0, atol=1e-4)


def test_input_is_left_alone_and_strides_do_not_matter():
    samples = noise(65536)
    samples.flags.writeable = False
    every_other = samples[::2]
    assert np.array_equal(LOG_MEL(every_other), LOG_MEL(every_other.copy()))


def test_threads_share_one_instance():
    segments = [noise(32768 - 999 * i, seed=i) for i in range(16)]
    expected = [LOG_MEL(segment) for segment in segments]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(LOG_MEL, segments), expected, strict=True):
            assert np.array_equal(got, want)


def test_other_settings():
    config = LogMelConfig(
        sample_rate=8000, frames=70, hop=100, fft_size=600, bins=40, low_hz=0, high_hz=4000
    )
    samples = noise(6543)
    difference = np.abs(LogMel(config)(samples) - slow_log_mel(samples, config))
    assert difference.max() < 1e-4
    assert LogMel(LogMelConfig(frames=512))(noise(65536)).shape == (512, 512)


def test_hop_longer_than_the_window():
    config = LogMelConfig(frames=3, hop=4096)
    samples = noise(9000)
    assert np.abs(LogMel(config)(samples) - slow_log_mel(samples, config)).max() < 1e-3


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0, np.float32), "0 samples; expected 1 to 32768"),
        (np.zeros(32769, np.float32), "32769 samples"),
        (np.zeros(128), "float64"),
        (np.zeros((128, 1), np.float32), r"shape \(128, 1\)"),
    ],
)
def test_segments_of_another_kind(samples, message):
    with pytest.raises(OptionError, match=message):
        LOG_MEL(samples)


def test_config_survives_json():
    config = LogMelConfig(frames=512)
    assert LogMelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_from_dict_is_strict():
    with pytest.raises(BundleError, match="power"):
        LogMelConfig.from_dict(MT3.to_dict() | {"power": 2})
    with pytest.raises(BundleError, match="keys"):
        LogMelConfig.from_dict({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hop": 0}, "hop"),
        ({"bins": 1.5}, "bins"),
        ({"bins": True}, "bins"),
        ({"frames": 1 << 30}, "frames"),
        ({"fft_size": 2047}, "even"),
        ({"low_hz": "20"}, "low_hz"),
        ({"low_hz": 8000.0}, "edges"),
        ({"high_hz": 8000.5}, "edges"),
        ({"low_hz": float("nan")}, "edges"),
        ({"floor": 0.0}, "floor"),
        ({"floor": float("inf")}, "floor"),
    ],
)
def test_illegal_settings(options, message):
    with pytest.raises(OptionError, match=message):
        LogMelConfig(**options)
