"""The CUDA backend: encoder and decoder step with ONNX Runtime on an NVIDIA GPU, or nowhere.

ONNX Runtime falls back to the CPU without an error when its CUDA libraries do not load, and runs
single operators there that have no CUDA kernel, copying their tensors to and fro.  Both are looked
for when the graphs are loaded, and refused with the names of the nodes.

Caches, cross keys and values and the encoder's work stay on the device (`ort_memory`).  What passes
the bus per step is one copy of the rows' tokens and positions there and one of the two best ids and
their log-probabilities back; the mask only where it changed.  The token ids take this way too,
although a graph could feed its own output back: ONNX Runtime runs a step several times over while
it records it as a CUDA graph, so a step must not depend on how often it is run.

A step of this small network is dozens of microseconds of arithmetic behind two hundred kernel
launches, so it is recorded as a CUDA graph, once per number of rows and capacity.  Rows are padded
to few different numbers for that.  Recording forbids any other work on the device, and a graph
belongs to the thread that recorded it, so sessions are run by threads of the device's own
(`ort_threads`).  The encoder and the decoder step have sessions, and so streams, of their own: one
lane encodes while another decodes.  Lanes share these sessions and their weights; their buffers and
graphs outlive them and are taken over by the next lanes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mt3_runtime.backends.ort_common import (
    HostSlots,
    check_ports,
    check_runnable,
    check_threads,
    expected_shapes,
    import_onnxruntime,
)
from mt3_runtime.backends.ort_memory import Copier, DeviceSpec
from mt3_runtime.backends.ort_session import open_session
from mt3_runtime.backends.ort_slots import Slots
from mt3_runtime.backends.ort_threads import threads_of
from mt3_runtime.diagnostics import cuda_libraries, wheels
from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.errors import BundleError, DeviceError, OptionError

if TYPE_CHECKING:
    from mt3_runtime.backends.base import FloatArray, IdArray
    from mt3_runtime.bundles.bundle import Bundle, GraphFile
    from mt3_runtime.bundles.manifest import Role

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

#: Tokens a cache has room for before it doubles.  A GPU reads the columns in parallel, so it begins
#: where the CPU backend arrives after one doubling: nine of ten segments end within 128 tokens.
INITIAL_CAPACITY = 128

#: Rows per lane while segments wait.  The weights are read once per step whatever the rows, and up
#: to this many the products of a step stay bound by reading them.
SLOTS = 32

#: Lanes: one computes features and notes on the host while others keep the device busy.
WORKERS = 4

#: Options of the provider, as of ONNX Runtime 1.28 to 1.31.  TF32 rounds the factors of fp32
#: products to 10 bits, and tokens change; the exhaustive search for convolutions takes minutes.
OPTIONS = {
    "use_tf32": "0",
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
}

#: Names options for all models of a process: ``use_tf32=1,gpu_mem_limit=4294967296``.
OPTIONS_VARIABLE = "MT3_CUDA_OPTIONS"

#: What the provider computes with.
KINDS = ("fp32", "fp16", "bf16")

#: Operators that have CUDA kernels for all types: on the CPU they only reckon with shapes, which
#: ONNX Runtime keeps on the host on purpose.
SHAPE_OPERATORS = ("Cast", "Concat", "Gather", "Shape", "Slice", "Squeeze", "Unsqueeze")

ROLES: tuple[Role, ...] = ("encoder", "decoder")


class OrtCudaBackend:
    """Implements `mt3_runtime.backends.base.Backend` with ONNX Runtime's CUDA provider."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        index: int = 0,
        threads: int | None = None,
        profile: str | None = None,
        cuda_graph: bool = True,
        options: dict[str, str] | None = None,
        place: DeviceSpec | None = None,
    ) -> None:
        """Checks and loads the graphs, and runs each once.

        Args:
            bundle: The model.
            index: Which GPU.
            threads: Lanes, each driven by a thread of the host; at most four by default.
            profile: Graph profile; ``portable`` by default.
            cuda_graph: Record steps as CUDA graphs; so does the option ``enable_cuda_graph``.
            options: Options of the CUDA provider over those of `OPTIONS`, such as
                ``gpu_mem_limit`` (bytes).
            place: Runs elsewhere than on a GPU, for tests.

        Raises:
            BundleError: A graph is missing or damaged.
            DeviceError: The device cannot run the graphs, or not all of their nodes, or knows no
                such arithmetic.
            MissingDependencyError: ONNX Runtime is not installed.
            OptionError: ``threads`` is no number from 1 to 1024, or the profile's cache grows.
        """
        check_threads(threads)
        check_runnable(bundle.manifest, "cuda", KINDS)
        self._runtime = import_onnxruntime()
        asked = {"device_id": str(index), **OPTIONS, **(options or {})}
        recording = asked.pop("enable_cuda_graph", "1") != "0"  # of decoders alone
        self.place = place or DeviceSpec(CUDA, "cuda", index, asked)
        self.cuda_graph = cuda_graph and recording and self.place.memory == "cuda"
        if self.place.memory == "cuda":
            cuda_libraries.preload(self._runtime)
            self._refuse(cuda_libraries.trouble(index))
        self.spec, decoding = bundle.manifest.model, bundle.manifest.decoding
        self.start_id, self.max_tokens = decoding.start_id, decoding.max_tokens
        self.files = {role: bundle.graph(role, profile or "portable") for role in ROLES}
        if self.files["decoder"].cache != "in_place":
            raise OptionError(
                f"profile {profile} cannot run on device cuda: its cache has no fixed place. "
                "Use profile portable."
            )
        self.workers = threads or min(WORKERS, usable_cores())
        self.slots = SLOTS - 1 + self.spec.channels
        self.shapes = {
            role: expected_shapes(bundle.manifest, self.files[role]) for role in self.files
        }
        self.turns = threads_of(f"{self.place.memory}:{self.place.index}")
        self.encoder, self.decoder = self.turns.alone(lambda: self._load_both(bundle))
        self.copier = Copier(self._helper)
        self.graph_ids = itertools.count(1)
        self._idle: dict[int, list[Slots]] = {}
        self._prove()
        graphs = ", CUDA graphs" if self.cuda_graph else ""
        self.description = (
            f"{self.place.memory}:{self.place.index} (ONNX Runtime {self._runtime.__version__}, "
            f"profile {self.files['decoder'].profile}, lanes: {self.workers}{graphs})"
        )

    def lane(self, slots: int, *, alone: bool = False) -> CudaLane:  # noqa: ARG002  one device
        """Makes a lane, of the memory of an earlier one that is no longer used if there is one."""
        idle = self._idle.setdefault(slots, [])

        def make() -> tuple[CudaLane, Slots]:
            memory = idle.pop() if idle else self._allocate(slots)
            return CudaLane(self, memory), memory

        with self.reporting():
            made, memory = self.turns.alone(make)
        # Not `self`: a lane must not keep a closed backend alive.
        weakref.finalize(made, idle.append, memory)
        return made

    def warmup(self) -> None:
        """Encodes silence, and records the steps of all numbers of rows in every first cache."""
        features = np.zeros(self.shapes["encoder"]["features"], np.float32)
        lanes = [self.lane(self.slots) for _ in range(self.workers)]
        for lane in lanes:
            lane.load(0, features, self._no_memory())
            for rows in sorted({padded(rows, self.slots) for rows in range(1, self.slots + 1)}):
                lane.restart(slice(0, self.slots))
                lane.step(rows)

    def close(self) -> None:
        self.turns.alone(self._free)

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Raises what ONNX Runtime raises as a `DeviceError`.

        Its exceptions share no base class below `Exception`.
        """
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split())
            raise DeviceError(
                f"{self.place.memory}:{self.place.index} failed: {reason}. If its memory is full, "
                "use fewer threads; otherwise `mt3 doctor` says what works."
            ) from error

    def _free(self) -> None:
        self._idle.clear()
        del self.encoder, self.decoder, self.copier

    def _load_both(self, bundle: Bundle) -> tuple[Any, Any]:
        encoder = self._load(bundle, self.files["encoder"])
        return encoder, self._load(bundle, self.files["decoder"], cuda_graph=self.cuda_graph)

    def _load(self, bundle: Bundle, file: GraphFile, *, cuda_graph: bool = False) -> Any:
        """A session of a graph, none of whose nodes runs elsewhere."""
        source, extra = bundle.verified(file), {"enable_cuda_graph": "1"} if cuda_graph else {}
        try:
            session, failure = self._session(source, extra), None
        # ONNX Runtime's exceptions share no base below Exception.
        except Exception as error:
            if self.place.memory == "cpu":
                raise BundleError(f"ONNX Runtime cannot load {file.file}: {error}") from error
            # Recording graphs is refused without saying which node is in the way.
            session, failure = self._permissive(source, error), error
        self._refuse_strays(file, session)
        if failure is not None:
            raise self._unusable(str(failure)) from failure
        check_ports(bundle, file, session)
        bundle.check_unchanged(file)
        return session

    def _permissive(self, source: str | bytes, error: Exception) -> Any:
        try:
            return self._session(source, {})
        except Exception:  # noqa: BLE001  the first error says more
            raise self._unusable(str(error)) from error

    def _session(self, source: str | bytes, extra: dict[str, str]) -> Any:
        session = open_session(  # of one thread: the host has nothing to compute
            self._runtime,
            source,
            providers=[(self.place.provider, {**self.place.options, **extra})],
            entries={"session.record_ep_graph_assignment_info": "1"},
        )
        used = session.get_providers()
        if used[0] != self.place.provider:
            raise DeviceError(f"ONNX Runtime fell back to {used[0]}")
        return session

    def _refuse_strays(self, file: GraphFile, session: Any) -> None:
        """Raises if any node of the graph was given to another provider.

        An encoder may count rows on the host; a step that does cannot be recorded.
        """
        strays = [
            f"{node.name} ({node.op_type}) on {part.ep_name}"
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name != self.place.provider
            for node in part.get_nodes()
            if file.role == "decoder" or node.op_type not in SHAPE_OPERATORS
        ]
        if strays:
            more = f" and {len(strays) - 3} more" if len(strays) > 3 else ""
            raise DeviceError(
                f"{file.file} would not run on {self.place.provider} as a whole: "
                f"{', '.join(strays[:3])}{more}. ONNX Runtime {self._runtime.__version__} has no "
                "such kernels; graphs of profile portable need 1.28 or newer: "
                f"{wheels.gpu_remedy()}."
            )

    def _refuse(self, trouble: str) -> None:
        if trouble:
            raise self._unusable(trouble)

    def _unusable(self, reason: str) -> DeviceError:
        return DeviceError(
            f"device cuda:{self.place.index} was asked for, but does not work here: "
            f"{' '.join(reason.split())}. `mt3 doctor` says what is missing and how to install it; "
            "device cpu works without."
        )

    def _helper(self, model: bytes) -> Any:
        return self._session(model, {})

    def _prove(self) -> None:
        """Runs each graph once, so that a device that cannot run them is refused at the door."""
        lane = self.lane(self.spec.channels)
        features = np.zeros(self.shapes["encoder"]["features"], np.float32)
        lane.load(0, features, self._no_memory())
        lane.step(self.spec.channels)
        del lane
        self.turns.alone(self._idle.clear)

    def _no_memory(self) -> IdArray | None:
        shape = self.shapes["encoder"].get("previous_ids")
        return None if shape is None else np.full(shape, self.start_id, np.int64)

    def _allocate(self, slots: int) -> Slots:
        return Slots(
            self._runtime, self.place, slots,
            spec=self.spec, sessions=(self.encoder, self.decoder), shapes=self.shapes,
        )  # fmt: skip


class CudaLane(HostSlots):
    """Implements `mt3_runtime.backends.base.Lane` over `Slots`; used by one thread."""

    def __init__(self, backend: OrtCudaBackend, memory: Slots) -> None:
        super().__init__(backend.spec, memory.slots, backend.start_id)
        self._backend, self._memory, self._turns = backend, memory, backend.turns
        self._capacity = min(INITIAL_CAPACITY, backend.max_tokens)
        self._masks: FloatArray | Any = None  # what the device has of `allowed`
        self._encoding = backend.encoder.io_binding()
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
                self._turns.alone(self._grow)
            key = (padded(rows, self.slots), self._capacity)
            if key in self._memory.recorded:
                self._turns.decoding.do(lambda: self._decode(rows, key))
            else:
                self._turns.alone(lambda: self._decode(rows, key))
                self._memory.recorded.add(key)
        found = self._memory.given.arrays
        self.top_ids[:rows] = found["top_ids"][:rows]
        self.top_log_probs[:rows] = found["top_log_probs"][:rows]
        self.token_ids[:rows] = self.top_ids[:rows, :1]
        self.positions[:rows] += 1

    def move(self, source: int, target: int) -> None:
        super().move(source, target)
        memory, copier = self._memory, self._backend.copier
        buffers = [*memory.cross.values(), *memory.cache(self._capacity)]
        with self._backend.reporting():
            self._turns.decoding.do(lambda: copier.move(buffers, source, target))

    def _decode(self, rows: int, key: tuple[int, int]) -> None:
        """One step of so many rows, between the host's arrays."""
        self._send(rows)
        ids = self._backend.graph_ids if self._backend.cuda_graph else None
        binding, options = self._memory.step(*key, ids)
        self._backend.decoder.run_with_iobinding(binding, options)
        self._memory.given.read()

    def _send(self, rows: int) -> None:
        """Tells the device what the rows read; those behind them are at the start of a segment."""
        taken = self._memory.taken
        for name, array in (("token_ids", self.token_ids), ("positions", self.positions)):
            taken.arrays[name][:rows] = array[:rows]
        taken.arrays["token_ids"][rows:] = self._start_id
        taken.arrays["positions"][rows:] = 0
        taken.write()
        if self._masks is None or not np.array_equal(self._masks, self.allowed):
            self._memory.allowed.write(self.allowed)
            self._masks = self.allowed.copy()

    def _grow(self) -> None:
        old = self._memory.cache(self._capacity)
        self._backend.copier.double(old, self._memory.cache(2 * self._capacity))
        self._capacity *= 2


def options_of_environment() -> dict[str, str]:
    """What ``MT3_CUDA_OPTIONS`` asks for.

    Raises:
        OptionError: It is no list of names and values.
    """
    text = os.environ.get(OPTIONS_VARIABLE, "")
    pairs = [pair.strip().partition("=") for pair in text.split(",") if pair.strip()]
    if not all(name and value for name, _, value in pairs):
        raise OptionError(
            f"{OPTIONS_VARIABLE} must be like use_tf32=1,gpu_mem_limit=4294967296, got {text!r}."
        )
    return {name: value for name, _, value in pairs}


def padded(rows: int, slots: int) -> int:
    """The next of the numbers of rows that steps are recorded for: 1, 2, 4, 8, 16, 24, ... slots.

    Up to 8 rows cost as much as one, and a multiple of 8 is what matrix units work in.
    """
    step = 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 8) * 8
    return min(step, slots)
