"""What waits for the decoder: recordings under way, their segments, and how urgent they are.

Contract: a `Strand` is a recording or live input that was handed to the decoding loop, with what
is asked for and how far it is; `mt3_runtime.decoding.scheduler` alone changes it.  A `Turn` is one
of its segments on the way to a worker, whose `Load` says what fits into its lane.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mt3_runtime.backends.base import IdArray
    from mt3_runtime.decoding.search import MakeSearch
    from mt3_runtime.decoding.types import Decoded, Ended, Job, Jobs, Sequence


class Priority(IntEnum):
    """How urgent a recording is: what is played right now, what somebody waits for, the rest."""

    LIVE = 0
    INTERACTIVE = 1
    BATCH = 2


@dataclass(eq=False)
class Window:
    """How many segments may be under way or wait for their consumer; recordings may share one.

    A segment at the token limit takes as long as twenty usual ones and must not starve the other
    slots meanwhile, so a window is many segments wide.
    """

    limit: int
    used: int = 0


@dataclass(eq=False, kw_only=True)
class Strand:
    """A recording or live input under way.

    Attributes:
        number: Its place among those of one caller.
        jobs: Its segments; closed when they are of no more use.
        search: Makes the search of a lane for it; recordings with the same one share it.
        emit: Takes what comes out: segments in any order, and one end (or an earlier one behind
            it, when a segment before the end fails).
        window: Of its consumer.
        priority: Its class.
        client: On whose account it goes.
        live: Its segments come one at a time, as they are played.
        slow: The next segment may be long in coming, so a thread of its own reads it.
        company: Others are known to follow, so it never gets the whole device.
        seconds: Its length, None if that is not known.
    """

    number: int
    jobs: Jobs
    search: MakeSearch
    emit: Callable[[Decoded | Ended], None]
    window: Window
    priority: Priority = Priority.INTERACTIVE
    client: str = ""
    live: bool = False
    slow: bool = False
    company: bool = False
    seconds: Callable[[], float | None] = lambda: None

    # Kept by the schedule: its place in time; segments that were offered, wait, are decoded, and
    # count in the window; seconds that were taken, and that are done; since when it waits for its
    # turn, and since when its first segment does; from which segment on all is void.
    age: int = 0
    offered: int = 0
    waiting: deque[Job] = field(default_factory=deque)
    under_way: int = 0
    held: int = 0  # of the window
    taken: float = 0.0
    finished: float = 0.0
    since: float = 0.0
    arrived: float = 0.0
    end: int = sys.maxsize
    reading: bool = False
    read: bool = False  # to its end
    last: Sequence | None = None

    @property
    def left(self) -> float:
        """Seconds that were not taken; infinite if its length is not known."""
        seconds = self.seconds()
        return math.inf if seconds is None else max(0.0, seconds - self.taken)

    @property
    def unfinished(self) -> float:
        """Seconds that are not done, those in the slots included; infinite as `left`."""
        seconds = self.seconds()
        return math.inf if seconds is None else max(0.0, seconds - self.finished)


@dataclass(frozen=True, eq=False)
class Turn:
    """A segment that may be decoded now.

    Attributes:
        strand: Of which recording.
        job: The segment.
        previous_ids: What its memory is made of, if it has one.
        alone: Nothing else is there to be decoded, so it may have the whole device.
        ahead: It goes ahead of what is in the lane of the worker that took it.
    """

    strand: Strand
    job: Job
    previous_ids: IdArray | None
    alone: bool = False
    ahead: bool = False

    @property
    def void(self) -> bool:
        """Whether nobody wants it any more."""
        return self.job.span.index >= self.strand.end


@dataclass
class Load:
    """What a worker's lane holds.

    Attributes:
        channels: Rows that a segment takes.
        slots: Rows there are.
        rows: Those in use.
        strands: Whose rows they are.
        alone: It is the lane that has the whole device.
        below: What waits meanwhile, in the worker's other lane.
        until: Nothing goes ahead of the other lane behind this time; or, of that lane, nothing goes
            ahead of it up to then.  Live segments do.
        held: Since when it waits for live segments in other lanes, None if it does not.
        free: Up to then it does not.
    """

    channels: int
    slots: int
    rows: int = 0
    strands: frozenset[Strand] = frozenset()
    alone: bool = False
    below: Load | None = None
    until: float = 0.0
    held: float | None = None
    free: float = 0.0
