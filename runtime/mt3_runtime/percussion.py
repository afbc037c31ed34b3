"""The default leakage filter: where no melody is heard, notes that are not heard are drum hits.

Contract: `Scene.judge` says of a melodic note whether it is a drum hit in disguise, and why;
`Drums.replace` makes a drum of it.  Both go by the notes and by what was heard of them
(`mt3_runtime.hearing`); neither looks at programs, so nothing depends on which instrument a model
mistakes a drum for.

For each note, the notes around it are the context: five seconds to either side, or, while a
recording is still running, the ten seconds before.

1. If more than three different pitches are clear in the context (and more than chance would make
   of so many notes), there is melody, and everything stays.
2. If the sound is tonal, everything stays: less than 12 % of the amplitudes must belong to tones,
   or less than 25 % where at least 15 % of the notes are drums.
3. Otherwise only pitches stay that are clear in 30 % of their notes,
4. and of these not those that come three times or more: they are drums that ring, as cowbells,
   congas and toms do.  Low ones are exempt, as there are basses that never move.

The numbers come from synthetic stems and bands alone; docs/leakage.md has the evidence, and what
happens if they are moved.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mt3_runtime.hearing import LOW_PITCH, Impression
from mt3_runtime.leakage import Change, Stretch
from mt3_runtime.notes import Note

CONTEXT_SECONDS = 5.0
"""To either side of a note."""

LOOK_BACK_SECONDS = 2 * CONTEXT_SECONDS
"""Before the end of the latest segment, while a recording is running."""

MELODY_PITCHES, CHANCE = 3, 0.03
"""More clear pitches than these make a melody: a number, and a share of all melodic notes, as so
many of the notes that a model makes of drums are clear by chance."""

TONAL, TONAL_WITH_DRUMS, WITH_DRUMS = 0.12, 0.25, 0.15
"""Shares of tones from which sound is tonal, without drums and with them, and the share of drums in
the notes that tells the two apart."""

CLEAR_SHARE = 0.3
"""Of the notes of one pitch; as many must be clear for all of them to be."""

REPEATED = 3
"""So many notes within a semitone of one another, where there is no melody, are a ringing drum."""

HIT_DECIBELS = 5.0
"""By so much the level must rise for a hit; where it does not, nothing is put in a note's place."""

DUPLICATE_SECONDS = 0.05
"""A drum this close is the same hit (the tolerance by which onsets are compared everywhere)."""

UNHEARD = "no melody here, and its pitch is not heard"
RINGING = "no melody here, and its pitch is that of a drum which rings"
DUPLICATE = "; the hit is among the drums already"
SILENT = "; no hit is heard either"
UNWANTED = "; drums of this kind are excluded"
"""What is added where a note is removed."""


class Heard(NamedTuple):
    """A melodic note and what was heard of it."""

    note: Note
    impression: Impression


@dataclass(frozen=True)
class Verdict:
    """On one note.

    Attributes:
        reason: Why it is no melody; empty if it is, or if it stays in doubt.
        stretch: The context of a note whose context has no melody; else None.
    """

    reason: str = ""
    stretch: Stretch | None = None


MELODY = Verdict()


class Scene:
    """All notes that a verdict may look at.

    Args:
        heard: Melodic notes, by onset.
        drums: Onsets of the drums, ascending.
    """

    def __init__(self, heard: Sequence[Heard], drums: Sequence[float]) -> None:
        self._drums = drums
        self._onsets = [note.onset for note, _ in heard]
        self._pitches = np.array([note.pitch for note, _ in heard], np.int64)
        self._clear = np.array([impression.clarity >= 1.0 for _, impression in heard], np.bool_)

    def judge(
        self, note: Note, start: float, end: float, *, tonal_share: float, whole: float = 1.0
    ) -> Verdict:
        """Judges one of the melodic notes.

        Args:
            note: One of those handed over.
            start: Where its context begins, in seconds.
            end: Where it ends.
            tonal_share: Of the audio there.
            whole: How much of the context is there, 0..1; at the beginning of a recording that is
                running, a melody need not be complete yet.
        """
        context = slice(bisect.bisect_left(self._onsets, start), bisect.bisect(self._onsets, end))
        pitches, clear = self._pitches[context], self._clear[context]
        heard = len(np.unique(pitches[clear]))
        drums = bisect.bisect(self._drums, end) - bisect.bisect_left(self._drums, start)
        drum_share = drums / (drums + len(pitches))
        if heard > whole * MELODY_PITCHES + CHANCE * len(pitches):
            return MELODY
        if tonal_share >= (TONAL_WITH_DRUMS if drum_share >= WITH_DRUMS else TONAL):
            return MELODY
        same = pitches == note.pitch
        reason = ""
        if clear[same].mean() < CLEAR_SHARE:
            reason = UNHEARD
        elif note.pitch >= LOW_PITCH:
            near = int(np.sum(np.abs(pitches - note.pitch) <= 1))
            reason = RINGING if near >= REPEATED else ""
        stretch = Stretch(note.onset, note.onset, heard, drum_share, tonal_share)
        return Verdict(reason, stretch)


class Drums:
    """The drums that are there already, and those that are put among them.

    Args:
        onsets: Ascending.
        keys: Percussion keys that may occur.
        duration: Of drums, in seconds.
    """

    def __init__(self, onsets: Sequence[float], *, keys: Collection[int], duration: float) -> None:
        self._onsets = list(onsets)
        self._keys, self._duration = keys, duration

    def replace(self, heard: Heard, reason: str) -> Change:
        """Makes a drum of a note, unless the hit is there already or none is heard.

        Args:
            heard: The note.
            reason: Why it is no melody.
        """
        note, impression = heard
        near = bisect.bisect_left(self._onsets, note.onset - DUPLICATE_SECONDS)
        if near < bisect.bisect(self._onsets, note.onset + DUPLICATE_SECONDS):
            return Change(note, None, reason + DUPLICATE)
        if impression.rise < HIT_DECIBELS:
            return Change(note, None, reason + SILENT)
        if impression.drum_key not in self._keys:
            return Change(note, None, reason + UNWANTED)
        bisect.insort(self._onsets, note.onset)
        drum = replace(
            note,
            offset=note.onset + self._duration,
            pitch=impression.drum_key,
            program=0,
            is_drum=True,
        )
        return Change(note, drum, reason)


def join(stretches: Sequence[Stretch]) -> tuple[Stretch, ...]:
    """Stretches, by time, whose contexts touch, as one."""
    joined: list[Stretch] = []
    for one in stretches:
        if joined and one.start - joined[-1].end <= LOOK_BACK_SECONDS:
            last = joined[-1]
            joined[-1] = Stretch(
                last.start,
                one.end,
                max(last.pitches, one.pitches),
                max(last.drum_share, one.drum_share),
                max(last.tonal_share, one.tonal_share),
            )
        else:
            joined.append(one)
    return tuple(joined)
