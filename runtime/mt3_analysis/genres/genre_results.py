"""The genre of a recording as plain data, the same in JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GenrePrediction:
    """A genre and its share of all.

    Attributes:
        genre: The name.
        share: 0..1.
    """

    genre: str
    share: float


@dataclass(frozen=True)
class Genre:
    """What a recording is, and what speaks for it.

    There is no confidence: shares order genres, and how often they are right was not measured.

    Attributes:
        primary_genre: The first of the predictions, or ``Unknown``.
        predictions: The best three.
        all_scores: Shares of all genres, the largest first.
        method: Which parts it came from: ``hybrid_ml_instrument`` (classifier and tagger),
            ``hybrid_ml_transcription`` (classifier and notes), ``instrument`` and ``transcription``
            without a classifier, ``ml`` with nothing else, or ``heuristic``.
        components: Each part's own scores by genre, the instruments' shares, and features.
        warnings: What was missing, failed, or makes the result doubtful.
    """

    primary_genre: str
    predictions: tuple[GenrePrediction, ...]
    all_scores: dict[str, float]
    method: str
    components: dict[str, Any]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in JSON."""
        return asdict(self)
