"""Applies calibrated confidence and requested programs to assembled notes.

Contract: a `Finisher` stands in front of an assembler and is one.  Each note that comes out gets
the instrument that was asked for, where the model has one program for several, and the confidence
that the bundle's calibration says.  Both follow from the note alone, so they are the same for files
and for live input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mt3_runtime.notes.base import Assembler, ChannelTokens, SegmentReport
    from mt3_runtime.notes.confidence import Calibration
    from mt3_runtime.notes.note import Note


class Finisher:
    """See the module docstring.

    Args:
        assembler: Makes the notes.
        calibration: Of the bundle; None leaves the probability of the pitch or drum token.
        programs: Programs that notes get in place of others; see `constraints.stand_ins`.
    """

    def __init__(
        self, assembler: Assembler, calibration: Calibration | None, programs: Mapping[int, int]
    ) -> None:
        self._assembler, self._calibration, self._programs = assembler, calibration, programs

    def add_channels(
        self, channels: Sequence[ChannelTokens], start: float, next_start: float | None
    ) -> tuple[list[Note], SegmentReport]:
        """As `Assembler.add_channels`."""
        notes, report = self._assembler.add_channels(channels, start, next_start)
        return list(map(self._finished, notes)), report

    def finish(self) -> list[Note]:
        """As `Assembler.finish`."""
        return list(map(self._finished, self._assembler.finish()))

    def _finished(self, note: Note) -> Note:
        if not note.is_drum and note.program in self._programs:
            note = replace(note, program=self._programs[note.program])
        if self._calibration is not None:
            note = replace(note, confidence=self._calibration.confidence(note))
        return note
