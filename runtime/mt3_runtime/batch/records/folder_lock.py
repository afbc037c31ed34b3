"""Locks a file against other processes, so that a folder of results has one writer.

Contract: the operating system holds the lock for an open file and lets it go when that is closed or
the process dies, however it dies; so nothing ever has to be cleaned up, and no lock of a dead
process has to be told from one of a living.
"""

from __future__ import annotations

import errno
import os
import sys
import time

#: A process that only looks whether a file is locked holds it for microseconds.
_TRIES, _PAUSE = 5, 0.02

#: What file systems without locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

if sys.platform == "win32":
    import msvcrt

    #: Locked bytes cannot be read by others there, so the one that is locked lies behind them all.
    _FAR = 1 << 30

    def _take(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def take_lock(descriptor: int) -> bool | None:
    """Locks an open file until it is closed.

    Args:
        descriptor: Of a file that is open for writing.

    Returns:
        Whether it is locked now; None where the file system has no locks.
    """
    for remaining in reversed(range(_TRIES)):
        try:
            _take(descriptor)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            if remaining:
                time.sleep(_PAUSE)
        else:
            return True
    return False


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Whether somebody else holds the lock of a file; False if it cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        return take_lock(descriptor) is False
    finally:
        os.close(descriptor)
