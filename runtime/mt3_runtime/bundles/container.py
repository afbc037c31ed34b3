"""Where the files of a bundle lie: in a folder, or one behind the other in a zip archive.

Contract: `open_container` gives a `Folder` or an `Archive`; both find files by their plain names as
`Extent`s, and refuse what is damaged, a link, a pipe or a device with a `BundleError`.  A member of
an archive is stored as it is, so it is used where it lies, like a file of a folder.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from mt3_runtime.errors import BundleError
from mt3_runtime.filesystem.regular_file import kind_of, open_regular

#: Bytes of an entry of an archive's directory without its texts, and of the directory's end, in
#: archives up to 2 GiB and beyond.
_ENTRY, _ENDS = 46, (22, 98)
#: Of a member's header in front of its content: signature, then at 26 the lengths of two fields.
_HEADER, _SIGNATURE, _LENGTHS = 30, b"PK\x03\x04", 26
_ENCRYPTED = 0x1


class Extent(NamedTuple):
    """A file, or a part of one, as it was found.

    Attributes:
        path: The file.
        offset: First byte.
        size: Length in bytes.
        state: What changes when the file does: device, number, size, times of change.
        crc: Checksum that the archive states; None in a folder.
    """

    path: Path
    offset: int
    size: int
    state: tuple[int, ...]
    crc: int | None = None

    def read(self) -> bytes:
        """The content.

        Raises:
            BundleError: It cannot be read, is cut off, or is not what the archive says.
        """
        with open_regular(self.path, follow=self.crc is not None) as file, _reading(self.path):
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) != self.size or (self.crc is not None and zlib.crc32(data) != self.crc):
            raise BundleError(f"{self.path} is damaged or was changed just now; copy it again.")
        return data

    def map(self) -> memoryview:
        """The content where it lies; it takes no memory of its own.

        Raises:
            BundleError: It cannot be read, or was changed since it was found.
        """
        with open_regular(self.path, follow=self.crc is not None) as file, _reading(self.path):
            self._compare(file)
            # Not closed by hand: an error's traceback may still hold views into the map.
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return whole[self.offset : self.offset + self.size]

    def check_unchanged(self) -> None:
        """Compares the file of this name with the one that was found.

        Raises:
            BundleError: It was changed, or replaced by another.
        """
        with open_regular(self.path, follow=self.crc is not None) as file:
            self._compare(file)

    def _compare(self, file: BinaryIO) -> None:
        if _state(file) != self.state:
            raise BundleError(f"{self.path} was changed while it was loaded; load it again.")


class Container(Protocol):
    """Finds the files of a bundle."""

    packed: bool

    def find(self, name: str) -> Extent:
        """A file by its plain name; raises `BundleError` if it is missing or no regular file."""


class Folder:
    """A folder of files."""

    packed = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, name: str) -> Extent:
        path = self.path / name
        try:
            path.lstat()
        except FileNotFoundError:
            raise BundleError(f"{path} is missing; export the bundle again.") from None
        except OSError:
            pass  # opening it says why
        with open_regular(path) as file:
            state = _state(file)
            return Extent(path, 0, os.fstat(file.fileno()).st_size, state)


class Archive:
    """A zip archive of stored members.

    Raises:
        BundleError: It is none.
    """

    packed = True

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_regular(path, follow=True) as file, _reading(path):
            self._state = _state(file)
            with zipfile.ZipFile(file) as archive:
                self._members, self._directory = archive.infolist(), archive.start_dir

    @property
    def names(self) -> set[str]:
        """Of all members."""
        return {member.filename for member in self._members}

    def find(self, name: str) -> Extent:
        found = [member for member in self._members if member.filename == name]
        if len(found) != 1:
            count = f"{len(found)} members named" if found else "no"
            raise BundleError(f"{self.path} holds {count} {name}; it is not a whole bundle.")
        (member,) = found
        mode = member.external_attr >> 16  # without a type where the writer was not on Unix
        kind = kind_of(mode) if stat.S_IFMT(mode) else ""
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED or kind:
            what = kind or "compressed or encrypted"
            raise BundleError(f"{name} in {self.path} is {what}; members of bundles are stored.")
        offset = self._offset(member)
        size, length = member.file_size, self._state[2]
        if size != member.compress_size or not 0 <= offset <= offset + size <= length:
            raise BundleError(f"{name} in {self.path} is cut off or damaged; copy it again.")
        return Extent(self.path, offset, size, self._state, member.CRC)

    def is_filled(self) -> bool:
        """Whether the file is its members and their directory, and not one byte else.

        Raises:
            BundleError: It is damaged.
        """
        at = 0
        for member in sorted(self._members, key=lambda one: one.header_offset):
            if member.header_offset != at:
                return False
            at = self._offset(member) + member.compress_size
        texts = [(one.orig_filename.encode(), one.extra, one.comment) for one in self._members]
        entries = sum(_ENTRY + sum(map(len, three)) for three in texts)
        return at == self._directory and self._state[2] - at - entries in _ENDS

    def _offset(self, member: zipfile.ZipInfo) -> int:
        """Where a member's content begins, behind its own header."""
        with open_regular(self.path, follow=True) as file, _reading(self.path):
            file.seek(member.header_offset)
            header = file.read(_HEADER)
            if len(header) < _HEADER or not header.startswith(_SIGNATURE):
                raise BundleError(f"{self.path} is damaged: a member has no header; copy it again.")
            lengths = struct.unpack_from("<HH", header, _LENGTHS)
            return int(member.header_offset + _HEADER + sum(lengths))


def open_container(path: Path) -> Container:
    """Opens the folder or the archive that a bundle is.

    Raises:
        BundleError: It is neither.
    """
    with _reading(path):
        mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return Folder(path)
    if kind := kind_of(mode):
        raise BundleError(f"{path} is {kind}, neither a bundle folder nor a zip of one.")
    return Archive(path)


def _state(file: BinaryIO) -> tuple[int, ...]:
    """Changes when a file does; that it was changed within a clock tick is not seen."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Reports whatever goes wrong with a file as an error of the bundle."""
    try:
        yield
    except BundleError:
        raise
    # zipfile raises what it stumbles over: a dozen types that share no base class, as a damaged
    # directory may make it read texts, numbers and offsets of any kind.
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise BundleError(
            f"{path} is neither a bundle folder nor a zip of one: it cannot be read ({reason})."
        ) from error
