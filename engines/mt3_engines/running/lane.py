"""The decoding lane on TensorRT: slots on the GPU, one CUDA graph per step.

What crosses the bus in a step are the rows' token ids and positions one way, and the two best ids
and their log-probabilities the other way; the mask of allowed tokens only when it has changed.
Everything else stays where it was allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mt3_runtime.backends.ort_common import HostSlots

if TYPE_CHECKING:
    from mt3_engines.running.rows import DeviceRows, Segment
    from mt3_runtime.backends.base import FloatArray, IdArray
    from mt3_runtime.bundles.bundle import Manifest


class TensorRtLane(HostSlots):
    """Implements `mt3_runtime.backends.base.Lane` over a set of device rows.

    Attributes:
        held: The rows that it has, in a list, which says so when the lane is gone.
    """

    def __init__(
        self,
        manifest: Manifest,
        rows: DeviceRows,
        slots: int,
        exchange: Callable[[DeviceRows], DeviceRows | None],
    ) -> None:
        """Args: the manifest, its first rows, how many it may have, and what gives more of them."""
        super().__init__(manifest.model, slots, manifest.decoding.start_id)
        self._rows, self._exchange, self.held = rows, exchange, [rows]
        self.room = min(rows.rows, slots)
        self._waiting: list[Segment] = []

    def load(self, slot: int, features: FloatArray, previous_ids: IdArray | None = None) -> None:
        """Segments that are loaded one after the other are encoded together."""
        previous = None if previous_ids is None else previous_ids.copy()
        self._waiting.append((slot, features.copy(), previous))
        if len(self._waiting) == self._rows.most_segments:
            self._encode()
        self.restart(slice(slot, slot + self.channels))

    def step(self, rows: int) -> None:
        self._encode()
        device, positions = self._rows, self.positions[:rows]
        device.fit(positions)
        device.allow(self.allowed[:rows])
        top_ids, top_log_probs = device.step(self.token_ids[:rows], positions)
        self.top_ids[:rows] = top_ids
        self.top_log_probs[:rows] = top_log_probs
        self.token_ids[:rows] = top_ids[:, :1]
        positions += np.int32(1)

    def move(self, source: int, target: int) -> None:
        self._encode()
        super().move(source, target)
        self._rows.move(source, target, int(self.positions[source]))

    def widen(self) -> bool:
        """Moves into more rows, if there is memory for them."""
        wider = self._exchange(self._rows) if self.room < self.slots else None
        if wider is None:
            return False
        self._rows = self.held[0] = wider
        self.room = min(wider.rows, self.slots)
        return True

    def _encode(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._rows.encode(waiting)
