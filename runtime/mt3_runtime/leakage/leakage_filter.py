"""Applies a leakage filter to one recording, at its end or while it runs.

Contract: `LeakageFilter.listen` passes on the audio as it is read, on any thread, always ahead of
the notes.  Then either `add` takes the notes that end in each segment, in order, and `finish` gives
all that remain; or `judge` says at once what becomes of those of each segment.  That depends on
audio and notes alone, not on threads or on how far the audio was read ahead.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from mt3_runtime.leakage.drum_evidence import (
    CONTEXT_SECONDS,
    LOOK_BACK_SECONDS,
    DrumContext,
    Drums,
    Sounding,
    join,
    together,
)
from mt3_runtime.leakage.leakage_report import AutoFilter, Change, Filtered, LeakageReport, classic
from mt3_runtime.leakage.salience import SETTLED_SECONDS, SalienceAnalyser
from mt3_runtime.leakage.salience_frames import WINDOW_SECONDS, SalienceFrames
from mt3_runtime.notes.note import Note

if TYPE_CHECKING:
    from mt3_runtime.leakage.harmonics import FloatArray

NEEDED_SECONDS = SETTLED_SECONDS + WINDOW_SECONDS
"""Of audio behind an onset, to say what is heard there."""

Judged = tuple[Note, Note | None]
"""A note, and what became of it while the recording goes on; None if it was removed."""

REMEMBERED_SECONDS = 30.0
"""Of audio; what is held longer is no drum."""


def leakage_filter(
    auto_filter: AutoFilter,
    *,
    rate: int,
    drum_keys: Collection[int] = range(128),
    drum_duration: float = 0.01,
) -> LeakageFilter:
    """The filter for one recording.

    Args:
        auto_filter: Which one, see `mt3_runtime.leakage.leakage_report`.
        rate: Of the audio, in samples per second.
        drum_keys: Percussion keys that a note may be moved to.
        drum_duration: Seconds that drums are given.
    """
    if listens(auto_filter):
        return EvidenceFilter(rate, drum_keys=drum_keys, drum_duration=drum_duration)
    return ClassicFilter() if auto_filter else LeakageFilter()


def listens(auto_filter: AutoFilter) -> bool:
    """Whether a filter hears the audio; of others `take` and `listen` do nothing with it."""
    return bool(auto_filter) and auto_filter != "classic"


def filter_notes(
    notes: Sequence[Note], blocks: Iterable[FloatArray], auto_filter: AutoFilter, *, rate: int
) -> Filtered:
    """Filters the notes of a whole recording that was transcribed before.

    Args:
        notes: In any order.
        blocks: The audio, float32 [n] each.
        auto_filter: Which filter, see `mt3_runtime.leakage.leakage_report`.
        rate: Of the audio, in samples per second.
    """
    leakage = leakage_filter(auto_filter, rate=rate)
    for _ in leakage.listen(blocks):
        pass
    leakage.add(notes, None)
    return leakage.finish()


class LeakageFilter:
    """The filter that changes nothing."""

    def __init__(self) -> None:
        self._notes: list[Note] = []

    def listen(self, blocks: Iterable[FloatArray]) -> Iterator[FloatArray]:
        """Hears blocks of samples, float32 [n], and passes them on."""
        yield from blocks

    def take(self, frames: SalienceFrames) -> None:
        """Takes what was heard of the next samples elsewhere, in place of `listen`."""

    def add(self, notes: Sequence[Note], end: float | None) -> None:  # noqa: ARG002
        """Takes the notes that end in a segment.

        Args:
            notes: In any order.
            end: Of the segment in seconds, None for the last one; all audio up to there was heard.
        """
        self._notes += notes

    def finish(self) -> Filtered:
        """What remains of all notes, in the order in which they were handed over."""
        return Filtered(self._notes, LeakageReport(notes=len(self._notes)))

    def judge(self, notes: Sequence[Note], end: float | None) -> list[Judged]:  # noqa: ARG002
        """What becomes of the notes that end in a segment, by offset; arguments as of `add`."""
        return [(note, note) for note in notes]

    def live(self, notes: Sequence[Note], end: float | None) -> list[Note]:
        """What remains of the notes that end in a segment, by offset; arguments as of `add`."""
        return [became for _, became in self.judge(notes, end) if became is not None]


class ClassicFilter(LeakageFilter):
    """The rules of mt3-infer; while running, for the notes of the last ten seconds."""

    def finish(self) -> Filtered:
        return classic(self._notes)

    def judge(self, notes: Sequence[Note], end: float | None) -> list[Judged]:
        latest = max((note.onset for note in notes), default=0.0) if end is None else end
        past = [note for note in self._notes if note.onset >= latest - LOOK_BACK_SECONDS]
        self._notes = [*past, *notes]
        became = {change.note: change.became for change in classic(self._notes).report.changes}
        return [(note, became.get(note, note)) for note in notes]


class EvidenceFilter(LeakageFilter):
    """The default filter, see `mt3_runtime.leakage.drum_evidence`."""

    def __init__(self, rate: int, *, drum_keys: Collection[int], drum_duration: float) -> None:
        super().__init__()
        self._ear = SalienceAnalyser(rate)
        self._drums = partial(Drums, keys=drum_keys, duration=drum_duration)
        self._sounding: dict[int, Sounding] = {}  # by place in the notes
        self._waiting: list[int] = []  # places of melodic notes that were not heard to the end
        self._recent: list[Sounding] = []
        self._recent_drums: list[float] = []

    def listen(self, blocks: Iterable[FloatArray]) -> Iterator[FloatArray]:
        for block in blocks:
            self._ear.hear(block)
            yield block

    def take(self, frames: SalienceFrames) -> None:
        self._ear.take(frames)

    def add(self, notes: Sequence[Note], end: float | None) -> None:
        until = self._ear.seconds if end is None else end
        new = enumerate(notes, len(self._notes))
        self._waiting += [place for place, note in new if not note.is_drum]
        self._notes += notes
        still = []
        for place in self._waiting:
            if end is not None and self._notes[place].onset + NEEDED_SECONDS > end:
                still.append(place)
            else:
                self._sounding[place] = self._listen(self._notes[place])
        self._waiting = still
        self._ear.forget(until - REMEMBERED_SECONDS)

    def finish(self) -> Filtered:
        self.add((), None)
        onsets = sorted(note.onset for note in self._notes if note.is_drum)
        places = sorted(self._sounding, key=lambda place: self._notes[place])
        heard = together([self._sounding[place] for place in places], self._ear.harmonics)
        scene, drums = DrumContext(heard, onsets), self._drums(onsets)
        changes: dict[int, Change] = {}
        stretches = []
        for place, one in zip(places, heard, strict=True):
            onset = one.note.onset
            start, end = max(0.0, onset - CONTEXT_SECONDS), onset + CONTEXT_SECONDS
            share = self._ear.tonal_share(start, end)
            verdict = scene.judge(one, start, end, tonal_share=share)
            if verdict.reason:
                changes[place] = drums.replace(one, verdict)
            if verdict.stretch:
                stretches.append(verdict.stretch)
        after = [
            changes[place].became if place in changes else note
            for place, note in enumerate(self._notes)
        ]
        report = LeakageReport("auto", len(after), tuple(changes.values()), join(stretches))
        return Filtered([note for note in after if note is not None], report)

    def judge(self, notes: Sequence[Note], end: float | None) -> list[Judged]:
        until = self._ear.seconds if end is None else end
        start = max(0.0, until - LOOK_BACK_SECONDS)
        new = [self._listen(note, until=until) for note in notes if not note.is_drum]
        self._ear.forget(until - REMEMBERED_SECONDS, shares=True)
        self._recent = [one for one in self._recent if one[0].onset >= start] + new
        recent = together(self._recent, self._ear.harmonics)
        hits = [note.onset for note in notes if note.is_drum]
        self._recent_drums = sorted([t for t in self._recent_drums if t >= start] + hits)
        scene, drums = DrumContext(recent, self._recent_drums), self._drums(self._recent_drums)
        share = self._ear.tonal_share(start, until)
        judged: list[Judged] = [(note, note) for note in notes if note.is_drum]
        added = {id(note) for note, *_ in new}
        for heard in (one for one in recent if id(one.note) in added):
            verdict = scene.judge(
                heard,
                min(start, heard.note.onset),
                until,
                tonal_share=share,
                whole=min(1.0, until / LOOK_BACK_SECONDS),
            )
            became: Note | None = heard.note
            if verdict.reason:
                became = drums.replace(heard, verdict).became
            judged.append((heard.note, became))
        return sorted(judged, key=lambda pair: (pair[1] or pair[0]).offset)

    def _listen(self, note: Note, *, until: float = math.inf) -> Sounding:
        return note, self._ear.note(note, until=until), self._ear.tones(note.onset, until=until)
