"""A data set that a network of a few thousand parameters learns in seconds.

Every example has one or two notes, each a bright band of features from its onset on; nothing else
is in the features but a little noise.  It is picklable, so worker processes can open it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_export.weights import T5Shape
from mt3_runtime.notes.vocabulary import EOS, Event, EventKind, Vocabulary
from mt3_training.examples.batches import Batch, padded
from mt3_training.examples.dataset import ROLLS
from mt3_training.runs.config import Stage, TrainConfig

SHAPE = T5Shape(d_model=16, heads=1, d_ff=32, encoder_layers=1, decoder_layers=1)
VOCABULARY = Vocabulary.mt3()
PITCHES = (60, 64, 67)


class Blip(NamedTuple):
    index: int
    notes: tuple[tuple[int, int], ...]  # (10 ms step, pitch), ascending
    tokens: npt.NDArray[np.int32]
    frames: npt.NDArray[np.int16]


@dataclass(frozen=True)
class Blips:
    """The data set of one stage."""

    length: int

    def draw(self, index: int) -> Blip:
        rng = np.random.default_rng(index)
        steps = np.sort(rng.choice(np.arange(2, self.length // 2, 4), rng.integers(1, 3), False))
        notes = tuple((int(step), int(rng.choice(PITCHES))) for step in steps)
        said = [(Event(EventKind.TIE, 0), -1)]
        for step, pitch in notes:
            said += [
                (Event(EventKind.SHIFT, step), step * 1.25),
                (Event(EventKind.VELOCITY, 1), step * 1.25),
                (Event(EventKind.PITCH, pitch), step * 1.25),
            ]
        tokens = [VOCABULARY.encode(event) for event, _ in said] + [EOS]
        frames = [int(frame) for _, frame in said] + [-1]
        return Blip(index, notes, np.array(tokens, np.int32), np.array(frames, np.int16))

    def batch(self, drawn: Sequence[Blip]) -> Batch:
        features = np.empty((len(drawn), self.length, SHAPE.input_bins), np.float32)
        rolls = np.zeros((len(drawn), len(ROLLS), self.length, 128), np.uint8)
        for row, blip in enumerate(drawn):
            features[row] = -6.0 + 0.1 * np.random.default_rng(blip.index).standard_normal(
                features[row].shape, np.float32
            )
            for step, pitch in blip.notes:
                frame = int(step * 1.25)
                features[row, frame:, 4 * (pitch - 40) : 4 * (pitch - 40) + 8] += 4.0
                rolls[row, 0, frame, pitch] = 1
                rolls[row, 1, frame:, pitch] = 1
                rolls[row, 3, frame:, 0] = 1
        tokens, frames = padded([blip.tokens for blip in drawn], [blip.frames for blip in drawn])
        return Batch(features, tokens, frames, rolls)


@dataclass(frozen=True)
class BlipSources:
    """Implements `mt3_training.examples.batches.Sources`."""

    config: TrainConfig
    fails: bool = False

    def __call__(self, stage: int, *, held_out: bool) -> Blips:
        if self.fails and not held_out:
            raise OSError("no sounds today")
        return Blips(self.config.stages[stage].frames)


def tiny(**changes: object) -> TrainConfig:
    """A run of two stages that takes seconds."""
    values: dict[str, object] = {
        "stages": (Stage("short", 32, 1.0, 4, "blips"), Stage("long", 40, 1.0, 4, "blips")),
        "shape": SHAPE,
        "steps": 12,
        "rate": 3e-3,
        "warmup": 4,
        "precision": "fp32",
        "max_tokens": 32,
        "bucket": 2,
        "evaluations": 2,
        "held_out": 8,
    }
    return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]
