"""What the decoder may say: masks over the tokens, one per row, kept up to date step by step.

Contract: a `Constraint` owns the content of `Lane.allowed` for the slots of one lane.  It sets a
slot's row when a segment starts there, and renews the rows after every step from the tokens that
were chosen.  The decoder graph then takes the best token among those allowed, so what is forbidden
cannot be said at all: nothing has to be filtered out afterwards, and what the model would have said
under a forbidden instrument it may still say under the right one.

Tokens set state (a pitch belongs to the program said before it), so a mask depends on what a row
has said.  It depends on nothing else, so results never depend on batch composition.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import OptionError
from mt3_runtime.grammar import Grammar
from mt3_runtime.vocabulary import EventKind, Vocabulary

if TYPE_CHECKING:
    from mt3_runtime.decoding import Span
    from mt3_runtime.instruments import Lineup
    from mt3_runtime.noterules import NoteRules

BoolArray = npt.NDArray[np.bool_]
TokenArray = npt.NDArray[np.integer[Any]]


class Constraint(Protocol):
    """Decides which tokens each slot of a lane may take next."""

    def start(self, allowed: BoolArray, slot: int, span: Span) -> None:
        """Sets a slot's row for the first token of a segment.

        Args:
            allowed: `Lane.allowed`, bool [slots, V].
            slot: Which row.
            span: Where the segment lies.
        """

    def move(self, source: int, target: int) -> None:
        """Copies a slot's state; its row of ``allowed`` was copied by `Lane.move`."""

    def advance(self, allowed: BoolArray, tokens: TokenArray) -> None:
        """Renews the first rows of ``allowed``, given the token [rows] that each of them took."""


def constraint_for(
    vocabulary: Vocabulary,
    rules: NoteRules,
    lineup: Lineup | None,
    *,
    grammar: bool = False,
    seconds: float,
) -> Callable[[int], Constraint] | None:
    """Checks what a call asks for, and returns what makes the constraint for so many slots.

    Args:
        vocabulary: Meaning of the token ids.
        rules: Rules of the model.
        lineup: The instruments that may occur; None for all.
        grammar: Whether only sequences that mean something are allowed.
        seconds: Length of a segment.

    Returns:
        None if everything may be said.

    Raises:
        OptionError: The model can say none of the instruments.
    """
    allowed = np.ones(vocabulary.size, np.bool_)
    initial = True
    if lineup is not None:
        allowed = sayable(vocabulary, rules, lineup)
        initial = rules.initial_program in programs_for(rules, lineup)
    if grammar:
        return partial(
            Grammar,
            vocabulary=vocabulary,
            rules=rules,
            allowed=allowed,
            initial_allowed=initial,
            seconds=seconds,
        )
    if allowed.all():
        return None
    mask = LineupMask(vocabulary, rules, allowed, initial_allowed=initial)
    return lambda slots: mask  # noqa: ARG005  lanes share it: its only state are their masks


def sayable(vocabulary: Vocabulary, rules: NoteRules, lineup: Lineup) -> BoolArray:
    """What may be said at all, bool [V]: everything but notes and programs outside a line-up.

    Raises:
        OptionError: No note is left.
    """
    allowed = np.ones(vocabulary.size, np.bool_)
    programs = programs_for(rules, lineup)
    kept = {EventKind.DRUM: lineup.drum_keys}
    if not rules.flat_programs:
        kept[EventKind.PROGRAM] = programs
    for token, event in enumerate(vocabulary.decode(range(vocabulary.size))):
        if event is not None and event.kind in kept:
            allowed[token] = event.value in kept[event.kind]
    said, pitches, drums = (
        list(vocabulary.id_range(kind))
        for kind in (EventKind.PROGRAM, EventKind.PITCH, EventKind.DRUM)
    )
    says_programs = not rules.flat_programs and allowed[said].any()
    allowed[pitches] = says_programs or rules.initial_program in programs
    if not allowed[pitches + drums].any():
        raise OptionError(
            "This model has no notes for any of the instruments asked for; it would find nothing. "
            "Choose others, or another model."
        )
    return allowed


def programs_for(rules: NoteRules, lineup: Lineup) -> frozenset[int]:
    """Programs, as the model counts, by which it says those of a line-up.

    Where it says one program for several (`NoteRules.program_groups`), that one is among them if
    any of the several is wanted; `stand_ins` then tells what its notes are.
    """
    programs = {p for p in range(128) if rules.program(p) in lineup.programs}
    firsts = {group[0] for group in rules.program_groups if programs & set(group)}
    return frozenset(programs | firsts)


def stand_ins(rules: NoteRules, lineup: Lineup) -> dict[int, int]:
    """General MIDI programs that are not in a line-up but may occur, and what they stand for.

    Each is what a model says for a whole group; of the group's programs that are wanted, notes get
    the first.
    """
    found = {}
    for group in rules.program_groups:
        said = rules.program(group[0])
        wanted = [rules.program(p) for p in group if rules.program(p) in lineup.programs]
        if wanted and said not in lineup.programs:
            found[said] = wanted[0]
    return found


class LineupMask:
    """Forbids all notes of instruments that are not in a line-up.

    Before its first program token a segment goes on under a program that it does not say: that of
    an earlier segment, which was allowed, or the model's initial one.  So if the initial one is
    not allowed, pitches are forbidden until a program was said.  (Models say one before the first
    pitch of every segment; they were trained so.)

    Args:
        vocabulary: Meaning of the token ids.
        rules: Rules of the model.
        allowed: bool [V], from `sayable`.
        initial_allowed: Whether notes may have the model's initial program.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        rules: NoteRules,
        allowed: BoolArray,
        *,
        initial_allowed: bool,
    ) -> None:
        programs, pitches = (
            list(vocabulary.id_range(kind)) for kind in (EventKind.PROGRAM, EventKind.PITCH)
        )
        self._later = allowed
        self._first = allowed.copy()
        self._is_program = np.zeros(vocabulary.size, np.bool_)
        if not (initial_allowed or rules.flat_programs):
            self._first[pitches] = False
            self._is_program[programs] = True

    def start(self, allowed: BoolArray, slot: int, span: Span) -> None:  # noqa: ARG002
        """As `Constraint.start`."""
        allowed[slot] = self._first

    def move(self, source: int, target: int) -> None:
        """As `Constraint.move`; the rows themselves are the state."""

    def advance(self, allowed: BoolArray, tokens: TokenArray) -> None:
        """As `Constraint.advance`."""
        said = np.flatnonzero(self._is_program[tokens])
        if said.size:
            allowed[said] = self._later
