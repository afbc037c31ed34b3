"""The decoding lane on TensorRT: slots on the GPU, one CUDA graph per step.

What crosses the bus in a step are the rows' token ids and positions one way, and the two best ids
and their log-probabilities the other way; the mask of allowed tokens only when it has changed.
Everything else stays where it was allocated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mt3_runtime.backends.ort_common import HostSlots

if TYPE_CHECKING:
    from mt3_engines.running.rows import DeviceRows, Segment
    from mt3_runtime.backends.base import FloatArray, IdArray
    from mt3_runtime.bundles.bundle import Manifest


class TensorRtLane(HostSlots):
    """Implements `mt3_runtime.backends.base.Lane` over a set of device rows."""

    def __init__(self, manifest: Manifest, rows: DeviceRows, slots: int) -> None:
        super().__init__(manifest.model, slots, manifest.decoding.start_id)
        self._rows = rows
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

    def _encode(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._rows.encode(waiting)
