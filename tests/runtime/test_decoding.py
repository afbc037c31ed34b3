"""Continuous batching: order, channels, memory, bounded read-ahead, errors, cancelling."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from mt3_runtime.bundles.bundle import DecodingSpec
from mt3_runtime.decoding.batching import decode
from mt3_runtime.decoding.scheduler import Remember
from mt3_runtime.decoding.search import Greedy, T5XBeam, previous_ids
from mt3_runtime.decoding.types import Decoded, Ended, Job, Jobs, Sequence, Span
from tests.pace import HANGS, until
from tests.scripted import ScriptedBackend, ScriptedLane, decode_table, segments, table_jobs

SPEC = DecodingSpec(start_id=0, eos_id=1, max_tokens=16, beam_alpha=0.6)
SEARCH = partial(Greedy, spec=SPEC)
MEMORY = replace(SPEC, memory_tokens=5, memory_start=(3, 1))


def _table(length: int) -> np.ndarray:
    """A segment of ``length`` tokens: 2, 2, ..., end."""
    table = np.full((SPEC.max_tokens, 4, 4), -5.0, np.float32)
    table[:, :, 2] = -0.1
    table[length - 1, :, 1] = -0.05
    return table


def _lengths(results) -> list[int]:
    return [len(sequence.tokens) for item in segments(results) for sequence in item.sequences]


def _one_by_one(jobs: Iterable[Job]) -> Jobs:
    yield from jobs


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_results_come_in_order_whatever_the_lengths(workers: int, slots: int) -> None:
    lengths = [1 + (7 * i) % 13 for i in range(60)]
    tables = [_table(length) for length in lengths]
    found = decode_table(tables, Greedy, SPEC, slots=slots, workers=workers)
    assert [len(sequence.tokens) for sequence in found] == lengths


def test_no_jobs_give_no_results() -> None:
    backend = ScriptedBackend([_table(1)])
    assert list(decode(backend, [], SEARCH)) == []
    assert list(decode(backend, [_one_by_one([])], SEARCH)) == [Ended(0, 0)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("slots", [1, 4, 8])
@pytest.mark.parametrize("channels", [1, 3, 13])
def test_channels_end_alone_and_come_out_together(workers: int, slots: int, channels: int) -> None:
    """Most channels end at once, some run on; each slot depends on nothing but its own table."""
    lengths = [1 + (7 * i) % 16 if i % 5 == 0 else 2 for i in range(20 * channels)]
    tables = [_table(length) for length in lengths]
    found = decode_table(tables, Greedy, SPEC, slots=slots, workers=workers, channels=channels)
    assert [len(sequence.tokens) for sequence in found] == lengths


@pytest.fixture
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding takes a little time, as it does, so readers are always ahead."""
    load = ScriptedLane.load

    def slow(*arguments: object) -> None:
        time.sleep(0.005)
        load(*arguments)

    monkeypatch.setattr(ScriptedLane, "load", slow)


@pytest.mark.usefixtures("_unhurried")
def test_slots_stay_full_while_segments_wait() -> None:
    """A lane runs at least as many rows as pay off, whatever the lengths of the channels."""
    backend = ScriptedBackend([_table(2 + i % 15) for i in range(65)], slots=6, channels=5)
    run = decode(backend, [table_jobs(65, channels=5)], SEARCH)
    assert len(segments(run)) == 13
    assert backend.rows[0] == 5  # one segment is loaded per step
    loaded = [n for n, (a, b) in enumerate(itertools.pairwise(backend.rows), 1) if b > a]
    assert min(backend.rows[1 : loaded[-1]]) >= 6
    assert max(backend.rows) == backend.slots == 10


def test_a_segment_comes_out_when_its_last_channel_ends() -> None:
    tables = [_table(1), _table(12), _table(3), _table(2), _table(2), _table(2)]
    run = decode(ScriptedBackend(tables, channels=3), [table_jobs(6, channels=3)], SEARCH)
    first, second, end = run
    assert isinstance(first, Decoded)
    assert [len(sequence.tokens) for sequence in first.sequences] == [1, 12, 3]
    assert isinstance(second, Decoded)
    assert [len(sequence.tokens) for sequence in second.sequences] == [2, 2, 2]
    assert end == Ended(0, 2)


@pytest.mark.parametrize("search", [Greedy, T5XBeam])
def test_a_truncated_channel_is_one_of_several(search: type[Greedy]) -> None:
    endless = np.full((SPEC.max_tokens, 4, 4), -5.0, np.float32)
    endless[:, :, 2] = -0.1
    endless[:, :, 3] = -1.0
    (one, two) = decode_table([endless, _table(3)], search, SPEC, channels=2)
    assert one.truncated
    assert len(one.tokens) == SPEC.max_tokens
    assert not two.truncated


@pytest.mark.parametrize("remember", [None, partial(previous_ids, spec=MEMORY)])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_recording_is_whole_and_in_order(workers: int, remember: Remember | None) -> None:
    counts = [3, 0, 7, 1, 12, 2]
    backend = ScriptedBackend([_table(1 + (5 * i) % 13) for i in range(12)], workers=workers)
    found: dict[int, list[int]] = {number: [] for number in range(len(counts))}
    ends = []
    for item in decode(backend, map(table_jobs, counts), SEARCH, remember=remember):
        assert item.recording not in ends
        if isinstance(item, Ended):
            assert item == Ended(item.recording, counts[item.recording])
            ends.append(item.recording)
        else:
            found[item.recording].append(item.span.index)
    assert sorted(ends) == list(range(len(counts)))
    assert found == {number: list(range(count)) for number, count in enumerate(counts)}


def _remembered(tables: list[np.ndarray], jobs: Iterable[Job]) -> list[list[int]]:
    """The tokens of one recording, by a plain loop."""
    found: list[list[int]] = []
    last = None
    for job in jobs:
        ids = previous_ids(last, MEMORY)
        table = tables[(int(job.features()[0, 0]) + int(ids.sum())) % len(tables)]
        token, tokens = 0, []
        while token != SPEC.eos_id and len(tokens) < SPEC.max_tokens:
            token = int(table[len(tokens), token].argmax())
            tokens.append(token)
        found.append(tokens)
        last = Sequence(np.array(tokens, np.int32), np.zeros(0, np.float32), truncated=False)
    return found


@pytest.mark.parametrize("abreast", [1, 2, 9])
@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("workers", [1, 2])
def test_memory_follows_its_own_recording(workers: int, slots: int, abreast: int) -> None:
    """What a segment reads is what its predecessor said, whoever runs beside it."""
    tables = [_table(length) for length in (3, 16, 1, 7, 5, 4, 11)]
    backend = ScriptedBackend(tables, workers=workers, slots=slots)
    expected = _remembered(tables, table_jobs(30))
    remember = partial(previous_ids, spec=MEMORY)
    run = decode(
        backend,
        [table_jobs(30) for _ in range(abreast)],
        SEARCH,
        remember=remember,
        lone=abreast == 1,
    )
    found: dict[int, list[list[int]]] = {number: [] for number in range(abreast)}
    for item in segments(run):
        found[item.recording].append(item.sequences[0].tokens.tolist())
    assert found == dict.fromkeys(range(abreast), expected)


@pytest.mark.usefixtures("_unhurried")
def test_memory_keeps_all_slots_busy() -> None:
    """One segment of each of several recordings runs at a time."""
    backend = ScriptedBackend([_table(9)], slots=4)
    remember = partial(previous_ids, spec=MEMORY)
    run = decode(backend, [table_jobs(5) for _ in range(8)], SEARCH, remember=remember)
    assert len(segments(run)) == 40
    assert max(backend.rows) == 4
    assert sum(backend.rows) / len(backend.rows) > 3  # 4 but for beginning and end


def test_a_slow_recording_does_not_stall_others_with_memory() -> None:
    gate = threading.Event()

    def slow() -> Jobs:
        first, second = table_jobs(2)
        yield first
        assert gate.wait(HANGS)
        yield second

    backend = ScriptedBackend([_table(3)] * 2, slots=4)
    remember = partial(previous_ids, spec=MEMORY)
    run = decode(backend, [table_jobs(1), slow()], SEARCH, remember=remember)
    early = [next(run) for _ in range(3)]
    assert Ended(0, 1) in early
    gate.set()
    assert Ended(1, 2) in list(run)


def test_reading_ahead_is_bounded() -> None:
    """With nothing consumed, the feeder stops a few jobs ahead of the slots."""
    backend = ScriptedBackend([_table(16)], workers=1, slots=2)
    read = []

    blocked = threading.Event()

    def jobs() -> Jobs:
        for index in range(1000):
            read.append(index)
            # Features that never come keep the worker busy with its first segment.
            yield Job(Span(index, 0.0, None), partial(_wait, blocked))

    run = decode(backend, [jobs()], SEARCH)
    consumer = threading.Thread(target=lambda: next(run, None), daemon=True)
    consumer.start()
    until(lambda: read)
    time.sleep(0.3)  # for more of them, if it does not stop
    assert len(read) <= 6
    blocked.set()
    consumer.join()
    run.close()


def _wait(event: threading.Event) -> np.ndarray:
    assert event.wait(HANGS)
    return np.zeros((1, 1), np.float32)


@pytest.mark.parametrize("remember", [None, partial(previous_ids, spec=MEMORY)])
def test_an_error_in_one_recording_does_not_stop_the_others(remember: Remember | None) -> None:
    """What was read before it still comes out, and the error behind it."""

    def torn() -> Jobs:
        yield from table_jobs(2)
        raise ValueError("the file ends here")

    backend = ScriptedBackend([_table(2)] * 9, workers=2)
    recordings = [table_jobs(3), torn(), table_jobs(4)]
    items = list(decode(backend, recordings, SEARCH, remember=remember))
    ends = {item.recording: item for item in items if isinstance(item, Ended)}
    assert [ends[number].segments for number in range(3)] == [3, 2, 4]
    assert len(items) == 3 + 3 + 2 + 4
    assert (ends[0].error, ends[2].error) == (None, None)
    assert str(ends[1].error) == "the file ends here"


def test_an_error_in_the_list_of_recordings_ends_the_run() -> None:
    def recordings() -> Iterator[Jobs]:
        yield table_jobs(1)
        raise LookupError("no more recordings")

    before = threading.active_count()
    with pytest.raises(LookupError, match="no more recordings"):
        list(decode(ScriptedBackend([_table(2)]), recordings(), SEARCH))
    assert threading.active_count() <= before


@pytest.mark.parametrize("place", [0, 3, 5])
@pytest.mark.parametrize("remember", [None, partial(previous_ids, spec=MEMORY)])
def test_an_error_in_features_ends_their_recording_alone(
    remember: Remember | None, place: int
) -> None:
    """What lies before it still comes out, and nothing behind it."""

    def broken() -> np.ndarray:
        raise ArithmeticError("no features")

    jobs = list(table_jobs(9))
    jobs[place] = Job(jobs[place].span, broken)
    backend = ScriptedBackend([_table(2)] * 9, workers=3)
    before = threading.active_count()
    recordings = [table_jobs(9), _one_by_one(jobs), table_jobs(4)]
    found = list(decode(backend, recordings, SEARCH, remember=remember))
    counts = [sum(item.recording == number for item in found) for number in range(3)]
    assert counts == [9 + 1, place + 1, 4 + 1]
    ends = {item.recording: item for item in found if isinstance(item, Ended)}
    assert str(ends[1].error) == "no features"
    assert [ends[number].segments for number in range(3)] == [9, place, 4]
    assert threading.active_count() <= before


@pytest.mark.parametrize("broken", ["load", "step", "lane"])
@pytest.mark.parametrize("remember", [None, partial(previous_ids, spec=MEMORY)])
def test_an_error_of_the_device_reaches_the_caller_and_stops_all(
    remember: Remember | None, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()

    def fails(*_: object, **__: object) -> None:
        if broken == "lane" or next(calls) == 5:
            raise ArithmeticError("no device")

    monkeypatch.setattr(ScriptedBackend if broken == "lane" else ScriptedLane, broken, fails)
    if broken == "load":
        monkeypatch.setattr(ScriptedLane, "step", lambda lane, rows: lane.top_ids[:rows].fill(1))
    backend = ScriptedBackend([_table(2)] * 9, workers=3)
    before = threading.active_count()
    with pytest.raises(ArithmeticError, match="no device"):
        list(decode(backend, [table_jobs(9), table_jobs(9)], SEARCH, remember=remember))
    assert threading.active_count() <= before


@pytest.mark.parametrize("remember", [None, partial(previous_ids, spec=MEMORY)])
def test_closing_the_iterator_stops_the_threads(remember: Remember | None) -> None:
    closed = []

    def jobs(number: int) -> Jobs:
        try:
            yield from table_jobs(500)
        finally:
            closed.append(number)

    before = threading.active_count()
    backend = ScriptedBackend([_table(9)] * 500, workers=2)
    run = decode(backend, map(jobs, range(500)), SEARCH, remember=remember)
    next(run)
    assert threading.active_count() > before
    run.close()
    assert threading.active_count() <= before
    assert sorted(closed) == list(range(len(closed)))
    assert 1 <= len(closed) <= (16 if remember else 1)


@pytest.mark.parametrize("remember", [None, partial(previous_ids, spec=MEMORY)])
def test_a_consumer_that_pauses_stops_the_input(remember: Remember | None) -> None:
    """Results do not pile up behind a consumer that takes none."""
    read = 0

    def jobs() -> Jobs:
        nonlocal read
        for job in table_jobs(1000):
            read += 1
            yield job

    backend = ScriptedBackend([_table(1)] * 1000, workers=2, slots=2)
    run = decode(backend, [jobs() for _ in range(5)], SEARCH, remember=remember)
    next(run)
    time.sleep(0.5)
    assert read < 200
    assert len(list(run)) == 4999 + 5


def test_slow_input_does_not_stall_running_segments() -> None:
    """The first segment's result arrives although the second segment has not."""
    gate = threading.Event()

    def jobs() -> Jobs:
        first, second = table_jobs(2)
        yield first
        assert gate.wait(HANGS)
        yield second

    run = decode(ScriptedBackend([_table(5)] * 2, slots=4), [jobs()], SEARCH)
    early = next(run)
    assert isinstance(early, Decoded)
    assert len(early.sequences[0].tokens) == 5
    assert not gate.is_set()
    gate.set()
    assert _lengths(run) == [5]
