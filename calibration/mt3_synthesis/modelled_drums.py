"""Synthesises drums by modelling: toms, congas, bongos, timbales and snares of any tuning.

Contract: `membrane_bank` turns a seed and a kit into that kit with other drums: those with a skin
(`SKINS`) are replaced by modelled ones, everything else stays.  The drums of soundfonts are few and
tuned alike; recorded ones ring on pitches of their own, and that is what a transcription model
takes for notes.  `live_bank` goes on from there to what microphones hear of a kit in a room: the
snare is a tone rather than a noise, the cross-stick has a pitch, and whatever is hit makes all
other skins ring along.

A drum is a sum of decaying sines (the modes of a skin over air lie between those of an ideal
membrane and the series 2 : 3 : 4 : 5 that timpani players tune to), whose pitch falls a little
while it is loud, and a burst of noise for the stick.
"""

from __future__ import annotations

import numpy as np

from mt3_synthesis.bank import Bank, assemble
from mt3_synthesis.rendering import DRUM_KIT, SAMPLE_RATE, Samples, Sound

SNARES = (38, 40)

SKINS: dict[tuple[int, ...], tuple[float, float]] = {
    (41, 43, 45, 47, 48, 50): (70.0, 260.0),  # toms, low to high
    (64, 63, 62, 61, 60): (140.0, 480.0),  # congas and bongos
    (66, 65): (220.0, 620.0),  # timbales
    SNARES: (150.0, 330.0),
}
"""Percussion keys, from low to high, and between which frequencies the lowest modes lie [Hz]."""

IDEAL = np.array([1.0, 1.593, 2.136, 2.296, 2.653, 2.918, 3.156, 3.500])
"""Modes of an ideal membrane."""

TUNED = np.array([1.0, 1.5, 1.98, 2.0, 2.44, 2.5, 2.9, 3.0])
"""The same modes of a kettledrum, to which air lends a pitch."""

SECONDS = 1.5

CROSS_STICK = 37

SYMPATHY_DB = (-34.0, -14.0)
"""Peak of what rings along, below that of the drum that is hit."""


def membrane_bank(name: str, kit: Bank, seed: int, *, rattle: float = 1.0) -> Bank:
    """A kit with other skins.

    Args:
        name: Of the new bank.
        kit: Where everything else comes from.
        seed: Equal seeds give equal drums.
        rattle: How much noise there is in a snare, 0..1.
    """
    rng = np.random.default_rng(seed)
    skins = {key for keys in SKINS for key in keys}
    sounds = [
        Sound(DRUM_KIT, shot.pitch, shot.velocity, _samples(kit, shot.start, shot.length))
        for shot in kit.shots(DRUM_KIT)
        if shot.pitch not in skins
    ]
    for keys, (low, high) in SKINS.items():
        tunings = np.sort(rng.uniform(low, high, len(keys)))
        ring, airy = rng.uniform(0.25, 1.2), rng.random()
        for key, hertz in zip(keys, tunings, strict=True):
            noise = rattle if key in SNARES else 0.0
            sound = drum(rng, float(hertz), ring=ring, airy=airy, rattle=noise)
            sounds.append(Sound(DRUM_KIT, key, 110, sound))
    return assemble(name, sounds, meta=kit.meta)


def live_bank(name: str, kit: Bank, seed: int) -> Bank:
    """A kit as it is heard in a room, with the skins of `membrane_bank`; arguments as there."""
    rng = np.random.default_rng((seed, 1))
    skinned = membrane_bank(name, kit, seed, rattle=rng.uniform(0.02, 0.6))
    sympathy = _sympathy(rng) * 10.0 ** (rng.uniform(*SYMPATHY_DB) / 20.0)
    stick = drum(
        rng,
        rng.uniform(350.0, 1100.0),
        ring=rng.uniform(0.05, 0.3),
        airy=rng.random(),
        rattle=0.0,
    )
    sounds = []
    for shot in skinned.shots(DRUM_KIT):
        own = stick if shot.pitch == CROSS_STICK else _samples(skinned, shot.start, shot.length)
        sound = np.zeros(max(len(own), len(sympathy)), np.float32)
        sound[: len(own)] += own
        sound[: len(sympathy)] += np.abs(own).max() * rng.uniform(0.3, 1.0) * sympathy
        sounds.append(Sound(DRUM_KIT, shot.pitch, shot.velocity, np.clip(sound, -1.0, 1.0)))
    return assemble(name, sounds, meta=kit.meta)


def _sympathy(rng: np.random.Generator) -> Samples:
    """What rings along, with peak 1."""
    time = np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    sound = np.zeros_like(time)
    for _ in range(int(rng.integers(2, 7))):
        hertz, seconds = rng.uniform(90.0, 700.0), rng.uniform(0.15, 1.2)
        wave = np.sin(2.0 * np.pi * hertz * time + rng.uniform(0, 6.3))
        sound += rng.uniform(0.2, 1.0) * np.exp(-6.9 * time / seconds) * wave
    return np.asarray(sound / np.abs(sound).max(), np.float32)


def drum(
    rng: np.random.Generator, hertz: float, *, ring: float, airy: float, rattle: float
) -> Samples:
    """One hit.

    Args:
        rng: Source of its details.
        hertz: Lowest mode.
        ring: Seconds in which that decays by 60 dB.
        airy: How much of a kettledrum it is, 0..1.
        rattle: How much of a snare, 0..1.

    Returns:
        float32 [n], full scale 1.
    """
    time = np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    glide = 1.0 + rng.uniform(0.0, 0.08) * np.exp(-time / 0.04)
    phase = 2.0 * np.pi * np.cumsum(glide) / SAMPLE_RATE
    sound = np.zeros_like(time)
    for number, ratio in enumerate((1.0 - airy) * IDEAL + airy * TUNED):
        level = rng.uniform(0.2, 1.0) / (1.0 + 0.6 * number)
        decay = 6.9 * (1.0 + 0.5 * number * rng.uniform(0.5, 1.5)) / ring
        sound += level * np.exp(-decay * time) * np.sin(hertz * ratio * phase + rng.uniform(0, 6.3))
    noise = rng.standard_normal(len(time))
    sound += rng.uniform(0.1, 0.5) * noise * np.exp(-time / rng.uniform(0.003, 0.02))
    sound += rattle * rng.uniform(0.3, 1.0) * noise * np.exp(-time / rng.uniform(0.04, 0.12))
    return np.asarray(0.3 * sound / np.abs(sound).max(), np.float32)


def _samples(bank: Bank, start: int, length: int) -> Samples:
    return np.asarray(bank.audio[start : start + length] / 32768.0, np.float32)
