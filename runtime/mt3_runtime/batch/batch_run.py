"""Runs a batch: takes results as they come, writes them, and keeps the record of them.

Contract: each task ends as a `Row` of the report, and in the journal; what is said about it goes to
stderr.  A source that fails is reported and the others are still done.  Failures of reading or
writing may be tried again; what may end the process is read last, by a process of its own.
"""

from __future__ import annotations

import os
import time
import warnings
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mt3_runtime.batch.batch_progress import BatchProgress
from mt3_runtime.batch.batch_report import Row
from mt3_runtime.batch.records.journal import JournalError, Record
from mt3_runtime.batch.records.ledger import Stamp
from mt3_runtime.batch.task import (
    ChangedError,
    Task,
    UndecidedError,
    is_full,
    is_transient,
    kind_of,
)
from mt3_runtime.cli import DEBUG_VARIABLE, ExitCode, talk
from mt3_runtime.commands.results import (
    REPEATED,
    about,
    contents_of,
    tell,
    tell_changes,
    tell_warnings,
    write_files,
)
from mt3_runtime.errors import AudioError, MT3Error, OutputError

if TYPE_CHECKING:
    from mt3_runtime.batch.auto_engine import AutoEngine
    from mt3_runtime.batch.batch_engine import BatchEngine
    from mt3_runtime.batch.lone_process import LoneProcess
    from mt3_runtime.batch.task import Outcome
    from mt3_runtime.transcription import Transcription

#: Seconds before failures are tried again, and the most; twice as long each time.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0

#: Exceptions of a single source.
_OWN = (AudioError, OutputError)


@dataclass(frozen=True)
class Manner:
    """How a batch is run.

    Attributes:
        tempo: Of MIDI files.
        options: Digest of the options, for the journal.
        split: Whether results are split into stems.
        retries: How many times a failure of reading or writing is tried again.
        fail_fast: Whether the first failure ends the batch.
        quiet: Whether only errors and warnings are said.
        report: Whether changes of filters are said.
        watchful: Whether a source that was changed while it was read has failed.
    """

    tempo: float | None = None
    options: str = ""
    split: bool = False
    retries: int = 0
    fail_fast: bool = False
    quiet: bool = False
    report: bool = False
    watchful: bool = False


@dataclass
class BatchRun:
    """See the module docstring.

    Attributes:
        engine: Transcribes sources beside each other.
        lone: Transcribes those that may end the process.
        record: Where it is kept what became of each.
        manner: How it is run.
        progress: Is told.
        rows: What became of each source.
        code: What the command ends with.
    """

    engine: BatchEngine | AutoEngine
    lone: LoneProcess
    record: Record
    manner: Manner
    progress: BatchProgress
    rows: list[Row] = field(default_factory=list)
    code: int = ExitCode.OK
    _seconds: float = 0.0
    _begun: float = field(default_factory=time.perf_counter)
    _since: float = field(default_factory=time.perf_counter)

    def run(self, tasks: list[Task]) -> None:
        """Does all tasks.

        Raises:
            MT3Error: The model, the device or the journal cannot be used.
            Exception: The only source met a bug of ours.
        """
        self._only = len(tasks) == 1
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for kind in REPEATED:
                warnings.simplefilter("ignore", kind)
            self._caught = caught
            todo = tasks
            for attempt in range(self.manner.retries + 1):
                if attempt and todo:
                    time.sleep(min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE))
                todo = self._pass(todo, last=attempt == self.manner.retries)
                if not todo:
                    break

    def _pass(self, tasks: list[Task], *, last: bool) -> list[Task]:
        """Tries tasks once, and returns those that are to be tried again."""
        again: list[Task] = []
        retry = None if last else again
        undecided: dict[Task, Exception] = {}
        with closing(self.engine.results([task for task in tasks if not task.alone])) as results:
            for task, outcome in results:
                if isinstance(outcome, UndecidedError):
                    undecided[task] = outcome.error
                    self.progress.again(task)
                elif self._take(task, outcome, again=retry) and self.manner.fail_fast:
                    return []
        if self.engine.broken:
            for task, error in undecided.items():
                self._take(task, error, again=None)
            return []
        alone = [task for task in tasks if task.alone or task in undecided]
        with closing(self.lone.results(alone)) as results:
            for task, outcome in results:
                if self._take(task, outcome, again=retry) and self.manner.fail_fast:
                    return []
        return again

    def _take(self, task: Task, outcome: Outcome, *, again: list[Task] | None) -> bool:
        """Writes a result, or says why there is none; returns whether the task has failed."""
        now = time.perf_counter()
        wall, self._since = now - self._since, now
        try:
            result = self._usable(task, outcome)
            written = self._write(task, result, wall)
        except JournalError:
            raise
        except Exception as error:  # noqa: BLE001  sorted out by `_fail`
            if again is not None and task.key and not is_full(error) and is_transient(error):
                talk(f"warning: {about(task.job.source, str(error))} It is tried again.")
                task.attempts += 1
                again.append(task)
                self.progress.again(task)
                return False
            self._fail(task, error, wall)
            return True
        finally:
            while self._caught:
                talk(f"warning: {self._caught.pop(0).message}")
        self._tell(task, result, written)
        return False

    def _usable(self, task: Task, outcome: Outcome) -> Transcription:
        """The result of a source.

        Raises:
            Exception: There is none, or the source is another by now.
        """
        if isinstance(outcome, Exception):
            raise outcome
        if self.manner.watchful and task.stamp and Stamp.of(task.job.source) != task.stamp:
            raise ChangedError(
                f"{task.job.source} was changed while it was read; run it again when it is whole."
            )
        return outcome

    def _write(self, task: Task, result: Transcription, wall: float) -> list[str]:
        contents = contents_of(result, task.job, self.manner.tempo)
        if task.key:
            self.record.writing(task.key, contents)
        written = write_files(
            contents, task.job, may_replace=partial(self.record.owns, key=task.key), keep=task.keep
        )
        if task.key and task.stamp:
            facts: dict[str, Any] = {
                "options": self.manner.options,
                "split": self.manner.split,
                "outputs": contents,
                "attempts": task.attempts + 1,
                "seconds": round(result.duration, 6),
                "wall": round(wall, 3),
                "notes": len(result.notes),
                "token_digest": getattr(result, "token_digest", ""),
            }
            self.record.finish("done", task.key, task.stamp, **facts)
        self.rows.append(
            Row(
                str(task.job.source), "done", tuple(written), round(result.duration, 6),
                len(result.notes), round(wall, 3), task.attempts + 1,
            )
        )  # fmt: skip
        return written

    def _fail(self, task: Task, error: Exception, wall: float) -> None:
        """Reports a failure.

        Raises:
            Exception: It is not one of this source alone.
        """
        if isinstance(error.__cause__, BrokenPipeError):
            raise error
        if is_full(error):
            raise OutputError(f"{error}. Make room, and give the same command again.") from error
        internal = not isinstance(error, _OWN)
        if internal and (isinstance(error, MT3Error) or self._only or DEBUG_VARIABLE in os.environ):
            raise error
        message = str(error)
        if internal:
            message = (
                f"internal error ({type(error).__name__}: {error}). Please report it; set "
                f"{DEBUG_VARIABLE}=1 for the traceback."
            )
        self.code = ExitCode.INTERNAL if internal else self.code or ExitCode.FAILED
        talk(f"error: {about(task.job.source, message)}")
        attempts, kind = task.attempts + 1, kind_of(error)
        self.rows.append(
            Row(
                str(task.job.source), "failed", wall=round(wall, 3), attempts=attempts,
                error=kind, message=message,
            )
        )  # fmt: skip
        if task.key and task.stamp:
            self.record.finish(
                "failed", task.key, task.stamp, error=kind, message=message, attempts=attempts,
                wall=round(wall, 3),
            )  # fmt: skip
        self.progress.finish(task, 0.0, failed=True)

    def _tell(self, task: Task, result: Transcription, written: list[str]) -> None:
        self._seconds += result.duration
        self.progress.finish(task, result.duration, failed=False)
        tell_warnings(result, task.job.source, written)
        if not self.manner.quiet:  # files share the machine: the speed is that of all so far
            speed = self._seconds / (time.perf_counter() - self._begun)
            tell(result, task.job, written, speed=speed)
        if self.manner.report:
            tell_changes(result, task.job.source)
