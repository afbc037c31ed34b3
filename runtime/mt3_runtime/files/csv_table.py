"""CSV tables as programs and spreadsheets write them: bytes -> rows of named cells.

Contract: a table is read, or one error names the line and the column.  Separators are commas,
semicolons or tabs, told by the header; with the latter two, numbers may have decimal commas.  Text
is UTF-8, UTF-16 or UTF-32, with any line ends.  A row of more cells than the header is refused:
decimal commas in a table that is separated by commas would shift its values.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence

from mt3_runtime.arguments.argument_checks import as_bytes
from mt3_runtime.errors import OptionError

SEPARATORS = (",", ";", "\t")

_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\n')  # what Excel reads, and some programs write

Row = Mapping[str, str]
"""Cells by the names of their columns, without space around them; missing ones are not there."""


def decode_text(data: bytes | str) -> str:
    """Text of a file in UTF-8, UTF-16 or UTF-32, without a byte order mark.

    Raises:
        OptionError: It is in neither.
    """
    if isinstance(data, str):
        return data.removeprefix("\ufeff")
    data = as_bytes("data", data)
    # By a byte order mark, or the zeros of ASCII characters; a mark alone is no text.
    encoding = json.detect_encoding(data) if len(data) > 2 else "utf-8"
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise OptionError(f"expected UTF-8 text: {error}") from error


def read_table(
    data: bytes | str, needed: Sequence[str]
) -> tuple[list[str], Iterator[tuple[int, Row]]]:
    """Read a table by its header.

    Args:
        data: The file.
        needed: Columns without which it makes no sense.

    Returns:
        Names of the columns, in lower case, and an iterator over the number of a line and its row;
        empty lines are left out.

    Raises:
        OptionError: It is no text, a column is missing or there twice; from the iterator: a row is
            longer than the header, or its quotes are wrong.
    """
    text = io.StringIO(decode_text(data), newline=None).read()
    given = _SEPARATOR_LINE.match(text)
    separator = given[1] if given else _separator(text, needed)
    rows = _rows(text[given.end() :] if given else text, separator, first=2 if given else 1)
    line, header = next(rows, (1, []))
    columns = [name.lower() for name in header]
    for name in needed:
        if columns.count(name) != 1:
            problem = "occurs twice" if name in columns else "is missing"
            raise OptionError(
                f"line {line}: the column {name!r} {problem}; expected a header such as "
                f"{','.join(needed)}"
            )
    return columns, _named(rows, columns, decimal_commas=separator != ",")


def _separator(text: str, needed: Sequence[str]) -> str:
    """The separator by which a header has most of the needed columns."""
    header = text.lstrip("\n").partition("\n")[0]

    def found(separator: str) -> tuple[int, int]:
        names = [name.strip(' "').lower() for name in header.split(separator)]
        return sum(name in names for name in needed), len(names)

    return max(SEPARATORS, key=found)


def _rows(text: str, separator: str, *, first: int) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of every row that has any."""
    reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                yield reader.line_num + first - 1, stripped
    except csv.Error as error:
        raise OptionError(f"line {reader.line_num + first - 1}: {error}") from error


def _named(
    rows: Iterator[tuple[int, list[str]]], columns: Sequence[str], *, decimal_commas: bool
) -> Iterator[tuple[int, Row]]:
    for line, cells in rows:
        if any(cells[len(columns) :]):
            raise OptionError(
                f"line {line} has {len(cells)} cells, and the header {len(columns)}; "
                "if the numbers have decimal commas, separate them by semicolons"
            )
        row = dict(zip(columns, cells, strict=False))
        for name, cell in row.items() if decimal_commas else ():
            if _DECIMAL_COMMA.fullmatch(cell):
                row[name] = cell.replace(",", ".")
        yield line, row
