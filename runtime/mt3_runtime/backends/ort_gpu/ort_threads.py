"""Threads that run a GPU's sessions, and the exclusion of other work while graphs are recorded.

ONNX Runtime keeps a cuBLAS handle with its workspace, and every CUDA graph, for each *thread* that
ran a session with graphs, until the session is closed.  Decoding starts new threads for every call:
each would record all its steps anew and leave 32 MiB of workspace behind.  So a session is never
run by whoever wants a result, but by one of two threads that stay: one encodes, one decodes, and so
both go on at once.

While a graph is recorded, no thread of the process may allocate or copy on that device, or both
fail.  That concerns all models on it, so they share these threads.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class DeviceThread:
    """A thread that does one thing at a time, for whoever asks."""

    def __init__(self, name: str) -> None:
        self.lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def do(self, work: Callable[[], T]) -> T:
        """Waits for its turn, and for the work to be done; raises what that raises."""
        with self.lock:
            return self.do_now(work)

    def do_now(self, work: Callable[[], T]) -> T:
        """The same, for who holds the lock."""
        return self._thread.submit(work).result()


class DeviceThreads:
    """The two threads of a device.

    Attributes:
        encoding: Runs encoders.
        decoding: Runs decoder steps, and whatever is done alone.
    """

    def __init__(self, device: str) -> None:
        self.encoding, self.decoding = (
            DeviceThread(f"{device} encodes"),
            DeviceThread(f"{device} decodes"),
        )

    def alone(self, work: Callable[[], T]) -> T:
        """Does what nothing else may be done beside: recording, allocating, loading."""
        with self.encoding.lock, self.decoding.lock:
            return self.decoding.do_now(work)


_known: weakref.WeakValueDictionary[str, DeviceThreads] = weakref.WeakValueDictionary()
_knowing = threading.Lock()


def threads_of(device: str) -> DeviceThreads:
    """The threads of a device such as ``cuda:0``; there as long as anybody holds them."""
    with _knowing:
        found = _known.get(device)
        if found is None:
            found = _known[device] = DeviceThreads(device)
        return found
