"""The parent's end of a reader process: starts it, asks it, says how it ended.

Contract: `ReaderProcess.ask` sends a request and waits for its answer, for one thread at a time.
Whoever is answered when the process dies, or takes too long, is told why; everybody else that it
has lost them.  The process imports this package and nothing of the program that uses it: it is
neither a fork (threads would break it) nor the program's main module once more, so programs need no
``if __name__ == "__main__"``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar, cast

from mt3_runtime.errors import AudioError, DeviceError
from mt3_runtime.reading.reader_child import FLAG
from mt3_runtime.reading.reader_limits import (
    ReaderLimits,
    too_much_time,
    too_slow,
)
from mt3_runtime.reading.reader_messages import GarbledError, Message, receive, send

_START_SECONDS = 120.0
"""For the process to be ready: its imports take half a second, much longer on a busy machine."""

_END_SECONDS = 5.0
"""For a process that has closed its output to be gone."""

_MOST_RECORDINGS = 1000
"""Of one process, as decoders may leak."""

_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Several readers share the cores; and what a thread reserves counts as memory."""

Answer = TypeVar("Answer")

_processes: weakref.WeakSet[ReaderProcess] = weakref.WeakSet()


class LostError(Exception):
    """The process has ended, and what it was asked now is not to blame.

    Args:
        blamed: Another recording is.
    """

    def __init__(self, *, blamed: bool) -> None:
        super().__init__()
        self.blamed = blamed


class ReaderProcess:
    """A reader process that is ready.

    Args:
        limits: Under which it reads.

    Attributes:
        spent: Whether it takes no more recordings.
        pid: Its number in the system.
        recordings: How many are open there; kept by its pool.

    Raises:
        DeviceError: None can be started.
    """

    def __init__(self, limits: ReaderLimits) -> None:
        if FLAG in sys.argv[1:2]:  # it was to be one itself, and would start others for ever
            raise _not_started("this program was started as one, and does not know")
        self.spent, self.recordings = False, 0
        self._limits, self._count = limits, 0
        self._late = self._blamed = False
        self._gone = threading.Event()
        self._until: float | None = None  # the answer must be there
        self._asking, self._closing = threading.Lock(), deque[int]()
        try:
            self._process = subprocess.Popen(  # noqa: S603  this Python
                _command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_ONE_THREAD},
            )
        except OSError as error:
            raise _not_started(str(error)) from error
        self.pid = self._process.pid
        self._in = cast("BinaryIO", self._process.stdin)
        self._out = cast("BinaryIO", self._process.stdout)
        _processes.add(self)
        starting = threading.Timer(_START_SECONDS, self._process.kill)
        starting.daemon = True  # keeps no program from ending
        starting.start()
        try:
            receive(self._out)  # "ready"
        except (EOFError, GarbledError, OSError, KeyError) as error:
            self.close()
            raise _not_started(f"it ended with {self._process.returncode}") from error
        finally:
            starting.cancel()
        if limits.wait_seconds is not None:
            watch = (weakref.ref(self), self._gone, limits.wait_seconds)
            threading.Thread(target=_watch, args=watch, name="mt3 watch", daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether it runs, and was not told to end."""
        return not self._gone.is_set() and self._process.poll() is None

    def kill(self) -> None:
        """Ends the process; who waits for it notices."""
        self.spent = True
        self._gone.set()
        self._process.kill()

    def close(self) -> None:
        """Ends the process and frees what it took."""
        self.kill()
        self._process.wait()
        with self._asking:
            for pipe in (self._in, self._out):
                with contextlib.suppress(OSError):  # what could not be written any more
                    pipe.close()

    def ask(
        self,
        name: str,
        request: dict[str, Any],
        understand: Callable[[Message], Answer],
        data: bytes | None = None,
    ) -> tuple[list[str], Answer]:
        """Has the process do something.

        Args:
            name: Of the recording, for messages.
            request: What is asked for.
            understand: Makes something of the answer; raises `KeyError`, `TypeError` or
                `ValueError` if it is none.
            data: The file, if it is not told by its path.

        Returns:
            Warnings, and what the answer was made into.

        Raises:
            LostError: The process had ended before.
            AudioError: It ended, or was ended by a limit, meanwhile, or talks nonsense.
        """
        with self._asking:
            if not self.alive:
                self.spent = True
                raise LostError(blamed=self._blamed)
            if self._limits.wait_seconds is not None:
                self._until = time.monotonic() + self._limits.wait_seconds
            try:
                said, message = self._exchange(request, data)
                answer = understand(message)
            except (GarbledError, KeyError, TypeError, ValueError, OverflowError):
                self._blamed = True
                self.kill()
                raise _harmful(name, "talked nonsense") from None
            except (EOFError, OSError):
                raise self._died(name) from None
            finally:
                self._until = None
            self._count += message.fields["kind"] in ("end", "error")
            self.spent |= bool(message.fields.get("spent")) or self._count >= _MOST_RECORDINGS
        self._close_some()
        return said, answer

    def forget(self, number: int) -> None:
        """Closes a recording there, as soon as nothing else is done."""
        self._closing.append(number)
        self._close_some()

    def _exchange(self, request: dict[str, Any], data: bytes | None) -> tuple[list[str], Message]:
        """Sends a request; returns warnings and the answer."""
        try:
            self._send(request | {"bytes": len(data) if data else 0}, data)
        except (OSError, ValueError):
            self.kill()
            raise LostError(blamed=False) from None
        said = []
        while (message := receive(self._out)).fields["kind"] == "warning":
            said.append(str(message.fields["text"]))
        return said, message

    def _close_some(self) -> None:
        while self._closing and self._asking.acquire(blocking=False):
            try:
                with contextlib.suppress(OSError, ValueError, IndexError):  # ended, or closed
                    self._send({"kind": "close", "number": self._closing.popleft()})
            finally:
                self._asking.release()

    def _send(self, fields: dict[str, Any], data: bytes | None = None) -> None:
        send(self._in, fields)
        if data:
            self._in.write(data)
            self._in.flush()

    def _left(self, seconds: float) -> float:
        """How long nothing needs to be done about an answer that does not come."""
        until = self._until
        left = seconds if until is None else until - time.monotonic()
        if left <= 0.0:
            self._late = True
            self.kill()
        return left

    def _died(self, name: str) -> Exception:
        """What is said of a recording in whose midst the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_END_SECONDS)
        code = self._process.returncode
        self._blamed = True
        self.kill()
        if self._late:
            return AudioError(too_slow(self._limits, name))
        if code is not None and -code == getattr(signal, "SIGXCPU", None):
            return AudioError(too_much_time(self._limits, name))
        how = f"ended with code {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = f"was ended by {signal.Signals(-code).name}"
        return _harmful(name, how)

    def _after_fork(self) -> None:
        """A child holds no end of the pipes, lest the process outlives its parent."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for pipe in (self._in, self._out):
            with contextlib.suppress(OSError, ValueError):  # closed before
                os.dup2(nothing, pipe.fileno())
        os.close(nothing)


def _watch(process: weakref.ref[ReaderProcess], gone: threading.Event, seconds: float) -> None:
    """Ends a process that takes too long; keeps nothing alive.

    One thread, as one for each part would take longer than passing on the part.
    """
    left = seconds
    while not gone.wait(left):
        watched = process()
        left = watched._left(seconds) if watched else 0.0  # noqa: SLF001  of this module
        if left <= 0.0:
            return
        del watched


class ReaderProcesses:
    """The processes of a pool, which start when they are needed.

    Args:
        count: How many at most, beside those that have one recording each.
        limits: Under which they read.

    Attributes:
        closed: Whether they were ended.
    """

    def __init__(self, count: int, limits: ReaderLimits) -> None:
        self.closed = False
        self._count, self._limits = count, limits
        self._lock, self._starting = threading.Lock(), threading.Lock()
        self._running: set[ReaderProcess] = set()

    @property
    def pids(self) -> tuple[int, ...]:
        """Their numbers in the system."""
        with self._lock:
            return tuple(process.pid for process in self._running if process.alive)

    def take(self, name: str, *, apart: bool) -> ReaderProcess:
        """A process in which a recording may be opened, until it is given back.

        Args:
            name: Of the recording, for messages.
            apart: No other recording may be read there.

        Raises:
            AudioError: The processes were ended.
            DeviceError: None can be started.
        """
        with self._starting:
            process = None if apart else self._least_busy()
            if process is None:
                process = ReaderProcess(self._limits)
                process.spent = apart
            with self._lock:
                process.recordings += 1
                if not self.closed:
                    self._running.add(process)
        if self.closed:
            process.close()
            raise AudioError(self.why_not(name))
        return process

    def give_back(self, process: ReaderProcess, number: int) -> None:
        """Closes a recording in a process; ends that if it takes no further ones."""
        process.forget(number)
        with self._lock:
            process.recordings -= 1
            over = process.spent and not process.recordings
            if over:
                self._running.discard(process)
        if over:
            process.close()

    def close(self) -> None:
        """Ends them all; more than once does nothing."""
        with self._lock:
            self.closed = True
            processes, self._running = self._running, set()
        for process in processes:
            process.kill()
        for process in processes:
            process.close()

    def why_not(self, name: str) -> str:
        """What is said of a recording once they were ended."""
        return f"{name} was not read: its reader pool was closed."

    def _least_busy(self) -> ReaderProcess | None:
        """The process with fewest recordings; None if there may be another one without any."""
        with self._lock:
            able = [process for process in self._running if not process.spent]
        found = min(able, key=lambda process: process.recordings, default=None)
        full = len(able) >= self._count
        return found if found and (full or not found.recordings) else None


def _harmful(name: str, how: str) -> AudioError:
    return AudioError(
        f"The process that read {name} {how}; other recordings are not affected. The file is "
        "probably damaged, or made to crash decoders; convert it, for example with ffmpeg."
    )


def _command() -> list[str]:
    """What starts a reader process: this Python with this path, or this frozen program."""
    if getattr(sys, "frozen", False):
        return [sys.executable, FLAG]
    from multiprocessing.spawn import get_executable  # noqa: PLC0415  a tenth of all imports

    path = [os.path.abspath(folder) for folder in map(str, sys.path)]  # noqa: PTH100  not resolved
    code = f"import sys; sys.path[:] = {path!r}; import {_MAIN} as reader; reader.main()"
    return [os.fsdecode(get_executable() or sys.executable), "-c", code]


_MAIN = "mt3_runtime.reading.reader_child"


def _not_started(why: str) -> DeviceError:
    frozen = ""
    if getattr(sys, "frozen", False):
        frozen = " A frozen program must call mt3_runtime.reading.freeze_support() first of all."
    return DeviceError(
        f"No reader process can be started from {sys.executable} ({why}).{frozen} Read without "
        "reader processes (readers=0)."
    )


def _let_go_of_all() -> None:
    for process in list(_processes):
        process._after_fork()  # noqa: SLF001  of this module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_of_all)
