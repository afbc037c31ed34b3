from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt3_runtime.audio.segments import SegmentConfig, cut
from mt3_runtime.errors import BundleError, OptionError

MT3 = SegmentConfig()
YOURMT3 = SegmentConfig.yourmt3(hop=300)
SMALL = SegmentConfig(sample_rate=1000, samples=32, hop=8)
SMALL_FULL = SegmentConfig(sample_rate=1000, samples=31, hop=8, time_grid=None, padding="full")


def counting(n):
    return np.arange(1, n + 1, dtype=np.float32)


def lengths(n, config):
    return [len(segment.samples) for segment in cut([counting(n)], config)]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [128]),
        (127, [128]),
        (128, [256]),  # a whole extra hop
        (32639, [32640]),
        (32640, [32768]),  # the extra hop completes the segment
        (32767, [32768]),
        (32768, [32768, 128]),  # a full segment is never the last
        (32769, [32768, 128]),
        (65536, [32768, 32768, 128]),
        (70000, [32768, 32768, 4480]),
        (0, []),
    ],
)
def test_extra_hop_lengths(n, expected):
    assert lengths(n, MT3) == expected


@pytest.mark.parametrize(
    ("n", "count"), [(0, 0), (1, 1), (32767, 1), (32768, 2), (65534, 2), (65535, 3)]
)
def test_full_lengths(n, count):
    assert lengths(n, YOURMT3) == [32767] * count


@given(st.lists(st.integers(0, 100), max_size=12), st.sampled_from([SMALL, SMALL_FULL]))
def test_nothing_is_lost_whatever_the_blocks(sizes, config):
    n = sum(sizes)
    blocks = np.split(counting(n), np.cumsum(sizes))
    segments = list(cut(blocks, config))
    joined = np.concatenate([np.zeros(0, np.float32), *(s.samples for s in segments)])
    assert np.array_equal(joined[:n], counting(n))
    assert not joined[n:].any()
    assert [len(s.samples) for s in segments] == lengths(n, config)
    if n:
        hops = n // config.hop + 1
        assert len(joined) == (hops * 8 if config is SMALL else -(-n // 31) * 31)
    assert all(s.samples.dtype == np.float32 for s in segments)
    assert [s.index for s in segments] == list(range(len(segments)))
    assert [s.start for s in segments] == [config.start(s.index) for s in segments]
    assert [s.next_start for s in segments[:-1]] == [s.start for s in segments[1:]]
    assert all(s.next_start is None for s in segments[-1:])


def test_segments_come_as_soon_as_they_are_complete():
    pulled = []

    def blocks(sizes):
        for size in sizes:
            pulled.append(size)
            yield counting(size)

    next(cut(blocks([20, 12, 99]), SMALL))
    assert pulled == [20, 12]
    pulled.clear()
    next(cut(blocks([20, 11, 1, 99]), SMALL_FULL))
    assert pulled == [20, 11, 1]


def test_segments_keep_their_samples():
    segments = list(cut([counting(100)], SMALL))
    assert segments[0].samples[0] == 1
    assert segments[1].samples[0] == 33


def test_start_times_carry_the_float_remainder():
    starts = [MT3.start(index) for index in range(16)]
    expected = [0.0, 2.04, 4.09, 6.14, 8.19, 10.24]
    assert starts[:6] == pytest.approx(expected, abs=1e-9)
    assert starts[10] == pytest.approx(20.48, abs=1e-9)
    assert starts[15] == pytest.approx(30.71, abs=1e-9)  # not 30.72


@pytest.mark.parametrize("samples", [32768, 65536])
def test_start_times_that_lose_a_grid_step(samples):
    config = SegmentConfig(samples=samples)
    exact = [index * samples * 100 // 16000 for index in range(2000)]  # in units of 10 ms
    lost = [k for k in range(2000) if round(config.start(k) * 100) != exact[k]]
    if samples == 32768:
        assert len(lost) == 247
    assert lost[:12] == [15, 30, 45, 55, 60, 75, 90, 95, 105, 110, 120, 125]
    assert all(round(config.start(k) * 100) == exact[k] - 1 for k in lost)


def test_start_times_without_grid():
    assert YOURMT3.start(3) == 3 * 32767 / 16000


def test_config_survives_json():
    for config in (MT3, YOURMT3):
        assert SegmentConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_from_dict_is_strict():
    settings = MT3.to_dict()
    with pytest.raises(BundleError, match="overlap"):
        SegmentConfig.from_dict(settings | {"overlap": 0})
    del settings["hop"]
    with pytest.raises(BundleError, match="hop"):
        SegmentConfig.from_dict(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hop": 0}, "hop"),
        ({"hop": True}, "hop"),
        ({"samples": 2.5}, "samples"),
        ({"samples": 1 << 40}, "samples"),
        ({"sample_rate": "16000"}, "sample_rate"),
        ({"padding": "none"}, "extra_hop, full"),
        ({"samples": 32767}, "no whole number of hops"),
        ({"time_grid": 0.0}, "time_grid"),
        ({"time_grid": float("nan")}, "time_grid"),
        ({"time_grid": "0.01"}, "time_grid"),
    ],
)
def test_illegal_settings(settings, message):
    with pytest.raises(OptionError, match=message):
        SegmentConfig(**settings)
