"""Judges the execution of a performance: what is clean, on a scale of spoiled performances.

Contract: each dimension rests on one measure.  `data/execution_scale.json` says which values that
measure takes over the levels of its own degradation, from none to the worst, in performances that
we made up and spoiled (`mt3 calibrate assess scale` writes it).  The index is 1 less the level at
which the measure has its value in half of them; the interval lies between the levels at which one
in ten exceeds it and one in ten falls below it, and of counted notes takes in chance as well.
Nothing in it was learned from people, so it says what was played, not what anybody likes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from mt3_analysis.assessment.assessment_results import Dimension
from mt3_analysis.assessment.measures.measured_take import Measured
from mt3_runtime.errors import MT3Error

SCALE_FORMAT = "mt3-runtime.execution-scale"
SCALE_VERSION = 1
SCALE = Path(__file__).with_name("data") / "execution_scale.json"

FEWEST_NOTES = 30
"""Notes below which nothing is said of execution."""

#: Dimension -> the degradation that spoils it, its measure with a score, and without one.
DIMENSIONS: dict[str, tuple[str, str, str | None]] = {
    "wrong_notes": ("wrong", "wrong_notes", None),
    "missing_notes": ("missing", "missing_notes", None),
    "extra_notes": ("extra", "extra_notes", None),
    "hesitations": ("hesitation", "hesitation_time", None),
    "tempo": ("drift", "tempo_waves", None),
    "steadiness": ("jitter", "onset_deviation", "gap_unevenness"),
    "togetherness": ("asynchrony", "score_asynchrony", "chord_asynchrony"),
}

#: Measures that are shares of notes, whose chance is that of counting.
COUNTED = frozenset({"wrong_notes", "missing_notes", "extra_notes"})

#: Dimensions that need onsets as exact as a key's: those of a transcription may not be.
FINE = frozenset({"steadiness", "togetherness"})

_Z = 1.2815515655446004  # of the standard normal distribution: 80 % lie within


@dataclass(frozen=True)
class Curve:
    """Values of a measure over the levels of its degradation.

    Attributes:
        levels: 0..1, rising.
        low: Value that one performance in ten falls below, at each level; never falling.
        middle: Median.
        high: Value that one performance in ten exceeds.
    """

    levels: tuple[float, ...]
    low: tuple[float, ...]
    middle: tuple[float, ...]
    high: tuple[float, ...]

    def level(self, value: float, which: str = "middle") -> float:
        """The level at which the measure has a value, 0..1."""
        values = np.asarray(getattr(self, which))
        rising = values + np.arange(len(values)) * 1e-12  # where it stands still, the first one
        return float(np.interp(value, rising, self.levels))


@cache
def execution_scale(path: Path = SCALE) -> Mapping[str, Curve]:
    """The curves by measure.

    Raises:
        MT3Error: The file is no such scale.
    """
    try:
        content = json.loads(path.read_bytes())
        if (content["format"], content["version"]) != (SCALE_FORMAT, SCALE_VERSION):
            raise ValueError(content["format"])  # noqa: TRY301
        return {
            name: Curve(**{key: tuple(map(float, curve[key])) for key in Curve.__annotations__})
            for name, curve in content["curves"].items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MT3Error(f"{path} is no scale of execution ({error}); install again.") from error


def judge_execution(
    measures: Mapping[str, Measured], *, notes: int, has_score: bool, coarse: Collection[str] = ()
) -> tuple[Dimension, ...]:
    """Judges all dimensions of execution.

    Args:
        measures: Of the take, by name.
        notes: Number of its notes.
        has_score: Whether it was aligned to a score.
        coarse: Why the onsets are not exact, if so; dimensions that need that are not judged.
    """
    scale = execution_scale()
    found = []
    for name, (_, with_score, without) in DIMENSIONS.items():
        measure = with_score if has_score else without
        reason = None
        if notes < FEWEST_NOTES:
            reason = f"{notes} notes; expected {FEWEST_NOTES} or more"
        elif measure is None:
            reason = "needs a score (--score)"
        elif coarse and name in FINE:
            reason = " ".join(coarse)
        elif measures[measure].value is None:
            reason = measures[measure].reason
        if reason is not None or measure is None:
            found.append(Dimension(name, "execution", assessed=False, reason=reason))
        else:
            found.append(_judged(name, measures[measure], scale[measure]))
    return tuple(found)


def _judged(name: str, measured: Measured, curve: Curve) -> Dimension:
    value = measured.value or 0.0
    below, above = (value, value)
    if measured.name in COUNTED:
        below, above = _by_chance(value, measured.count)
    middle = curve.level(value)
    best, worst = curve.level(below, "high"), curve.level(above, "low")
    why = [f"{measured.name} {value:.3g} {measured.unit} of {measured.count}"]
    if value > curve.high[-1]:
        why.append("beyond the end of the scale")
    return Dimension(
        name,
        "execution",
        assessed=True,
        value=1.0 - middle,
        low=1.0 - max(worst, middle),
        high=1.0 - min(best, middle),
        observations=measured.count,
        why=tuple(why),
    )


def _by_chance(share: float, count: int) -> tuple[float, float]:
    """Ends of the 80 % interval of a share of so many (Wilson)."""
    share, count = min(share, 1.0), max(count, 1)
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = (
        _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    )
    return max(middle - half, 0.0), min(middle + half, 1.0)
