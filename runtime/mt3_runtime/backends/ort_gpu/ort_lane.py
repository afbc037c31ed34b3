"""The lane of the CUDA backend: slots on the device, one recorded step per number of rows.

A lane begins with memory for few rows and gets more while they are all in use and segments wait
(`lane_widths`).  The arrays on the host have room for all there may ever be.

Recording a step as a CUDA graph fails if any other code of this process allocates or copies on the
device meanwhile, and nobody can hold off a stranger.  A step whose recording fails is run as it is,
by this lane; the next one that has this memory tries again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mt3_runtime.backends.ort_common import HostSlots

if TYPE_CHECKING:
    from mt3_runtime.backends.base import FloatArray, IdArray
    from mt3_runtime.backends.ort_gpu.ort_memory import Copier
    from mt3_runtime.backends.ort_gpu.ort_slots import Slots
    from mt3_runtime.backends.ort_gpu.ort_threads import DeviceThreads
    from mt3_runtime.bundles.manifest import ModelSpec

log = logging.getLogger("mt3_runtime")


class LaneOwner(Protocol):
    """What a lane needs of its backend.

    Attributes:
        spec: Sizes of the model.
        start_id: The token that a sequence begins with.
        capacities: Lengths of the caches, ascending.
        turns: The device's threads.
        encoder: The encoder's session.
        decoder: That of the decoder step.
        copier: Copies between buffers.
        cuda_graph: Whether steps are recorded.
        graph_ids: Ids of recorded steps.
    """

    spec: ModelSpec
    start_id: int
    capacities: Sequence[int]
    turns: DeviceThreads
    encoder: Any
    decoder: Any
    copier: Copier
    cuda_graph: bool
    graph_ids: Iterator[int]

    def reporting(self) -> AbstractContextManager[None]:
        """Raises what ONNX Runtime raises as a `DeviceError`."""

    def wider(self, rows: int, most: int) -> Slots | None:
        """Memory for a lane that has so many rows and may have more; None if there is none."""

    def give_back(self, memory: Slots) -> None:
        """Keeps memory that a lane has outgrown for others."""


class CudaLane(HostSlots):
    """Implements `mt3_runtime.backends.base.Lane` over `Slots`; used by one thread.

    Attributes:
        held: The memory that it has, in a list, which says so when the lane is gone.
    """

    def __init__(self, backend: LaneOwner, memory: Slots, slots: int) -> None:
        super().__init__(backend.spec, slots, backend.start_id)
        self._backend, self._turns, self.held = backend, backend.turns, [memory]
        self._capacity = backend.capacities[0]
        self._masks: Any = None  # what the device has of `allowed`
        self._encoding = backend.encoder.io_binding()
        self._take(memory)

    def _take(self, memory: Slots) -> None:
        self._memory, self.held[0] = memory, memory
        self.room, self._masks = memory.slots, None
        memory.plain.clear()
        for name in memory.segment.arrays:
            memory.segment.bind(self._encoding.bind_input, name, 1)

    def load(self, slot: int, features: FloatArray, previous_ids: IdArray | None = None) -> None:
        memory, filled = self._memory, slice(slot, slot + self.channels)

        def encode() -> None:
            memory.segment.arrays["features"][:] = features
            if previous_ids is not None:
                memory.segment.arrays["previous_ids"][:] = previous_ids
            memory.segment.write()
            for name, buffer in memory.cross.items():
                buffer.bind(self._encoding.bind_output, name, filled)
            self._backend.encoder.run_with_iobinding(self._encoding)

        with self._backend.reporting():
            self._turns.encoding.do(encode)
        self.restart(filled)

    def step(self, rows: int) -> None:
        longest = int(self.positions[:rows].max()) + 1
        with self._backend.reporting():
            while longest > self._capacity:
                # Not alone: steps are recorded on this thread too, and encoding may go on.
                self._turns.decoding.do(self._grow)
            key = (padded(rows, self.room), self._capacity)
            if key in self._memory.recorded or key in self._memory.plain:
                self._turns.decoding.do(lambda: self._decode(rows, key))
            else:
                self._turns.alone(lambda: self._record(rows, key))
        found = self._memory.given.arrays
        self.top_ids[:rows] = found["top_ids"][:rows]
        self.top_log_probs[:rows] = found["top_log_probs"][:rows]
        self.token_ids[:rows] = self.top_ids[:rows, :1]
        self.positions[:rows] += 1

    def move(self, source: int, target: int) -> None:
        super().move(source, target)
        memory = self._memory
        with self._backend.reporting():
            buffers = [*memory.cross.values(), *memory.cache(self._capacity)]
            self._turns.decoding.do(lambda: self._backend.copier.move(buffers, source, target))

    def widen(self) -> bool:
        """Takes memory for more rows, if there is any, and moves into it."""
        old, capacity = self._memory, self._capacity
        with self._backend.reporting():
            wider = self._backend.wider(old.slots, self.slots)
        if wider is None:
            return False
        pairs = [*zip(old.cross.values(), wider.cross.values(), strict=True)]
        pairs += zip(old.cache(capacity), wider.cache(capacity), strict=True)
        with self._backend.reporting():
            self._turns.decoding.do(lambda: self._backend.copier.widen(pairs))
        self._take(wider)
        self._backend.give_back(old)
        return True

    def _record(self, rows: int, key: tuple[int, int]) -> None:
        """A step that nobody has run yet; nothing else of ours is done on the device meanwhile."""
        memory = self._memory
        try:
            self._decode(rows, key)
            memory.recorded.add(key)
        except Exception as error:  # ONNX Runtime's, which share no base
            if not self._backend.cuda_graph:
                raise
            memory.plain.add(key)
            self._decode(rows, key)
            log.warning(
                "a step of %d rows could not be recorded and runs slower: %s. Other code of this "
                "process may have used the GPU meanwhile.", key[0], " ".join(str(error).split()),
            )  # fmt: skip

    def _decode(self, rows: int, key: tuple[int, int]) -> None:
        """One step of so many rows, between the host's arrays."""
        self._send(rows)
        ids = self._backend.graph_ids if self._backend.cuda_graph else None
        binding, options = self._memory.step(*key, ids)
        self._backend.decoder.run_with_iobinding(binding, options)
        self._memory.given.read()

    def _send(self, rows: int) -> None:
        """Tells the device what the rows read; those behind them are at the start of a segment."""
        taken, allowed = self._memory.taken, self.allowed[: self.room]
        for name, array in (("token_ids", self.token_ids), ("positions", self.positions)):
            taken.arrays[name][:rows] = array[:rows]
        taken.arrays["token_ids"][rows:] = self._start_id
        taken.arrays["positions"][rows:] = 0
        taken.write()
        if self._masks is None or not np.array_equal(self._masks, allowed):
            self._memory.allowed.write(allowed)
            self._masks = allowed.copy()

    def _grow(self) -> None:
        old = self._memory.cache(self._capacity)
        self._backend.copier.double(old, self._memory.cache(2 * self._capacity))
        self._capacity *= 2


def padded(rows: int, slots: int) -> int:
    """The next of the numbers of rows that steps are recorded for: 1, 2, 4, 8, 16, 24, ... slots.

    Up to 8 rows cost as much as one, and a multiple of 8 is what matrix units work in.  Beyond 32,
    where rows cost little and there would be too many numbers, 48, 64, 96, 128, 192, ...
    """
    power = 1 << (rows - 1).bit_length()
    if rows <= 8:
        step = power
    elif rows <= 32:
        step = -(-rows // 8) * 8
    else:
        step = 3 * power // 4 if rows <= 3 * power // 4 else power
    return min(step, slots)
