"""Chooses the timbre of each part: instrument, bank, tuning, level.

Contract: `choose_timbre` draws the sound of a part from what a palette has.  `varied` goes beyond:
banks hold few instruments, a drum kit less than two hundred sounds, and a network that trains on
them knows them by heart and no others (of 48 percussion keys it found 79 % with the kits it was
trained on, and 32 % with another one).  So drums are put together from several kits, tuned and
damped anew for every example, and instruments borrow the sounds of their other registers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from mt3_synthesis.music import Part
from mt3_synthesis.rendering import DRUM_KIT

PART_GAIN_DB = (-14.0, 2.0)
"""Range of the parts' gains; sounds are at a common level."""

PART_CENTS = 6.0
"""Standard deviation of the tuning of a part, in cents."""

RELEASE_SECONDS = (0.03, 0.25)
"""Range of the releases."""

FAMILIES = (
    (35, 36),  # bass drums
    (37, 38, 39, 40),  # snares, rim and clap
    (41, 43, 45, 47, 48, 50),  # toms
    (42, 44, 46),  # hi-hats
    (49, 51, 52, 53, 55, 57, 59),  # cymbals
)
"""Percussion keys that come from one kit and are tuned alike; all others are one more family."""

ONE_KIT = 0.4
"""Probability that all families come from one kit."""

DRUM_CENTS, DRUM_CENTS_LIMIT = 200.0, 500.0
"""Standard deviation of the tuning of a family, and the most that it is off, in cents."""

DRUM_DB = 4.0
"""Standard deviation of the gain of a family."""

DAMPED, DAMPED_SECONDS = 0.4, (0.1, 0.8)
"""Probability that a family is damped, and the range of times in which it then fades away."""

SHADED, SHADE = 0.5, 7
"""Probability that an instrument borrows the sounds of another register, and the semitones by which
that is higher or lower, at most."""


class Timbre(NamedTuple):
    """How a part sounds.

    Attributes:
        bank: Number of the bank in its palette.
        instrument: Program, or `DRUM_KIT` and up.
        cents: Detuning.
        gain: Factor.
        release: Seconds; of drums the time in which they fade away, 0 if they ring on.
        shade: Semitones by which the sounds that are taken lie higher than the notes.
    """

    bank: int
    instrument: int
    cents: float
    gain: float
    release: float
    shade: int = 0


class Sounds(Protocol):
    """What there is to choose from; see `mt3_synthesis.mixer.Palette`."""

    @property
    def kits(self) -> Sequence[tuple[int, int]]: ...

    def banks_with(self, instrument: int) -> Sequence[int]: ...


def choose_timbre(
    part: Part, palette: Sounds, rng: np.random.Generator, *, tuning: float = 0.0
) -> Timbre | None:
    """Draw how a part sounds.

    If no bank has the part's program, another one of its class takes its place (the first eight
    programs are all pianos, and so on).

    Args:
        part: Who plays.
        palette: What there is to play with.
        rng: Source of the decision.
        tuning: Cents by which everybody is off.

    Returns:
        None if nothing in the palette comes near.
    """
    wanted = DRUM_KIT if part.is_drum else part.program
    first = part.program // 8 * 8
    same_class = [] if part.is_drum else [i for i in range(first, first + 8) if i != wanted]
    draws = rng.random(3)
    cents = tuning + PART_CENTS * float(rng.standard_normal())
    for instrument in [wanted, *sorted(same_class, key=lambda other: abs(other - wanted))]:
        banks = palette.banks_with(instrument)
        if banks:
            low, high = RELEASE_SECONDS
            return Timbre(
                bank=banks[int(draws[0] * len(banks))],
                instrument=instrument,
                cents=0.0 if part.is_drum else cents,
                gain=10.0 ** (float(np.interp(draws[1], (0.0, 1.0), PART_GAIN_DB)) / 20.0),
                release=0.0 if part.is_drum else low + (high - low) * float(draws[2]),
            )
    return None


def varied(
    part: Part, timbre: Timbre, palette: Sounds, rng: np.random.Generator
) -> Iterator[tuple[Part, Timbre]]:
    """Give a part a sound that no bank has.

    Args:
        part: Who plays.
        timbre: How it would sound as it is.
        palette: What there is to play with.
        rng: Source of the decisions.

    Yields:
        The part with its timbre; a drummer's notes by family, each with its own.
    """
    if part.is_drum:
        yield from _drums(part, timbre, palette, rng)
        return
    shade = int(rng.integers(-SHADE, SHADE + 1)) if rng.random() < SHADED else 0
    yield part, timbre._replace(shade=shade)


def _drums(
    part: Part, timbre: Timbre, palette: Sounds, rng: np.random.Generator
) -> Iterator[tuple[Part, Timbre]]:
    kits = palette.kits
    first, one = kits[int(rng.integers(len(kits)))], rng.random() < ONE_KIT
    known = {key for family in FAMILIES for key in family}
    for family in (*FAMILIES, tuple(set(range(128)) - known)):
        other = kits[int(rng.integers(len(kits)))]
        cents, decibels = rng.standard_normal(2) * (DRUM_CENTS, DRUM_DB)
        damped, seconds = rng.random(2)
        notes = tuple(note for note in part.notes if note.pitch in family)
        if not notes:
            continue
        bank, instrument = first if one else other
        yield (
            replace(part, notes=notes),
            Timbre(
                bank=bank,
                instrument=instrument,
                cents=float(np.clip(cents, -DRUM_CENTS_LIMIT, DRUM_CENTS_LIMIT)),
                gain=timbre.gain * 10.0 ** (float(decibels) / 20.0),
                release=float(np.interp(seconds, (0.0, 1.0), DAMPED_SECONDS))
                if damped < DAMPED
                else 0.0,
            ),
        )
