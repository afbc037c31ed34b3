"""The backend of the devices `tensorrt` and `rtx`: a bundle's engines, and lanes over them."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from mt3_engines.optional import find_place, import_tensorrt, log, open_cuda
from mt3_engines.running.engine_loader import Engines, Loader
from mt3_engines.running.lane import TensorRtLane
from mt3_engines.running.rows import DeviceRows
from mt3_engines.storage.keys import PRECISIONS, Precision
from mt3_engines.storage.requests import EngineSet, choose
from mt3_engines.storage.shapes import decoder_shapes, encoder_shapes
from mt3_engines.storage.store import EngineStore
from mt3_engines.targets import check_gpu
from mt3_engines.versions import RTX, TENSORRT, Maker
from mt3_runtime.backends.ort_common import check_threads
from mt3_runtime.backends.ort_gpu.lane_widths import has_room, lane_bytes
from mt3_runtime.errors import DeviceError, MissingDependencyError, OptionError

if TYPE_CHECKING:
    from mt3_engines.running.cuda import Cuda
    from mt3_runtime.backends.base import FloatArray, IdArray, Lane
    from mt3_runtime.backends.devices import Device
    from mt3_runtime.bundles.bundle import Bundle

#: Chooses between engines of several precisions; fp32 wins otherwise, as it is exact.
PRECISION_VARIABLE = "MT3_TENSORRT_PRECISION"

#: Lanes: while one computes features and notes on the host, or encodes, another one decodes.
WORKERS = 2


#: Log-probabilities that differ by less may be equal, but for rounding.
_APART = 1e-3


class TensorRtBackend:
    """Implements `mt3_runtime.backends.base.Backend` with TensorRT engines.

    Attributes:
        description: One line for people.
        workers: Number of lanes that pay off.
        slots: Rows of a lane: what the engines were built for, and the GPU has memory for.
        manifest: The model's.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        tensorrt: Any,
        cuda: Cuda,
        maker: Maker = TENSORRT,
        store: EngineStore | None = None,
        workers: int = WORKERS,
        precision: Precision | None = None,
    ) -> None:
        """Finds and loads the engines.

        Args:
            bundle: The model.
            tensorrt: The module.
            cuda: The GPU.
            maker: Whose module that is.
            store: Where to look for engines.
            workers: Number of lanes.
            precision: Of the engines.

        Raises:
            DeviceError: There are no engines for this bundle and this machine.
            BundleError: An engine or a graph is damaged.
        """
        store = EngineStore() if store is None else store
        place = find_place(tensorrt, cuda, maker)
        if maker is RTX:
            check_gpu(place)
        self.manifest = self._manifest = bundle.manifest
        chosen = choose(bundle, store, place, precision)
        self._loader = Loader(tensorrt, bundle, store, place)
        self._engines = self._load(cuda, chosen)
        first, *more = chosen.plan.widths
        self.workers = workers
        self.slots = max([first, *(rows for rows in more if self._has_room(rows))])
        numbers = ",".join(map(str, self.rows))
        self.description = (
            f"{maker.name} ({place.gpu}, {place.program}, {chosen.arithmetic}, rows: {numbers})"
        )
        self._all: list[DeviceRows] = []
        self._free: list[DeviceRows] = []
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._prove()
        except BaseException:
            with contextlib.suppress(Exception):  # the reason is what failed first
                self.close()
            raise

    @property
    def rows(self) -> tuple[int, ...]:
        """Numbers of rows that steps were built for, and there is memory for, ascending."""
        return tuple(rows for rows in self._engines.plan.slots if rows <= self.slots)

    def lane_bytes(self, rows: int) -> int:
        """Bytes that a lane of so many rows takes with all its caches."""
        engines = self._engines
        return lane_bytes(
            self._manifest.model,
            rows,
            engines.plan.capacities,
            cross_element=engines.element,
            cache_element=engines.element,
            buffers=engines.buffers,
        )

    def lane(self, slots: int, *, alone: bool = False) -> Lane:  # noqa: ARG002  of the protocol
        """A lane over rows that no other lane uses; they are taken back when it is gone.

        Raises:
            OptionError: The engines have fewer rows, or the GPU no memory for so many.
            DeviceError: The GPU is full, or the backend was closed.
        """
        if slots > self.slots:
            most = self._engines.plan.slots[-1]
            why = f"were built for {most}" if slots > most else f"have memory for {self.slots}"
            raise OptionError(f"The engines {why} slots, not {slots}.")
        widths = self._engines.plan.widths
        with self._lock:
            if self._closed:
                raise DeviceError("This model was closed; load it again.")
            fitting = [rows for rows in self._free if rows.rows <= max(slots, widths[0])]
            rows = max(fitting, key=lambda rows: rows.rows, default=None)
            rows = self._make(widths[0]) if rows is None else self._take(rows)
        lane = TensorRtLane(self._manifest, rows, slots, self._exchange)
        weakref.finalize(lane, self._take_back, lane.held)
        return lane

    def _exchange(self, rows: DeviceRows) -> DeviceRows | None:
        """More rows that hold what these do, which are taken back; None if there is no memory."""
        wider = [width for width in self._engines.plan.widths if rows.rows < width <= self.slots]
        with self._lock:
            found = next((free for free in self._free if free.rows in wider), None)
            if found is not None:
                made = self._take(found)
            elif not wider or self._closed or not self._has_room(wider[0]):
                return None
            else:
                try:
                    made = self._make(wider[0])
                except DeviceError as error:  # others have taken the memory meanwhile
                    log.info("no memory for %d rows: %s", wider[0], error)
                    return None
        made.take_over(rows)
        self._take_back([rows])
        return made

    def _make(self, width: int) -> DeviceRows:
        self._engines.cuda.use()
        made = DeviceRows(self._engines, width)
        self._all.append(made)
        return made

    def _take(self, rows: DeviceRows) -> DeviceRows:
        self._free.remove(rows)
        return rows

    def _has_room(self, rows: int) -> bool:
        """Whether a lane of so many rows, with all caches, finds its memory."""
        return has_room(self.lane_bytes(rows), self._engines.cuda.available())

    def warmup(self) -> None:
        """Encodes silence, and records the steps of all numbers of rows in every first cache."""
        lanes = [self.lane(self.slots) for _ in range(self.workers)]
        for lane in lanes:
            lane.load(0, *self._silence())
            for rows in self._engines.plan.slots:
                if rows <= lane.room:
                    lane.positions[:] = 0
                    lane.step(rows)
        self._keep_kernels()

    def close(self) -> None:
        with self._lock, contextlib.ExitStack() as stack:
            self._closed = True
            for rows in self._all:
                stack.callback(rows.close)  # all of them, whatever one of them raises
            self._all.clear()
            self._free.clear()
            stack.callback(self._keep_kernels)

    def _take_back(self, held: list[DeviceRows]) -> None:
        """Keeps the rows of a lane that is gone for the next one; freed ones are of no use."""
        kept = [rows for rows in held if not rows.closed]
        self._free += kept
        if kept:
            self._keep_kernels()

    def _keep_kernels(self) -> None:
        for contexts in (self._engines.encoder, *self._engines.decoders.values()):
            contexts.keep_kernels()

    def _prove(self) -> None:
        """Encodes silence and decodes a token: a device that does not work is refused, never used.

        Raises:
            DeviceError: It failed, or what came out are no log-probabilities of two tokens.  Where
                a GPU lacks an arithmetic, products may come out as zeros without an error.
        """
        lane = self.lane(self._manifest.model.channels)
        lane.load(0, *self._silence())
        lane.step(1)
        best, second = lane.top_log_probs[0].tolist()
        uniform = -math.log(self._manifest.model.vocab_size)  # what zeros come to
        if not uniform + _APART < best <= _APART or not second <= best:
            raise DeviceError(
                f"{self.description} computes nonsense: the two best tokens of silence have the "
                f"log-probabilities {best} and {second}. Use device cuda or cpu, and please "
                "report it."
            )

    def _silence(self) -> tuple[FloatArray, IdArray | None]:
        """Features and previous ids of a silent segment."""
        shapes = encoder_shapes(self._manifest)
        silence = np.zeros(shapes["features"][1:], np.float32)
        if "previous_ids" not in shapes:
            return silence, None
        start = self._manifest.decoding.start_id
        return silence, np.full(shapes["previous_ids"][1:], start, np.int64)

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
    return _open(bundle, device, threads, TENSORRT)


def open_rtx(
    bundle: Bundle,
    device: Device,
    threads: int | None = None,
    profile: str | None = None,  # noqa: ARG001  as above
) -> TensorRtBackend:
    """What the entry point ``rtx`` leads to; as `open_tensorrt` otherwise."""
    return _open(bundle, device, threads, RTX)


def _open(bundle: Bundle, device: Device, threads: int | None, maker: Maker) -> TensorRtBackend:
    check_threads(threads)
    asked = os.environ.get(PRECISION_VARIABLE) or None
    if asked not in (None, *PRECISIONS):
        raise OptionError(f"{PRECISION_VARIABLE} must be one of {', '.join(PRECISIONS)}.")
    try:
        tensorrt, cuda = import_tensorrt(maker), open_cuda(device.index, maker)
    except MissingDependencyError as error:
        raise DeviceError(
            f"device {maker.name} was asked for, but cannot be used here; use device cpu, or: "
            f"{error}"
        ) from error
    return TensorRtBackend(
        bundle,
        tensorrt=tensorrt,
        cuda=cuda,
        maker=maker,
        workers=threads or WORKERS,
        precision=asked,
    )
