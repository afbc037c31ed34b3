"""Grammar constraint: masks tokens that could not mean anything where they would stand.

Contract: `Grammar` is a `Constraint`.  It follows the note rules
(`mt3_runtime.notes.magenta_assembler`) for each row, as far as the row's own tokens tell, and
allows what those rules would accept:

* the segment opens with its tie section, in which only programs, pitches not declared yet and the
  tie token may stand; it ends with exactly one tie token, and nothing ends before it;
* time never runs back, nor past the start of the next segment;
* a pitch follows its program and its velocity; with velocity 0 only pitches that sound may follow;
* ids without meaning never occur.

Where the rules differ between ways of joining segments, `_Dialect` says how.

Segments are decoded at the same time, so a segment cannot know what an earlier one left behind.
Program and velocity count as unknown until the segment has said them, and pitches declared in
the tie section count as sounding.  Only such a declaration can therefore turn out wrong.

Everything is kept in arrays with one row per slot and renewed for all rows at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.notes.vocabulary import EventKind, Vocabulary

if TYPE_CHECKING:
    from mt3_runtime.decoding.types import BoolArray, Rows, Span, TokenArray
    from mt3_runtime.notes.note_rules import NoteRules

IntArray = npt.NDArray[np.integer[Any]]

_UNKNOWN = -1
_MOST = 255
_FAR = 1 << 30  # no shift of any vocabulary leads there
KINDS = (
    EventKind.SHIFT,
    EventKind.PITCH,
    EventKind.DRUM,
    EventKind.PROGRAM,
    EventKind.VELOCITY,
    EventKind.TIE,
)
"""Kinds of tokens, in this order, as small numbers."""

SHIFT, PITCH, DRUM, PROGRAM, VELOCITY, TIE = range(len(KINDS))
NOTHING = -1  # the kind of ids without meaning
_FIRST_SETTING = PROGRAM  # from here on, kinds that set a state


@dataclass(frozen=True)
class _Dialect:
    """What differs between the note rules of `NoteRules.assembly`.

    Attributes:
        shifts_add_up: Consecutive time shifts add up; otherwise each one states a time, and 0 is
            no shift.
        initial_state: Before the first tokens of a recording, program and velocity have values.
        loud_drums: Drums need a velocity.
        counts_onsets: A pitch with two onsets takes two note-offs.
    """

    shifts_add_up: bool
    initial_state: bool
    loud_drums: bool
    counts_onsets: bool


_DIALECTS = {
    "magenta": _Dialect(
        shifts_add_up=True, initial_state=True, loud_drums=True, counts_onsets=False
    ),
    "yourmt3": _Dialect(
        shifts_add_up=False, initial_state=False, loud_drums=False, counts_onsets=True
    ),
}


class Grammar:
    """The rules above for the slots of one lane.

    Args:
        slots: Number of slots.
        vocabulary: Meaning of the token ids.
        rules: Rules of the model.
        allowed: bool [V], what may be said at all; specials are decided here.
        initial_allowed: Whether notes may have the model's initial program.
        seconds: Length of a segment, for the last one of a recording.
    """

    def __init__(
        self,
        slots: int,
        *,
        vocabulary: Vocabulary,
        rules: NoteRules,
        allowed: BoolArray,
        initial_allowed: bool,
        seconds: float,
    ) -> None:
        self._rules, self._dialect = rules, _DIALECTS[rules.assembly]
        self._steps = vocabulary.steps_per_second
        self._last_limit = math.ceil(seconds * self._steps)
        self._initial_program = rules.initial_program if initial_allowed else _UNKNOWN
        ids = {kind: vocabulary.id_range(kind) for kind in KINDS}
        self._slices = {kind: slice(found.start, found.stop) for kind, found in ids.items()}
        # Kind and value of every id; ids without meaning have a kind of their own.
        self._kinds = np.full(vocabulary.size, NOTHING, np.int8)
        self._values = np.zeros(vocabulary.size, np.int32)
        for token, event in enumerate(vocabulary.decode(range(vocabulary.size))):
            if event is not None:
                self._kinds[token] = KINDS.index(event.kind)
                self._values[token] = event.value
        self._shifts = self._values[self._slices[EventKind.SHIFT]]
        self._drums = allowed[self._slices[EventKind.DRUM]]
        self._pitches = bool(allowed[self._slices[EventKind.PITCH]].all())
        # What depends on the section alone; shifts, pitches and drums come on top of it.
        self._in_ties = self._mask(allowed, EventKind.PROGRAM, EventKind.TIE)
        self._in_main = self._mask(allowed, EventKind.PROGRAM, EventKind.VELOCITY)
        self._in_main[vocabulary.eos] = True

        self._rows = np.arange(slots)
        self._first = np.zeros(slots, np.bool_)  # the recording's first segment: nothing sounds yet
        self._ties = np.zeros(slots, np.bool_)  # inside the tie section
        # A shift v leads to base + v, which may be time .. end, all in steps from the segment's
        # start; in the tie section it would also have to bridge `far`.
        self._time = np.zeros(slots, np.int32)
        self._base = np.zeros(slots, np.int32)
        self._end = np.zeros(slots, np.int32)
        self._far = np.zeros(slots, np.int32)
        self._program = np.zeros(slots, np.int32)
        self._velocity = np.zeros(slots, np.int32)
        self._sounding = np.zeros((slots, 128, 128), np.uint8)  # onsets by program and pitch
        # Whether pitches may follow that sound, and that do not.
        self._if_sounding = np.zeros(slots, np.bool_)
        self._if_silent = np.zeros(slots, np.bool_)

    def start(self, allowed: BoolArray, slot: int, span: Span) -> None:
        """As `Constraint.start`."""
        rules, dialect, first = self._rules, self._dialect, span.index == 0
        known = first and dialect.initial_state
        self._first[slot] = first
        self._ties[slot] = rules.ties
        self._far[slot] = _FAR if rules.ties else 0
        self._end[slot] = self._steps_in(span)
        self._time[slot] = 0 if dialect.shifts_add_up else 1
        self._base[slot] = 0
        self._program[slot] = self._initial_program if known or rules.flat_programs else _UNKNOWN
        self._velocity[slot] = rules.initial_velocity if known else _UNKNOWN
        # Without ties any note may go on across segments.
        self._sounding[slot] = not (first or rules.ties)
        allowed[slot] = self._in_ties if rules.ties else self._in_main
        self._settle(allowed, self._rows[slot : slot + 1])
        self._renew(allowed, slice(slot, slot + 1))

    def move(self, source: int, target: int) -> None:
        """As `Constraint.move`."""
        for state in (
            self._first,
            self._ties,
            self._time,
            self._base,
            self._end,
            self._far,
            self._program,
            self._velocity,
            self._sounding,
            self._if_sounding,
            self._if_silent,
        ):
            state[target] = state[source]

    def advance(self, allowed: BoolArray, tokens: TokenArray, rows: Rows | None = None) -> None:
        """As `Constraint.advance`."""
        rows = slice(len(tokens)) if rows is None else rows
        slots = self._rows[rows]
        kinds, values = self._kinds[tokens], self._values[tokens]
        shift = kinds == SHIFT
        time = np.where(shift, self._base[rows] + values, self._time[rows])
        self._time[rows] = time
        if self._dialect.shifts_add_up:  # in a row; any other event ends it
            self._base[rows] = time * shift
        pitch = np.flatnonzero(kinds == PITCH)
        if pitch.size:
            self._sound(slots[pitch], values[pitch])
        setting = np.flatnonzero(kinds >= _FIRST_SETTING)
        if setting.size:
            self._set(allowed, slots[setting], kinds[setting], values[setting])
        self._renew(allowed, rows)

    def _steps_in(self, span: Span) -> int:
        """The latest time that is not past the start of the next segment."""
        if span.next_start is None or not self._dialect.shifts_add_up:
            return self._last_limit
        steps = math.ceil((span.next_start - span.start) * self._steps)
        # In the arithmetic of the note rules, whose rounding decides about the last step.
        while span.start + steps / self._steps > span.next_start:
            steps -= 1
        return steps

    def _mask(self, allowed: BoolArray, *kinds: EventKind) -> BoolArray:
        """The part of a mask [V] that belongs to some kinds."""
        return allowed & np.isin(self._kinds, [KINDS.index(kind) for kind in kinds])

    def _sound(self, rows: IntArray, pitches: IntArray) -> None:
        """Takes in pitches: declarations, onsets and note-offs."""
        place = (rows, self._program[rows], pitches)
        opened = self._ties[rows] | (self._velocity[rows] > 0)
        if self._dialect.counts_onsets:
            before = self._sounding[place]
            self._sounding[place] = before + np.where(opened, before < _MOST, -1).astype(np.uint8)
        else:
            self._sounding[place] = opened

    def _set(self, allowed: BoolArray, rows: IntArray, kinds: IntArray, values: IntArray) -> None:
        """Takes in tokens that set the state of some rows."""
        if not self._rules.flat_programs:
            program = kinds == PROGRAM
            self._program[rows[program]] = values[program]
        velocity = kinds == VELOCITY
        self._velocity[rows[velocity]] = values[velocity]
        tied = rows[kinds == TIE]
        self._ties[tied] = False
        self._far[tied] = 0
        allowed[tied] = self._in_main
        self._settle(allowed, rows)

    def _settle(self, allowed: BoolArray, rows: IntArray) -> None:
        """Draws the consequences of the state of some rows for drums and pitches."""
        ties, velocity = self._ties[rows], self._velocity[rows]
        loud = (velocity > 0) & ~ties
        drums = loud if self._dialect.loud_drums else ~ties
        pitched = (self._program[rows] >= 0) & self._pitches
        self._if_sounding[rows] = pitched & (velocity >= 0) & ~ties
        self._if_silent[rows] = pitched & np.where(ties, ~self._first[rows], loud)
        allowed[rows, self._slices[EventKind.DRUM]] = self._drums & drums[:, np.newaxis]

    def _renew(self, allowed: BoolArray, rows: Rows) -> None:
        """Sets shifts and pitches in some rows from their state."""
        column = (rows, np.newaxis)
        lowest = self._time[column] - self._base[column] + self._far[column]
        longest = (self._end[column] - self._time[column]).view(np.uint32)
        distance = (self._shifts - lowest).view(np.uint32)  # what is too low is far too high
        shifts = self._slices[EventKind.SHIFT]
        allowed[rows, shifts] = distance <= longest
        sounding = self._sounding[self._rows[rows], self._program[rows]] > 0
        allowed[rows, self._slices[EventKind.PITCH]] = np.where(
            sounding, self._if_sounding[column], self._if_silent[column]
        )
