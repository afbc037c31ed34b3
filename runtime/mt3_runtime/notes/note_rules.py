"""Note rules of a model: how its events become notes, as data of its bundle.

Contract: `NoteRules` holds the numbers, and the names of the strategies, that differ between
models; `mt3_runtime.notes.magenta_assembler` and `mt3_runtime.notes.yourmt3_assembler` are the
strategies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from mt3_runtime.errors import BundleError
from mt3_runtime.schema import read_fields

EMPTY_WITHOUT_EOS = "empty_without_eos"
"""Quirk: a segment that never says end-of-sequence counts as empty."""
UNK_IS_EOS = "unk_is_eos"
"""Quirk: the unknown token ends a segment."""
TORCH_PORT_QUIRKS = (EMPTY_WITHOUT_EOS, UNK_IS_EOS)
"""What kunato/mt3-pytorch and gudgud96/MR-MT3 do and Magenta does not; see `NoteRules.quirks`."""

EMPTY_WITHOUT_TIE = "empty_without_tie"
"""Quirk: a segment without tie token counts as empty, and ends all held notes of its channel."""
CUT_LONG_NOTES = "cut_long_notes"
"""Quirk: a note of more than ten seconds is cut to the minimum duration."""
CUT_OPEN_NOTES = "cut_open_notes"
"""Quirk: a note that sounds at the end of the recording is cut to the minimum duration."""
YOURMT3_QUIRKS = (EMPTY_WITHOUT_TIE, CUT_LONG_NOTES, CUT_OPEN_NOTES)
"""What YourMT3's own code does; see `NoteRules.quirks`."""

ASSEMBLIES: Mapping[str, tuple[str, ...]] = {
    "magenta": TORCH_PORT_QUIRKS,
    "yourmt3": YOURMT3_QUIRKS,
}
"""Ways to join segments, and the quirks that each of them can imitate."""

MAX_MIDI_VELOCITY = 127


@dataclass(frozen=True)
class Channel:
    """What one of several sequences that are decoded from a segment is about.

    A model was trained to keep to it, and nothing enforces that it does.

    Attributes:
        name: For people.
        programs: Programs of its notes, 0..127, ascending.
        drums: Whether it has drums.
    """

    name: str
    programs: tuple[int, ...]
    drums: bool

    def __post_init__(self) -> None:
        if list(self.programs) != sorted({p for p in self.programs if 0 <= p <= 127}):
            raise BundleError(
                f"notes: channel {self.name!r} has programs {list(self.programs)}; expected "
                "ascending numbers within 0..127"
            )


@dataclass(frozen=True)
class NoteRules:
    """How a model's events become notes; part of a bundle.

    Attributes:
        assembly: Name of the joining rules: ``"magenta"`` (`mt3_runtime.notes.magenta_assembler`)
            or ``"yourmt3"`` (`mt3_runtime.notes.yourmt3_assembler`).
        ties: Whether segments open with a tie section.  Without, notes stay open until a note-off
            or a new onset of the same pitch, across any number of segments.
        velocity_bins: Velocity tokens are 0 (note-off) or 1..``velocity_bins``; see `velocity`.
        minimum_duration: Seconds; shorter notes are lengthened to it (all models: one step, 0.01).
        drum_duration: Seconds; drums have onsets only and get this length (all models: 0.01).
        initial_program: Program before the first program token (``"magenta"``).
        initial_velocity: MIDI velocity before the first velocity token; that of all notes where
            velocity tokens say no more than on and off (``"yourmt3"``).  All models: 100.
        flat_programs: Whether program tokens are read over, so that every note has
            ``initial_program`` (models trained without instruments).
        general_midi: Pairs of a program that means something else to the model than to General
            MIDI, and the General MIDI program that its notes get.
        program_groups: Programs, as the model counts, that it does not tell apart: it was taught to
            say the first of each group for all of them.  Programs in no group stand for themselves.
        channels: What each sequence of a segment is about; empty where there is only one.
        quirks: Known defects of the model's original implementation, by name; they are imitated
            only when ``upstream_quirks`` is asked for, and what they discard is counted.
    """

    assembly: str = "magenta"
    ties: bool = True
    velocity_bins: int = 1
    minimum_duration: float = 0.01
    drum_duration: float = 0.01
    initial_program: int = 0
    initial_velocity: int = 100
    flat_programs: bool = False
    general_midi: tuple[tuple[int, int], ...] = ()
    program_groups: tuple[tuple[int, ...], ...] = ()
    channels: tuple[Channel, ...] = ()
    quirks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low, high in (
            ("velocity_bins", 1, MAX_MIDI_VELOCITY),
            ("initial_program", 0, 127),
            ("initial_velocity", 0, MAX_MIDI_VELOCITY),
            ("minimum_duration", 0.0, 1.0),
            ("drum_duration", 0.001, 1.0),
        ):
            if not low <= getattr(self, name) <= high:
                value = getattr(self, name)
                raise BundleError(f"notes: {name} is {value}, expected {low}..{high}")
        known = ASSEMBLIES.get(self.assembly, ())
        if self.assembly not in ASSEMBLIES or not set(self.quirks) <= set(known):
            raise BundleError(
                f"notes: assembly {self.assembly!r} with quirks {list(self.quirks)} is not known "
                f"here (known: {dict(ASSEMBLIES)}); install a newer mt3-runtime"
            )
        if len(self.channels) > 1 and self.assembly != "yourmt3":
            raise BundleError(
                f"notes: assembly {self.assembly!r} joins one channel, not {len(self.channels)}"
            )
        programs = [program for pair in self.general_midi for program in pair]
        if any(not 0 <= program <= 127 for program in programs):
            raise BundleError(f"notes: general_midi has {programs}; expected programs in 0..127")
        grouped = [program for group in self.program_groups for program in group]
        if len(set(grouped) & set(range(128))) < len(grouped) or not all(self.program_groups):
            raise BundleError(
                "notes: program_groups must be lists of one or more programs in 0..127, none of "
                f"them twice; got {[list(group) for group in self.program_groups]}"
            )

    def velocity(self, velocity_bin: int) -> int:
        """MIDI velocity of a bin: 0 for bin 0 (note-off), else the integer part of 127 bin/bins."""
        return MAX_MIDI_VELOCITY * velocity_bin // self.velocity_bins

    def program(self, program: int) -> int:
        """General MIDI program of a program as the model counts."""
        return dict(self.general_midi).get(program, program)

    def to_dict(self) -> dict[str, Any]:
        """The rules as plain JSON types; `from_dict` is the inverse."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        return data | {
            "general_midi": [list(pair) for pair in self.general_midi],
            "program_groups": [list(group) for group in self.program_groups],
            "channels": [
                asdict(channel) | {"programs": list(channel.programs)} for channel in self.channels
            ],
            "quirks": list(self.quirks),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NoteRules:
        """Read what `to_dict` wrote.

        Raises:
            BundleError: A key is missing or unknown, or a value is of a wrong type or range.
        """
        return read_fields(cls, data, "notes")

    @classmethod
    def mt3(cls, *, quirks: Sequence[str] = ()) -> NoteRules:
        """Magenta's ``mt3`` and everything derived from it."""
        return cls(quirks=tuple(quirks))

    @classmethod
    def ismir2021(cls) -> NoteRules:
        """Magenta's ``ismir2021``: piano of any kind, no ties, 127 velocities."""
        return cls(
            ties=False,
            velocity_bins=127,
            flat_programs=True,
            program_groups=(tuple(range(8)),),
        )

    @classmethod
    def yourmt3(cls, *, channels: Sequence[Channel] = ()) -> NoteRules:
        """YourMT3 models; ``channels`` is `YOURMT3_CHANNELS` for those that decode by family.

        Their programs 100 and 101 are a singing voice and a chorus.  General MIDI calls that Voice
        Oohs and Choir Aahs (the original's MIDI writer plays 100 on an alto saxophone).
        """
        return cls(
            assembly="yourmt3",
            general_midi=((100, 53), (101, 52)),
            program_groups=YOURMT3_GROUPS,
            channels=tuple(channels),
            quirks=YOURMT3_QUIRKS,
        )


YOURMT3_GROUPS = (
    (0, 1, 3, 6, 7),  # acoustic pianos, harpsichord, clavinet
    (2, 4, 5),  # electric pianos
    tuple(range(8, 16)),
    tuple(range(16, 24)),
    (24, 25),  # acoustic guitars
    (26, 27, 28),  # clean electric guitars
    (29, 30, 31),  # distorted ones
    (32, 35),  # acoustic and fretless bass
    (33, 34, 36, 37, 38, 39),  # other basses
    (48, 44, 45, 49),  # string sections
    (50, 51),
    (52, 53, 54),  # choirs
    (56, 59),  # trumpets
    (61, 62, 63),  # brass sections
    (64, 65),  # soprano and alto sax
    (73, 72, 74, 75, 76, 77, 78, 79),  # flutes
    tuple(range(80, 88)),
    tuple(range(88, 96)),
)
"""Programs that YourMT3's training labels made one (its vocabulary ``mt3_full_plus``)."""

YOURMT3_CHANNELS = (
    Channel("Piano", tuple(range(8)), drums=False),
    Channel("Chromatic Percussion", tuple(range(8, 16)), drums=False),
    Channel("Organ", tuple(range(16, 24)), drums=False),
    Channel("Guitar", tuple(range(24, 32)), drums=False),
    Channel("Bass", tuple(range(32, 40)), drums=False),
    Channel("Strings", tuple(range(40, 56)), drums=False),
    Channel("Brass", tuple(range(56, 64)), drums=False),
    Channel("Reed", tuple(range(64, 72)), drums=False),
    Channel("Pipe", tuple(range(72, 80)), drums=False),
    Channel("Synth Lead", tuple(range(80, 88)), drums=False),
    Channel("Synth Pad", tuple(range(88, 96)), drums=False),
    Channel("Singing Voice", (100, 101), drums=False),
    Channel("Drums", (), drums=True),
)
"""The channels of YourMT3's multi-channel models (its task ``mc13_full_plus_256``)."""
