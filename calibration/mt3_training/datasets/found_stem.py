"""What the readers of data sets find: stems with audio and labels, and what they leave out.

Contract: a reader yields `FoundStem` and `LeftOut`, song by song, in an order that depends on names
only.  Nothing that belongs to a song is passed over without a `LeftOut`.  A file that a link puts
outside of the data set is left out: an index must not carry files out of a folder that somebody
handed over.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mt3_runtime.errors import OptionError
from mt3_runtime.filesystem.atomic import is_folder
from mt3_runtime.notes.stems import Stem


@dataclass(frozen=True)
class FoundStem:
    """A stem as a data set has it, before its files are read.

    Attributes:
        track: The song.
        stem_id: The stem's name in it.
        audio: The recording.
        labels: Its notes.
        stem: What it holds by the data set's own word; None where only the notes say.
        program: Its MIDI program by the data set's own word; None where only the notes say.
        is_drum: Whether it is drums by the data set's own word.
        split: Its part of the data set by the data set's own word, or None.
        metadata: What else the data set says.
    """

    track: str
    stem_id: str
    audio: Path
    labels: Path
    stem: Stem | None = None
    program: int | None = None
    is_drum: bool = False
    split: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Its name in an index."""
        return f"{self.track}-{self.stem_id}"


@dataclass(frozen=True)
class LeftOut:
    """What is not taken, and why.

    Attributes:
        track: The song.
        stem_id: The stem, or nothing for the whole song.
        reason: In a few words, the same for all of a kind.
        detail: What this one is about.
    """

    track: str
    stem_id: str
    reason: str
    detail: str = ""


Found = Iterator[FoundStem | LeftOut]

_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
}


def split_named(word: str) -> str | None:
    """The split that a data set's word stands for; None if it stands for none."""
    return _SPLITS.get(word.strip().lower())


def split_of_folder(folder: Path, root: Path) -> str | None:
    """The split that the folders between a root and a song name."""
    try:
        between = folder.relative_to(root).parts[:-1]
    except ValueError:
        return None
    named = [split for part in between if (split := split_named(part))]
    return named[-1] if named else None


def folders(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Every folder below a root with the names of its folders and files, all in order.

    The caller may remove names of folders that are not to be entered.  Links are not followed.

    Raises:
        OptionError: The root is no folder, or cannot be read.
    """
    if not is_folder(root):
        raise OptionError(f"{root} is no folder; name that of the data set.")

    def fail(error: OSError) -> None:
        raise OptionError(f"{error.filename} cannot be read: {error.strerror}.") from error

    for place, names, files in os.walk(root, onerror=fail):
        names.sort()
        yield Path(place), names, sorted(files)


def links(place: Path, names: Iterable[str]) -> list[LeftOut]:
    """Links among the names of folders: they are not followed."""
    return [
        LeftOut(name, "", "a link to a folder is not followed", str(place / name))
        for name in names
        if (place / name).is_symlink()
    ]


def song_names(songs: Iterable[Path], root: Path) -> dict[Path, str]:
    """Names of songs by their folders: the folder's own, and with its path where two have one."""
    every = list(songs)
    counts = Counter(song.name for song in every)
    return {
        song: song.name if counts[song.name] == 1 else song.relative_to(root).as_posix()
        for song in every
    }


def leads_out(path: Path, root: Path) -> bool:
    """Whether a file is not in a folder, once all links are followed."""
    try:
        return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    except (OSError, ValueError):
        return True


def is_file(path: Path) -> bool:
    """Whether there is a file; `Path.is_file` raises for names that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113
