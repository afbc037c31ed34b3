"""Transcribes the sources of a batch in an engine, a bounded number of them at a time.

Contract: `BatchEngine.results` takes tasks in and gives each with its outcome out, in the order in
which they end.  A source that cannot be read, takes too long or is too long is given up and leaves
the others alone.

A source that did not end beside others may be innocent: of those in an engine whose device fails
any may be at fault, and one that is late may have waited for another.  So its outcome is an
`UndecidedError`, and whoever gets that tries it alone.  A device that fails again before anything
was done has failed for good.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, wait
from typing import TYPE_CHECKING, Any

from mt3_runtime.batch.task import (
    DeviceFailureError,
    Task,
    TimeLimitError,
    TooLongError,
    UndecidedError,
    check_length,
)
from mt3_runtime.errors import DeadlineError, EngineError, OptionError

if TYPE_CHECKING:
    from mt3_runtime.batch.task import Outcome
    from mt3_runtime.engine import Engine
    from mt3_runtime.model import Model
    from mt3_runtime.transcription import Handle, Progress

#: Recordings under way: as many as a model with memory, which decodes one segment of each at a
#: time, has slots on the largest device.
_MOST = 64

#: Seconds of audio under way, for models without memory: 146 segments of 2.048 s, more than the 128
#: slots of the largest device.  What is under way when the process dies is read alone later on.
_ENOUGH = 300.0

#: Seconds between two looks at how far the recordings are.
_LOOK = 0.2


class BatchEngine:
    """See the module docstring.

    Args:
        model: What transcribes.
        options: Of `Engine.submit`.
        begin: Is told that a source is about to be read.
        update: Is told how far a source is.
        look: Is called a few times a second while results are waited for.
        timeout: Seconds that a source may take.
        longest: Seconds that a recording may last.
        readers: Processes that read, as of `Model.engine`.
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
        readers: int = 0,
    ) -> None:
        self._model, self._options, self._readers = model, options, readers
        self._begin, self._update, self._look = begin, update, look
        self._timeout, self._longest = timeout, longest
        memory = model.info.decoding.memory_tokens
        self._seconds = math.inf if memory else _ENOUGH
        self._late = self._failed = self._broken = False

    @property
    def broken(self) -> bool:
        """Whether the device has failed for good, and sources may be left."""
        return self._broken

    def results(self, tasks: Iterable[Task]) -> Generator[tuple[Task, Outcome], None, None]:
        """Yields each task with what came of it, but for those left by a broken device.

        Raises:
            OptionError: The model cannot do what is asked of it.
            MT3Error: The device failed with the only source.
        """
        todo = deque(tasks)
        if todo:  # refuses options before anything is begun
            self._model.transcribe_many((), **self._options)
        only = len(todo) == 1
        while todo and not self._broken:
            self._late = False
            with self._open() as engine:
                for task, outcome in self._run(engine, todo):
                    decided = only or not task.key
                    if isinstance(outcome, EngineError):
                        cause = outcome.__cause__ or outcome
                        if only and isinstance(cause, Exception):
                            raise cause
                        failure = DeviceFailureError.of(task.job.source, cause)
                        yield task, failure if self._broken or decided else UndecidedError(failure)
                    elif isinstance(outcome, DeadlineError):
                        late = TimeLimitError.of(task.job.source, self._timeout or 0.0)
                        yield task, late if decided else UndecidedError(late)
                    else:
                        self._failed = self._failed and isinstance(outcome, Exception)
                        yield task, outcome

    def _open(self) -> Engine:
        """The engine of the batch."""
        return self._model.engine(max_recordings=_MOST, max_seconds=math.inf, readers=self._readers)

    def _run(
        self, engine: Engine, todo: deque[Task]
    ) -> Generator[tuple[Task, Outcome], None, None]:
        """What comes out of one engine; what it has not done when it ends is in ``todo`` again."""
        under_way: dict[Handle, Task] = {}
        while (todo or under_way) and not self._stuck(engine):
            while todo and self._has_room(under_way):
                task = todo.popleft()
                self._begin(task)
                try:
                    under_way[self._submit(engine, task)] = task
                except EngineError as error:
                    yield from self._ended(under_way, error, task)
                    return
                except OptionError:
                    raise
                except Exception as error:  # noqa: BLE001  looking at it found a bug of ours
                    yield task, error
            wait(under_way, _LOOK, FIRST_COMPLETED)
            failure: EngineError | None = None
            for handle, task in [*under_way.items()]:
                outcome = self._outcome(handle, task)
                if isinstance(outcome, EngineError):
                    failure = outcome
                elif outcome is not None:
                    del under_way[handle]
                    yield task, outcome
            if failure is not None:
                yield from self._ended(under_way, failure)
                return
            self._look()
        todo.extendleft(reversed(under_way.values()))

    def _submit(self, engine: Engine, task: Task) -> Handle:
        return engine.submit(task.audio, priority="batch", deadline=self._timeout, **self._options)

    def _has_room(self, under_way: dict[Handle, Task]) -> bool:
        """Whether another one is begun: there are always two, so that slots are never empty."""
        if len(under_way) < 2:
            return True
        return len(under_way) < _MOST and sum(h.left for h in under_way) < self._seconds

    def _outcome(self, handle: Handle, task: Task) -> Outcome | None:
        """What came of a recording; None if it is under way."""
        done, now = handle.done(), handle.progress
        try:
            if now is not None:
                self._update(task, now)
            reached = handle.left + (now.seconds_done if now else 0.0)
            check_length(task.job.source, reached, self._longest)
        except TooLongError as error:
            handle.cancel()
            return error
        if not done:
            return None
        failure = handle.exception()
        if failure is not None and not isinstance(failure, Exception):
            raise failure
        self._late = self._late or isinstance(failure, DeadlineError)
        return failure or handle.result()

    def _ended(
        self, under_way: dict[Handle, Task], error: EngineError, *more: Task
    ) -> Generator[tuple[Task, Outcome], None, None]:
        """What becomes of those that are under way when the device fails."""
        self._broken, self._failed = self._failed, True
        for handle, task in under_way.items():
            own = handle.exception() if handle.done() else error
            yield task, own if isinstance(own, Exception) else handle.result()
        for task in more:
            yield task, error

    def _stuck(self, engine: Engine) -> bool:
        """Whether a source that was given up keeps the others from being read."""
        if not self._late:
            return False
        health = engine.health()
        return not (health.waiting or health.decoding)
