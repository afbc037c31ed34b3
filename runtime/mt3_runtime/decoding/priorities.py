"""Who comes first: which recording is read, and which is decoded, of those that could be.

1. the more urgent class (`mt3_runtime.decoding.strands.Priority`);
2. the client that had less: service counts in steps of `QUANTUM` seconds of audio, so that clients
   take turns without cutting every recording into pieces;
3. the recording of which least is left, as finishing what is short, or nearly done, is what makes
   the mean wait shortest; recordings of unknown length in the order in which they came.

Every sixteenth turn goes to whoever has waited longest, if that is longer than `PATIENCE` seconds:
nobody starves.  A recording is opened only when those ahead of it cannot fill the slots, and no
more is read ahead than a few segments.

A step takes longer the more rows it has, and a lane may be full.  So a segment that is more urgent
than all that a lane holds, by its class or as far less of its recording is to be done, goes
*ahead*: its worker decodes it in a second lane, and the first one waits meanwhile.  A lane that
holds something more urgent is not filled up with others; and to one that has as many rows as pay
(`mt3_runtime.decoding.step_costs`) no further recording is added for which somebody waits.

Lanes share caches and memory, and every step reads all weights.  So lanes without live segments
wait while a live one is decoded in another: with Magenta's MT3 on two cores its steps take half as
long then, and no encoder run of others comes between.

Contract: methods look at recordings and change nothing but the accounts of the clients; whoever
calls them holds the lock of the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mt3_runtime.decoding.strands import Priority

if TYPE_CHECKING:
    from mt3_runtime.decoding.step_costs import StepCosts
    from mt3_runtime.decoding.strands import Load, Strand, Window

QUANTUM = 60.0
"""Seconds of audio; of two clients the one that had this much less comes first."""

PATIENCE, PATIENT_TURNS = 30.0, 16
"""Seconds a recording may wait for its next segment; and how many turns there are to one of those
that go to one that has waited longer."""

FEW_ROWS = 4
"""Rows up to which a lane takes in what is less urgent than what it holds.  With Magenta's MT3 a
step takes 2.3 ms with one row, 6 ms with 8, 15 ms with 32."""

FAR_LESS, MUCH_LESS = 2, 10.0
"""A recording for which somebody waits goes ahead of another one of which so many times as much is
not done, and so many seconds of audio more: clips of ten seconds that come together never stop each
other.  In a batch, where nobody waits, full lanes are worth more."""

LONGEST_WAIT = 5.0
"""Seconds that a lane waits for what is not live; then it has a sixteenth of that for itself."""

LONGEST_HOLD, HOLD_SHARE = 2.0, 0.5
"""Seconds that a lane waits for live segments in other lanes, and the share of the time it waited
that it has for itself afterwards: with so many live inputs that one of their segments is always
decoded, the others still have a third of the time."""


class Priorities:
    """The rules above.

    Args:
        ahead: Segments that wait for nothing but a worker, at most.
        abreast: Recordings that are read at once, at most.
        memory: Whether a segment waits for the one before it.
        costs: What steps take.
        clock: In seconds.
    """

    def __init__(
        self,
        *,
        ahead: int,
        abreast: int,
        memory: bool,
        costs: StepCosts,
        clock: Callable[[], float],
    ) -> None:
        self._ahead, self._abreast, self._memory = ahead, abreast, memory
        self._costs, self._clock = costs, clock
        self._spent: dict[str, float] = {}  # seconds of audio by client

    def admit(self, client: str) -> None:
        """Opens the account of a client, who begins level with the one that had least."""
        if client not in self._spent:
            self._spent[client] = min(self._spent.values(), default=0.0)

    def spend(self, client: str, seconds: float) -> None:
        """A client was served so much audio."""
        self._spent[client] += seconds

    def forget(self, client: str) -> None:
        """Closes the account of a client that has nothing under way."""
        del self._spent[client]

    def may_read(self, strand: Strand) -> bool:
        """Whether there is room for its next segment."""
        room = strand.window.used < strand.window.limit
        ahead = self._memory and bool(strand.waiting)  # one is, of a model with memory
        return room and not (strand.reading or strand.read or ahead)

    def slow_to_read(self, strand: Strand) -> bool:
        """Whether the reader of one recording alone may go on."""
        return self.may_read(strand) and len(strand.waiting) < self._ahead

    def to_read(self, strands: Sequence[Strand], turn: int) -> Strand | None:
        """The recording to read a segment of; None if there is enough for the workers."""
        wanted = [strand for strand in strands if self.may_read(strand) and not strand.slow]
        if not wanted:
            return None
        return self._longest(wanted, turn) or self._needed(strands)

    def wants_more(self, strands: Sequence[Strand], window: Window, *, idle: bool) -> bool:
        """Whether a caller's recordings cannot keep the workers busy, so that another is wanted.

        Args:
            strands: All recordings.
            window: Tells those of the caller.
            idle: Whether a reader has nothing to do.
        """
        mine = [strand for strand in strands if strand.window is window]
        enough = not self._memory and sum(len(s.waiting) for s in mine) >= self._ahead
        if enough or window.used >= window.limit or len(mine) >= self._abreast:
            return False
        if any(self.may_read(strand) for strand in mine):
            return False
        return idle or not any(strand.reading for strand in mine)

    def to_take(
        self, strands: Sequence[Strand], load: Load, turn: int, *, alone_held: bool
    ) -> tuple[Strand | None, bool]:
        """The recording of which a worker decodes the next segment, and whether that goes ahead.

        Args:
            strands: All recordings.
            load: What is in the worker's lane.
            turn: Number of the turn.
            alone_held: Whether the lane that has the whole device is in use.
        """
        ready = [s for s in strands if s.waiting and not (self._memory and s.under_way)]
        if ready and self.solitary(strands):
            room = load.rows + load.channels <= load.slots
            free = room if load.alone else not (alone_held or load.rows)
            return (ready[0] if free else None), False
        if load.alone or not ready:
            return None, False
        may = (self._clock() > load.until) == (load.below is None)
        ahead = _ahead_of(ready, load if load.below is None else load.below, others=may)
        if load.below is None and load.rows and ahead:
            return min(ahead, key=self._rank), True
        found = [s for s in (ready if load.below is None else ahead) if _fits(s, load)]
        if not found:
            return None, False
        longest = self._longest(found, turn)
        best = longest or (found[0] if len(found) == 1 else min(found, key=self._rank))
        waits = best.priority is Priority.INTERACTIVE and best not in load.strands
        if waits and best is not longest and load.rows >= self._costs.pay:
            return None, False  # it would only make those slower that run
        return best, False

    def gives_way(self, strands: Sequence[Strand], load: Load) -> bool:
        """Whether a lane without live segments waits, as there is one in another lane."""
        if _holds_live(load):
            return False
        return any(s.priority is Priority.LIVE and s.under_way for s in strands)

    def solitary(self, strands: Sequence[Strand]) -> bool:
        """Whether there is one recording only, and few of its segments can be decoded at a time."""
        if len(strands) != 1 or strands[0].company:
            return False
        (strand,) = strands
        span = strand.waiting[0].span
        single = span.index == 0 and span.next_start is None
        return strand.live or single or self._memory

    def _rank(self, strand: Strand) -> tuple[float, ...]:
        if strand.live:
            return (strand.priority, 0.0, strand.arrived, strand.age)
        served = self._spent[strand.client] // QUANTUM
        return (strand.priority, served, strand.left, strand.age)

    def _longest(self, strands: Sequence[Strand], turn: int) -> Strand | None:
        """The one that has waited too long, if it is its turn."""
        if turn % PATIENT_TURNS != PATIENT_TURNS - 1:
            return None
        strand = min(strands, key=lambda strand: strand.since)
        return strand if self._clock() - strand.since > PATIENCE else None

    def _needed(self, strands: Sequence[Strand]) -> Strand | None:
        """The first one to read, unless those ahead of it have enough for the workers."""
        ready = abreast = 0
        for strand in sorted(strands, key=self._rank):
            ready += len(strand.waiting)
            if abreast == self._abreast or (ready >= self._ahead and not self._memory):
                return None
            if self.may_read(strand) and not strand.slow:
                return strand
            abreast += strand.window.used < strand.window.limit
        return None


def _ahead_of(strands: Sequence[Strand], load: Load, *, others: bool) -> list[Strand]:
    """Those that go ahead of all that a lane holds; live ones, and others too if they may."""
    return [
        strand
        for strand in strands
        if (others or strand.priority is Priority.LIVE)
        and load.rows
        and all(_precedes(strand, other) for other in load.strands)
    ]


def _precedes(strand: Strand, other: Strand) -> bool:
    """Whether one is so much more urgent than another that it goes ahead of it."""
    if strand.priority is other.priority:
        if strand.priority is not Priority.INTERACTIVE:
            return False
        mine = strand.unfinished
        return max(FAR_LESS * mine, mine + MUCH_LESS) < other.unfinished
    return strand.priority < other.priority


def _fits(strand: Strand, load: Load) -> bool:
    """Whether a lane takes a segment beside what it holds."""
    if load.rows + load.channels > load.slots:
        return False
    few = 1 if load.below is not None and _holds_live(load) else FEW_ROWS
    return load.rows < few or not any(_precedes(other, strand) for other in load.strands)


def _holds_live(load: Load) -> bool:
    return any(strand.priority is Priority.LIVE for strand in load.strands)
