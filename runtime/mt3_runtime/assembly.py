"""Which assembler a model's note rules ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mt3_runtime.noterules import NoteRules
from mt3_runtime.notes import ChannelTokens, Note, NoteAssembler, SegmentReport
from mt3_runtime.notes_yourmt3 import ChannelAssembler
from mt3_runtime.vocabulary import Vocabulary


class Assembler(Protocol):
    """The state machine over the segments of one recording; see the classes in `assembler_for`."""

    def add_channels(
        self, channels: Sequence[ChannelTokens], start: float, next_start: float | None
    ) -> tuple[list[Note], SegmentReport]:
        """Take the next segment.

        Args:
            channels: What was decoded, in the order of the model's channels.
            start: Start of the segment in seconds, on the time grid of the model.
            next_start: Start of the next segment, None for the last one.

        Returns:
            The notes that are settled now, in the order of their ends, and the report.

        Raises:
            OptionError: Segments are out of order, or an argument contradicts another.
        """

    def finish(self) -> list[Note]:
        """End the recording; returns the notes that were not settled."""


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
