"""Calls of the CUDA runtime that engines need, with errors as exceptions.

Wraps ``cuda.bindings.runtime`` (package cuda-bindings), whose functions return their error first.
Addresses are plain ints, as TensorRT takes them; streams, events and graphs are the bindings' own
objects.  Memory that is pinned comes as a NumPy array over it.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import DeviceError

Handle = Any
Bytes = npt.NDArray[np.uint8]

#: cudaStreamNonBlocking and cudaEventDisableTiming.
_NON_BLOCKING, _NO_TIMING = 1, 2


class Cuda:
    """One GPU; every thread that uses it must call `use` first.

    Attributes:
        name: Of the GPU.
        capability: Its compute capability, such as ``9.0``.
    """

    def __init__(self, runtime: Any, index: int) -> None:
        """Args: the module ``cuda.bindings.runtime``, and which GPU.

        Raises:
            DeviceError: There is no driver, or no such GPU.
        """
        self._cuda, self._index = runtime, index
        count = self._call("cudaGetDeviceCount")
        if index >= count:
            raise DeviceError(f"There is no GPU {index}; this machine has {count}.")
        self.use()
        properties = self._call("cudaGetDeviceProperties", index)
        name = properties.name
        self.name = name.decode() if isinstance(name, bytes) else str(name)
        self.capability = f"{properties.major}.{properties.minor}"
        self._kinds = runtime.cudaMemcpyKind
        self._clearing = self.stream()

    def use(self) -> None:
        """Makes this the calling thread's GPU."""
        self._call("cudaSetDevice", self._index)

    # Memory --------------------------------------------------------------------------------------

    def allocate(self, size: int) -> int:
        """Device memory, zeroed: unwritten parts of a cache must hold finite numbers."""
        address = int(self._call("cudaMalloc", size))
        # Not on the default stream: the others do not wait for it.
        try:
            self._call("cudaMemsetAsync", address, 0, size, self._clearing)
            self.synchronize(self._clearing)
        except BaseException:
            with contextlib.suppress(DeviceError):
                self.free(address)
            raise
        return address

    def available(self) -> int:
        """Bytes of the GPU's memory that nobody has."""
        self.use()
        error, left, _ = self._cuda.cudaMemGetInfo()
        self._check("cudaMemGetInfo", error)
        return int(left)

    def free(self, address: int) -> None:
        """Gives device memory back."""
        self._call("cudaFree", address)

    def pinned(self, size: int) -> Bytes:
        """Zeroed host memory that the GPU can copy from and to by itself: uint8 [size]."""
        address = int(self._call("cudaHostAlloc", size, 0))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        array[:] = 0
        return array

    def free_pinned(self, array: Bytes) -> None:
        """Gives pinned memory back; the array must not be used any more."""
        self._call("cudaFreeHost", array.ctypes.data)

    def upload(self, target: int, source: Bytes, size: int, stream: Handle) -> None:
        """Copies the first bytes of pinned memory to the device."""
        kind = self._kinds.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source.ctypes.data, size, kind, stream)

    def download(self, target: Bytes, source: int, size: int, stream: Handle) -> None:
        """Copies from the device to pinned memory."""
        kind = self._kinds.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, source, size, kind, stream)

    def copy(self, target: int, source: int, size: int, stream: Handle) -> None:
        """Copies on the device."""
        kind = self._kinds.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def copy_columns(
        self,
        target: tuple[int, int],
        source: tuple[int, int],
        *,
        width: int,
        height: int,
        stream: Handle,
    ) -> None:
        """Copies the first ``width`` bytes of ``height`` lines on the device.

        Args:
            target: Address of the first line, bytes from line to line.
            source: The same.
            width: Bytes per line.
            height: Lines.
            stream: Where.
        """
        kind = self._kinds.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", *target, *source, width, height, kind, stream)

    # Order ---------------------------------------------------------------------------------------

    def stream(self) -> Handle:
        """A stream that waits for no other."""
        return self._call("cudaStreamCreateWithFlags", _NON_BLOCKING)

    def stream_handle(self, stream: Handle) -> int:
        """A stream as TensorRT takes it."""
        return int(stream)

    def synchronize(self, stream: Handle) -> None:
        """Waits until a stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def close_stream(self, stream: Handle) -> None:
        """Frees a stream."""
        self._call("cudaStreamDestroy", stream)

    def event(self) -> Handle:
        """A mark to wait for."""
        return self._call("cudaEventCreateWithFlags", _NO_TIMING)

    def record(self, event: Handle, stream: Handle) -> None:
        """Sets the mark behind what a stream was given so far."""
        self._call("cudaEventRecord", event, stream)

    def wait(self, stream: Handle, event: Handle) -> None:
        """Lets a stream wait for a mark."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def wait_here(self, event: Handle) -> None:
        """Waits for a mark."""
        self._call("cudaEventSynchronize", event)

    def close_event(self, event: Handle) -> None:
        """Frees a mark."""
        self._call("cudaEventDestroy", event)

    # Graphs --------------------------------------------------------------------------------------

    def begin_capture(self, stream: Handle) -> None:
        """From here on a stream records what it is given, whatever other threads do."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Handle) -> Handle:
        """Makes the recorded work a graph that can be launched."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def abandon_capture(self, stream: Handle) -> None:
        """Ends a recording in which something failed; that says more than what this may raise."""
        with contextlib.suppress(DeviceError):
            graph = self._call("cudaStreamEndCapture", stream)
            if graph:
                self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Handle, stream: Handle) -> None:
        """Does the recorded work."""
        self._call("cudaGraphLaunch", graph, stream)

    def close_graph(self, graph: Handle) -> None:
        """Frees a graph."""
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Calls a function and returns its result without the error.

        Raises:
            DeviceError: It failed.
        """
        error, *results = getattr(self._cuda, name)(*arguments)
        self._check(name, error)
        return results[0] if results else None

    def _check(self, name: str, error: Any) -> None:
        if int(error) != 0:
            _, text = self._cuda.cudaGetErrorString(error)
            said = text.decode() if isinstance(text, bytes) else str(text)
            raise DeviceError(f"CUDA: {name} failed: {said}. `mt3 doctor` looks at the driver.")
