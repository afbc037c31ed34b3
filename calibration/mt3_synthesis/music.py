"""Composes random pieces of several parts, with their true notes, from a seed.

Contract: `compose` turns a seed into a `Piece`; equal seeds give equal pieces.  The pieces are made
to teach hearing, not composition.  So they have what recordings have and a network must cope with
(chords, held and repeated notes, fast runs, swing, rubato, timing that is never exact, drums over
everything), and on purpose also parts of unrelated notes, `chaos`: where the notes do not follow
from each other, they cannot be guessed, only heard.

What each part plays is in `mt3_synthesis.parts`; how it sounds is decided later, when a piece is
performed (`mt3_synthesis.mixer`).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from mt3_runtime.errors import OptionError
from mt3_runtime.notes.note import Note
from mt3_synthesis import parts
from mt3_synthesis.parts import DRUMS, Song

CLOSEST_ONSETS = 0.03
"""Seconds; a second onset of one key within this time is no note of its own to the ear."""

ROLE_WEIGHTS = {"keys": 3.0, "lead": 2.5, "bass": 2.0, "pad": 0.8}
"""How often a part of a band has each role; there is at most one bass and one pad."""

MAX_PARTS = 12
"""Parts that a piece may ask for."""


@dataclass(frozen=True)
class Part:
    """What one player plays.

    Attributes:
        role: "keys", "lead", "bass", "pad", "chaos" or "drums"; "file" if read from a file.
        program: General MIDI program 0..127; 0 for drums.
        is_drum: Whether the pitches are percussion keys.
        notes: Ordered by onset; no pitch sounds twice at a time.  Each carries its velocity.
    """

    role: str
    program: int
    is_drum: bool
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Piece:
    """Parts that sound together.

    Attributes:
        seconds: Length; every onset lies before it, offsets may lie behind.
        parts: At most one per player; several may have one program.
    """

    seconds: float
    parts: tuple[Part, ...]

    @property
    def notes(self) -> list[Note]:
        """The notes of all parts, by onset."""
        return sorted(note for part in self.parts for note in part.notes)


@dataclass(frozen=True)
class MusicConfig:
    """Which kind of music.

    Attributes:
        parts: Fewest and most pitched parts.
        layers: Fewest and most things that a part does at once (a pianist may play chords, a
            melody and a bass).
        drums: Probability 0..1 of a drum part.
        chaos: Probability 0..1 of a part of unrelated notes beside the others.
        programs: Programs to choose from, each as often as it is named; None: those usual for a
            role.
        rests: Probability 0..1 that a part pauses for a bar.
        roles: Roles of the pitched parts, each as often as it is named; None: those of a band.
        drum_keys: Percussion keys that drummers play; None: all.
    """

    parts: tuple[int, int] = (1, 5)
    layers: tuple[int, int] = (1, 1)
    drums: float = 0.6
    chaos: float = 0.2
    programs: tuple[int, ...] | None = None
    rests: float = 0.06
    roles: tuple[str, ...] | None = None
    drum_keys: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, lowest in (("parts", 0), ("layers", 1)):
            low, high = getattr(self, name)
            if not lowest <= low <= high <= MAX_PARTS:
                raise OptionError(
                    f"{name} of a piece are {low}..{high}; expected {lowest} or more, in "
                    f"ascending order, up to {MAX_PARTS}"
                )
        for name in ("drums", "chaos", "rests"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise OptionError(f"{name} is {getattr(self, name)}; expected a probability 0..1")
        if self.programs is not None and not (
            self.programs and all(0 <= program <= 127 for program in self.programs)
        ):
            raise OptionError(
                f"programs are {self.programs}; expected one or more of 0..127, or None"
            )
        if self.roles is not None and not (self.roles and set(self.roles) <= ROLE_WEIGHTS.keys()):
            raise OptionError(
                f"roles are {self.roles}; expected some of {', '.join(ROLE_WEIGHTS)}, or None"
            )
        if self.drum_keys is not None and not (
            self.drum_keys and all(0 <= key <= 127 for key in self.drum_keys)
        ):
            raise OptionError(
                f"drum keys are {self.drum_keys}; expected one or more of 0..127, or None"
            )

    def limited_to(self, programs: Collection[int], *, drums: bool) -> MusicConfig:
        """The same kind of music for players who have no other instruments.

        Args:
            programs: What there is; of the classes named before, if any of those is there.
            drums: Whether there are drums.

        Raises:
            OptionError: Nothing is left to play with.
        """
        wanted = self.programs or tuple(chain.from_iterable(parts.PROGRAMS.values()))
        classes = {program // 8 for program in wanted}
        left = tuple(program for program in wanted if program in programs)
        left = left or tuple(p for p in sorted(programs) if p // 8 in classes)
        left = left or tuple(sorted(programs))
        pitched = self.parts if left else (0, 0)
        probability = self.drums if drums else 0.0
        if not left and not probability:
            raise OptionError("there are no sounds for this kind of music; use other sample banks")
        same = self.programs is None and set(wanted) <= set(programs)
        return replace(
            self,
            parts=pitched,
            drums=probability,
            chaos=self.chaos if left else 0.0,
            programs=None if same else left or None,
        )

    @classmethod
    def band(cls) -> MusicConfig:
        """Up to five parts and drums."""
        return cls()

    @classmethod
    def solo(cls, *programs: int, chaos: float = 0.25) -> MusicConfig:
        """One instrument, doing up to three things at once; any instrument if none is named."""
        return cls((1, 1), (1, 3), drums=0.0, chaos=chaos, programs=programs or None)

    @classmethod
    def line(cls, *programs: int) -> MusicConfig:
        """One instrument with one voice, as a singer or a violinist."""
        return cls((1, 1), (1, 1), drums=0.0, chaos=0.0, programs=programs or parts.LEADS)

    @classmethod
    def piano(cls) -> MusicConfig:
        """Solo piano."""
        return cls.solo(0, 0, 0, 0, 0, 1, 2)

    @classmethod
    def piano_and_drums(cls) -> MusicConfig:
        """A piano and, mostly, drums."""
        return cls((1, 1), (1, 3), drums=0.8, programs=(0,))

    @classmethod
    def drums_only(cls) -> MusicConfig:
        """Drums."""
        return cls((0, 0), drums=1.0, chaos=0.0)


def compose(config: MusicConfig, seed: int, *, seconds: float) -> Piece:
    """Make up a piece.

    Args:
        config: Which kind of music.
        seed: Equal seeds give equal pieces.
        seconds: Length of the piece.

    Raises:
        OptionError: The length is not positive.
    """
    if not 0.0 < seconds < float("inf"):
        raise OptionError(f"a piece of {seconds} s was asked for; expected a positive length")
    rng = random.Random(seed)  # noqa: S311  music, no secrets
    with_drums = rng.random() < config.drums
    song = Song(rng, seconds, steady=with_drums, rests=config.rests)
    made = []
    for role in _roles(rng, rng.randint(*config.parts), config.roles):
        program = _program(rng, role, config.programs)
        layers = rng.randint(*config.layers)
        notes = [n for play in parts.styles(rng, role, layers) for n in play(song, program)]
        made.append((role, program, notes))
    if rng.random() < config.chaos:
        # Unrelated notes belong to the last part's instrument half of the time: then even
        # knowing all of its other notes says nothing about the next.
        if made and rng.random() < 0.5:
            made[-1][2].extend(parts.chaos(song, made[-1][1]))
        else:
            usual = config.roles or ("keys", "lead")
            program = _program(rng, rng.choice(usual), config.programs)
            made.append(("chaos", program, parts.chaos(song, program)))
    pitched = [
        Part(role, program, is_drum=False, notes=one_at_a_time(notes, seconds))
        for role, program, notes in made
    ]
    if with_drums:
        kept = config.drum_keys
        played = [n for n in parts.drums(song) if kept is None or n.pitch in kept]
        hits = one_at_a_time(played, seconds)
        pitched.append(Part(DRUMS, 0, is_drum=True, notes=hits))
    return Piece(seconds, tuple(part for part in pitched if part.notes))


def one_at_a_time(notes: Iterable[Note], seconds: float) -> tuple[Note, ...]:
    """Make a player's notes playable: a key that is struck again ends before.

    Notes that begin within `CLOSEST_ONSETS` of the last one of their pitch, before 0 or behind
    ``seconds`` are left out.
    """
    kept: list[Note] = []
    last: dict[int, int] = {}
    for note in sorted(notes):
        if not 0.0 <= note.onset < seconds:
            continue
        before = last.get(note.pitch)
        if before is not None:
            old = kept[before]
            if note.onset - old.onset < CLOSEST_ONSETS:
                continue
            if old.offset > note.onset:
                kept[before] = moved(old, end=note.onset)
        last[note.pitch] = len(kept)
        kept.append(note)
    return tuple(kept)


def moved(note: Note, *, by: float = 0.0, end: float | None = None) -> Note:
    """A note at another time, or with another end."""
    offset = note.offset if end is None else end
    return Note(note.onset + by, offset + by, note.pitch, note.velocity, note.program, note.is_drum)


def _roles(rng: random.Random, count: int, wanted: Sequence[str] | None) -> list[str]:
    if wanted is not None:
        return rng.choices(wanted, k=count)
    chosen: list[str] = []
    for _ in range(count):
        open_roles = [
            role for role in ROLE_WEIGHTS if role in ("keys", "lead") or role not in chosen
        ]
        chosen += rng.choices(open_roles, [ROLE_WEIGHTS[role] for role in open_roles])
    return chosen


def _program(rng: random.Random, role: str, programs: Sequence[int] | None) -> int:
    """A program for a role; of ``programs`` one that suits the role, if there is one."""
    usual = parts.PROGRAMS[role]
    if programs is None:
        return rng.choice(usual)
    suited = [program for program in programs if program in usual]
    return rng.choice(suited or programs)
