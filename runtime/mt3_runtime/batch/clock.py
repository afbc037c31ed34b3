"""Looks at the clock while another thread waits, and ends its wait when time is up.

Contract: the thread that enters a `Clock` waits inside `Clock.waiting`, and `TimeIsUp` is raised
there when that takes too long.  A wait that nothing else ends (a
pipe nobody writes to, a decoder that hangs) is ended by a signal; where there is none, as on
Windows and off the main thread, such a wait has no end, and only `Clock.check` notices.

The clock is one that never jumps.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

#: Seconds between two looks.
_LOOK = 0.2


class TimeIsUp(Exception):  # noqa: N818  no error: a wait is ended
    """The time that something may take is over."""


class Clock:
    """See the module docstring; a context manager.

    Args:
        look: Is called a few times a second, on a thread of its own.
        timeout: Seconds that a wait may take; None for any.
    """

    def __init__(self, look: Callable[[], None], timeout: float | None) -> None:
        self._look, self._timeout = look, timeout
        self._since, self._waits = time.monotonic(), False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._waiter: int | None = None
        self._before: Any = None

    def __enter__(self) -> Self:
        own = threading.current_thread() is threading.main_thread()
        if self._timeout is not None and own and hasattr(signal, "SIGALRM"):
            self._waiter = threading.get_ident()
            self._before = signal.signal(signal.SIGALRM, self._ring)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._waiter is not None:
            signal.signal(signal.SIGALRM, self._before or signal.SIG_DFL)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, time is counted.

        Raises:
            TimeIsUp: It takes too long.
        """
        self._since, self._waits = time.monotonic(), True
        try:
            yield
        finally:
            self._waits = False

    def check(self) -> None:
        """Looks whether time is up.

        Raises:
            TimeIsUp: It is.
        """
        if self._late():
            raise TimeIsUp

    def _late(self) -> bool:
        late = self._timeout is not None and time.monotonic() - self._since > self._timeout
        return late and self._waits

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK):
            self._look()
            if self._waiter is not None and self._late():
                signal.pthread_kill(self._waiter, signal.SIGALRM)

    def _ring(self, _number: int, _frame: FrameType | None) -> None:
        self.check()
