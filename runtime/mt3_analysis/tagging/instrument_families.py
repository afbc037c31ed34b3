"""Families of instruments: which General MIDI programs and which AudioSet classes belong to each.

Contract: the one table that joins what a transcription and what a tagger say.  Only classes that
speak of an instrument are named; a label set that has none of them has nothing to say here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Instruments that sound alike, and that both sides can tell from others.

    Attributes:
        name: As users read it.
        programs: General MIDI programs 0..127.
        labels: Names of classes in AudioSet, lower case.
    """

    name: str
    programs: frozenset[int]
    labels: frozenset[str]


def _family(name: str, programs: Collection[int], labels: str) -> Family:
    return Family(name, frozenset(programs), frozenset(labels.split("|")))


DRUMS = "drums"

FAMILIES: tuple[Family, ...] = (
    _family("piano", range(8), "piano|electric piano|harpsichord|keyboard (musical)"),
    _family(
        "mallets",
        range(8, 16),
        "mallet percussion|marimba, xylophone|glockenspiel|vibraphone|tubular bells|steelpan",
    ),
    _family(
        "organ",
        range(16, 24),
        "organ|electronic organ|hammond organ|accordion|harmonica",
    ),
    _family(
        "guitar",
        (*range(24, 32), 105),
        "guitar|electric guitar|acoustic guitar|steel guitar, slide guitar|tapping (guitar "
        "technique)|strum|banjo|ukulele|mandolin|plucked string instrument",
    ),
    _family("bass", range(32, 40), "bass guitar|double bass"),
    _family(
        "strings",
        (*range(40, 52), 110),
        "bowed string instrument|string section|violin, fiddle|cello|pizzicato|harp|orchestra",
    ),
    _family(
        "voice",
        (52, 53, 54),
        "singing|choir|male singing|female singing|child singing|rapping|humming|a capella|"
        "vocal music|yodeling|chant",
    ),
    _family("brass", range(56, 64), "brass instrument|french horn|trumpet|trombone"),
    _family("reeds", range(64, 72), "saxophone|clarinet"),
    _family("flutes", range(72, 80), "flute|wind instrument, woodwind instrument"),
    _family("synthesizer", range(80, 104), "synthesizer|sampler"),
    _family(
        DRUMS,
        (),
        "drum kit|drum machine|drum|snare drum|rimshot|drum roll|bass drum|timpani|tabla|cymbal|"
        "hi-hat|wood block|tambourine|rattle (instrument)|maraca|percussion",
    ),
)
"""In the order of General MIDI; drums are notes of the percussion channel."""

_OF_PROGRAM: Mapping[int, str] = {
    program: family.name for family in FAMILIES for program in family.programs
}
_OF_LABEL: Mapping[str, str] = {
    label: family.name for family in FAMILIES for label in family.labels
}


def family_of_note(program: int, *, is_drum: bool) -> str | None:
    """The family of a note; None for sounds that are in none (effects, percussive programs)."""
    return DRUMS if is_drum else _OF_PROGRAM.get(program)


def family_of_label(label: str) -> str | None:
    """The family of a class; None if it is no instrument of this table."""
    return _OF_LABEL.get(label.strip().lower())
