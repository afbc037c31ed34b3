"""Note-on and note-off events of a recording that is still running.

Contract: `NoteEvents.add` is told after every segment which notes ended there and which sound on.
Every note that begins is said to begin, once; every one that was said to begin is said to end,
once, with the finished note, or with None if it turned out to be none (the leakage filter removed
it, or it is less sure than was asked for).  The finished notes of all note-offs are the notes that
`mt3_runtime.model.Model.stream` yields.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mt3_runtime.notes.note import Note


@dataclass(frozen=True, slots=True)
class NoteOn:
    """A note begins.

    Attributes:
        number: Tells notes apart; from 0, in the order in which they are said to begin.
        time: When, in seconds from the beginning of the recording.
        pitch: As in `Note`.
        velocity: As in `Note`.
        program: As in `Note`; what the model said, which the leakage filter may still correct.
        is_drum: As in `Note`.
    """

    number: int
    time: float
    pitch: int
    velocity: int
    program: int
    is_drum: bool


@dataclass(frozen=True, slots=True)
class NoteOff:
    """A note ends.

    Attributes:
        number: That of its `NoteOn`.
        time: When, in seconds from the beginning of the recording.
        note: The whole note; None if it turned out to be none.
    """

    number: int
    time: float
    note: Note | None


NoteEvent = NoteOn | NoteOff

_Identity = tuple[float, int, int, bool]  # what a note has from its beginning to its end


class NoteEvents:
    """Makes the events of one recording."""

    def __init__(self) -> None:
        self._begun = 0
        self._sounding: dict[_Identity, deque[int]] = {}

    def add(
        self, ended: Iterable[tuple[Note, Note | None]], sounding: Iterable[Note], time: float
    ) -> list[NoteEvent]:
        """Takes in a segment.

        Args:
            ended: The notes that ended, and what became of each.
            sounding: Those that have begun and not ended.
            time: End of the segment, in seconds.

        Returns:
            The events in the order of their times.
        """
        events: list[NoteEvent] = []
        first = self._begun
        for note, became in ended:
            numbers = self._sounding.get(_identity(note))
            if numbers:
                number = numbers.popleft()
                events.append(NoteOff(number, (became or note).offset, became))
            elif became is not None:
                on = self._on(became)
                events += [on, NoteOff(on.number, became.offset, became)]
        still: dict[_Identity, deque[int]] = defaultdict(deque)
        for note in sorted(sounding):
            numbers = self._sounding.get(_identity(note))
            if numbers:
                still[_identity(note)].append(numbers.popleft())
            else:
                on = self._on(note)
                events.append(on)
                still[_identity(note)].append(on.number)
        gone = (number for numbers in self._sounding.values() for number in numbers)
        events += [NoteOff(number, time, None) for number in gone]
        # At one time, ends come first; but no note ends before it begins.
        began = {event.number: event.time for event in events if isinstance(event, NoteOn)}
        events.sort(key=lambda event: _order(event, began))
        # Numbers follow the order of times, which is known only now.
        new = (event.number for event in events if isinstance(event, NoteOn))
        numbered = {number: first + place for place, number in enumerate(new)}
        self._sounding = {
            identity: deque(numbered.get(number, number) for number in numbers)
            for identity, numbers in still.items()
        }
        return [replace(event, number=numbered.get(event.number, event.number)) for event in events]

    def _on(self, note: Note) -> NoteOn:
        number = self._begun
        self._begun += 1
        return NoteOn(number, note.onset, note.pitch, note.velocity, note.program, note.is_drum)


def _identity(note: Note) -> _Identity:
    return note.onset, note.pitch, note.program, note.is_drum


def _order(event: NoteEvent, began: dict[int, float]) -> tuple[float, int, int]:
    if isinstance(event, NoteOn):
        return event.time, 1, event.number
    at_once = began.get(event.number) == event.time
    return event.time, 2 if at_once else 0, event.number
