"""Transcribes the sources of a batch one after the other, each with a line-up of its own.

Contract: as of `mt3_runtime.batch.batch_engine.BatchEngine`; with ``instruments="auto"`` a
recording is transcribed twice, and the second time depends on the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any

from mt3_runtime.batch.task import Task, TimeLimitError, check_length
from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    from mt3_runtime.batch.task import Outcome
    from mt3_runtime.model import Model
    from mt3_runtime.transcription import Progress


class AutoEngine:
    """See the module docstring.

    Args:
        model: What transcribes.
        options: Of `Model.transcribe_notes`.
        begin: Is told that a source is about to be read.
        update: Is told how far a source is.
        look: Is called after every segment.
        timeout: Seconds that a source may take, looked at after every segment.
        longest: Seconds that a recording may last.

    Attributes:
        broken: Whether the device has failed for good; what it raises ends the batch instead.
    """

    broken = False

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
        self._model, self._options = model, options
        self._begin, self._update, self._look = begin, update, look
        self._timeout, self._longest = timeout, longest

    def results(self, tasks: Iterable[Task]) -> Generator[tuple[Task, Outcome], None, None]:
        """Yields each task with what came of it.

        Raises:
            OptionError: The model cannot do what is asked of it.
        """
        for task in tasks:
            self._begin(task)
            yield task, self._transcribe(task)

    def _transcribe(self, task: Task) -> Outcome:
        begun, source = time.monotonic(), task.job.source

        def watch(now: Progress) -> None:
            self._look()
            self._update(task, now)
            check_length(source, max(now.seconds_done, now.seconds_total or 0.0), self._longest)
            if self._timeout and time.monotonic() - begun > self._timeout:
                raise TimeLimitError.of(source, self._timeout)

        try:
            return self._model.transcribe_notes(task.audio, progress=watch, **self._options)
        except OptionError:
            raise
        except Exception as error:  # noqa: BLE001  sorted out by the batch
            return error
