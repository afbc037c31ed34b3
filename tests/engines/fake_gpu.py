"""A GPU and a TensorRT made of NumPy and ONNX Runtime, for the logic around the real ones.

Device memory is host memory, a CUDA graph a list of closures, an engine the serialised ONNX graph
it would have been built from.  What the real ones would punish (work on a closed stream, an address
that was never allocated, a shape outside the profile, a cache that is not updated in place) raises.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import Enum
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

TYPES = {"float": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32,
         "bool": np.bool_}  # fmt: skip


class Stream:
    """Work is done at once, or recorded."""

    def __init__(self) -> None:
        self.recorded: list[Callable[[], None]] | None = None
        self.closed = False

    def do(self, work: Callable[[], None]) -> None:
        assert not self.closed
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)


class FakeCuda:
    """Has the methods of `mt3_engines.running.cuda.Cuda`.

    Attributes:
        crossed: Bytes that went over the bus, up and down.
        captures: Graphs that were recorded.
    """

    name, capability = "FAKE GPU", "9.0"

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.pins: dict[int, np.ndarray] = {}
        self.streams: list[Stream] = []
        self.open: set[object] = set()
        self.crossed, self.captures = [0, 0], 0

    def use(self) -> None:
        pass

    def allocate(self, size: int) -> int:
        raw = np.zeros(size + 256, np.uint8)
        at = -raw.ctypes.data % 256
        array = raw[at : at + size]
        self.memory[array.ctypes.data] = array
        return array.ctypes.data

    def free(self, address: int) -> None:
        del self.memory[address]

    def pinned(self, size: int) -> np.ndarray:
        array = np.zeros(size, np.uint8)
        self.pins[array.ctypes.data] = array
        return array

    def free_pinned(self, array: np.ndarray) -> None:
        del self.pins[array.ctypes.data]

    def _check(self, address: int, size: int) -> None:
        there = list(self.memory.items())  # another lane may allocate meanwhile
        fits = any(at <= address and address + size <= at + len(a) for at, a in there)
        assert fits, "not device memory"

    def _copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        assert size > 0
        stream.do(lambda: ctypes.memmove(target, source, size) and None)

    def upload(self, target, source, size, stream) -> None:
        self._check(target, size)
        assert source.ctypes.data in self.pins
        assert size <= len(source)
        self.crossed[0] += size
        self._copy(target, source.ctypes.data, size, stream)

    def download(self, target, source, size, stream) -> None:
        self._check(source, size)
        assert target.ctypes.data in self.pins
        assert size <= len(target)
        self.crossed[1] += size
        self._copy(target.ctypes.data, source, size, stream)

    def copy(self, target, source, size, stream) -> None:
        self._check(target, size)
        self._check(source, size)
        self._copy(target, source, size, stream)

    def copy_columns(self, target, source, *, width, height, stream) -> None:
        for line in range(height):
            ends = (target[0] + line * target[1], source[0] + line * source[1])
            assert width <= min(target[1], source[1])
            self.copy(*ends, width, stream)

    def stream(self) -> Stream:
        self.streams.append(Stream())
        return self.streams[-1]

    def stream_handle(self, stream: Stream) -> int:
        return self.streams.index(stream)

    def synchronize(self, stream: Stream) -> None:
        assert stream.recorded is None, "synchronising a stream that records"

    def close_stream(self, stream: Stream) -> None:
        stream.closed = True

    def event(self) -> object:
        event = object()
        self.open.add(event)
        return event

    def record(self, event, stream) -> None:
        assert event in self.open
        assert stream.recorded is None

    wait_here = close_event = lambda self, event: self.open.remove(event) or self.open.add(event)

    def wait(self, stream, event) -> None:
        self.record(event, stream)

    def begin_capture(self, stream: Stream) -> None:
        assert stream.recorded is None
        stream.recorded = []

    def end_capture(self, stream: Stream) -> list[Callable[[], None]]:
        graph, stream.recorded = stream.recorded, None
        assert graph
        self.captures += 1
        return graph

    def launch(self, graph, stream) -> None:
        for work in graph:
            stream.do(work)

    def close_graph(self, graph) -> None:
        graph.clear()


class Severity(Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class FakeTensorRt(SimpleNamespace):
    """Looks like the module ``tensorrt``, as far as engines are run with it."""

    def __init__(self, cuda: FakeCuda, version: str, slots: tuple[int, ...]) -> None:
        class Runtime:
            engine_host_code_allowed = False

            def __init__(self, logger) -> None:
                pass

            def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
                return None if data == b"broken" else Engine(data, cuda, slots)

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
        )


class Engine:
    """One graph with fixed shapes."""

    def __init__(self, data: bytes, cuda: FakeCuda, slots: tuple[int, ...]) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # fp8 runs so
        self.session = onnxruntime.InferenceSession(data, options)
        graph = onnx.load_from_string(data).graph
        self.in_place = any(node.op_type == "TensorScatter" for node in graph.node)
        self.cuda, self.refitted = cuda, False
        ports = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.names = [port.name for port in ports]
        self.slots = slots if "token_ids" in self.names else (1,)
        self.num_io_tensors = len(ports)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    """Runs the engine on what is at the addresses."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.rows = engine, 1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.rows = self.engine.slots[profile]
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

    def execute_async_v3(self, handle: int) -> bool:
        assert set(self.addresses) == set(self.engine.names)
        for name, address in self.addresses.items():
            if name.startswith("past_"):
                same = address == self.addresses[name.replace("past", "present", 1)]
                assert same is self.engine.in_place
        self.engine.cuda.streams[handle].do(self._run)
        return True

    def _run(self) -> None:
        session, feeds = self.engine.session, {}
        for port in session.get_inputs():
            feeds[port.name] = self._view(port, self.shapes[port.name]).copy()
        for port, value in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            self._view(port, value.shape)[:] = value

    def _view(self, port, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(TYPES[port.type[7:-1]])
        size, address = int(np.prod(shape)) * dtype.itemsize, self.addresses[port.name]
        self.engine.cuda._check(address, size)
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return raw.view(dtype).reshape(shape)
