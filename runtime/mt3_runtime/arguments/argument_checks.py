"""Checks types and ranges of arguments at the door, before anything is done with them.

Contract: each function returns the value as what it must be, or raises `OptionError` with the
argument's name, what it is, and what was expected.  Whatever is passed, nothing of Python's own
comes out of them (an array has no truth value, a list no hash, an integer may exceed every float).
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mt3_runtime.errors import OptionError

T = TypeVar("T")


def refused(name: str, value: object, expected: str) -> OptionError:
    """The error for an argument that is something else than expected."""
    return OptionError(f"{name} is {reprlib.repr(value)}; expected {expected}.")


def as_flag(name: str, value: object) -> bool:
    """True or False; None, the default, is False."""
    if value is None or isinstance(value, bool | np.bool_):
        return bool(value)
    raise refused(name, value, "True or False")


def as_number(name: str, value: object, expected: str) -> float:
    """A real number that is not NaN; infinity is left to the caller's range."""
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            raise refused(name, value, expected) from None
        if number == number:  # noqa: PLR0124  false for NaN
            return number
    raise refused(name, value, expected)


def as_seconds(name: str, value: object) -> float:
    """A positive number of seconds."""
    expected = "a positive number of seconds"
    seconds = as_number(name, value, expected)
    if seconds <= 0.0:
        raise refused(name, value, expected)
    return seconds


def as_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """One of a few words."""
    if isinstance(value, str) and value in choices:
        return value
    raise refused(name, value, f"one of {', '.join(choices)}")


def as_path_text(name: str, value: object, expected: str = "a path") -> str:
    """A path as it was written, or a name."""
    if isinstance(value, str | os.PathLike):
        path: str | bytes = os.fspath(value)
        if isinstance(path, str):
            return path
    raise refused(name, value, f"{expected}, as text or pathlib.Path")


def as_path(name: str, value: object) -> Path:
    """A path."""
    return Path(as_path_text(name, value))


def as_bytes(name: str, value: object) -> bytes:
    """The content of a file."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise refused(name, value, "the bytes of a file")


def as_callback(name: str, value: T) -> T:
    """A function, or None."""
    if value is None or callable(value):
        return value
    raise refused(name, value, "a function, or None")


def as_items(name: str, value: Any, expected: str) -> list[Any]:
    """The items of a list, a tuple, a generator ..., but not those of text, bytes or mappings."""
    if not isinstance(value, str | bytes | bytearray | Mapping):
        try:
            return list(value)
        except TypeError:
            pass
    raise refused(name, value, expected)


def as_list_of(kind: type[T], name: str, value: Any, expected: str) -> list[T]:
    """The items, all of a type."""
    items = as_items(name, value, expected)
    for index, item in enumerate(items):
        if not isinstance(item, kind):
            raise refused(f"item {index} of {name}", item, expected)
    return items
