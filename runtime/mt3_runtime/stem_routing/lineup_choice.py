"""Which instruments may occur in a file of a separated song: exactly its own, its families, or any.

Contract: `route` says of a file and the model it gets what that model may write, and why.  With
`exact` only the stem's instruments may occur.  That helps where the model knows them, and hurts
where it rarely names them: it is kept from saying what it hears.  `family` allows the whole General
MIDI families of these instruments.  `relabel` allows all pitched instruments, and then gives every
note to the stem's own one (`relabelled`), as nobody else is in the file.

A model that is made for the stem has learned its instruments: it always gets exactly these, unless
somebody says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from mt3_runtime.notes.instruments import PROGRAMS_PER_FAMILY, Lineup
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.stems import OTHER, Role
from mt3_runtime.per_stem import StemFile, StemModel
from mt3_runtime.transcription import Transcription, by_onset

ONE_ONSET = 0.03
"""Seconds; notes of one pitch that begin within this time were one note under two instruments."""


class LineupChoice(StrEnum):
    """What may occur in a file; see the module docstring."""

    EXACT = "exact"
    FAMILY = "family"
    RELABEL = "relabel"


EVIDENCE: Mapping[str, LineupChoice] = dict.fromkeys(
    ("synth_lead", "synth_pad_fx", "strings_ensemble", "vocals"), LineupChoice.RELABEL
)
"""What general models do better with, by stem, as measured (docs/stems.md); `EXACT` for others."""

_PITCHED = Lineup(drum_keys=frozenset())
_KIT = Lineup(programs=frozenset())


@dataclass(frozen=True)
class Route:
    """How a file is transcribed.

    Attributes:
        file: The file.
        model: By what.
        choice: How its line-up was chosen.
        lineup: What may occur.
        program: What all pitched notes are given to; None leaves them as they are.
        why: Why this model, and why this line-up.
    """

    file: StemFile
    model: StemModel
    choice: LineupChoice
    lineup: Lineup
    program: int | None
    why: str

    def to_dict(self) -> dict[str, Any]:
        """As the JSON document has it."""
        return {
            "file": str(self.file.path),
            "stem": self.file.stem.name,
            "model": str(self.model.path),
            "made_for": self.model.stem.name,
            "lineup": str(self.choice),
            "program": self.program,
            "why": self.why,
        }


def route(file: StemFile, model: StemModel, wanted: LineupChoice | None) -> Route:
    """What a model may write of a file.

    Args:
        file: The file.
        model: The model it gets (`mt3_runtime.per_stem.model_for`).
        wanted: What a user asks for; None for what is known to be best.
    """
    choice, reason = _choice(file, model, wanted)
    program = file.program if file.program is not None else file.stem.program
    if choice is LineupChoice.RELABEL and (file.stem.role is Role.PERCUSSIVE or program is None):
        choice = LineupChoice.EXACT
        reason = "no one program stands for the stem"
    lineup = {
        LineupChoice.EXACT: file.lineup,
        LineupChoice.FAMILY: file.lineup | _families(file.lineup),
        LineupChoice.RELABEL: _PITCHED,
    }[choice]
    relabels = choice is LineupChoice.RELABEL
    return Route(
        file=file,
        model=model,
        choice=choice,
        lineup=lineup,
        program=program if relabels else None,
        why=f"{_why(file, model)}; {choice}: {reason}",
    )


def relabelled(result: Transcription, program: int | None) -> Transcription:
    """A result whose pitched notes are all of one program; None leaves it as it is.

    Of notes of one pitch that begin together, the surest is left, with the latest end.
    """
    if program is None:
        return result
    kept: list[Note] = []
    last: dict[int, int] = {}
    for note in sorted(result.notes):
        if note.is_drum:
            kept.append(note)
            continue
        place = last.get(note.pitch)
        if place is not None and note.onset - kept[place].onset <= ONE_ONSET:
            one = kept[place]
            surest = max(one, note, key=lambda some: some.confidence)
            offset = max(one.offset, note.offset)
            kept[place] = replace(surest, onset=one.onset, offset=offset, program=program)
            continue
        last[note.pitch] = len(kept)
        kept.append(replace(note, program=program))
    return replace(result, notes=by_onset(kept))


def _choice(
    file: StemFile, model: StemModel, wanted: LineupChoice | None
) -> tuple[LineupChoice, str]:
    if wanted is not None:
        return wanted, "as asked for"
    if model.stem is file.stem and file.stem.name != OTHER:
        return LineupChoice.EXACT, "the model is made for it"
    if (found := EVIDENCE.get(file.stem.name)) is not None:
        return found, "measured to be better for this stem"
    return LineupChoice.EXACT, "nothing was measured to be better for this stem"


def _families(lineup: Lineup) -> Lineup:
    """The whole General MIDI families of some instruments, and the whole kit for any key."""
    numbers = {program // PROGRAMS_PER_FAMILY for program in lineup.programs}
    programs = frozenset(p for p in range(128) if p // PROGRAMS_PER_FAMILY in numbers)
    return Lineup(programs, _KIT.drum_keys if lineup.drum_keys else frozenset())


def _why(file: StemFile, model: StemModel) -> str:
    made = model.stem
    if made is file.stem and made.name != OTHER:
        return f"the model is made for {made.name}"
    if made.name == OTHER:
        return "the model is made for anything"
    return f"the model is made for {made.name}, which is {made.role}, too"
