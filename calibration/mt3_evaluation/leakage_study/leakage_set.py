"""Makes synthetic recordings that test instrument leakage: drums, bands, and look-alikes of drums.

Contract: `write_leakage_set` fills a folder like `mt3_evaluation.scoreboards.testsets` does:
``KIND-000.wav`` and ``KIND-000.mid``, its true notes.  Equal arguments give equal files.  The set
called ``tune`` is the only material by which the leakage filter of the runtime was tuned; ``check``
and ``last`` have other sounds and other music, and were only looked at afterwards.

    python -m mt3_evaluation.leakage_study.leakage_set tune FOLDER

Leakage is the model taking drums for something else, so the drums vary most: all kits of the
soundfonts (rooms, brushes, electronic ones, ...), and each as if it were tuned higher or lower.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mt3_evaluation.scoreboards.testsets import begin_set, wav
from mt3_runtime.cli import guarded
from mt3_runtime.errors import MT3Error, OptionError
from mt3_runtime.files.formats import render as render_notes
from mt3_runtime.filesystem.atomic import write_new
from mt3_runtime.imports.extras import require
from mt3_runtime.notes.note import Note
from mt3_synthesis import parts
from mt3_synthesis.augment import PREROLL, AugmentConfig, Augmenter, draw
from mt3_synthesis.bank import Bank, BankSpec, assemble, build_bank
from mt3_synthesis.mixer import Palette, perform, render
from mt3_synthesis.modelled_drums import live_bank, membrane_bank
from mt3_synthesis.music import Part, Piece, one_at_a_time
from mt3_synthesis.rendering import DRUM_KIT, SAMPLE_RATE, Request, Sound, play_soundfont
from mt3_synthesis.soundfonts import find, source_named

MALLETS = (8, 9, 10, 11, 12, 13, 14, 15, 108, 114)
"""Celesta to dulcimer, kalimba, steel drums: struck like drums, and yet melodies."""

CHOPPED = (0, 4, 16, 17, 18, 25, 26, 27, 28, 29, 62)
"""What plays chords on the off-beats, or a stab now and then."""

GUITARS, BASSES = (24, 25, 26, 27, 29, 30), (32, 33, 34, 35, 36, 38, 39)

RINGING = (
    parts.TOMS,
    (60, 61, 62, 63, 64),  # bongos and congas
    (65, 66, 67, 68, 56),  # timbales, agogos, cowbell
    (*parts.TOMS, 56, 75, 76, 77),  # cowbell, claves, wood blocks
)
"""Percussion keys that have a pitch and are played together."""

PIANO, VIOLIN, FLUTE, SYNTH_LEADS = (0, 1), (40,), (73,), (80, 81)


@dataclass(frozen=True)
class Kind:
    """A line-up.

    Attributes:
        players: Role (of `parts.STYLES` or `ROLES`) and possible programs (the usual ones of the
            role if none) of each.
        drums: Whether a drummer plays along.
        ringing: Whether that drummer also plays on drums with a pitch.
        kit: "sampled"; or "skins" or "live", the modelled ones of `mt3_synthesis.modelled_drums`.
        layers: How many things each player does at once, at most.
        loudness: Factor on the velocities of the players, but for the drummer.
    """

    players: tuple[tuple[str, tuple[int, ...]], ...] = ()
    drums: bool = False
    ringing: bool = False
    kit: str = "sampled"
    layers: int = 1
    loudness: float = 1.0


ROCK = (("bass", BASSES), ("keys", (27, 28, 29, 30)), ("lead", (52, 53, 54, 65, 66, 81, 85)))
"""Distorted guitars and something like a voice."""

KINDS: dict[str, Kind] = {
    "drums": Kind(drums=True),
    "ringing_drums": Kind(drums=True, ringing=True),
    "skins": Kind(drums=True, ringing=True, kit="skins"),
    "bass_skins": Kind((("bass", BASSES),), drums=True, ringing=True, kit="skins"),
    "mallets_skins": Kind((("lead", MALLETS),), drums=True, ringing=True, kit="skins"),
    "bass_drums": Kind((("bass", BASSES),), drums=True),
    "pedal_drums": Kind((("pedal", BASSES),), drums=True),
    "mallets_drums": Kind((("lead", MALLETS),), drums=True),
    "lead_drums": Kind((("lead", ()),), drums=True),
    "live": Kind(drums=True, kit="live"),
    "bass_live": Kind((("bass", BASSES),), drums=True, kit="live"),
    "mallets_live": Kind((("lead", MALLETS),), drums=True, kit="live"),
    "chops_drums": Kind((("chops", CHOPPED),), drums=True),
    "chops_live": Kind((("chops", CHOPPED),), drums=True, kit="live"),
    "dub_live": Kind((("bass", BASSES), ("chops", CHOPPED)), drums=True, kit="live"),
    "riff_drums": Kind((("riff", GUITARS),), drums=True),
    "rock_drums": Kind(ROCK, drums=True, loudness=0.45),
    "rock_live": Kind(ROCK, drums=True, kit="live", loudness=0.45),
    "trio": Kind((("bass", BASSES), ("keys", PIANO + GUITARS)), drums=True),
    "band": Kind((("bass", ()), ("keys", ()), ("lead", ()), ("pad", ())), drums=True),
    "band_no_drums": Kind((("bass", ()), ("keys", ()), ("lead", ()))),
    "mallets": Kind((("lead", MALLETS),), layers=2),
    "bass": Kind((("bass", BASSES),)),
    "guitar": Kind((("keys", GUITARS),), layers=2),
    "piano": Kind((("keys", PIANO),), layers=3),
    "line": Kind((("lead", VIOLIN + FLUTE + SYNTH_LEADS),)),
}
"""Who plays, by name."""


@dataclass(frozen=True)
class LeakageSet:
    """A set.

    Attributes:
        name: Its name; also decides what is played.
        sources: Soundfonts, see `mt3_synthesis.soundfonts`.
        kits: Numbers of the kits that are taken of each, where it has them.
        ratios: How much higher the kits are tuned, in turn.
        counts: Recordings by kind; those not named have `count`.
        count: Recordings of every other kind.
    """

    name: str
    sources: tuple[str, ...]
    kits: tuple[int, ...] = (0, 1, 3, 5, 8, 10, 13, 16, 18, 24, 25, 32, 34, 40)
    ratios: tuple[float, ...] = (1.0, 0.84, 1.19, 1.09, 0.92)
    counts: tuple[tuple[str, int], ...] = (
        ("drums", 30),
        ("ringing_drums", 12),
        ("skins", 18),
        ("band", 12),
        ("bass_drums", 12),
        ("pedal_drums", 12),
        ("live", 30),
        ("chops_drums", 12),
        ("chops_live", 12),
        ("dub_live", 12),
        ("riff_drums", 12),
        ("rock_drums", 12),
        ("rock_live", 12),
    )
    count: int = 6


LEAKAGE_SETS = (
    LeakageSet("tune", ("fluidr3mono", "musescore", "gmbank")),
    LeakageSet("check", ("timgm6mb",)),
    LeakageSet("last", ("timgm6mb",), counts=(("drums", 8), ("live", 8), ("skins", 8)), count=4),
)

MORE_PROGRAMS = (10, 14, 15, 114)
"""What the usual banks lack of `MALLETS`."""


def banks_for(spec: LeakageSet) -> list[Bank]:
    """The sounds of a set: of each soundfont the usual bank, what that lacks, and every kit.

    Raises:
        MissingDependencyError: A soundfont, or what plays it, is not installed.
    """
    more = BankSpec(programs=MORE_PROGRAMS, drum_keys=())
    banks = []
    for name in spec.sources:
        source = source_named(name)
        banks += [build_bank(source), build_bank(source, more)]
        banks += kit_banks(name, find(source)[0].read_bytes(), spec.kits, spec.ratios)
    return banks


def kit_banks(name: str, data: bytes, kits: Sequence[int], ratios: Sequence[float]) -> list[Bank]:
    """A bank for each kit that a soundfont has, higher or lower than it is there.

    Args:
        name: What the banks are called.
        data: The soundfont.
        kits: Numbers of the kits.
        ratios: Of the frequencies, in turn.
    """
    resample = require("soxr", "Making sounds", "cpu").resample
    seconds = BankSpec.drum_seconds
    banks = []
    for place, kit in enumerate(kits):
        ratio = ratios[place % len(ratios)]
        wanted = [
            Request(DRUM_KIT + kit, key, velocity, seconds)
            for key in range(35, 83)
            for velocity in (60, 110)
        ]
        sounds = [
            Sound(
                DRUM_KIT, s.pitch, s.velocity, resample(s.samples, ratio * SAMPLE_RATE, SAMPLE_RATE)
            )
            for s in play_soundfont(data, wanted)
        ]
        if sounds:
            banks.append(assemble(f"{name} kit {kit}", sounds))
    return banks


def compose(kind: Kind, seed: int, *, seconds: float) -> Piece:
    """Makes up a piece for a line-up."""
    rng = random.Random(seed)  # noqa: S311  music, no secrets
    song = parts.Song(rng, seconds, steady=kind.drums, rests=0.06)
    made = []
    for role, programs in kind.players:
        program = rng.choice(programs or parts.PROGRAMS[role])
        layers = rng.randint(1, kind.layers)
        styles = [ROLES[role]] if role in ROLES else parts.styles(rng, role, layers)
        notes = [_louder(n, kind.loudness) for play in styles for n in play(song, program)]
        made.append(Part(role, program, is_drum=False, notes=one_at_a_time(notes, seconds)))
    if kind.drums:
        beaten = [*parts.drums(song), *(ring(song) if kind.ringing else ())]
        hits = one_at_a_time(beaten, seconds)
        made.append(Part(parts.DRUMS, 0, is_drum=True, notes=hits))
    return Piece(seconds, tuple(part for part in made if part.notes))


def _louder(note: Note, factor: float) -> Note:
    return replace(note, velocity=max(1, round(factor * note.velocity)))


def pedal(song: parts.Song, program: int) -> list[Note]:
    """A bass that stays on one pitch or two, as a drum does that is taken for a bass."""
    rng = song.rng
    second = rng.choice((0, 0, 7, 12))
    pitch, hold, level = rng.randint(28, 45), rng.choice((0.4, 0.8, 0.95)), rng.uniform(60.0, 110.0)
    notes = []
    for beat, beats in song.rhythm(rng.uniform(0.4, 0.9)):
        onset = song.played(beat)
        length = max(parts.SHORTEST, hold * (song.at(beat + beats) - song.at(beat)))
        key = pitch + second * (rng.random() < 0.2)
        velocity = min(127, max(12, round(level + rng.gauss(0.0, 6.0))))
        notes.append(Note(onset, onset + length, key, velocity, program))
    return notes


def chops(song: parts.Song, program: int) -> list[Note]:
    """Short chords off the beat, the same few over and over; or one now and then, a stab."""
    rng = song.rng
    low, high = parts.range_of(program)
    roots = rng.choices(range(7), k=rng.choice((1, 1, 2, 2, 3)))
    size, octave = rng.choice((2, 3, 3, 4)), rng.choice((3, 4, 4))
    step, shift = rng.choice(((1, 0.5), (2, 1.0), (2, 1.5), (4, 2.5), (8, 1.0)))
    hold, level, played = rng.uniform(0.06, 0.25), rng.uniform(50.0, 110.0), rng.uniform(0.4, 1.0)
    notes = []
    for count in range(int(song.beats / step)):
        if rng.random() > played:
            continue
        beat = count * step + shift
        root, onset = roots[int(beat / 4) % len(roots)], song.played(beat)
        velocity = min(127, max(12, round(level + rng.gauss(0.0, 8.0))))
        for degree in range(root, root + 2 * size, 2):
            key = parts.folded(song.pitch(degree, octave), low, high)
            notes.append(Note(onset, onset + hold, key, velocity, program))
    return notes


def riff(song: parts.Song, program: int) -> list[Note]:
    """Short single notes on two to four pitches, over and over."""
    rng = song.rng
    low, high = parts.range_of(program)
    degrees = rng.sample(range(8), rng.randint(2, 4))
    octave, hold, level = rng.choice((2, 3, 4)), rng.uniform(0.05, 0.2), rng.uniform(60.0, 110.0)
    notes = []
    for place, (beat, _) in enumerate(song.rhythm(rng.uniform(0.3, 0.8))):
        key = parts.folded(song.pitch(degrees[place % len(degrees)], octave), low, high)
        onset, velocity = song.played(beat), min(127, max(12, round(level + rng.gauss(0.0, 8.0))))
        notes.append(Note(onset, onset + hold, key, velocity, program))
    return notes


ROLES: dict[str, parts.Style] = {"pedal": pedal, "chops": chops, "riff": riff}
"""What `parts.STYLES` has no need of."""


def ring(song: parts.Song) -> list[Note]:
    """A pattern on drums that have a pitch."""
    rng = song.rng
    family = rng.choice(RINGING)
    keys = rng.sample(family, rng.randint(2, len(family)))
    level = rng.uniform(70.0, 115.0)
    hits = []
    for beat, _ in song.rhythm(rng.uniform(0.3, 0.8)):
        onset, velocity = song.played(beat), min(127, max(15, round(level + rng.gauss(0.0, 8.0))))
        hits.append(Note(onset, onset + 0.05, rng.choice(keys), velocity, is_drum=True))
    return hits


def write_leakage_set(
    spec: LeakageSet, folder: Path, *, banks: Iterable[Bank] | None = None, seconds: float = 12.0
) -> list[Path]:
    """Makes a set.

    Args:
        spec: Which one.
        folder: Where to; it is made if it is not there.  Equal files that are there stay.
        banks: The sounds; by default `banks_for` the set.
        seconds: Length of each recording.

    Returns:
        The audio files, by kit.

    Raises:
        MissingDependencyError: As in `banks_for`.
        OutputError: A file cannot be written, or another one has its name.
    """
    chosen = banks_for(spec) if banks is None else list(banks)
    samples = round(seconds * SAMPLE_RATE)
    augmenter = Augmenter(samples)
    counts = dict.fromkeys(KINDS, spec.count) | dict(spec.counts)
    names = [f"{kind}-{number:03d}.wav" for kind in KINDS for number in range(counts[kind])]
    begin_set(folder, [folder / name for name in names], [bank for bank in chosen if bank.meta])
    written = []
    for kit in dict.fromkeys(line_up.kit for line_up in KINDS.values()):
        palette = palette_with(kit, chosen)  # one at a time: they are large
        for kind, line_up in KINDS.items():
            for number in range(counts[kind] if line_up.kit == kit else 0):
                rng = np.random.default_rng((*spec.name.encode(), *kind.encode(), number))
                piece = compose(line_up, int(rng.integers(1 << 62)), seconds=seconds - 0.5)
                start, length = -PREROLL, PREROLL + samples
                voices, notes = perform(piece, palette, rng, start=start, samples=length)
                audio = render(voices, palette, samples=length)
                path = folder / f"{kind}-{number:03d}.wav"
                write_new(path, wav(augmenter(audio, draw(AugmentConfig(), rng))))
                write_new(path.with_suffix(".mid"), render_notes(notes, "midi"))
                written.append(path)
    return written


def palette_with(kit: str, banks: Sequence[Bank]) -> Palette:
    """All sounds, with drums of one sort (see `Kind`)."""
    if kit == "sampled":
        return Palette(banks)
    model = {"skins": membrane_bank, "live": live_bank}[kit]
    drummers = enumerate(bank for bank in banks if DRUM_KIT in bank.instruments)
    kits = [model(f"{bank.name} {kit}", bank, seed) for seed, bank in drummers]
    others = [_without_drums(bank) for bank in banks if set(bank.instruments) != {DRUM_KIT}]
    return Palette([*others, *kits])


def _without_drums(bank: Bank) -> Bank:
    return replace(bank, index=bank.index[bank.index[:, 0] != DRUM_KIT])


def set_named(name: str) -> LeakageSet:
    """The set of that name.

    Raises:
        OptionError: There is none.
    """
    for spec in LEAKAGE_SETS:
        if spec.name == name:
            return spec
    raise OptionError(f"there is no leakage set {name!r}; expected one of tune, check, last")


def main() -> int:
    """Writes the set that the command line names."""
    parser = argparse.ArgumentParser(description="make recordings to judge instrument leakage by")
    parser.add_argument("set", choices=[spec.name for spec in LEAKAGE_SETS])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    try:
        write_leakage_set(set_named(args.set), args.folder)
    except MT3Error as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
