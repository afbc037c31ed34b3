"""How many rows of a lane pay off, measured while it works.

A step reads all weights once and does some work per row, so it takes about a + b * rows seconds.
On a GPU b is next to nothing and every slot pays; with a small network on a CPU five rows cost per
row what sixteen do, and more of them only make everybody wait longer.

Contract: `StepCosts.add` is told what a step took, and `StepCosts.pay` says from how many rows on a
row costs at most `LOSS` more than in a full lane.  Threads may share it.
"""

from __future__ import annotations

import math

import numpy as np

LOSS = 0.05
"""Share of the throughput of a full lane that may be lost."""

ENOUGH = 16
"""Steps with a number of rows before they count, and how often the answer is renewed."""

_SLOWLY = 0.02
"""By which share a longer step raises what is believed: other work only ever makes steps longer."""


class StepCosts:
    """The steps of a model on a device.

    Args:
        slots: Rows of a lane.
    """

    def __init__(self, slots: int) -> None:
        self._slots, self._pay = slots, slots
        self._seconds = np.full(slots + 1, np.inf)
        self._counts = np.zeros(slots + 1, np.int64)
        self._added = 0

    @property
    def pay(self) -> int:
        """Rows that pay off; all, as long as too little is known."""
        return self._pay

    def add(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        known = self._seconds[rows]
        shorter = not seconds > known
        self._seconds[rows] = seconds if shorter else known + _SLOWLY * (seconds - known)
        self._counts[rows] += 1
        self._added += 1
        if self._added % ENOUGH == 0:
            self._pay = self._measured()

    def _measured(self) -> int:
        """From a line through what is known."""
        rows = np.flatnonzero(self._counts >= ENOUGH)
        if len(rows) < 2 or rows[-1] < self._slots // 2:
            return self._slots
        per_row, fixed = map(float, np.polyfit(rows, self._seconds[rows], 1))
        if fixed <= 0.0 or per_row <= 0.0:
            return 1 if fixed <= 0.0 else self._slots
        enough = fixed / (LOSS * per_row + (1.0 + LOSS) * fixed / self._slots)
        return min(self._slots, max(1, math.ceil(enough)))
