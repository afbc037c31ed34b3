"""Device memory, pinned memory, streams, events and graphs of one owner, freed together.

Whoever makes several of them may fail in the middle; what was made until then is freed all the
same, in the reverse order, and a failure to free one keeps none of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mt3_engines.storage.shapes import Shape

if TYPE_CHECKING:
    from mt3_engines.running.cuda import Bytes, Cuda, Handle


@dataclass
class Exchange:
    """A tensor the host writes or reads: pinned memory and its twin on the device."""

    host: Bytes
    device: int

    def array(self, dtype: Any, shape: Shape) -> npt.NDArray[Any]:
        """The host's side, seen as an array of its first elements."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        seen: npt.NDArray[Any] = self.host[:size].view(dtype).reshape(shape)
        return seen


class DeviceMemory:
    """What one owner has on a GPU; not for two threads at once."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._streams: list[Handle] = []
        self._undo: list[Callable[[], None]] = []

    def allocate(self, size: int) -> int:
        """Device memory, zeroed."""
        address = self._cuda.allocate(size)
        self._undo.append(lambda: self._cuda.free(address))
        return address

    def exchange(self, size: int) -> Exchange:
        """Pinned memory and its twin on the device, both zeroed."""
        host = self._cuda.pinned(size)
        self._undo.append(lambda: self._cuda.free_pinned(host))
        return Exchange(host, self.allocate(size))

    def stream(self) -> Handle:
        """A stream that waits for no other."""
        stream = self._cuda.stream()
        self._streams.append(stream)
        self._undo.append(lambda: self._cuda.close_stream(stream))
        return stream

    def event(self) -> Handle:
        """A mark to wait for."""
        event = self._cuda.event()
        self._undo.append(lambda: self._cuda.close_event(event))
        return event

    def keep(self, held: object) -> None:
        """Holds what must live until here, and be let go before what was made earlier is freed."""
        holder = [held]
        self._undo.append(holder.clear)

    def captured(self, work: Callable[[], None], stream: Handle) -> Handle:
        """Records work as a graph.  It is done once before: some things are set up on first use.

        Raises:
            DeviceError: The work failed, then or while it was recorded; the first reason is said.
        """
        cuda = self._cuda
        work()
        cuda.synchronize(stream)
        cuda.begin_capture(stream)
        try:
            work()
        except BaseException:
            cuda.abandon_capture(stream)
            raise
        graph = cuda.end_capture(stream)
        self._undo.append(lambda: cuda.close_graph(graph))
        return graph

    def close(self) -> None:
        """Waits for the GPU and frees everything; what fails is raised when all has been tried."""
        cuda, streams, undo = self._cuda, self._streams, self._undo
        self._streams, self._undo = [], []
        waits = [lambda stream=stream: cuda.synchronize(stream) for stream in streams]
        failed: Exception | None = None
        for act in [*waits, *reversed(undo)]:
            try:
                act()
            except Exception as error:  # noqa: BLE001  an error of the GPU comes back with each call
                failed = failed or error
        if failed is not None:
            raise failed
