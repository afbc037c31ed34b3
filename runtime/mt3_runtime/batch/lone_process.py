"""Transcribes sources one at a time in a process of its own, which may die of them.

Contract: a source that ends the process (a decoder that crashes, memory that the system refuses to
give) has failed, and nothing else: the next one gets a new process.  A process is kept as long as
it lives, because it takes a second to load the model.  It ends with its parent, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mt3_runtime.batch.task import CrashError, LoneError, Task, TimeLimitError, check_length
from mt3_runtime.errors import AudioError
from mt3_runtime.imports.interrupts import ENDING

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from mt3_runtime.batch.task import Outcome
    from mt3_runtime.transcription import Progress, Transcription

#: Seconds between two looks at the clock.
_LOOK = 0.2


class LoneProcess:
    """See the module docstring; a context manager.

    Args:
        load: Arguments of `mt3_runtime.loading.load_model`.
        options: Of `Model.transcribe_notes`.
        begin: Is told that a source is about to be read.
        look: Is called a few times a second while a result is waited for.
        timeout: Seconds that a source may take.
        longest: Seconds that a recording may last.
    """

    def __init__(
        self,
        load: dict[str, Any],
        options: dict[str, Any],
        *,
        begin: Callable[[Task], None],
        look: Callable[[], None],
        timeout: float | None = None,
        longest: float | None = None,
    ) -> None:
        self._work = partial(_work, load, options, longest)
        self._begin, self._look, self._timeout = begin, look, timeout
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def results(self, tasks: Iterable[Task]) -> Generator[tuple[Task, Outcome], None, None]:
        """Yields each task with what came of it."""
        for task in tasks:
            self._begin(task)
            yield task, self._transcribe(task.job.source)

    def _transcribe(self, source: Path) -> Outcome:
        pipe, process = self._running()
        begun: float | None = None
        try:
            pipe.send(source)
            while True:
                self._look()
                if wait([pipe, process.sentinel], _LOOK):
                    answer = pipe.recv()
                    if answer is not None:
                        return answer  # type: ignore[no-any-return]
                    begun = time.monotonic()  # the model is loaded
                elif begun and self._timeout and time.monotonic() - begun > self._timeout:
                    self._kill()
                    return TimeLimitError.of(source, self._timeout)
        except (EOFError, OSError):  # it died
            process.join()
            code = process.exitcode or 0
            self._kill()
            return CrashError(f"{source} ended the process that read it ({_named(code)}).")

    def _running(self) -> tuple[Connection, SpawnProcess]:
        """The process, started if there is none."""
        if self._pipe is None or self._process is None or not self._process.is_alive():
            self._kill()
            context = multiprocessing.get_context("spawn")
            self._pipe, other = context.Pipe()
            self._process = context.Process(target=self._work, args=(other,), daemon=True)
            self._process.start()
            other.close()
        return self._pipe, self._process

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def _work(
    load: dict[str, Any], options: dict[str, Any], longest: float | None, pipe: Connection
) -> None:
    """What the process does: for each path that comes in, None when begun, and what came of it."""
    for number in (signal.SIGINT, *ENDING):  # the parent answers them, and ends us
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")
    from mt3_runtime.loading import load_model  # noqa: PLC0415  only here

    outcome: Transcription | Exception
    with suppress(EOFError, OSError), ExitStack() as stack:
        try:
            model = stack.enter_context(load_model(**load))
        except Exception as error:  # noqa: BLE001  handed to the parent
            pipe.send(_sendable(pipe.recv(), error))
            return
        while True:
            source = pipe.recv()
            pipe.send(None)
            within = partial(_check, source, longest)
            try:
                outcome = model.transcribe_notes(source, progress=within, **options)
            except Exception as error:  # noqa: BLE001  handed to the parent
                outcome = _sendable(source, error)
            pipe.send(outcome)


def _check(source: Path, longest: float | None, now: Progress) -> None:
    check_length(source, max(now.seconds_done, now.seconds_total or 0.0), longest)


def _sendable(source: Path, error: Exception) -> Exception:
    """The exception, or one that says the same and can certainly be pickled."""
    if isinstance(error, AudioError):
        return type(error)(*error.args)
    return LoneError(f"{source}: {type(error).__name__}: {error}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _named(code: int) -> str:
    """What an exit code says: the name of a signal, where it was one."""
    with suppress(ValueError):
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"signal {-code}"
