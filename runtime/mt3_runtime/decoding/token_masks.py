"""Logit masks for a line-up of instruments: what may be decoded, and what of it is written down.

Contract: a `Constraint` owns the content of `Lane.allowed` for the slots of one lane.  It sets a
slot's row when a segment starts there, and renews the rows after every step from the tokens that
were chosen.  The decoder graph then takes the best token among those allowed, so what is forbidden
cannot be said at all, and what the model would have said under a forbidden instrument it may still
say under the right one.

Tokens set state (a pitch belongs to the program said before it), so a mask depends on what a row
has said.  It depends on nothing else, so results never depend on batch composition.

Forbidding helps where there is something else to say.  For a drum hit in a line-up without drums,
and for a pitched note in one of drums alone, there is not, and a model that is hindered says
nonsense instead (``docs/instruments.md`` has figures).  So a kind of notes that a line-up does not
have at all is not forbidden but passed over in silence: said, read by the next steps, and not
written down (`UnwrittenTokens`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mt3_runtime.decoding.canonical_order import CanonicalOrder
from mt3_runtime.decoding.grammar import Grammar
from mt3_runtime.errors import OptionError
from mt3_runtime.notes.vocabulary import EventKind, Vocabulary

if TYPE_CHECKING:
    from mt3_runtime.decoding.types import BoolArray, Constraint, Rows, Span, TokenArray
    from mt3_runtime.notes.instruments import Lineup
    from mt3_runtime.notes.note_rules import NoteRules


def constraint_for(
    vocabulary: Vocabulary,
    rules: NoteRules,
    lineup: Lineup | None,
    *,
    grammar: bool = False,
    orderly: bool = False,
    seconds: float,
) -> Callable[[int], Constraint] | None:
    """Checks what a call asks for, and returns what makes the constraint for so many slots.

    Args:
        vocabulary: Meaning of the token ids.
        rules: Rules of the model.
        lineup: The instruments that may occur; None for all.
        grammar: Whether only sequences that mean something are allowed.
        orderly: Whether of those only the ones in the order of the model's labels are.
        seconds: Length of a segment.

    Returns:
        None if everything may be said.

    Raises:
        OptionError: The model can say none of the instruments.
    """
    allowed = np.ones(vocabulary.size, np.bool_)
    initial = True
    if lineup is not None:
        wanted = Wanted.of(vocabulary, rules, lineup)
        allowed = wanted.sayable(vocabulary)
        initial = rules.initial_program in wanted.programs or not wanted.pitched
    if grammar or orderly:
        return partial(
            CanonicalOrder if orderly else Grammar,
            vocabulary=vocabulary,
            rules=rules,
            allowed=allowed,
            initial_allowed=initial,
            seconds=seconds,
        )
    if initial and allowed.all():
        return None
    mask = LineupMask(vocabulary, rules, allowed, initial_allowed=initial)
    return lambda slots: mask  # noqa: ARG005  lanes share it: its only state are their masks


def unwritten_for(
    vocabulary: Vocabulary, rules: NoteRules, lineup: Lineup | None
) -> UnwrittenTokens | None:
    """What is not written down; None if all is.

    Raises:
        OptionError: The model can say none of the instruments.
    """
    if lineup is None:
        return None
    wanted = Wanted.of(vocabulary, rules, lineup)
    kinds = [EventKind.DRUM] if not wanted.drums else []
    kinds += [EventKind.PROGRAM, EventKind.PITCH] if not wanted.pitched else []
    silent = np.zeros(vocabulary.size, np.bool_)
    for kind in kinds:
        silent[list(vocabulary.id_range(kind))] = True
    return UnwrittenTokens(silent, vocabulary.id_range(EventKind.SHIFT)) if silent.any() else None


@dataclass(frozen=True)
class UnwrittenTokens:
    """Tokens that are said and not written down.

    Attributes:
        tokens: bool [V].
        shifts: Ids of time shifts.
    """

    tokens: BoolArray
    shifts: range

    def written(self, said: TokenArray) -> BoolArray:
        """Which tokens of a sequence [n] are written: bool [n].

        A time shift that states the time of silent notes alone is left out with them: shifts in a
        row would add up to another time.
        """
        keep = ~self.tokens[said]
        if keep.all():
            return keep
        run: list[int] = []  # shifts since the last other written token
        broken = False  # by something silent
        for place, token in enumerate(said.tolist()):
            if not keep[place]:
                broken = True
            elif token in self.shifts:
                if broken:
                    keep[run] = False
                    run = []
                run.append(place)
                broken = False
            else:
                run, broken = [], False
        return keep


@dataclass(frozen=True)
class Wanted:
    """A line-up in a model's own terms.

    Attributes:
        programs: Programs, as the model counts, see `programs_for`.
        drum_keys: Percussion keys.
        pitched: Whether the model has pitched notes of the line-up.
        drums: Whether it has drums of the line-up.
        says_programs: Whether its program tokens mean something.
    """

    programs: frozenset[int]
    drum_keys: frozenset[int]
    pitched: bool
    drums: bool
    says_programs: bool

    @classmethod
    def of(cls, vocabulary: Vocabulary, rules: NoteRules, lineup: Lineup) -> Wanted:
        """Translates a line-up.

        Raises:
            OptionError: The model has no notes for it.
        """
        programs = programs_for(rules, lineup)

        def has(kind: EventKind, values: frozenset[int]) -> bool:
            events = vocabulary.decode(vocabulary.id_range(kind))
            return any(event is not None and event.value in values for event in events)

        said = not rules.flat_programs and has(EventKind.PROGRAM, programs)
        pitched = said or rules.initial_program in programs
        drums = has(EventKind.DRUM, lineup.drum_keys)
        if not (pitched or drums):
            raise OptionError(
                "This model has no notes for any of the instruments asked for; it would find "
                "nothing. Choose others, or another model."
            )
        return cls(programs, lineup.drum_keys, pitched, drums, not rules.flat_programs)

    def sayable(self, vocabulary: Vocabulary) -> BoolArray:
        """What may be said at all, bool [V]; a kind of notes that is not wanted may, in silence."""
        allowed = np.ones(vocabulary.size, np.bool_)
        kept = {EventKind.DRUM: self.drum_keys} if self.drums else {}
        if self.pitched and self.says_programs:
            kept[EventKind.PROGRAM] = self.programs
        for token, event in enumerate(vocabulary.decode(range(vocabulary.size))):
            if event is not None and event.kind in kept:
                allowed[token] = event.value in kept[event.kind]
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
        allowed: bool [V], from `Wanted.sayable`.
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

    def advance(self, allowed: BoolArray, tokens: TokenArray, rows: Rows | None = None) -> None:
        """As `Constraint.advance`."""
        said = np.flatnonzero(self._is_program[tokens])
        if said.size:
            allowed[said if rows is None else np.arange(len(allowed))[rows][said]] = self._later
