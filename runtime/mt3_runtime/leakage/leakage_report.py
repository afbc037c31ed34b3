"""Instrument leakage: filters by name, and the report of what was changed and why.

Contract: a filter takes the notes of a recording and returns those that remain, and a
`LeakageReport` that accounts for every note it removed or moved to the drums.  It never makes a
note up, never changes one in any other way and keeps their order of onsets.

There are two filters, chosen by ``auto_filter``:

* ``True``: by evidence, from the audio as well as from the notes; see
`mt3_runtime.leakage.drum_evidence`. * ``"classic"``: the rules of mt3-infer 0.2.0, from the numbers
  of notes alone; see `classic`.  They repair drum loops, and leave nothing but the drums of any
  band with a busy bass.

``False`` leaves everything as the model said it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from mt3_runtime.errors import OptionError
from mt3_runtime.notes.note import Note

AutoFilter = bool | Literal["classic"]

AUTO_FILTERS: Mapping[str, AutoFilter] = {"on": True, "classic": "classic", "off": False}
"""By their names on the command line."""

BASSES, CHROMATIC = range(32, 40), range(8, 16)
"""General MIDI programs: basses; celesta to dulcimer, chromatic percussion."""

MOST_BASS, MOST_CHROMATIC, MOST_DRUMS, ONLY_CHROMATIC = 0.2, 0.5, 0.6, 0.7
"""Shares of all notes above which `classic` acts (mt3-infer 0.2.0, adapters/mt3_pytorch.py)."""


class Change(NamedTuple):
    """What happened to one note.

    Attributes:
        note: As the model had it.
        became: What stands in its place; None if it was removed.
        reason: Why.
    """

    note: Note
    became: Note | None
    reason: str


@dataclass(frozen=True)
class Stretch:
    """A part of a recording in which the filter found drums and no melody.

    Attributes:
        start: Onset of the first note that was judged there, in seconds.
        end: Onset of the last one.
        pitches: Pitches that are heard there as tones, the largest number around any of the notes.
        drum_share: Share of the drums in the notes there.
        tonal_share: Share of the amplitudes in the audio that belongs to tones.
    """

    start: float
    end: float
    pitches: int
    drum_share: float
    tonal_share: float


@dataclass(frozen=True)
class LeakageReport:
    """What a filter did.

    Attributes:
        filter: "none", "auto" or "classic"; or "smooth", of
            `mt3_runtime.leakage.program_smoothing`.
        notes: How many notes there were before.
        changes: All that happened to them, by onset.
        stretches: Where there is no melody ("auto" only), in order.
    """

    filter: str = "none"
    notes: int = 0
    changes: tuple[Change, ...] = ()
    stretches: tuple[Stretch, ...] = ()

    @property
    def moved(self) -> int:
        """Number of notes that became something else."""
        return sum(change.became is not None for change in self.changes)

    @property
    def removed(self) -> int:
        """Number of notes that are gone."""
        return len(self.changes) - self.moved

    @property
    def kept(self) -> int:
        """Number of notes that are as they were."""
        return self.notes - len(self.changes)

    def summary(self) -> str:
        """One line for a log; empty if nothing changed."""
        if not self.changes:
            return ""
        if self.filter == "smooth":
            return f"{self._name}: {self.moved} of {self.notes} notes given another program"
        return (
            f"{self._name}: {self.removed} of {self.notes} notes removed, "
            f"{self.moved} moved to the drums"
        )

    def lines(self) -> list[str]:
        """The whole report for people."""
        head = self.summary() or f"{self._name}: {self.notes} notes, none changed"
        stretches = [
            f"no melody from {s.start:.2f} to {s.end:.2f} s: {s.pitches} tones, "
            f"{s.drum_share:.0%} drums, {s.tonal_share:.0%} of the sound is tones"
            for s in self.stretches
        ]
        return [head, *stretches, *(_line(change) for change in self.changes)]

    @property
    def _name(self) -> str:
        return "smoothing" if self.filter == "smooth" else f"leakage filter ({self.filter})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; of a change: where, what it was, what it became, and why."""
        return {
            "filter": self.filter,
            "notes": self.notes,
            "kept": self.kept,
            "moved": self.moved,
            "removed": self.removed,
            "stretches": [
                {name: round(value, 6) for name, value in vars(stretch).items()}
                for stretch in self.stretches
            ],
            "changes": [
                {
                    "onset": round(note.onset, 6),
                    "offset": round(note.offset, 6),
                    "pitch": note.pitch,
                    "program": note.program,
                    "confidence": round(note.confidence, 6),
                    "became": None
                    if became is None
                    else {name: getattr(became, name) for name in ("pitch", "program", "is_drum")},
                    "reason": reason,
                }
                for note, became, reason in self.changes
            ],
        }


class Filtered(NamedTuple):
    """The notes that remain, in their order, and the report."""

    notes: list[Note]
    report: LeakageReport


def check_auto_filter(value: object) -> None:
    """Refuses what is no filter.

    Raises:
        OptionError: It is neither True nor False nor "classic".
    """
    if not isinstance(value, bool) and not (isinstance(value, str) and value == "classic"):
        raise OptionError(f'auto_filter is {value!r}; expected True, False or "classic".')


def classic(notes: Sequence[Note]) -> Filtered:
    """The rules of mt3-infer 0.2.0's ``mt3_pytorch`` adapter.

    Drums only: if there are drums, and basses are over 20 % of all notes or chromatic percussion
    over 50 %; or if drums are over 60 %.  Otherwise, if chromatic percussion is over 70 %, all
    melodic notes become drums, and keep pitch and times.

    Args:
        notes: All notes of a recording.
    """
    reason = _classic_reason(notes)
    kept: list[Note] = []
    changes: list[Change] = []
    for note in notes:
        if reason and not note.is_drum:
            became = replace(note, program=0, is_drum=True) if reason == _ALL_CHROMATIC else None
            changes.append(Change(note, became, reason))
            kept += [] if became is None else [became]
        else:
            kept.append(note)
    return Filtered(kept, LeakageReport("classic", len(notes), tuple(changes)))


_ALL_CHROMATIC = f"chromatic percussion is over {ONLY_CHROMATIC:.0%} of the notes"


def _classic_reason(notes: Sequence[Note]) -> str:
    """What in the numbers of notes calls for action; empty if nothing does."""
    melodic = [note.program for note in notes if not note.is_drum]
    drums = len(notes) - len(melodic)
    basses = _count(melodic, BASSES)
    chromatic = _count(melodic, CHROMATIC)
    total = max(len(notes), 1)
    if drums and basses / total > MOST_BASS:
        return f"there are drums, and basses are over {MOST_BASS:.0%} of the notes"
    if drums and chromatic / total > MOST_CHROMATIC:
        return (
            f"there are drums, and chromatic percussion is over {MOST_CHROMATIC:.0%} of the notes"
        )
    if drums / total > MOST_DRUMS:
        return f"drums are over {MOST_DRUMS:.0%} of the notes"
    return _ALL_CHROMATIC if chromatic / total > ONLY_CHROMATIC else ""


def _count(programs: Iterable[int], family: range) -> int:
    return sum(program in family for program in programs)


def _what(note: Note) -> str:
    return f"drum {note.pitch}" if note.is_drum else f"program {note.program}"


def _line(change: Change) -> str:
    note, became, reason = change
    what = "removed" if became is None else _what(became)
    where = f"{note.onset:.2f} s: program {note.program}, pitch {note.pitch}"
    return f"{where} -> {what}: {reason}"
