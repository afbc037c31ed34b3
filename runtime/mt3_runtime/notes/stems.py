"""Stems: drums, bass, guitar and so on, and which notes belong to which.

Contract: `STEMS` divides all notes: every program and every percussion key belongs to exactly one
stem.  `split` sorts notes into them, `stem_named` understands what people call them, `stems_of`
tells stems from the names of audio files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING

from mt3_runtime.errors import OptionError
from mt3_runtime.notes.instruments import NOBODY, Lineup

if TYPE_CHECKING:
    from mt3_runtime.notes.note import Note


class Role(StrEnum):
    """What a stem does in the music."""

    MELODIC = "melodic"
    HARMONIC = "harmonic"
    PERCUSSIVE = "percussive"


@dataclass(frozen=True)
class Stem:
    """A part of a song.

    Attributes:
        name: As in file names and options.
        role: What it does.
        lineup: The instruments that belong to it.
        aliases: Further words for it in file names.
        program: The program that stands for all of its own; None for drums, and for `OTHER`.
    """

    name: str
    role: Role
    lineup: Lineup
    aliases: tuple[str, ...] = ()
    program: int | None = None


OTHER = "other"
"""Name of the stem of everything that no other one has."""

HIGH = "high_percs"
"""Name of the stem of hi-hats and cymbals."""

HIGH_KEYS = frozenset({42, 44, 46, 49, 51, 52, 53, 55, 57, 59})
"""Hi-hats (closed, pedal, open) and cymbals (crash, ride, Chinese, ride bell, splash, crash, ride):
General MIDI's percussion keys that are made of metal and struck with a stick."""


def _programs(*ranges: range) -> Lineup:
    return Lineup(frozenset(program for some in ranges for program in some), frozenset())


_VOICES = (*range(52, 55), 85)  # choir, voice, synth choir; the lead called voice

_NAMED = (
    Stem("bass", Role.MELODIC, _programs(range(32, 40)), ("bass guitar", "sub bass"), 33),
    Stem("piano", Role.HARMONIC, _programs(range(8)), ("keys", "keyboard", "keyboards"), 0),
    Stem(
        "synth_lead",
        Role.MELODIC,
        _programs(range(80, 85), range(86, 88)),
        ("lead synth", "synth", "lead"),
        81,
    ),
    Stem(
        "synth_pad_fx",
        Role.HARMONIC,
        _programs(range(88, 104)),
        ("synth pad", "pad", "pads", "fx", "sfx"),
        89,
    ),
    Stem(
        "guitar",
        Role.HARMONIC,
        _programs(range(24, 32)),
        ("guitars", "gtr", "electric guitar", "acoustic guitar", "lead guitar", "rhythm guitar"),
        27,
    ),
    Stem(
        "strings_ensemble",
        Role.HARMONIC,
        _programs(range(40, 52), range(55, 56)),
        ("strings", "string ensemble", "ensemble", "orchestra"),
        48,
    ),
    Stem(
        "drums",
        Role.PERCUSSIVE,
        Lineup(frozenset(), frozenset(range(128)) - HIGH_KEYS),
        ("drum", "drum kit", "drumkit", "kit", "percussion"),
    ),
    Stem(
        HIGH,
        Role.PERCUSSIVE,
        Lineup(frozenset(), HIGH_KEYS),
        ("high percs", "high perc", "cymbals", "hats", "hihats", "hi hats", "hihat", "hi hat"),
    ),
    Stem(
        "vocals",
        Role.MELODIC,
        Lineup(frozenset(_VOICES), frozenset()),
        ("vocal", "vox", "voice", "voices", "lead vocals", "backing vocals", "choir"),
        52,
    ),
)

STEMS: tuple[Stem, ...] = (
    *_NAMED,
    Stem(
        OTHER,
        Role.HARMONIC,
        Lineup() - reduce(or_, (stem.lineup for stem in _NAMED), NOBODY),
        ("others", "rest", "accompaniment", "instrumental"),
    ),
)
"""All stems; each program and percussion key belongs to one of them."""

_BY_PROGRAM = {program: stem for stem in STEMS for program in stem.lineup.programs}
_BY_KEY = {key: stem for stem in STEMS for key in stem.lineup.drum_keys}
_BY_NAME: Mapping[tuple[str, ...], Stem] = {
    tuple(re.findall(r"[a-z]+", name)): stem
    for stem in STEMS
    for name in (stem.name, *stem.aliases)
}
_LONGEST_NAME = max(map(len, _BY_NAME))


def stem_of(note: Note) -> Stem:
    """The stem that a note belongs to."""
    return _BY_KEY[note.pitch] if note.is_drum else _BY_PROGRAM[note.program]


def stem_of_program(program: int) -> Stem:
    """The stem that a General MIDI program of 0..127 belongs to."""
    return _BY_PROGRAM[program]


def split(notes: Iterable[Note]) -> dict[str, tuple[Note, ...]]:
    """Notes by stem, in the order of `STEMS` and of the notes; stems without notes are left out."""
    found: dict[str, list[Note]] = {stem.name: [] for stem in STEMS}
    for note in notes:
        found[stem_of(note).name].append(note)
    return {name: tuple(some) for name, some in found.items() if some}


def stem_named(name: str) -> Stem:
    """A stem by its exact name.

    Raises:
        OptionError: There is none.
    """
    for stem in STEMS:
        if stem.name == name:
            return stem
    raise OptionError(f"Unknown stem {name!r}; expected one of {_names()}.")


def stems_of(paths: Sequence[Path]) -> list[Stem]:
    """The stems that audio files hold, told by their names.

    The words that all names begin or end with say nothing (the title of a song), unless one of them
    has no others.  In the rest, the words of exactly one stem must occur; the longest name counts,
    so that ``bass guitar`` is a bass.

    Raises:
        OptionError: A name says no stem, or several.
    """
    found = told_stems(paths)
    for stem in found:
        if isinstance(stem, OptionError):
            raise stem
    return [stem for stem in found if isinstance(stem, Stem)]


def told_stems(paths: Sequence[Path]) -> list[Stem | OptionError]:
    """As `stems_of`, with the error in place of a stem that a name does not say."""
    words = [re.findall(r"[a-z]+", path.stem.lower()) for path in paths]
    own = words
    if len(words) > 1:
        while all(own) and len({some[0] for some in own}) == 1:
            own = [some[1:] for some in own]
        while all(own) and len({some[-1] for some in own}) == 1:
            own = [some[:-1] for some in own]
    told = own if all(own) else words
    return [_told(path, some) for path, some in zip(paths, told, strict=True)]


def _told(path: Path, words: Sequence[str]) -> Stem | OptionError:
    found: dict[str, Stem] = {}
    position = 0
    while position < len(words):
        for length in range(_LONGEST_NAME, 0, -1):
            stem = _BY_NAME.get(tuple(words[position : position + length]))
            if stem is not None:
                found[stem.name] = stem
                break
        position += length
    if len(found) == 1:
        return next(iter(found.values()))
    problem = f"names several stems ({', '.join(found)})" if found else "names no stem"
    return OptionError(
        f"{path}: the file's name {problem}; expected one of {_names()}, such as "
        f"{path.with_stem('bass').name}. Rename the file, or leave it out."
    )


def _names() -> str:
    return ", ".join(stem.name for stem in STEMS)
