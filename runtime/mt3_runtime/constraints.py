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
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import OptionError
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
    vocabulary: Vocabulary, rules: NoteRules, lineup: Lineup | None
) -> Callable[[int], Constraint] | None:
    """Checks what a call asks for, and returns what makes the constraint for so many slots.

    Args:
        vocabulary: Meaning of the token ids.
        rules: Rules of the model.
        lineup: The instruments that may occur; None for all.

    Returns:
        None if everything may be said.

    Raises:
        OptionError: The model can say none of the instruments.
    """
    if lineup is None:
        return None
    mask = LineupMask(vocabulary, rules, lineup)
    return lambda slots: mask  # noqa: ARG005  lanes share it: its only state are their masks


class LineupMask:
    """Forbids all notes of instruments that are not in a line-up.

    Programs and percussion keys are forbidden as tokens.  Before its first program token a segment
    goes on under a program that it does not say: that of an earlier segment, which was allowed, or
    the model's initial one.  So if the initial one is forbidden, pitches are, until a program was
    said.  (Models say one before the first pitch of every segment; they were trained so.)

    Args:
        vocabulary: Meaning of the token ids.
        rules: Rules of the model.
        lineup: The instruments that may occur.

    Raises:
        OptionError: The model can say none of them.
    """

    def __init__(self, vocabulary: Vocabulary, rules: NoteRules, lineup: Lineup) -> None:
        later = np.ones(vocabulary.size, np.bool_)
        _forbid(later, vocabulary, EventKind.DRUM, keep=lineup.drum_keys)
        if not rules.flat_programs:
            _forbid(later, vocabulary, EventKind.PROGRAM, keep=lineup.programs)
        first = later.copy()
        if rules.initial_program not in lineup.programs:
            _forbid(first, vocabulary, EventKind.PITCH)
        programs = np.zeros(vocabulary.size, np.bool_)
        programs[_ids(vocabulary, EventKind.PROGRAM)] = not rules.flat_programs
        if not (programs & later).any():  # then no pitch is ever under another than the initial one
            later = first
        says = [*_ids(vocabulary, EventKind.PITCH), *_ids(vocabulary, EventKind.DRUM)]
        if not later[says].any():
            raise OptionError(
                "This model has no notes for any of the instruments asked for; it would find "
                "nothing. Choose others, or another model."
            )
        self._first, self._later, self._programs = first, later, programs
        self._constant = bool(np.array_equal(first, later))

    def start(self, allowed: BoolArray, slot: int, span: Span) -> None:  # noqa: ARG002
        allowed[slot] = self._first

    def move(self, source: int, target: int) -> None:
        """Nothing to copy: the rows themselves are the state."""

    def advance(self, allowed: BoolArray, tokens: TokenArray) -> None:
        if self._constant:
            return
        said = np.flatnonzero(self._programs[tokens])
        if said.size:
            allowed[said] = self._later


def _ids(vocabulary: Vocabulary, kind: EventKind) -> list[int]:
    return list(vocabulary.id_range(kind))


def _forbid(
    mask: BoolArray, vocabulary: Vocabulary, kind: EventKind, keep: frozenset[int] = frozenset()
) -> None:
    """Clears a mask [V] at all ids of a kind but those of some values."""
    ids = _ids(vocabulary, kind)
    mask[ids] = [event is not None and event.value in keep for event in vocabulary.decode(ids)]
