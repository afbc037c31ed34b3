"""Fills the slots of a lane with segments, decodes them token by token, and refills free slots.

Segments are independent, and so are the channels of a segment in a model that decodes several
sequences from each: every row decodes one channel and knows nothing of the others.  A channel that
reaches its end leaves its row at once, and the last running row moves into the gap, so that rows
stay dense.  One encoder call fills the rows of all channels of a segment, so a segment is taken as
soon as so many rows are free.  A lane has that many more than pay off: it never runs with fewer
rows than pay off while segments wait, although most channels end within ten tokens, and nothing
encoded ever waits for a row.  A segment is done when all its channels are.

Every row has a search of its own kind: rows of requests that differ share a lane, and each search
is told which rows are its own.

Contract: one thread uses a `Rows`.  What a recording's own features raise ends that recording; what
a lane raises is the device's fault and reaches the caller of `Rows.run`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mt3_runtime.decoding.priorities import LONGEST_WAIT, PATIENT_TURNS
from mt3_runtime.decoding.strands import Load

if TYPE_CHECKING:
    from mt3_runtime.backends.base import Backend
    from mt3_runtime.decoding.scheduler import Schedule
    from mt3_runtime.decoding.search import Greedy, MakeSearch
    from mt3_runtime.decoding.strands import Turn
    from mt3_runtime.decoding.types import BoolArray, Sequence
    from mt3_runtime.decoding.types import Rows as Which

#: A lane with more rows takes a further segment per step for each so many: segments have 50 tokens
#: in the middle, so one per step keeps fifty rows busy, and no more.
_ROWS_PER_SEGMENT = 32

#: Searches that a lane keeps although none of its rows needs them now; the state of one with a
#: grammar takes half a megabyte.
_SPARE_SEARCHES = 4


@dataclass(eq=False)
class _Segment:
    """A segment under way, the search of its rows, and what its finished channels said."""

    turn: Turn
    search: Greedy
    sequences: dict[int, Sequence] = field(default_factory=dict)


class Rows:
    """A worker's lane, its searches, and what is in its rows.

    Args:
        backend: Makes the lane.
        schedule: Where segments come from, and go to when they are done.
        alone: The lane has the whole device.
        below: The rows that wait meanwhile.

    Attributes:
        load: What the lane holds.
    """

    def __init__(
        self,
        backend: Backend,
        schedule: Schedule,
        *,
        alone: bool = False,
        below: Rows | None = None,
    ) -> None:
        self._backend, self._schedule, self._below = backend, schedule, below
        self._lane = lane = backend.lane(backend.slots, alone=alone)
        self._above: Rows | None = None  # for what goes ahead
        self._rows: list[tuple[_Segment, int]] = []  # segment and channel of every running row
        self._searches: dict[MakeSearch, Greedy] = {}
        self._groups: list[tuple[Greedy, Which]] = []  # which rows are whose
        under: Load | None = None if below is None else below.load
        self.load: Load = Load(lane.channels, lane.room, alone=alone, below=under)
        self._widens = lane.room < lane.slots
        self._voided = 0

    def run(self, turn: Turn | None) -> None:
        """Works, beginning with a turn, until there is no other or the work is called off."""
        while not self._schedule.closed:
            taken = 0
            while turn is not None:
                if turn.ahead and self._below is None:
                    self._let_go_ahead(turn)
                else:
                    self._encode(turn)
                taken += 1
                turn = self._next() if taken <= len(self._rows) // _ROWS_PER_SEGMENT else None
            self.drop_void()
            if not self._rows:
                return
            ended = self._step()
            if ended.any():
                self._finish(ended)
            # One segment per step: the first one's tokens need not wait until all rows are full,
            # and workers fall out of step, so that one encodes while another decodes.
            # What comes when they are empty may be for another lane.
            turn = self._next() if self._rows else None

    def _next(self) -> Turn | None:
        """The next segment for this lane, which gets more rows if it is full and segments wait."""
        turn, load = self._schedule.take(self.load, wait=False), self.load
        full = load.rows + load.channels > load.slots
        if turn is None and full and self._widens and self._schedule.pulse().waiting:
            self._widens = self._lane.widen()
            load.slots = self._lane.room
            turn = self._schedule.take(load, wait=False)
        return turn

    def _let_go_ahead(self, turn: Turn) -> None:
        """Decodes a segment, and what else may go ahead, in a second lane."""
        if self._above is None:
            self._above = Rows(self._backend, self._schedule, below=self)
        begin = self._schedule.now()
        self._above.load.until = begin + LONGEST_WAIT
        self._above.run(turn)
        end = self._schedule.now()
        self.load.until = end + (end - begin) / PATIENT_TURNS

    def _encode(self, turn: Turn) -> None:
        """Encodes a segment into the rows behind the running ones."""
        try:
            with self._schedule.work.stage("features"):
                features = turn.job.features()
        except Exception as error:  # noqa: BLE001  handed to whoever wants the recording
            self._schedule.fail(turn, error)
            return
        first, segment = len(self._rows), _Segment(turn, self._search(turn))
        with self._schedule.work.stage("encode"):
            self._lane.load(first, features, turn.previous_ids)
        for channel in range(self._lane.channels):
            segment.search.start(self._lane, first + channel, turn.job.span)
            self._rows.append((segment, channel))
        self._group()

    def _search(self, turn: Turn) -> Greedy:
        """The search of a segment's rows; those of other rows with the same wishes share it."""
        make, known = turn.strand.search, self._searches
        if make not in known:
            used = {id(segment.search) for segment, _ in self._rows}
            spare = [key for key, search in known.items() if id(search) not in used]
            for key in spare[: max(0, len(spare) - _SPARE_SEARCHES + 1)]:
                del known[key]
            known[make] = make(self._lane.slots)
        return known[make]

    def _group(self) -> None:
        """Renews who has which rows, after they have changed."""
        count = len(self._rows)
        self.load.rows = count
        self.load.strands = frozenset(segment.turn.strand for segment, _ in self._rows)
        searches = {id(segment.search): segment.search for segment, _ in self._rows}
        if len(searches) == 1:
            self._groups = [(search, slice(count)) for search in searches.values()]
            return
        owners = np.array([id(segment.search) for segment, _ in self._rows], np.uint64)
        self._groups = [
            (search, np.flatnonzero(owners == np.uint64(key))) for key, search in searches.items()
        ]

    def _step(self) -> BoolArray:
        """Decodes one token in every row; returns which rows are complete."""
        count = len(self._rows)
        begin = self._schedule.now()
        self._lane.step(count)
        self._schedule.beat = now = self._schedule.now()
        self._schedule.costs.add(count, now - begin)
        self._schedule.work.add_step(count, now - begin)
        if len(self._groups) == 1:
            return self._groups[0][0].advance(self._lane, slice(count))
        ended = np.zeros(count, np.bool_)
        for search, rows in self._groups:
            ended[rows] = search.advance(self._lane, rows)
        return ended

    def _finish(self, ended: BoolArray) -> None:
        """Takes out what is complete."""
        for slot in np.flatnonzero(ended).tolist():
            segment, channel = self._rows[slot]
            segment.sequences[channel] = segment.search.result(slot)
            if len(segment.sequences) == self._lane.channels:
                channels = range(self._lane.channels)
                self._schedule.done(segment.turn, tuple(segment.sequences[c] for c in channels))
        self._close_gaps(ended)

    def drop_void(self) -> None:
        """Takes out what nobody wants any more, if there is any."""
        if self._below is not None:
            self._below.drop_void()
        if self._voided == self._schedule.voided:
            return
        self._voided = self._schedule.voided
        void = np.array([segment.turn.void for segment, _ in self._rows], np.bool_)
        if void.any():
            for segment in {segment for segment, _ in self._rows if segment.turn.void}:
                self._schedule.drop(segment.turn)
            self._close_gaps(void)

    def _close_gaps(self, gone: BoolArray) -> None:
        """Moves the last running rows into the place of those that are gone."""
        left = len(gone) - int(np.count_nonzero(gone))
        gaps, movers = np.flatnonzero(gone[:left]), left + np.flatnonzero(~gone[left:])
        for source, target in zip(movers.tolist(), gaps.tolist(), strict=True):
            self._lane.move(source, target)
            self._rows[source][0].search.move(source, target)
            self._rows[target] = self._rows[source]
        del self._rows[left:]
        self._group()
