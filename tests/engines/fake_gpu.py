"""A GPU and a TensorRT made of NumPy and ONNX Runtime, for the logic around the real ones.

Device memory is host memory, a CUDA graph a list of closures, an engine the serialised ONNX graph
it would have been built from.  What the real ones would punish (work on a closed stream, an address
that was never allocated, a shape outside the profile, a cache that is not updated in place) raises.

Work is done late, as on a GPU: a stream holds it until something waits for it, or does some of it
before, in any of the orders that the waits allow (`FakeCuda.order`).  So a wait that is missing, or
for the wrong event, gives wrong tokens in one of them.  And a GPU has its capability: it refuses
arithmetic that it lacks, or computes zeros, as the real one does.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

from mt3_engines.storage.shapes import SEGMENTS
from mt3_engines.versions import RTX, TENSORRT, Maker
from mt3_runtime.errors import DeviceError

TYPES = {"float": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32,
         "bool": np.bool_}  # fmt: skip

#: Orders in which work is done: as soon as it may, not before somebody waits for it, as soon as it
#: may on the first or the second stream of each pair and late on the other, and by the dice.
ORDERS = ("soon", "late", "first", "second", 1, 2, 3)


@dataclass(eq=False)
class Event:
    """A mark: how often it was set, and how often that has come to pass."""

    asked: int = 0
    passed: int = 0


@dataclass
class Work:
    """Something a stream has to do; ``after`` holds it back until a mark has passed so often."""

    do: Callable[[], None]
    after: tuple[Event, int] | None = None


@dataclass(eq=False)
class Stream:
    """Work in its order, or a recording of it."""

    number: int
    todo: deque[Work] = field(default_factory=deque)
    recorded: list[Callable[[], None]] | None = None
    closed: bool = False


class FakeCuda:
    """Has the methods of `mt3_engines.running.cuda.Cuda`.

    Attributes:
        crossed: Bytes that went over the bus, up and down.
        captures: Graphs that were recorded.
        order: One of `ORDERS`.
        left: So many more things can be made; None for any number.
        size: Bytes of memory; more cannot be allocated.
        most: Bytes that were allocated at once, at most.
    """

    name = "FAKE GPU"

    def __init__(self, order: str | int = "late", capability: str = "9.0") -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.pins: dict[int, np.ndarray] = {}
        self.streams: list[Stream] = []
        self.open: set[Event] = set()
        self.graphs: list[list] = []
        self.scratch: dict[int, int] = {}
        self.crossed, self.captures = [0, 0], 0
        self.capability, self.order, self.left = capability, order, None
        self.size, self.most = 1 << 40, 0
        self._dice = random.Random(order)
        self._lock = threading.RLock()

    def use(self) -> None:
        pass

    def take(self) -> None:
        """Counts things that are made, and fails when there have been enough."""
        if self.left is not None:
            if not self.left:
                raise DeviceError("CUDA: out of memory")
            self.left -= 1

    def nothing_left(self) -> bool:
        """Whether all that was made was freed."""
        open_streams = [stream for stream in self.streams if not stream.closed]
        return not (self.memory or self.pins or self.open or self.graphs or open_streams)

    # Doing work -----------------------------------------------------------------------------------

    def enqueue(self, stream: Stream, work: Callable[[], None], after=None) -> None:
        with self._lock:
            assert not stream.closed
            if stream.recorded is not None:
                assert after is None, "a recording does not wait for others"
                stream.recorded.append(work)
                return
            stream.todo.append(Work(work, after))
            self._go_on()

    def _ready(self, streams=None) -> list[Stream]:
        def may(stream: Stream) -> bool:
            after = stream.todo[0].after if stream.todo else None
            return bool(stream.todo) and (after is None or after[0].passed >= after[1])

        return [stream for stream in streams or self.streams if may(stream)]

    def _go_on(self) -> None:
        """Does work that nobody waits for yet."""
        if self.order == "late":
            return
        if isinstance(self.order, int):
            for _ in range(self._dice.randrange(4)):
                if ready := self._ready():
                    self._dice.choice(ready).todo.popleft().do()
            return
        halves = {"soon": (0, 1), "first": (0,), "second": (1,)}[self.order]
        chosen = [stream for stream in self.streams if stream.number % 2 in halves]
        while chosen and (ready := self._ready(chosen)):
            ready[0].todo.popleft().do()

    def _until(self, done: Callable[[], bool], wanted: Stream | None) -> None:
        """Works until something is done: what it needs and, by the dice, something else."""
        with self._lock:
            while not done():
                ready = self._ready()
                assert ready, "everything waits for something"
                if isinstance(self.order, int):
                    stream = self._dice.choice(ready)
                else:
                    stream = wanted if wanted in ready else ready[0]
                stream.todo.popleft().do()

    def synchronize(self, stream: Stream) -> None:
        assert stream.recorded is None, "synchronising a stream that records"
        self._until(lambda: not stream.todo, stream)

    # Memory ---------------------------------------------------------------------------------------

    def used(self) -> int:
        return sum(len(array) for array in list(self.memory.values()))

    def available(self) -> int:
        return self.size - self.used()

    def allocate(self, size: int) -> int:
        self.take()
        if size > self.size - self.used():
            raise DeviceError("CUDA: cudaMalloc failed: out of memory.")
        self.most = max(self.most, self.used() + size)
        raw = np.zeros(size + 256, np.uint8)
        at = -raw.ctypes.data % 256
        array = raw[at : at + size]
        self.memory[array.ctypes.data] = array
        return array.ctypes.data

    def free(self, address: int) -> None:
        del self.memory[address]
        self.scratch.pop(address, None)

    def pinned(self, size: int) -> np.ndarray:
        self.take()
        array = np.zeros(size, np.uint8)
        self.pins[array.ctypes.data] = array
        return array

    def free_pinned(self, array: np.ndarray) -> None:
        del self.pins[array.ctypes.data]

    def check(self, address: int, size: int) -> None:
        there = list(self.memory.items())  # another lane may allocate meanwhile
        fits = any(at <= address and address + size <= at + len(a) for at, a in there)
        assert fits, "not device memory"

    def _copy(self, target: int, source: int, size: int, stream: Stream, *device: int) -> None:
        assert size > 0

        def work() -> None:
            for address in device:
                self.check(address, size)
            ctypes.memmove(target, source, size)

        for address in device:
            self.check(address, size)
        self.enqueue(stream, work)

    def upload(self, target, source, size, stream) -> None:
        assert source.ctypes.data in self.pins
        assert size <= len(source)
        self.crossed[0] += size
        self._copy(target, source.ctypes.data, size, stream, target)

    def download(self, target, source, size, stream) -> None:
        assert target.ctypes.data in self.pins
        assert size <= len(target)
        self.crossed[1] += size
        self._copy(target.ctypes.data, source, size, stream, source)

    def copy(self, target, source, size, stream) -> None:
        self._copy(target, source, size, stream, target, source)

    def copy_columns(self, target, source, *, width, height, stream) -> None:
        for line in range(height):
            ends = (target[0] + line * target[1], source[0] + line * source[1])
            assert width <= min(target[1], source[1])
            self.copy(*ends, width, stream)

    # Streams, marks, graphs -----------------------------------------------------------------------

    def stream(self) -> Stream:
        self.take()
        self.streams.append(Stream(len(self.streams)))
        return self.streams[-1]

    def stream_handle(self, stream: Stream) -> int:
        return stream.number

    def close_stream(self, stream: Stream) -> None:
        assert not stream.todo
        stream.closed = True

    def event(self) -> Event:
        self.take()
        event = Event()
        self.open.add(event)
        return event

    def close_event(self, event: Event) -> None:
        self.open.remove(event)

    def record(self, event: Event, stream: Stream) -> None:
        assert event in self.open
        assert stream.recorded is None
        event.asked += 1
        count = event.asked
        self.enqueue(stream, lambda: setattr(event, "passed", count))

    def wait_here(self, event: Event) -> None:
        assert event in self.open
        count = event.asked
        self._until(lambda: event.passed >= count, None)

    def wait(self, stream: Stream, event: Event) -> None:
        assert event in self.open
        self.enqueue(stream, lambda: None, (event, event.asked))

    def begin_capture(self, stream: Stream) -> None:
        assert stream.recorded is None
        stream.recorded = []

    def end_capture(self, stream: Stream) -> list[Callable[[], None]]:
        graph, stream.recorded = stream.recorded, None
        self.take()
        if not graph:
            raise DeviceError("CUDA: cudaStreamEndCapture failed: invalidated by another error")
        self.captures += 1
        self.graphs.append(graph)
        return graph

    def abandon_capture(self, stream: Stream) -> None:
        stream.recorded = None

    def launch(self, graph, stream) -> None:
        for work in graph:
            self.enqueue(stream, work)

    def close_graph(self, graph) -> None:
        self.graphs = [other for other in self.graphs if other is not graph]


class Severity(Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Strategy(Enum):
    """All strategies that a context may have."""

    STATIC, USER_MANAGED, DISABLED, WHOLE_GRAPH_CAPTURE, LAZY, EAGER = range(6)


class FakeTensorRt(SimpleNamespace):
    """Looks like ``tensorrt`` or ``tensorrt_rtx``, as far as engines are run with it.

    Attributes:
        finished: Numbers of the profiles that were finished on this GPU, as often as they were.
    """

    def __init__(
        self,
        cuda: FakeCuda,
        version: str,
        slots: tuple[int, ...],
        segments: tuple[int, ...] = SEGMENTS,
        maker: Maker = TENSORRT,
    ) -> None:
        module = self

        class Runtime:
            engine_host_code_allowed = False

            def __init__(self, logger) -> None:
                pass

            def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
                if data == b"broken":
                    return None
                return Engine(data, cuda, module, slots, segments)

        class Refitter:
            def __init__(self, engine, logger) -> None:
                self.engine = engine

            def refit_cuda_engine(self) -> bool:
                return self.engine.refitted

        class OnnxParserRefitter:
            def __init__(self, refitter, logger) -> None:
                self.engine = refitter.engine

            def refit_from_bytes(self, graph: bytes) -> bool:
                self.engine.refitted = bool(onnx.load_from_string(graph).graph.initializer)
                return self.engine.refitted

        super().__init__(
            __version__=version,
            ILogger=type("ILogger", (), {"Severity": Severity}),
            IProgressMonitor=type("IProgressMonitor", (), {}),
            Runtime=Runtime,
            Refitter=Refitter,
            OnnxParserRefitter=OnnxParserRefitter,
            ExecutionContextAllocationStrategy=Strategy,
            finished=[],
        )
        if maker is RTX:
            self.CudaGraphStrategy = self.DynamicShapesKernelSpecializationStrategy = Strategy


class RuntimeCache:
    """Finished kernels: those of one GPU, by engine and profile."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.head = f"kernels of {cuda.name} {cuda.capability}:".encode()
        self.profiles: set[int] = set()

    def serialize(self) -> bytes:
        return self.head + bytes(sorted(self.profiles))

    def deserialize(self, data: bytes) -> bool:
        if not data.startswith(self.head):
            return False
        self.profiles = set(data[len(self.head) :])
        return True


class RuntimeConfig:
    """What a context of TensorRT for RTX is made with."""

    cuda_graph_strategy = dynamic_shapes_kernel_specialization_strategy = None

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.cache, self.strategy = cuda, None, Strategy.STATIC

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.cuda)

    def set_runtime_cache(self, cache) -> None:
        self.cache = cache

    def get_runtime_cache(self) -> RuntimeCache:
        return self.cache

    def set_execution_context_allocation_strategy(self, strategy) -> None:
        self.strategy = strategy


class Engine:
    """One graph with fixed shapes."""

    def __init__(self, data: bytes, cuda: FakeCuda, module, slots, segments) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # fp8 runs so
        self.session = onnxruntime.InferenceSession(data, options)
        graph = onnx.load_from_string(data).graph
        self.in_place = any(node.op_type == "TensorScatter" for node in graph.node)
        self.cuda, self.module, self.refitted = cuda, module, False
        ports = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.names = [port.name for port in ports]
        self.slots = slots if "token_ids" in self.names else segments
        self.num_io_tensors = len(ports)
        # Turing has no fp32 matrix products in TensorRT for RTX: they come out as zeros.
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        products = [node for node in graph.node if node.op_type == "MatMul"]
        exact = any(types.get(name) == 1 for node in products for name in node.input)
        turing = hasattr(module, "CudaGraphStrategy") and cuda.capability == "7.5"
        self.zeros = turing and exact and "token_ids" in self.names

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 512 + 256 * self.slots[profile]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.cuda)

    def create_execution_context(self, how=Strategy.STATIC) -> Context | None:
        with contextlib.suppress(DeviceError):
            self.cuda.take()
            return Context(self, how)
        return None


class Context:
    """Runs the engine on what is at the addresses."""

    def __init__(self, engine: Engine, how) -> None:
        self.engine, self.rows, self.profile = engine, 1, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        self.config = None
        if hasattr(engine.module, "CudaGraphStrategy"):
            self.config = how
            assert how.cuda_graph_strategy is Strategy.DISABLED
            assert how.dynamic_shapes_kernel_specialization_strategy is Strategy.EAGER
            how = how.strategy
        assert how is Strategy.USER_MANAGED

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile, self.rows = profile, self.engine.slots[profile]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        port = next(port for port in self.engine.session.get_inputs() if port.name == name)
        fixed = [self.rows if index == 0 else dim for index, dim in enumerate(port.shape)]
        assert list(shape) == fixed, f"{name}: {shape} is not {fixed}"
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        self.addresses[name] = address
        return name in self.engine.names

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.shapes
        return 512 + 256 * self.rows

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        self.scratch = (address, size)

    def execute_async_v3(self, handle: int) -> bool:
        cuda = self.engine.cuda
        assert set(self.addresses) == set(self.engine.names)
        for name, address in self.addresses.items():
            if name.startswith("past_"):
                same = address == self.addresses[name.replace("past", "present", 1)]
                assert same is self.engine.in_place
        assert self.scratch[1] >= self.update_device_memory_size_for_shapes()
        cuda.check(*self.scratch)
        assert cuda.scratch.setdefault(self.scratch[0], handle) == handle, "shared by two streams"
        if self.config is not None and self.profile not in self.config.cache.profiles:
            self.config.cache.profiles.add(self.profile)
            self.engine.module.finished.append(self.profile)
        cuda.enqueue(cuda.streams[handle], self._run)
        return True

    def _run(self) -> None:
        session, feeds = self.engine.session, {}
        for port in session.get_inputs():
            feeds[port.name] = self._view(port, self.shapes[port.name]).copy()
        for port, value in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            if self.engine.zeros and port.name == "top_log_probs":
                value[:] = -np.log(feeds["allowed"].shape[-1])
            self._view(port, value.shape)[:] = value

    def _view(self, port, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(TYPES[port.type[7:-1]])
        size, address = int(np.prod(shape)) * dtype.itemsize, self.addresses[port.name]
        self.engine.cuda.check(address, size)
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return raw.view(dtype).reshape(shape)
