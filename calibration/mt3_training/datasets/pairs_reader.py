"""Reads tables of recordings and their MIDI files: Groove MIDI, E-GMD, MAESTRO and their like.

Contract: `pair_stems` reads every CSV table with the columns ``audio_filename`` and
``midi_filename`` (and ``split``, where there is one) directly in a folder, or the one that is
named.  Names of files are relative to the table.  What a recording holds, its notes say.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from mt3_runtime.errors import OptionError
from mt3_runtime.files.csv_table import Row, read_table
from mt3_training.datasets.found_stem import (
    Found,
    FoundStem,
    LeftOut,
    is_file,
    leads_out,
    split_named,
)

COLUMNS = ("audio_filename", "midi_filename")
STEM_ID = "S00"
"""Of the only stem of each recording."""


def is_pairs(root: Path) -> bool:
    """Whether a path is such a table, or a folder that holds one."""
    return any(_has_columns(path) for path in _tables(root))


def pair_stems(root: Path) -> Found:
    """The recordings of a table, or of all tables in a folder.

    Raises:
        OptionError: There is no such table, or it is damaged; file and line are named.
    """
    tables = [path for path in _tables(root) if _has_columns(path)]
    if not tables:
        raise OptionError(f"{root}: there is no CSV table with the columns {', '.join(COLUMNS)}.")
    names: set[str] = set()
    for table in tables:
        try:
            _, rows = read_table(table.read_bytes(), COLUMNS)
            for line, row in rows:
                yield _pair(table, line, row, names)
        except OSError as error:
            raise OptionError(f"{table} cannot be read: {error.strerror}.") from error
        except OptionError as error:
            raise OptionError(f"{table}, {error}") from error


def _tables(root: Path) -> list[Path]:
    if is_file(root):
        return [root] if root.suffix.lower() == ".csv" else []
    try:
        return sorted(path for path in root.glob("*.csv") if is_file(path))
    except OSError:
        return []


def _has_columns(table: Path) -> bool:
    try:
        with table.open("rb") as file:
            read_table(file.readline(1 << 16), COLUMNS)
    except (OSError, OptionError):
        return False
    return True


def _pair(table: Path, line: int, row: Row, names: set[str]) -> FoundStem | LeftOut:
    root = table.parent
    audio, labels = (row.get(column, "") for column in COLUMNS)
    track = PurePosixPath(audio or labels).with_suffix("").as_posix() if audio or labels else ""
    where = f"{table}, line {line}"
    if not audio or not labels:
        return LeftOut(track, STEM_ID, "no labels" if audio else "no audio", where)
    if track in names:
        return LeftOut(track, STEM_ID, "named twice", where)
    names.add(track)
    files = {"no audio": root / audio, "no labels": root / labels}
    for reason, path in files.items():
        if leads_out(path, root):
            return LeftOut(track, STEM_ID, "a name leads out of the data set", f"{where}: {path}")
        if not is_file(path):
            return LeftOut(track, STEM_ID, reason, f"{where}: there is no {path}")
    more = {name: text for name, text in row.items() if name not in COLUMNS and text}
    return FoundStem(
        track,
        STEM_ID,
        files["no audio"],
        files["no labels"],
        split=split_named(row.get("split", "")),
        metadata=more,
    )
