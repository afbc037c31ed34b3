"""The report of a batch: one row for each source, as JSON or CSV.

Contract: written in one step when the batch ends, also when it is called off; then it has what was
known by that time.  JSON is one object:

    format, version     "mt3-runtime.batch-report", 1
    options             what decided the results, see `mt3_runtime.batch.records.fingerprint`
    done, skipped, failed, left     numbers of sources; left: not begun, or not finished
    audio_seconds, wall_seconds     of what was done now
    sources             the rows

A row has ``source``, ``status`` (done, skipped: done by an earlier run, failed), ``outputs``,
``seconds`` of audio, ``notes``, ``wall`` seconds, ``attempts``, ``error`` (its kind) and
``message``.  CSV has the same columns; several outputs are separated by "|".
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mt3_runtime.errors import OptionError
from mt3_runtime.filesystem.atomic import write_atomic

FORMAT, VERSION = "mt3-runtime.batch-report", 1


class Row(NamedTuple):
    """One source; see the module docstring."""

    source: str
    status: str
    outputs: tuple[str, ...] = ()
    seconds: float = 0.0
    notes: int = 0
    wall: float = 0.0
    attempts: int = 0
    error: str = ""
    message: str = ""


def check_report(path: str) -> None:
    """Refuses a name that says no format.

    Raises:
        OptionError: Its suffix is neither .json nor .csv.
    """
    if Path(path).suffix.lower() not in (".json", ".csv"):
        raise OptionError(f"--report-to takes a file FILE.json or FILE.csv, got {path!r}.")


def write_report(
    path: str, rows: Sequence[Row], *, options: Mapping[str, Any], left: int, wall: float
) -> None:
    """Writes a report, in the format that the suffix says.

    Raises:
        OutputError: It cannot be written.
    """
    if Path(path).suffix.lower() == ".csv":
        write_atomic(path, _csv(rows))
        return
    counts = {
        name: sum(row.status == name for row in rows) for name in ("done", "skipped", "failed")
    }
    document = {
        "format": FORMAT,
        "version": VERSION,
        "options": dict(options),
        **counts,
        "left": left,
        "audio_seconds": round(sum(row.seconds for row in rows if row.status == "done"), 3),
        "wall_seconds": round(wall, 3),
        "sources": [row._asdict() for row in rows],
    }
    write_atomic(path, json.dumps(document, indent=1).encode() + b"\n")


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in rows:
        writer.writerow({**row._asdict(), "outputs": "|".join(row.outputs)}.values())
    return text.getvalue().encode("utf-8", "surrogateescape")
