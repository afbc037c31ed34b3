"""The parent's end of a reader process: starts it, hands it recordings, says how it ended.

Contract: `ReaderProcess.read` puts everything of one recording into its `PooledReading`, on the
calling thread, and never raises for what the recording is to blame for.  The process imports this
package and nothing of the program that uses it: it is neither a fork (threads would break it) nor
the program's main module once more, so programs need no ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from multiprocessing.spawn import get_executable
from typing import Any, BinaryIO, cast

from mt3_runtime import errors
from mt3_runtime.errors import AudioError, DeviceError, MT3Error
from mt3_runtime.leakage.salience_frames import SalienceFrames
from mt3_runtime.reading.pooled_reading import PooledReading
from mt3_runtime.reading.reader_child import FLAG
from mt3_runtime.reading.reader_limits import ReaderLimits
from mt3_runtime.reading.reader_messages import GarbledError, Message, receive, send
from mt3_runtime.reading.reading_plan import ReadPart

_START_SECONDS = 120.0
"""For the process to be ready: its imports take half a second, much longer on a busy machine."""

_STOP_SECONDS = 5.0
"""For a recording that is called off: as long as one part may take, else the process is ended."""

_MOST_RECORDINGS = 1000
"""Of one process, as decoders may leak."""

_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Several readers share the cores; and what a thread reserves counts as memory."""


class ReaderProcess:
    """A reader process that is ready.

    Args:
        limits: Under which it reads.

    Attributes:
        spent: Whether it must be replaced.
        pid: Its number in the system.

    Raises:
        DeviceError: None can be started.
    """

    def __init__(self, limits: ReaderLimits) -> None:
        if FLAG in sys.argv[1:2]:  # it was to be one itself, and would start others for ever
            raise _not_started("this program was started as one, and does not know")
        self.spent = False
        self._limits, self._count = limits, 0
        self._writing = threading.Lock()
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
        watch = _timer(_START_SECONDS, self._process)
        watch.start()
        try:
            self._send({"kind": "limits", "limits": limits.to_dict()})
            receive(self._out)  # "ready"
        except (EOFError, GarbledError, OSError, KeyError) as error:
            self.close()
            raise _not_started(f"it ended with {self._process.returncode}") from error
        finally:
            watch.cancel()

    def kill(self) -> None:
        """Ends the process; who waits for it notices."""
        self.spent = True
        self._process.kill()

    def close(self) -> None:
        """Ends the process and frees what it took."""
        self.kill()
        self._process.wait()
        for pipe in (self._in, self._out):
            with contextlib.suppress(OSError):  # what could not be written any more
                pipe.close()

    def read(self, reading: PooledReading, request: dict[str, Any], data: bytes | None) -> None:
        """Reads a recording to its end, until nobody wants more of it, or until the process dies.

        Args:
            reading: What its consumer sees.
            request: What is asked for; ``number`` tells it from others.
            data: The file, if it is not told by its path.
        """
        number = request["number"]
        stopping = _timer(_STOP_SECONDS, self._process)

        def stop() -> None:
            stopping.start()
            with contextlib.suppress(OSError):
                self._send({"kind": "cancel", "number": number})

        reading.begin(stop)
        error: Exception | None = None
        try:
            self._send(request | {"bytes": len(data) if data else 0}, data)
            while (message := receive(self._out)).fields["kind"] in ("opened", "part", "warning"):
                _pass_on(message, reading)
            error = self._ended(message, reading)
        except (EOFError, GarbledError, OSError, KeyError, TypeError, ValueError):
            error = self._died(reading.name)
        finally:
            stopping.cancel()
            reading.end(error)

    def _send(self, fields: dict[str, Any], data: bytes | None = None) -> None:
        with self._writing:
            send(self._in, fields)
            if data:
                self._in.write(data)
                self._in.flush()

    def _ended(self, message: Message, reading: PooledReading) -> Exception | None:
        """Takes in the last message of a recording; returns what went wrong."""
        fields = message.fields
        self._count += 1
        self.spent = bool(fields.get("spent")) or self._count >= _MOST_RECORDINGS
        if fields["kind"] == "end":
            reading.warning = fields["warning"]
            reading.level_warnings = tuple(fields["level_warnings"])
            return None
        if fields["kind"] == "error":
            kind = getattr(errors, str(fields["type"]), None)
            known = isinstance(kind, type) and issubclass(kind, MT3Error)
            return kind(str(fields["text"])) if known and kind else AudioError(str(fields["text"]))
        return None  # cancelled

    def _died(self, name: str) -> Exception:
        """What is said of a recording in whose midst the process ended, or talked nonsense."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        code = self._process.returncode
        self.close()
        if code is not None and -code == getattr(signal, "SIGXCPU", None):
            return AudioError(self._limits.too_much_time(name))
        how = "talked nonsense" if code is None else f"ended with code {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = f"was ended by {signal.Signals(-code).name}"
        return AudioError(
            f"The process that read {name} {how}; other recordings are not affected. The file is "
            "probably damaged, or made to crash decoders; convert it, for example with ffmpeg."
        )


def _pass_on(message: Message, reading: PooledReading) -> None:
    """Puts a message about a recording under way into it."""
    fields, arrays = message
    if fields["kind"] == "opened":
        duration = fields["duration"]
        reading.source_rate = float(fields["source_rate"])
        reading.duration = None if duration is None else float(duration)
    elif fields["kind"] == "warning":
        reading.put(str(fields["text"]))
    else:
        data, *frames = arrays
        salience = None
        if frames:
            clarity, power, level, tones, amplitudes = frames
            heard = int(fields["heard"])
            salience = SalienceFrames(clarity, power, level, tones, amplitudes, heard)
        index, count = int(fields["index"]), int(fields["samples"])
        reading.put(ReadPart(index, bool(fields["last"]), count, data, salience))


def _timer(seconds: float, process: subprocess.Popen[bytes]) -> threading.Timer:
    """Ends a process after some time, unless it is cancelled; keeps no program from ending."""
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    return timer


def _command() -> list[str]:
    """What starts a reader process: this Python with this path, or this frozen program."""
    if getattr(sys, "frozen", False):
        return [sys.executable, FLAG]
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
