"""Strict parsing of JSON data into frozen dataclasses.

A manifest comes from a file that anybody may have touched, so nothing is defaulted or coerced: the
keys must be exactly the fields, every value must have its field's type, and numbers must be finite
and of a sane size.  The annotations of a dataclass are its schema: `int`, `float`, `str`, `bool`,
``None``, ``Literal``, enumerations, tuples, dictionaries, other dataclasses, and `Between` for the
range of a number, as in ``Annotated[int, Between(1, 128)]``.
"""

from __future__ import annotations

import json
import reprlib
import types
import unicodedata
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mt3_runtime.errors import BundleError, OptionError
from mt3_runtime.filesystem.regular_file import open_regular

T = TypeVar("T")
Arguments = tuple[Any, ...]

LARGEST_INT = (1 << 53) - 1
"""The largest whole number that every reader of JSON has exactly (RFC 8259)."""
LARGEST_FLOAT = 1e9
"""No quantity in a file of ours comes near; its square is still a float32."""

_REMEDY = "it is damaged or of another version: make it again, or update mt3-runtime"


@dataclass(frozen=True)
class Between:
    """Bounds of a number, both included."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"from {self.low} to {self.high}"


def read_fields(kind: type[T], data: object, where: str) -> T:
    """Builds a dataclass from a mapping with exactly its fields.

    Args:
        kind: A dataclass whose annotations are those above.  Of fields that are dataclasses with a
            class method ``from_dict``, that one reads them.
        data: What the file holds; a field may hold what it is to become already.
        where: Names the place in messages.

    Raises:
        BundleError: ``data`` is no mapping, or a key, a type or a number is wrong, or the dataclass
            refuses its values.
    """
    if not is_dataclass(kind):
        raise TypeError(f"{kind} is not a dataclass")
    hints = get_type_hints(kind, include_extras=True)
    wanted = [field.name for field in fields(kind) if field.init]
    values = check_keys(data, wanted, where)
    read = {name: _read(values[name], hints[name], f"{where}: {name}") for name in wanted}
    try:
        return kind(**read)
    except OptionError as error:
        raise BundleError(f"{where}: {error}") from error


def _read(value: object, hint: Any, where: str) -> Any:
    """A value that was checked against an annotation, with tuples in the place of lists."""
    if hint is object:
        return value
    reader = _READERS.get(get_origin(hint))
    if reader is not None:
        return reader(value, get_args(hint), where)
    return (_nested if is_dataclass(hint) else _scalar)(value, hint, where)


def _annotated(value: object, arguments: Arguments, where: str) -> Any:
    found = _read(value, arguments[0], where)
    for mark in arguments[1:]:
        if isinstance(mark, Between) and found is not None and not mark.low <= found <= mark.high:
            raise _wrong(where, value, f"a number {mark}")
    return found


def _optional(value: object, arguments: Arguments, where: str) -> Any:
    if value is None and types.NoneType in arguments:
        return None
    (other,) = (argument for argument in arguments if argument is not types.NoneType)
    return _read(value, other, where)


def _literal(value: object, arguments: Arguments, where: str) -> Any:
    if not any(type(value) is type(known) and value == known for known in arguments):
        known = (str(argument) or "nothing" for argument in arguments)
        raise _wrong(where, value, f"one of {', '.join(known)}")
    return value


def _tuple(value: object, arguments: Arguments, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(where, value, "a list")
    if arguments[-1] is not ... and len(value) != len(arguments):
        raise _wrong(where, value, f"a list of {len(arguments)}")
    kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
    return tuple(
        _read(item, kind, f"{where}[{index}]")
        for index, (item, kind) in enumerate(zip(value, kinds, strict=True))
    )


def _dict(value: object, arguments: Arguments, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(where, value, "an object")
    return {
        _scalar(key, str, f"{where}: a key"): _read(item, arguments[1], f"{where}: {key}")
        for key, item in value.items()
    }


#: What reads annotations that are made of others, by their origin.
_READERS: dict[Any, Callable[[object, Arguments, str], Any]] = {
    Annotated: _annotated,
    Union: _optional,
    types.UnionType: _optional,
    Literal: _literal,
    tuple: _tuple,
    dict: _dict,
}


def _nested(value: object, kind: Any, where: str) -> Any:
    if isinstance(value, kind):
        return value
    if not hasattr(kind, "from_dict"):
        return read_fields(kind, value, where)
    try:
        return kind.from_dict(value)
    except BundleError as error:
        raise BundleError(f"{where}: {error}") from error


def _scalar(value: object, kind: Any, where: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        if type(value) is kind:
            return value
        known = [member.value for member in kind]
        if type(value) is not str or value not in known:
            raise _wrong(where, value, f"one of {', '.join(known)}")
        return kind(value)
    # Not isinstance: a bool must not pass for an int.  Writers drop the point of whole numbers.
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise _wrong(where, value, kind.__name__)
    largest = {int: LARGEST_INT, float: LARGEST_FLOAT}.get(kind)
    if isinstance(value, int | float) and largest is not None:
        if not abs(value) <= largest:  # NaN compares to nothing
            raise _wrong(where, value, f"a number up to {largest:g}")
        return float(value) if kind is float else value
    if kind is str and any(unicodedata.category(c) in ("Cc", "Cs") for c in str(value)):
        raise _wrong(where, value, "text without control characters")
    return value


def _wrong(where: str, value: object, expected: str) -> BundleError:
    return BundleError(f"{where} is {reprlib.repr(value)}, expected {expected}; {_REMEDY}.")


def document_bytes(found: Any, form: str, version: int) -> bytes:
    """The file of a dataclass: indented, keys in the order of its fields, ASCII.

    Args:
        found: What `read_fields` reads again; parts of it with a ``to_dict`` are written by that.
        form: Name of the format.
        version: Of the format.
    """
    document: dict[str, Any] = {"format": form, "version": version}
    document |= {field.name: _plain(getattr(found, field.name)) for field in fields(found)}
    return (json.dumps(document, indent=1) + "\n").encode("ascii")


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


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
        document: Any = json.loads(
            data, parse_constant=_no_constant, object_pairs_hook=_without_repetition
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not readable as JSON: {error}.") from error
    if not isinstance(document, dict) or document.get("format") != format_:
        raise BundleError(f"{where} {otherwise} of this project.")
    found = document.get("version")
    if type(found) is not int or found != version:
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
        with open_regular(path, follow=True) as file:
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


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {reprlib.repr(twice)} is there twice")
    return found
