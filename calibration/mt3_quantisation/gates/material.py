"""Calibration and check excerpts for quantisation: generated music with its true notes.

Contract: `Material` has two parts that have nothing in common.  ``calibration`` is what a recipe
may look at; ``check`` is what gates judge by: other pieces, drawn from other seeds, and other
sounds where such are installed.  Equal sounds give equal material.  Recordings of real music are in
neither; a user may add labelled ones of their own for the judgement (``mt3 calibrate --audio``).

Both parts are small: 7 minutes to calibrate, 8 to judge.  What is learned from inputs holds for
other music the better, the more pieces there are, so the calibration has many short ones.

What is judged is heard in several *takes*, which differ by what nobody hears: the dither of a
16-bit file.  MT3 has near ties in most segments, and one that falls the other way can change a
whole segment.  A single take of 20 seconds says little about a change of precision: heard as a
16-bit file, with its dither, or a sample later, the exact model's own F1 falls by 0.03 to 0.07 on
one of the 24 pieces or another, which is more than the gate allows.  So scores of a piece are added
up over all takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mt3_evaluation.labels import Labels
from mt3_runtime.errors import MissingDependencyError
from mt3_synthesis.augment import PREROLL, AugmentConfig, Augmenter, draw
from mt3_synthesis.bank import Bank, build_bank
from mt3_synthesis.mixer import Palette, perform, playable, render
from mt3_synthesis.music import MusicConfig, compose
from mt3_synthesis.rendering import SAMPLE_RATE, Samples
from mt3_synthesis.soundfonts import SOURCES, Role, SoundSource, find

SEED = 0xCA1B
"""First half of every seed of this material; those of training and of test sets differ."""

STEPS = 1 << 15
"""Of 16-bit audio, on either side of zero."""

MUSIC = (
    MusicConfig.piano(),
    MusicConfig.drums_only(),
    MusicConfig.band(),
    MusicConfig.line(),
    MusicConfig.piano_and_drums(),
    MusicConfig.band(),
)
"""Kinds of music, in turn."""


@dataclass(frozen=True)
class Part:
    """One half of the material.

    Attributes:
        name: Its name; also decides what is played.
        roles: Collections of sounds it may use, best first: of these roles the first that is
            installed.
        count: Number of excerpts.
        seconds: Length of each.
        takes: How often each is heard.
    """

    name: str
    roles: tuple[Role, ...]
    count: int
    seconds: float
    takes: int = 1


TAKES = 6
"""Takes of what gates judge by."""

CALIBRATION = Part("calibration", (Role.TRAIN, Role.CHOICE), 72, 6.1)
CHECK = Part("check", (Role.CHOICE, Role.TRAIN), 24, 20.0, TAKES)
"""The sounds that are kept for the final test of models (`Role.TEST`) are used by neither."""


@dataclass(frozen=True, eq=False)
class Excerpt:
    """A labelled recording.

    Attributes:
        name: Of the piece; unique in the material, but for takes.
        audio: float32 [n], mono.
        sample_rate: Of ``audio``, in Hz.
        labels: What is known about it.
        take: Number of the take; 0 is the recording itself.
    """

    name: str
    audio: Samples
    sample_rate: int
    labels: Labels
    take: int = 0


def in_takes(excerpts: Iterable[Excerpt], takes: int) -> tuple[Excerpt, ...]:
    """Each excerpt in so many takes, one after the other.

    All but the first are rounded to 16 bits with triangular dither of two steps, drawn from the
    name and the number of the take.
    """
    return tuple(
        replace(each, audio=_dithered(each.audio, each.name, take), take=take) if take else each
        for each in excerpts
        for take in range(takes)
    )


def _dithered(audio: Samples, name: str, take: int) -> Samples:
    rng = np.random.default_rng((SEED, *name.encode(), take))
    noise = rng.random(len(audio)) - rng.random(len(audio))
    return (np.round(audio * STEPS + noise) / STEPS).astype(np.float32)


class Material:
    """Both parts, made when they are first asked for.

    Args:
        banks: The sounds of every part by its name; by default those that are installed.
        parts: What is made.
    """

    def __init__(
        self,
        banks: dict[str, Sequence[Bank]] | None = None,
        *,
        parts: tuple[Part, Part] = (CALIBRATION, CHECK),
    ) -> None:
        self._banks, self._parts = banks or {}, parts

    @cached_property
    def calibration(self) -> tuple[Excerpt, ...]:
        """What a recipe may look at."""
        return self._made(self._parts[0])

    @cached_property
    def check(self) -> tuple[Excerpt, ...]:
        """What gates judge by."""
        return self._made(self._parts[1])

    def _made(self, part: Part) -> tuple[Excerpt, ...]:
        banks = self._banks.get(part.name) or installed(part.roles)
        return in_takes(make_excerpts(part, banks), part.takes)


def installed(roles: Sequence[Role]) -> list[Bank]:
    """The banks of the first role of which any collection is installed.

    Raises:
        MissingDependencyError: None is; the message says how to install one.
    """
    wanted = [[s for s in SOURCES if s.role is role and s.package] for role in roles]
    for sources in wanted:
        there = [source for source in sources if _is_there(source)]
        if there:
            return [build_bank(source) for source in there]
    remedy = next(source.install for sources in wanted for source in sources)
    raise MissingDependencyError(
        f"Bundles are judged by music that this program plays, and no sounds to play it with are "
        f"installed. Install some with: {remedy}"
    )


def make_excerpts(part: Part, banks: Sequence[Bank]) -> tuple[Excerpt, ...]:
    """Plays the pieces of a part with some sounds."""
    palette, samples = Palette(banks), round(part.seconds * SAMPLE_RATE)
    augmenter = Augmenter(samples)
    made = []
    for number in range(part.count):
        rng = np.random.default_rng((SEED, *part.name.encode(), number))
        music = playable(MUSIC[number % len(MUSIC)], palette)
        piece = compose(music, int(rng.integers(1 << 62)), seconds=part.seconds - 0.5)
        voices, notes = perform(piece, palette, rng, start=-PREROLL, samples=PREROLL + samples)
        mixed = render(voices, palette, samples=PREROLL + samples)
        audio = augmenter(mixed, draw(AugmentConfig(), rng))
        labels = Labels(tuple(notes))
        made.append(Excerpt(f"{part.name}-{number:03d}", audio, SAMPLE_RATE, labels))
    return tuple(made)


def _is_there(source: SoundSource) -> bool:
    try:
        return bool(find(source))
    except MissingDependencyError:
        return False
