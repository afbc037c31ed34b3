"""The backend of the device `tensorrt`: a bundle's engines, and lanes over them."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from mt3_engines.optional import find_place, import_tensorrt, open_cuda
from mt3_engines.running.engine_loader import Loader
from mt3_engines.running.lane import TensorRtLane
from mt3_engines.running.rows import DeviceRows, Engines
from mt3_engines.storage.keys import PRECISIONS, Precision
from mt3_engines.storage.requests import EngineSet, choose
from mt3_engines.storage.shapes import decoder_shapes, encoder_shapes
from mt3_engines.storage.store import EngineStore
from mt3_runtime.backends.ort_common import check_threads
from mt3_runtime.errors import DeviceError, MissingDependencyError, OptionError

if TYPE_CHECKING:
    from mt3_engines.running.cuda import Cuda
    from mt3_runtime.backends.base import Lane
    from mt3_runtime.backends.devices import Device
    from mt3_runtime.bundles.bundle import Bundle

#: Chooses between engines of several precisions; fp32 wins otherwise, as it is exact.
PRECISION_VARIABLE = "MT3_TENSORRT_PRECISION"

#: Lanes: while one computes features and notes on the host, or encodes, another one decodes.
WORKERS = 2


class TensorRtBackend:
    """Implements `mt3_runtime.backends.base.Backend` with TensorRT engines.

    Attributes:
        description: One line for people.
        workers: Number of lanes that pay off.
        slots: Rows of a lane: what the engines were built for.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        tensorrt: Any,
        cuda: Cuda,
        store: EngineStore | None = None,
        workers: int = WORKERS,
        precision: Precision | None = None,
    ) -> None:
        """Finds and loads the engines.

        Args:
            bundle: The model.
            tensorrt: The module.
            cuda: The GPU.
            store: Where to look for engines.
            workers: Number of lanes.
            precision: Of the engines.

        Raises:
            DeviceError: There are no engines for this bundle and this machine.
            BundleError: An engine or a graph is damaged.
        """
        store = EngineStore() if store is None else store
        place = find_place(tensorrt, cuda)
        self._manifest = bundle.manifest
        chosen = choose(bundle, store, place, precision)
        self._loader = Loader(tensorrt, bundle, store)
        self._engines = self._load(cuda, chosen)
        self.workers, self.slots = workers, chosen.plan.slots[-1]
        self.description = (
            f"tensorrt ({place.gpu}, TensorRT {place.tensorrt}, {chosen.arithmetic}, rows: "
            f"{','.join(map(str, chosen.plan.slots))})"
        )
        self._all: list[DeviceRows] = []
        self._free: list[DeviceRows] = []
        self._lock = threading.Lock()

    def lane(self, slots: int, *, alone: bool = False) -> Lane:  # noqa: ARG002  of the protocol
        """A lane over rows that no other lane uses; they are taken back when it is gone."""
        if slots > self.slots:
            raise OptionError(f"The engines were built for {self.slots} slots, not {slots}.")
        with self._lock:
            self._engines.cuda.use()
            rows = self._free.pop() if self._free else DeviceRows(self._engines)
            if rows not in self._all:
                self._all.append(rows)
        lane = TensorRtLane(self._manifest, rows, slots)
        weakref.finalize(lane, self._free.append, rows)
        return lane

    def warmup(self) -> None:
        """Encodes silence, and records the steps of all numbers of rows in every first cache."""
        shapes = encoder_shapes(self._manifest)
        silence = np.zeros(shapes["features"][1:], np.float32)
        previous = (
            np.full(shapes["previous_ids"][1:], self._manifest.decoding.start_id, np.int64)
            if "previous_ids" in shapes
            else None
        )
        lanes = [self.lane(self.slots) for _ in range(self.workers)]
        for lane in lanes:
            lane.load(0, silence, previous)
            for rows in self._engines.plan.slots:
                lane.positions[:] = 0
                lane.step(rows)

    def close(self) -> None:
        with self._lock:
            for rows in self._all:
                rows.close()
            self._all.clear()
            self._free.clear()

    def _load(self, cuda: Cuda, chosen: EngineSet) -> Engines:
        manifest, loader = self._manifest, self._loader
        encoder = loader.load(chosen.encoder, set(encoder_shapes(manifest)))
        decoders = {
            capacity: loader.load(info, set(decoder_shapes(manifest, 1, capacity)))
            for capacity, info in chosen.decoders.items()
        }
        return Engines(cuda, manifest, chosen, encoder, decoders)


def open_tensorrt(
    bundle: Bundle,
    device: Device,
    threads: int | None = None,
    profile: str | None = None,  # noqa: ARG001  engines are made of one profile
) -> TensorRtBackend:
    """What the entry point ``tensorrt`` of `mt3_runtime.backends` leads to.

    Raises:
        DeviceError: TensorRT or the CUDA bindings are not installed, or there is no such GPU, or
            no engines for it.
        OptionError: ``threads`` or ``MT3_TENSORRT_PRECISION`` makes no sense.
    """
    check_threads(threads)
    asked = os.environ.get(PRECISION_VARIABLE) or None
    if asked not in (None, *PRECISIONS):
        raise OptionError(f"{PRECISION_VARIABLE} must be one of {', '.join(PRECISIONS)}.")
    try:
        tensorrt, cuda = import_tensorrt(), open_cuda(device.index)
    except MissingDependencyError as error:
        raise DeviceError(
            f"device tensorrt was asked for, but cannot be used here; use device cpu, or: {error}"
        ) from error
    return TensorRtBackend(
        bundle,
        tensorrt=tensorrt,
        cuda=cuda,
        workers=threads or WORKERS,
        precision=asked,
    )
