"""Correlations of predictions with labels, and their intervals by the bootstrap over pieces.

Contract: arrays are [n, k], a row a recording, a column a dimension.  Recordings of one piece
succeed and fail together, so pieces are drawn, never recordings; two models are compared on the
same draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import OptionError

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
LEVEL = 0.95
#: Deviations below this share of the values are rounding.
_FLAT = 1e-9


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval.

    Attributes:
        value: Of all recordings.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def table(name: str, values: npt.ArrayLike, rows: int | None = None) -> Floats:
    """An array [n, k] of finite numbers; one of [n] is one column.

    Raises:
        OptionError: It is none, or has another number of rows.
    """
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        found = np.full(1, np.nan)
    found = found[:, np.newaxis] if found.ndim == 1 else found
    if found.ndim != 2 or not np.isfinite(found).all() or len(found) < 2 or not found.shape[1]:
        raise OptionError(f"{name} must be two or more rows of finite numbers, one a recording.")
    if rows is not None and len(found) != rows:
        raise OptionError(f"{name} has {len(found)} rows; expected {rows}, one a recording.")
    return found


def pair(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Predictions and labels of one shape; raises `OptionError`."""
    known = table("labels", labels)
    said = table("predictions", predictions, len(known))
    if said.shape != known.shape:
        raise OptionError(f"predictions have {said.shape[1]} dimensions, labels {known.shape[1]}.")
    return said, known


def group_ids(groups: npt.ArrayLike, rows: int, name: str = "pieces") -> npt.NDArray[np.int64]:
    """Numbers 0, 1, ... of the groups, one a recording; raises `OptionError`."""
    found = np.asarray(groups)
    if found.ndim != 1 or len(found) != rows:
        raise OptionError(f"{name} must name one group a recording: {rows} of them.")
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


def correlations(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """Pearson's r of each dimension [k]; 0 where one side does not vary."""
    said, known = pair(predictions, labels)
    return _correlations(said, known)


def _correlations(said: Floats, known: Floats) -> Floats:
    a, b = said - said.mean(axis=0), known - known.mean(axis=0)
    spread = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    scale = len(a) * np.abs(said).max(axis=0, initial=0) * np.abs(known).max(axis=0, initial=0)
    flat = spread <= _FLAT * scale
    found: Floats = np.where(flat, 0.0, (a * b).sum(axis=0) / np.where(flat, 1.0, spread))
    return found


def mean_correlation(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The mean of `correlations`."""
    return float(correlations(predictions, labels).mean())


def within(values: npt.ArrayLike, groups: npt.ArrayLike) -> Floats:
    """Values [n, k] less the mean of their group."""
    found = table("values", values)
    ids = group_ids(groups, len(found), "groups")
    counts = np.bincount(ids).astype(np.float64)
    sums = np.stack([np.bincount(ids, column) for column in found.T], axis=1)
    away: Floats = found - (sums / counts[:, np.newaxis])[ids]
    away[np.abs(away) <= _FLAT * np.abs(found).max(initial=1.0)] = 0.0
    return away


def bootstrap(
    figure: Callable[[npt.NDArray[np.int64]], float],
    pieces: npt.ArrayLike,
    rows: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a figure of recordings, drawn piece by piece.

    Args:
        figure: Of the rows with these numbers, which may repeat.
        pieces: Whose each recording is.
        rows: Number of recordings.
        resamples: How often is drawn.
        seed: Equal seeds draw the same pieces.

    Raises:
        OptionError: There are fewer than two pieces.
    """
    ids = group_ids(pieces, rows)
    count = int(ids.max()) + 1
    if count < 2:
        raise OptionError("an interval needs recordings of two pieces or more.")
    members = [np.flatnonzero(ids == piece) for piece in range(count)]
    chance: Any = np.random.default_rng(seed)
    found = [
        figure(np.concatenate([members[piece] for piece in chance.integers(0, count, count)]))
        for _ in range(resamples)
    ]
    low, high = np.quantile(found, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(figure(np.arange(rows)), float(low), float(high))
