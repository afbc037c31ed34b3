"""The reader process: reads one recording after another, under limits, and sends what it made.

Contract: `main` is all a reader process runs.  It takes requests from its standard input and sends
messages (`mt3_runtime.reading.reader_messages`) where its standard output was: "ready", then for
each request "opened", "part" and "warning" in any number, and at last "end" or "error".  It ends
when its input does, also in mid-recording, so that nothing is left behind by a parent that dies.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mt3_runtime.audio.sources import AudioStream, open_audio
from mt3_runtime.errors import AudioError, AudioWarning, MT3Error
from mt3_runtime.imports.extras import require
from mt3_runtime.reading.reader_limits import ReaderLimits, allow_cpu, confine
from mt3_runtime.reading.reader_messages import GarbledError, receive, send
from mt3_runtime.reading.reading_plan import FloatArray, ReadingPlan, read_parts

FLAG = "--mt3-reader-process"
"""Argument by which a frozen program is asked to be a reader process."""

_KEPT_FREE = 30 << 20
"""Bytes.  glibc gives memory back to the system that it will need again for the next block, unless
a piece of such a size (up to 32 MiB) was freed once; to be given it again costs a tenth."""


def main() -> None:
    """Runs a reader process until its input ends."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's affair
    for package in ("soundfile", "soxr"):
        with contextlib.suppress(MT3Error):  # said when a file needs it
            require(package, "Reading audio files", "cpu")
    np.empty(_KEPT_FREE, np.uint8)
    inbox = _Inbox(sys.stdin.buffer)
    first = inbox.requests.get()
    confine(ReaderLimits.from_dict(first["limits"]))
    send(out, {"kind": "ready"})
    with contextlib.suppress(BrokenPipeError):
        while True:
            _Reading(inbox.requests.get(), inbox, out).run()


def freeze_support() -> None:
    """Makes a frozen program a reader process if it was started as one; else does nothing."""
    if getattr(sys, "frozen", False) and sys.argv[1:2] == [FLAG]:
        main()


class _Inbox:
    """Takes requests on a thread of its own, so that the end of the input is noticed at once.

    Attributes:
        requests: Those that wait, as their fields, with the bytes of the file if there are any.
        cancelled: Number of the last request that is no longer wanted.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.cancelled = -1
        self._file = file
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(EOFError, GarbledError, OSError):
            while True:
                fields, _ = receive(self._file)
                if fields["kind"] == "cancel":
                    self.cancelled = fields["number"]
                    continue
                if count := fields.get("bytes"):
                    fields["data"] = self._file.read(count)
                self.requests.put(fields)
        os._exit(0)


class _CancelledError(Exception):
    """The recording is no longer wanted."""


class _NamedBytes(io.BytesIO):
    """A file object with a name for messages."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


class _Reading:
    """One request."""

    def __init__(self, request: dict[str, Any], inbox: _Inbox, out: BinaryIO) -> None:
        self._request, self._inbox, self._out = request, inbox, out
        self._limits = ReaderLimits.from_dict(request["limits"])
        self._name = str(request["name"])
        self._seconds = 0.0
        self._began = time.process_time()

    def run(self) -> None:
        """Answers it, whatever happens."""
        allow_cpu(self._limits, self._began, 0.0)
        if self._request["folder"]:
            with contextlib.suppress(OSError):  # said when the file is opened
                os.chdir(self._request["folder"])
        try:
            fields = self._read()
        except _CancelledError:
            fields = {"kind": "cancelled"}
        except MemoryError:
            text = self._limits.too_much_memory(self._name)
            fields = _error(AudioError(text)) | {"spent": True}
        except MT3Error as error:
            fields = _error(error)
        except Exception as error:  # noqa: BLE001  the recording fails, not the process
            text = f"{self._name} cannot be read ({type(error).__name__}: {error})."
            fields = _error(AudioError(text))
        self._send(fields)

    def _read(self) -> dict[str, Any]:
        plan = ReadingPlan.from_dict(self._request["plan"])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with self._open(plan) as stream:
                fields = {"source_rate": stream.source_rate, "duration": stream.duration}
                self._send({"kind": "opened", "name": stream.name, **fields})
                if stream.duration is not None:
                    self._check_length(stream.duration)
                for part in read_parts(self._blocks(stream), plan):
                    self._report(caught)
                    salience = part.salience
                    arrays = [part.data, *(salience[:-1] if salience else ())]
                    heard = salience.samples if salience else None
                    fields = {"index": part.index, "last": part.last, "samples": part.samples}
                    self._send({"kind": "part", "heard": heard, **fields}, arrays)
                    if self._inbox.cancelled >= self._request["number"]:
                        raise _CancelledError
            self._report(caught)
            levels = stream.level_warnings
        return {"kind": "end", "warning": stream.warning, "level_warnings": levels}

    def _open(self, plan: ReadingPlan) -> AudioStream:
        limits, request = self._limits, self._request
        path: str = request["path"]
        if limits.file_bytes is not None and path:
            with contextlib.suppress(OSError):  # said when it is opened
                if Path(path).stat().st_size > limits.file_bytes:
                    raise AudioError(limits.too_large(self._name))
        return open_audio(
            _NamedBytes(request.pop("data"), self._name) if "data" in request else path,
            sr=request["sr"],
            target_rate=plan.rate,
            containers=limits.containers,
            formats=limits.formats,
        )

    def _blocks(self, stream: AudioStream) -> Iterator[FloatArray]:
        """The stream's blocks, as far as limits allow."""
        for block in stream.with_warnings():
            self._seconds += len(block) / stream.target_rate
            self._check_length(self._seconds)
            allow_cpu(self._limits, self._began, self._seconds)
            yield block

    def _check_length(self, seconds: float) -> None:
        most = self._limits.audio_seconds
        if most is not None and seconds > most:
            raise AudioError(self._limits.too_long(self._name))

    def _report(self, caught: list[warnings.WarningMessage]) -> None:
        """Passes on what was warned of since."""
        for one in caught:
            if issubclass(one.category, AudioWarning):
                self._send({"kind": "warning", "text": str(one.message)})
        caught.clear()

    def _send(self, fields: dict[str, Any], arrays: Any = ()) -> None:
        send(self._out, {**fields, "number": self._request["number"]}, arrays)


def _error(error: MT3Error) -> dict[str, Any]:
    return {"kind": "error", "type": type(error).__name__, "text": str(error)}
