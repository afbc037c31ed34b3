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
import logging
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mt3_runtime.backends.ort_common import (
    check_ports,
    check_runnable,
    check_threads,
    expected_shapes,
    import_onnxruntime,
)
from mt3_runtime.backends.ort_gpu.lane_widths import WIDTHS, has_room, lane_bytes, lane_widths
from mt3_runtime.backends.ort_gpu.ort_lane import CudaLane, padded
from mt3_runtime.backends.ort_gpu.ort_memory import ELEMENTS, Copier, DeviceSpec, free_memory
from mt3_runtime.backends.ort_gpu.ort_slots import Slots
from mt3_runtime.backends.ort_gpu.ort_threads import threads_of
from mt3_runtime.backends.ort_session import open_session
from mt3_runtime.diagnostics import cuda_libraries, wheels
from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.errors import BundleError, DeviceError, OptionError

if TYPE_CHECKING:
    from mt3_runtime.backends.base import IdArray
    from mt3_runtime.bundles.bundle import Bundle, GraphFile
    from mt3_runtime.bundles.manifest import Role

log = logging.getLogger("mt3_runtime")

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

#: Tokens a cache has room for before it doubles.  A GPU reads the columns in parallel, so it begins
#: where the CPU backend arrives after one doubling: nine of ten segments end within 128 tokens.
INITIAL_CAPACITY = 128

#: Rows per lane at most (`lane_widths`): while many segments wait, and the device has the memory.
SLOTS = WIDTHS[-1]

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
        self.capacities: Sequence[int] = _capacities(self.max_tokens)
        self.shapes = {
            role: expected_shapes(bundle.manifest, self.files[role]) for role in self.files
        }
        self.turns = threads_of(f"{self.place.memory}:{self.place.index}")
        self.encoder, self.decoder = self.turns.alone(lambda: self._load_both(bundle))
        self.copier = Copier(self._helper)
        self.graph_ids: Iterator[int] = itertools.count(1)
        self._idle = _Idle()
        self.slots = self._most_rows(SLOTS - 1 + self.spec.channels)
        self._prove()
        graphs = ", CUDA graphs" if self.cuda_graph else ""
        self.description = (
            f"{self.place.memory}:{self.place.index} (ONNX Runtime {self._runtime.__version__}, "
            f"profile {self.files['decoder'].profile}, lanes: {self.workers}{graphs})"
        )

    def lane(self, slots: int, *, alone: bool = False) -> CudaLane:  # noqa: ARG002  one device
        """Makes a lane, of the memory of an earlier one that is no longer used if there is one."""
        widths = lane_widths(slots, self.spec.channels)

        def make() -> CudaLane:
            memory = self._unused(widths) or self._allocate(widths[0])
            return CudaLane(self, memory, slots)

        with self.reporting():
            made = self.turns.alone(make)
        # Not `self`: a lane must not keep a closed backend alive.
        weakref.finalize(made, self._idle.keep, made.held)
        return made

    def wider(self, rows: int, most: int) -> Slots | None:
        """Memory for a lane that has so many rows and may have more; None if there is none."""
        widths = [w for w in lane_widths(most, self.spec.channels) if w > rows]
        found = self._unused(widths)
        if found is not None or not widths or not self._has_room(widths[0]):
            return found
        try:
            return self.turns.decoding.do(lambda: self._allocate(widths[0]))
        except Exception as error:  # noqa: BLE001  of ONNX Runtime or CUDA: others took the memory
            log.info("no memory for %d rows on %s: %s", widths[0], self.place.memory, error)
            return None

    def give_back(self, memory: Slots) -> None:
        """Keeps memory that a lane has outgrown for others."""
        self._idle.keep([memory])

    def warmup(self) -> None:
        """Encodes silence, and records the steps of all lanes in their first two caches.

        One segment in a thousand goes on beyond those; a step there is recorded when it comes.
        """
        features = np.zeros(self.shapes["encoder"]["features"], np.float32)
        lanes = [self.lane(self.slots) for _ in range(self.workers)]
        for lane in lanes:
            lane.load(0, features, self._no_memory())
            numbers = sorted({padded(rows, lane.room) for rows in range(1, lane.room + 1)})
            for begin in (0, *self.capacities[:-1][:1]):
                for rows in numbers:
                    lane.restart(slice(0, lane.room))
                    lane.positions[:] = begin
                    lane.step(rows)

    def close(self) -> None:
        self.turns.alone(self._free)

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Raises what ONNX Runtime raises as a `DeviceError`, as does a backend that was closed.

        Its exceptions share no base class below `Exception`.
        """
        if self._idle.closed:
            raise DeviceError("This model was closed; load it again.")
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
        if not self._idle.closed:
            self._idle.closed = True
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

    def _most_rows(self, wanted: int) -> int:
        """The largest number of rows that one lane has memory for."""
        widths = lane_widths(wanted, self.spec.channels)
        return max([widths[0], *(rows for rows in widths[1:] if self._has_room(rows))])

    def _has_room(self, rows: int) -> bool:
        """Whether a lane of so many rows, with all caches, finds its memory."""
        elements = {p.name: ELEMENTS[p.type][0] for p in self.decoder.get_inputs()}
        needed = lane_bytes(
            self.spec, rows, self.capacities,
            cross_element=elements["cross_key_0"], cache_element=elements["past_key_0"],
        )  # fmt: skip
        return has_room(needed, self.turns.decoding.do(lambda: free_memory(self.place)))

    def _unused(self, widths: Sequence[int]) -> Slots | None:
        """Memory that no lane has, of the largest of these numbers of rows."""
        for rows in reversed(widths):
            with contextlib.suppress(KeyError, IndexError):  # another lane may take it meanwhile
                return self._idle[rows].pop()
        return None

    def _allocate(self, slots: int) -> Slots:
        return Slots(
            self._runtime, self.place, slots,
            spec=self.spec, sessions=(self.encoder, self.decoder), shapes=self.shapes,
        )  # fmt: skip


class _Idle(dict[int, "list[Slots]"]):
    """Memory that no lane has, by its number of rows; none any more once it is closed."""

    closed = False

    def keep(self, held: list[Slots]) -> None:
        """Takes the memory of a lane that is gone."""
        for memory in [] if self.closed else held:
            self.setdefault(memory.slots, []).append(memory)


def _capacities(longest: int) -> list[int]:
    """Lengths of the caches that there may be: twice the one before until all tokens fit."""
    found = [min(INITIAL_CAPACITY, longest)]
    while found[-1] < longest:
        found.append(2 * found[-1])
    return found


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
