"""A pool of reader processes: decodes files side by side, under limits, and makes features of them.

Contract: a part of a recording is made when it is asked for, in the process that has the recording
open beside others.  So as many threads as there are processes keep them busy, and decide what is
read next.  A process that dies, or reaches a limit, fails the recording that it was at, and is
replaced.  The parts are those that `LocalReading` gives, bit by bit.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Self

from mt3_runtime.arguments.argument_checks import refused
from mt3_runtime.audio.containers.byte_source import FileBytes, open_bytes
from mt3_runtime.audio.sources import (
    AudioSource,
    check_readable,
    is_file,
    may_block,
    valid_rate,
)
from mt3_runtime.errors import AudioError, AudioLimitError, OptionError
from mt3_runtime.reading.growing_reading import GrowingReading
from mt3_runtime.reading.local_reading import LocalReading
from mt3_runtime.reading.pooled_reading import PooledReading
from mt3_runtime.reading.reader_limits import (
    MOST_READERS,
    ReaderLimits,
    too_large,
    too_much_memory,
)
from mt3_runtime.reading.reader_process import ReaderProcesses
from mt3_runtime.reading.reading_plan import ReadingPlan


class ReaderPool:
    """Reader processes; use it as a context manager, or close it.

    They start when recordings need them.  Threads may share it.

    Args:
        count: How many processes at most, beside those for pipes, which have one each.
        limits: Under which they read; those for files of one's own if None.

    Raises:
        OptionError: ``count`` is out of range, or ``limits`` are none.
    """

    def __init__(self, count: int, *, limits: ReaderLimits | None = None) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_READERS:
            raise refused("readers", count, f"a whole number of processes up to {MOST_READERS}")
        if not (limits is None or isinstance(limits, ReaderLimits)):
            raise refused("limits", limits, "mt3_runtime.reading.ReaderLimits, or None")
        self.count = count
        self._limits = limits or ReaderLimits()
        self._numbers = itertools.count()
        self._processes = ReaderProcesses(count, self._limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(
        self, source: AudioSource, plan: ReadingPlan | None = None, *, sr: float | None = None
    ) -> PooledReading | LocalReading:
        """Has a recording read; its file is opened when its first part is asked for.

        Args:
            source: As of `open_audio`.  The bytes of a file object are read here.  An array needs
                no decoding and is read by the thread that iterates.
            plan: What is wanted; blocks of samples if None.
            sr: Sample rate of an array.

        Returns:
            An iterator over its parts.  It raises what `open_audio` raises, `AudioError` where a
            limit is reached or the process dies, and `DeviceError` where none can be started.

        Raises:
            OptionError: The pool is closed, or ``sr`` is no sample rate.
            AudioError: ``source`` is no audio, or a file object of too many bytes.
        """
        plan, limits = plan or ReadingPlan(), self._limits
        if not is_file(source):
            return LocalReading(source, plan, sr=sr)
        if self._processes.closed:
            raise OptionError("This reader pool is closed; open another.")
        data, path, apart = None, "", False
        if isinstance(source, str | os.PathLike):
            name = path = os.fspath(source)
            apart = may_block(source)
        else:
            name, data = _contents(source, limits)
        request = {
            "kind": "open",
            "number": next(self._numbers),
            "name": name,
            "path": path,
            "folder": _folder(),
            "sr": None if sr is None else valid_rate(sr),
            "plan": plan.to_dict(),
            "limits": limits.to_dict(),
        }
        return PooledReading(self._processes, plan, request, data, apart=apart)

    def open_growing(self, container: str, name: str) -> GrowingReading:
        """Has a file decoded while it still grows, in a process of its own; it is ready then.

        Args:
            container: ``webm`` or ``ogg``, with Opus.
            name: Of the recording, for messages.

        Raises:
            OptionError: The pool is closed, or there is no such container.
            DeviceError: No process can be started.
        """
        if self._processes.closed:
            raise OptionError("This reader pool is closed; open another.")
        request = {
            "kind": "open",
            "number": next(self._numbers),
            "name": name,
            "container": container,
            "limits": self._limits.to_dict(),
        }
        return GrowingReading(self._processes, request)

    @property
    def pids(self) -> tuple[int, ...]:
        """The numbers of its processes in the system."""
        return self._processes.pids

    def close(self) -> None:
        """Ends all processes; recordings that are not read to their end fail."""
        self._processes.close()


def pool_of(readers: int | None, limits: ReaderLimits | None) -> ReaderPool | None:
    """A pool of so many processes; None if recordings are read in this one.

    Raises:
        OptionError: ``readers`` is out of range, or there are limits and no processes to hold them.
    """
    if readers is not None and not (type(readers) is int and readers == 0):
        return ReaderPool(readers, limits=limits)
    if limits is not None:
        raise OptionError("Limits hold in reader processes alone; say how many (readers=).")
    return None


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
            raise AudioLimitError(too_large(limits, name))
        if limits.memory_bytes is not None and data.size > limits.room_for_file:
            raise AudioError(too_much_memory(limits, name))
        return name, data.at(0, data.size)


@contextmanager
def _closing(owned: BinaryIO | None) -> Iterator[None]:
    try:
        yield
    finally:
        if owned is not None:
            owned.close()
