"""Pinned memory, copies between host and GPU, and zeros, through the CUDA runtime.

ONNX Runtime copies from and to whatever memory NumPy has, which the driver must pin piece by piece.
The CUDA runtime that the provider has loaded is asked instead, for memory that is pinned once.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.diagnostics.cuda_libraries import runtime_library

#: cudaHostAllocPortable, cudaMemcpyHostToDevice and cudaMemcpyDeviceToHost.
_PORTABLE, _TO_DEVICE, _TO_HOST = 1, 1, 2


class HostTransfers:
    """The way between the host and one GPU.  Not for pieces that must not wait for each other."""

    def __init__(self, index: int) -> None:
        """Raises `OSError` if there is no CUDA runtime."""
        self._cuda = ctypes.CDLL(runtime_library())
        self._call("cudaSetDevice", ctypes.c_int(index))

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Zeroed memory, uint8 [size]; given back with the array."""
        address = ctypes.c_void_p()
        self._call("cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(size), _PORTABLE)
        block = (ctypes.c_uint8 * size).from_address(address.value or 0)
        weakref.finalize(block, self._cuda.cudaFreeHost, address)
        array = np.ctypeslib.as_array(block)
        array[:] = 0
        return array

    def to_device(self, target: int, source: npt.NDArray[np.uint8]) -> None:
        """Copies an array to an address of the GPU, and waits."""
        self._copy(target, source.ctypes.data, source.size, _TO_DEVICE)

    def to_host(self, target: npt.NDArray[np.uint8], source: int) -> None:
        """Fills an array from an address of the GPU, and waits."""
        self._copy(target.ctypes.data, source, target.size, _TO_HOST)

    def clear(self, address: int, size: int) -> None:
        """Fills memory of the GPU with zeros, and waits."""
        self._call("cudaMemset", ctypes.c_void_p(address), 0, ctypes.c_size_t(size))
        # It is on the default stream, which streams of sessions do not wait for.
        self._call("cudaStreamSynchronize", None)

    def free(self) -> int:
        """Bytes of the GPU's memory that nobody has."""
        left, everything = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(left), ctypes.byref(everything))
        return left.value

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        pointers = (ctypes.c_void_p(target), ctypes.c_void_p(source))
        self._call("cudaMemcpy", *pointers, ctypes.c_size_t(size), kind)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status:
            raise OSError(f"{name} failed with status {status}")
