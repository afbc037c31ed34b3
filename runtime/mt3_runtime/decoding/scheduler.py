"""Schedules segments for decoding, between the thread that reads and the workers.

Contract: readers ask from which recording to read, and offer its segments in order; workers take
them.  In a model without memory segments are independent; in a model with memory a segment reads
what the one before it said, and is taken only when that one is done, so many recordings go abreast.
Who comes first is the matter of `mt3_runtime.decoding.priorities`.

A recording ends for one of three reasons, and none of them concerns another recording: it was read
to its end (or reading it failed), one of its segments cannot be decoded, or nobody wants it any
more.  Segments behind the end are *void*: those that wait are forgotten, and workers take those
that are under way out of their lanes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from mt3_runtime.decoding.priorities import HOLD_SHARE, LONGEST_HOLD, Priorities
from mt3_runtime.decoding.step_costs import StepCosts
from mt3_runtime.decoding.strands import Priority, Turn
from mt3_runtime.decoding.types import Decoded, Ended
from mt3_runtime.diagnostics.work_totals import WorkCounter

if TYPE_CHECKING:
    from mt3_runtime.backends.base import IdArray
    from mt3_runtime.decoding.strands import Load, Strand, Window
    from mt3_runtime.decoding.types import Job, Sequence

Remember = Callable[["Sequence | None"], "IdArray"]
"""Makes the ids a segment reads from what its predecessor said, None for a first segment."""

MOST_ABREAST = 64
"""Recordings that are read at once, in a model with memory; each may hold a file open."""


class Pulse(NamedTuple):
    """What a schedule holds, and whether it moves.

    Attributes:
        recordings: Those under way.
        waiting: Segments that wait for a worker.
        decoding: Segments that are being decoded.
        stalled: Seconds since a worker did anything; 0 if there is nothing to do.
    """

    recordings: int
    waiting: int
    decoding: int
    stalled: float


class Schedule:
    """All recordings under way.  Every method may be called from any thread.

    Args:
        workers: How many take turns.
        slots: How many rows they have in all.
        remember: Makes a segment's memory; None for a model without.
        costs: What steps take.
        work: Counts what is done.
        clock: In seconds.

    Attributes:
        costs: The same.
        work: The same.
        beat: When a worker last did something.
        voided: How often segments became void; workers look for them when this has changed.
    """

    def __init__(
        self,
        *,
        workers: int,
        slots: int,
        remember: Remember | None = None,
        costs: StepCosts | None = None,
        work: WorkCounter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.costs = costs or StepCosts(slots // workers)
        self.work = work or WorkCounter()
        self._priorities = Priorities(
            ahead=2 * workers,
            abreast=min(slots, MOST_ABREAST),
            memory=remember is not None,
            costs=self.costs,
            clock=clock,
        )
        self._remember, self._clock = remember, clock
        self._strands: list[Strand] = []
        self._ages = self._reads = self._turns = self._idle_readers = 0
        self._alone_held = self._closed = False
        lock = threading.RLock()
        # What workers, readers, and callers with further recordings wait for.
        self._lock = self._takeable = threading.Condition(lock)
        self._readable, self._wanted = threading.Condition(lock), threading.Condition(lock)
        self.beat, self.voided = clock(), 0

    @property
    def closed(self) -> bool:
        """Whether the work was called off."""
        return self._closed

    def now(self) -> float:
        """Seconds, as `beat` counts them."""
        return self._clock()

    # --- callers

    def add(self, strand: Strand) -> None:
        """Takes in a recording."""
        with self._lock:
            strand.age, strand.since = self._ages, self._clock()
            self._ages += 1
            self._priorities.admit(strand.client)
            self._strands.append(strand)
            self._notify()

    def wants_more(self, window: Window) -> bool:
        """Waits until a caller's recordings cannot keep the workers busy.

        Returns:
            False if nothing of this caller will be wanted any more.
        """
        with self._lock:
            while window.limit and not self._closed:
                idle = self._idle_readers > 0
                if self._priorities.wants_more(self._strands, window, idle=idle):
                    return True
                self._wanted.wait()
            return False

    def release(self, strand: Strand) -> None:
        """A result was consumed."""
        with self._lock:
            self._give_back(strand, 1)

    def cancel(self, strand: Strand) -> None:
        """Nobody wants a recording any more: no segment of it is read or decoded from here on."""
        with self._lock:
            self._end(strand, 0)
            self._give_back(strand, strand.held)
            self._remove(strand)
            unread = not strand.reading
        if unread:
            strand.jobs.close()

    def shut(self, window: Window) -> None:
        """Nothing more is wanted of a caller's recordings."""
        with self._lock:
            window.limit = 0
            self._notify()

    def wait_for_reader(self, strand: Strand, timeout: float) -> None:
        """Waits until nobody reads a recording that was cancelled."""
        with self._lock:
            self._readable.wait_for(lambda: not strand.reading, timeout)

    def close(self) -> None:
        """Calls the work off: whoever waits is woken, and nothing is handed out any more."""
        with self._lock:
            self._closed = True
            self._notify()

    def pulse(self) -> Pulse:
        """How much there is to do, and whether it is done."""
        with self._lock:
            waiting = sum(len(strand.waiting) for strand in self._strands)
            decoding = sum(strand.under_way for strand in self._strands)
            stalled = self._clock() - self.beat if waiting or decoding else 0.0
            return Pulse(len(self._strands), waiting, decoding, stalled)

    # --- readers

    def to_read(self, only: Strand | None = None) -> Strand | None:
        """Waits until there is a recording to read a segment of, for which there is room.

        Args:
            only: The recording that this reader reads, if it is one alone.

        Returns:
            None if there will be none for this reader.
        """
        with self._lock:
            while not self._closed and not (only and only not in self._strands):
                strand = self._to_read(only)
                if strand is not None:
                    strand.reading = True
                    return strand
                self._idle_readers += only is None
                self._wanted.notify_all()
                self._readable.wait()
                self._idle_readers -= only is None
            return None

    def offer(self, strand: Strand, job: Job | None, error: Exception | None = None) -> None:
        """Takes in what was read of a recording that `to_read` has named.

        Args:
            strand: The recording.
            job: Its next segment; None if there is no more.
            error: What reading raised.
        """
        with self._lock:
            strand.reading = False
            void = strand.offered >= strand.end
            if not void and job is None:
                strand.emit(Ended(strand.number, strand.offered, error))
            elif not void and job is not None:
                if not strand.waiting:
                    strand.arrived = self._clock()
                strand.offered += 1
                strand.held += 1
                strand.window.used += 1
                strand.waiting.append(job)
            strand.read = void or job is None
            self._leave(strand)
            self._notify()
        if void:
            strand.jobs.close()

    # --- workers

    def take(self, load: Load, *, wait: bool) -> Turn | None:
        """Removes the segment whose turn it is.

        While live segments are decoded in other lanes, a lane may have to wait; see
        `Priorities.gives_way`.

        Returns:
            None if there is none now for this lane, or, with ``wait``, if there will never be.
        """
        with self._lock:
            voided = self.voided
            while not self._closed:
                strand, ahead = self._priorities.to_take(
                    self._strands, load, self._turns, alone_held=self._alone_held
                )
                held = self._held(load)
                if strand is not None and (not held or strand.priority is Priority.LIVE):
                    load.held = None
                    return self._turn(strand, ahead=ahead)
                if not wait and (not held or self.voided != voided):
                    return None
                self._takeable.wait(held or None)
            return None

    def done(self, turn: Turn, sequences: tuple[Sequence, ...]) -> None:
        """A segment was decoded: in a model with memory, its successor's turn may have come."""
        strand, span = turn.strand, turn.job.span
        self.work.add_tokens(sum(len(sequence.tokens) for sequence in sequences))
        with self._lock:
            strand.last = sequences[0]
            strand.under_way -= 1
            strand.finished += span.seconds
            if turn.void:
                self._give_back(strand, 1)
            else:
                strand.emit(Decoded(strand.number, span, sequences))
            self._leave(strand)
            if self._remember or strand.priority is Priority.LIVE:
                self._notify()

    def drop(self, turn: Turn) -> None:
        """A void segment has left its lane."""
        with self._lock:
            turn.strand.under_way -= 1
            self._give_back(turn.strand, 1)
            self._leave(turn.strand)
            self._takeable.notify_all()

    def fail(self, turn: Turn, error: Exception) -> None:
        """A segment cannot be decoded: its recording ends ahead of it."""
        strand = turn.strand
        with self._lock:
            if not turn.void:
                self._end(strand, turn.job.span.index)
                strand.emit(Ended(strand.number, strand.end, error))
            unread = not (strand.read or strand.reading)
            strand.read |= unread
            self.drop(turn)
        if unread:
            strand.jobs.close()

    def leave_alone(self) -> None:
        """The lane that had the whole device is empty."""
        with self._lock:
            self._alone_held = False
            self._takeable.notify_all()

    # --- the lock is held

    def _to_read(self, only: Strand | None) -> Strand | None:
        if only is not None:
            return only if self._priorities.slow_to_read(only) else None
        strand = self._priorities.to_read(self._strands, self._reads)
        self._reads += strand is not None
        return strand

    def _held(self, load: Load) -> float:
        """For how many seconds a lane still waits for live segments in others."""
        now, left = self._clock(), 0.0
        if now >= load.free and self._priorities.gives_way(self._strands, load):
            load.held = now if load.held is None else load.held
            left = load.held + LONGEST_HOLD - now
        if left <= 0.0 and load.held is not None:
            load.free, load.held = now + HOLD_SHARE * (now - load.held), None
        return max(left, 0.0)

    def _turn(self, strand: Strand, *, ahead: bool) -> Turn:
        alone = self._priorities.solitary(self._strands)
        self._alone_held |= alone
        self._turns += 1
        job = strand.waiting.popleft()
        end = job.span.start if job.span.next_start is None else job.span.next_start
        self._priorities.spend(strand.client, end - strand.taken)
        strand.taken = end
        now = self._clock()
        if job.span.index == 0:
            self.work.add_begun(now - strand.since)
        strand.since = strand.arrived = self.beat = now
        strand.under_way += 1
        self._readable.notify_all()
        self._wanted.notify_all()
        ids = self._remember(strand.last) if self._remember else None
        return Turn(strand, job, ids, alone=alone, ahead=ahead)

    def _end(self, strand: Strand, end: int) -> None:
        """Makes all segments from here on void."""
        strand.end = min(strand.end, end)
        while strand.waiting and strand.waiting[-1].span.index >= strand.end:
            strand.waiting.pop()
            self._give_back(strand, 1)
        self.voided += 1
        self._takeable.notify_all()

    def _give_back(self, strand: Strand, count: int) -> None:
        """Makes room in a recording's window; after `cancel` it holds none any more."""
        count = min(count, strand.held)
        strand.held -= count
        strand.window.used -= count
        self._readable.notify_all()
        self._wanted.notify_all()

    def _leave(self, strand: Strand) -> None:
        """Removes a recording when there is nothing more to do for it."""
        if strand.read and not (strand.waiting or strand.under_way):
            self._remove(strand)

    def _remove(self, strand: Strand) -> None:
        if strand in self._strands:
            self._strands.remove(strand)
            if all(other.client != strand.client for other in self._strands):
                self._priorities.forget(strand.client)
            self._notify()

    def _notify(self) -> None:
        self._takeable.notify_all()
        self._readable.notify_all()
        self._wanted.notify_all()
