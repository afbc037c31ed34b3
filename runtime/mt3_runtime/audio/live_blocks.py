"""Blocks of samples between somebody who plays and somebody who reads, bounded in seconds.

Contract: `LiveBlocks.put` never waits: a block is taken, or refused because the reader is too far
behind.  Iterating waits for blocks, and ends behind the last one.  What is no audio is refused at
the door, so that whoever made it learns of it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mt3_runtime.audio.samples import FrameReader
from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    import numpy.typing as npt


class LiveBlocks:
    """The blocks of one live input; one thread reads.

    Args:
        rate: Sample rate in Hz.
        seconds: Most that may wait for the reader; one block is always taken.
    """

    def __init__(self, rate: float, seconds: float) -> None:
        self._rate, self._most, self._reader = rate, seconds, FrameReader()
        self._blocks: deque[npt.NDArray[Any]] = deque()
        self._frames = 0
        self._ended = False
        self._changed = threading.Condition()

    @property
    def seconds(self) -> float:
        """How much waits for the reader."""
        return self._frames / self._rate

    @property
    def ended(self) -> bool:
        """Whether no more is taken."""
        return self._ended

    def put(self, block: npt.ArrayLike) -> bool:
        """Takes a copy of a block [n] or [n, channels].

        Returns:
            False if it was not taken, as too much waits.

        Raises:
            AudioError: It is no audio.
            OptionError: The input has ended.
        """
        frames = np.array(self._reader.read(block))
        with self._changed:
            if self._ended:
                raise OptionError("This live input has ended; open another one.")
            if self._frames and (self._frames + len(frames)) / self._rate > self._most:
                return False
            self._blocks.append(frames)
            self._frames += len(frames)
            self._changed.notify_all()
            return True

    def end(self) -> None:
        """No more will come; what waits is still read."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        try:
            while True:
                with self._changed:
                    while not self._blocks and not self._ended:
                        self._changed.wait()
                    if not self._blocks:
                        return
                    block = self._blocks.popleft()
                    self._frames -= len(block)
                yield block
        finally:  # nobody reads any more
            self.end()
            self._blocks.clear()
