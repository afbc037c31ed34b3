"""Decoding to given lengths, so that networks with random weights do the work of real ones.

End-of-sequence cannot be chosen before a sequence has its length, and nothing else can then.  All
sides of a benchmark do this, so their tokens can be compared, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.bundles.bundle import DecodingSpec
from mt3_runtime.decoding.search import Greedy

#: What one channel of a segment says, where there are several: most are silent, or hold notes.
QUIET_SHARE, QUIET_LENGTHS = 0.7, (2, 9)
#: The others: log-normal around this many tokens, and within these bounds.
MEDIAN, SPREAD, BOUNDS = 20.0, 0.6, (10, 200)
#: A model of one channel says everything in one sequence.
SINGLE_MEDIAN = 60.0

DISTRIBUTION = (
    f"{QUIET_SHARE:.0%} of the channels {QUIET_LENGTHS[0]} to {QUIET_LENGTHS[1]} tokens, evenly; "
    f"the others log-normal around {MEDIAN:g} (sigma {SPREAD}), {BOUNDS[0]} to {BOUNDS[1]}"
)
SINGLE_DISTRIBUTION = f"log-normal around {SINGLE_MEDIAN:g} (sigma {SPREAD}), at most {BOUNDS[1]}"


def draw_lengths(segments: int, channels: int) -> list[list[int]]:
    """Tokens of every segment and channel, end-of-sequence included; the same every time."""
    draw = np.random.default_rng(2048)
    shape = (segments, channels)
    low, high = QUIET_LENGTHS
    if channels == 1:
        long = SINGLE_MEDIAN * np.exp(SPREAD * draw.standard_normal(shape))
        found = np.clip(np.rint(long), low, BOUNDS[1])
    else:
        quiet = draw.integers(low, high + 1, shape)
        long = np.clip(np.rint(MEDIAN * np.exp(SPREAD * draw.standard_normal(shape))), *BOUNDS)
        found = np.where(draw.random(shape) < QUIET_SHARE, quiet, long)
    lengths: list[list[int]] = found.astype(int).tolist()
    return lengths


class Forced(Greedy):
    """Greedy search that ends each sequence where it is told to.

    Args:
        slots: Number of slots of the lane.
        spec: Of the model.
        lengths: By segment and channel; at least ``spec.min_tokens``.
    """

    def __init__(self, slots: int, spec: DecodingSpec, lengths: list[list[int]]) -> None:
        super().__init__(slots, spec)
        self._wanted = np.zeros(slots, np.int32)
        self._all = lengths
        self._started: dict[int, int] = {}

    def start(self, lane: Any, slot: int, span: Any) -> None:
        super().start(lane, slot, span)
        channel = self._started.get(span.index, 0)
        self._started[span.index] = channel + 1
        self._wanted[slot] = self._all[span.index][channel]
        self._allow(lane, np.array([slot]))

    def move(self, source: int, target: int) -> None:
        super().move(source, target)
        self._wanted[target] = self._wanted[source]

    def advance(self, lane: Any, rows: Any) -> npt.NDArray[np.bool_]:
        ended = super().advance(lane, rows)
        self._allow(lane, self._rows[rows])
        return ended

    def _allow(self, lane: Any, slots: npt.NDArray[Any]) -> None:
        """The last token is end-of-sequence, no other one is."""
        last = self._lengths[slots] == self._wanted[slots] - 1
        lane.allowed[slots] = ~last[:, None]
        lane.allowed[slots, self._spec.eos_id] = last
