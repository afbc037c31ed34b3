"""Samples of what a client of a live input sends: PCM, or a file that its browser still records.

Contract: `live_decoder` opens what a start asks for; `LiveDecoder.blocks` yields the frames of one
message.  Files are decoded in a reader process of their own under the service's limits, as those of
uploads are; PCM needs no decoder.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mt3_runtime.audio.recorder_files.opus_packets import OPUS_RATE
from mt3_runtime.reading.reader_pool import ReaderPool
from mt3_server.live_audio.live_protocol import RECORDED
from mt3_server.protection.refusals import Refusal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mt3_runtime.reading.growing_reading import GrowingReading
    from mt3_runtime.reading.reader_limits import ReaderLimits
    from mt3_server.live_audio.live_protocol import LiveStart
    from mt3_server.settings import Settings

    Frames = npt.NDArray[np.float32]

T = TypeVar("T")

_NAME = "the recording"

MOST_SECONDS = 10.0
"""Of audio in one message of a file: as much as may come ahead.  Recorders hand over what they have
each second or so, and a mebibyte of Opus may hold hours."""


class LiveDecoder(Protocol):
    """What makes frames of messages."""

    def blocks(self, data: bytes) -> AsyncIterator[Frames]:
        """Yields the frames of a message, float32 [n, channels]."""
        ...

    def close(self) -> None:
        """Ends what it holds."""
        ...


async def live_decoder(start: LiveStart, settings: Settings) -> LiveDecoder:
    """Opens the decoder of a live input.

    Raises:
        DeviceError: No reader process can be started.
    """
    if start.format not in RECORDED:
        return _Pcm(start)
    process = _Process(replace(settings.limits, audio_seconds=settings.live_seconds))
    try:
        return _Recorded(process, await process.run(process.pool.open_growing, start.format, _NAME))
    except BaseException:
        process.close()
        raise


class _Pcm:
    def __init__(self, start: LiveStart) -> None:
        self._start = start

    async def blocks(self, data: bytes) -> AsyncIterator[Frames]:
        yield self._start.samples(data)

    def close(self) -> None:
        pass


class _Process:
    """A reader process, and a thread that waits for it."""

    def __init__(self, limits: ReaderLimits) -> None:
        self.pool = ReaderPool(1, limits=limits)
        self._thread = ThreadPoolExecutor(1, "mt3 recorded")

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Does something that waits for the process."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, work, *arguments)

    def close(self) -> None:
        """Ends the process, which ends what waits for it."""
        self.pool.close()
        self._thread.shutdown(wait=False, cancel_futures=True)


class _Recorded:
    """A file that grows."""

    def __init__(self, process: _Process, reading: GrowingReading) -> None:
        self._process, self._reading = process, reading

    async def blocks(self, data: bytes) -> AsyncIterator[Frames]:
        found, seconds = self._reading.blocks(data), 0.0
        while (block := await self._process.run(next, found, None)) is not None:
            seconds += len(block) / OPUS_RATE
            if seconds > MOST_SECONDS:
                raise Refusal(
                    413,
                    "too_large",
                    f"A message holds more than {MOST_SECONDS:g} s of audio; send what is recorded "
                    "each second: recorder.start(1000).",
                )
            yield block

    def close(self) -> None:
        self._process.close()
