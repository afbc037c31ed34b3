"""CSV tables that a training run appends to and can cut back when it resumes.

Contract: a row is there whole or not at all, whenever the power goes; a run that goes back to an
earlier state cuts off the rows behind it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from mt3_runtime.errors import CheckpointError, OutputError
from mt3_runtime.filesystem.atomic import write_atomic
from mt3_runtime.notes.vocabulary import EventKind

LOG, SCORES = "log.csv", "scores.csv"

KINDS = (*(kind.value for kind in EventKind), "eos")
"""Kinds of tokens whose losses are told apart."""

_BOTH = ("time", "step", "progress", "stage", "examples", "seconds", "cpu_seconds")

LOG_COLUMNS = (
    *_BOTH, "rate", "loss", *KINDS, "auxiliary", "next_event", "guide", "norm",
    "examples_per_second", "memory_mib",
)  # fmt: skip
"""Losses in nats per token, means since the row before; norm is that of the gradient.  The last two
are the speed since the row before, and the most memory that the process ever held."""

_EARLIER_LOG = LOG_COLUMNS[:-2]
"""Of a log that an earlier version began; it goes on without the others."""

SCORE_COLUMNS = (
    *_BOTH, "onset_f1", "onset_precision", "onset_recall", "drum_f1", "labels", "notes", "best",
)  # fmt: skip
"""Greedy decoding of the held-out examples; labels and notes are the pitched ones."""


class Table:
    """A CSV file that grows by rows and can be cut back.

    Args:
        path: The file; made with the first row.
        columns: Names; one of them is ``step``.  A log of an earlier version keeps its own.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path, self._columns, self._wanted = path, tuple(columns), frozenset(columns)
        if self._columns == LOG_COLUMNS and self._header() == ",".join(_EARLIER_LOG) + "\n":
            self._columns = _EARLIER_LOG

    def append(self, row: Mapping[str, object]) -> None:
        """Adds a row; numbers are rounded to six digits, columns that are missing stay empty.

        Raises:
            CheckpointError: There is another table in its place.
            OutputError: It cannot be written.
            ValueError: The row has a column that the table has not.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if not self._path.exists():
            writer.writeheader()
        known = [name for name in row if name in self._columns or name not in self._wanted]
        writer.writerow({name: _short(row[name]) for name in known})
        self._check_columns()
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text.getvalue())
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from error

    def cut(self, step: int) -> None:
        """Removes the rows after a step, and a row that was never finished.

        Raises:
            CheckpointError: It is another table.
            OutputError: It cannot be written.
        """
        self._check_columns()
        rows = [row for row in self.rows() if int(row["step"]) <= step]
        if not self._path.exists():
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self._path, text.getvalue().encode())

    def rows(self) -> list[dict[str, str]]:
        """All complete rows; none if there is no file."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1]
        rows = list(csv.DictReader(io.StringIO(whole)))
        if rows and tuple(rows[0]) != self._columns:
            raise self._other()
        return rows

    def _header(self) -> str:
        """The first line; empty where there is none to read."""
        try:
            with self._path.open(encoding="utf-8", newline="") as file:
                return file.readline(1 << 12)
        except (OSError, UnicodeDecodeError):
            return ""

    def _check_columns(self) -> None:
        """Refuses a file that begins otherwise; of a header that was never finished, any part."""
        header = (",".join(self._columns) + "\n").encode()
        try:
            with self._path.open("rb") as file:
                begin = file.read(len(header))
        except FileNotFoundError:
            return
        except OSError as error:
            raise CheckpointError(f"{self._path} cannot be read: {error.strerror}") from error
        if not header.startswith(begin):
            raise self._other()

    def _other(self) -> CheckpointError:
        return CheckpointError(f"{self._path} has other columns than {', '.join(self._columns)}")


def _short(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
