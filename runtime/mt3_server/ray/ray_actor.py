"""The actor of a batch with Ray Data: one loaded model and one engine for all files it is handed.

Contract: a block of files comes in and one row for each of them goes out, in their order, so that a
block that is done again after its actor died gives the same rows.  A file that fails is a row that
says why.  Files are decoded by a process of the actor's own: one that crashes its decoder fails
alone and does not take the actor, and its neighbours, with it.
"""

from __future__ import annotations

import pickle
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mt3_runtime.batch.task import kind_of
from mt3_runtime.errors import EngineError
from mt3_runtime.files.formats import render
from mt3_server.ray.note_table import PARQUET, parquet
from mt3_server.ray.object_store import Store, is_remote

if TYPE_CHECKING:
    from mt3_runtime.engine import Engine
    from mt3_runtime.transcription import Handle, Transcription


@dataclass(frozen=True)
class Work:
    """What an actor does, for all of its files.

    Attributes:
        load: Arguments of `mt3_runtime.loading.load_model`.
        options: Of `Engine.submit`.
        formats: Of the results.
        readers: Processes that decode files.
        timeout: Seconds that a file may take.
    """

    load: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    formats: tuple[str, ...] = ("midi",)
    readers: int = 1
    timeout: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a file.

    Attributes:
        contents: Of its results, by format; empty if it failed.
        seconds: Of audio.
        notes: How many.
        token_digest: As in `Transcription`.
        wall: Seconds it took beside others.
        error: Kind of the failure; empty if there is none.
        message: What is said about it.
        warnings: What a user should know.
    """

    contents: Mapping[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0
    notes: int = 0
    token_digest: str = ""
    wall: float = 0.0
    error: str = ""
    message: str = ""
    warnings: tuple[str, ...] = ()


class TranscribeActor:
    """See the module docstring; Ray Data makes it from a `Work`."""

    def __init__(self, work: Work) -> None:
        from mt3_runtime.loading import load_model  # noqa: PLC0415  on the worker alone

        self._work = work
        self._model = load_model(**work.load)
        self._engine = self._open()

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Transcribes a block: ``index`` and ``path`` in, ``index`` and pickled ``outcome`` out."""
        if not self._engine.health().ready:  # its device failed with the block before
            self._engine.close()
            self._engine = self._open()
        with tempfile.TemporaryDirectory(prefix="mt3-") as spool:
            began = time.monotonic()
            paths = [str(path) for path in batch["path"]]
            taken = [self._submit(path, Path(spool, str(n))) for n, path in enumerate(paths)]
            outcomes = [self._outcome(handle, began) for handle in taken]
        return {
            "index": [int(index) for index in batch["index"]],
            "outcome": [pickle.dumps(outcome) for outcome in outcomes],
        }

    def _open(self) -> Engine:
        return self._model.engine(readers=self._work.readers)

    def _submit(self, path: str, spool: Path) -> Handle | Exception:
        try:
            if is_remote(path):
                Store(path).fetch(spool)
                path = str(spool)
            return self._engine.submit(
                path, priority="batch", deadline=self._work.timeout, **self._work.options
            )
        except Exception as error:  # noqa: BLE001  it is this file's alone
            return error

    def _outcome(self, taken: Handle | Exception, began: float) -> Outcome:
        try:
            result = _result(taken)
            return Outcome(
                contents={name: content(result, name) for name in self._work.formats},
                seconds=round(result.duration, 6),
                notes=len(result.notes),
                token_digest=result.token_digest,
                wall=round(time.monotonic() - began, 3),
                warnings=tuple(result.warnings),
            )
        except Exception as error:  # noqa: BLE001  it is this file's alone
            kind = "device" if isinstance(error, EngineError) else kind_of(error)
            wall = round(time.monotonic() - began, 3)
            return Outcome(error=kind, message=str(error), wall=wall)


def _result(taken: Handle | Exception) -> Transcription:
    if isinstance(taken, Exception):
        raise taken
    return taken.result()


def content(result: Transcription, name: str) -> bytes:
    """A result in a format: one of `mt3_runtime.files.formats.FORMATS`, or ``parquet``."""
    return parquet(result.notes) if name == PARQUET else render(result, name)
