"""A recording that grows while a reader process decodes it: what a browser's recorder sends.

Contract: `GrowingReading.blocks` hands the next bytes of the file to the process and yields what
can be heard of them, about a second at a time, so that a few bytes that hold hours cost no more
than is taken of them.  The process has no other recording; limits are those of its pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.samples import MAX_CHANNELS
from mt3_runtime.errors import AudioError, MT3Error
from mt3_runtime.reading.pooled_reading import or_error
from mt3_runtime.reading.reader_process import LostError

if TYPE_CHECKING:
    from mt3_runtime.reading.reader_messages import Message
    from mt3_runtime.reading.reader_process import ReaderProcess, ReaderProcesses

Frames = npt.NDArray[np.float32]


class GrowingReading:
    """One recording, for one thread at a time; a context manager.

    Args:
        processes: One of them, of its own, decodes it.
        request: What is asked of it first.

    Raises:
        AudioError: The processes were ended.
        DeviceError: None can be started.
    """

    def __init__(self, processes: ReaderProcesses, request: dict[str, Any]) -> None:
        self._name, self._number = str(request["name"]), request["number"]
        self._processes = processes
        self._process: ReaderProcess | None = processes.take(self._name, apart=True)
        try:
            self._ask(request)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def blocks(self, data: bytes) -> Iterator[Frames]:
        """Yields what can be heard of the next bytes, float32 [n, channels].

        Args:
            data: Of the file, cut anywhere.

        Raises:
            AudioFormatError: It is another kind of file, or has another codec.
            AudioError: It is damaged, a limit is reached, or the process died.
        """
        while len(frames := self._ask({"kind": "next", "number": self._number}, data)):
            yield frames
            data = b""

    def close(self) -> None:
        """Ends the process; may be called twice, and while another thread is answered."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            self._processes.give_back(process, self._number)

    def _ask(self, request: dict[str, Any], data: bytes | None = None) -> Frames:
        process = self._process
        if process is None:
            raise self._not_read("its reading was closed")
        try:
            _, answer = process.ask(self._name, request, or_error(_frames), data)
        except LostError:
            closed = self._process is None or self._processes.closed
            ended = "its reading was closed" if closed else "its process was ended from outside"
            raise self._not_read(ended) from None
        if isinstance(answer, MT3Error):
            raise answer
        return answer

    def _not_read(self, why: str) -> AudioError:
        return AudioError(f"{self._name} was not read to its end: {why}.")


def _frames(message: Message) -> Frames:
    """The samples of an answer, if it can be one; the process is not believed."""
    (frames,) = message.arrays
    if message.fields["kind"] != "frames" or frames.dtype != np.float32 or frames.ndim != 2:
        raise ValueError("no frames")
    if not 1 <= frames.shape[1] <= MAX_CHANNELS:
        raise ValueError("no such channels")
    return frames
