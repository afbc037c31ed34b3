"""Device tensors for ONNX Runtime: allocated once, bound by address, moved in place.

A `DeviceSpec` is a provider and the memory it computes in.  With the CPU provider everything here
works on a machine without a GPU as well, which is how it is tested.

`Buffer`s are plain bytes, so that every element type is handled alike and a range of rows can be
bound as a tensor of its own; what lies in them stays on the device.  Copies between buffers are
done by tiny graphs (`mt3_runtime.bundles.tiny_graphs`) for the same reason: through Python they
would pass through the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.backends.ort_gpu.ort_transfers import HostTransfers
from mt3_runtime.bundles.tiny_graphs import copy_model, double_model

#: Bytes of the element types that graphs may have, by ONNX Runtime's name; and what to bind them
#: as: NumPy's type, or the number in onnx.proto's TensorProto.DataType where NumPy has none.
ELEMENTS: dict[str, tuple[int, Any]] = {
    "tensor(bool)": (1, np.bool_),
    "tensor(int32)": (4, np.int32),
    "tensor(int64)": (8, np.int64),
    "tensor(float)": (4, np.float32),
    "tensor(float16)": (2, np.float16),
    "tensor(bfloat16)": (2, 16),
}

#: Copies count in int32, the smallest type whose copies are fast everywhere.
_WORD = 4

#: Where a part of a shared buffer may begin; CUDA's own allocations are aligned like this.
_ALIGNMENT = 256


def free_memory(place: DeviceSpec) -> int | None:
    """Bytes of a device that nobody has; None for the host's, which is not asked."""
    return HostTransfers(place.index).free() if place.memory == "cuda" else None


@dataclass(frozen=True)
class DeviceSpec:
    """Where sessions run and their buffers lie.

    Attributes:
        provider: ONNX Runtime's name of the execution provider.
        memory: ONNX Runtime's name of the memory: ``cuda`` or ``cpu``.
        index: Which device of this kind.
        options: What the provider is asked for, as strings.
    """

    provider: str
    memory: str
    index: int = 0
    options: dict[str, str] = field(default_factory=dict)


class Buffer:
    """A tensor ``[rows, *shape]`` on a device; zeroed, as graphs multiply what was never written.

    Attributes:
        row: Bytes per row.
        address: Of its first byte, on the device.
    """

    def __init__(
        self, runtime: Any, place: DeviceSpec, rows: int, *, shape: Sequence[int], element: str
    ) -> None:
        size, self._element = ELEMENTS[element]
        self._place, self.rows, self.shape = place, rows, tuple(shape)
        self.row = size * math.prod(self.shape)
        count = max(rows * self.row, 1)
        self._value = runtime.OrtValue.ortvalue_from_shape_and_type(
            [count], np.uint8, place.memory, place.index
        )
        self.address = self._value.data_ptr()
        if place.memory == "cuda":  # not through the host: caches take hundreds of megabytes
            HostTransfers(place.index).clear(self.address, count)
        else:
            self._value.update_inplace(np.zeros(count, np.uint8))

    def bind(self, bind: Any, name: str, rows: slice) -> None:
        """Binds rows of it as an input or output of a graph; the buffer must outlive that."""
        shape = (rows.stop - rows.start, *self.shape)
        self._bind(bind, name, self._element, shape, rows.start * self.row)

    def bind_words(self, bind: Any, name: str, rows: slice, *, columns: int = 0) -> None:
        """Binds rows of it as int32: one vector, or a matrix of so many words per row."""
        words = (rows.stop - rows.start) * self.row // _WORD
        shape = (words // columns, columns) if columns else (words,)
        self._bind(bind, name, np.int32, shape, rows.start * self.row)

    def write(self, array: npt.NDArray[Any]) -> None:
        """Copies an array of the buffer's size from the host."""
        self._value.update_inplace(np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    def read(self) -> npt.NDArray[np.uint8]:
        """Copies the bytes to the host."""
        found: npt.NDArray[np.uint8] = self._value.numpy()
        return found

    def _bind(self, bind: Any, name: str, element: Any, shape: Sequence[int], offset: int) -> None:
        bind(name, self._place.memory, self._place.index, element, shape, self.address + offset)


class Staging:
    """Several small tensors ``[rows, *shape]`` in one buffer, so that one copy moves them all.

    The host's side of a GPU's is pinned memory.

    Attributes:
        arrays: The host's side of every tensor, by name, ``[rows, *shape]``.
    """

    def __init__(
        self,
        runtime: Any,
        place: DeviceSpec,
        rows: int,
        *,
        tensors: dict[str, tuple[tuple[int, ...], str]],
    ) -> None:
        self._layout: dict[str, tuple[int, tuple[int, ...], Any]] = {}
        size = 0
        for name, (shape, element) in tensors.items():
            self._layout[name] = (size, shape, ELEMENTS[element][1])
            taken = rows * ELEMENTS[element][0] * math.prod(shape)
            size += math.ceil(taken / _ALIGNMENT) * _ALIGNMENT
        self._bus = HostTransfers(place.index) if place.memory == "cuda" else None
        self._host = self._bus.pinned(size) if self._bus else np.zeros(size, np.uint8)
        self._device = Buffer(runtime, place, size, shape=(), element="tensor(bool)")
        self.arrays: dict[str, npt.NDArray[Any]] = {
            name: np.ndarray((rows, *shape), kind, self._host, offset)
            for name, (offset, shape, kind) in self._layout.items()
        }

    def bind(self, bind: Any, name: str, rows: int) -> None:
        """Binds the first rows of one of the tensors."""
        offset, shape, kind = self._layout[name]
        self._device._bind(bind, name, kind, (rows, *shape), offset)  # noqa: SLF001  its own parts

    def write(self) -> None:
        """Copies `arrays` to the device."""
        if self._bus:
            self._bus.to_device(self._device.address, self._host)
        else:
            self._device.write(self._host)

    def read(self) -> None:
        """Copies the device's tensors to `arrays`."""
        if self._bus:
            self._bus.to_host(self._host, self._device.address)
        else:
            self._host[:] = self._device.read()


class Copier:
    """Copies between buffers of one device, many at a time."""

    def __init__(self, make_session: Any) -> None:
        """``make_session`` turns the bytes of a model into a session on the buffers' device."""
        self._make = make_session
        self._sessions: dict[tuple[Any, int], Any] = {}

    def move(self, buffers: Sequence[Buffer], source: int, target: int) -> None:
        """Copies one row of every buffer over another."""
        session = self._session(copy_model, len(buffers))
        binding = session.io_binding()
        for k, buffer in enumerate(buffers):
            buffer.bind_words(binding.bind_input, f"from_{k}", slice(source, source + 1))
            buffer.bind_words(binding.bind_output, f"to_{k}", slice(target, target + 1))
        session.run_with_iobinding(binding)

    def widen(self, pairs: Sequence[tuple[Buffer, Buffer]]) -> None:
        """Copies all rows of buffers to the first ones of larger buffers."""
        session = self._session(copy_model, len(pairs))
        binding = session.io_binding()
        for k, (source, target) in enumerate(pairs):
            rows = slice(0, source.rows)
            source.bind_words(binding.bind_input, f"from_{k}", rows)
            target.bind_words(binding.bind_output, f"to_{k}", rows)
        session.run_with_iobinding(binding)

    def double(self, old: Sequence[Buffer], new: Sequence[Buffer]) -> None:
        """Copies caches ``[rows, heads, L, width]`` to the first L columns of ``2 L`` ones.

        The other columns get copies too, which are as good as zeros: nobody reads them unwritten,
        but they are finite numbers.
        """
        session = self._session(double_model, len(old))
        binding = session.io_binding()
        for k, (source, target) in enumerate(zip(old, new, strict=True)):
            rows, words = slice(0, source.rows), source.row // _WORD // source.shape[0]
            source.bind_words(binding.bind_input, f"from_{k}", rows, columns=words)
            target.bind_words(binding.bind_output, f"to_{k}", rows, columns=2 * words)
        session.run_with_iobinding(binding)

    def _session(self, model: Any, count: int) -> Any:
        if (model, count) not in self._sessions:
            self._sessions[model, count] = self._make(model(count))
        return self._sessions[model, count]
