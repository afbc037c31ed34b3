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
    chosen, sums = _resampled(recordings, resamples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = _mean(sums, chosen) if mean else _quotients(sum(sums, np.zeros((resamples, 2))))
    return _middle(scores)


def paired_interval(
    ours: Sequence[npt.NDArray[Any]],
    theirs: Sequence[npt.NDArray[Any]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile interval of the difference of two scores on the same recordings.

    Both are computed on the same draws: music that is hard for both widens neither side.

    Args:
        ours: Of each recording, numerator and denominator per window, [windows, 2].
        theirs: The same of the other model.
        resamples: How often is drawn.
        seed: Equal seeds draw the same recordings.

    Returns:
        Lower and upper end of ours less theirs, or None where there are fewer than two windows.

    Raises:
        ValueError: These are not the same recordings.
    """
    both = [np.hstack(pair) for pair in zip(ours, theirs, strict=True)]
    if sum(int(np.count_nonzero(units.any(axis=1))) for units in both) < 2:
        return None
    _, sums = _resampled(both, resamples, seed)
    whole = sum(sums, np.zeros((resamples, 4)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return _middle(_quotients(whole[:, :2]) - _quotients(whole[:, 2:]))


def _resampled(
    recordings: Sequence[npt.NDArray[Any]], resamples: int, seed: int
) -> tuple[npt.NDArray[np.int64], list[FloatArray]]:
    """How often each recording was drawn [n, recordings], and the sums over its drawn windows."""
    chance = np.random.default_rng(seed)
    chosen = _draw(chance, np.full(resamples, len(recordings)), len(recordings))
    return chosen, [
        np.asarray(_draw(chance, times * len(units), len(units)) @ units, np.float64)
        for times, units in zip(chosen.T, recordings, strict=True)
    ]


def _middle(scores: FloatArray) -> tuple[float, float] | None:
    """The middle `LEVEL` of all finite scores; None without any."""
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
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
