"""Decides which melodic notes are drum hits in disguise: the default leakage filter's rules.

Contract: `DrumContext.judge` says of a melodic note whether it is a drum hit in disguise, and why;
`Drums.replace` makes a drum of it.  Both go by the notes and by what was heard of them
(`mt3_runtime.leakage.salience`, `mt3_runtime.leakage.harmonics`); neither looks at programs, so
nothing depends on which instrument a model mistakes a drum for.

For each note, the notes around it are the context: five seconds to either side, or, while a
recording is still running, the ten seconds before.

1. If there is no drum among the notes there, everything stays: a drum stem of which the model finds
   not one hit is rarer than music that drums bury.
2. If more than three different tones are heard in the context, there is melody, and everything
   stays.  A tone is a pitch that is clear and whose harmonics have more of what sets in with it
   than chance would give them.  Pitches that sound alike, though that sound is not their harmonics,
   are one: a snare that is written down as E, as B, and as a chord of both is one snare.
3. If the sound is tonal, everything stays: less than 12 % of the amplitudes must belong to tones,
   or less than 25 % where at least 15 % of the notes are drums.
4. Otherwise pitches stay whose harmonics have two fifths of what sets in with them, however few
   they are: stabs, riffs, a chord over and over.  (Not those so high that there is but one.)
5. Of the others, only pitches stay that are clear in 30 % of their notes,
6. and of these not those that come three times or more, or that sound like others: they are drums
   that ring, as cowbells, congas, toms and tuned snares do.  Low ones are exempt, as there are
   basses that never move.

The numbers come from synthetic stems and bands alone; docs/leakage.md has the evidence, and what
happens if they are moved.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_runtime.leakage.harmonics import HIGH_PITCH, LOW_PITCH, Harmonics
from mt3_runtime.leakage.leakage_report import Change, Stretch
from mt3_runtime.leakage.salience import KICK, OnsetEvidence
from mt3_runtime.notes.note import Note

CONTEXT_SECONDS = 5.0
"""To either side of a note."""

LOOK_BACK_SECONDS = 2 * CONTEXT_SECONDS
"""Before the end of the latest segment, while a recording is running."""

MELODY_TONES = 3
"""More than these make a melody."""

ALIKE = 0.5
"""From this product on, what sets in with two notes is the same sound (see
`mt3_runtime.leakage.harmonics`)."""

HARMONIC = 0.4
"""A pitch whose harmonics have so much of what sets in with it, on average, is no drum; and two
such notes are two tones, however alike they sound: they are a chord."""

TOGETHER_SECONDS = 0.04
"""Notes that begin within this time set in together."""

TONAL, TONAL_WITH_DRUMS, WITH_DRUMS = 0.12, 0.25, 0.15
"""Shares of tones from which sound is tonal, without drums and with them, and the share of drums in
the notes that tells the two apart."""

CLEAR_SHARE = 0.3
"""Of the notes of one pitch; as many must be clear for all of them to be."""

REPEATED = 3
"""So many notes within a semitone of one another or of one sound, where there is no melody, are a
ringing drum."""

HIT_DECIBELS = 5.0
"""By so much the level must rise for a hit; where it does not, nothing is put in a note's place."""

MOST_ARE_DRUMS = 0.5
"""Share of drums in the notes from which they are found well.  A hit that is missing among them is
put in only if it is a kick, the one that is told from the others in most cases."""

DUPLICATE_SECONDS = 0.05
"""A drum this close is the same hit (the tolerance by which onsets are compared everywhere)."""

UNHEARD = "no melody here, and its pitch is not heard"
RINGING = "no melody here, and its pitch is that of a drum which rings"
DUPLICATE = "; the hit is among the drums already"
SILENT = "; no hit is heard either"
UNCERTAIN = "; most notes here are drums, and it is not a kick"
UNWANTED = "; drums of this kind are excluded"
"""What is added where a note is removed."""


class Heard(NamedTuple):
    """A melodic note and what was heard of it.

    Attributes:
        note: As the model has it.
        evidence: What is heard where it starts.
        tones: Those that set in there, float16 [frequencies].
        harmonic: How much of these belongs to it and to the notes that begin with it.
    """

    note: Note
    evidence: OnsetEvidence
    tones: npt.NDArray[np.float16]
    harmonic: float


Sounding = tuple[Note, OnsetEvidence, npt.NDArray[np.float16]]
"""A note before it is known what begins with it."""


def together(notes: Sequence[Sounding], harmonics: Harmonics) -> list[Heard]:
    """Notes, in order of their onsets, with what begins together."""
    ordered = sorted(notes, key=lambda sounding: sounding[0])
    onsets = [note.onset for note, *_ in ordered]
    heard = []
    for note, evidence, tones in ordered:
        first = bisect.bisect_left(onsets, note.onset - TOGETHER_SECONDS)
        last = bisect.bisect(onsets, note.onset + TOGETHER_SECONDS)
        pitches = {other.pitch for other, *_ in ordered[first:last]}
        heard.append(Heard(note, evidence, tones, harmonics.share(tones, pitches)))
    return heard


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


class DrumContext:
    """All notes that a verdict may look at.

    Args:
        heard: Melodic notes, by onset, see `together`.
        drums: Onsets of the drums, ascending.
    """

    def __init__(self, heard: Sequence[Heard], drums: Sequence[float]) -> None:
        self._drums = drums
        self._onsets = [one.note.onset for one in heard]
        self._pitches = np.array([one.note.pitch for one in heard], np.int64)
        self._clear = np.array([one.evidence.clarity >= 1.0 for one in heard], np.bool_)
        self._harmonic = np.array([one.harmonic for one in heard], np.float64)
        self._tones = np.array([one.tones for one in heard], np.float32)

    def judge(
        self, heard: Heard, start: float, end: float, *, tonal_share: float, whole: float = 1.0
    ) -> Verdict:
        """Judges one of the melodic notes.

        Args:
            heard: One of those handed over.
            start: Where its context begins, in seconds.
            end: Where it ends.
            tonal_share: Of the audio there.
            whole: How much of the context is there, 0..1; at the beginning of a recording that is
                running, a melody need not be complete yet.
        """
        context = slice(bisect.bisect_left(self._onsets, start), bisect.bisect(self._onsets, end))
        pitches, clear = self._pitches[context], self._clear[context]
        drums = bisect.bisect(self._drums, end) - bisect.bisect_left(self._drums, start)
        if not drums:
            return MELODY
        drum_share = drums / (drums + len(pitches))
        most = whole * MELODY_TONES
        tones = self._count(np.flatnonzero(clear) + context.start, most)
        tonal = TONAL_WITH_DRUMS if drum_share >= WITH_DRUMS else TONAL
        if tones > most or tonal_share >= tonal:
            return MELODY
        note = heard.note
        stretch = Stretch(note.onset, note.onset, tones, drum_share, tonal_share)
        same = pitches == note.pitch
        if note.pitch <= HIGH_PITCH and self._harmonic[context][same].mean() >= HARMONIC:
            return Verdict(stretch=stretch)
        if clear[same].mean() < CLEAR_SHARE:
            return Verdict(UNHEARD, stretch)
        if note.pitch < LOW_PITCH:
            return Verdict(stretch=stretch)
        sounds = self._tones[context] @ heard.tones.astype(np.float32)
        alike = (np.abs(pitches - note.pitch) <= 1) | (sounds >= ALIKE)
        return Verdict(RINGING if alike.sum() >= REPEATED else "", stretch)

    def _count(self, places: npt.NDArray[np.intp], most: float) -> int:
        """How many different tones clear notes are; counting ends with more than ``most``."""
        pitches, harmonic, tones = (
            of[places] for of in (self._pitches, self._harmonic, self._tones)
        )
        _, number, times = np.unique(pitches, return_inverse=True, return_counts=True)
        means = np.bincount(number, harmonic) / times
        left, count = np.flatnonzero(means[number] > 0.0), 0
        while len(left) and count <= most:
            one = left[0]
            chord = np.minimum(harmonic[left], harmonic[one]) >= HARMONIC
            alike = (tones[left] @ tones[one] >= ALIKE) & ~chord
            left = left[~alike & (pitches[left] != pitches[one])]
            count += 1
        return count


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

    def replace(self, heard: Heard, verdict: Verdict) -> Change:
        """Makes a drum of a note, unless the hit is there already or none is heard for certain.

        Args:
            heard: The note.
            verdict: Why it is no melody, and what is around it.
        """
        reason, around = verdict.reason, verdict.stretch
        note, evidence = heard.note, heard.evidence
        near = bisect.bisect_left(self._onsets, note.onset - DUPLICATE_SECONDS)
        if near < bisect.bisect(self._onsets, note.onset + DUPLICATE_SECONDS):
            return Change(note, None, reason + DUPLICATE)
        if evidence.rise < HIT_DECIBELS:
            return Change(note, None, reason + SILENT)
        if around and around.drum_share >= MOST_ARE_DRUMS and evidence.drum_key != KICK:
            return Change(note, None, reason + UNCERTAIN)
        if evidence.drum_key not in self._keys:
            return Change(note, None, reason + UNWANTED)
        bisect.insort(self._onsets, note.onset)
        drum = replace(
            note,
            offset=note.onset + self._duration,
            pitch=evidence.drum_key,
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
