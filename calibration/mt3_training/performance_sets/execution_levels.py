"""Makes the scale of execution: values of measures over the levels of their own degradation.

Contract: `make_scale` makes up pieces, plays and spoils them, and keeps of every measure that
`mt3_analysis.assessment.judging.execution` judges by the quantiles at each level.  The same seeds
give the same file; nothing in it comes from anybody's recording.  `order_right` says, of
performances that set nothing, how often two levels come out in the right order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mt3_analysis.assessment.alignment import align
from mt3_analysis.assessment.judging.execution import DIMENSIONS, SCALE_FORMAT, SCALE_VERSION
from mt3_analysis.assessment.measures.all_measures import MEASURES
from mt3_analysis.assessment.measures.measured_take import Take
from mt3_training.performance_sets.degradation import degraded
from mt3_training.performance_sets.made_performances import make_piece, play

LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TRAINING_SEEDS = range(1000, 1040)
"""Pieces that set the scale; tests take others."""

QUANTILES = (0.1, 0.5, 0.9)

Told = Callable[[str], None]


def measured_levels(kind: str, names: Sequence[str], seeds: Iterable[int]) -> np.ndarray:
    """Values of measures of spoiled performances, float64 [pieces, levels, measures]."""
    rows = []
    for seed in seeds:
        score = make_piece(seed)
        take = play(score, seed)
        row = []
        for level in LEVELS:
            spoiled = degraded(take, kind, level, seed=seed)
            known = Take(spoiled, align(spoiled, score))
            row.append([_value(name, known) for name in names])
        rows.append(row)
    return np.array(rows, np.float64)


def make_scale(seeds: Sequence[int] = TRAINING_SEEDS, told: Told = lambda _: None) -> bytes:
    """The scale as a file.

    Args:
        seeds: Of the pieces.
        told: Is told how far it is.
    """
    curves: dict[str, dict[str, list[float]]] = {}
    for dimension, (kind, *measures) in DIMENSIONS.items():
        names = [name for name in measures if name is not None]
        values = measured_levels(kind, names, seeds)
        for index, name in enumerate(names):
            found = np.nanquantile(values[:, :, index], QUANTILES, axis=0)
            low, middle, high = np.maximum.accumulate(found, axis=1).round(6).tolist()
            curves[name] = {"levels": list(LEVELS), "low": low, "middle": middle, "high": high}
        told(f"{dimension}: {order_share(values[:, :, 0]):.1%} of pairs of levels in order")
    content: dict[str, Any] = {
        "format": SCALE_FORMAT,
        "version": SCALE_VERSION,
        "made_by": f"mt3 calibrate assess scale, {len(seeds)} made-up pieces",
        "curves": curves,
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def order_share(values: np.ndarray) -> float:
    """Share of pairs of levels of one piece whose values are in order, of [pieces, levels]."""
    pairs = [
        values[:, high] > values[:, low] for low, high in combinations(range(values.shape[1]), 2)
    ]
    return float(np.mean(pairs))


def order_right(seeds: Iterable[int]) -> dict[str, float]:
    """Share of pairs of levels in the right order, by dimension, against the score."""
    listed = list(seeds)
    return {
        name: order_share(measured_levels(kind, [measure], listed)[:, :, 0])
        for name, (kind, measure, _) in DIMENSIONS.items()
    }


def _value(name: str, take: Take) -> float:
    value = MEASURES[name].of(take).value
    return float("nan") if value is None else value
