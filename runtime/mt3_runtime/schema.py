"""Strict parsing of JSON data into frozen dataclasses.

A manifest comes from a file that anybody may have touched, so nothing is defaulted or coerced: the
keys must be exactly the fields, and every value must have its field's type.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from mt3_runtime.errors import BundleError

T = TypeVar("T")

#: What JSON must hold for a field of this annotation; others are the caller's to convert first.
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "str": (str,),
    "bool": (bool,),
    "dict[str, str]": (dict,),
}

_REMEDY = "the bundle is damaged or of another version: export it again, or update mt3-runtime"


def read_fields(kind: type[T], data: object, where: str) -> T:
    """Builds a dataclass from a mapping with exactly its fields.

    Args:
        kind: A dataclass; fields of the types above are checked, others are passed on.
        data: What the file holds.
        where: Names the place in messages.

    Raises:
        BundleError: ``data`` is no mapping, or a key or a type is wrong.
    """
    if not is_dataclass(kind):
        raise TypeError(f"{kind} is not a dataclass")
    wanted = {field.name: str(field.type) for field in fields(kind) if field.init}
    values = check_keys(data, wanted, where)
    for name, annotation in wanted.items():
        expected = _JSON_TYPES.get(annotation)
        # Not isinstance: a bool must not pass for an int.
        if expected and type(values[name]) not in expected:
            raise BundleError(
                f"{where}: {name} is {values[name]!r}, expected {annotation}; {_REMEDY}."
            )
        if annotation == "float":  # JSON writers drop the point of whole numbers
            values[name] = float(values[name])
    return kind(**values)


def parse_document(
    data: bytes, where: str, format_: str, version: int, *, otherwise: str, remedy: str
) -> dict[str, Any]:
    """The object in a JSON text, without the two keys that say what it is.

    Args:
        data: The text.
        where: Names the file in messages.
        format_: What its key ``format`` must be.
        version: What its key ``version`` must be.
        otherwise: What is true of it if it is of another format.
        remedy: What helps if it is of another version.

    Raises:
        BundleError: It is no JSON, of another format, or of another version.
    """
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not readable as JSON: {error}.") from error
    if not isinstance(document, dict) or document.get("format") != format_:
        raise BundleError(f"{where} {otherwise} of this project.")
    found = document.get("version")
    if found != version:
        raise BundleError(f"{where} has format version {found!r}, not {version}. {remedy}")
    return {key: value for key, value in document.items() if key not in ("format", "version")}


def read_document(
    path: Path, format_: str, version: int, *, most: int, otherwise: str, remedy: str
) -> dict[str, Any]:
    """`parse_document` of a file that has at most so many bytes.

    Raises:
        BundleError: As there, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}).") from error
    data = data if len(data) <= most else b"null"
    return parse_document(data, str(path), format_, version, otherwise=otherwise, remedy=remedy)


def check_keys(data: object, expected: Collection[str], where: str) -> dict[str, Any]:
    """Returns a copy of ``data`` if it is a mapping with exactly the expected keys.

    Raises:
        BundleError: It is not.
    """
    if not isinstance(data, Mapping):
        raise BundleError(f"{where}: expected an object, got {type(data).__name__}; {_REMEDY}.")
    missing = sorted(set(expected) - set(data))
    unknown = sorted(map(str, set(data) - set(expected)))
    if missing or unknown:
        raise BundleError(f"{where}: missing keys {missing}, unknown keys {unknown}; {_REMEDY}.")
    return dict(data)
