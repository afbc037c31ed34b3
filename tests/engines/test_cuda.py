"""The thin layer over the CUDA bindings, with a module that remembers its calls."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from mt3_engines.optional import find_place
from mt3_engines.running.cuda import Cuda
from mt3_runtime.errors import DeviceError


class Runtime:
    """Answers like ``cuda.bindings.runtime``: the error first.

    Attributes:
        calls: Names and arguments.
        failing: The function that fails.
    """

    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down", cudaMemcpyDeviceToDevice="on"
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="local")  # noqa: N815

    def __init__(self) -> None:
        self.calls, self.failing = [], ""
        self.memory = ctypes.create_string_buffer(b"x" * 64, 64)

    def __getattr__(self, name):
        results = {
            "cudaGetDeviceCount": 2,
            "cudaGetDeviceProperties": SimpleNamespace(name=b"NVIDIA H200", major=9, minor=0),
            "cudaMalloc": 4096,
            "cudaHostAlloc": ctypes.addressof(self.memory),
            "cudaStreamCreateWithFlags": 7,
            "cudaEventCreateWithFlags": 8,
            "cudaStreamEndCapture": "graph",
            "cudaGraphInstantiate": "exec",
            "cudaGetErrorString": b"out of memory",
        }

        def call(*arguments):
            self.calls.append((name, *arguments))
            return (2 if name == self.failing else 0, *([results[name]] if name in results else []))

        return call


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@pytest.fixture
def cuda(runtime) -> Cuda:
    made = Cuda(runtime, 1)
    runtime.calls.clear()
    return made


def test_a_gpu_says_what_it_is(cuda):
    place = find_place(SimpleNamespace(__version__="10.16.1"), cuda)
    assert (place.gpu, place.capability, place.tensorrt) == ("NVIDIA H200", "9.0", "10.16.1")


def test_a_gpu_that_is_not_there(runtime):
    with pytest.raises(DeviceError, match="no GPU 2; this machine has 2"):
        Cuda(runtime, 2)


def test_errors_name_the_call(cuda, runtime):
    runtime.failing = "cudaMalloc"
    with pytest.raises(DeviceError, match="cudaMalloc failed: out of memory"):
        cuda.allocate(10)


def test_memory_is_cleared_before_it_is_used(cuda, runtime):
    assert cuda.allocate(10) == 4096
    assert runtime.calls == [
        ("cudaMalloc", 10),
        ("cudaMemsetAsync", 4096, 0, 10, 7),
        ("cudaStreamSynchronize", 7),
    ]
    array = cuda.pinned(64)
    assert (array.dtype, array.shape) == (np.uint8, (64,))
    assert not array.any()
    assert runtime.memory.raw == bytes(64)
    cuda.free_pinned(array)
    cuda.free(4096)
    assert runtime.calls[-2:] == [
        ("cudaFreeHost", ctypes.addressof(runtime.memory)),
        ("cudaFree", 4096),
    ]


def test_copies(cuda, runtime):
    host = np.zeros(64, np.uint8)
    cuda.upload(1, host, 2, 7)
    cuda.download(host, 1, 2, 7)
    cuda.copy(1, 2, 3, 7)
    cuda.copy_columns((1, 10), (2, 20), width=5, height=6, stream=7)
    at = host.ctypes.data
    assert runtime.calls == [
        ("cudaMemcpyAsync", 1, at, 2, "up", 7),
        ("cudaMemcpyAsync", at, 1, 2, "down", 7),
        ("cudaMemcpyAsync", 1, 2, 3, "on", 7),
        ("cudaMemcpy2DAsync", 1, 10, 2, 20, 5, 6, "on", 7),
    ]


def test_streams_and_events(cuda, runtime):
    stream, event = cuda.stream(), cuda.event()
    assert cuda.stream_handle(stream) == 7
    cuda.record(event, stream)
    cuda.wait(stream, event)
    cuda.wait_here(event)
    cuda.synchronize(stream)
    cuda.close_event(event)
    cuda.close_stream(stream)
    assert [call[0] for call in runtime.calls] == [
        "cudaStreamCreateWithFlags",
        "cudaEventCreateWithFlags",
        "cudaEventRecord",
        "cudaStreamWaitEvent",
        "cudaEventSynchronize",
        "cudaStreamSynchronize",
        "cudaEventDestroy",
        "cudaStreamDestroy",
    ]


def test_graphs(cuda, runtime):
    cuda.begin_capture(7)
    graph = cuda.end_capture(7)
    cuda.launch(graph, 7)
    cuda.close_graph(graph)
    assert runtime.calls == [
        ("cudaStreamBeginCapture", 7, "local"),
        ("cudaStreamEndCapture", 7),
        ("cudaGraphInstantiate", "graph", 0),
        ("cudaGraphDestroy", "graph"),
        ("cudaGraphLaunch", "exec", 7),
        ("cudaGraphExecDestroy", "exec"),
    ]


def test_free_memory_is_asked_of_this_gpu(runtime, cuda):
    runtime.cudaMemGetInfo = lambda: (0, 5 << 30, 8 << 30)
    assert cuda.available() == 5 << 30
    assert runtime.calls[-1] == ("cudaSetDevice", 1)
    runtime.cudaMemGetInfo = lambda: (2, 0, 0)
    with pytest.raises(DeviceError, match="CUDA: cudaMemGetInfo failed: out of memory"):
        cuda.available()
