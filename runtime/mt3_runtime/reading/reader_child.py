"""The reader process: reads recordings by turns, under limits, and sends what it made.

Contract: `main` is all a reader process runs.  It takes requests from its standard input and sends
messages (`mt3_runtime.reading.reader_messages`) where its standard output was: "ready", then one
answer to each request, behind any number of "warning".  "open" is answered by "opened", "next" by
"part" or "end", all of them by "error" if that is how the recording ends; "close" by nothing.  Of a
file that grows, "open" and "next", with its next bytes, are answered by "frames", without any if
nothing can be heard yet.  It ends when its input does, also in the midst of a part, so that nothing
is left behind by a parent that dies.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.recorder_files.opus_packets import OPUS_RATE
from mt3_runtime.audio.recorder_files.opus_stream import OpusStream
from mt3_runtime.audio.sources import AudioStream, open_audio
from mt3_runtime.errors import AudioError, AudioLimitError, AudioWarning, MT3Error
from mt3_runtime.imports.extras import require
from mt3_runtime.imports.interrupts import ENDING
from mt3_runtime.reading.reader_limits import (
    Account,
    ReaderLimits,
    confine,
    too_large,
    too_long,
    too_much_memory,
)
from mt3_runtime.reading.reader_messages import GarbledError, receive, send
from mt3_runtime.reading.reading_plan import FloatArray, ReadingPlan, read_parts

FLAG = "--mt3-reader-process"
"""Argument by which a frozen program is asked to be a reader process."""

_KEPT_FREE = 30 << 20
"""Bytes.  glibc gives memory back to the system that it will need again for the next block, unless
a piece of such a size (up to 32 MiB) was freed once; to be given it again costs a tenth."""

Answer = tuple[dict[str, Any], Sequence[npt.NDArray[Any]]]
"""Fields and arrays of a message."""


def main() -> None:
    """Runs a reader process until its input ends; does not return."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print
    for number in (signal.SIGINT, *ENDING):  # the parent answers them, and ends us
        signal.signal(number, signal.SIG_IGN)
    for package in ("soundfile", "soxr"):
        with contextlib.suppress(MT3Error):  # said when a file needs it
            require(package, "Reading audio files", "cpu")
    np.empty(_KEPT_FREE, np.uint8)
    requests = _requests(sys.stdin.buffer)
    confine()
    open_ones: dict[int, _Recording] = {}
    with contextlib.suppress(BrokenPipeError):
        send(out, {"kind": "ready"})
        while True:
            request = requests.get()
            number = request["number"]
            if request["kind"] == "open":
                open_ones[number] = (_Growing if "container" in request else _Recording)(request)
            elif request["kind"] == "close":
                open_ones.pop(number).close()
                continue
            for fields, arrays in open_ones[number].answer(request, len(open_ones) - 1):
                send(out, fields, arrays)
    os._exit(0)  # lest a frozen program goes on as itself


def freeze_support() -> None:
    """Makes a frozen program a reader process if it was started as one; else does nothing."""
    if getattr(sys, "frozen", False) and sys.argv[1:2] == [FLAG]:
        main()


def _requests(file: BinaryIO) -> queue.SimpleQueue[dict[str, Any]]:
    """Where requests arrive, as their fields, with the bytes of the file if there are any.

    They are taken in by a thread of its own, which notices the end of the input at once.
    """
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def take() -> None:
        with contextlib.suppress(EOFError, GarbledError, OSError):
            while True:
                fields, _ = receive(file)
                if (count := fields.get("bytes")) is not None:
                    fields["data"] = file.read(count)
                requests.put(fields)
        os._exit(0)

    threading.Thread(target=take, daemon=True).start()
    return requests


class _NamedBytes(io.BytesIO):
    """A file object with a name for messages."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


class _Recording:
    """A recording that is read here."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._limits = ReaderLimits.from_dict(request["limits"])
        self._account = Account(self._limits)
        self._name = str(request["name"])
        self._answers = self._read()

    def answer(self, request: dict[str, Any], others: int) -> list[Answer]:
        """The answer to the next request, whatever happens, and the warnings ahead of it.

        Args:
            request: Its fields.
            others: How many recordings are open beside it.
        """
        self._request = request
        with warnings.catch_warnings(record=True) as caught, self._account.turn(others):
            warnings.simplefilter("always")
            last = self._next()
        said = [str(one.message) for one in caught if issubclass(one.category, AudioWarning)]
        return [*(({"kind": "warning", "text": text}, ()) for text in said), last]

    def close(self) -> None:
        """Ends it, and closes the file."""
        self._answers.close()

    def _next(self) -> Answer:
        try:
            return next(self._answers)
        except MemoryError:
            text = too_much_memory(self._limits, self._name)
            return _error(AudioError(text)) | {"spent": True}, ()
        except MT3Error as error:
            return _error(error), ()
        except Exception as error:  # noqa: BLE001  the recording fails, not the process
            text = f"{self._name} cannot be read ({type(error).__name__}: {error})."
            return _error(AudioError(text)), ()

    def _read(self) -> Generator[Answer, None, None]:
        """Opens it, makes its parts, and says how it ended."""
        request = self._request
        plan, again = ReadingPlan.from_dict(request["plan"]), request["again"]
        if request["folder"]:
            with contextlib.suppress(OSError):  # said when the file is opened
                os.chdir(request["folder"])
        with _silenced(again):
            stream = self._open(plan)
        with stream:
            duration = stream.duration
            yield {"kind": "opened", "source_rate": stream.source_rate, "duration": duration}, ()
            if duration is not None:
                self._check_length(duration)
            parts = read_parts(self._blocks(stream), plan)
            with _silenced(again):
                for _ in islice(parts, request["skip"]):
                    pass
            for part in parts:
                salience = part.salience
                heard = salience.samples if salience else None
                fields = {"index": part.index, "last": part.last, "samples": part.samples}
                arrays = [part.data, *(salience[:-1] if salience else ())]
                yield {"kind": "part", "heard": heard, **fields}, arrays
            levels = stream.level_warnings
        yield {"kind": "end", "warning": stream.warning, "level_warnings": levels}, ()

    def _open(self, plan: ReadingPlan) -> AudioStream:
        limits, request = self._limits, self._request
        path: str = request["path"]
        if limits.file_bytes is not None and path:
            with contextlib.suppress(OSError):  # said when it is opened
                if Path(path).stat().st_size > limits.file_bytes:
                    raise AudioLimitError(too_large(limits, self._name))
        return open_audio(
            _NamedBytes(request.pop("data"), self._name) if "data" in request else path,
            sr=request["sr"],
            target_rate=plan.rate,
            containers=limits.containers,
            formats=limits.formats,
        )

    def _blocks(self, stream: AudioStream) -> Iterator[FloatArray]:
        """The stream's blocks, as far as limits allow."""
        seconds = 0.0
        for block in stream.with_warnings():
            seconds += len(block) / stream.target_rate
            self._check_length(seconds)
            self._account.read(seconds)
            yield block

    def _check_length(self, seconds: float) -> None:
        most = self._limits.audio_seconds
        if most is not None and seconds > most:
            raise AudioLimitError(too_long(self._limits, self._name))


class _Growing(_Recording):
    """A file that grows, whose next bytes come with each request."""

    def _read(self) -> Generator[Answer, None, None]:
        stream = OpusStream(str(self._request["container"]), self._name)
        frames, seconds = np.zeros((0, 1), np.float32), 0.0
        while True:
            yield {"kind": "frames"}, [frames]
            stream.feed(self._request.get("data", b""))
            frames = stream.decode()
            seconds += len(frames) / OPUS_RATE
            self._check_length(seconds)
            self._account.read(seconds)


@contextlib.contextmanager
def _silenced(silent: bool) -> Iterator[None]:  # noqa: FBT001  what it is called
    """Drops warnings, if they were given before."""
    with warnings.catch_warnings():
        if silent:
            warnings.simplefilter("ignore")
        yield


def _error(error: MT3Error) -> dict[str, Any]:
    return {"kind": "error", "type": type(error).__name__, "text": str(error)}
