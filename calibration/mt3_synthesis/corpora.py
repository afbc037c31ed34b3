"""Reads written music as training material: MIDI files of permissively licensed packages.

Contract: a corpus is read into the same `Piece`s that `mt3_synthesis.music` makes up, so nothing
behind it knows the difference; `excerpt` cuts one out, transposes it, changes its tempo and hands
its parts to other instruments, so that the same few songs stay new for longer.

There is one corpus: the music of Freedoom (BSD-3-Clause, ``apt-get install freedoom``), some sixty
General MIDI tracks for full band inside two WAD archives.  Others were considered and left out:
the scores that come with music21 carry the terms of many encoders, some non-commercial; Groove
MIDI, POP909 and ASAP are in no package.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mt3_runtime.errors import MissingDependencyError, OptionError
from mt3_runtime.files.formats import parse_midi
from mt3_runtime.notes.note import Note
from mt3_synthesis import parts
from mt3_synthesis.music import Part, Piece, one_at_a_time

FREEDOOM = (
    Path("/usr/share/games/doom/freedoom1.wad"),
    Path("/usr/share/games/doom/freedoom2.wad"),
)
"""Where the package puts its archives."""

CREDIT = "Freedoom (BSD-3-Clause; contributors to the Freedoom project)"
"""Whose music it is."""

MIDI_MAGIC = b"MThd"

WAD_HEADER, WAD_ENTRY = struct.Struct("<4sii"), struct.Struct("<ii8s")
"""Kind, number of entries, place of the directory; place, size and name of one entry."""

MAX_ENTRIES = 1 << 20
"""More entries than any archive has."""

FEWEST_NOTES = 20
"""Files with fewer notes are no music (the archives hold a few empty tracks)."""

TRANSPOSITION = 5
"""Semitones up or down, at most."""

TEMPO = (0.8, 1.25)
"""Range of the factors of the tempo."""

KEEP_PROGRAM = 0.5
"""Probability that a part keeps its instrument."""


def freedoom(paths: Iterable[Path] = FREEDOOM) -> list[Piece]:
    """The music of Freedoom.

    Raises:
        MissingDependencyError: The package is not installed.
        OptionError: An archive is damaged.
    """
    pieces, seen = [], set()
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise MissingDependencyError(
                f"there is no Freedoom music at {path}; run: apt-get install freedoom  (or train "
                "without a corpus)"
            ) from error
        for lump in wad_lumps(data):
            if lump.startswith(MIDI_MAGIC) and lump not in seen:  # the archives share tracks
                seen.add(lump)
                pieces.append(as_piece(parse_midi(lump)))
    return [piece for piece in pieces if sum(len(p.notes) for p in piece.parts) >= FEWEST_NOTES]


def wad_lumps(data: bytes) -> Iterator[bytes]:
    """The entries of a WAD archive.

    Raises:
        OptionError: It is no WAD archive, or it is damaged.
    """
    try:
        kind, count, place = WAD_HEADER.unpack_from(data)
        if kind not in (b"IWAD", b"PWAD") or not 0 <= count <= MAX_ENTRIES:
            raise OptionError("expected a WAD archive; install the package again")
        for index in range(count):
            start, size, _ = WAD_ENTRY.unpack_from(data, place + index * WAD_ENTRY.size)
            if min(start, size) < 0 or start + size > len(data):
                raise OptionError(f"entry {index} of the WAD archive leads past its end")
            yield data[start : start + size]
    except struct.error as error:
        raise OptionError(f"the WAD archive is cut off: {error}") from error


def as_piece(notes: Iterable[Note]) -> Piece:
    """Notes as a piece with one part per program and one for drums; starts with the first note."""
    groups: dict[tuple[bool, int], list[Note]] = {}
    for note in notes:
        groups.setdefault((note.is_drum, 0 if note.is_drum else note.program), []).append(note)
    every = [note for group in groups.values() for note in group]
    first = min((note.onset for note in every), default=0.0)
    seconds = max((note.onset for note in every), default=0.0) - first + 1.0
    made = []
    for (is_drum, program), group in sorted(groups.items()):
        shifted = (
            replace(
                note,
                onset=note.onset - first,
                offset=max(note.offset, note.onset + parts.SHORTEST) - first,
                program=program,
            )
            for note in group
        )
        made.append(Part("file", program, is_drum, one_at_a_time(shifted, seconds)))
    return Piece(seconds, tuple(made))


def excerpt(
    piece: Piece,
    seed: int,
    *,
    seconds: float,
    programs: tuple[int, ...] | None = None,
    parts_kept: int = 5,
) -> Piece:
    """A piece of ``seconds`` cut out at random, transposed, at another tempo, re-instrumented.

    Args:
        piece: The whole song.
        seed: Equal seeds give equal excerpts.
        seconds: Length; shorter songs are repeated as far as they go.
        programs: Instruments that may be given to a part; None: those usual for its role.
        parts_kept: Pitched parts that are left, at most.

    Raises:
        OptionError: The length is not positive.
    """
    if not 0.0 < seconds < float("inf"):
        raise OptionError(f"an excerpt of {seconds} s was asked for; expected a positive length")
    rng = random.Random(seed)  # noqa: S311  music, no secrets
    tempo = rng.uniform(*TEMPO)
    transposition = rng.randint(-TRANSPOSITION, TRANSPOSITION)
    start = rng.uniform(0.0, max(0.0, piece.seconds - seconds * tempo))
    pitched = [part for part in piece.parts if not part.is_drum]
    chosen = rng.sample(pitched, min(parts_kept, len(pitched)))
    chosen += [part for part in piece.parts if part.is_drum]
    made = []
    for part in chosen:
        program = part.program if part.is_drum else _instrument(rng, part, programs)
        low, high = parts.range_of(program)
        cut = [
            Note(
                (note.onset - start) / tempo,
                (note.offset - start) / tempo,
                note.pitch if part.is_drum else parts.folded(note.pitch + transposition, low, high),
                note.velocity,
                program,
                part.is_drum,
            )
            for note in part.notes
            if start <= note.onset < start + seconds * tempo
        ]
        made.append(Part(part.role, program, part.is_drum, one_at_a_time(cut, seconds)))
    return Piece(seconds, tuple(part for part in made if part.notes))


def _instrument(rng: random.Random, part: Part, programs: tuple[int, ...] | None) -> int:
    """A program for a part: its own, or one of a role that suits its register."""
    own_is_fine = programs is None or part.program in programs
    if rng.random() < KEEP_PROGRAM and own_is_fine:
        return part.program
    middle = sorted(note.pitch for note in part.notes)[len(part.notes) // 2]
    role = "bass" if middle < 48 else rng.choice(("keys", "lead", "pad"))
    usual = parts.PROGRAMS[role]
    suited = [program for program in usual if programs is None or program in programs]
    return rng.choice(suited or programs or usual)
