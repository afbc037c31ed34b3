"""Mixes sample banks into audio: which sample plays when, and the sum of them all.

Contract: `perform` decides how a `Piece` sounds (`mt3_synthesis.timbres`) and returns a plan,
`Voices`, with one row per note that is heard in a window, together with the notes as they sound;
`render` adds up the plan.

Labels follow the sound: a note that no bank can play is in neither, and one that outlasts its sound
ends with it.

Pitch is shifted by reading a sound faster or slower, with linear interpolation.  At 16 kHz that
would dull everything above 4 kHz and fold it; so a `Palette` keeps its sounds at twice the rate,
which brings images from -4 dB down to -26 dB at 6 kHz.  Positions are counted in whole fractions
of a sample, so every implementation reads the same ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import OptionError
from mt3_runtime.notes.note import Note
from mt3_synthesis.bank import Bank
from mt3_synthesis.music import MusicConfig, Part, Piece
from mt3_synthesis.rendering import DRUM_KIT, SAMPLE_RATE, Samples
from mt3_synthesis.timbres import Timbre, choose_timbre, varied

OVERSAMPLING = 2
"""Samples that a palette keeps for each one of its banks."""

FRACTION_BITS = 24
"""Positions are counted in 2^-24 of a kept sample: a hundredth of a sample after 20 minutes."""

RELEASE_NEPERS = 6.0
"""Decay over the release, at whose end a note is cut off (-52 dB)."""

TUNING_CENTS = 10.0
"""Standard deviation of the tuning of all parts together, in cents."""

VELOCITY_POWER = 1.2
"""Amplitude goes with this power of velocity, between the velocities that were recorded."""

USUAL_LEVEL = 0.01
"""RMS of a part that plays quietly: what others are compared with where the own part rests."""

_HALF_BAND_ZEROS = 12
"""Zero crossings on each side of the filter that doubles the rate."""

_BLOCK = 1 << 20
"""Samples whose rate is doubled at a time."""


class Voices(NamedTuple):
    """Plan of a window: one entry per note that is heard in it, all arrays [n].

    Attributes:
        shot: int64, position of the sound's first sample in `Palette.audio`.
        ratio: int64, kept samples per output sample, in 2^-`FRACTION_BITS`.
        skip: int64, output samples of the note that lie ahead of the window.
        gate: int64, output samples from the onset to the release.
        release: int64, output samples of the release; 0 for none.
        out: int64, where the note begins in the window.
        length: int64, output samples heard in the window.
        gain: float32, factor from int16 to output.
    """

    shot: npt.NDArray[np.int64]
    ratio: npt.NDArray[np.int64]
    skip: npt.NDArray[np.int64]
    gate: npt.NDArray[np.int64]
    release: npt.NDArray[np.int64]
    out: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    gain: npt.NDArray[np.float32]

    @classmethod
    def join(cls, plans: Iterable[Voices]) -> Voices:
        """The voices of several plans, one after the other."""
        columns = zip(cls.none(), *plans, strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    @classmethod
    def none(cls) -> Voices:
        """Silence."""
        whole = np.zeros(0, np.int64)
        return cls(whole, whole, whole, whole, whole, whole, whole, np.zeros(0, np.float32))


class _Sounds(NamedTuple):
    """The sounds of an instrument of a bank.

    Attributes:
        limits: Velocities between the layers [layers - 1].
        nearest: Row of `Palette.shots` by layer and pitch [layers, 128]; -1 for none.
    """

    limits: npt.NDArray[np.float64]
    nearest: npt.NDArray[np.int64]


class Palette:
    """Several banks, ready to be played.

    Args:
        banks: One or more.

    Attributes:
        names: Their names.
        audio: int16 [n] of all banks, at ``OVERSAMPLING * SAMPLE_RATE``.
        shots: int64 [s, 5] of all banks, see `mt3_synthesis.bank.Shot`, in samples of ``audio``.

    Raises:
        OptionError: There is no bank.
    """

    def __init__(self, banks: Sequence[Bank]) -> None:
        if not banks:
            raise OptionError("a palette needs at least one sample bank; build one first")
        self.names = tuple(bank.name for bank in banks)
        self.audio = np.concatenate([doubled(bank.audio) for bank in banks])
        starts = np.cumsum([0] + [len(bank.audio) for bank in banks[:-1]])
        tables = [bank.index.astype(np.int64) for bank in banks]
        for table, start in zip(tables, starts, strict=True):
            table[:, 3] = (table[:, 3] + start) * OVERSAMPLING
            table[:, 4] *= OVERSAMPLING
        self.shots = np.concatenate(tables)
        self._sounds: dict[tuple[int, int], _Sounds] = {}
        row = 0
        for number, table in enumerate(tables):
            for instrument in np.unique(table[:, 0]).tolist():
                rows = row + np.flatnonzero(table[:, 0] == instrument)
                self._sounds[number, instrument] = self._layers(rows, instrument)
            row += len(table)

    @property
    def instruments(self) -> list[int]:
        """Programs that some bank can play, and `DRUM_KIT` and up if one has drums."""
        return sorted({instrument for _, instrument in self._sounds})

    @property
    def kits(self) -> list[tuple[int, int]]:
        """All drum kits: number of the bank, and instrument."""
        return sorted(key for key in self._sounds if key[1] >= DRUM_KIT)

    def banks_with(self, instrument: int) -> list[int]:
        """Numbers of the banks that have an instrument."""
        return [bank for bank, own in self._sounds if own == instrument]

    def find(
        self, timbre: Timbre, pitches: npt.NDArray[np.int64], velocities: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Rows of `shots` that play notes best, -1 for percussion keys that the kit lacks: [n]."""
        sounds = self._sounds[timbre.bank, timbre.instrument]
        keys = np.clip(pitches + timbre.shade, 0, 127)
        return sounds.nearest[np.searchsorted(sounds.limits, velocities), keys]

    def _layers(self, rows: npt.NDArray[np.int64], instrument: int) -> _Sounds:
        velocities = np.unique(self.shots[rows, 2])
        nearest = np.full((len(velocities), 128), -1, np.int64)
        for layer, velocity in zip(nearest, velocities, strict=True):
            own = rows[self.shots[rows, 2] == velocity]
            pitches = self.shots[own, 1]
            if instrument >= DRUM_KIT:
                layer[pitches] = own
            else:
                layer[:] = own[np.abs(np.arange(128)[:, None] - pitches).argmin(axis=1)]
        for lower, upper in itertools.pairwise(nearest):
            np.copyto(upper, lower, where=upper < 0)
        for upper, lower in itertools.pairwise(nearest[::-1]):
            np.copyto(lower, upper, where=lower < 0)
        return _Sounds((velocities[1:] + velocities[:-1]) / 2.0, nearest)


def doubled(audio: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """The same sound at twice the rate, int16 [2n]; every second sample is one of the original."""
    taps = np.arange(-_HALF_BAND_ZEROS, _HALF_BAND_ZEROS) + 0.5
    window = np.cos(np.pi * taps / (2 * _HALF_BAND_ZEROS)) ** 2
    kernel = (np.sinc(taps) * window).astype(np.float32)
    kernel /= kernel.sum()
    padded = np.pad(audio, (_HALF_BAND_ZEROS - 1, _HALF_BAND_ZEROS))
    result = np.empty(2 * len(audio), np.int16)
    result[::2] = audio
    for start in range(0, len(audio), _BLOCK):
        stop = min(start + _BLOCK, len(audio))
        block = padded[start : stop + 2 * _HALF_BAND_ZEROS - 1].astype(np.float32)
        between = np.rint(np.convolve(block, kernel, "valid"))
        result[2 * start + 1 : 2 * stop : 2] = np.clip(between, -32768, 32767)
    return result


def perform(
    piece: Piece,
    palette: Palette,
    rng: np.random.Generator,
    *,
    start: int = 0,
    samples: int,
    vary: bool = False,
) -> tuple[Voices, list[Note]]:
    """Decide how a piece sounds, and plan a window of it.

    Args:
        piece: What is played.
        palette: With which sounds.
        rng: Source of the timbres.
        start: Where the window begins in the piece, in samples; may be negative.
        samples: Length of the window.
        vary: With more sounds than the banks hold, see `mt3_synthesis.timbres.varied`.

    Returns:
        The plan of the window, and the notes of the *whole* piece as they sound: without those that
        cannot, with the programs and the ends that are heard, ordered by onset.
    """
    tuning = TUNING_CENTS * float(rng.standard_normal())
    plans, heard = [], []
    for part in piece.parts:
        timbre = choose_timbre(part, palette, rng, tuning=tuning)
        if timbre is None:
            continue
        for player, sound in varied(part, timbre, palette, rng) if vary else ((part, timbre),):
            voices, notes = play(player, palette, sound, start=start, samples=samples)
            plans.append(voices)
            heard += notes
    return Voices.join(plans), sorted(heard)


def play(
    part: Part, palette: Palette, timbre: Timbre, *, start: int, samples: int
) -> tuple[Voices, list[Note]]:
    """Plan a window of one part; see `perform`."""
    table = np.array([(n.onset, n.offset, n.pitch, n.velocity) for n in part.notes]).reshape(-1, 4)
    pitches, velocities = table[:, 2].astype(np.int64), table[:, 3].astype(np.int64)
    rows = palette.find(timbre, pitches, velocities)
    shots = palette.shots[np.maximum(rows, 0)]
    is_drum = timbre.instrument >= DRUM_KIT
    shift = np.where(is_drum, 0, pitches - shots[:, 1])
    factor = OVERSAMPLING * 2.0 ** (shift / 12.0 + timbre.cents / 1200.0)
    ratio = np.rint(np.ldexp(factor, FRACTION_BITS)).astype(np.int64)
    # The last sample that may be read is the guard behind the sound.
    usable = (shots[:, 4] << FRACTION_BITS) // ratio
    onset = np.rint(table[:, 0] * SAMPLE_RATE).astype(np.int64)
    if timbre.release:
        release = np.minimum(round(timbre.release * SAMPLE_RATE), usable // 2)
        held = np.rint(table[:, 1] * SAMPLE_RATE).astype(np.int64) - onset
        held = np.ones_like(held) if is_drum else held  # a drum that is damped, is from the start
        gate = np.clip(held, 1, usable - release)
    else:
        release, gate, held = np.zeros_like(usable), usable, usable
    skip = np.maximum(start - onset, 0)
    out = np.maximum(onset - start, 0)
    length = np.minimum(gate + release - skip, samples - out)
    loudness = (velocities / shots[:, 2]) ** VELOCITY_POWER
    voices = Voices(
        shot=shots[:, 3],
        ratio=ratio,
        skip=skip,
        gate=gate,
        release=release,
        out=out,
        length=length,
        gain=(timbre.gain / 32768.0 * loudness).astype(np.float32),
    )
    audible = (rows >= 0) & (length > 0)
    notes = [
        _as_heard(note, timbre, (at + until) / SAMPLE_RATE if until < wanted else note.offset)
        for note, row, at, until, wanted in zip(
            part.notes, rows.tolist(), onset.tolist(), gate.tolist(), held.tolist(), strict=True
        )
        if row >= 0
    ]
    return Voices(*(column[audible] for column in voices)), notes


def render(voices: Voices, palette: Palette, *, samples: int) -> Samples:
    """Add up a plan: float32 [samples], full scale 1, not limited."""
    mix = np.zeros(samples, np.float32)
    mask, scale = (1 << FRACTION_BITS) - 1, np.float32(2.0**-FRACTION_BITS)
    for shot, ratio, skip, gate, release, out, length, gain in zip(
        *(column.tolist() for column in voices), strict=True
    ):
        position = np.arange(skip, skip + length, dtype=np.int64) * ratio
        first, last = skip * ratio >> FRACTION_BITS, (skip + length - 1) * ratio >> FRACTION_BITS
        sound = palette.audio[shot + first : shot + last + 2].astype(np.float32)
        fraction = (position & mask).astype(np.float32) * scale
        position >>= FRACTION_BITS
        position -= first
        heard = sound[:-1][position]
        heard += fraction * np.diff(sound)[position]
        heard *= np.float32(gain)
        if skip + length > gate and release:
            tail = np.arange(max(skip, gate) - gate, skip + length - gate, dtype=np.float32)
            heard[len(heard) - len(tail) :] *= np.exp(tail * np.float32(-RELEASE_NEPERS / release))
        mix[out : out + length] += heard
    return mix


def faint(others: Samples, own: Samples, decibels: float) -> Samples:
    """Other instruments at a level relative to the own ones, or to `USUAL_LEVEL` where those rest.

    Args:
        others: float32 [n].
        own: float32 [n].
        decibels: Of the others' RMS, relative to the own one's.
    """
    reference = max(float(np.sqrt(np.mean(own**2))), USUAL_LEVEL)
    level = float(np.sqrt(np.mean(others**2)))
    factor = 10.0 ** (decibels / 20.0) * reference / level if level else 0.0
    return np.asarray(np.float32(factor) * others, np.float32)


def _as_heard(note: Note, timbre: Timbre, offset: float) -> Note:
    if note.is_drum or (note.offset == offset and note.program == timbre.instrument):
        return note
    return Note(note.onset, offset, note.pitch, note.velocity, timbre.instrument)


def playable(music: MusicConfig, palette: Palette) -> MusicConfig:
    """The same kind of music, with the instruments that a palette has."""
    return music.limited_to(
        [i for i in palette.instruments if i < DRUM_KIT], drums=DRUM_KIT in palette.instruments
    )
