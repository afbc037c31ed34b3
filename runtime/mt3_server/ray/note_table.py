"""Notes as an Apache Parquet table, one row a note: what data frames and query engines read.

Columns: ``onset`` and ``offset`` in seconds (float64), ``pitch``, ``velocity``, ``program``
(uint8), ``is_drum`` (bool), ``confidence`` (float32).  A file has the notes of one recording, under
its name.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from mt3_runtime.files.formats import check_format
from mt3_runtime.imports.extras import require
from mt3_runtime.notes.note import Note

PARQUET = "parquet"
"""Name of the format."""

SUFFIX = ".parquet"

_TYPES = {
    "onset": "float64",
    "offset": "float64",
    "pitch": "uint8",
    "velocity": "uint8",
    "program": "uint8",
    "is_drum": "bool_",
    "confidence": "float32",
}


def parquet(notes: Sequence[Note]) -> bytes:
    """The bytes of a table.

    Raises:
        MissingDependencyError: Apache Arrow is not installed.
    """
    arrow = require("pyarrow", "writing Parquet", "ray")
    tables = require("pyarrow.parquet", "writing Parquet", "ray")
    columns = {
        name: arrow.array([getattr(note, name) for note in notes], getattr(arrow, kind)())
        for name, kind in _TYPES.items()
    }
    buffer = io.BytesIO()
    tables.write_table(arrow.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def check_formats(names: Sequence[str]) -> tuple[str, ...]:
    """Formats without repetition.

    Raises:
        OptionError: One of them is unknown.
    """
    for name in names:
        if name != PARQUET:
            check_format(name)
    return tuple(dict.fromkeys(names))
