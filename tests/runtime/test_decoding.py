"""Continuous batching: order, bounded read-ahead, errors, cancelling, slow input."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from mt3_runtime.bundle import DecodingSpec
from mt3_runtime.decoding import Job, Span, decode
from mt3_runtime.search import Greedy
from tests.scripted import ScriptedBackend, decode_table, table_jobs

SPEC = DecodingSpec(start_id=0, eos_id=1, max_tokens=16, beam_alpha=0.6)
SEARCH = partial(Greedy, spec=SPEC)


def _table(length: int) -> np.ndarray:
    """A segment of ``length`` tokens: 2, 2, ..., end."""
    table = np.full((SPEC.max_tokens, 4, 4), -5.0, np.float32)
    table[:, :, 2] = -0.1
    table[length - 1, :, 1] = -0.05
    return table


def _lengths(items) -> list[int]:
    return [len(item.sequence.tokens) for item in items]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_results_come_in_order_whatever_the_lengths(workers: int, slots: int) -> None:
    lengths = [1 + (7 * i) % 13 for i in range(60)]
    tables = [_table(length) for length in lengths]
    found = decode_table(tables, Greedy, SPEC, slots=slots, workers=workers)
    assert [len(sequence.tokens) for sequence in found] == lengths


def test_no_jobs_give_no_results() -> None:
    assert list(decode(ScriptedBackend([_table(1)]), [], SEARCH)) == []


def test_reading_ahead_is_bounded() -> None:
    """With nothing consumed, the feeder stops a few jobs ahead of the slots."""
    backend = ScriptedBackend([_table(16)], workers=1, slots=2)
    read = []

    blocked = threading.Event()

    def jobs() -> Iterator[Job]:
        for index in range(1000):
            read.append(index)
            # Features that never come keep the worker busy with its first segment.
            yield Job(Span(index, 0.0, None), partial(_wait, blocked))

    run = decode(backend, jobs(), SEARCH)
    consumer = threading.Thread(target=lambda: next(run, None), daemon=True)
    consumer.start()
    time.sleep(0.3)
    assert 1 <= len(read) <= 6
    blocked.set()
    consumer.join()
    run.close()


def _wait(event: threading.Event) -> np.ndarray:
    event.wait(10.0)
    return np.zeros((1, 1), np.float32)


def test_an_error_in_the_input_reaches_the_caller() -> None:
    def jobs() -> Iterator[Job]:
        yield from table_jobs(1)
        raise ValueError("the file ends here")

    with pytest.raises(ValueError, match="the file ends here"):
        list(decode(ScriptedBackend([_table(2)]), jobs(), SEARCH))


def test_an_error_in_a_worker_reaches_the_caller_and_stops_all() -> None:
    def broken() -> np.ndarray:
        raise ArithmeticError("no features")

    jobs = [Job(Span(0, 0.0, None), broken), *list(table_jobs(2))[1:]]
    before = threading.active_count()
    with pytest.raises(ArithmeticError, match="no features"):
        list(decode(ScriptedBackend([_table(2)] * 2, workers=3), jobs, SEARCH))
    assert threading.active_count() <= before


def test_closing_the_iterator_stops_the_threads() -> None:
    before = threading.active_count()
    run = decode(ScriptedBackend([_table(9)] * 500, workers=2), table_jobs(500), SEARCH)
    next(run)
    assert threading.active_count() > before
    run.close()
    assert threading.active_count() <= before


def test_a_consumer_that_pauses_stops_the_input() -> None:
    """Results do not pile up behind a consumer that takes none."""
    read = 0

    def jobs() -> Iterator[Job]:
        nonlocal read
        for job in table_jobs(5000):
            read += 1
            yield job

    run = decode(ScriptedBackend([_table(1)] * 5000, workers=2, slots=2), jobs(), SEARCH)
    next(run)
    time.sleep(0.5)
    assert read < 200
    assert len(list(run)) == 4999


def test_slow_input_does_not_stall_running_segments() -> None:
    """The first segment's result arrives although the second segment has not."""
    gate = threading.Event()

    def jobs() -> Iterator[Job]:
        first, second = table_jobs(2)
        yield first
        gate.wait(10.0)
        yield second

    run = decode(ScriptedBackend([_table(5)] * 2, slots=4), jobs(), SEARCH)
    assert len(next(run).sequence.tokens) == 5
    assert not gate.is_set()
    gate.set()
    assert _lengths(run) == [5]
