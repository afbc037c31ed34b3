"""A folder of results of `mt3 tag`, one a recording, that is resumed where it was left.

Contract: the journal is that of batches (`mt3_runtime.batch.records.journal`), under names of its
own, so that transcriptions and tags may share a folder.  What is done with equal options, of an
unchanged file, and still there, is not done again.  A file that is not provably ours is never
replaced.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mt3_runtime.batch.records.fingerprint import digest
from mt3_runtime.batch.records.journal import Journal
from mt3_runtime.batch.records.ledger import Stamp
from mt3_runtime.errors import AudioError, OptionError, OutputError
from mt3_runtime.filesystem.atomic import exists, write_atomic

if TYPE_CHECKING:
    from types import TracebackType

SUFFIXES: Mapping[str, str] = {"text": ".txt", "json": ".json", "csv": ".csv"}
"""By format."""


class TagFolder:
    """See the module docstring; a context manager.

    Args:
        folder: Of the results; it is made if it is not there.
        form: Format of the results.
        options: What decides them, as JSON values.
        restart: Do again what is done.

    Raises:
        OutputError: The folder cannot be written, or another process works there.
    """

    def __init__(
        self, folder: Path, form: str, options: Mapping[str, Any], *, restart: bool = False
    ) -> None:
        self._folder, self._suffix = folder, f".tags{SUFFIXES[form]}"
        self._digest, self._restart = digest({**options, "format": form}), restart
        self._journal = Journal(folder)
        self._stamps: dict[Path, Stamp] = {}
        self._begun: dict[Path, float] = {}
        self._journal.start({**options, "tags": form})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None or not isinstance(error, Exception):
                self._journal.end()
        finally:
            self._journal.close()

    def to_do(self, files: Iterable[Path]) -> list[Path]:
        """Those of some recordings that are not done.

        Raises:
            OptionError: Two of them have one name.
            OutputError: A result is there that is not ours.
        """
        listed = [*files]
        twice = [name for name, count in Counter(f.name for f in listed).items() if count > 1]
        if twice:
            raise OptionError(
                f"Several files are called {twice[0]}, and have one result in {self._folder}; tag "
                "their folders one by one, into folders of their own."
            )
        return [file for file in listed if not self._done(file)]

    def begin(self, file: Path) -> None:
        """A recording is about to be read.

        Raises:
            AudioError: There is no such file.
        """
        stamp = Stamp.of(file)
        if stamp is None:
            raise AudioError(f"{file}: there is no such file.")
        self._stamps[file], self._begun[file] = stamp, time.monotonic()
        self._journal.begin(self._key(file), stamp)

    def write(self, file: Path, text: str, seconds: float) -> Path:
        """Writes the result of a recording that was begun, and that it is done.

        Raises:
            OutputError: It cannot be written.
        """
        path, key = self._result(file), self._key(file)
        self._check(path, key)
        contents = {str(path): text.encode()}
        self._journal.writing(key, contents)
        write_atomic(path, contents[str(path)])
        self._journal.finish(
            "done",
            key,
            self._stamps[file],
            options=self._digest,
            split=False,
            outputs=contents,
            attempts=1,
            seconds=round(seconds, 6),
            wall=self._wall(file),
            notes=0,
        )
        return path

    def fail(self, file: Path, error: Exception) -> None:
        """Notes that a recording that was begun has no result."""
        if file in self._stamps:
            told: dict[str, Any] = {
                "error": type(error).__name__,
                "message": str(error),
                "attempts": 1,
            }
            told["wall"] = self._wall(file)
            self._journal.finish("failed", self._key(file), self._stamps[file], **told)

    def _done(self, file: Path) -> bool:
        path, key = self._result(file), self._key(file)
        entry = self._journal.entry(key)
        known = entry is not None and entry.status == "done" and entry.stamp == Stamp.of(file)
        same = entry is not None and entry.options == self._digest
        if known and same and not self._restart and self._journal.owns(str(path), key):
            return True
        self._check(path, key)
        return False

    def _check(self, path: Path, key: str) -> None:
        if exists(path) and not self._journal.owns(str(path), key):
            raise OutputError(
                f"{path} exists, and is not as this command has written it; move it elsewhere."
            )

    def _wall(self, file: Path) -> float:
        return round(time.monotonic() - self._begun[file], 3)

    def _key(self, file: Path) -> str:
        return f"{self._journal.key(file)}?tags{self._suffix}"

    def _result(self, file: Path) -> Path:
        return self._folder / (file.name + self._suffix)
