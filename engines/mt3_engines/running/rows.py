"""Row buffers on the GPU that never move, and the recorded work that reads and writes them.

Letters as in ``docs/graph-contract.md``.  All rows have buffers from the start; a *bucket* is the
number of rows a step is compiled for, and the rows behind those in use compute something nobody
reads.  Caches exist for each capacity that was needed once.  Where TensorRT writes in place, past
and present are one buffer; older versions read one buffer and write a second, and the two change
places.

A step is recorded once for each bucket, capacity and buffer that is read, together with the copies
to and from pinned memory, and launched as a CUDA graph afterwards.  Encoding runs on a stream of
its own; the next step waits for it on the GPU, not on the host.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mt3_engines.storage.shapes import Shape, ShapePlan, cache_shapes, cross_shapes, decoder_shapes
from mt3_engines.storage.shapes import encoder_shapes as shapes_of_encoder
from mt3_engines.versions import parse_version, updates_in_place
from mt3_runtime.errors import DeviceError

if TYPE_CHECKING:
    from mt3_engines.running.cuda import Bytes, Cuda, Handle
    from mt3_engines.storage.requests import EngineSet
    from mt3_runtime.backends.base import FloatArray, IdArray
    from mt3_runtime.bundles.bundle import Manifest

#: Bytes per element of what the host sends and receives.
_SIZES = {"token_ids": 8, "positions": 4, "top_ids": 8, "top_log_probs": 4}


@dataclass(frozen=True)
class Engines:
    """Loaded engines, shared by all rows.

    Attributes:
        cuda: The GPU.
        manifest: The model's.
        chosen: What was loaded.
        encoder: The engine.
        decoders: Engines by capacity.
        lock: Held while a context is made; engines are shared by threads.
    """

    cuda: Cuda
    manifest: Manifest
    chosen: EngineSet
    encoder: Any
    decoders: dict[int, Any]
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def plan(self) -> ShapePlan:
        """Rows and capacities there are."""
        return self.chosen.plan

    @property
    def element(self) -> int:
        """Bytes per element of caches and cross keys and values."""
        return 2 if self.chosen.precision == "fp16" else 4

    @property
    def buffers(self) -> int:
        """How many buffers a cache takes."""
        built = parse_version(self.chosen.encoder.key.tensorrt)
        return 1 if updates_in_place(built) else 2


@dataclass
class _Exchange:
    """A tensor the host writes or reads: pinned memory and its twin on the device."""

    host: Bytes
    device: int

    def array(self, dtype: Any, shape: Shape) -> npt.NDArray[Any]:
        """The host's side, seen as an array of its first elements."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        seen: npt.NDArray[Any] = self.host[:size].view(dtype).reshape(shape)
        return seen


class DeviceRows:
    """The rows of one lane at a time; not for two threads at once."""

    def __init__(self, engines: Engines) -> None:
        self._engines, self._cuda, self._manifest = engines, engines.cuda, engines.manifest
        self._rows = engines.plan.slots[-1]
        self._allocated: list[int] = []
        self._pinned: list[Bytes] = []
        self._graphs: dict[tuple[int, int, int], Handle] = {}
        self._contexts: list[Any] = []
        self._caches: dict[int, list[dict[str, int]]] = {}
        self._read = 0  # which of a cache's buffers holds the past
        cuda = self._cuda
        self._decoding, self._encoding = cuda.stream(), cuda.stream()
        self._encoded, self._moved = cuda.event(), cuda.event()
        vocabulary = self._manifest.model.vocab_size
        self._io = {name: self._exchange(self._rows * size * (2 if "top" in name else 1))
                    for name, size in _SIZES.items()}  # fmt: skip
        self._allowed = self._exchange(self._rows * vocabulary)
        self._sent = np.zeros((self._rows, vocabulary), np.bool_)
        self._ignored = self._allocate(self._rows * 8)  # next_ids: the same ids are in top_ids
        self._cross = self._tensors(cross_shapes(self._manifest, self._rows))
        self._encoder_inputs, self._encoder_outputs, self._encode = self._prepare_encoder()
        self.capacity = engines.plan.capacities[0]

    # What a lane asks for -------------------------------------------------------------------------

    def encode(self, slot: int, features: FloatArray, previous_ids: IdArray | None) -> None:
        """Encodes a segment into the cross keys and values of the slots from ``slot`` on.

        Args:
            slot: The first one.
            features: [frames, bins].
            previous_ids: [memory_tokens] for a model with memory.
        """
        cuda, stream = self._cuda, self._encoding
        cuda.use()
        cuda.wait_here(self._encoded)  # the pinned memory may still be read
        inputs = self._encoder_inputs
        inputs["features"].array(np.float32, features.shape)[:] = features
        if previous_ids is not None:
            inputs["previous_ids"].array(np.int64, previous_ids.shape)[:] = previous_ids
        cuda.launch(self._encode, stream)
        cuda.wait(stream, self._moved)  # a row that moves away is read before it is overwritten
        for name, source in self._encoder_outputs.items():
            size = self._row_bytes(cross_shapes(self._manifest, 1)[name])
            channels = self._manifest.model.channels
            cuda.copy(self._cross[name] + slot * size, source, channels * size, stream)
        cuda.record(self._encoded, stream)
        cuda.wait(self._decoding, self._encoded)

    def fit(self, positions: npt.NDArray[np.int32]) -> None:
        """Changes to the smallest capacity that holds the next token of all rows."""
        self._cuda.use()
        needed = self._engines.plan.capacity(int(positions.max()) + 1)
        if needed == self.capacity:
            self._cache(needed)
            return
        old, new = self._cache(self.capacity)[self._read], self._cache(needed)[0]
        model, element = self._manifest.model, self._engines.element
        pitches = [columns * model.head_dim * element for columns in (needed, self.capacity)]
        for name in new:
            self._cuda.copy_columns(
                (new[name], pitches[0]),
                (old[name], pitches[1]),
                width=min(pitches),
                height=len(positions) * model.heads,
                stream=self._decoding,
            )
        self.capacity, self._read = needed, 0

    def allow(self, allowed: npt.NDArray[np.bool_]) -> None:
        """Sends the mask where it differs from what is there.

        Args:
            allowed: [rows, V].
        """
        rows = len(allowed)
        if np.array_equal(self._sent[:rows], allowed):
            return
        self._sent[:rows] = allowed
        self._allowed.array(np.bool_, allowed.shape)[:] = allowed
        self._cuda.upload(self._allowed.device, self._allowed.host, allowed.size, self._decoding)

    def step(
        self, token_ids: IdArray, positions: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Decodes one token of the first rows.

        Args:
            token_ids: [rows, 1].
            positions: [rows].

        Returns:
            Views of the two best ids and their log-probabilities, each [rows, 2], good until the
            next step.
        """
        cuda, rows = self._cuda, len(token_ids)
        cuda.use()
        bucket = self._engines.plan.rows(rows)
        self._io["token_ids"].array(np.int64, (bucket, 1))[:rows] = token_ids
        at = self._io["positions"].array(np.int32, (bucket,))
        at[:rows] = positions
        at[rows:] = 0  # they write somewhere nobody reads, and a slot begins there anyway
        key = (bucket, self.capacity, self._read)
        if key not in self._graphs:
            self._graphs[key] = self._record(*key)
        cuda.launch(self._graphs[key], self._decoding)
        cuda.synchronize(self._decoding)
        self._read = (self._read + 1) % self._engines.buffers
        return (
            self._io["top_ids"].array(np.int64, (bucket, 2))[:rows],
            self._io["top_log_probs"].array(np.float32, (bucket, 2))[:rows],
        )

    def move(self, source: int, target: int, columns: int) -> None:
        """Copies a row over another one, with so many columns of its cache."""
        cuda, stream = self._cuda, self._decoding
        cuda.use()
        cross = cross_shapes(self._manifest, 1)
        for name, address in self._cross.items():
            size = self._row_bytes(cross[name])
            cuda.copy(address + target * size, address + source * size, size, stream)
        model, element = self._manifest.model, self._engines.element
        line = self.capacity * model.head_dim * element
        row = model.heads * line
        for address in self._cache(self.capacity)[self._read].values():
            if columns:
                cuda.copy_columns(
                    (address + target * row, line),
                    (address + source * row, line),
                    width=columns * model.head_dim * element,
                    height=model.heads,
                    stream=stream,
                )
        cuda.record(self._moved, stream)

    def close(self) -> None:
        """Waits for the GPU and frees everything."""
        cuda = self._cuda
        cuda.use()
        for stream in (self._encoding, self._decoding):
            cuda.synchronize(stream)
        for graph in [*self._graphs.values(), self._encode]:
            cuda.close_graph(graph)
        self._graphs.clear()
        self._contexts.clear()
        for event in (self._encoded, self._moved):
            cuda.close_event(event)
        for stream in (self._encoding, self._decoding):
            cuda.close_stream(stream)
        for address in self._allocated:
            cuda.free(address)
        for array in self._pinned:
            cuda.free_pinned(array)

    # Memory ---------------------------------------------------------------------------------------

    def _cache(self, capacity: int) -> list[dict[str, int]]:
        """Addresses of past keys and values by name, one dict per buffer."""
        if capacity not in self._caches:
            shapes = cache_shapes(self._manifest, self._rows, capacity)
            self._caches[capacity] = [self._tensors(shapes) for _ in range(self._engines.buffers)]
        return self._caches[capacity]

    def _tensors(self, shapes: dict[str, Shape]) -> dict[str, int]:
        return {name: self._allocate(self._row_bytes(shape)) for name, shape in shapes.items()}

    def _row_bytes(self, shape: Shape) -> int:
        return math.prod(shape) * self._engines.element

    def _allocate(self, size: int) -> int:
        address = self._cuda.allocate(size)
        self._allocated.append(address)
        return address

    def _exchange(self, size: int) -> _Exchange:
        host = self._cuda.pinned(size)
        self._pinned.append(host)
        return _Exchange(host, self._allocate(size))

    # Recorded work --------------------------------------------------------------------------------

    def _prepare_encoder(self) -> tuple[dict[str, _Exchange], dict[str, int], Handle]:
        """Inputs, addresses of the outputs, and the graph that makes the ones from the others."""
        shapes = shapes_of_encoder(self._manifest)
        sizes = {"features": 4, "previous_ids": 8}
        inputs = {
            name: self._exchange(math.prod(shapes[name]) * size)
            for name, size in sizes.items()
            if name in shapes
        }
        outputs = self._tensors(cross_shapes(self._manifest, self._manifest.model.channels))
        addresses = {name: exchange.device for name, exchange in inputs.items()} | outputs
        context = self._bind(
            self._engines.encoder,
            0,
            shapes={name: shapes[name] for name in inputs},
            addresses=addresses,
            stream=self._encoding,
        )

        def work() -> None:
            for exchange in inputs.values():
                self._cuda.upload(
                    exchange.device, exchange.host, len(exchange.host), self._encoding
                )
            self._execute(context, self._encoding)

        return inputs, outputs, self._captured(work, self._encoding)

    def _record(self, bucket: int, capacity: int, read: int) -> Handle:
        """The graph of one step."""
        engines, stream = self._engines, self._decoding
        shapes = decoder_shapes(self._manifest, bucket, capacity)
        caches = self._cache(capacity)
        past, present = caches[read], caches[(read + 1) % engines.buffers]
        addresses = {name: exchange.device for name, exchange in self._io.items()}
        addresses |= {"allowed": self._allowed.device, "next_ids": self._ignored, **self._cross}
        addresses |= past
        addresses |= {n.replace("past", "present", 1): at for n, at in present.items()}
        results = ("next_ids", "top_", "present_")
        context = self._bind(
            engines.decoders[capacity],
            engines.plan.slots.index(bucket),
            shapes={n: shape for n, shape in shapes.items() if not n.startswith(results)},
            addresses=addresses,
            stream=stream,
        )

        def work() -> None:
            for name in ("token_ids", "positions"):
                twin = self._io[name]
                self._cuda.upload(twin.device, twin.host, bucket * _SIZES[name], stream)
            self._execute(context, stream)
            for name in ("top_ids", "top_log_probs"):
                twin = self._io[name]
                self._cuda.download(twin.host, twin.device, bucket * 2 * _SIZES[name], stream)

        return self._captured(work, stream)

    def _captured(self, work: Any, stream: Handle) -> Handle:
        """Records work.  It is done once before, as TensorRT sets up some things on first use.

        A step may be done twice: it reads its token and position anew and writes the same column.
        """
        work()
        self._cuda.synchronize(stream)
        self._cuda.begin_capture(stream)
        try:
            work()
        finally:
            graph = self._cuda.end_capture(stream)
        return graph

    def _bind(
        self,
        engine: Any,
        profile: int,
        *,
        shapes: dict[str, Shape],
        addresses: dict[str, int],
        stream: Handle,
    ) -> Any:
        """A context of its own for each recording: TensorRT wants it unchanged afterwards."""
        with self._engines.lock:
            context = engine.create_execution_context()
        if context is None:
            raise DeviceError(
                "The GPU has no memory for another TensorRT context. Build the engines with fewer "
                "--slots, or close other programs that use the GPU."
            )
        self._contexts.append(context)
        handle = self._cuda.stream_handle(stream)
        done = [context.set_optimization_profile_async(profile, handle)]
        done += [context.set_input_shape(name, shape) for name, shape in shapes.items()]
        done += [context.set_tensor_address(name, at) for name, at in addresses.items()]
        if not all(done):
            raise DeviceError("TensorRT refuses the engines' shapes or addresses; see its log.")
        return context

    def _execute(self, context: Any, stream: Handle) -> None:
        if not context.execute_async_v3(self._cuda.stream_handle(stream)):
            raise DeviceError(
                "TensorRT could not run the engine; the log of `mt3_engines` says why."
            )
