"""Select notes by confidence, and say why a result has none, or none of a kind.

Contract: a `Selection` takes the notes of one recording, in any portions, and returns those that
are sure enough.  An empty result is not always what a user wanted, and a threshold that sounds
modest may take all drum hits or all pitched notes, so `Selection.sentences` explains both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mt3_runtime.notes.note import Note


@dataclass
class _Kind:
    """Counts of a kind of notes: all, those that were kept; and the highest confidence."""

    name: str
    found: int = 0
    kept: int = 0
    best: float = 0.0


class Selection:
    """Selects the notes of one recording.

    Args:
        min_confidence: Notes below it are left out.
        limited: Whether only some instruments may occur.
    """

    def __init__(self, min_confidence: float, *, limited: bool = False) -> None:
        self._least, self._limited = min_confidence, limited
        self._kinds = {False: _Kind("pitched notes"), True: _Kind("drum hits")}

    @property
    def removed(self) -> int:
        """Number of notes that were left out so far."""
        return sum(kind.found - kind.kept for kind in self._kinds.values())

    def keep(self, notes: Iterable[Note]) -> list[Note]:
        """The notes that are sure enough, in their order."""
        kept = []
        for note in notes:
            kind = self._kinds[note.is_drum]
            kind.found += 1
            kind.best = max(kind.best, note.confidence)
            if note.confidence >= self._least:
                kind.kept += 1
                kept.append(note)
        return kept

    def sentences(self, filtered: int) -> list[str]:
        """Why no note is left, or none of a kind; empty if neither is so.

        Args:
            filtered: Number of notes that the leakage filter was given.
        """
        if any(kind.found for kind in self._kinds.values()):
            return [
                f"min_confidence={self._least:g} leaves none of {kind.found} {kind.name}: the "
                f"surest has a confidence of {kind.best:.2f}"
                for kind in self._kinds.values()
                if kind.found and not kind.kept
            ]
        if filtered:
            return [f"the leakage filter removed all {filtered} notes: see auto_filter"]
        return ["no notes were found" + " of the instruments asked for" * self._limited]
