"""Divides songs into training, validation and test sets, by their notes and not by their files.

Contract: songs that share the notes of a stem share a split, also over several steps, so that no
network is judged by music it has learned.  Where the data set has splits of its own, they hold; of
songs that share notes across them, all go to the most guarded one.  All others are divided by their
digests: the same music has the same split in every data set and on every machine.
"""

from __future__ import annotations

from mt3_training.datasets.index_entry import SPLITS

VALIDATION_SHARE = 0.1
"""Of the songs that no data set divides."""


class SplitGroups:
    """Songs that share notes.  Memory is that of a few texts per stem."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}
        self._owner: dict[str, str] = {}
        self._digest: dict[str, str] = {}
        self._given: dict[str, str] = {}

    def add(self, song: str, digest: str, given: str | None = None) -> None:
        """Adds a stem.

        Args:
            song: Whose it is.
            digest: Of its notes; nothing if it has none.
            given: What the data set says, or None.
        """
        self._above.setdefault(song, song)
        if given is not None:
            self._raise(self._top(song), given)
        if not digest:
            return
        first = self._owner.setdefault(digest, song)
        mine = self._join(self._top(song), self._top(first))
        self._digest[mine] = min(digest, self._digest.get(mine, digest))

    def split(self, song: str) -> str:
        """The split of a song, once all are added."""
        top = self._top(song)
        if top in self._given:
            return self._given[top]
        share = int(self._digest.get(top, "0")[:8], 16) / 16**8
        # No notes, no evidence: to train on nothing does no harm, to judge by it does.
        return "validation" if top in self._digest and share < VALIDATION_SHARE else "train"

    def _top(self, song: str) -> str:
        while (above := self._above[song]) != song:
            self._above[song] = self._above[above]
            song = above
        return song

    def _raise(self, top: str, given: str) -> None:
        """Sets a split of the data set, unless a more guarded one is set."""
        held = self._given.get(top, given)
        self._given[top] = max(held, given, key=SPLITS.index)

    def _join(self, one: str, other: str) -> str:
        if one == other:
            return one
        top, below = min(one, other), max(one, other)
        self._above[below] = top
        if (given := self._given.pop(below, None)) is not None:
            self._raise(top, given)
        if (digest := self._digest.pop(below, None)) is not None:
            self._digest[top] = min(digest, self._digest.get(top, digest))
        return top
