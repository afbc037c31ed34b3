from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.audio.filter_bank import hann_window
from mt3_runtime.audio.log_mel import FeatureConfig, FeatureExtractor, filter_matrix
from mt3_runtime.errors import BundleError, OptionError

MT3 = FeatureConfig()
LOG_MEL = FeatureExtractor()
EXTRACTORS = {
    name: FeatureExtractor(getattr(FeatureConfig, name)())
    for name in ("mr_mt3", "yourmt3_mel", "yourmt3_linear")
}
SILENCE = np.float32(np.log(1e-5))


def noise(n, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, n).astype(np.float32)


def sawtooth(n):
    """The signal the published values were made with."""
    return (((7919 * np.arange(n)) % 2001 - 1000) / 2000).astype(np.float32)


def slow_log_mel(samples, config=MT3):
    """The definition of leading frames in float64, with this module's own window and filters."""
    padded = np.concatenate([samples, np.zeros(config.fft_size)])
    starts = range(0, len(samples), config.hop)
    rows = np.log(slow_floor(slow_spectrum(padded, starts, config), config))
    if config.scaling == "fixed":
        rows = (np.clip(rows, -12, 5) + 12) / 17
    out = np.zeros((config.frames, config.bins))
    out[: len(rows)] = rows
    return out


def slow_centred(samples, config):
    """The definition of YourMT3's front ends in float64."""
    half = config.fft_size // 2
    mirrored = np.concatenate([samples[half:0:-1], samples, samples[-2 : -half - 2 : -1]])
    starts = range(0, len(samples) + 1, config.hop)
    rows = np.log(slow_floor(slow_spectrum(mirrored, starts, config), config))
    return (rows - rows.min()) / (rows.max() - rows.min() + 0.008)


def slow_spectrum(padded, starts, config):
    frames = np.stack([padded[start:][: config.fft_size] for start in starts])
    spectrum = np.fft.rfft(frames * hann_window(config.fft_size).astype(np.float64))
    spectrum = np.abs(spectrum) ** config.power
    if config.filters == "none":
        return spectrum[:, 1:]
    return spectrum @ filter_matrix(config).astype(np.float64)


def slow_floor(values, config):
    if config.floor_rule == "add":
        return values + config.floor
    return np.where(values <= 0, config.floor, values)


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


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 32768), st.integers(0, 100))
def test_mr_mt3_equals_the_definition(n, seed):
    samples = noise(n, seed)
    features, expected = (
        EXTRACTORS["mr_mt3"](samples),
        slow_log_mel(samples, FeatureConfig.mr_mt3()),
    )
    assert np.abs(features - expected).max() < 2e-4 / 17
    assert not features[-(-n // 128) :].any()


@pytest.mark.parametrize("name", ["yourmt3_mel", "yourmt3_linear"])
@pytest.mark.parametrize("level", [1.0, 1e-3])
def test_yourmt3_equals_the_definition(name, level):
    extract = EXTRACTORS[name]
    samples = noise(32767) * np.float32(level)
    features, expected = extract(samples), slow_centred(samples, extract.config)
    assert features.dtype == np.float32
    assert features.shape == expected.shape == (extract.config.frames, extract.config.bins)
    assert np.abs(features - expected).max() < 2e-5
    assert features.min() == 0.0
    assert 0.99 < features.max() < 1.0


@pytest.mark.parametrize("name", ["yourmt3_mel", "yourmt3_linear"])
def test_a_silent_segment_of_yourmt3_is_zero(name):
    assert not EXTRACTORS[name](np.zeros(32767, np.float32)).any()


@pytest.mark.parametrize(
    ("name", "mean", "values"),
    [
        (
            "yourmt3_linear",
            0.522392,
            {
                (0, 0): 0.614225,
                (0, 100): 0.697915,
                (50, 300): 0.697142,
                (50, 511): 0.488333,
                (109, 0): 0.470881,
                (100, 200): 0.475646,
                (7, 86): 0.999269,
                (91, 1023): 0.0,
            },
        ),
        (
            "yourmt3_mel",
            0.486531,
            {
                (0, 0): 0.521112,
                (0, 100): 0.645902,
                (50, 300): 0.551562,
                (50, 511): 0.525910,
                (109, 0): 0.561256,
                (100, 200): 0.344922,
                (96, 127): 0.999540,
                (253, 4): 0.0,
            },
        ),
    ],
)
def test_published_values_of_yourmt3(name, mean, values):
    features = EXTRACTORS[name](sawtooth(32767))
    for position, value in values.items():
        assert features[position] == pytest.approx(value, abs=5e-6)
    assert features.mean(dtype=np.float64) == pytest.approx(mean, abs=5e-6)


def test_torchaudio_and_tensorflow_differ_by_their_triangles_alone():
    """Published: at most 2.0e-3, 4.4e-4 on average, and largest weight difference 6.7e-4."""
    samples = sawtooth(32768)
    difference = np.abs(EXTRACTORS["mr_mt3"](samples) * 17 - 12 - LOG_MEL(samples).clip(-12, 5))
    assert difference.max() == pytest.approx(2.0e-3, abs=1e-4)
    assert difference.mean() == pytest.approx(4.4e-4, abs=1e-5)
    theirs, ours = filter_matrix(FeatureConfig.mr_mt3()), filter_matrix(MT3)
    assert np.array_equal(theirs > 0, ours > 0)
    assert np.abs(theirs - ours).max() == pytest.approx(6.7e-4, abs=1e-5)


def test_mr_mt3_is_clipped():
    extract = EXTRACTORS["mr_mt3"]
    loud, soft = (extract(noise(32768) * np.float32(gain)) for gain in (1e4, 1e-9))
    assert loud.max() == 1.0
    empty = [1, 10]  # filters without a frequency say the floor, which is above -12
    assert not np.delete(soft, empty, axis=1).any()
    assert np.allclose(soft[:, empty], (SILENCE + 12) / 17)


def test_published_values_of_the_original():
    features = LOG_MEL(sawtooth(32768))
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
    matrix = filter_matrix(MT3)
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
    for extract in (LOG_MEL, EXTRACTORS["mr_mt3"], EXTRACTORS["yourmt3_mel"]):
        sizes = [64 * band.weights.size for band in extract._bands]
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
    config = FeatureConfig(
        sample_rate=8000, frames=70, hop=100, fft_size=600, bins=40, low_hz=0, high_hz=4000
    )
    samples = noise(6543)
    difference = np.abs(FeatureExtractor(config)(samples) - slow_log_mel(samples, config))
    assert difference.max() < 1e-4
    assert FeatureExtractor(FeatureConfig(frames=512))(noise(65536)).shape == (512, 512)


def test_hop_longer_than_the_window():
    config = FeatureConfig(frames=3, hop=4096)
    samples = noise(9000)
    assert np.abs(FeatureExtractor(config)(samples) - slow_log_mel(samples, config)).max() < 1e-3


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


def test_segments_that_centred_frames_cannot_be_made_of():
    with pytest.raises(OptionError, match="32769 samples; expected 32640 to 32768"):
        EXTRACTORS["yourmt3_mel"](noise(32769))
    with pytest.raises(OptionError, match="expected 32700 to 33000"):
        EXTRACTORS["yourmt3_linear"](noise(32699))
    few = dataclasses.replace(FeatureConfig.yourmt3_linear(), frames=3)
    assert few.lengths == range(1025, 901)  # nothing to mirror


def test_config_survives_json():
    for extract in EXTRACTORS.values():
        config = extract.config
        assert FeatureConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config = FeatureConfig(frames=512)
    assert FeatureConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_from_dict_is_strict():
    with pytest.raises(BundleError, match="overlap"):
        FeatureConfig.from_dict(MT3.to_dict() | {"overlap": 2})
    with pytest.raises(BundleError, match="keys"):
        FeatureConfig.from_dict({})


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
        ({"low_hz": float("nan")}, "low_hz"),
        ({"low_hz": None}, "low_hz"),
        ({"floor": 0.0}, "floor"),
        ({"floor": True}, "floor"),
        ({"power": 3}, "from 1 to 2"),
        ({"power": 0}, "power"),
        ({"framing": "trailing"}, "leading, centred"),
        ({"filters": "square"}, "triangles_in_mel, triangles_in_hz, none"),
        ({"floor_rule": ""}, "replace, add"),
        ({"scaling": "log"}, "none, fixed, segment"),
        ({"filters": "none"}, "low_hz of features is 20.0; nothing uses it"),
        ({"filters": "none", "low_hz": None, "high_hz": None, "bins": 1025}, "1024 frequencies"),
        ({"scaling": "fixed"}, "scale_low"),
        ({"scaling": "fixed", "scale_low": 1.0, "scale_high": 1.0}, "low < high"),
        ({"scaling": "segment"}, "scale_offset"),
        ({"scaling": "segment", "scale_offset": 0.0}, "positive"),
        ({"scale_offset": 0.008}, "nothing uses it"),
        ({"floor": float("inf")}, "floor"),
    ],
)
def test_illegal_settings(options, message):
    with pytest.raises(OptionError, match=message):
        FeatureConfig(**options)
