"""Tokenises notes: the target sequence of one segment.

Contract: the inverse of `mt3_runtime.notes.magenta_assembler.NoteAssembler`, with the project's one
`Vocabulary`: the tokens of consecutive segments assemble to the notes they were made of, on the
grid of the vocabulary's steps.  As in MT3, a segment states its program and velocity anew and opens
with the notes that are held over its start, closed by a *tie* token; then come its events.

One order.  Events of one step have no order in time, so one is fixed, or a network would have to
guess: offsets first, then pitched notes before drums, then by program, then by pitch (MT3's own).

What cannot be heard is not asked for.  Programs are reduced to the first of their MIDI class
(`LabelRules.programs`); of notes of one class and pitch that sound at once a new one ends the
former, and lasts until both are over.  Where a note ends is rarely clear, and scored with 50 ms of
tolerance at least: on a grid of 50 ms (`LabelRules.offset_steps` 5) there is less to guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from mt3_runtime.errors import OptionError
from mt3_runtime.notes.instruments import PROGRAMS_PER_FAMILY
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.note_rules import NoteRules
from mt3_runtime.notes.vocabulary import Event, EventKind, Vocabulary
from mt3_synthesis.music import CLOSEST_ONSETS

Granularity = Literal["class", "full"]

NO_STEP = -1
"""Stands for the step of tokens that are no event: the tie section and the end."""


@dataclass(frozen=True)
class LabelRules:
    """What is asked of the network.

    Attributes:
        programs: "class": the first program of the MIDI class; "full": the program itself.
        offset_steps: Grid of the offsets, in steps.
    """

    programs: Granularity = "class"
    offset_steps: int = 1

    def __post_init__(self) -> None:
        if self.programs not in get_args(Granularity) or not 1 <= self.offset_steps <= 100:
            raise OptionError(
                f"labels with programs {self.programs!r} and offsets every {self.offset_steps} "
                f"steps were asked for; expected one of {get_args(Granularity)} and 1..100 steps"
            )


class Label(NamedTuple):
    """A note on the grid; times in steps.  Sorted labels are in the order of tokens."""

    onset: int
    is_drum: bool
    program: int
    pitch: int
    offset: int
    velocity_bin: int


class Encoded(NamedTuple):
    """Tokens of a segment, and the step of the event that each is about, from its start [n]."""

    tokens: list[int]
    steps: list[int]


class Tokenizer:
    """Encodes notes.

    Args:
        vocabulary: By default Magenta's ``mt3``.
        note_rules: What the tokens will be read with; ties, velocity bins and whether there are
            programs follow from it.
        rules: What is asked of the network.

    Raises:
        OptionError: The vocabulary's values do not begin at 0.
    """

    def __init__(
        self,
        vocabulary: Vocabulary | None = None,
        note_rules: NoteRules | None = None,
        *,
        rules: LabelRules | None = None,
    ) -> None:
        self.vocabulary = vocabulary or Vocabulary.mt3()
        self.note_rules = note_rules or NoteRules.mt3()
        self.rules = rules or LabelRules()
        self._ids = {
            kind: list(self.vocabulary.id_range(kind))
            for kind in EventKind
            if kind is not EventKind.PROGRAM or not self.note_rules.flat_programs
        }
        for kind in self._ids:  # a range that does not begin at 0 has no place for all values
            if self._ids[kind]:
                self.vocabulary.encode(Event(kind, 0))

    def labels(self, notes: Iterable[Note]) -> list[Label]:
        """Notes as labels: on the grid, one at a time of each key, in the order of tokens."""
        closest = round(CLOSEST_ONSETS * self.vocabulary.steps_per_second) - 1
        last: dict[tuple[bool, int, int], int] = {}
        kept: list[Label] = []
        for label in sorted(map(self._label, notes)):
            key = (label.is_drum, label.program, label.pitch)
            before = last.get(key)
            if before is not None:
                old = kept[before]
                end = max(old.offset, label.offset)
                if label.onset - old.onset <= closest:
                    kept[before] = old._replace(offset=end)
                    continue
                if old.offset > label.onset and not label.is_drum:
                    kept[before] = old._replace(offset=label.onset)
                    kept.append(label._replace(offset=end))
                    last[key] = len(kept) - 1
                    continue
            last[key] = len(kept)
            kept.append(label)
        return kept

    def encode(self, labels: Sequence[Label], start: int, end: int) -> Encoded:
        """Tokens of one segment, with the end-of-sequence token.

        Args:
            labels: What `labels` returned.
            start: First step of the segment.
            end: First step of the next one.
        """
        writer = _Writer(self._ids)
        pitched = [label for label in labels if not label.is_drum and label.offset >= start]
        if self.note_rules.ties:
            held = {(n.program, n.pitch) for n in pitched if n.onset < start}
            for program, pitch in sorted(held):
                writer.pitch(program, pitch, NO_STEP)
            writer.write(EventKind.TIE, 0, NO_STEP)
        events = [(n.offset, 0, False, n.program, n.pitch, 0) for n in pitched if n.offset < end]
        events += [
            (n.onset, 1, n.is_drum, n.program, n.pitch, n.velocity_bin)
            for n in labels
            if start <= n.onset < end
        ]
        now = start
        for step, _, is_drum, program, pitch, velocity_bin in sorted(events):
            if step != now:
                writer.write(EventKind.SHIFT, step - start, step - start)
                now = step
            if is_drum:
                writer.velocity(velocity_bin, step - start)
                writer.write(EventKind.DRUM, pitch, step - start)
            else:
                writer.program(program, step - start)
                writer.velocity(velocity_bin, step - start)
                writer.write(EventKind.PITCH, pitch, step - start)
        return Encoded([*writer.tokens, self.vocabulary.eos], [*writer.steps, NO_STEP])

    def _label(self, note: Note) -> Label:
        rate, grid = self.vocabulary.steps_per_second, self.rules.offset_steps
        onset = round(note.onset * rate)
        offset = max(onset + 1, grid * round(note.offset * rate / grid))
        program = note.program
        if note.is_drum or self.note_rules.flat_programs:
            program = 0
        elif self.rules.programs == "class":
            program = program // PROGRAMS_PER_FAMILY * PROGRAMS_PER_FAMILY
        bins = self.note_rules.velocity_bins
        velocity_bin = max(1, -(-note.velocity * bins // 127))
        return Label(onset, note.is_drum, program, note.pitch, offset, velocity_bin)


class _Writer:
    """Writes tokens, leaving out what is said already."""

    def __init__(self, ids: dict[EventKind, list[int]]) -> None:
        self._ids = ids
        self._program: int | None = None
        self._velocity: int | None = None
        self.tokens: list[int] = []
        self.steps: list[int] = []

    def write(self, kind: EventKind, value: int, step: int) -> None:
        self.tokens.append(self._ids[kind][value])
        self.steps.append(step)

    def program(self, program: int, step: int) -> None:
        if program != self._program and self._ids.get(EventKind.PROGRAM):
            self.write(EventKind.PROGRAM, program, step)
        self._program = program

    def velocity(self, velocity_bin: int, step: int) -> None:
        if velocity_bin != self._velocity:
            self.write(EventKind.VELOCITY, velocity_bin, step)
        self._velocity = velocity_bin

    def pitch(self, program: int, pitch: int, step: int) -> None:
        self.program(program, step)
        self.write(EventKind.PITCH, pitch, step)
