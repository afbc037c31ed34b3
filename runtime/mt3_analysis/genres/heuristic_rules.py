"""Points for genres from features of the sound and of the lyrics: the published table, as data.

Contract: every line of the table is a named number; `heuristic_points` applies it exactly, its
slips included (Pop's loudness can never hold), because published figures follow from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mt3_runtime.errors import OptionError

#: What counts where a feature is missing, by the published names.
DEFAULTS: Mapping[str, float] = {
    "tempo": 120.0,
    "energy": 0.5,
    "danceability": 0.5,
    "valence": 0.5,
    "acousticness": 0.5,
    "loudness": -10.0,
    "spectral_centroid_mean": 3000.0,
    "vocabulary_richness": 0.5,
}

_INF = math.inf


@dataclass(frozen=True)
class Range:
    """A feature between two bounds; ``[``, ``]`` include a bound, ``(``, ``)`` do not."""

    feature: str
    low: float
    high: float
    ends: str = "[]"

    def holds(self, features: Mapping[str, float]) -> bool:
        value = features[self.feature]
        above = value >= self.low if self.ends[0] == "[" else value > self.low
        below = value <= self.high if self.ends[1] == "]" else value < self.high
        return above and below


def _above(feature: str, low: float) -> Range:
    return Range(feature, low, _INF, "(]")


def _below(feature: str, high: float) -> Range:
    return Range(feature, -_INF, high, "[)")


@dataclass(frozen=True)
class Points:
    """Points that all ranges together bring, or any of the themes; ``silent``: no themes at all."""

    points: int
    ranges: tuple[Range, ...] = ()
    themes: frozenset[str] = frozenset()
    silent: bool = False

    def earned(self, features: Mapping[str, float], themes: frozenset[str]) -> int:
        if self.silent:
            return 0 if themes else self.points
        if self.themes:
            return self.points if self.themes & themes else 0
        return self.points if all(each.holds(features) for each in self.ranges) else 0


def _points(points: int, *ranges: Range) -> Points:
    return Points(points, ranges)


def _themes(points: int, words: str) -> Points:
    return Points(points, themes=frozenset(words.split()))


_TEMPO, _ENERGY, _DANCE, _VALENCE = "tempo", "energy", "danceability", "valence"
_ACOUSTIC, _CENTROID, _WORDS = "acousticness", "spectral_centroid_mean", "vocabulary_richness"

HEURISTICS: Mapping[str, tuple[Points, ...]] = {
    "Electronic/EDM": (
        _points(40, _above(_TEMPO, 120), _above(_DANCE, 0.7), _above(_ENERGY, 0.7)),
        _points(30, _below(_ACOUSTIC, 0.3)),
        _themes(20, "party club dance"),
        _points(10, _above(_CENTROID, 3500)),
    ),
    "Hip-Hop/Rap": (
        _points(30, Range(_TEMPO, 80, 140)),
        _points(20, _above(_TEMPO, 140)),
        _points(25, _above(_ENERGY, 0.7)),
        _points(15, _above(_DANCE, 0.4)),
        _points(25, _above(_WORDS, 0.6)),
        _points(10, Range(_WORDS, 0.2, 0.6, "(]")),
        _themes(15, "money success struggle party social_commentary"),
        _points(10, _below(_ACOUSTIC, 0.4)),
    ),
    "Pop": (
        _points(30, Range(_TEMPO, 100, 130)),
        _points(30, Range(_ENERGY, 0.5, 0.8), Range(_DANCE, 0.5, 0.9)),
        _points(20, _above(_VALENCE, 0.5)),
        _themes(15, "love party celebration"),
        _points(5, Range("loudness", -8, -12)),  # the published slip: no loudness is both
    ),
    "Rock": (
        _points(25, Range(_TEMPO, 100, 140)),
        _points(30, _above(_ENERGY, 0.7)),
        _points(25, Range(_ACOUSTIC, 0.3, 0.6)),
        _points(15, _above(_CENTROID, 2500)),
        _themes(5, "rebellion freedom introspection"),
    ),
    "R&B/Soul": (
        _points(30, Range(_TEMPO, 70, 110)),
        _points(25, Range(_ENERGY, 0.4, 0.7), _above(_DANCE, 0.5)),
        _points(20, _above(_VALENCE, 0.4)),
        _themes(20, "love romance heartbreak"),
        _points(5, _above(_ACOUSTIC, 0.3)),
    ),
    "Country": (
        _points(25, Range(_TEMPO, 90, 130)),
        _points(35, _above(_ACOUSTIC, 0.5)),
        _points(20, _above(_VALENCE, 0.4)),
        _themes(15, "nostalgia home love heartbreak"),
        _points(5, _below(_CENTROID, 3000)),
    ),
    "Indie/Alternative": (
        _points(20, Range(_TEMPO, 90, 130)),
        _points(25, Range(_ENERGY, 0.4, 0.7)),
        _points(25, Range(_ACOUSTIC, 0.3, 0.7)),
        _points(20, _above(_WORDS, 0.55)),
        _themes(10, "introspection nostalgia melancholy"),
    ),
    "Jazz/Blues": (
        _points(20, Range(_TEMPO, 60, 120)),
        _points(30, _above(_ACOUSTIC, 0.6)),
        _points(20, _below(_ENERGY, 0.6)),
        _points(20, Range(_CENTROID, 2000, 3500, "()")),
        _points(10, _below(_VALENCE, 0.5)),
    ),
    "Classical/Instrumental": (
        _points(50, _above(_ACOUSTIC, 0.8)),
        _points(20, _below(_ENERGY, 0.5)),
        _points(20, _below(_DANCE, 0.5)),
        Points(10, silent=True),
    ),
    "Reggae/Dancehall": (
        _points(30, Range(_TEMPO, 60, 90)),
        _points(30, _above(_DANCE, 0.7)),
        _points(20, Range(_ENERGY, 0.4, 0.7)),
        _themes(15, "freedom love party"),
        _points(5, _above(_VALENCE, 0.5)),
    ),
    "Metal": (
        _points(20, _above(_TEMPO, 130)),
        _points(20, _below(_TEMPO, 80)),
        _points(35, _above(_ENERGY, 0.8)),
        _points(20, _above("loudness", -8)),
        _points(15, _above(_CENTROID, 3500)),
        _points(10, _below(_ACOUSTIC, 0.2)),
    ),
}
"""Genre -> what brings it points, at most a hundred."""


def heuristic_points(
    sonic: Mapping[str, Any], lyrics: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Points of every genre, in the order of the table.

    Args:
        sonic: Features by the names in `DEFAULTS`; what is missing has the default, what is not
            named there is passed over.
        lyrics: ``{"themes": [...], "complexity": {"vocabulary_richness": 0..1}}``.

    Raises:
        OptionError: A feature is no finite number, or the lyrics are of another form.
    """
    features = {name: _number(sonic, name, usual) for name, usual in DEFAULTS.items()}
    themes: frozenset[str] = frozenset()
    if lyrics:
        complexity = lyrics.get("complexity", {})
        listed = lyrics.get("themes", [])
        text = isinstance(listed, list | tuple) and all(isinstance(word, str) for word in listed)
        if not isinstance(complexity, Mapping) or not text:
            raise OptionError(
                "Lyrics are a map of 'themes', a list of words, and 'complexity', a map with "
                "'vocabulary_richness'."
            )
        themes = frozenset(listed)
        usual = DEFAULTS["vocabulary_richness"]
        features["vocabulary_richness"] = _number(complexity, "vocabulary_richness", usual)
    return {
        genre: min(100, sum(each.earned(features, themes) for each in table))
        for genre, table in HEURISTICS.items()
    }


def _number(values: Mapping[str, Any], name: str, usual: float) -> float:
    value = values.get(name, usual)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise OptionError(f"The feature {name} is {value!r}; expected a finite number.")
    return float(value)
