"""Finds and reads what a classifier is published as: a folder with `config.json`, or one file.

Contract: `open_source` opens weights as named tensors with their settings, whoever stored them:
safetensors, ``torch.save`` (``.bin``, ``.pth``), both without their frameworks.  Settings are read
through `Settings`, which refuses what the graphs here do not compute, by its name.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mt3_export.checkpoints.stored_arrays import brief
from mt3_export.checkpoints.torch_zip import TorchArchive
from mt3_export.classifiers.safetensors import read_safetensors
from mt3_export.weights import FloatArray
from mt3_runtime.bundles.classifier import MAX_LABELS
from mt3_runtime.errors import CheckpointError

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
#: Of one folder, the first that is there is read.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_MAX_TEXT = 1 << 22
_MAX_LABEL = 256


class Stored(Protocol):
    """A tensor in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def read(self) -> FloatArray: ...


@dataclass(frozen=True)
class Settings:
    """A JSON object of settings, asked for one by one.

    Attributes:
        where: Names the file in messages.
        values: What it holds.
    """

    where: str
    values: Mapping[str, Any]

    def number(self, name: str, usual: float, low: float, high: float) -> float:
        """A number in its bounds; raises `CheckpointError`."""
        value = self.values.get(name, usual)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise CheckpointError(
                f"{self.where}: {name} is {brief(value)}; expected a number from {low:g} to "
                f"{high:g}"
            )
        return value

    def whole(self, name: str, usual: int, low: int, high: int) -> int:
        """A whole number in its bounds; raises `CheckpointError`."""
        value = self.number(name, usual, low, high)
        if not isinstance(value, int):
            raise CheckpointError(f"{self.where}: {name} is {value}; expected a whole number")
        return value

    def must_be(self, name: str, *known: object) -> Any:
        """A setting that has one of these values, the first by default."""
        value = self.values.get(name, known[0])
        if not any(type(value) is type(each) and value == each for each in known):
            raise CheckpointError(
                f"{self.where}: {name} is {brief(value)}, which this exporter cannot write; "
                f"expected {' or '.join(map(repr, known))}"
            )
        return value

    def flag(self, name: str, *, usual: bool) -> bool:
        """A setting that is on or off; raises `CheckpointError`."""
        return bool(self.must_be(name, usual, not usual))

    def fixed(self, name: str, *, value: bool) -> None:
        """Raises `CheckpointError` if a switch is not as the graphs here need it."""
        self.must_be(name, value)

    def sizes(self, name: str, usual: tuple[int, ...]) -> tuple[int, ...]:
        """A short list of sizes from 1 to 4096."""
        value = self.values.get(name, list(usual))
        if (
            not isinstance(value, list)
            or not 1 <= len(value) <= 16
            or not all(type(n) is int and 1 <= n <= 4096 for n in value)
        ):
            raise CheckpointError(f"{self.where}: {name} is {brief(value)}; expected sizes")
        return tuple(value)

    def labels(self) -> tuple[str, ...]:
        """The names in ``id2label``, in the order of their numbers; raises `CheckpointError`."""
        found = self.values.get("id2label", {})
        if not isinstance(found, dict) or len(found) > MAX_LABELS:
            raise CheckpointError(f"{self.where}: id2label is no map of at most {MAX_LABELS} names")
        if {str(key) for key in found} != {str(i) for i in range(len(found))}:
            raise CheckpointError(f"{self.where}: id2label does not number its names from 0 on")
        return checked_labels([found[str(i)] for i in range(len(found))], f"{self.where}: id2label")


@dataclass(frozen=True)
class Source:
    """Weights and what is known of them.

    Attributes:
        path: The folder or the file.
        tensors: By the names in the file.
        config: Of ``config.json``; empty where there is none.
        preprocessor: Of ``preprocessor_config.json``; empty where there is none.
        digest: SHA-256 of the file with the weights, in hex.
    """

    path: Path
    tensors: Mapping[str, Stored]
    config: Settings
    preprocessor: Settings
    digest: str


class Tensors:
    """Takes tensors by name and shape out of what a file holds; what is left over is an error."""

    def __init__(self, stored: Mapping[str, Stored], where: str) -> None:
        self._left = dict(stored)
        self._where = where

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises `CheckpointError` if there is no such tensor."""
        if name not in self._left:
            raise CheckpointError(f"{self._where} has no tensor {name!r}; it is not complete")
        return self._left[name].shape

    def take(self, name: str, *shape: int) -> FloatArray:
        """Reads a tensor; raises `CheckpointError` for another shape, or numbers that are none."""
        found = self.shape(name)
        if found != shape:
            raise CheckpointError(
                f"{self._where}: tensor {name} has the shape {brief(list(found))}, expected "
                f"{brief(list(shape))}"
            )
        values = self._left.pop(name).read()
        if not np.isfinite(values).all():
            raise CheckpointError(f"{self._where}: tensor {name} holds values that are no numbers")
        return values

    def done(self) -> None:
        """Raises `CheckpointError` if a tensor was not taken."""
        if self._left:
            raise CheckpointError(
                f"{self._where} has {len(self._left)} tensors that no such network has, such as "
                f"{brief(next(iter(self._left)))}"
            )


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Opens a folder or a file of weights; it stays open inside.

    Raises:
        CheckpointError: There are no weights, or they cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    file = path
    if path.is_dir():
        there = [name for name in WEIGHTS if (path / name).is_file()]
        if not there:
            raise CheckpointError(f"{path} holds no weights: expected {' or '.join(WEIGHTS)}")
        file = path / there[0]
    with_config = path.is_dir() or file.name in WEIGHTS
    config = _settings(folder / CONFIG) if with_config else Settings(str(path), {})
    preprocessor = _settings(folder / PREPROCESSOR) if with_config else Settings(str(path), {})
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if file.suffix == ".safetensors":
        yield Source(path, read_safetensors(file), config, preprocessor, digest)
        return
    with TorchArchive(file) as archive:
        yield Source(path, archive.state_dict(), config, preprocessor, digest)


def _settings(path: Path) -> Settings:
    if not path.is_file():
        return Settings(str(path), {})
    try:
        values = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable as JSON ({error!s:.120})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return Settings(str(path), values)


def read_labels(path: Path) -> tuple[str, ...]:
    """The names in a file of labels.

    Args:
        path: A name a line, or a CSV table with a column ``display_name``, as AudioSet's.

    Raises:
        CheckpointError: It cannot be read, or names something twice.
    """
    try:
        text = _text(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    rows = list(csv.reader(io.StringIO(text)))
    if rows and "display_name" in rows[0]:
        column = rows[0].index("display_name")
        names = [row[column] for row in rows[1:] if len(row) > column]
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    return checked_labels(names, str(path))


def checked_labels(names: Sequence[object], where: str) -> tuple[str, ...]:
    """Labels that are short, printable and different; raises `CheckpointError`."""
    for name in names:
        if not isinstance(name, str) or not 1 <= len(name) <= _MAX_LABEL or not name.isprintable():
            raise CheckpointError(f"{where}: {brief(name)} is no name of a class")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(f"{where} names {brief(twice)} twice")
    return tuple(map(str, names))


def _text(path: Path) -> str:
    if path.stat().st_size > _MAX_TEXT:
        raise CheckpointError(f"{path} has over {_MAX_TEXT:,} bytes; expected a short text")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no UTF-8 text") from error
