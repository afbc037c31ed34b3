"""Rounds a weight matrix to 8 bits while preserving its products (GPTQ).

Contract: pure functions of arrays.  A weight W [K, N] becomes levels Q [K, N] (whole numbers from
-127 to 127) and a scale per column s [N], with x W ~ (x Q) s for the x that occur.  What counts is
the error of products, tr((W - Qs)' M (W - Qs)) with the inputs' second moments M = X'X, and not
that of single weights: the error a rounded row makes is handed on to the rows not rounded yet, as
far as their inputs resemble its own (Frantar et al. 2022, "GPTQ"; Hassibi and Stork 1993).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

LEVELS = 127
"""Largest level; -128 stays unused, so that a sign flip is exact."""

DAMPING = 0.1
"""Share of the mean second moment that every input is believed to have of its own.  On music of
other sounds than it was learned from, 0.05 to 0.2 leave the smallest error, and 0.001 a tenth more:
what inputs have in common is known from a few minutes of music only."""

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Shares of a column's largest weight that are tried as its largest level."""

BLOCK = 64
"""Rows whose errors are handed on at once: speed only, the result does not depend on it."""


class Rounded(NamedTuple):
    """A matrix in 8 bits.

    Attributes:
        levels: int8 [K, N].
        scales: float32 [N], what one level of a column is worth.
    """

    levels: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]

    def values(self) -> Matrix:
        """The matrix that is really multiplied by."""
        return self.levels.astype(np.float64) * self.scales


def nearest(weight: Matrix, scales: Matrix) -> Matrix:
    """Levels next to the weights."""
    return np.clip(np.rint(weight / scales), -LEVELS, LEVELS)


def column_scales(weight: Matrix, energies: Matrix) -> Matrix:
    """Scales that lose the least: clipping a column's largest weights makes the others finer.

    Args:
        weight: [K, N].
        energies: Mean squares of the K inputs, in any unit.

    Returns:
        [N], numbers that float32 can hold.
    """
    largest = np.abs(weight).max(axis=0)
    largest[largest == 0] = 1.0
    best = np.full(weight.shape[1], np.inf)
    found = np.empty_like(best)
    for shrink in SHRINKS:
        scales = (largest * (shrink / LEVELS)).astype(np.float32).astype(np.float64)
        error = energies @ (weight - nearest(weight, scales) * scales) ** 2
        found = np.where(error < best, scales, found)
        best = np.minimum(error, best)
    return found


def rounded(weight: Matrix, moments: Matrix) -> Rounded:
    """Rounds a matrix for inputs with these second moments.

    Args:
        weight: [K, N].
        moments: X'X of the inputs, [K, K]; inputs that never occur have zeros.
    """
    energies = np.diag(moments)
    scales = column_scales(weight, energies)
    order = np.argsort(-energies, kind="stable")  # the most important first, while all is free
    share = _shares(moments[np.ix_(order, order)])
    left, levels = weight[order].copy(), np.empty_like(weight)
    for first in range(0, len(left), BLOCK):
        last = min(first + BLOCK, len(left))
        errors = np.empty((last - first, weight.shape[1]))
        for row in range(first, last):
            levels[row] = nearest(left[row], scales)
            error = (left[row] - levels[row] * scales) / share[row, row]
            left[row + 1 : last] -= share[row, row + 1 : last, np.newaxis] * error
            errors[row - first] = error
        left[last:] -= share[first:last, last:].T @ errors
    back = np.empty_like(levels)
    back[order] = levels
    return Rounded(back.astype(np.int8), scales.astype(np.float32))


def _shares(moments: Matrix) -> Matrix:
    """How a row's error is handed on: the upper Cholesky factor of the damped inverse."""
    mean = float(np.diag(moments).mean()) or 1.0
    damped = moments + DAMPING * mean * np.eye(len(moments))
    return np.asarray(np.linalg.cholesky(np.linalg.inv(damped)).T)
