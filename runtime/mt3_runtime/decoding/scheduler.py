"""Schedules segments for decoding, between the thread that reads and the workers.

Contract: one feeder offers the segments of each recording in order, several workers take them.  In
a model without memory segments are independent and are taken in the order in which they were
offered.  In a model with memory a segment reads what the one before it said: it is taken only when
that one is done, and many recordings go abreast so that there is something to take.

The feeder asks from which recording to read (`Schedule.wanting`) before it reads, so no more is
ever held than a few segments, whatever the length and the number of recordings.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mt3_runtime.backends.base import IdArray
    from mt3_runtime.decoding.types import Job, Sequence

Remember = Callable[["Sequence | None"], "IdArray"]
"""Makes the ids a segment reads from what its predecessor said, None for a first segment."""


@dataclass(eq=False)
class Strand:
    """A recording under way: its segments that wait, one behind another.

    Attributes:
        number: Its place among all recordings, from 0.
        offered: How many of its segments were offered.
        waiting: Those whose predecessor is not done.
        busy: One of them is decoded, or about to be (models with memory).
        last: What the one done last said.
    """

    number: int
    offered: int = 0
    waiting: deque[Job] = field(default_factory=deque)
    busy: bool = False
    last: Sequence | None = None


@dataclass(frozen=True, eq=False)
class Turn:
    """A segment that may be decoded now, with the ids its memory is made of, if it has one."""

    strand: Strand
    job: Job
    previous_ids: IdArray | None


class Schedule:
    """All segments that wait.  Every method may be called from any thread.

    Args:
        ready: Most segments that wait for nothing but a worker.
        under_way: Most segments that were offered and not released, see `release`.
        remember: None for a model without memory.
    """

    def __init__(self, *, ready: int, under_way: int, remember: Remember | None) -> None:
        self._room, self._free, self._remember = ready, under_way, remember
        self._ready: deque[Turn] = deque()
        self._waiting = 0
        self._fed = self._closed = False
        self._changed = threading.Condition()

    @property
    def closed(self) -> bool:
        """Whether the work was called off."""
        return self._closed

    def wanting(self, strands: Iterable[Strand], *, wait: bool) -> Strand | None:
        """The first of some recordings whose next segment there is room for.

        Returns:
            None if there is none now, or, with ``wait``, if the work was called off.
        """
        with self._changed:
            while not self._closed:
                for strand in strands:
                    if self._has_room(strand):
                        return strand
                if not wait:
                    return None
                self._changed.wait()
            return None

    def offer(self, strand: Strand, job: Job) -> None:
        """Adds the next segment of a recording that `wanting` has named."""
        with self._changed:
            strand.offered += 1
            self._free -= 1
            self._waiting += 1
            strand.waiting.append(job)
            self._make_ready(strand)

    def end(self) -> None:
        """Nothing more will be offered."""
        with self._changed:
            self._fed = True
            self._changed.notify_all()

    def take(self, *, wait: bool) -> Turn | None:
        """Removes the segment whose turn it is.

        Returns:
            None if there is none now, or, with ``wait``, if there will never be another.
        """
        with self._changed:
            while not self._closed:
                if self._ready:
                    self._waiting -= 1
                    self._changed.notify_all()
                    return self._ready.popleft()
                if not wait or (self._fed and not self._waiting):
                    return None
                self._changed.wait()
            return None

    def done(self, turn: Turn, sequence: Sequence) -> None:
        """A segment was decoded: in a model with memory, its successor's turn may have come."""
        if self._remember:
            with self._changed:
                turn.strand.last, turn.strand.busy = sequence, False
                self._make_ready(turn.strand)

    def release(self) -> None:
        """A result was consumed."""
        with self._changed:
            self._free += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Calls the work off: whoever waits is woken, and nothing is handed out any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _has_room(self, strand: Strand) -> bool:
        if self._free <= 0:
            return False
        if self._remember:  # one segment is read ahead of the one that is decoded
            return not strand.waiting
        return len(self._ready) < self._room

    def _make_ready(self, strand: Strand) -> None:
        remember = self._remember
        if strand.waiting and not strand.busy:
            ids = remember(strand.last) if remember else None
            self._ready.append(Turn(strand, strand.waiting.popleft(), ids))
            strand.busy = remember is not None
        self._changed.notify_all()
