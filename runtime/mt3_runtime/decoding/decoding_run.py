"""What one caller wants decoded, and what comes out of it, in order.

Contract: a `Run` hands recordings to the schedule that all callers share, and gives its caller the
segments of each in their order, then its end.  What goes wrong with one recording is in its end;
what goes wrong with the device, or with the caller's list of recordings, is raised.  Closing a run
cancels what is left of it, and nothing of other runs.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

from mt3_runtime.decoding.strands import Strand, Window
from mt3_runtime.decoding.types import Decoded, Ended

if TYPE_CHECKING:
    from mt3_runtime.decoding.scheduler import Schedule
    from mt3_runtime.decoding.search import MakeSearch
    from mt3_runtime.decoding.types import Jobs

#: Seconds that closing waits for readers; they may be blocked in an input that nothing interrupts.
_PATIENCE = 1.0


class Failure:
    """An exception on its way from a thread to the caller."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Run:
    """The recordings of one caller; a context manager, and made by `Loop.open`.

    Any thread may add and cancel recordings; one takes the results.

    Args:
        schedule: Where recordings go.
        window: How many of its segments may be under way or wait for the caller.
        read_apart: Starts a thread that reads one recording.
        leave: Called when the run was closed.
    """

    def __init__(
        self,
        schedule: Schedule,
        window: int,
        *,
        read_apart: Callable[[Strand], threading.Thread],
        leave: Callable[[Run], None],
    ) -> None:
        self._schedule, self._window = schedule, Window(window)
        self._read_apart, self._leave = read_apart, leave
        self._done: queue.SimpleQueue[Decoded | Ended | Failure | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._strands: dict[int, Strand] = {}
        self._orders: dict[int, _Order] = {}
        self._out: deque[Decoded | Ended] = deque()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._complete = self._closed = False
        self._failure: BaseException | None = None
        self._when_closed: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, jobs: Jobs, search: MakeSearch, *, window: int | None = None, **how: Any) -> int:
        """Hands over a recording.

        Args:
            jobs: Its segments.
            search: Makes the search for a lane of so many slots.
            window: How many segments may wait for the caller; by default all share the run's.
            how: What else a `Strand` takes.

        Returns:
            Its number, which is on all that comes out of it.
        """
        with self._lock:
            number = next(self._numbers)
            if self._closed:
                jobs.close()
                return number
            strand = self._strands[number] = Strand(
                number=number,
                jobs=jobs,
                search=search,
                emit=self._done.put,
                window=self._window if window is None else Window(window),
                **how,
            )
            self._orders[number] = _Order()
            self._schedule.add(strand)
            if strand.slow:
                self._threads = [t for t in self._threads if t.is_alive()]
                self._threads.append(self._read_apart(strand))
        return number

    def feed(self, recordings: Iterable[Jobs], search: MakeSearch, **how: Any) -> None:
        """Hands over recordings, on a thread of its own, each when there is room for it."""
        more = iter(recordings)

        def feed() -> None:
            try:
                while self._schedule.wants_more(self._window):
                    jobs = next(more, None)
                    if jobs is None:
                        return
                    self.add(jobs, search, **how)
            except BaseException as error:  # noqa: BLE001  handed to the caller, who raises it
                self.fail(error)
            finally:
                self.end()

        self._threads.append(threading.Thread(target=feed, name="mt3 feed", daemon=True))
        self._threads[-1].start()

    def end(self) -> None:
        """No further recording will be added."""
        self._complete = True
        self._done.put(None)

    def fail(self, error: BaseException) -> None:
        """Lets the caller raise this."""
        self._failure = error
        self._done.put(Failure(error))

    def when_closed(self, call: Callable[[], None]) -> None:
        """Calls this as soon as the run is to be closed, or now if it was."""
        with self._lock:
            closed = self._closed
            self._when_closed.append(call)
        if closed:
            call()

    def wake(self) -> None:
        """Lets `get` return."""
        self._done.put(None)

    def results(self) -> Iterator[Decoded | Ended]:
        """Everything that comes out, the segments of each recording in order, until the end."""
        while self._out or self._strands or not self._complete:
            item = self.get()
            if item is not None:
                yield item
        if self._failure is not None:
            raise self._failure

    def get(self, timeout: float | None = None) -> Decoded | Ended | None:
        """Waits for the next result; None if there is none in so many seconds, or after `wake`.

        Raises:
            BaseException: What stopped the work.
        """
        while True:
            while self._out:
                found = self._out.popleft()
                strand = self._strands.get(found.recording)
                if strand is None:
                    continue  # cancelled
                if isinstance(found, Ended):
                    del self._strands[found.recording]
                else:
                    self._schedule.release(strand)
                return found
            try:
                item = self._done.get(timeout=timeout)
            except queue.Empty:
                return None
            if item is None:
                return None
            if isinstance(item, Failure):
                raise item.error
            self._sort(item)

    def cancel(self, number: int) -> None:
        """Stops the work for a recording; no more comes out of it but what has come out already."""
        with self._lock:
            strand = self._strands.pop(number, None)
            self._orders.pop(number, None)
        if strand is not None:
            self._schedule.cancel(strand)
            self.wake()

    def close(self) -> None:
        """Cancels all recordings and waits for the threads of this run; more than once is nothing.

        Readers get a second: one may be blocked in a live input that nothing can interrupt.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = self._complete = True
            strands = list(self._strands.values())
            self._strands.clear()
        self.wake()  # whoever takes results, if it is not the one who closes
        for call in self._when_closed:
            call()
        self._schedule.shut(self._window)
        for strand in strands:
            self._schedule.cancel(strand)
        end = time.monotonic() + _PATIENCE
        for strand in strands:
            self._schedule.wait_for_reader(strand, max(0.0, end - time.monotonic()))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))
        self._leave(self)

    def _sort(self, item: Decoded | Ended) -> None:
        """Puts out what has its turn with this result."""
        with self._lock:
            order, strand = self._orders.get(item.recording), self._strands.get(item.recording)
        if order is None or strand is None:
            return  # cancelled
        found, void = order.add(item)
        self._out += found
        for _ in range(void):
            self._schedule.release(strand)
        if order.complete:
            self._orders.pop(item.recording, None)


class _Order:
    """The results of one recording on their way out."""

    def __init__(self) -> None:
        self._early: dict[int, Decoded] = {}
        self._count = 0
        self._end: Ended | None = None
        self.complete = False

    def add(self, item: Decoded | Ended) -> tuple[list[Decoded | Ended], int]:
        """What has its turn with this result, and how many segments are void now."""
        if isinstance(item, Decoded):
            self._early[item.span.index] = item
        elif self._end is None or item.segments < self._end.segments:
            self._end = item
        found: list[Decoded | Ended] = []
        void = []
        if self._end is not None:
            void = [index for index in self._early if index >= self._end.segments]
            for index in void:
                del self._early[index]
        while self._count in self._early:
            found.append(self._early.pop(self._count))
            self._count += 1
        if self._end is not None and self._end.segments == self._count:
            found.append(self._end)
            self.complete = True
        return found, len(void)
