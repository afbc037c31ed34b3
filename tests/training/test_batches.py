"""Which examples are seen when, whoever makes them."""

from __future__ import annotations

import os
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from mt3_runtime.errors import DeviceError
from mt3_training.examples import batches
from mt3_training.examples.batches import (
    HELD_OUT,
    STAGE_STRIDE,
    Batch,
    Feed,
    Order,
    held_out,
    padded,
)
from tests.training.synthetic import Blips, BlipSources, tiny

ORDER = Order(seed=3, stage=1, batch=4, bucket=3)


class Numbers:
    """Examples whose tokens are their own numbers, of a length that is drawn."""

    def __init__(self):
        self.made = []

    def draw(self, index):
        self.made.append(index)
        length = int(np.random.default_rng(index).integers(1, 40))
        return type("One", (), {"tokens": np.full(length, index % 997), "index": index})

    def batch(self, drawn):
        tokens, frames = padded([d.tokens for d in drawn], [d.tokens for d in drawn])
        empty = np.zeros((len(drawn), 1, 1), np.float32)
        return Batch(empty, tokens, frames, np.array([d.index for d in drawn]))


class Dying(Blips):
    def draw(self, index):
        os._exit(7)


def take(feed: Feed, count: int) -> list[Batch]:
    return [feed.take() for _ in range(count)]


def equal(one: Batch, other: Batch) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(one[:4], other[:4], strict=True)
    )


def test_a_block_holds_its_examples_once_sorted_by_length():
    source = Numbers()
    found = list(ORDER.block(source, 2))
    first = STAGE_STRIDE + 2 * 12
    assert source.made == list(range(first, first + 12))
    assert sorted(i for b in found for i in b.rolls.tolist()) == source.made
    spans = sorted(
        (int((b.tokens > 0).sum(1).min()), int((b.tokens > 0).sum(1).max())) for b in found
    )
    assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_the_order_of_batches_is_drawn_per_block():
    def lengths(number, seed=3):
        order = Order(seed, 1, 1, 16)
        return [int((b.tokens > 0).sum()) for b in order.block(Numbers(), number)]

    assert lengths(0) != sorted(lengths(0))
    assert lengths(0) == lengths(0)
    assert np.argsort(lengths(0), kind="stable").tolist() != np.argsort(lengths(1)).tolist()
    assert lengths(0) != lengths(0, seed=4)


@pytest.mark.parametrize("taken", range(8))
def test_a_feed_begins_anywhere(taken):
    whole = take(Feed(Numbers, ORDER), 10)
    rest = take(Feed(Numbers, ORDER, taken=taken), 10 - taken)
    assert all(equal(a, b) for a, b in zip(whole[taken:], rest, strict=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_change_nothing(workers):
    open_source = partial(BlipSources(tiny()), 1, held_out=False)
    expected = take(Feed(open_source, ORDER, taken=4), 5)
    feed = Feed(open_source, ORDER, taken=4, workers=workers)
    try:
        found = take(feed, 5)
    finally:
        feed.close()
    assert all(equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(batch.cpu_seconds > 0.0 for batch in found)


def test_what_fails_in_a_process_is_raised_here():
    feed = Feed(partial(BlipSources(tiny(), fails=True), 0, held_out=False), ORDER, workers=1)
    try:
        with pytest.raises(OSError, match="no sounds today"):
            feed.take()
    finally:
        feed.close()


def test_a_process_that_dies_is_noticed(monkeypatch):
    monkeypatch.setattr(batches, "_POLL", 0.05)
    feed = Feed(partial(Dying, 32), ORDER, workers=1)
    try:
        with pytest.raises(DeviceError, match=r"exit code 7.*--workers"):
            feed.take()
    finally:
        feed.close()


def test_a_worker_whose_parent_is_gone_ends(monkeypatch):
    monkeypatch.setattr(batches, "_POLL", 0.01)

    class Full:
        def put(self, item, timeout):
            raise batches.queue.Full

        def cancel_join_thread(self):
            pass

    class Gone:
        def is_alive(self):
            return False

    monkeypatch.setattr(batches.multiprocessing, "parent_process", Gone)
    with pytest.raises(SystemExit):
        batches._put(Full(), None)


def test_held_out_examples_are_not_trained_with():
    source = Numbers()
    assert held_out(source, 5).tokens.shape[0] == 5
    assert min(source.made) == HELD_OUT > 1000 * STAGE_STRIDE


def test_padding():
    tokens, frames = padded(
        [np.array([4, 1]), np.arange(1, 18)], [np.array([-1, 6]), np.zeros(17, int)]
    )
    assert tokens.shape == frames.shape == (2, 32)
    assert tokens[0].tolist() == [4, 1] + [0] * 30
    assert np.isnan(frames[0, [0, 2]]).all()
    assert frames[0, 1] == 6.0
    assert np.isnan(frames[1, 17:]).all()
    assert tokens.dtype == np.int64
