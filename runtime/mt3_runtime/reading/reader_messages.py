"""Messages between this process and a reader process: a line of JSON, then arrays and bytes.

Contract: `send` and `receive` are inverse.  Nothing is unpickled, and what a message may hold is
bounded: a reader process is where files of strangers do harm, if anywhere, and its parent must not
believe it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

_MOST_LINE, _MOST_ARRAY = 1 << 20, 1 << 28
"""Bytes of a line, and of an array."""

_MOST_ARRAYS = 8
"""Of a message; there are 6, of features and salience frames."""

_TYPES = ("float16", "float32", "float64")


class Message(NamedTuple):
    """What was received.

    Attributes:
        fields: Plain values.
        arrays: Of float16, float32 or float64.
    """

    fields: dict[str, Any]
    arrays: list[npt.NDArray[Any]]


class GarbledError(Exception):
    """What was received is no message."""


def send(
    file: BinaryIO, fields: Mapping[str, Any], arrays: Sequence[npt.NDArray[Any]] = ()
) -> None:
    """Writes a message, and flushes it."""
    shapes = [[array.dtype.name, list(array.shape)] for array in arrays]
    file.write(json.dumps({**fields, "arrays": shapes}).encode() + b"\n")
    file.writelines(np.ascontiguousarray(array).data.cast("B") for array in arrays if array.size)
    file.flush()


def receive(file: BinaryIO) -> Message:
    """Reads a message.

    Raises:
        EOFError: The other side has gone.
        GarbledError: This is no message.
    """
    line = file.readline(_MOST_LINE)
    if not line.endswith(b"\n"):
        raise EOFError
    try:
        fields = json.loads(line)
        described = fields.pop("arrays")
        if len(described) > _MOST_ARRAYS:
            raise GarbledError(f"{len(described)} arrays")
        arrays = [_empty(kind, shape) for kind, shape in described]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GarbledError(str(error)) from error
    for array in arrays:
        if array.size:
            _fill(file, array.data.cast("B"))
    return Message(fields, arrays)


def _empty(kind: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    """An array to be filled."""
    small = all(isinstance(n, int) and 0 <= n <= _MOST_ARRAY for n in shape)
    if kind not in _TYPES or not small or math.prod(shape) > _MOST_ARRAY // 8:
        raise ValueError(f"{kind} {shape} is no array")
    return np.empty(tuple(shape), kind)


def _fill(file: BinaryIO, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        done += count
