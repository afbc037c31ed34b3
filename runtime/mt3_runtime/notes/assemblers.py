"""Note assemblers by a model's note rules, and the step behind them: confidence and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mt3_runtime.notes.base import Assembler, ChannelTokens, SegmentReport
from mt3_runtime.notes.confidence import Calibration
from mt3_runtime.notes.magenta_assembler import NoteAssembler
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.note_rules import NoteRules
from mt3_runtime.notes.vocabulary import Vocabulary
from mt3_runtime.notes.yourmt3_assembler import ChannelAssembler


def assembler_for(
    vocabulary: Vocabulary, rules: NoteRules, *, upstream_quirks: bool = False
) -> Assembler:
    """Makes the assembler for one recording.

    Args:
        vocabulary: Meaning of the token ids.
        rules: Rules of the model.
        upstream_quirks: Imitate ``rules.quirks``.

    Raises:
        BundleError: The vocabulary lacks tokens that the rules speak of.
    """
    if rules.assembly == "magenta":
        return NoteAssembler(vocabulary, rules, upstream_quirks=upstream_quirks)
    return ChannelAssembler(vocabulary, rules, upstream_quirks=upstream_quirks)


class Finisher:
    """Gives notes their calibrated confidence and the programs that were asked for.

    Contract: it stands in front of an assembler and is one.  What it changes follows from the note
    alone, so it is the same for files and for live input.

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

    def sounding(self) -> list[Note]:
        """As `Assembler.sounding`."""
        return list(map(self._finished, self._assembler.sounding()))

    def finish(self) -> list[Note]:
        """As `Assembler.finish`."""
        return list(map(self._finished, self._assembler.finish()))

    def _finished(self, note: Note) -> Note:
        if not note.is_drum and note.program in self._programs:
            note = replace(note, program=self._programs[note.program])
        if self._calibration is not None:
            note = replace(note, confidence=self._calibration.confidence(note))
        return note
