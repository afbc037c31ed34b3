"""Continuous batching: decodes many segments of many recordings through a few slots.

Segments are independent, and so are the channels of a segment in a model that decodes several
sequences from each: every slot decodes one channel and knows nothing of the others.  A channel that
reaches its end leaves its slot at once, and the last running slot moves into the gap, so the rows
of a lane stay dense.  One encoder call fills the slots of all channels of a segment, so a segment
is taken from the queue as soon as so many slots are free.  A lane has that many more than pay off:
it never runs with fewer rows than pay off while segments wait, although most channels end within
ten tokens, and nothing encoded ever waits for a slot.  A segment is done when all its channels are.

A feeder thread reads the recordings, one after another and a bounded number of segments ahead, so
that slow input (a live stream) never stalls segments already running and memory does not depend on
the length or number of the recordings.  Each worker thread drives its own lane.  In a model with
memory a segment needs what its predecessor said; then as many recordings are read abreast as there
are slots, and each has one segment in them (`mt3_runtime.decoding.scheduler`).

Results come out in order within each recording.  They depend on nothing but the segment (and its
predecessors, with memory): not on slots, threads, neighbours, or the order of the recordings.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mt3_runtime.decoding.scheduler import Schedule, Strand, Turn
from mt3_runtime.decoding.types import Decoded, Ended, Jobs

if TYPE_CHECKING:
    import numpy.typing as npt

    from mt3_runtime.backends.base import Backend, Lane
    from mt3_runtime.decoding.scheduler import Remember
    from mt3_runtime.decoding.search import Greedy
    from mt3_runtime.decoding.types import Sequence

#: How many segments per slot may be under way or waiting for the consumer.  A segment at the token
#: limit takes as long as twenty usual ones, and must not starve the other slots meanwhile.
_AHEAD_PER_SLOT = 32

#: Most recordings that are open at once, in a model with memory; each may hold a file open.
_MOST_ABREAST = 64


def decode(
    backend: Backend,
    recordings: Iterable[Jobs],
    make_search: Callable[[int], Greedy],
    *,
    remember: Remember | None = None,
    live: bool = False,
    lone: bool = False,
) -> Generator[Decoded | Ended, None, None]:
    """Decodes all segments of recordings and yields them as they complete.

    Args:
        backend: Loaded graphs.
        recordings: The segments of each recording, in their order; read on a thread of its own, a
            few ahead of need, and closed if not read to the end.
        make_search: Makes the search for a lane of that many slots.
        remember: Makes the ids that the encoder of a model with memory reads from what it said
            about the previous segment, None for the first one.
        live: Segments arrive one at a time; one worker with the whole device is then quicker than
            several that share it.
        lone: There is one recording only.  If it has one segment, or the model has memory, that is
            as if it were live.

    Yields:
        For each recording one `Decoded` per job, in the order of the jobs, then one `Ended`.  Those
        of different recordings may be mixed.

    Raises:
        Exception: Whatever ``recordings`` itself, computing features or running a graph raised.
            What reading a single recording raises does not end the others; see `Ended`.
    """
    run = _Run(backend, recordings, make_search, remember, live=live, lone=lone)
    with closing(run):
        yield from run.results()


class _Failure:
    """An exception on its way from a thread to the caller."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Run:
    """The threads and queues of one `decode` call."""

    def __init__(
        self,
        backend: Backend,
        recordings: Iterable[Jobs],
        make_search: Callable[[int], Greedy],
        remember: Remember | None,
        *,
        live: bool,
        lone: bool,
    ) -> None:
        self._backend, self._make_search = backend, make_search
        self._alone, self._lone = live or (lone and remember is not None), lone
        self._workers = 1 if self._alone else backend.workers
        slots = self._workers * backend.slots
        self._abreast = min(slots, _MOST_ABREAST) if remember else 1
        self._schedule = Schedule(
            ready=2 * self._workers, under_way=_AHEAD_PER_SLOT * slots, remember=remember
        )
        self._done: queue.SimpleQueue[Decoded | Ended | _Failure | None] = queue.SimpleQueue()
        targets = [partial(self._feed, iter(recordings)), *[self._work] * self._workers]
        self._threads = [
            threading.Thread(target=self._guard, args=(t,), daemon=True) for t in targets
        ]
        for thread in self._threads:
            thread.start()

    def results(self) -> Iterator[Decoded | Ended]:
        """Everything that comes out, the segments of each recording in order."""
        orders: dict[int, _Order] = {}
        running = self._workers
        while running:
            item = self._done.get()
            if item is None:
                running -= 1
            elif isinstance(item, _Failure):
                raise item.error
            else:
                order = orders.setdefault(item.recording, _Order())
                yield from order.add(item, self._schedule.release)
                if order.complete:
                    del orders[item.recording]

    def close(self) -> None:
        """Stops all threads and waits for the workers.

        The feeder gets a second: it may be blocked in a live input that nothing can interrupt.
        """
        self._schedule.close()
        feeder, *workers = self._threads
        for thread in workers:
            thread.join()
        feeder.join(timeout=1.0)

    def _guard(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001  handed to the caller, who raises it
            self._schedule.close()
            self._done.put(_Failure(error))

    def _feed(self, recordings: Iterator[Jobs]) -> None:
        """Offers all segments; a further recording is opened when the open ones want nothing."""
        schedule, number, more = self._schedule, 0, True
        reading: dict[Strand, Jobs] = {}
        try:
            while (more or reading) and not schedule.closed:
                may_open = more and len(reading) < self._abreast
                strand = schedule.wanting(reading, wait=not may_open)
                if strand is not None:
                    self._read(strand, reading)
                elif may_open:
                    jobs = next(recordings, None)
                    more = jobs is not None
                    if jobs is not None:
                        reading[Strand(number)] = jobs
                        number += 1
        finally:
            for jobs in reading.values():
                jobs.close()
        schedule.end()

    def _read(self, strand: Strand, reading: dict[Strand, Jobs]) -> None:
        """Offers the next segment of a recording, or says that it has no more."""
        job, fault = None, None
        try:
            job = next(reading[strand], None)
        except Exception as error:  # noqa: BLE001  handed to the caller, who knows what to do
            fault = error
        if job is not None:
            self._schedule.offer(strand, job)
        else:
            del reading[strand]
            self._done.put(Ended(strand.number, strand.offered, fault))

    def _work(self) -> None:
        turn = self._schedule.take(wait=True)
        if turn is not None:
            slots, span = self._backend.slots, turn.job.span
            whole = self._lone and span.index == 0 and span.next_start is None
            lane = self._backend.lane(slots, alone=self._alone or whole)
            worker = _Worker(lane, self._make_search(slots), self._schedule, self._done.put)
            worker.run(turn)
        self._done.put(None)


class _Order:
    """The results of one recording on their way out."""

    def __init__(self) -> None:
        self._early: dict[int, Decoded] = {}
        self._count = 0
        self._end: Ended | None = None

    @property
    def complete(self) -> bool:
        """Whether all of them are out."""
        return self._end is not None and self._end.segments == self._count

    def add(self, item: Decoded | Ended, release: Callable[[], None]) -> Iterator[Decoded | Ended]:
        """Yields what has its turn with this result; ``release`` is called for each segment."""
        if isinstance(item, Ended):
            self._end = item
        else:
            self._early[item.span.index] = item
        while self._count in self._early:
            yield self._early.pop(self._count)
            release()
            self._count += 1
        if self._end is not None and self.complete:
            yield self._end


@dataclass(eq=False)
class _Segment:
    """A segment under way, and what its finished channels said."""

    turn: Turn
    sequences: dict[int, Sequence] = field(default_factory=dict)


class _Worker:
    """One thread's lane, its search, and what is in its slots."""

    def __init__(
        self, lane: Lane, search: Greedy, schedule: Schedule, emit: Callable[[Decoded], None]
    ) -> None:
        self._lane, self._search, self._schedule, self._emit = lane, search, schedule, emit
        self._rows: list[tuple[_Segment, int]] = []  # segment and channel of every running slot

    def run(self, turn: Turn | None) -> None:
        """Works, beginning with a turn, until there is no other or the run is called off."""
        while not self._schedule.closed:
            if turn is not None:
                self._load(turn)
            rows = len(self._rows)
            if not rows:
                return
            self._lane.step(rows)
            ended = self._search.advance(self._lane, rows)
            if ended.any():
                self._finish(ended)
            # One segment per step: the first one's tokens need not wait until all slots are full,
            # and workers fall out of step, so that one encodes while another decodes.
            room = len(self._rows) + self._lane.channels <= self._lane.slots
            turn = self._schedule.take(wait=not self._rows) if room else None

    def _load(self, turn: Turn) -> None:
        """Encodes a segment into the slots behind the running ones."""
        first, segment = len(self._rows), _Segment(turn)
        self._lane.load(first, turn.job.features(), turn.previous_ids)
        for channel in range(self._lane.channels):
            self._search.start(self._lane, first + channel, turn.job.span)
            self._rows.append((segment, channel))

    def _finish(self, ended: npt.NDArray[np.bool_]) -> None:
        """Takes out what is complete, and moves the last running slots into the gaps."""
        for slot in np.flatnonzero(ended).tolist():
            segment, channel = self._rows[slot]
            segment.sequences[channel] = self._search.result(slot)
            if len(segment.sequences) == self._lane.channels:
                self._hand_out(segment)
        left = len(ended) - int(np.count_nonzero(ended))
        gaps, movers = np.flatnonzero(ended[:left]), left + np.flatnonzero(~ended[left:])
        for source, target in zip(movers.tolist(), gaps.tolist(), strict=True):
            self._lane.move(source, target)
            self._search.move(source, target)
            self._rows[target] = self._rows[source]
        del self._rows[left:]

    def _hand_out(self, segment: _Segment) -> None:
        turn = segment.turn
        sequences = tuple(segment.sequences[c] for c in range(self._lane.channels))
        self._schedule.done(turn, sequences[0])
        self._emit(Decoded(turn.strand.number, turn.job.span, sequences))
