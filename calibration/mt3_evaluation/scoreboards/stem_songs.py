"""Makes songs of several stems with their true notes: separated, bleeding into each other, mixed.

Contract: `write_stem_songs` writes a folder per song with ``STEM.wav`` and ``STEM.mid`` for each
stem, and ``mix.wav`` and ``mix.mid`` of the whole, at 16 kHz.  In the file of a stem the sum of all
others is heard, too, as much quieter than the stem as is asked for: separators leave so much (their
ratio of signal to interference).  The songs are made-up music
of as many stems as are asked for; equal arguments give equal files.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mt3_evaluation.scoreboards.testsets import wav
from mt3_runtime.errors import OptionError
from mt3_runtime.files.formats import render as render_notes
from mt3_runtime.filesystem.atomic import make_folder, write_new
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.stems import stem_of
from mt3_synthesis.mixer import Palette, perform, playable, render
from mt3_synthesis.music import MusicConfig, Piece, compose
from mt3_synthesis.rendering import SAMPLE_RATE, Samples

SEED = 0x57E45
"""First half of every seed: no other set has music of these."""

BLEED = -20.0
"""Level of all other stems together against the stem, in its file [dB]."""

PEAK = 0.9
"""Of the mix [of full scale]; stems keep their level in it."""

_TRIES = 200
"""Pieces that are composed in search of one with enough stems."""

MIX = "mix"


@dataclass(frozen=True)
class StemSong:
    """A song on disk.

    Attributes:
        folder: Where it is.
        stems: Names of its stems.
    """

    folder: Path
    stems: tuple[str, ...]

    @property
    def mix(self) -> Path:
        """The whole."""
        return self.folder / f"{MIX}.wav"

    @property
    def files(self) -> list[Path]:
        """The stems."""
        return [self.folder / f"{stem}.wav" for stem in self.stems]


def write_stem_songs(
    folder: Path,
    palette: Palette,
    *,
    count: int,
    seconds: float,
    stems: int = 4,
    bleed: float | None = BLEED,
) -> list[StemSong]:
    """Makes songs.

    Args:
        folder: Where to; it is made if it is not there.
        palette: The sounds.
        count: Number of songs.
        seconds: Length of each.
        stems: Stems of each; drums are always one of them.
        bleed: Level of the other stems against each [dB]; None for none.

    Raises:
        OptionError: The sounds do not make so many stems.
        OutputError: A file cannot be written, or another one has its name.
    """
    made = []
    for number in range(count):
        parts = _song(palette, number, seconds, stems)
        made.append(_write(folder / f"song-{number:03d}", parts, bleed))
    return made


def _song(
    palette: Palette, number: int, seconds: float, stems: int
) -> dict[str, tuple[Samples, list[Note]]]:
    """Sound and notes of every stem of a song."""
    kind = playable(MusicConfig((stems - 1, stems), drums=1.0, chaos=0.0), palette)
    samples = round(seconds * SAMPLE_RATE)
    for attempt in range(_TRIES):
        rng = np.random.default_rng((SEED, number, attempt))
        piece = compose(kind, int(rng.integers(1 << 62)), seconds=seconds - 0.5)
        sounds: dict[str, Samples] = defaultdict(lambda: np.zeros(samples, np.float32))
        notes: dict[str, list[Note]] = defaultdict(list)
        for part in piece.parts:
            alone = Piece(piece.seconds, (part,))
            voices, heard = perform(alone, palette, rng, samples=samples)
            if heard:
                name = "drums" if part.is_drum else stem_of(heard[0]).name
                sounds[name] = sounds[name] + render(voices, palette, samples=samples)
                notes[name] += heard
        if len(notes) == stems and "drums" in notes:
            return {name: (sounds[name], sorted(notes[name])) for name in sorted(notes)}
    raise OptionError(f"no song of {stems} stems can be made with these sounds; ask for fewer")


def _write(
    folder: Path, parts: dict[str, tuple[Samples, list[Note]]], bleed: float | None
) -> StemSong:
    make_folder(folder)
    whole = np.sum([sound for sound, _ in parts.values()], axis=0)
    scale = PEAK / max(1e-6, float(np.abs(whole).max()))
    for name, (sound, notes) in parts.items():
        rest = whole - sound
        share = 0.0 if bleed is None else 10 ** (bleed / 20) * _level(sound)
        audio = scale * (sound + share / max(1e-6, _level(rest)) * rest)
        write_new(folder / f"{name}.wav", wav(audio.astype(np.float32)))
        write_new(folder / f"{name}.mid", render_notes(notes, "midi"))
    everything = sorted(note for _, notes in parts.values() for note in notes)
    write_new(folder / f"{MIX}.wav", wav((scale * whole).astype(np.float32)))
    write_new(folder / f"{MIX}.mid", render_notes(everything, "midi"))
    return StemSong(folder, tuple(parts))


def _level(sound: Samples) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))
