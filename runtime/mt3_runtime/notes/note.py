"""Notes: onset, offset, pitch, program, velocity and confidence of what was transcribed."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from mt3_runtime.arguments.argument_checks import as_list_of
from mt3_runtime.errors import OptionError

MAX_TIME = 1e9
"""Seconds (32 years); a later note is an error of units, or worse, and nothing could show it."""


class Probabilities(NamedTuple):
    """What the network gave the tokens of a note, each 0..1; None where there is no such token.

    Attributes:
        onset: The time shifts that state when it starts; notes at the start of a segment have none.
        pitch: The pitch or drum token that started it.
        program: The program token in force; it may be of an earlier segment.
        offset: The tokens that ended it, time shifts and pitch; None if it ended in another way.
    """

    onset: float | None = None
    pitch: float | None = None
    program: float | None = None
    offset: float | None = None


@dataclass(frozen=True, slots=True, order=True)
class Note:
    """One note.

    Attributes:
        onset: Start in seconds from the beginning of the recording.
        offset: End in seconds, not before ``onset``.
        pitch: MIDI pitch 0..127, or the General MIDI percussion key of a drum.
        velocity: MIDI velocity 1..127.
        program: General MIDI program 0..127; 0 for drums.
        is_drum: Whether ``pitch`` is a percussion key.
        confidence: Probability 0..1 that the network gave to the token that started this note
            (its pitch or drum token); 1.0 where it is not known.
        probabilities: Those of its tokens; notes that differ in nothing else are equal.
    """

    onset: float
    offset: float
    pitch: int
    velocity: int
    program: int = 0
    is_drum: bool = False
    confidence: float = 1.0
    probabilities: Probabilities = field(default=Probabilities(), compare=False)


def check_notes(notes: Iterable[Note]) -> list[Note]:
    """Check that notes can be written to a file, and return them.

    Raises:
        OptionError: They are no notes, an onset is negative or behind its offset, an offset behind
            `MAX_TIME`, a pitch or a program outside 0..127, a confidence or a probability outside
            0..1, or a value is of another type than a note has.
    """
    checked = as_list_of(Note, "notes", notes, "notes, or what has them as `notes`")
    for index, note in enumerate(checked):
        try:
            problem = _problem(note)
        except (TypeError, ValueError, OverflowError):  # of numbers that are none, or are arrays
            problem = f"is {reprlib.repr(note)}; expected numbers"
        if problem:
            raise OptionError(f"note {index} {problem}: correct or remove it before writing")
    return checked


def _problem(note: Note) -> str:
    """Why a note cannot be written; empty if it can be.

    Raises:
        TypeError, ValueError, OverflowError: A value is no number.
    """
    whole = (note.pitch, note.program, note.velocity)
    if not 0.0 <= note.onset <= note.offset <= MAX_TIME:
        return f"spans {note.onset}..{note.offset} s; expected 0 <= onset <= offset <= 1e9"
    if not (0 <= note.pitch <= 127 and 0 <= note.program <= 127):
        return f"has pitch {note.pitch}, program {note.program}; expected 0..127"
    if any(number != int(number) for number in whole) or note.is_drum not in (False, True):
        what = f"pitch, program and velocity {whole}, is_drum {note.is_drum!r}"
        return f"has {what}; expected whole numbers, and True or False"
    if not 0.0 <= note.confidence <= 1.0:
        return f"has confidence {note.confidence}; expected 0..1"
    known = isinstance(note.probabilities, Probabilities)
    if not known or not all(p is None or 0.0 <= p <= 1.0 for p in note.probabilities):
        return f"has {note.probabilities}; expected Probabilities of 0..1 or None"
    return ""
