"""The CPU backend: encoder and decoder step with ONNX Runtime.

One session per graph is shared by all workers, each of which runs it on its own thread with its own
lane; these sessions use a single thread.  Two workers with one thread each are faster than one
worker with two threads, because a worker that encodes (bound by arithmetic) and one that decodes
(bound by memory) complement each other.  A lane that works alone (a recording of one segment, live
input) has nobody to complement it: it gets sessions that use all threads, loaded when first needed.

All buffers belong to the lane and are bound by address: a step copies nothing, caches are updated
in place, and the encoder writes straight into the slots it fills.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_runtime.backends.ort_common import (
    MAX_THREADS,
    HostSlots,
    check_ports,
    check_runnable,
    check_threads,
    import_onnxruntime,
    return_freed_memory,
)
from mt3_runtime.backends.ort_session import open_session, reporting
from mt3_runtime.bundles.tiny_graphs import product_model
from mt3_runtime.bundles.weights_in_place import FOLDER
from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.errors import DeviceError

if TYPE_CHECKING:
    from mt3_runtime.backends.base import FloatArray, IdArray, Lane
    from mt3_runtime.bundles.bundle import Bundle, GraphFile, ModelSpec

#: Tokens a fresh cache has room for; it doubles when a row outgrows it.  Real segments have a
#: median of 41 to 64 tokens and 1024 at most, so most caches never grow beyond 128.
INITIAL_CAPACITY = 64

#: What the provider computes with, and NumPy's types of the caches.  It has no kernels for bf16,
#: and NumPy no name; fp16 products it does in fp32, which is slow.
KINDS: dict[str, type[np.generic]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}

#: Rows per worker while segments wait.  Weights are read once per step, so more rows make a token
#: cheaper: with 16 instead of 8 a song takes a tenth less time.  A slot in use costs about 8 MB.
SLOTS = 16

#: Entries of every session here.
ENTRIES = {
    # Encoder and decoder have a thread pool each; the idle one must not spin against the other.
    "session.force_spinning_stop": "1",
    # Pairs of Q and DQ are computed as they are written: the int8 kernels that ONNX Runtime would
    # put in their place saturate on CPUs without VNNI.
    "session.disable_quant_qdq": "1",
}


class OrtCpuBackend:
    """Implements `mt3_runtime.backends.base.Backend` with ONNX Runtime's CPU provider."""

    def __init__(
        self, bundle: Bundle, *, profile: str | None = None, threads: int | None = None
    ) -> None:
        """Checks and loads the graphs, both at the same time.

        Args:
            bundle: The model.
            profile: Graph profile; ``cpu`` where the bundle has it, else its first one.
            threads: Worker threads; all usable cores by default.

        Raises:
            BundleError: A graph is missing, damaged or refused by ONNX Runtime.
            DeviceError: The graphs' arithmetic is none of a CPU's, or of this one's.
            MissingDependencyError: ONNX Runtime is not installed.
            OptionError: ``threads`` is no number from 1 to 1024.
        """
        check_threads(threads)
        precision = bundle.manifest.precision
        check_runnable(bundle.manifest, "cpu", KINDS)
        if precision.arithmetic == "int8":
            check_integers(import_onnxruntime())
        self.self_type, self.cross_type = KINDS[precision.self_cache], KINDS[precision.cross_cache]
        if profile is None:
            profile = "cpu" if "cpu" in bundle.profiles else next(iter(bundle.profiles), "cpu")
        self.spec = bundle.manifest.model
        self.start_id = bundle.manifest.decoding.start_id
        self.max_tokens = bundle.manifest.decoding.max_tokens
        self.encoder_file, self.decoder_file = self._choose(bundle, profile)
        self.workers = threads or min(usable_cores(), MAX_THREADS)
        self.slots = SLOTS - 1 + self.spec.channels
        self._bundle = bundle
        self._sessions: dict[int, Sessions] = {}
        self._loading = threading.Lock()
        self.sessions(1)
        self.description = self._describe(import_onnxruntime().__version__)

    def sessions(self, threads: int) -> Sessions:
        """The two sessions that use so many threads, loaded at the same time if need be."""
        with self._loading:
            if threads not in self._sessions:
                files = (self.encoder_file, self.decoder_file)
                with ThreadPoolExecutor(len(files)) as pool:
                    loading = [pool.submit(self._load, file, threads) for file in files]
                self._sessions[threads] = Sessions(*(future.result() for future in loading))
                return_freed_memory()
            return self._sessions[threads]

    def _choose(self, bundle: Bundle, profile: str) -> tuple[GraphFile, GraphFile]:
        """The graphs that are run: encoder and decoder."""
        return bundle.graph("encoder", profile), bundle.graph("decoder", profile)

    def _load(self, graph: GraphFile, threads: int) -> Any:
        """A session of a graph that uses so many threads."""
        return load_graph(self._bundle, graph, threads)

    def _describe(self, version: str) -> str:
        profile = self.decoder_file.profile
        return f"cpu (ONNX Runtime {version}, profile {profile}, threads: {self.workers})"

    def lane(self, slots: int, *, alone: bool = False) -> Lane:
        sessions = self.sessions(self.workers if alone else 1)
        if self.decoder_file.cache == "concat":
            return ConcatLane(self, sessions, slots)
        return InPlaceLane(self, sessions, slots)

    def reporting(self) -> AbstractContextManager[None]:
        """Raises what ONNX Runtime raises while graphs run as a `BundleError`."""
        return reporting(
            f"A graph of {self._bundle.path} failed while it ran on the CPU",
            "If memory ran out, use fewer threads; otherwise export the model again.",
        )

    def warmup(self) -> None:
        """Does nothing: a run of silence reaches all there is to prepare."""

    def close(self) -> None:
        self._sessions.clear()


class Sessions(NamedTuple):
    """The two graphs, loaded."""

    encoder: Any
    decoder: Any


class _OrtLane(HostSlots):
    """What both kinds of cache share: encoding, and the cross cache."""

    def __init__(self, backend: OrtCpuBackend, sessions: Sessions, slots: int) -> None:
        super().__init__(backend.spec, slots, backend.start_id)
        self._sessions, self._reporting = sessions, backend.reporting
        self._cross = _cross_buffers(
            self.spec,
            slots,
            transposed=backend.decoder_file.cross_key_transposed,
            kind=backend.cross_type,
        )
        self._cache_type = backend.self_type
        self._encoding = sessions.encoder.io_binding()
        self._turned: dict[str, npt.NDArray[Any]] = {}
        if backend.encoder_file.cross_key_transposed != backend.decoder_file.cross_key_transposed:
            self._turned = {
                name: np.empty_like(buffer[: self.channels].swapaxes(2, 3), order="C")
                for name, buffer in self._cross.items()
                if name.startswith("cross_key")
            }

    def load(self, slot: int, features: FloatArray, previous_ids: IdArray | None = None) -> None:
        segment = np.ascontiguousarray(features[np.newaxis], np.float32)
        _bind(self._encoding.bind_input, "features", segment)
        if previous_ids is not None:
            memory = np.ascontiguousarray(previous_ids[np.newaxis], np.int64)
            _bind(self._encoding.bind_input, "previous_ids", memory)
        filled = slice(slot, slot + self.channels)
        for name, buffer in self._cross.items():
            _bind(self._encoding.bind_output, name, self._turned.get(name, buffer[filled]))
        with self._reporting():
            self._sessions.encoder.run_with_iobinding(self._encoding)
        for name, keys in self._turned.items():
            self._cross[name][filled] = keys.swapaxes(2, 3)
        self.restart(filled)

    def move(self, source: int, target: int) -> None:
        super().move(source, target)
        for buffer in self._cross.values():
            buffer[target] = buffer[source]


class InPlaceLane(_OrtLane):
    """Caches of fixed capacity, bound as input and output at once (profiles cpu and portable)."""

    def __init__(self, backend: OrtCpuBackend, sessions: Sessions, slots: int) -> None:
        super().__init__(backend, sessions, slots)
        self._binding = sessions.decoder.io_binding()
        self._returns_cross = backend.decoder_file.returns_cross
        self._bound_rows = 0
        self._capacity = min(INITIAL_CAPACITY, backend.max_tokens)
        self._cache = self._allocate(self._capacity)

    def step(self, rows: int) -> None:
        longest = int(self.positions[:rows].max()) + 1
        if longest > self._capacity:
            self._grow(rows, longest)
        if rows != self._bound_rows:
            self._bind_rows(rows)
        with self._reporting():
            self._sessions.decoder.run_with_iobinding(self._binding)
        self.positions[:rows] += 1

    def move(self, source: int, target: int) -> None:
        super().move(source, target)
        used = int(self.positions[source])
        for buffer in self._cache:
            buffer[target, :, :used] = buffer[source, :, :used]

    def _allocate(self, capacity: int) -> list[npt.NDArray[Any]]:
        """Keys and values of all layers, zeroed: unwritten positions must be finite numbers."""
        shape = (self.slots, self.spec.heads, capacity, self.spec.head_dim)
        return [_sparse_zeros(shape, self._cache_type) for _ in range(2 * self.spec.layers)]

    def _grow(self, rows: int, needed: int) -> None:
        old = self._cache
        while self._capacity < needed:
            self._capacity *= 2
        self._cache = self._allocate(self._capacity)
        for row in range(rows):
            used = int(self.positions[row])
            for new, buffer in zip(self._cache, old, strict=True):
                new[row, :, :used] = buffer[row, :, :used]
        self._bound_rows = 0

    def _bind_rows(self, rows: int) -> None:
        binding = self._binding
        for name in ("token_ids", "positions", "allowed"):
            _bind(binding.bind_input, name, getattr(self, name)[:rows])
        for name, buffer in self._cross.items():
            _bind(binding.bind_input, name, buffer[:rows])
            if self._returns_cross:
                _bind(binding.bind_output, f"present_{name}", buffer[:rows])
        for index, buffer in enumerate(self._cache):
            name = f"{('key', 'value')[index % 2]}_{index // 2}"
            _bind(binding.bind_input, f"past_{name}", buffer[:rows])
            _bind(binding.bind_output, f"present_{name}", buffer[:rows])
        _bind(binding.bind_output, "next_ids", self.token_ids[:rows])
        _bind(binding.bind_output, "top_ids", self.top_ids[:rows])
        _bind(binding.bind_output, "top_log_probs", self.top_log_probs[:rows])
        self._bound_rows = rows


class ConcatLane(_OrtLane):
    """Caches that grow by one column per step (profile compat).

    All rows share the columns; a row's own tokens are the last ``positions[row]`` of them, so a
    slot is refilled by resetting its position, and columns no row needs are cut off on the left.
    """

    #: Columns that must have become useless before they are worth a copy.
    TRIM = 64

    def __init__(self, backend: OrtCpuBackend, sessions: Sessions, slots: int) -> None:
        super().__init__(backend, sessions, slots)
        self._outputs = [output.name for output in sessions.decoder.get_outputs()]
        empty = np.zeros((slots, self.spec.heads, 0, self.spec.head_dim), self._cache_type)
        self._past = {
            f"past_{part}_{layer}": empty
            for layer in range(self.spec.layers)
            for part in ("key", "value")
        }

    def step(self, rows: int) -> None:
        feeds: dict[str, npt.NDArray[Any]] = {
            "token_ids": self.token_ids[:rows],
            "positions": self.positions[:rows],
            "allowed": self.allowed[:rows],
        }
        feeds |= {name: buffer[:rows] for name, buffer in self._cross.items()}
        feeds |= self._columns(rows)
        with self._reporting():
            outputs = self._sessions.decoder.run(self._outputs, feeds)
        found = dict(zip(self._outputs, outputs, strict=True))
        self.token_ids[:rows] = found["next_ids"]
        self.top_ids[:rows] = found["top_ids"]
        self.top_log_probs[:rows] = found["top_log_probs"]
        self._past = {name: found[name.replace("past", "present")] for name in self._past}
        self.positions[:rows] += 1

    def move(self, source: int, target: int) -> None:
        super().move(source, target)
        for buffer in self._past.values():
            buffer[target] = buffer[source]

    def _columns(self, rows: int) -> dict[str, npt.NDArray[Any]]:
        """The cache of the first ``rows`` slots, without columns that none of them needs."""
        first = next(iter(self._past.values()))
        have, columns = first.shape[0], first.shape[2]
        useless = columns - int(self.positions[:rows].max())
        cut = useless if useless >= self.TRIM else 0
        if rows == have and not cut:
            return self._past
        fresh = (max(rows - have, 0), self.spec.heads, columns - cut, self.spec.head_dim)
        return {
            name: np.concatenate([buffer[:rows, :, cut:], np.zeros(fresh, first.dtype)])
            for name, buffer in self._past.items()
        }


def check_integers(runtime: Any) -> None:
    """Multiplies the largest bytes there are, by the kernels for one row and for many.

    x86 processors without the VNNI instructions add pairs of products in 16 bits, and what does
    not fit they cut off; ONNX Runtime knows that and goes on.

    Raises:
        DeviceError: The products are wrong.
    """
    session = open_session(runtime, product_model())
    columns = np.full((64, 32), 127, np.int8)
    for rows in (1, 16):
        (found,) = session.run(
            None, {"rows": np.full((rows, 64), 255, np.uint8), "columns": columns}
        )
        if (found != 64 * 255 * 127).any():
            raise DeviceError(
                "This CPU multiplies 8-bit integers inexactly (an x86 processor without VNNI), so "
                "bundles with int8 arithmetic do not work on it; use the exact bundle."
            )


def load_graph(bundle: Bundle, graph: GraphFile, threads: int) -> Any:
    """Verifies one graph and makes a session of it that uses so many threads."""
    runtime, entries = import_onnxruntime(), dict(ENTRIES)
    placed = bundle.in_place(graph)
    if placed is not None:
        entries[FOLDER] = placed.folder
    source = bundle.verified(graph) if placed is None else placed.model
    with reporting(
        f"ONNX Runtime {runtime.__version__} cannot load {graph.file} of {bundle.path}",
        "Export the model again, or update ONNX Runtime.",
    ):
        session = open_session(runtime, source, threads=threads, entries=entries)
        check_ports(bundle, graph, session)
    bundle.check_unchanged(graph)
    return session


def _cross_buffers(
    spec: ModelSpec, slots: int, *, transposed: bool, kind: type[np.generic]
) -> dict[str, npt.NDArray[Any]]:
    """Cross-attention keys and values of all layers by tensor name."""
    value = (slots, spec.heads, spec.cross_rows, spec.head_dim)
    key = (slots, spec.heads, spec.head_dim, spec.cross_rows) if transposed else value
    return {
        f"cross_{part}_{layer}": np.empty(shape, kind)
        for layer in range(spec.layers)
        for part, shape in (("key", key), ("value", value))
    }


def _sparse_zeros(shape: tuple[int, ...], kind: type[np.generic]) -> npt.NDArray[Any]:
    """Zeros that take memory page by page, where they are first written.

    Rows end at very different lengths, so most of a cache is never used; NumPy would back it with
    huge pages of 2 MiB, each of which holds some of every head and is taken whole.
    """
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    pages = mmap.mmap(-1, np.dtype(kind).itemsize * math.prod(shape), **private)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, kind).reshape(shape)


def _bind(bind: Any, name: str, array: npt.NDArray[Any]) -> None:
    """Binds a contiguous array by address; its owner must outlive the binding."""
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
