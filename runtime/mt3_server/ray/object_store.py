"""Folders of files, local or in an object store: listed, read, fetched and written.

Contract: a name with ``://`` (``s3://bucket/songs``, ``gs://``, ``hdfs://``, ``file://``) goes
through Apache Arrow's file systems, with the credentials that these find; anything else is a local
path.  A file is written whole or not at all: an object store shows an object when it is complete,
elsewhere it is written under another name and moved.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mt3_runtime.batch.records.ledger import Stamp
from mt3_runtime.errors import AudioError, AudioNotFoundError, OutputError
from mt3_runtime.filesystem.atomic import make_folder, write_atomic
from mt3_runtime.imports.extras import require

#: Bytes that are copied at a time.
_CHUNK = 1 << 20


def is_remote(name: str) -> bool:
    """Whether a name is that of an object store."""
    return "://" in name


@dataclass(frozen=True)
class StoredFile:
    """A file that was found.

    Attributes:
        path: Its whole name, a path or ``scheme://...``.
        name: Its path below the folder in which it was found.
        stamp: Size and time of the last change.
    """

    path: str
    name: str
    stamp: Stamp


class Store:
    """A folder, or a single file, by its name.

    Raises:
        AudioError: There is no file system for the name.
        MissingDependencyError: Apache Arrow is not installed.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/") or root
        self.remote = is_remote(root)
        self._system: Any = None
        self._path = self.root
        if self.remote:
            self._fs = require("pyarrow.fs", "reading an object store", "ray")
            try:
                self._system, self._path = self._fs.FileSystem.from_uri(self.root)
            except Exception as error:
                raise AudioError(f"{root} cannot be opened: {error}.") from error

    def files(self) -> Iterator[StoredFile]:
        """All files below the folder in the order of their names, or the file itself.

        Raises:
            AudioError: It cannot be read.
            AudioNotFoundError: There is nothing of that name.
        """
        try:
            yield from self._remote_files() if self.remote else self._local_files()
        except OSError as error:
            if isinstance(error, AudioError):
                raise
            raise AudioError(f"{self.root} cannot be read: {error}.") from error

    def _local_files(self) -> Iterator[StoredFile]:
        top = Path(self.root)
        if not top.exists():
            raise AudioNotFoundError(f"{self.root}: there is no such file or folder.")
        if top.is_file():
            yield _local(top, top.name)
            return
        for folder, inner, names in os.walk(top):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() and not name.startswith("."):
                    yield _local(path, path.relative_to(top).as_posix())

    def _remote_files(self) -> Iterator[StoredFile]:
        whole = self._system.get_file_info(self._path)
        if whole.type == self._fs.FileType.NotFound:
            raise AudioNotFoundError(f"{self.root}: there is no such file or folder.")
        if whole.type == self._fs.FileType.File:
            yield StoredFile(self.root, whole.base_name, _stamp(whole))
            return
        selector = self._fs.FileSelector(self._path, recursive=True)
        for found in sorted(self._system.get_file_info(selector), key=lambda one: one.path):
            if found.type == self._fs.FileType.File:
                name = found.path[len(self._path) :].lstrip("/")
                if not any(part.startswith(".") for part in name.split("/")):
                    yield StoredFile(f"{self.root}/{name}", name, _stamp(found))

    def fetch(self, target: Path) -> None:
        """Copies the file of that name into a local one.

        Raises:
            AudioError: It cannot be read.
        """
        try:
            with self._system.open_input_stream(self._path) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
        except OSError as error:
            raise AudioError(f"{self.root} cannot be read: {error}.") from error

    def read(self, name: str) -> bytes | None:
        """What a file below the folder holds; None if there is none.

        Raises:
            OutputError: It cannot be read.
        """
        try:
            if not self.remote:
                path = Path(self.root, name)
                return path.read_bytes() if path.is_file() else None
            key = f"{self._path}/{name}"
            if self._system.get_file_info(key).type != self._fs.FileType.File:
                return None
            with self._system.open_input_stream(key) as file:
                return file.read()  # type: ignore[no-any-return]
        except OSError as error:
            raise OutputError(f"{self.root}/{name} cannot be read: {error}.") from error

    def has(self, name: str) -> bool:
        """Whether there is anything of that name below the folder."""
        if not self.remote:
            return os.path.lexists(Path(self.root, name))
        found = self._system.get_file_info(f"{self._path}/{name}").type
        return bool(found != self._fs.FileType.NotFound)

    def write(self, name: str, data: bytes) -> None:
        """Writes a file below the folder, whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        if not self.remote:
            target = Path(self.root, name)
            make_folder(target.parent)
            write_atomic(target, data)
            return
        path, local = f"{self._path}/{name}", self._system.type_name == "local"
        place = f"{path}.{os.getpid()}.part" if local else path
        try:
            if local:
                self._system.create_dir(os.path.dirname(path), recursive=True)  # noqa: PTH120
            with self._system.open_output_stream(place) as file:
                file.write(data)
            if local:
                self._system.move(place, path)
        except OSError as error:
            raise OutputError(f"{self.root}/{name} cannot be written: {error}.") from error


def _local(path: Path, name: str) -> StoredFile:
    found = path.stat()
    return StoredFile(str(path.absolute()), name, Stamp(found.st_size, found.st_mtime_ns))


def _stamp(found: Any) -> Stamp:
    return Stamp(int(found.size), int(found.mtime_ns or 0))
