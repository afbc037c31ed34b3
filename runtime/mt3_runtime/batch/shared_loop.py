"""Transcribes the sources of a batch in the decoding loop that they share.

Contract: `SharedLoop.results` is all that a batch needs of a model: tasks in, each with its outcome
out.  A source that takes too long, or is too long, is given up and the others are done.  It stands
on `Model.transcribe_many`, which cannot call off a single recording: the loop is called off as a
whole, and what else was under way begins anew in another.

The loop runs on a thread of its own, so that whoever waits for results can look at the clock.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, cast

from mt3_runtime.batch.task import LoopError, Task, TimeLimitError, TooLongError, check_length
from mt3_runtime.errors import BundleError, MT3Error

if TYPE_CHECKING:
    from mt3_runtime.audio.sources import AudioSource
    from mt3_runtime.batch.task import Outcome
    from mt3_runtime.model import Model
    from mt3_runtime.transcription import Progress

#: Seconds between two looks at the clock.
_LOOK = 0.2

#: Results that wait to be written: a disk that is slow for a moment does not stop the loop.
_AHEAD = 8

#: Seconds that a loop which is called off has to end.  It does at its next segment; one that hangs
#: in reading cannot be ended, and is left behind.
_PATIENCE = 3.0


class SharedLoop:
    """See the module docstring.

    Args:
        model: What transcribes.
        options: Of `Model.transcribe_many`.
        begin: Is told, on the thread that reads, that a source is about to be read.
        update: Is told how far a source is, on the loop's thread.
        look: Is called a few times a second while results are waited for.
        timeout: Seconds that a source may take, counted from when all before it were done.
        longest: Seconds that a recording may last.
    """

    def __init__(
        self,
        model: Model,
        options: dict[str, Any],
        *,
        begin: Callable[[Task], None],
        update: Callable[[Task, Progress], None],
        look: Callable[[], None],
        timeout: float | None = None,
        longest: float | None = None,
    ) -> None:
        self.model, self.options = model, options
        self.begin, self.update, self.longest = begin, update, longest
        self._look, self._timeout = look, timeout

    def results(self, tasks: Iterable[Task]) -> Generator[tuple[Task, Outcome], None, None]:
        """Yields each task with what came of it; `LoopError` where the loop broke under it.

        Raises:
            MT3Error: The device or the journal cannot be used.
            Exception: The loop breaks again and again, or its only task broke it.
        """
        todo, broken = deque(tasks), False
        only = len(todo) == 1
        while todo:
            run = _Run(self, todo)
            try:
                for task, outcome in self._take(run):
                    broken = False
                    yield task, outcome
            except LoopError as error:
                cause = error.__cause__
                if isinstance(cause, Exception) and (broken or only):
                    raise cause from None
                broken = True
                for task in run.stop():
                    failure = LoopError()
                    failure.__cause__ = cause
                    yield task, failure
            else:
                todo.extendleft(reversed(run.stop()))
            finally:
                run.stop()

    def _take(self, run: _Run) -> Iterator[tuple[Task, Outcome]]:
        """What comes out of a loop, until it ends, or one source has to be given up."""
        since = time.monotonic()
        while True:
            item = run.get(_LOOK)
            self._look()
            if isinstance(item, BaseException):
                ours = isinstance(item, MT3Error) and not isinstance(item, BundleError)
                if ours or not isinstance(item, Exception):
                    raise item
                raise LoopError from item
            if item is _END:
                return
            if isinstance(item, tuple):
                yield item
                since = time.monotonic()
            elif run.overlong is not None:
                yield run.give_up(run.overlong)
                return
            elif (late := run.late(since, self._timeout)) is not None:
                yield run.give_up((late, _late(late, self._timeout)))
                return


class _End:
    """Comes behind the last result."""


class _Stopped(Exception):  # noqa: N818  no error: the loop is called off
    """Ends a loop from the inside."""


_END = _End()

Item = tuple[Task, "Outcome"]


class _Run:
    """One call of `Model.transcribe_many`, on a thread of its own."""

    def __init__(self, loop: SharedLoop, todo: deque[Task]) -> None:
        self._loop, self._todo, self._count = loop, todo, len(todo)
        self._changing = threading.Lock()
        self._stopped = self._left = False
        self._under_way: deque[tuple[Task, float]] = deque()
        self._numbers: dict[int, Task] = {}
        self._done: queue.Queue[Item | _End | BaseException] = queue.Queue(_AHEAD)
        self.overlong: Item | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return self._count  # a loop that knows of a single recording gives it the whole device

    def __iter__(self) -> Iterator[AudioSource]:
        """Hands out the sources, on the thread that reads them."""
        number = 0
        while (task := self._next()) is not None:
            self._loop.begin(task)
            try:
                self._measure(task)
            except TooLongError as error:
                self._forget(task)
                self._put((task, error))
                continue
            self._numbers[number] = task
            number += 1
            yield task.audio

    def get(self, seconds: float) -> Item | _End | BaseException | None:
        """The next that comes out; None if nothing does in that time."""
        try:
            item = self._done.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(item, tuple):
            self._forget(item[0])
        return item

    def late(self, since: float, timeout: float | None) -> Task | None:
        """The source whose turn it is, if it has taken too long since all before it were done."""
        with self._changing:
            if timeout is None or not self._under_way:
                return None
            task, begun = self._under_way[0]
        return task if time.monotonic() - max(begun, since) > timeout else None

    def give_up(self, item: Item) -> Item:
        """Calls the loop off because of one source, which is not begun again."""
        self._stop()
        self._forget(item[0])
        return item

    def stop(self) -> list[Task]:
        """Calls the loop off; returns the sources that were under way, each once."""
        self._stop()
        if not self._left:
            self._thread.join(_PATIENCE)
            self._left = True
        with self._changing:
            tasks = [task for task, _ in self._under_way]
            self._under_way.clear()
        return tasks

    def _stop(self) -> None:
        with self._changing:
            self._stopped = True

    def _next(self) -> Task | None:
        with self._changing:
            if self._stopped or not self._todo:
                return None
            task = self._todo.popleft()
            self._under_way.append((task, time.monotonic()))
            return task

    def _forget(self, task: Task) -> None:
        with self._changing:
            self._under_way = deque(pair for pair in self._under_way if pair[0] is not task)

    def _work(self) -> None:
        loop, number = self._loop, 0
        try:
            many = loop.model.transcribe_many(
                self, return_exceptions=True, progress=self._update, **loop.options
            )
            with closing(cast("Generator[Outcome, None, None]", many)) as run:
                for outcome in run:
                    task = self._numbers.pop(number)
                    number += 1
                    self._put((task, outcome))
            self._put(_END)
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001  raised where results are waited for
            with suppress(_Stopped):
                self._put(error)

    def _put(self, item: Item | _End | BaseException) -> None:
        while not self._stopped:
            with suppress(queue.Full):
                self._done.put(item, timeout=_LOOK)
                return
        raise _Stopped

    def _update(self, number: int, now: Progress) -> None:
        if self._stopped:
            raise _Stopped
        task = self._numbers.get(number)
        if task is None:
            return
        self._loop.update(task, now)
        try:
            seconds = max(now.seconds_done, now.seconds_total or 0.0)
            check_length(task.job.source, seconds, self._loop.longest)
        except TooLongError as error:
            self.overlong = self.overlong or (task, error)

    def _measure(self, task: Task) -> None:
        """Refuses a source that says itself that it is too long; one that cannot be read passes."""
        if self._loop.longest is None or not task.key:
            return
        from mt3_runtime.audio.sources import open_audio  # noqa: PLC0415  only with this option

        try:
            with open_audio(task.job.source) as stream:
                seconds = stream.duration or 0.0
        except MT3Error:
            return
        check_length(task.job.source, seconds, self._loop.longest)


def _late(task: Task, timeout: float | None) -> TimeLimitError:
    return TimeLimitError(
        f"{task.job.source} took longer than {timeout:g} s; raise --timeout to wait for it."
    )
