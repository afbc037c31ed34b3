"""Chooses the note assembler that a model's note rules ask for."""

from __future__ import annotations

from mt3_runtime.notes.base import Assembler
from mt3_runtime.notes.magenta_assembler import NoteAssembler
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
