"""Instrument names, General MIDI programs and families, and the line-up of a recording.

Contract: this is the project's one table of General MIDI names.  `choose` turns what a user types
(names of instruments and of families, common other names, program numbers, ``drums``) into a
`Lineup`, the instruments that may occur; letters' case, punctuation and plurals do not matter.  A
name that is not known is refused, with the names that it may have meant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mt3_runtime.arguments.argument_checks import as_items
from mt3_runtime.errors import OptionError

PROGRAM_NAMES: tuple[str, ...] = tuple(
    """
Acoustic Grand Piano|Bright Acoustic Piano|Electric Grand Piano|Honky-tonk Piano
Electric Piano 1|Electric Piano 2|Harpsichord|Clavinet
Celesta|Glockenspiel|Music Box|Vibraphone|Marimba|Xylophone|Tubular Bells|Dulcimer
Drawbar Organ|Percussive Organ|Rock Organ|Church Organ
Reed Organ|Accordion|Harmonica|Tango Accordion
Acoustic Guitar (nylon)|Acoustic Guitar (steel)|Electric Guitar (jazz)|Electric Guitar (clean)
Electric Guitar (muted)|Overdriven Guitar|Distortion Guitar|Guitar Harmonics
Acoustic Bass|Electric Bass (finger)|Electric Bass (pick)|Fretless Bass
Slap Bass 1|Slap Bass 2|Synth Bass 1|Synth Bass 2
Violin|Viola|Cello|Contrabass|Tremolo Strings|Pizzicato Strings|Orchestral Harp|Timpani
String Ensemble 1|String Ensemble 2|Synth Strings 1|Synth Strings 2
Choir Aahs|Voice Oohs|Synth Choir|Orchestra Hit
Trumpet|Trombone|Tuba|Muted Trumpet|French Horn|Brass Section|Synth Brass 1|Synth Brass 2
Soprano Sax|Alto Sax|Tenor Sax|Baritone Sax|Oboe|English Horn|Bassoon|Clarinet
Piccolo|Flute|Recorder|Pan Flute|Blown Bottle|Shakuhachi|Whistle|Ocarina
Lead 1 (square)|Lead 2 (sawtooth)|Lead 3 (calliope)|Lead 4 (chiff)
Lead 5 (charang)|Lead 6 (voice)|Lead 7 (fifths)|Lead 8 (bass + lead)
Pad 1 (new age)|Pad 2 (warm)|Pad 3 (polysynth)|Pad 4 (choir)
Pad 5 (bowed)|Pad 6 (metallic)|Pad 7 (halo)|Pad 8 (sweep)
FX 1 (rain)|FX 2 (soundtrack)|FX 3 (crystal)|FX 4 (atmosphere)
FX 5 (brightness)|FX 6 (goblins)|FX 7 (echoes)|FX 8 (sci-fi)
Sitar|Banjo|Shamisen|Koto|Kalimba|Bagpipe|Fiddle|Shanai
Tinkle Bell|Agogo|Steel Drums|Woodblock|Taiko Drum|Melodic Tom|Synth Drum|Reverse Cymbal
Guitar Fret Noise|Breath Noise|Seashore|Bird Tweet
Telephone Ring|Helicopter|Applause|Gunshot
""".strip()
    .replace("\n", "|")
    .split("|")
)
"""General MIDI level 1 instrument names, by program 0..127."""

PROGRAMS_PER_FAMILY = 8

FAMILIES: tuple[str, ...] = (
    "Piano",
    "Chromatic Percussion",
    "Organ",
    "Guitar",
    "Bass",
    "Strings",
    "Ensemble",
    "Brass",
    "Reed",
    "Pipe",
    "Synth Lead",
    "Synth Pad",
    "Synth Effects",
    "Ethnic",
    "Percussive",
    "Sound Effects",
)
"""General MIDI families of eight programs each: family i has programs 8 i .. 8 i + 7."""

ALIASES: Mapping[str, tuple[int, ...]] = {
    "grand piano": (0,),
    "acoustic piano": (0, 1, 3),
    "electric piano": (2, 4, 5),
    "rhodes": (4,),
    "vibes": (11,),
    "hammond": (16, 17, 18),
    "pipe organ": (19,),
    "acoustic guitar": (24, 25),
    "nylon guitar": (24,),
    "classical guitar": (24,),
    "steel guitar": (25,),
    "electric guitar": (26, 27, 28, 29, 30, 31),
    "clean guitar": (26, 27, 28),
    "distorted guitar": (29, 30),
    "upright bass": (32,),
    "double bass": (32, 43),
    "electric bass": (33, 34, 35, 36, 37),
    "bass guitar": (33, 34, 35, 36, 37),
    "slap bass": (36, 37),
    "synth bass": (38, 39),
    "harp": (46,),
    "string ensemble": (48, 49),
    "synth strings": (50, 51),
    "choir": (52, 53, 54),
    "voice": (52, 53, 54, 85),
    "vocal": (52, 53, 54, 85),
    "singing": (52, 53, 54, 85),
    "singer": (52, 53, 54, 85),
    "horn": (60,),
    "synth brass": (62, 63),
    "sax": (64, 65, 66, 67),
    "saxophone": (64, 65, 66, 67),
    "woodwind": tuple(range(64, 80)),
    "synth": tuple(range(80, 104)),
    "synthesizer": tuple(range(80, 104)),
    "lead": tuple(range(80, 88)),
    "pad": tuple(range(88, 96)),
}
"""Other names that people use."""

DRUM_NAMES = ("drums", "drum", "drum kit", "drum set", "kit", "percussion")
"""Names of everything on the percussion channel."""

_ALL = frozenset(range(128))


@dataclass(frozen=True)
class Lineup:
    """The instruments that may occur in a recording.

    Attributes:
        programs: General MIDI programs 0..127 of pitched notes.
        drum_keys: General MIDI percussion keys 0..127.
    """

    programs: frozenset[int] = _ALL
    drum_keys: frozenset[int] = _ALL

    def __or__(self, other: Lineup) -> Lineup:
        """What one of the two has."""
        return Lineup(self.programs | other.programs, self.drum_keys | other.drum_keys)

    def __sub__(self, other: Lineup) -> Lineup:
        """What the first has and the second has not."""
        return Lineup(self.programs - other.programs, self.drum_keys - other.drum_keys)

    def __bool__(self) -> bool:
        """Whether anything may occur."""
        return bool(self.programs or self.drum_keys)


AUTO = "auto"
"""Stands for a line-up that evidence chooses (`mt3_runtime.extensions`)."""

NOBODY = Lineup(frozenset(), frozenset())

Instruments = str | int | Lineup | Iterable[str | int]
"""What a user may say: one instrument, a list of them, a text with commas between them, or a
ready-made line-up."""


def instrument_name(program: int, *, is_drum: bool) -> str:
    """The General MIDI name of a program, or ``"Drums"``."""
    return "Drums" if is_drum else PROGRAM_NAMES[program]


def choose(instruments: Instruments | None, exclude: Instruments | None = None) -> Lineup | None:
    """The line-up that a user asks for.

    Args:
        instruments: What may occur; None for everything.
        exclude: What of it may not.

    Returns:
        The line-up; None if neither is given.

    Raises:
        OptionError: A name is not known, a number is not in 0..127, or nothing is left.
    """
    if instruments is None and exclude is None:
        return None
    lineup = Lineup() if instruments is None else named(instruments)
    if exclude is not None:
        lineup -= named(exclude)
    if not lineup:
        raise OptionError(
            "No instrument is left: every one of instruments is excluded, or none is named."
        )
    return lineup


def named(instruments: Instruments) -> Lineup:
    """All instruments of a list together.

    Raises:
        OptionError: As `choose`.
    """
    if isinstance(instruments, Lineup):
        return instruments
    if isinstance(instruments, str):
        if instruments.strip().lower() == AUTO:
            raise OptionError(
                f'instruments="{AUTO}" hears one whole recording at a time; use `mt3 transcribe` '
                "or Model.transcribe_notes for each."
            )
        instruments = [part for part in instruments.split(",") if part.strip()]
    elif isinstance(instruments, int):
        instruments = (instruments,)
    found = NOBODY
    expected = "names or numbers of instruments, such as 'bass, drums' or [33, 'drums']"
    for item in as_items("instruments", instruments, expected):
        found |= _one(item)
    return found


def _one(item: object) -> Lineup:
    text = item.strip() if isinstance(item, str) else item
    if isinstance(text, str) and text.isdecimal():
        text = int(text)
    if isinstance(text, int) and not isinstance(text, bool):
        if 0 <= text < len(PROGRAM_NAMES):
            return Lineup(frozenset((text,)), frozenset())
        raise OptionError(
            f"Program {text} does not exist: General MIDI programs are counted from 0 to 127. "
            "For the percussion channel write drums."
        )
    if not isinstance(text, str):
        raise OptionError(f"An instrument is a name or a program number, got {item!r}.")
    key = _key(text)
    for spelling in (key, _singular(key)):
        if spelling in _LINEUPS:
            return _LINEUPS[spelling]
    raise OptionError(f"Unknown instrument {text!r}: {_suggestion(key)}")


def _key(name: str) -> str:
    """A name without what does not matter: case and punctuation."""
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


def _singular(key: str) -> str:
    """A name without the plural's ending: ``violins`` -> ``violin``, ``basses`` -> ``bass``."""
    return re.sub(r"(?<=s)es$|(?<=[^s])s$", "", key)


def _lineups() -> dict[str, Lineup]:
    """All names; later ones win, so an alias never hides a name of General MIDI."""
    whole = {name: tuple(programs) for name, programs in ALIASES.items()}
    for index, family in enumerate(FAMILIES):
        first = index * PROGRAMS_PER_FAMILY
        whole[_key(family)] = tuple(range(first, first + PROGRAMS_PER_FAMILY))
    whole |= {_key(name): (program,) for program, name in enumerate(PROGRAM_NAMES)}
    found = {name: Lineup(frozenset(programs), frozenset()) for name, programs in whole.items()}
    return found | dict.fromkeys(DRUM_NAMES, Lineup(frozenset(), _ALL))


_LINEUPS = _lineups()


def _suggestion(key: str) -> str:
    close = difflib.get_close_matches(key, _LINEUPS, n=3, cutoff=0.6)
    # "oberheim synth" is close to no name, but a word of it is one.
    close = close or [word for word in key.split() if word in _LINEUPS]
    if close:
        return f"did you mean {' or '.join(close)}?"
    families = ", ".join(name.lower() for name in FAMILIES)
    return f"expected drums, a family ({families}), a General MIDI instrument or its number 0..127."
