"""Grammar of models whose labels have one canonical order of tokens.

Contract: `CanonicalOrder` is the `Grammar`, narrowed to sequences as
`mt3_training.examples.tokens.Tokenizer` writes them.  Beyond what the grammar asks for,

* every time shift moves time on, and events follow it;
* a program or a velocity is said only where it changes, and a note follows it;
* events of one step stand in order: offsets, then onsets of pitched notes, then drums; of each
  kind by program, then by pitch.  None is said twice.  So do the declarations of a tie section.

A network that is small, or was trained for hours and not for weeks, can lose its way in a dense
segment and say the same few notes until the token limit.  Here that cannot happen: a step has only
so many notes, and then time goes on.  A bundle asks for it (`DecodingSpec.orderly`) if its model
was taught this order; official models were not, as their order within a step differs.

The end of the segment is always possible behind the tie section, so there is no dead end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mt3_runtime.decoding.grammar import (
    DRUM,
    NOTHING,
    PITCH,
    PROGRAM,
    SHIFT,
    TIE,
    VELOCITY,
    Grammar,
    IntArray,
)
from mt3_runtime.notes.vocabulary import EventKind

if TYPE_CHECKING:
    from mt3_runtime.decoding.types import BoolArray, Rows, Span, TokenArray

_KEYS = np.arange(128, dtype=np.int32)
# Notes of one step, or of the tie section, in order: by their kind, by program, by pitch.
_NONE = -1  # ahead of all of them
_ONSETS = 128 * 128
_DRUMS = 2 * _ONSETS


class CanonicalOrder(Grammar):
    """The rules above for the slots of one lane.

    Args:
        slots: Number of slots.
        allowed: bool [V], what may be said at all.
        how: What else `Grammar` takes.
    """

    def __init__(self, slots: int, *, allowed: BoolArray, **how: Any) -> None:
        super().__init__(slots, allowed=allowed, **how)
        # Labels say program and velocity anew in every segment, the first one included.
        self._dialect = replace(self._dialect, initial_state=False)
        self._programs = allowed[self._slices[EventKind.PROGRAM]]
        self._velocities = allowed[self._slices[EventKind.VELOCITY]]
        self._drum_values = self._values[self._slices[EventKind.DRUM]]
        self._loudness = self._values[self._slices[EventKind.VELOCITY]]
        self._key = np.full(slots, _NONE, np.int32)  # of the last note of this step or section
        self._said = np.full(slots, NOTHING, np.int8)  # kind of the last token

    def start(self, allowed: BoolArray, slot: int, span: Span) -> None:
        """As `Constraint.start`."""
        self._key[slot], self._said[slot] = _NONE, NOTHING
        super().start(allowed, slot, span)
        self._narrow(allowed, np.s_[slot : slot + 1])

    def move(self, source: int, target: int) -> None:
        """As `Constraint.move`."""
        super().move(source, target)
        for state in (self._key, self._said):
            state[target] = state[source]

    def advance(self, allowed: BoolArray, tokens: TokenArray, rows: Rows | None = None) -> None:
        """As `Constraint.advance`."""
        rows = slice(len(tokens)) if rows is None else rows
        super().advance(allowed, tokens, rows)
        kinds, values = self._kinds[tokens], self._values[tokens]
        key = np.where(kinds == PITCH, self._pitched_key(rows) + values, self._key[rows])
        key = np.where(kinds == DRUM, _DRUMS + values, key)
        key[(kinds == SHIFT) | (kinds == TIE)] = _NONE
        self._key[rows] = key
        self._said[rows] = kinds
        self._narrow(allowed, rows)

    def _pitched_key(self, rows: Rows) -> IntArray:
        """The key of pitch 0 of the current program, as an offset or onset: what sorts notes."""
        onset = (self._velocity[rows] > 0) & ~self._ties[rows]
        return np.where(onset, _ONSETS, 0) + 128 * self._program[rows]

    def _narrow(self, allowed: BoolArray, rows: Rows) -> None:
        """Forbids in some rows what would break the order."""
        column = (rows, np.newaxis)
        key, said, ties = self._key[column], self._said[column], self._ties[column]
        program, velocity = self._program[column], self._velocity[column]
        stated = (said == PROGRAM) | (said == VELOCITY)

        shifts = (self._shifts > self._time[column]) & ~(stated | (said == SHIFT))
        allowed[rows, self._slices[EventKind.SHIFT]] &= shifts

        # Behind a note-off a lower program may still follow, for an onset.
        bound = np.where(ties, key, np.where(key >= _ONSETS, key - _ONSETS, _NONE)) // 128
        programs = (bound < _KEYS) & (program != _KEYS) & ~stated
        programs &= ~(ties & self._first[column])
        allowed[rows, self._slices[EventKind.PROGRAM]] = self._programs & programs

        sounds = self._sounding[self._rows[rows], self._program[rows]].any(axis=1)
        ends = (sounds & (self._program[rows] >= 0))[:, np.newaxis] & (key == _NONE)
        velocities = (self._loudness != velocity) & ((self._loudness > 0) | ends)
        velocities &= ~ties & (said != VELOCITY)
        allowed[rows, self._slices[EventKind.VELOCITY]] = self._velocities & velocities

        pitches = self._pitched_key(rows)[:, np.newaxis] + _KEYS > key
        allowed[rows, self._slices[EventKind.PITCH]] &= pitches
        drums = (velocity > 0) & ~ties & (_DRUMS + self._drum_values > key)
        allowed[rows, self._slices[EventKind.DRUM]] = self._drums & drums
