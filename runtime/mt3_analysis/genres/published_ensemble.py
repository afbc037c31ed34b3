"""The published genre ensemble, to the printed digit: weights, thresholds, mapping, structure.

Contract: plain numbers in, the published dictionary out.  What is described as 20 % classifier,
60 % instruments and 20 % heuristics is a sum of 0.2 and 0.2 of two distributions and of boosts,
divided by its total; the share of the instruments follows from how loud they are.  All scores of
instruments are shares of one among all classes (softmax) of the first 10.24 s: other scales break
the thresholds.  ``docs/tagging.md`` says where the published text and this differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mt3_analysis.genres.heuristic_rules import heuristic_points

METHOD = "hybrid_ml_instrument"
UNKNOWN = "Unknown"
ML_WEIGHT, HEURISTIC_WEIGHT = 0.2, 0.2
TOP = 3
#: Labels of the classifier, and of the tagger, that count at all.
TOP_GENRES, TOP_LABELS = 10, 100
CLIP_SECONDS = 30.0

#: The classifier's label, lower case -> genre; equal genres add up.
GENRE_OF_LABEL: Mapping[str, str] = {
    "hiphop": "Hip-Hop/Rap",
    "hip-hop": "Hip-Hop/Rap",
    "metal": "Metal",
    "pop": "Pop",
    "country": "Country",
    "rock": "Rock",
    "classical": "Classical/Instrumental",
    "instrumental": "Classical/Instrumental",
    "reggae": "Reggae/Dancehall",
    "dancehall": "Reggae/Dancehall",
    "jazz": "Jazz/Blues",
    "blues": "Jazz/Blues",
    "disco": "Electronic/EDM",
    "electronic": "Electronic/EDM",
}

#: Instrument -> the tagger's labels, lower case, of which the highest counts.
LABELS_OF_INSTRUMENT: Mapping[str, frozenset[str]] = {
    "violin": frozenset({"violin", "fiddle", "violin, fiddle"}),
    "acoustic_guitar": frozenset({"acoustic guitar"}),
    "electric_guitar": frozenset({"electric guitar"}),
    "drums": frozenset({"drum", "drum kit", "snare drum", "bass drum"}),
    "harmonica": frozenset({"harmonica"}),
    "banjo": frozenset({"banjo"}),
}


@dataclass(frozen=True)
class Boost:
    """What an instrument above a threshold adds to genres, for each unit of its score."""

    instrument: str
    threshold: float
    gains: Mapping[str, float]


BOOSTS: tuple[Boost, ...] = (
    Boost("violin", 0.01, {"Country": 4.0, "Bluegrass": 3.0, "Folk": 1.5}),
    Boost("acoustic_guitar", 0.005, {"Country": 1.5, "Folk": 0.8}),
    Boost("harmonica", 0.003, {"Country": 1.0, "Jazz/Blues": 0.7}),
    Boost("drums", 0.005, {"Rock": 0.4}),
)


def instruments_of(shares: Mapping[str, float]) -> dict[str, float]:
    """Scores of the instruments, from a tagger's shares by label; those not heard are left out."""
    ranked = sorted(shares.items(), key=lambda item: -item[1])[:TOP_LABELS]
    found: dict[str, float] = {}
    for label, score in ranked:
        for instrument, labels in LABELS_OF_INSTRUMENT.items():
            if label.lower() in labels:
                found[instrument] = max(found.get(instrument, 0.0), score)
    return found


def genres_of(shares: Mapping[str, float]) -> dict[str, float]:
    """Scores of genres, from a classifier's shares by label; an unknown label is a genre."""
    ranked = sorted(shares.items(), key=lambda item: -item[1])[:TOP_GENRES]
    found: dict[str, float] = {}
    for label, score in ranked:
        genre = GENRE_OF_LABEL.get(label.lower(), label.title())
        found[genre] = found.get(genre, 0.0) + score
    return found


def boosts_of(instruments: Mapping[str, float]) -> dict[str, float]:
    """What the instruments add, by genre."""
    found: dict[str, float] = {}
    for boost in BOOSTS:
        score = instruments.get(boost.instrument, 0.0)
        for genre, gain in boost.gains.items() if score > boost.threshold else ():
            found[genre] = found.get(genre, 0.0) + gain * score
    return found


def heuristic_result(
    sonic: Mapping[str, Any], lyrics: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The published result without any network: confidences are shares of the best three."""
    points = heuristic_points(sonic, lyrics)
    ordered = sorted(points.items(), key=lambda item: -item[1])
    best = ordered[:TOP]
    total = sum(score for _, score in best)
    predictions: list[dict[str, Any]] = [
        {"genre": genre, "confidence": round(100 * score / total, 1), "raw_score": score}
        for genre, score in best
        if score > 0
    ] or [{"genre": UNKNOWN, "confidence": 100.0, "raw_score": 0}]
    return {
        "primary_genre": predictions[0]["genre"],
        "confidence": predictions[0]["confidence"],
        "predictions": predictions,
        "all_scores": {genre: score for genre, score in ordered if score > 0},
    }


def published_result(
    heuristic: Mapping[str, Any],
    genres: Mapping[str, float],
    instruments: Mapping[str, float],
    components: Mapping[str, Any],
) -> dict[str, Any]:
    """The published result.

    Args:
        heuristic: What `heuristic_result` gave.
        genres: What `genres_of` gave; empty where the classifier failed.
        instruments: What `instruments_of` gave; empty where the tagger failed.
        components: The parts ``ml`` and ``instruments`` as they are to be shown.
    """
    points = heuristic["all_scores"]
    scores: dict[str, float] = {}
    parts = ((_shares(points), HEURISTIC_WEIGHT), (_shares(genres), ML_WEIGHT))
    for part, weight in (*parts, (boosts_of(instruments), 1.0)):
        for genre, value in part.items():
            scores[genre] = scores.get(genre, 0.0) + weight * value
    if not scores:
        return dict(heuristic)
    total = sum(scores.values()) or 1.0
    ordered = sorted(scores.items(), key=lambda item: -item[1])
    predictions = [
        {
            "genre": genre,
            "confidence": round(100 * score / total, 1),
            "raw_score": round(100 * score, 2),
        }
        for genre, score in ordered[:TOP]
    ]
    return {
        "primary_genre": predictions[0]["genre"],
        "confidence": predictions[0]["confidence"],
        "predictions": predictions,
        "all_scores": {genre: round(100 * score / total, 2) for genre, score in ordered},
        "method": METHOD,
        "components": {"heuristic": points, **components},
    }


def _shares(scores: Mapping[str, float]) -> dict[str, float]:
    total = sum(scores.values()) or 1.0
    return {name: score / total for name, score in scores.items()}
