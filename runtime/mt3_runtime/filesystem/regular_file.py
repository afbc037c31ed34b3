"""Opens files of a bundle, if they are plain files: never a pipe that blocks, a device or a link.

Contract: `open_regular` looks before it opens, opens without waiting, and looks again at what it
has opened, so that a file that is replaced in between is refused as well.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from mt3_runtime.errors import BundleError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(mode: int) -> str:
    """What a file's mode says it is, for messages; empty for a regular file."""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def open_regular(path: Path, *, follow: bool = False) -> BinaryIO:
    """Opens a file for reading.

    Args:
        path: The file.
        follow: Whether a link to a regular file will do.

    Raises:
        BundleError: It is missing, cannot be read, or is no regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    try:
        _check(path, path.stat(follow_symlinks=follow).st_mode)
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"{path} cannot be read ({reason}).") from error
    file = os.fdopen(descriptor, "rb")
    try:
        _check(path, os.fstat(descriptor).st_mode)
    except BundleError:
        file.close()
        raise
    return file


def _check(path: Path, mode: int) -> None:
    kind = kind_of(mode)
    if kind:
        raise BundleError(f"{path} is {kind}, not a regular file; bundles hold nothing else.")
