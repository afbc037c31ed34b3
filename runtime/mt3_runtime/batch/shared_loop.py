"""Transcribes the sources of a batch in the decoding loop that they share.

Contract: `SharedLoop.results` is all that a batch needs of a model: tasks in, each with its outcome
out.  A source that takes too long, or is too long, is given up and the others are done.  It stands
on `Model.transcribe_many`, which cannot call off a single recording: the loop is called off as a
whole, and what else was under way begins anew in another.

What waits for results looks at no clock; `Clock` does, on a thread of its own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

from mt3_runtime.batch.clock import Clock, TimeIsUp
from mt3_runtime.batch.task import LoopError, Task, TimeLimitError, TooLongError, check_length
from mt3_runtime.errors import BundleError, MT3Error

if TYPE_CHECKING:
    from mt3_runtime.audio.sources import AudioSource
    from mt3_runtime.batch.task import Outcome
    from mt3_runtime.model import Model
    from mt3_runtime.transcription import Progress


class SharedLoop:
    """See the module docstring.

    Args:
        model: What transcribes.
        options: Of `Model.transcribe_many`.
        begin: Is told, on the thread that reads, that a source is about to be read.
        update: Is told how far a source is.
        look: Is called a few times a second while results are waited for, on another thread.
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
        self.look, self.timeout = look, timeout

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
                for item in run.results():
                    broken = False
                    yield item
            except LoopError as error:
                if broken or only:
                    raise cast("Exception", error.__cause__) from None
                broken = True
                for task in run.under_way():
                    failure = LoopError()
                    failure.__cause__ = error.__cause__
                    yield task, failure
            else:
                todo.extendleft(reversed(run.under_way()))


class _GivenUp(Exception):  # noqa: N818  no error: the loop is called off
    """Ends a loop because of one source."""

    def __init__(self, task: Task, reason: Exception) -> None:
        self.item = task, reason


class _Run:
    """One call of `Model.transcribe_many`."""

    def __init__(self, loop: SharedLoop, todo: deque[Task]) -> None:
        self._loop, self._todo, self._count = loop, todo, len(todo)
        self._changing = threading.Lock()
        self._stopped = False
        self._handed: dict[int, Task] = {}  # by the number that the model gives them
        self._refused: deque[tuple[Task, Outcome]] = deque()
        self._clock = Clock(loop.look, loop.timeout)

    def __len__(self) -> int:
        return self._count  # a loop that knows of a single recording gives it the whole device

    def __iter__(self) -> Iterator[AudioSource]:
        """Hands out the sources, on the thread that reads them."""
        number = 0
        while (task := self._next(number)) is not None:
            self._loop.begin(task)
            try:
                self._measure(task)
            except TooLongError as error:
                self._refused.append((task, error))
                continue
            number += 1
            yield task.audio

    def results(self) -> Iterator[tuple[Task, Outcome]]:
        """What comes out, until all are done, or one has to be given up."""
        with self._clock:
            try:
                yield from self._results()
            except _GivenUp as stop:
                yield self._give_up(*stop.item)
            except TimeIsUp:
                number = min(self._handed, default=0)  # none, if not even one was asked for
                task = self._handed.get(number) or self._todo.popleft()
                yield self._give_up(task, _late(task, self._loop.timeout))
            finally:
                self._stop()
        yield from self._refused

    def under_way(self) -> list[Task]:
        """The sources that were handed out, and of which nothing came."""
        return [self._handed[number] for number in sorted(self._handed)]

    def _results(self) -> Iterator[tuple[Task, Outcome]]:
        loop, number = self._loop, 0
        many = loop.model.transcribe_many(
            self, return_exceptions=True, progress=self._update, **loop.options
        )
        with closing(cast("Generator[Outcome, None, None]", many)) as run:
            while True:
                try:
                    with self._clock.waiting():
                        outcome = next(run)
                except StopIteration:
                    return
                except (_GivenUp, TimeIsUp):
                    raise
                except Exception as error:
                    if isinstance(error, MT3Error) and not isinstance(error, BundleError):
                        raise
                    raise LoopError from error
                yield self._forget(number), outcome
                number += 1
                while self._refused:
                    yield self._refused.popleft()

    def _next(self, number: int) -> Task | None:
        with self._changing:
            if self._stopped or not self._todo:
                return None
            task = self._handed[number] = self._todo.popleft()
            return task

    def _forget(self, number: int) -> Task:
        with self._changing:
            return self._handed.pop(number)

    def _stop(self) -> None:
        """Hands nothing out any more, also where the thread that reads hangs and is left behind."""
        with self._changing:
            self._stopped = True

    def _give_up(self, task: Task, reason: Exception) -> tuple[Task, Outcome]:
        self._stop()
        with self._changing:
            self._handed = {n: other for n, other in self._handed.items() if other is not task}
        return task, reason

    def _update(self, number: int, now: Progress) -> None:
        task = self._handed.get(number)
        if task is None:
            return
        self._loop.update(task, now)
        try:
            seconds = max(now.seconds_done, now.seconds_total or 0.0)
            check_length(task.job.source, seconds, self._loop.longest)
        except TooLongError as error:
            raise _GivenUp(task, error) from None
        self._clock.check()

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
