"""The sources of a batch: files, folders and what is below them, lists, globs.

Contract: every source is found once and has a name that does not depend on the machine: its path
below the folder it was found in, or as it was given.  Of folders that are searched, links to other
folders and hidden ones are not followed.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mt3_runtime.commands.folder_inputs import Passed, look_into, no_audio, passed_over
from mt3_runtime.commands.jobs import STDIN
from mt3_runtime.errors import AudioError, OptionError
from mt3_runtime.filesystem.atomic import STDOUT, is_folder

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Source:
    """An input file.

    Attributes:
        path: Where it is, or `STDIN`.
        name: What it is called on every machine.
        place: The folder below that of the results into which its own belong.
    """

    path: Path
    name: str
    place: str = ""


def find_sources(
    names: Iterable[str], *, recursive: bool, fail: Callable[[AudioError], None], tell: Tell
) -> list[Source]:
    """Files as they are (existing or not), folders replaced by the audio files in them.

    Args:
        names: As a user gave them; ``-`` is standard input.
        recursive: Whether folders are searched to their ends.
        fail: Is told which folders hold no audio, or cannot be read.
        tell: Is told, in a line a folder, what was passed over.

    Raises:
        OptionError: A name is empty.
    """
    found: dict[Path, Source] = {}
    for name in names:
        if not name:
            raise OptionError("The name of an input file is empty.")  # to Path: all files here
        if name == STDOUT:  # the same word for both
            found[STDIN] = Source(STDIN, "stdin")
            continue
        try:
            for source in _below(Path(name), fail, tell, recursive=recursive) if is_folder(name) \
                    else _files(name):  # fmt: skip
                found.setdefault(source.path, source)
        except AudioError as error:
            fail(error)
    return list(found.values())


def _files(name: str) -> Iterator[Source]:
    path = Path(name)
    path = path.absolute() if path == STDIN else path
    matches: list[str] = []
    if sys.platform == "win32" and not path.exists():  # shells there leave that to programs
        matches = sorted(glob.glob(name))  # noqa: PTH207  of a Path it would be relative
    for match in matches or [str(path)]:
        yield Source(Path(match), os.path.normpath(match).replace(os.sep, "/"))


def _below(
    folder: Path, fail: Callable[[AudioError], None], tell: Tell, *, recursive: bool
) -> Iterator[Source]:
    """The audio files of a folder; of one without any there is an error."""
    none, everything = True, Passed()
    for place in _folders(folder, fail) if recursive else [folder]:
        try:
            taken, over = look_into(place)
        except AudioError as error:
            if place == folder:
                raise
            fail(error)
            continue
        below = "" if place == folder else place.relative_to(folder).as_posix()
        for path in taken:
            none = False
            yield Source(path, f"{below}/{path.name}" if below else path.name, below)
        for reason, names in over.items():
            everything.setdefault(reason, []).extend(f"{below}/{n}" if below else n for n in names)
    if none:
        raise no_audio(
            f"in {folder} or below it" if recursive else f"directly in {folder}", everything
        )
    if everything:
        tell(passed_over(folder, everything))


def _folders(top: Path, fail: Callable[[AudioError], None]) -> Iterator[Path]:
    """A folder and those below it, in the order of their names."""

    def unreadable(error: OSError) -> None:
        if error.filename != str(top):  # that one is said by who looks into it
            fail(AudioError(f"The folder {error.filename} cannot be read: {error.strerror}."))

    for place, inner, _ in os.walk(top, onerror=unreadable):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield Path(place)


def listed_names(source: str, *, null: bool) -> list[str]:
    """The names in a list of input files, one in a line; empty lines mean nothing.

    Args:
        source: A file, or ``-`` for standard input.
        null: Names are separated by zero bytes instead, as ``find -print0`` does.

    Raises:
        OptionError: The list cannot be read, or names nothing.
    """
    try:
        if source != STDOUT:
            data = Path(source).read_bytes()
        elif sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
            raise OptionError("There is no list on standard input; pipe one in, or name a file.")
        else:
            data = sys.stdin.buffer.read()
    except (OSError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"The list of files {source} cannot be read: {reason}.") from error
    if null:
        names = data.split(b"\0")
    else:
        if b"\0" in data:
            raise OptionError(f"The list of files {source} has zero bytes; pass -0 to read it.")
        lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        names = [line.removesuffix(b"\r") for line in lines]
    found = [os.fsdecode(name) for name in names if name.strip()]
    if not found:
        raise OptionError(f"The list of files {source} names no file.")
    return found
