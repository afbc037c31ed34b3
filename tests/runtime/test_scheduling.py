"""One loop for many callers: order of service, fairness, bounds, failures, cancelling."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.bundles.bundle import DecodingSpec
from mt3_runtime.decoding import priorities, scheduler
from mt3_runtime.decoding.batching import Loop, decode
from mt3_runtime.decoding.decoding_run import Run
from mt3_runtime.decoding.priorities import PATIENT_TURNS, Priorities
from mt3_runtime.decoding.scheduler import Schedule
from mt3_runtime.decoding.search import Greedy, MakeSearch, T5XBeam, previous_ids
from mt3_runtime.decoding.step_costs import StepCosts
from mt3_runtime.decoding.strands import Load, Priority, Strand, Window
from mt3_runtime.decoding.types import (
    BoolArray,
    Decoded,
    Ended,
    Job,
    Jobs,
    Rows,
    Sequence,
    Span,
    TokenArray,
)
from tests.pace import HANGS, until
from tests.scripted import ScriptedBackend, ScriptedLane, table_jobs

SPEC = DecodingSpec(start_id=0, eos_id=1, max_tokens=12, beam_alpha=0.6)
MEMORY = replace(SPEC, memory_tokens=5, memory_start=(3, 1))
REMEMBER = partial(previous_ids, spec=MEMORY)
SEARCH = partial(Greedy, spec=SPEC)


class Alternating:
    """A constraint with state per row: token 2 may not follow itself."""

    def __init__(self, slots: int) -> None:
        self._last = np.zeros(slots, np.int64)
        self._slots = np.arange(slots)

    def start(self, allowed: BoolArray, slot: int, span: Span) -> None:
        self._last[slot] = 0
        allowed[slot] = True

    def move(self, source: int, target: int) -> None:
        self._last[target] = self._last[source]

    def advance(self, allowed: BoolArray, tokens: TokenArray, rows: Rows | None = None) -> None:
        slots = self._slots[slice(len(tokens)) if rows is None else rows]
        self._last[slots] = tokens
        allowed[slots, 2] = self._last[slots] != 2


SEARCHES: list[MakeSearch] = [
    SEARCH,
    partial(T5XBeam, spec=SPEC),
    partial(Greedy, spec=SPEC, constrain=Alternating),
    partial(T5XBeam, spec=SPEC, constrain=Alternating),
]


def tables(seed: int, count: int = 11) -> list[np.ndarray]:
    """Log-probabilities that depend on step and token; most sequences end in a few tokens."""
    draw = np.random.default_rng(seed)
    logits = draw.standard_normal((count, SPEC.max_tokens, 5, 5)).astype(np.float32)
    logits[..., 1] += np.linspace(-1.0, 2.0, SPEC.max_tokens)[None, :, None]
    return [table - np.logaddexp.reduce(table, axis=-1, keepdims=True) for table in logits]


@dataclass(frozen=True)
class Asked:
    """A recording of a test."""

    segments: int
    search: int
    priority: Priority
    client: str
    live: bool
    slow: bool
    length: float | None
    pause: float
    cancelled_after: int | None
    torn_at: int | None


ASKED = st.builds(
    Asked,
    segments=st.integers(0, 9),
    search=st.integers(0, len(SEARCHES) - 1),
    priority=st.sampled_from(list(Priority)),
    client=st.sampled_from(["", "a", "b"]),
    live=st.booleans(),
    slow=st.booleans(),
    length=st.sampled_from([None, 1.0, 10.0, 100.0]),
    pause=st.sampled_from([0.0, 0.0, 0.001, 0.003]),
    cancelled_after=st.none() | st.integers(0, 6),
    torn_at=st.none() | st.integers(0, 9),
)


def jobs_of(asked: Asked, channels: int) -> Jobs:
    """Its segments; one of them may have no features."""

    def torn() -> np.ndarray:
        raise ArithmeticError("torn")

    for job in table_jobs(asked.segments * channels, channels):
        yield job if job.span.index != asked.torn_at else Job(job.span, torn)


def _as_is(length: float | None) -> float | None:
    return length


def drained(run: Run, asked: list[Asked]) -> dict[int, list[object]]:
    """What comes out of each, as plain values; cancels what is to be cancelled."""
    found: dict[int, list[object]] = {number: [] for number in range(len(asked))}
    for item in run.results():
        if isinstance(item, Ended):
            found[item.recording].append((item.segments, str(item.error)))
        else:
            found[item.recording].append([s.tokens.tolist() for s in item.sequences])
            if asked[item.recording].cancelled_after == item.span.index:
                run.cancel(item.recording)
    return found


@settings(max_examples=100, deadline=None)
@given(
    asked=st.lists(ASKED, min_size=1, max_size=9),
    others=st.lists(ASKED, max_size=4),
    seed=st.integers(0, 5),
    workers=st.integers(1, 3),
    slots=st.integers(1, 6),
    channels=st.sampled_from([1, 1, 3]),
    memory=st.booleans(),
    readers=st.integers(1, 2),
)
def test_each_gets_what_it_gets_alone_whatever_else_runs(
    asked: list[Asked], others: list[Asked], seed: int, workers: int, slots: int, channels: int,
    memory: bool, readers: int,
) -> None:  # fmt: skip
    """Over random mixtures of options, classes, clients, cancellations, failures and callers."""
    remember = REMEMBER if memory else None

    def backend(workers: int, slots: int) -> ScriptedBackend:
        return ScriptedBackend(tables(seed), workers=workers, slots=slots, channels=channels)

    def alone(one: Asked) -> list[object]:
        run = decode(
            backend(1, 1), [jobs_of(one, channels)], SEARCHES[one.search], remember=remember
        )
        return [
            (item.segments, str(item.error))
            if isinstance(item, Ended)
            else [s.tokens.tolist() for s in item.sequences]
            for item in run
        ]

    def submit(run: Run, all_of_them: list[Asked]) -> None:
        for one in all_of_them:
            time.sleep(one.pause)
            run.add(
                jobs_of(one, channels), SEARCHES[one.search], priority=one.priority,
                client=one.client, live=one.live, slow=one.slow or one.live,
                seconds=partial(_as_is, one.length),
            )  # fmt: skip
        run.end()

    before = threading.active_count()
    loop = Loop(backend(workers, slots), remember=remember, readers=readers)
    with loop.open() as run, loop.open() as other:
        threads = [
            threading.Thread(target=submit, args=(run, asked)),
            threading.Thread(target=submit, args=(other, others)),
            threading.Thread(target=drained, args=(other, others)),
        ]
        for thread in threads:
            thread.start()
        found = drained(run, asked)
        for thread in threads:
            thread.join()
    assert threading.active_count() <= before
    for number, one in enumerate(asked):
        expected = alone(one)
        if one.cancelled_after is not None and one.cancelled_after < len(expected) - 1:
            expected = expected[: one.cancelled_after + 1]
        assert found[number] == expected


# --- who comes first -----------------------------------------------------------------------------


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def strand(number: int, segments: int, **how: object) -> Strand:
    how = {"window": Window(1000), "seconds": lambda: float(segments), **how}
    return Strand(
        number=number, jobs=table_jobs(segments), search=SEARCH, emit=lambda _: None, **how
    )  # type: ignore[arg-type]


def served(schedule: Schedule, count: int) -> list[int]:
    """Reads all that is wanted, takes one, and so on; the numbers of those that were served."""
    found: list[int] = []
    load = Load(1, 64)
    while len(found) < count:
        while (wanted := schedule._to_read(None)) is not None:
            wanted.reading = True
            schedule.offer(wanted, next(wanted.jobs, None))
        turn = schedule.take(load, wait=False)
        assert turn is not None
        schedule.done(turn, _empty())
        found.append(turn.strand.number)
    return found


def _empty() -> tuple[Sequence, ...]:
    return (Sequence(np.empty(0, np.int32), np.empty(0, np.float32), truncated=False),)


def made(*strands: Strand, clock: Callable[[], float] = time.monotonic) -> Schedule:
    schedule = Schedule(workers=1, slots=4, clock=clock)
    for one in strands:
        schedule.add(one)
    return schedule


def test_the_shortest_comes_first_and_what_was_begun_is_finished() -> None:
    schedule = made(strand(0, 6), strand(1, 2), strand(2, 4))
    assert served(schedule, 12) == [1] * 2 + [2] * 4 + [0] * 6


def test_equal_ones_are_done_one_after_another() -> None:
    """Not all at the same time, which would make everybody wait."""
    assert (
        served(made(*(strand(n, 3) for n in range(4))), 12) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    )


def test_what_is_urgent_comes_before_what_is_short() -> None:
    schedule = made(
        strand(0, 2, priority=Priority.BATCH),
        strand(1, 9, priority=Priority.INTERACTIVE),
        strand(2, 9, priority=Priority.LIVE),
    )
    assert served(schedule, 20) == [2] * 9 + [1] * 9 + [0] * 2


def test_clients_take_turns() -> None:
    """One with many recordings does not keep out one with few."""
    many = [strand(n, 30, client="many") for n in range(20)]
    few = strand(20, 30, client="few")
    order = served(made(*many, few), 120)
    assert order.index(20) <= priorities.QUANTUM
    assert order.count(20) == 30


def test_nobody_starves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sixteenth turn is for who has waited for half a minute."""
    clock = Clock()
    batch = strand(0, 9, priority=Priority.BATCH)
    schedule = made(batch, strand(1, 500, priority=Priority.INTERACTIVE), clock=clock)
    clock.now = 31.0
    order = served(schedule, 60)
    assert order.count(0) == 1  # it was served, so it does not wait any more
    assert order.index(0) < 2 * PATIENT_TURNS


def test_no_more_are_begun_than_fill_the_slots() -> None:
    begun: list[int] = []
    ended: list[int] = []
    most = 0

    def jobs(number: int) -> Jobs:
        nonlocal most
        begun.append(number)
        most = max(most, len(begun) - len(ended))
        yield from table_jobs(5)

    backend = ScriptedBackend(tables(1), workers=2, slots=4)
    with Loop(backend).open() as run:
        for number in range(40):
            run.add(jobs(number), SEARCH, seconds=lambda: 5.0)
        run.end()
        for item in run.results():
            ended += [item.recording] * isinstance(item, Ended)
    assert len(ended) == 40
    assert most <= 2 * 4 + 4  # and those that wait for their consumer


def test_a_short_one_does_not_wait_for_a_long_one() -> None:
    """It comes in the middle of the long one, which is of the same client, and is done at once."""
    backend = ScriptedBackend(tables(2), workers=1, slots=4)
    with Loop(backend).open() as run:
        run.add(table_jobs(2000), SEARCH, seconds=lambda: 2000.0)
        for _ in range(10):
            run.get()
        short = run.add(table_jobs(5), SEARCH, seconds=lambda: 5.0)
        found = list(itertools.takewhile(lambda item: not isinstance(item, Ended), run.results()))
    assert sum(item is not None and item.recording == short for item in found) == 5
    assert len(found) < 5 + 3 * 4 + 10


def test_what_is_far_more_urgent_goes_ahead_of_what_runs() -> None:
    """In a lane of its own, and only of what is less urgent; and it is not filled up beside."""
    clock = Clock()
    rules = Priorities(ahead=2, abreast=8, memory=False, costs=StepCosts(8), clock=clock)
    live = strand(0, 9, priority=Priority.LIVE, live=True, slow=True)
    long, short = strand(1, 900), strand(2, 9)
    batch = strand(3, 9, priority=Priority.BATCH)
    everybody = [live, long, short, batch]
    for one in everybody:
        rules.admit(one.client)

    def taken(waiting: Strand, *running: Strand, rows: int = 8, **how: object) -> object:
        for one in everybody:
            one.waiting.clear()
        waiting.waiting.append(next(table_jobs(1)))
        load = Load(1, 8, rows if running else 0, frozenset(running), **how)  # type: ignore[arg-type]
        clock.now = 1.0
        found, ahead = rules.to_take(everybody, load, 0, alone_held=False)
        return "ahead" if ahead else found is waiting

    assert taken(live, long, batch) == "ahead"
    assert taken(short, long) == "ahead"
    assert taken(short, batch) == "ahead"
    assert taken(short, long, until=2.0) is False  # the lane has waited enough
    assert taken(live, long, until=2.0) == "ahead"
    assert taken(short, long, live) is False
    assert taken(long, short) is False
    assert taken(live, live) is False
    assert taken(batch, live, rows=4) is False
    assert taken(batch, live, rows=3) is True
    assert taken(short, batch, live, rows=3, below=Load(1, 8, 8, frozenset([batch]))) is False
    assert taken(batch) is True
    below = Load(1, 8, 8, frozenset([long]))
    assert taken(short, short, rows=4, below=below, until=2.0) is True
    assert taken(short, short, rows=4, below=below, until=0.5) is False
    assert taken(live, short, rows=4, below=below, until=0.5) is True
    assert taken(batch, short, rows=1, below=below, until=2.0) is False


@pytest.mark.parametrize("channels", [1, 3])
def test_a_full_lane_waits_while_a_live_segment_is_decoded(channels: int) -> None:
    """No step in between has rows of others."""
    backend = ScriptedBackend(tables(2), workers=1, slots=6, channels=channels)
    steps: list[tuple[int, frozenset[Priority]]] = []
    loop = Loop(backend)

    class Watched(ScriptedLane):
        def step(self, rows: int) -> None:
            steps.append((id(self), rows))  # type: ignore[arg-type]
            super().step(rows)
            time.sleep(0.001)

    backend.lane = lambda slots, alone=False: Watched(  # type: ignore[method-assign,assignment]
        tables(2), slots, channels, backend.rows
    )
    with loop.open() as run, loop.open() as live:
        run.add(table_jobs(9000, channels), SEARCH, priority=Priority.BATCH)
        while loop.pulse().decoding < 6 / channels:
            time.sleep(0.001)
        live.add(
            table_jobs(channels, channels), SEARCH, priority=Priority.LIVE, live=True, slow=True
        )
        live.end()
        assert len(list(live.results())) == 2
        run.close()
    lanes = [lane for lane, _ in steps]
    other = next(lane for lane in lanes if lane != lanes[0])
    first, last = lanes.index(other), len(lanes) - 1 - lanes[::-1].index(other)
    assert set(lanes[first : last + 1]) == {other}
    assert {rows for lane, rows in steps if lane == other} <= set(range(1, channels + 1))


@pytest.mark.parametrize(
    ("less", "more", "ahead"),
    [(10.0, 50.0, True), (10.0, 3600.0, True), (10.0, 20.0, False), (2.0, 11.0, False),
     (2.0, 13.0, True), (40.0, 79.0, False), (40.0, 81.0, True), (10.0, 10.0, False)],
)  # fmt: skip
def test_what_is_much_shorter_goes_ahead_and_equals_never_do(
    less: float, more: float, ahead: bool
) -> None:
    rules = Priorities(ahead=2, abreast=8, memory=False, costs=StepCosts(8), clock=lambda: 1.0)
    short = strand(0, 1, seconds=lambda: less)
    long = strand(1, 1, seconds=lambda: more)
    long.taken = more  # all of it is in the slots
    rules.admit("")
    short.waiting.append(next(table_jobs(1)))
    load = Load(1, 8, 8, frozenset([long]))
    assert rules.to_take([short, long], load, 0, alone_held=False)[1] is ahead
    short.priority = long.priority = Priority.BATCH
    assert rules.to_take([short, long], load, 0, alone_held=False)[1] is False


class Stepping(ScriptedBackend):
    """Notes in which lane each step was made, and takes a millisecond for it."""

    def __init__(self, **how: int) -> None:
        super().__init__(tables(2), **how)
        self.steps: list[int] = []

    def lane(self, slots: int, *, alone: bool = False) -> ScriptedLane:
        noted, seen, channels = self.steps, self.rows, self._channels

        class Noted(ScriptedLane):
            def step(self, rows: int) -> None:
                noted.append(id(self))
                super().step(rows)
                time.sleep(0.001)

        return Noted(self._tables, slots, channels, seen)


@pytest.mark.parametrize(("workers", "channels"), [(2, 1), (3, 1), (2, 3)])
def test_other_lanes_wait_while_a_live_segment_is_decoded(
    workers: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "LONGEST_HOLD", float(HANGS))
    backend = Stepping(workers=workers, slots=6, channels=channels)
    loop = Loop(backend)
    with loop.open() as run, loop.open() as live:
        run.add(table_jobs(9000 * channels, channels), SEARCH, priority=Priority.BATCH)
        until(lambda: len(set(backend.steps)) == workers)
        full = set(backend.steps)
        live.add(
            table_jobs(channels, channels), SEARCH, priority=Priority.LIVE, live=True, slow=True
        )
        live.end()
        assert len(list(live.results())) == 2
        count = len(backend.steps)
        until(lambda: len(set(backend.steps[count:])) == workers)  # all go on
        run.close()
    (other,) = set(backend.steps) - full
    first = backend.steps.index(other)
    last = len(backend.steps) - 1 - backend.steps[::-1].index(other)
    between = [lane for lane in backend.steps[first:last] if lane != other]
    assert len(between) < workers  # each had begun a step


def test_live_input_that_never_pauses_leaves_others_their_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "LONGEST_HOLD", 0.02)
    backend = Stepping(workers=2, slots=4)
    loop = Loop(backend)
    # One segment at a time: more would lie in all lanes, and live ones come first.
    with loop.open() as run, loop.open(window=1) as live:
        live.add(table_jobs(10**9), SEARCH, priority=Priority.LIVE, live=True, slow=True)
        live.get()
        run.add(table_jobs(60), SEARCH, priority=Priority.BATCH)
        run.end()
        taking = threading.Thread(target=lambda: list(live.results()), daemon=True)
        taking.start()
        assert len(list(run.results())) == 61
        live.close()
        taking.join(HANGS)


def test_a_lane_that_waits_for_live_segments_lets_go_what_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "LONGEST_HOLD", 10.0 * HANGS)
    schedule = Schedule(workers=2, slots=8)
    live, long = strand(0, 9, priority=Priority.LIVE, live=True), strand(1, 9)
    for one in (live, long):
        schedule.add(one)
    live.under_way = 1
    found: list[object] = []
    load = Load(1, 4, 4, frozenset([long]))
    waiting = threading.Thread(
        target=lambda: found.append(schedule.take(load, wait=False)), daemon=True
    )
    waiting.start()
    until(lambda: load.held is not None)
    schedule.cancel(long)
    waiting.join(HANGS)
    assert found == [None]


@pytest.mark.parametrize(
    ("fixed", "per_row", "expected"),
    [(1.0, 1.0, 9), (1.0, 0.0, 16), (10.0, 1.0, 14), (0.5, 2.0, 4), (0.0, 1.0, 1)],
)
def test_how_many_rows_pay_is_measured(fixed: float, per_row: float, expected: int) -> None:
    """Also if every third step is disturbed by something else."""
    costs, draw = StepCosts(16), np.random.default_rng(0)
    assert costs.pay == 16
    for turn in range(1600):
        rows = 1 + turn % 16
        disturbed = draw.exponential(20.0) if draw.random() < 1 / 3 else 0.0
        costs.add(rows, fixed + per_row * rows + disturbed)
    assert abs(costs.pay - expected) <= 2


def test_a_lane_with_enough_rows_takes_in_nobody_else_who_waits() -> None:
    costs = StepCosts(16)
    costs._pay = 4
    rules = Priorities(ahead=2, abreast=16, memory=False, costs=costs, clock=Clock())
    one, other = strand(0, 9), strand(1, 9)
    batch = strand(2, 9, priority=Priority.BATCH)
    for each in (one, other, batch):
        rules.admit(each.client)

    def taken(waiting: Strand, rows: int) -> bool:
        waiting.waiting.append(next(table_jobs(1)))
        load = Load(1, 16, rows, frozenset([one]))
        found, _ = rules.to_take([one, waiting], load, 0, alone_held=False)
        waiting.waiting.clear()
        return found is waiting

    one.taken = 5.0  # less is left of it
    assert [taken(other, rows) for rows in (3, 4, 15)] == [True, False, False]
    assert [taken(one, rows) for rows in (3, 4, 15, 16)] == [True, True, True, False]
    for each in (one, other):
        each.waiting.append(next(table_jobs(1)))
    load = Load(1, 16, 8, frozenset([one]))
    assert rules.to_take([one, other], load, 0, alone_held=False)[0] is one
    one.taken, other.taken = 0.0, 5.0  # now the other one's turn has come, when there is room
    assert rules.to_take([one, other], load, 0, alone_held=False)[0] is None
    one.waiting.clear()
    batch_load = Load(1, 16, 15, frozenset([batch]))
    batch.waiting.append(next(table_jobs(1)))
    assert rules.to_take([one, batch], batch_load, 0, alone_held=False)[0] is batch


# --- bounds and failures -------------------------------------------------------------------------


def test_who_takes_no_results_stops_nobody_else() -> None:
    loop = Loop(ScriptedBackend(tables(3), workers=2, slots=2))
    read = 0

    def endless() -> Jobs:
        nonlocal read
        for job in table_jobs(100_000):
            read += 1
            yield job

    with loop.open(window=6) as stuck, loop.open() as other:
        stuck.add(endless(), SEARCH)
        other.add(table_jobs(50), SEARCH)
        other.end()
        assert len(list(other.results())) == 51
        assert read <= 6


def test_a_pipe_that_says_nothing_stops_nobody_else() -> None:
    gate = threading.Event()

    def silent() -> Jobs:
        gate.wait(HANGS)
        yield from table_jobs(1)

    with Loop(ScriptedBackend(tables(3), workers=1)).open() as run:
        for _ in range(3):
            run.add(silent(), SEARCH, slow=True)
        number = run.add(table_jobs(20), SEARCH)
        found = [run.get() for _ in range(21)]
        assert found[-1] == Ended(number, 20)
        gate.set()


def test_a_cancelled_one_leaves_its_rows_within_a_step() -> None:
    steps: list[int] = []
    cancelled = threading.Event()

    class Lane(ScriptedLane):
        def step(self, rows: int) -> None:
            if cancelled.is_set():
                steps.append(rows)
            super().step(rows)
            time.sleep(0.002)

    endless = [np.full((SPEC.max_tokens * 1000, 5, 5), -1.0, np.float32)]
    endless[0][:, :, 2] = -0.1
    spec = replace(SPEC, max_tokens=SPEC.max_tokens * 1000)
    backend = ScriptedBackend(endless, slots=4)
    backend.lane = lambda slots, alone=False: Lane(endless, slots, 1, [])  # type: ignore[method-assign]
    closed = threading.Event()

    def jobs() -> Jobs:
        try:
            yield from table_jobs(100)
        finally:
            closed.set()

    loop = Loop(backend)
    with loop.open() as run:
        number = run.add(jobs(), partial(Greedy, spec=spec))
        while loop.pulse().decoding < 4:
            time.sleep(0.001)
        run.cancel(number)
        cancelled.set()
        time.sleep(0.05)
        assert closed.is_set()
        assert len(steps) <= 1
        assert loop.pulse()[:3] == (0, 0, 0)


@pytest.mark.parametrize("remember", [None, REMEMBER])
@pytest.mark.parametrize("call", ["load", "step", "move"])
def test_a_failing_device_reaches_all_callers_and_the_next_ones_begin_anew(
    remember: Callable[..., object] | None, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()
    real = getattr(ScriptedLane, call)

    def fails(*arguments: object) -> None:
        if next(calls) == 7:
            raise ArithmeticError("no device")
        real(*arguments)

    monkeypatch.setattr(ScriptedLane, call, fails)
    before = threading.active_count()
    loop = Loop(ScriptedBackend(tables(4), workers=2, slots=3), remember=remember)
    raised = []

    def caller(run: Run) -> None:
        with run:
            for _ in range(4):
                run.add(table_jobs(30), SEARCH)
            try:
                list(run.results())
            except ArithmeticError as error:
                raised.append(str(error))

    runs = [loop.open() for _ in range(3)]
    threads = [threading.Thread(target=caller, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS)
    assert raised == ["no device"] * 3
    assert threading.active_count() <= before
    with loop.open() as again:
        again.add(table_jobs(3), SEARCH)
        again.end()
        assert len(list(again.results())) == 4


def test_closing_one_run_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(ScriptedBackend(tables(5), workers=2, slots=3))
    with loop.open() as kept:
        kept.add(table_jobs(200), SEARCH)
        kept.end()
        with loop.open() as given_up:
            given_up.add(table_jobs(200), SEARCH)
            assert isinstance(given_up.get(), Decoded)
        given_up.close()
        assert len(list(kept.results())) == 201


def test_a_run_that_was_closed_takes_nothing() -> None:
    closed = []

    def jobs() -> Iterator[Job]:
        try:
            yield from table_jobs(3)
        finally:
            closed.append(True)

    loop = Loop(ScriptedBackend(tables(6)))
    with loop.open() as run:
        pass
    run.add(jobs(), SEARCH)  # type: ignore[arg-type]
    assert list(run.results()) == []
