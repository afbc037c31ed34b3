"""Row buffers on the GPU that never move, and the recorded work that reads and writes them.

Letters as in ``docs/graph-contract.md``.  All rows have buffers from the start; a *bucket* is the
number of rows a step is compiled for, and the rows behind those in use compute something nobody
reads.  Caches exist for each capacity that was needed once.  Where TensorRT writes in place, past
and present are one buffer; older versions read one buffer and write a second, and the two change
places.

A step is recorded once for each bucket, capacity and buffer that is read, together with the copies
to and from pinned memory, and launched as a CUDA graph afterwards.  Encoding runs on a stream of
its own, several segments at once; the next step waits for it on the GPU, not on the host.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mt3_engines.running.device_memory import DeviceMemory, Exchange
from mt3_engines.storage.shapes import (
    Shape,
    cache_shapes,
    cross_shapes,
    decoder_shapes,
    encoder_shapes,
)
from mt3_runtime.errors import DeviceError

if TYPE_CHECKING:
    from mt3_engines.running.contexts import Contexts
    from mt3_engines.running.cuda import Handle
    from mt3_engines.running.engine_loader import Engines
    from mt3_runtime.backends.base import FloatArray, IdArray

#: Types of what the host sends and receives, as the graphs declare them.
HOST_TYPES: dict[str, Any] = {
    "token_ids": np.int64,
    "positions": np.int32,
    "top_ids": np.int64,
    "top_log_probs": np.float32,
    "features": np.float32,
    "previous_ids": np.int64,
}
#: Type of the encoder's and the decoder's other tensors that is not that of the caches.
DEVICE_TYPES: dict[str, Any] = {"allowed": np.bool_, "next_ids": np.int64}

#: A smaller cache takes over when at least this part of it stays free.  Then as many steps lie
#: between there and back, and moving all rows costs about two: at most an eighth of the time for
#: 128 columns, where it would be all of it if rows went there and back at one limit.
_SPARE = 0.25

#: What is encoded: slot, features [frames, bins], previous ids [memory_tokens] or None.
Segment = tuple[int, "FloatArray", "IdArray | None"]


class DeviceRows:
    """The rows of one lane at a time; not for two threads at once.

    Attributes:
        rows: How many.
        closed: They were freed.
    """

    def __init__(self, engines: Engines, rows: int) -> None:
        """Makes all buffers of so many rows, and records the encoder.

        Raises:
            DeviceError: The GPU refuses; what was made until then is freed.
        """
        self._engines, self._cuda, self._manifest = engines, engines.cuda, engines.manifest
        self._memory = DeviceMemory(engines.cuda)
        self.rows, self.closed = rows, False
        try:
            self._make()
        except BaseException:
            self.closed = True
            with contextlib.suppress(Exception):  # the reason is what made it fail
                self._memory.close()
            raise

    def _make(self) -> None:
        plan, memory = self._engines.plan, self._memory
        self._batches = plan.segments
        self._graphs: dict[tuple[int, int, int], Handle] = {}
        self._caches: dict[int, list[dict[str, int]]] = {}
        self._scratch: dict[int, tuple[int, int]] = {}
        self._read = 0  # which of a cache's buffers holds the past
        self._decoding, self._encoding = memory.stream(), memory.stream()
        self._encoded, self._moved = memory.event(), memory.event()
        vocabulary = self._manifest.model.vocab_size
        shapes = decoder_shapes(self._manifest, self.rows, 1)
        shapes |= encoder_shapes(self._manifest, self._batches[-1])
        self._io = {
            name: memory.exchange(math.prod(shapes[name]) * np.dtype(dtype).itemsize)
            for name, dtype in HOST_TYPES.items()
            if name in shapes
        }
        self._allowed = memory.exchange(self.rows * vocabulary)
        self._sent = np.zeros((self.rows, vocabulary), np.bool_)
        self._ignored = memory.allocate(self.rows * 8)  # next_ids: the same ids are in top_ids
        self._cross = self._tensors(cross_shapes(self._manifest, self.rows))
        channels = self._manifest.model.channels
        self._fresh = self._tensors(cross_shapes(self._manifest, self._batches[-1] * channels))
        self._encoders = {count: self._record_encoder(count) for count in self._batches}
        self.capacity = plan.capacities[0]

    # What a lane asks for -------------------------------------------------------------------------

    @property
    def most_segments(self) -> int:
        """How many segments are encoded at once."""
        return self._batches[-1]

    def encode(self, segments: Sequence[Segment]) -> None:
        """Encodes segments into the cross keys and values of their slots.

        Args:
            segments: Each with the first of its slots; several are encoded at once as far as there
                are encoders for so many.
        """
        self._check_open()
        at = 0
        while at < len(segments):
            count = max(count for count in self._batches if count <= len(segments) - at)
            self._encode(segments[at : at + count])
            at += count

    def fit(self, positions: npt.NDArray[np.int32]) -> None:
        """Changes to a capacity that holds the next token of all rows.

        That is a larger one where it must be, a smaller one where much of it stays free.

        Args:
            positions: [rows].
        """
        self._check_open()
        self._cuda.use()
        plan, longest = self._engines.plan, int(positions.max()) + 1
        needed = plan.capacity(longest)
        if needed < self.capacity:
            roomy = [c for c in plan.capacities if longest <= c - int(c * _SPARE)]
            needed = min([*roomy, self.capacity])
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
        self._check_open()
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
        self._check_open()
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
        self._check_open()
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

    def take_over(self, other: DeviceRows) -> None:
        """Copies all rows of a smaller set, which may be used by another lane afterwards."""
        self._check_open()
        cuda, stream = self._cuda, self._decoding
        cuda.use()
        cuda.synchronize(other._decoding)  # which has waited for what was encoded
        self.capacity, self._read = other.capacity, 0
        pairs = [(self._cross, other._cross, cross_shapes(self._manifest, other.rows))]
        shapes = cache_shapes(self._manifest, other.rows, self.capacity)
        past = other._cache(self.capacity)[other._read]
        pairs.append((self._cache(self.capacity)[0], past, shapes))
        for new, old, all_shapes in pairs:
            for name, shape in all_shapes.items():
                cuda.copy(new[name], old[name], self._row_bytes(shape), stream)
        cuda.synchronize(stream)  # before anybody else writes there

    def close(self) -> None:
        """Waits for the GPU and frees everything; using the rows afterwards is an error."""
        self.closed = True
        self._cuda.use()
        self._graphs.clear()
        self._memory.close()

    def _check_open(self) -> None:
        if self.closed:
            raise DeviceError("The rows on the GPU are freed: the model was closed. Load it again.")

    # Memory ---------------------------------------------------------------------------------------

    def _cache(self, capacity: int) -> list[dict[str, int]]:
        """Addresses of past keys and values by name, one dict per buffer."""
        if capacity not in self._caches:
            shapes = cache_shapes(self._manifest, self.rows, capacity)
            self._caches[capacity] = [self._tensors(shapes) for _ in range(self._engines.buffers)]
        return self._caches[capacity]

    def _tensors(self, shapes: dict[str, Shape]) -> dict[str, int]:
        return {
            name: self._memory.allocate(self._row_bytes(shape)) for name, shape in shapes.items()
        }

    def _row_bytes(self, shape: Shape) -> int:
        return math.prod(shape) * self._engines.element

    def _scratch_on(self, stream: Handle, size: int) -> int:
        """Scratch memory for what runs on a stream; recorded work keeps the older, smaller one."""
        address, there = self._scratch.get(id(stream), (0, 0))
        if there < size:
            address = self._memory.allocate(size)
            self._scratch[id(stream)] = address, size
        return address

    # Recorded work --------------------------------------------------------------------------------

    def _encode(self, segments: Sequence[Segment]) -> None:
        """Encodes as many segments as some encoder was recorded for."""
        cuda, stream, count = self._cuda, self._encoding, len(segments)
        cuda.use()
        cuda.wait_here(self._encoded)  # the pinned memory may still be read
        shapes = encoder_shapes(self._manifest, count)
        for index, (_, features, previous_ids) in enumerate(segments):
            self._io["features"].array(np.float32, shapes["features"])[index] = features
            if previous_ids is not None:
                self._io["previous_ids"].array(np.int64, shapes["previous_ids"])[index] = (
                    previous_ids
                )
        cuda.launch(self._encoders[count], stream)
        cuda.wait(stream, self._moved)  # a row that moves away is read before it is overwritten
        one = cross_shapes(self._manifest, self._manifest.model.channels)
        row = cross_shapes(self._manifest, 1)
        for name, source in self._fresh.items():
            size, step = self._row_bytes(one[name]), self._row_bytes(row[name])
            for index, (slot, _, _) in enumerate(segments):
                cuda.copy(self._cross[name] + slot * step, source + index * size, size, stream)
        cuda.record(self._encoded, stream)
        cuda.wait(self._decoding, self._encoded)

    def _record_encoder(self, count: int) -> Handle:
        """The graph that encodes so many segments."""
        shapes = encoder_shapes(self._manifest, count)
        inputs = {name: self._io[name] for name in shapes if name in HOST_TYPES}
        addresses = {name: exchange.device for name, exchange in inputs.items()} | self._fresh
        context = self._bind(
            self._engines.encoder,
            self._batches.index(count),
            shapes={name: shapes[name] for name in inputs},
            addresses=addresses,
            stream=self._encoding,
        )

        def work() -> None:
            for name, exchange in inputs.items():
                self._upload(exchange, HOST_TYPES[name], shapes[name], self._encoding)
            self._execute(context, self._encoding)

        return self._memory.captured(work, self._encoding)

    def _record(self, bucket: int, capacity: int, read: int) -> Handle:
        """The graph of one step."""
        engines, stream = self._engines, self._decoding
        shapes = decoder_shapes(self._manifest, bucket, capacity)
        caches = self._cache(capacity)
        past, present = caches[read], caches[(read + 1) % engines.buffers]
        addresses = {n: exchange.device for n, exchange in self._io.items() if n in shapes}
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
            # A step may be done twice: it reads its token and position anew and writes one column.
            for name in ("token_ids", "positions"):
                self._upload(self._io[name], HOST_TYPES[name], shapes[name], stream)
            self._execute(context, stream)
            for name in ("top_ids", "top_log_probs"):
                twin, size = self._io[name], math.prod(shapes[name])
                size *= np.dtype(HOST_TYPES[name]).itemsize
                self._cuda.download(twin.host, twin.device, size, stream)

        return self._memory.captured(work, stream)

    def _upload(self, twin: Exchange, dtype: Any, shape: Shape, stream: Handle) -> None:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        self._cuda.upload(twin.device, twin.host, size, stream)

    def _bind(
        self,
        contexts: Contexts,
        profile: int,
        *,
        shapes: dict[str, Shape],
        addresses: dict[str, int],
        stream: Handle,
    ) -> Any:
        """A context of its own for each recording."""
        context = contexts.make(
            profile,
            shapes=shapes,
            addresses=addresses,
            stream=self._cuda.stream_handle(stream),
            scratch=lambda size: self._scratch_on(stream, size),
        )
        self._memory.keep(context)
        return context

    def _execute(self, context: Any, stream: Handle) -> None:
        if not context.execute_async_v3(self._cuda.stream_handle(stream)):
            raise DeviceError(
                "TensorRT could not run the engine; the log of `mt3_engines` says why."
            )
