"""One source of a batch on its way to its results, and how it can fail.

Contract: what transcribes takes `Task`s and yields each with its `Outcome`, in any order and each
once: a `Transcription`, or the exception that ends this one alone.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from mt3_runtime.batch.records.ledger import CRASHED, Stamp
from mt3_runtime.commands.jobs import STDIN, Job
from mt3_runtime.errors import AudioError

if TYPE_CHECKING:
    from mt3_runtime.audio.sources import AudioSource
    from mt3_runtime.transcription import Transcription

    Outcome = Transcription | Exception


@dataclass(eq=False, slots=True)
class Task:
    """A job of a batch.

    Attributes:
        job: The source and its results.
        key: The source's name in the journal; empty for standard input, which has none.
        attempts: How many times it was tried.
        alone: It must be read by a process of its own.
        keep: Of its results, those that exist are left as they are.
        size: Bytes of the source, as far as known.
        stamp: Of the source when it was handed out.
    """

    job: Job
    key: str = ""
    attempts: int = 0
    alone: bool = False
    keep: bool = False
    size: int = 0
    stamp: Stamp | None = None

    @property
    def audio(self) -> AudioSource:
        """What is to be read."""
        return sys.stdin.buffer if self.job.source == STDIN else self.job.source


class CrashError(AudioError):
    """Reading a source ended the process that did."""

    kind = CRASHED


class TimeLimitError(AudioError, TimeoutError):
    """A source took longer than it may."""

    kind = "timeout"

    @classmethod
    def of(cls, source: object, timeout: float) -> Self:
        """Of a source that may take so many seconds."""
        return cls(f"{source} took longer than {timeout:g} s; raise --timeout to wait for it.")


class TooLongError(AudioError):
    """A recording is longer than it may be."""

    kind = "too long"


class ChangedError(AudioError):
    """A source was changed while it was read."""

    kind = "changed"


class DeviceFailureError(AudioError):
    """The device failed while a source was decoded."""

    kind = "device"

    @classmethod
    def of(cls, source: object, error: BaseException) -> Self:
        """Of a source that was under way."""
        return cls(f"{source} is not done, as the device failed: {error}")


class LoneError(AudioError):
    """A source that had the model to itself met something else than unreadable audio."""

    kind = "internal"


class UndecidedError(Exception):
    """A source did not end beside others, which may be their fault: ``error`` says how."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def kind_of(error: Exception) -> str:
    """What a failure is called in journals and reports."""
    return str(getattr(error, "kind", type(error).__name__))


def is_transient(error: BaseException) -> bool:
    """Whether a failure is one of reading or writing that another try may not meet."""
    lasting = FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError
    return any(
        cause.errno and not isinstance(cause, lasting)
        for cause in _causes(error)
        if isinstance(cause, OSError)
    )


def is_full(error: BaseException) -> bool:
    """Whether a failure is that of a full disk, which every other source would meet as well."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return any(isinstance(cause, OSError) and cause.errno in full for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def check_length(source: object, seconds: float, longest: float | None) -> None:
    """Refuses a recording that is too long.

    Raises:
        TooLongError: It is.
    """
    if longest is not None and seconds > longest:
        raise TooLongError(
            f"{source} is longer than {longest:g} s ({seconds:.0f} s); cut it, or raise "
            "--max-duration."
        )
