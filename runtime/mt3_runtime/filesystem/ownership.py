"""Telling our own files from anybody else's, before one is deleted or replaced.

Contract: a file is ours only if it is a regular file under a name that we give *and* something of
ours says so (a format marker inside, a manifest that names it).  What is merely in a folder of ours
is not: people keep notes beside models, and a folder may be named by mistake.  Everything else is
left as it is and named in one sentence.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from mt3_runtime.errors import OutputError

#: Names that a message lists before it counts the rest.
_FEW = 3


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Whether this is a file itself: no link to one, no folder, no device or pipe."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def is_irregular(path: str | os.PathLike[str]) -> bool:
    """Whether something is there that is no file itself.

    One look: what another program takes away meanwhile is not there, and no such thing.
    """
    try:
        return not stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def foreign_names(folder: Path, own: Collection[str]) -> list[str]:
    """Names in a folder that are not among our own, or that are no regular files; sorted.

    Raises:
        OutputError: The folder cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise OutputError(f"cannot read the folder {folder}: {error.strerror}") from error
    return [path.name for path in entries if path.name not in own or not is_regular(path)]


def listed(names: Iterable[object]) -> str:
    """The first few names, and how many more there are: ``a, b, c and 4 more``."""
    every = [str(name) for name in names]
    more = f" and {len(every) - _FEW} more" if len(every) > _FEW else ""
    return ", ".join(every[:_FEW]) + more


def delete(paths: Iterable[Path]) -> int:
    """Deletes regular files; returns the bytes freed.  What is not there is passed over.

    Raises:
        OutputError: One is there and cannot be deleted, or is no regular file.
    """
    return sum(_delete(path) for path in paths)


def _delete(path: Path) -> int:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise OutputError(f"{path} is no regular file, so it is left alone; see what it is.")
        path.unlink()
    except FileNotFoundError:
        return 0
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot delete {path}: {error.strerror}") from error
    return status.st_size
