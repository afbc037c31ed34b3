"""How tests judge speed: by the work that is done, never by the clock.

How long something takes says as much about the machine and its neighbours as about the code.  What
must not take long is therefore counted, and a limit in seconds only ends what would never end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: Seconds; nothing takes a tenth of it on one core beside a busy neighbour.  It is shorter than
#: pytest's `faulthandler_timeout`, so that the test that waits says what for.
HANGS = 1000


def until(condition: Callable[[], object]) -> None:
    """Waits until something is true that another thread or process makes so."""
    end = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < end, f"{condition} did not come true"
        time.sleep(0.001)


class Work:
    """How many functions were called, Python's and C's."""

    calls = 0


@contextmanager
def counted_work() -> Iterator[Work]:
    """Counts the calls that this thread makes inside the block."""
    work, before = Work(), sys.getprofile()

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        if event in ("call", "c_call"):
            work.calls += 1

    sys.setprofile(count)
    try:
        yield work
    finally:
        sys.setprofile(before)
