"""Confidence intervals of scores by the bootstrap: how far they would have moved with other music.

A score is a quotient of two sums over the windows of recordings.  For its interval, recordings are
drawn with replacement, as many as there are, and of each recording drawn its windows, in the same
way; then the score is computed again.  The interval holds the middle 95 % of a thousand scores.

Notes are never drawn alone: those of one passage succeed and fail together, and intervals over
notes would be far too narrow.  Drawing in two stages gives one recording an interval, too, and
errs on the wide side where there are few, while drawing recordings alone would be too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
LEVEL = 0.95

FloatArray = npt.NDArray[np.float64]


def interval(
    recordings: Sequence[npt.NDArray[Any]],
    *,
    mean: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile interval of a score.

    Args:
        recordings: Of each, numerator and denominator per window, [windows, 2].
        mean: Of the mean of the recordings' quotients; else of the quotient of all sums.
        resamples: How often is drawn.
        seed: Equal seeds draw the same recordings, so that two models are judged on equal draws.

    Returns:
        Lower and upper end, or None where there are fewer than two windows to draw from.
    """
    if sum(int(np.count_nonzero(units.any(axis=1))) for units in recordings) < 2:
        return None
    chance = np.random.default_rng(seed)
    chosen = _draw(chance, np.full(resamples, len(recordings)), len(recordings))
    sums: list[FloatArray] = [
        np.asarray(_draw(chance, times * len(units), len(units)) @ units, np.float64)
        for times, units in zip(chosen.T, recordings, strict=True)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = _mean(sums, chosen) if mean else _quotients(sum(sums, np.zeros((resamples, 2))))
    tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    low, high = np.quantile(scores[np.isfinite(scores)], tails)
    return float(low), float(high)


def _draw(
    chance: np.random.Generator, times: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.int64]:
    """How often each of ``count`` things was drawn in ``times`` [n] draws: [n, count]."""
    return chance.multinomial(times, np.full(count, 1 / count))


def _mean(sums: Sequence[FloatArray], chosen: npt.NDArray[np.int64]) -> FloatArray:
    """Mean quotient of the recordings drawn; one that was drawn twice counts twice."""
    parts = [
        np.where(times > 0, times * _quotients(pair), 0.0)
        for times, pair in zip(chosen.T, sums, strict=True)
    ]
    return np.asarray(sum(parts) / len(sums))


def _quotients(sums: FloatArray) -> FloatArray:
    return np.asarray(sums[:, 0] / sums[:, 1])
