"""Intervals of differences: paired draws, so that what is hard for both widens neither."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_evaluation.bootstrap import interval, paired_interval


def scored(shares, labels=20):
    return [np.array([[round(labels * share), labels]]) for share in shares]


@pytest.mark.parametrize("better", [0.05, 0.1])
def test_a_small_gain_everywhere_is_sure(better):
    rng = np.random.default_rng(3)
    hard = rng.uniform(0.1, 0.8, 40)
    theirs, ours = scored(hard, 2000), scored(hard + better, 2000)
    low, high = paired_interval(ours, theirs)
    assert low == pytest.approx(better, abs=2e-3)
    assert high == pytest.approx(better, abs=2e-3)
    alone = interval(ours)
    assert alone[1] - alone[0] > 0.1


def test_equal_models_differ_by_nothing():
    counts = scored([0.2, 0.9, 0.5])
    assert paired_interval(counts, counts) == (0.0, 0.0)


def test_chance_is_not_sure():
    rng = np.random.default_rng(4)
    one, other = (scored(rng.uniform(0.3, 0.7, 30)) for _ in range(2))
    low, high = paired_interval(one, other)
    assert low < 0.0 < high
    swapped = paired_interval(other, one)
    assert swapped == pytest.approx((-high, -low))


def test_windows_of_a_recording_are_drawn_for_both():
    rng = np.random.default_rng(5)
    right = rng.integers(0, 10, (4, 30))
    one = [np.stack([row, np.full(30, 10)], axis=1) for row in right]
    other = [np.stack([np.maximum(row - 1, 0), np.full(30, 10)], axis=1) for row in right]
    low, high = paired_interval(one, other)
    assert 0.0 < low < high < 0.1 + 1e-9


def test_too_little_gives_none():
    assert paired_interval([], []) is None
    assert paired_interval(scored([0.5]), scored([0.4])) is None
    empty = [np.zeros((1, 2), np.int64)] * 3
    assert paired_interval(empty, empty) is None
    with pytest.raises(ValueError, match="zip"):
        paired_interval(scored([0.5, 0.6]), scored([0.5]))
