"""Example sources of a training run, as its configuration asks for them.

Contract: `SyntheticSources` opens `mt3_training.examples.dataset` for a stage and adds what a
network reads, the runtime's own features.  Weights are judged with other sounds than they are
trained with (`TrainConfig.held_out_sounds`), and sounds that are kept for the final test are
refused: a model that was chosen by them would look better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mt3_runtime.audio.log_mel import FeatureConfig, FeatureExtractor
from mt3_runtime.errors import OptionError
from mt3_runtime.notes.stems import stem_named
from mt3_synthesis.augment import AugmentConfig
from mt3_synthesis.bank import Bank, BankSpec, build_bank, load_bank
from mt3_synthesis.corpora import freedoom
from mt3_synthesis.mixer import Palette
from mt3_synthesis.modelled_drums import membrane_bank
from mt3_synthesis.music import MusicConfig
from mt3_synthesis.rendering import DRUM_KIT
from mt3_synthesis.soundfonts import Role, source_named
from mt3_synthesis.stem_music import Recipe, backing, stem_recipe
from mt3_training.examples.batches import Batch, padded
from mt3_training.examples.dataset import (
    RECIPE,
    Bleed,
    DatasetConfig,
    Draw,
    Examples,
    dense_rolls,
)
from mt3_training.examples.tokens import LabelRules
from mt3_training.runs.config import Stage, TrainConfig

MUSIC: dict[str, Recipe] = {
    "piano": ((1.0, MusicConfig.piano()),),
    "solo": (
        (0.35, MusicConfig.piano()),
        (0.20, MusicConfig.line()),
        (0.25, MusicConfig.solo()),
        (0.20, MusicConfig.drums_only()),
    ),
    "duo": (
        (0.20, MusicConfig.piano()),
        (0.10, MusicConfig.line()),
        (0.15, MusicConfig.solo()),
        (0.10, MusicConfig.drums_only()),
        (0.20, MusicConfig.piano_and_drums()),
        (0.25, MusicConfig(parts=(1, 2), drums=0.5)),
    ),
    "band": RECIPE,
}
"""Kinds of music with their weights, by the names that stages use."""

STEM = "stem"
"""Kind of music of a stage that plays what the run's stem holds, `TrainConfig.stem`."""

SUFFIX = ".npz"
"""Sounds are names of collections, or files of banks with this suffix."""


KITS = (2, 4, 6, 8, 10, 12, 16, 18, 24, 25, 32, 34, 40, 42)
"""Kits beside the standard one that training draws from: further standard kits, room, power,
electronic, TR-808, jazz and brush.  The orchestra's has kettledrums where others have cymbals."""

SKIN_KITS = 3
"""Kits of skins that are made up, per collection with drums."""


@dataclass(frozen=True)
class SyntheticSources:
    """Implements `mt3_training.examples.batches.Sources`."""

    config: TrainConfig

    def __call__(self, stage: int, *, held_out: bool) -> MixedExamples:
        config, asked = self.config, self.config.stages[stage]
        recipe = self._recipe(asked)
        if config.programs:
            limited = [(w, music.limited_to(config.programs, drums=True)) for w, music in recipe]
            recipe = tuple(limited)
        policy = config.policy
        dataset = DatasetConfig(
            seed=config.seed,
            frames=asked.frames,
            recipe=recipe,
            corpus=config.corpus,
            labels=LabelRules("class", config.offset_steps),
            max_tokens=config.max_tokens,
            vary=config.vary and not held_out,
            augment=policy.augment if policy else AugmentConfig(),
            bleed=policy.bleed if policy else Bleed(),
            backing=backing(config.stem) if config.stem else None,
        )
        # Written music has no stems.
        written = config.corpus and not held_out and asked.music != STEM
        palette = Palette(self._banks(held_out))
        if asked.music == STEM:
            _check_instruments(config.stem, palette)
        return MixedExamples(Examples(dataset, palette, corpus=freedoom() if written else ()))

    def _recipe(self, asked: Stage) -> Recipe:
        """What a stage plays."""
        if asked.music == STEM:
            if not self.config.stem:
                raise OptionError(f"stage {asked.name} plays the run's stem, and it has none")
            return stem_recipe(self.config.stem)
        if asked.music not in MUSIC:
            raise OptionError(
                f"stage {asked.name} wants {asked.music!r}; known music is "
                f"{', '.join((*MUSIC, STEM))}"
            )
        return MUSIC[asked.music]

    def describe(self) -> list[dict[str, Any]]:
        """What the sounds are: role, licence, credit and digests of each bank."""
        return [
            {"bank": bank.name, "held_out": held_out, **bank.meta}
            for held_out in (False, True)
            for bank in self._banks(held_out)
        ]

    def _banks(self, held_out: bool) -> list[Bank]:  # noqa: FBT001  private, and named where used
        config = self.config
        names = config.held_out_sounds if held_out else config.sounds
        allowed = {Role.TRAIN, Role.CHOICE} if held_out else {Role.TRAIN}
        banks = [load_bank(n) if n.endswith(SUFFIX) else build_bank(source_named(n)) for n in names]
        for name, bank in zip(names, banks, strict=True):
            role = bank.meta.get("role", Role.TRAIN)
            if role not in allowed:
                raise OptionError(
                    f"the sounds {name!r} are for {role!r}; a model that has met them, in training "
                    "or when the best weights were chosen, cannot be tested with them"
                )
        return banks if held_out or not config.vary else [*banks, *_more_drums(names, banks)]


class MixedExamples:
    """Implements `mt3_training.examples.batches.ExampleSource`: audio is mixed on the CPU."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        self._frames = examples.config.frames
        self._features = FeatureExtractor(FeatureConfig(frames=self._frames))

    def draw(self, index: int) -> Draw:
        return self._examples.draw(index)

    def batch(self, drawn: Sequence[Draw]) -> Batch:
        tokens, frames = padded([d.tokens for d in drawn], [d.token_frames for d in drawn])
        return Batch(
            features=np.stack([self._features(self._examples.audio(one)) for one in drawn]),
            tokens=tokens,
            frames=frames,
            rolls=np.stack([dense_rolls(one.spans, frames=self._frames) for one in drawn]),
        )


def _check_instruments(stem: str, palette: Palette) -> None:
    """Refuses sounds that have nothing of a stem: others would be played instead."""
    lineup = stem_named(stem).lineup
    there = set(palette.instruments)
    if not there & (set(lineup.programs) or {DRUM_KIT}):
        raise OptionError(
            f"the sounds {', '.join(palette.names)} have no instruments of the stem {stem}; "
            "train it with other sounds"
        )


def _more_drums(names: Sequence[str], banks: Sequence[Bank]) -> list[Bank]:
    """Other kits of the collections, and kits with skins that are made up."""
    spec = BankSpec(programs=(), kits=KITS)
    more = [build_bank(source_named(name), spec) for name in names if not name.endswith(SUFFIX)]
    drummers = [bank for bank in banks if DRUM_KIT in bank.instruments]
    return more + [
        membrane_bank(bank.name, bank, number * len(drummers) + place)
        for place, bank in enumerate(drummers)
        for number in range(SKIN_KITS)
    ]
