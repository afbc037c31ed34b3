"""Reads frozen dataclasses from JSON, strictly: exactly their fields, each of its type.

Contract: `read` makes a dataclass of an object, or says in one sentence where it differs; values
are then checked by the dataclass itself.  `flat` lists the leaves of a document, for comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from mt3_runtime.errors import OptionError

T = TypeVar("T")


def read(kind: type[T], data: object, where: str) -> T:
    """A dataclass from a mapping with exactly its fields, types checked as far as JSON tells.

    Args:
        kind: The dataclass.
        data: What JSON held.
        where: Name of the place, for messages.

    Raises:
        OptionError: A field is missing, unknown or of another type.
    """
    if not isinstance(data, Mapping):
        raise OptionError(f"{where}: expected an object, found {data!r}")
    wanted = {f.name: str(f.type) for f in fields(kind)}  # type: ignore[arg-type]
    missing, unknown = sorted(set(wanted) - set(data)), sorted(map(str, set(data) - set(wanted)))
    if missing or unknown:
        raise OptionError(f"{where}: missing are {missing}, unknown {unknown}")
    values = {name: _value(data[name], wanted[name], f"{where}: {name}") for name in wanted}
    return kind(**values)


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested JSON with their paths, ``stages[1].batch``."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from flat(item, f"{name}[{index}]")
    else:
        yield name, value


def _value(value: Any, annotation: str, where: str) -> Any:
    if annotation.startswith("tuple[") and isinstance(value, list):
        value = tuple(value)
    expected = _TYPES.get(annotation)
    if expected and (type(value) not in expected or value in (math.inf, -math.inf)):
        raise OptionError(f"{where} is {value!r}, expected {annotation}")
    if annotation in _COUNTS and (
        len(value) != _COUNTS[annotation] or not all(type(item) in (int, float) for item in value)
    ):
        raise OptionError(f"{where} is {value!r}, expected {_NUMBERS[_COUNTS[annotation]]} numbers")
    if annotation in _ITEMS and not all(type(item) is _ITEMS[annotation] for item in value):
        raise OptionError(f"{where} is {value!r}, expected {annotation}")
    if annotation == _WEIGHTS and not all(type(item) in (int, float) for item in value.values()):
        raise OptionError(f"{where} is {value!r}, expected numbers by name")
    return value


_WEIGHTS = "Mapping[str, float]"
_COUNTS = {"tuple[float, float]": 2, "tuple[float, float, float]": 3}
_NUMBERS = {2: "two", 3: "three"}
_ITEMS: dict[str, type] = {"tuple[str, ...]": str, "tuple[int, ...]": int}
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "str": (str,),
    _WEIGHTS: (dict,),
    **dict.fromkeys((*_COUNTS, *_ITEMS), (tuple,)),
}
