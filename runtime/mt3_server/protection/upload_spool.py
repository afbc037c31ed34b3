"""The spool: where uploads lie while they are transcribed, under names of the service's own.

Contract: nothing is written outside the folder, no client's name is part of a path, and files are
this user's alone.  `UploadSpool.reserve` refuses with 507 what there is no room for, before and
while it comes.  Uploads that a killed service left are removed when the next one starts.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mt3_runtime.batch.records.folder_lock import take_lock
from mt3_runtime.errors import OutputError
from mt3_server.protection.refusals import FULL, disk_full

_LOOK_BYTES = 1 << 20
"""Written between two looks at how full the disk is."""


class UploadSpool:
    """See the module docstring; one service at a time has a folder.

    Args:
        folder: It is made if it is not there.
        most: Bytes of all files in it.
        free: Bytes that the disk must keep free.

    Raises:
        OutputError: It cannot be made or written, or another service has it.
    """

    def __init__(self, folder: Path, *, most: int, free: int) -> None:
        self._most, self._free = most, free
        self.folder = Path(os.path.realpath(folder))
        self.uploads, self.jobs = self.folder / "uploads", self.folder / "jobs"
        try:
            for each in (self.folder, self.uploads, self.jobs):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = (self.folder / ".lock").open("wb")
        except OSError as error:
            raise OutputError(f"cannot use {folder} for uploads: {error.strerror}") from error
        if take_lock(self._lock.fileno()) is False:
            self._lock.close()
            raise OutputError(f"Another service works in {folder}; name another folder (--spool).")
        for left in self.uploads.iterdir():
            if left.name.endswith(".upload"):  # ours: nothing else is made there
                left.unlink()
        self._used = sum(_size(path) for path in self.jobs.glob("*/*"))

    @property
    def used(self) -> int:
        """Bytes of all uploads and results."""
        return self._used

    def new(self) -> SpooledFile:
        """Opens a file for an upload."""
        return SpooledFile(self, self.uploads / f"{secrets.token_hex(16)}.upload")

    def reserve(self, count: int) -> None:
        """Takes so many bytes, or refuses."""
        if self._used + count > self._most or self._disk_free() - count < self._free:
            raise disk_full("this upload")
        self._used += count

    def release(self, count: int) -> None:
        """Gives bytes back."""
        self._used = max(0, self._used - count)

    def close(self) -> None:
        """Lets another service have the folder."""
        self._lock.close()

    def _disk_free(self) -> int:
        try:
            return shutil.disk_usage(self.folder).free
        except OSError:
            return self._free  # it will say itself when it is full


class SpooledFile:
    """One upload; a context manager that removes it, unless somebody has moved it away.

    Attributes:
        path: Where it is.
        size: Bytes written.
    """

    def __init__(self, spool: UploadSpool, path: Path) -> None:
        self._spool, self.path, self.size = spool, path, 0
        self._reserved = 0
        self._file: BinaryIO | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Writes on; raises `Refusal` if there is no room."""
        while self.size + len(data) > self._reserved:
            self._spool.reserve(_LOOK_BYTES)
            self._reserved += _LOOK_BYTES
        try:
            if self._file is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
                self._file = os.fdopen(os.open(self.path, flags, 0o600), "wb")
            self._file.write(data)
        except OSError as error:
            if error.errno in FULL:
                raise disk_full("this upload") from error
            raise
        self.size += len(data)

    def finish(self) -> None:
        """No more will come."""
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:
            if error.errno in FULL:
                raise disk_full("this upload") from error
            raise

    def move(self, path: Path) -> None:
        """Gives the file another place in the spool, where it stays."""
        self.finish()
        self.path.rename(path)
        self._spool.release(self._reserved - self.size)
        self._reserved = 0

    def remove(self) -> None:
        """Removes it; more than once does nothing."""
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
        if self._reserved:
            self._spool.release(self._reserved)
            self._reserved = 0
            with suppress(FileNotFoundError):
                self.path.unlink()


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
