"""One recording that a reader process reads: what its consumer sees of it.

Contract: a :class:`PooledReading` is an iterator over :class:`ReadPart`, in order.  The pool's
thread puts parts into it, a bounded number ahead of the consumer; whatever ends the recording early
reaches the consumer behind the parts that came before.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from mt3_runtime.errors import AudioError, AudioWarning
from mt3_runtime.reading.reader_limits import ReaderLimits
from mt3_runtime.reading.reading_plan import ReadPart


class _End:
    """The recording is read."""


_Item = ReadPart | str | Exception | _End
"""A part, a warning, what went wrong, or the end."""


class PooledReading:
    """One recording; threads may put, take and close at once.

    Args:
        name: For messages.
        target_rate: Sample rate of what is read [Hz].
        limits: Under which it is read.
        ahead: Most parts that wait for the consumer.

    Attributes:
        source_rate: Of the source [Hz]; 0 until the first part is there.
        duration: Of the source [s]; None until then, or where it is not known beforehand.
        warning: What could not be read, known once the rest was; None if nothing.
        level_warnings: What of the level makes notes doubtful, known at the end.
    """

    def __init__(self, name: str, target_rate: int, limits: ReaderLimits, ahead: int) -> None:
        self.name, self.target_rate = name, target_rate
        self.source_rate = 0.0
        self.duration: float | None = None
        self.warning: str | None = None
        self.level_warnings: tuple[str, ...] = ()
        self._limits, self._ahead = limits, ahead
        self._items: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._stop: Callable[[], None] | None = None
        self._closed = self._ended = self._over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ReadPart:
        while not self._over:
            item = self._take()
            if isinstance(item, ReadPart):
                return item
            if isinstance(item, str):
                warnings.warn(item, AudioWarning, stacklevel=2)
                continue
            self._over = True
            if isinstance(item, Exception):
                raise item
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the reading, also in its midst; may be called twice."""
        with self._changed:
            stop = None if self._closed else self._stop
            self._closed = self._over = True
            self._items.clear()
            self._changed.notify_all()
        if stop:
            stop()

    @property
    def ready(self) -> bool:
        """Whether the next part, or the end, is there, so that nobody needs to wait for it."""
        return self._over or bool(self._items)

    @property
    def closed(self) -> bool:
        """Whether nobody wants any more of it."""
        return self._closed

    def begin(self, stop: Callable[[], None]) -> None:
        """A reader process takes it up; ``stop`` calls that off."""
        with self._changed:
            self._stop = stop
            self._changed.notify_all()

    def put(self, item: ReadPart | str) -> None:
        """Adds a part or a warning; waits while as many wait for the consumer as may."""
        with self._changed:
            while len(self._items) >= self._ahead and not (self._closed or self._ended):
                self._changed.wait()
            self._add(item)

    def end(self, error: Exception | None = None) -> None:
        """Nothing more comes; what is there can still be taken.  The first end counts."""
        with self._changed:
            self._stop = None
            self._add(error or _End())
            self._ended = True

    def _add(self, item: _Item) -> None:
        if not (self._closed or self._ended):
            self._items.append(item)
        self._changed.notify_all()

    def _take(self) -> _Item:
        """The next item; waits for it, but not longer than allowed once a process has begun."""
        most = self._limits.wait_seconds
        with self._changed:
            while not self._items and self._stop is None and not self._closed:
                self._changed.wait()  # for its turn
            until = None if most is None else time.monotonic() + most
            while not self._items and not self._closed:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0.0:
                    break
                self._changed.wait(left)
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._closed:
                return _End()
        self.close()
        return AudioError(self._limits.too_slow(self.name))
