"""Keeps what was read of a data set's files between runs, in one SQLite file.

Contract: a value belongs to a name and to the state of files (sizes and times of last change);
where one of them has changed, nothing is known.  What was kept is there after an interruption, but
for at most the last `SAVED_EVERY` values.  Memory does not grow with the number of values.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from mt3_runtime.errors import OutputError

SAVED_EVERY = 100

_VERSION = 1
"""Of what values mean; others are forgotten."""


class FactsCache:
    """A file of values by name; a context manager.

    Args:
        path: The file; it is made if it is not there.

    Raises:
        OutputError: It cannot be made or written, or is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unsaved = 0
        try:
            self._base = sqlite3.connect(path)
            self._base.execute(
                "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, state TEXT, value TEXT)"
            )
        except sqlite3.Error as error:
            raise self._wrong(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._base.commit()
        except sqlite3.Error as failure:
            raise self._wrong(failure) from failure
        finally:
            self._base.close()

    def get(self, name: str, state: str) -> Any:
        """The value of a name in this state of its files; None if there is none."""
        try:
            row = self._base.execute(
                "SELECT value FROM facts WHERE name = ? AND state = ?", (_text(name), state)
            ).fetchone()
            return None if row is None else json.loads(row[0])
        except (sqlite3.Error, ValueError) as error:
            raise self._wrong(error) from error

    def put(self, name: str, state: str, value: Any) -> None:
        """Keeps a value."""
        try:
            self._base.execute(
                "INSERT OR REPLACE INTO facts VALUES (?, ?, ?)",
                (_text(name), state, json.dumps(value)),
            )
            self._unsaved += 1
            if self._unsaved >= SAVED_EVERY:
                self._base.commit()
                self._unsaved = 0
        except sqlite3.Error as error:
            raise self._wrong(error) from error

    def _wrong(self, error: Exception) -> OutputError:
        return OutputError(
            f"{self.path} cannot be used ({error}); it keeps what was read of the data set. Name a "
            "folder that can be written to with -o, or remove the file if it is damaged."
        )


def state_of(paths: Iterable[Path], *more: object) -> str:
    """A text that changes when a file does, or when what else is given does.

    Files that cannot be looked at count as absent.
    """
    found: list[object] = [_VERSION, *more]
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116  two calls per stem
            found += [status.st_size, status.st_mtime_ns]
        except (OSError, ValueError):
            found += [-1, -1]
    return " ".join(map(str, found))


def _text(name: str) -> str:
    """A name that SQLite takes; those of files may hold what is not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("latin-1")
