"""Output paths that collide: with those of another input, or with an input.

Contract: two paths are one place if they lead to the same file, by links or by letters whose case
the file system ignores, also where no such file exists yet.  Nothing is written.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path

from mt3_runtime.errors import OutputError
from mt3_runtime.filesystem.atomic import exists, real_path
from mt3_runtime.filesystem.folder_names import FolderNames

_LOOKED_AT = 32
"""Entries of a folder, to find one whose name has letters."""


class InputFiles:
    """All inputs, to find one that is also an output: by what it is, or where it would be.

    They are looked at when the first output is checked.
    """

    def __init__(self, sources: Iterable[Path]) -> None:
        self._sources = iter(sources)
        self._files: set[tuple[int, int]] = set()
        self._missing: set[Path] = set()

    def _look(self) -> None:
        for source in self._sources:
            try:
                found = source.stat()
            except (OSError, ValueError):
                self._missing.add(source)
            else:
                self._files.add((found.st_dev, found.st_ino))

    def check(self, path: str) -> None:
        """Refuses an output that is an input.

        Raises:
            OutputError: It is one.
        """
        self._look()
        try:
            found = Path(path).stat()
            taken = (found.st_dev, found.st_ino) in self._files
        except (OSError, ValueError):
            taken = bool(self._missing) and real_path(path) in map(real_path, self._missing)
        if taken:
            raise OutputError(f"cannot write {path}: it is also an input; choose another name")


def find_rivals(jobs: Iterable[tuple[Path, Iterable[str]]]) -> dict[Path, dict[Path, str]]:
    """By source, the others that would write to one of its places, and that place.

    Args:
        jobs: Sources, each with the paths of its results.
    """
    owners: dict[str, list[tuple[Path, str]]] = {}
    folders: dict[str, tuple[str, bool]] = {}
    names = FolderNames()
    for source, paths in jobs:
        for path in paths:
            place, name = os.path.split(path)
            if place not in folders:
                real = os.path.join(real_path(place or "."), "")  # noqa: PTH118  a Path costs
                folders[place] = real, _ignores_case(Path(place))  # ten times that
            real, any_case = folders[place]
            linked = names.is_link(path)
            key = os.path.normcase(str(real_path(path)) if linked else real + name)
            if any_case:
                key = unicodedata.normalize("NFC", key).casefold()
            owners.setdefault(key, []).append((source, path))
    found: dict[Path, dict[Path, str]] = {}
    for several in owners.values():
        for source, path in several:
            others = {other: path for other, _ in several if other != source}
            if others:
                found.setdefault(source, {}).update(others)
    return found


def _ignores_case(folder: Path) -> bool:
    """Whether a folder, or the one in which it will be made, takes A and a for one name."""
    above = real_path(folder)
    nearest = next(place for place in (above, *above.parents) if exists(place))
    with suppress(OSError):
        for entry in chain(islice(nearest.iterdir(), _LOOKED_AT), (nearest, *nearest.parents)):
            other = entry.name.swapcase()
            if entry.name.isascii() and other != entry.name:
                return entry.samefile(entry.with_name(other))
    return False


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file."""
    try:
        return one.samefile(other)
    except OSError:
        return real_path(one) == real_path(other)
