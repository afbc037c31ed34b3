"""Confidence of notes: calibrated from the probabilities of their tokens.

Contract: a network is surer of itself than it should be, more of some tokens than of others.  A
`Calibration`, part of a bundle, corrects that with a handful of numbers that were fitted to music
with known notes (``docs/confidence.md``): `Calibration.confidence` is the estimated probability
that a note is right, that is, begins within 50 ms of a true one of its pitch (or class of drum).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mt3_runtime.errors import BundleError
from mt3_runtime.schema import read_fields

if TYPE_CHECKING:
    from mt3_runtime.notes.note import Note, Probabilities

SATURATION = 1e-3
"""Probabilities closer than this to 0 or 1 count as if they were not: their logits say more about
the last digits of a softmax than about the music."""

_LARGEST = 1e3
"""Bound of the numbers in a file; fitted ones are below 10."""


@dataclass(frozen=True)
class Weights:
    """A logistic model: confidence = 1 / (1 + exp(-z)), z = bias + sum of weight * ln(p / (1 - p)).

    The sum is over the tokens that a note has.

    Attributes:
        bias: What is added.
        onset: Weight of the time shift.
        pitch: Weight of the pitch or drum token.
        program: Weight of the program token.
        offset: Weight of the tokens that end the note.
    """

    bias: float
    onset: float
    pitch: float
    program: float
    offset: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not abs(value) <= _LARGEST:  # NaN compares to nothing
                raise BundleError(f"confidence: {name} is {value}; expected a number up to 1000")

    def confidence(self, probabilities: Probabilities) -> float:
        """Estimated probability that a note is right."""
        z = self.bias
        for name, probability in probabilities._asdict().items():
            if probability is not None:
                z += getattr(self, name) * logit(probability)
        return 0.5 + 0.5 * math.tanh(0.5 * z)  # 1 / (1 + exp(-z)) without overflow


@dataclass(frozen=True)
class Calibration:
    """What a bundle says about the reliability of its model.

    Attributes:
        pitched: For pitched notes.
        drums: For drums.
    """

    pitched: Weights
    drums: Weights

    def confidence(self, note: Note) -> float:
        """Estimated probability that a note is right; 1.0 if its probabilities are not known."""
        if note.probabilities.pitch is None:
            return 1.0
        return (self.drums if note.is_drum else self.pitched).confidence(note.probabilities)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Inverse of `to_dict`; missing or unknown keys, and other values, raise `BundleError`."""
        return read_fields(cls, data, "confidence")


def logit(probability: float) -> float:
    """ln(p / (1 - p)), with p kept `SATURATION` away from 0 and 1."""
    p = min(max(probability, SATURATION), 1.0 - SATURATION)
    return math.log(p / (1.0 - p))
