"""A pool of reader processes: decodes files side by side, under limits, and makes features of them.

Contract: `ReaderPool.open` returns at once; recordings are read in the order in which they were
opened, as many side by side as there are processes, and each a bounded number of parts ahead of its
consumer.  A process that dies, or reaches a limit, fails its recording alone and is replaced.  The
parts are those that `LocalReading` gives, bit by bit.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

from mt3_runtime.audio.containers.byte_source import FileBytes, open_bytes
from mt3_runtime.audio.sources import AudioSource, check_readable, is_file
from mt3_runtime.errors import AudioError, MT3Error, OptionError
from mt3_runtime.reading.local_reading import LocalReading
from mt3_runtime.reading.pooled_reading import PooledReading
from mt3_runtime.reading.reader_limits import ReaderLimits
from mt3_runtime.reading.reader_process import ReaderProcess
from mt3_runtime.reading.reading_plan import ReadingPlan

MOST_READERS = 256

AHEAD = 8
"""Parts that wait for their consumer: 16 s and, as features, 4 MiB; an encoder call takes fewer."""


class _Job(NamedTuple):
    """A recording that waits for a process."""

    reading: PooledReading
    request: dict[str, Any]
    data: bytes | None


class ReaderPool:
    """Reader processes; use it as a context manager, or close it.

    Args:
        count: How many processes at most; one is busy with one recording at a time.
        limits: Under which they read; those for files of one's own if None.
        ahead: Most parts of a recording that wait for their consumer.

    Raises:
        OptionError: ``count`` or ``ahead`` is out of range.
    """

    def __init__(
        self, count: int, *, limits: ReaderLimits | None = None, ahead: int = AHEAD
    ) -> None:
        for name, value, most in (("count", count, MOST_READERS), ("ahead", ahead, 1 << 16)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise OptionError(f"{name}={value!r}; expected a whole number from 1 to {most}.")
        self.count = count
        self._limits, self._ahead = limits or ReaderLimits(), ahead
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._open: set[PooledReading] = set()
        self._processes: set[ReaderProcess] = set()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(
        self, source: AudioSource, plan: ReadingPlan | None = None, *, sr: float | None = None
    ) -> PooledReading | LocalReading:
        """Has a recording read.

        Of the recordings that were opened and not read to their end, only the first ``count`` are
        being read: who takes from a later one first waits until enough of them have ended.

        Args:
            source: As of `open_audio`.  The bytes of a file object are read here.  An array needs
                no decoding and is read by the thread that iterates.
            plan: What is wanted; blocks of samples if None.
            sr: Sample rate of an array.

        Returns:
            An iterator over its parts.  It raises what `open_audio` raises, and `AudioError` where
            a limit is reached or the process dies.

        Raises:
            OptionError: The pool is closed.
            AudioError: ``source`` is no audio, or a file object of too many bytes.
        """
        plan, limits = plan or ReadingPlan(), self._limits
        if not is_file(source):
            return LocalReading(source, plan, sr=sr)
        data, path = None, ""
        if isinstance(source, str | os.PathLike):
            name = path = os.fspath(source)
        else:
            name, data = _contents(source, limits)
        request = {
            "kind": "read",
            "number": next(self._numbers),
            "name": name,
            "path": path,
            "folder": _folder(),
            "sr": sr,
            "plan": plan.to_dict(),
            "limits": limits.to_dict(),
        }
        reading = PooledReading(name, plan.rate, limits, self._ahead)
        with self._lock:
            if self._closed:
                raise OptionError("This reader pool is closed; open another.")
            self._open.add(reading)
        self._waiting.put(_Job(reading, request, data))
        return reading

    @property
    def pids(self) -> tuple[int, ...]:
        """The numbers of its processes in the system; they start when recordings need them."""
        with self._lock:
            return tuple(process.pid for process in self._processes if not process.spent)

    def close(self) -> None:
        """Ends all processes; recordings that are not read to their end fail."""
        with self._lock:
            self._closed = True
            open_ones, processes = list(self._open), list(self._processes)
        for reading in open_ones:
            reading.end(AudioError(f"{reading.name} was not read: its reader pool was closed."))
        for _ in self._threads:
            self._waiting.put(None)
        for process in processes:
            process.kill()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        """Reads recordings through one process after another."""
        process: ReaderProcess | None = None
        while (job := self._waiting.get()) is not None:
            try:
                if not job.reading.closed:
                    if process is None or process.spent:
                        process = self._replaced(process)
                    process.read(job.reading, job.request, job.data)
            except MT3Error as error:  # none can be started
                job.reading.end(error)
            finally:
                with self._lock:
                    self._open.discard(job.reading)
        if process:
            self._end(process)

    def _replaced(self, process: ReaderProcess | None) -> ReaderProcess:
        if process:
            self._end(process)
        process = ReaderProcess(self._limits)
        with self._lock:
            self._processes.add(process)
            closed = self._closed
        if closed:
            process.kill()
        return process

    def _end(self, process: ReaderProcess) -> None:
        process.close()
        with self._lock:
            self._processes.discard(process)


def _folder() -> str | None:
    """The working folder, from which relative paths lead; None if it was removed."""
    try:
        return os.getcwd()  # noqa: PTH109  a plain string
    except OSError:
        return None


def _contents(source: BinaryIO, limits: ReaderLimits) -> tuple[str, bytes]:
    """Name and bytes of a file object."""
    check_readable(source)
    name, handle, owned = open_bytes(source)
    with _closing(owned):
        data = FileBytes(handle, name)
        if limits.file_bytes is not None and data.size > limits.file_bytes:
            raise AudioError(limits.too_large(name))
        if limits.memory_bytes is not None and data.size > limits.room_for_file:
            raise AudioError(limits.too_much_memory(name))
        return name, data.at(0, data.size)


@contextmanager
def _closing(owned: BinaryIO | None) -> Iterator[None]:
    try:
        yield
    finally:
        if owned is not None:
            owned.close()
