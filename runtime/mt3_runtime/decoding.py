"""Continuous batching: many segments through a few slots.

Segments are independent, so a slot that reaches end-of-sequence is refilled from a shared queue at
once; when the queue is empty the last running slot moves into the gap.  Each worker thread drives
its own lane.  A feeder thread reads ahead by a bounded number of segments, so that slow input (a
live stream) never stalls segments already running and memory does not depend on the length of the
recording.  Results come out in the order of the segments.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mt3_runtime.backends.base import Backend, FloatArray, Lane
    from mt3_runtime.search import Greedy, Sequence

#: How often a blocked thread looks whether the run was called off, in seconds.
_POLL = 0.1

#: How many segments per slot may be under way or waiting for the consumer.  A segment at the token
#: limit takes as long as twenty usual ones, and must not starve the other slots meanwhile.
_AHEAD_PER_SLOT = 32


@dataclass(frozen=True)
class Span:
    """Where a segment lies.

    Attributes:
        index: Position in the recording, counted from 0 without gaps.
        start: Start time in seconds.
        next_start: Start time of the following segment; None for the last one.
    """

    index: int
    start: float
    next_start: float | None


@dataclass(frozen=True)
class Job:
    """One segment to decode; ``features`` makes its [T, bins], once, on a worker thread."""

    span: Span
    features: Callable[[], FloatArray]


@dataclass(frozen=True)
class Decoded:
    """A segment's tokens; its audio is no longer held."""

    span: Span
    sequence: Sequence


def decode(
    backend: Backend,
    jobs: Iterable[Job],
    make_search: Callable[[int], Greedy],
    *,
    live: bool = False,
) -> Generator[Decoded, None, None]:
    """Decodes jobs and yields them in order as they complete.

    Args:
        backend: Loaded graphs.
        jobs: The segments; read on a thread of its own, a few ahead of need.
        make_search: Makes the search for a lane of that many slots.
        live: Segments arrive one at a time; one worker with the whole device is then quicker than
            several that share it.  So it is for a single segment.

    Yields:
        One `Decoded` per job, in the order of ``jobs``.

    Raises:
        Exception: Whatever reading a job, computing its features or running a graph raised.
    """
    rest = iter(jobs)
    first = next(rest, None)
    if first is None:
        return
    alone = live or first.span.next_start is None
    with closing(_Run(backend, chain([first], rest), make_search, alone=alone)) as run:
        yield from run.results()


class _Failure:
    """An exception on its way from a worker to the caller."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Run:
    """The threads and queues of one `decode` call."""

    def __init__(
        self,
        backend: Backend,
        jobs: Iterable[Job],
        make_search: Callable[[int], Greedy],
        *,
        alone: bool,
    ) -> None:
        self._make_lane = partial(backend.lane, backend.slots, alone=alone)
        self._make_search = partial(make_search, backend.slots)
        self._workers = 1 if alone else backend.workers
        self._cancelled = threading.Event()
        self._waiting: queue.Queue[Job | None] = queue.Queue(maxsize=2 * self._workers)
        self._done: queue.Queue[Decoded | _Failure | None] = queue.Queue()
        # Results wait for the consumer, and for the slowest segment before them.
        self._ahead = threading.Semaphore(_AHEAD_PER_SLOT * self._workers * backend.slots)
        targets = [lambda: self._feed(jobs), *[self._work] * self._workers]
        self._threads = [
            threading.Thread(target=self._guard, args=(t,), daemon=True) for t in targets
        ]
        for thread in self._threads:
            thread.start()

    def results(self) -> Iterator[Decoded]:
        early: dict[int, Decoded] = {}
        following, running = 0, self._workers
        while running:
            item = self._done.get()
            if item is None:
                running -= 1
            elif isinstance(item, _Failure):
                raise item.error
            else:
                early[item.span.index] = item
            while following in early:
                yield early.pop(following)
                self._ahead.release()
                following += 1

    def close(self) -> None:
        """Stops all threads and waits for the workers.

        The feeder gets a second: it may be blocked in a live input that nothing can interrupt.
        """
        self._cancelled.set()
        feeder, *workers = self._threads
        for thread in workers:
            thread.join()
        feeder.join(timeout=1.0)

    def _guard(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001  handed to the caller, who raises it
            self._cancelled.set()
            self._done.put(_Failure(error))

    def _feed(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            while not self._ahead.acquire(timeout=_POLL):
                if self._cancelled.is_set():
                    return
            if not self._put(job):
                return
        for _ in range(self._workers):
            self._put(None)

    def _put(self, item: Job | None) -> bool:
        """Queues an item; False if the run was called off meanwhile."""
        while not self._cancelled.is_set():
            try:
                self._waiting.put(item, timeout=_POLL)
            except queue.Full:
                continue
            return True
        return False

    def _work(self) -> None:
        worker = _Worker(self._make_lane(), self._make_search(), self._take, self._done.put)
        worker.run(self._cancelled)
        self._done.put(None)

    def _take(self, *, wait: bool) -> Job | None:
        """The next job, or None when there is none (yet, unless ``wait``; at all, if ``wait``).

        Raises:
            queue.Empty: Nothing is waiting right now, but the input has not ended.
        """
        while not self._cancelled.is_set():
            try:
                return self._waiting.get(timeout=_POLL) if wait else self._waiting.get_nowait()
            except queue.Empty:
                if not wait:
                    raise
        return None


class _Take(Protocol):
    """See `_Run._take`."""

    def __call__(self, *, wait: bool) -> Job | None: ...


class _Worker:
    """One thread's lane, its search, and the jobs in its slots."""

    def __init__(
        self, lane: Lane, search: Greedy, take: _Take, emit: Callable[[Decoded], None]
    ) -> None:
        self._lane, self._search, self._take, self._emit = lane, search, take, emit
        self._jobs: list[Job] = []
        self._ended = False

    def run(self, cancelled: threading.Event) -> None:
        """Works until the input ends or the run is called off."""
        while not cancelled.is_set():
            self._load_one()
            if not self._jobs:
                return
            rows = len(self._jobs)
            self._lane.step(rows)
            ended = self._search.advance(self._lane, rows)
            # From the back, so that a slot moved into a gap has been looked at already.
            for slot in ended.nonzero()[0][::-1]:
                self._finish(int(slot))

    def _load_one(self) -> None:
        """Loads a waiting job into a free slot; waits for one only if none is running.

        One at a time: the first segment's tokens need not wait until all slots are full, and
        workers fall out of step, so that one encodes while another decodes.
        """
        if self._ended or len(self._jobs) == self._lane.slots:
            return
        try:
            job = self._take(wait=not self._jobs)
        except queue.Empty:
            return
        if job is None:
            self._ended = True
            return
        slot = len(self._jobs)
        self._lane.load(slot, job.features())
        self._search.start(self._lane, slot, job.span)
        self._jobs.append(job)

    def _finish(self, slot: int) -> None:
        """Hands out a slot's result and closes the gap."""
        self._emit(Decoded(self._jobs[slot].span, self._search.result(slot)))
        last = len(self._jobs) - 1
        if slot != last:
            self._lane.move(last, slot)
            self._search.move(last, slot)
            self._jobs[slot] = self._jobs[last]
        self._jobs.pop()
