"""A tiny sample bank made of tones, and pieces to play with it."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from mt3_runtime.notes.note import Note
from mt3_synthesis.bank import Bank, assemble
from mt3_synthesis.mixer import Palette
from mt3_synthesis.rendering import DRUM_KIT, SAMPLE_RATE, Sound

PROGRAMS = (0, 25, 33, 40, 48, 73)
DRUM_KEYS = (36, 38, 42, 49)


def tone(pitch: float, seconds: float, *, decay: float = 0.0) -> npt.NDArray[np.float32]:
    """A sine of a MIDI pitch, which loses ``decay`` nepers a second."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    hertz = 440.0 * 2.0 ** ((pitch - 69.0) / 12.0)
    return (np.sin(2 * np.pi * hertz * time) * np.exp(-decay * time)).astype(np.float32)


def hertz_of(samples: npt.NDArray[np.float32]) -> float:
    """Frequency of the strongest partial, to a tenth of the resolution."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 8 * len(samples)))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / (8 * len(samples))


@functools.cache
def tiny_bank(name: str = "tiny", *, step: int = 4, loudness: float = 0.5) -> Bank:
    """Tones of one second at two velocities, and drums of noise."""
    sounds = [
        Sound(program, pitch, velocity, tone(pitch, 1.0, decay=1.0) * loudness * velocity / 127)
        for program in PROGRAMS
        for pitch in range(24, 109, step)
        for velocity in (50, 100)
    ]
    noise = np.random.default_rng(1).standard_normal(4000).astype(np.float32)
    noise *= np.exp(-np.arange(4000, dtype=np.float32) / 800) * 0.1
    sounds += [Sound(DRUM_KIT, key, 100, noise * key / 40) for key in DRUM_KEYS]
    return assemble(name, sounds, meta={"licence": "none", "credit": "made of sines"})


@functools.cache
def tiny_palette() -> Palette:
    """Two banks."""
    return Palette([tiny_bank(), tiny_bank("other", step=6)])


def note(onset: float, offset: float, pitch: int, *, program: int = 0, velocity: int = 100) -> Note:
    return Note(onset, offset, pitch, velocity, program)


def drum(onset: float, key: int, *, velocity: int = 100) -> Note:
    return Note(onset, onset + 0.05, key, velocity, is_drum=True)
