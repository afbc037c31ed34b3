"""One recording that a reader process reads: what its consumer sees of it.

Contract: a :class:`PooledReading` is an iterator over :class:`ReadPart`, in order.  A part is made
when it is asked for, so whoever asks decides what is read next.  If the process is lost while it
was at another recording, or idle, another one reads this recording once more, up to where it was.
"""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mt3_runtime import errors
from mt3_runtime.errors import AudioError, AudioWarning, MT3Error
from mt3_runtime.leakage.salience_frames import SalienceFrames
from mt3_runtime.reading.reader_process import Answer, LostError, ReaderProcess
from mt3_runtime.reading.reading_plan import ReadingPlan, ReadPart

if TYPE_CHECKING:
    from mt3_runtime.reading.reader_messages import Message
    from mt3_runtime.reading.reader_process import ReaderProcesses

_MOST_LOST = 3
"""Processes that may be lost in the midst of a recording though no other one is to blame."""


class PooledReading:
    """One recording; one thread takes its parts, any may close it.

    Args:
        processes: One of them reads it.
        plan: What is wanted.
        request: What is asked of them.
        data: The file, if it is not told by its path.
        apart: It may keep its process waiting, so it has one of its own.

    Attributes:
        name: Of the recording, for messages.
        target_rate: Sample rate of what is read [Hz].
        source_rate: Of the source [Hz]; 0 until the first part was asked for.
        duration: Of the source [s]; None until then, or where it is not known beforehand.
        warning: What could not be read, known once the rest was; None if nothing.
        level_warnings: What of the level makes notes doubtful, known at the end.
    """

    def __init__(
        self,
        processes: ReaderProcesses,
        plan: ReadingPlan,
        request: dict[str, Any],
        data: bytes | None,
        *,
        apart: bool,
    ) -> None:
        self.name, self.target_rate = str(request["name"]), plan.rate
        features = plan.features
        self._shape = (features.frames, features.bins) if features else None
        self._most = plan.segments.samples if plan.segments else sys.maxsize
        self._columns = len(SalienceFrames._fields) - 1 if plan.salience else 0
        self.source_rate = 0.0
        self.duration: float | None = None
        self.warning: str | None = None
        self.level_warnings: tuple[str, ...] = ()
        self._processes, self._request = processes, request
        self._data, self._apart = data, apart
        self._process: ReaderProcess | None = None
        self._lock = threading.Lock()
        self._count = self._lost = 0
        self._over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ReadPart:
        try:
            while not self._over:
                part = self._next()
                if part is not None:
                    self._count += 1
                    return part
        except BaseException as error:
            self._over = True
            if isinstance(error, AudioError) and self._processes.closed:
                raise AudioError(self._processes.why_not(self.name)) from None
            raise
        finally:
            if self._over:
                self._let_go()
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the reading; may be called twice."""
        self._over = True
        self._let_go()

    def _next(self) -> ReadPart | None:
        """The next part; None if there is no more, or if it must be asked for once more."""
        number = self._request["number"]
        try:
            process = self._process or self._begin()
            answer = self._ask(process, {"kind": "next", "number": number}, self._understand)
        except LostError as lost:
            self._let_go()
            self._lost += not lost.blamed
            if self._lost > _MOST_LOST:
                raise AudioError(
                    f"{self.name} was not read: {self._lost} processes that read it were ended "
                    "from outside. Look for what ends them: the system may be out of memory."
                ) from None
            return None
        if isinstance(answer, ReadPart):
            return answer
        self._over = True
        self.warning, self.level_warnings = answer
        return None

    def _begin(self) -> ReaderProcess:
        """Has a process open the recording, up to the parts that were taken before."""
        again = {"again": self.source_rate > 0.0, "skip": self._count}
        process = self._processes.take(self.name, apart=self._apart)
        try:
            self.source_rate, self.duration = self._ask(
                process, self._request | again, _opened, self._data
            )
        except BaseException:
            self._processes.give_back(process, self._request["number"])
            raise
        with self._lock:
            self._process = process
        return process

    def _ask(
        self,
        process: ReaderProcess,
        request: dict[str, Any],
        understand: Callable[[Message], Answer],
        data: bytes | None = None,
    ) -> Answer:
        """What a process answers; raises what it says."""
        said, answer = process.ask(self.name, request, or_error(understand), data)
        for text in said:
            warnings.warn(text, AudioWarning, stacklevel=4)
        if isinstance(answer, MT3Error):
            raise answer
        return answer

    def _understand(self, message: Message) -> ReadPart | _End:
        """The answer to what comes next, if it can be that; the process is not believed."""
        fields, arrays = message
        if fields["kind"] == "end":
            warning = fields["warning"]
            return None if warning is None else str(warning), tuple(
                map(str, fields["level_warnings"])
            )
        if fields["kind"] != "part" or fields["index"] != self._count:
            raise ValueError("no such part")
        data, *frames = arrays
        shape = self._shape or data.shape[:1]
        if data.dtype != np.float32 or data.shape != shape or len(frames) != self._columns:
            raise ValueError("not what was asked for")
        salience = None
        if frames:
            if len({len(column) for column in frames}) != 1:
                raise ValueError("columns of several lengths")
            clarity, power, level, tones, amplitudes = frames
            heard = int(fields["heard"])
            salience = SalienceFrames(clarity, power, level, tones, amplitudes, heard)
        count = int(fields["samples"])
        if not 0 <= count <= self._most:
            raise ValueError("more samples than there can be")
        return ReadPart(self._count, bool(fields["last"]), count, data, salience)

    def _let_go(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            self._processes.give_back(process, self._request["number"])


_End = tuple[str | None, tuple[str, ...]]
"""What could not be read, and what of the level makes notes doubtful."""


def _opened(message: Message) -> tuple[float, float | None]:
    """Sample rate and length of a source."""
    if message.fields["kind"] != "opened":
        raise ValueError("not opened")
    rate, duration = float(message.fields["source_rate"]), message.fields["duration"]
    if not 0.0 < rate < math.inf or not (duration is None or 0.0 <= float(duration) < math.inf):
        raise ValueError("no such length")
    return rate, None if duration is None else float(duration)


def or_error(understand: Callable[[Message], Answer]) -> Callable[[Message], Answer | MT3Error]:
    """The same, or what went wrong, as the exception that it was."""

    def understood(message: Message) -> Answer | MT3Error:
        fields = message.fields
        if fields["kind"] != "error":
            return understand(message)
        kind = getattr(errors, str(fields["type"]), None)
        known = isinstance(kind, type) and issubclass(kind, MT3Error)
        return kind(str(fields["text"])) if known and kind else AudioError(str(fields["text"]))

    return understood
