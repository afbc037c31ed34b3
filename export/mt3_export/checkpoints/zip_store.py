"""Reads uncompressed zip archives as views of a memory map.

``torch.save`` stores its entries uncompressed, so an entry is a slice of the file: no copy, no
inflation, and what is never asked for is never read.  `zipfile` parses the directory, within a size
limit, because it reads whatever length the file declares; compressed or encrypted entries, entries
outside the file, duplicate names and wrong checksums are refused.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from mt3_export.checkpoints.lookalikes import file_lookalike
from mt3_export.checkpoints.stored_arrays import brief
from mt3_runtime.errors import CheckpointError

#: Some 50,000 entries; a training checkpoint of the family has about 2,000.
MAX_DIRECTORY_BYTES = 4 * 2**20

#: Signature, 22 bytes the directory repeats, length of the name, length of the extra field.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 1


class StoredZip:
    """An open archive.

    Args:
        path: A regular file.

    Raises:
        CheckpointError: The file is no zip archive, or its directory is damaged or hostile.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = _directory(path)
        self._verified: set[str] = set()
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def names(self) -> frozenset[str]:
        """Names of all entries."""
        return frozenset(self._entries)

    def close(self) -> None:
        """Close the memory map; no view may be alive."""
        self._map.close()

    def size(self, name: str) -> int:
        """Bytes of an entry, as the directory declares it; `view` holds it to that.

        Raises:
            CheckpointError: The entry is missing.
        """
        return self._info(name).file_size

    def view(self, name: str) -> memoryview:
        """Return the bytes of an entry as a view of the file, its checksum verified once.

        Raises:
            CheckpointError: The entry is missing, compressed, cut off or damaged.
        """
        info = self._info(name)
        stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        if not stored or info.flag_bits & _ENCRYPTED:
            raise CheckpointError(
                f"{self._path}: entry {brief(name)} is compressed or encrypted, which torch.save "
                "never does; refused"
            )
        start = self._start(info)
        if start is None or start + info.file_size > len(self._map):
            raise CheckpointError(
                f"{self._path}: entry {brief(name)} lies outside the file; it is cut off, "
                "fetch it again"
            )
        view = memoryview(self._map)[start : start + info.file_size]
        if name not in self._verified and zlib.crc32(view) != info.CRC:
            view.release()
            raise CheckpointError(
                f"{self._path}: entry {brief(name)} does not match its checksum; the file is "
                "damaged, fetch it again"
            )
        self._verified.add(name)
        return view

    def _info(self, name: str) -> zipfile.ZipInfo:
        info = self._entries.get(name)
        if info is None:
            raise CheckpointError(
                f"{self._path}: entry {brief(name)} is missing; the file is damaged, fetch it again"
            )
        return info

    def _start(self, info: zipfile.ZipInfo) -> int | None:
        """Offset of an entry's data, from its local header; None where there is no header."""
        start = info.header_offset + _LOCAL_HEADER.size
        if info.header_offset < 0 or start > len(self._map):
            return None
        magic, name, extra = _LOCAL_HEADER.unpack_from(self._map, info.header_offset)
        return start + name + extra if magic == b"PK\3\4" else None


class _BoundedFile(io.FileIO):
    """A file that refuses huge reads."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise CheckpointError(
                f"the zip directory declares {size:,} bytes; expected at most "
                f"{MAX_DIRECTORY_BYTES:,}"
            )
        return super().read(size) or b""


def _directory(path: Path) -> Mapping[str, zipfile.ZipInfo]:
    """Read the zip directory; every name must be unique."""
    what = file_lookalike(path)
    if what is not None:
        raise CheckpointError(f"{path} is {what}")
    with _BoundedFile(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        except CheckpointError:
            raise
        except (
            *(zipfile.BadZipFile, NotImplementedError, struct.error),
            *(ValueError, OverflowError, OSError),
        ) as error:
            raise CheckpointError(
                f"{path} is no torch.save file, or is cut off: not readable as a zip archive "
                f"({error!s:.120})"
            ) from error
    entries = {info.filename: info for info in infos}
    if len(entries) != len(infos):
        raise CheckpointError(f"{path}: zip entries share a name; torch.save never does that")
    if sum(info.compress_size for info in infos) > path.stat().st_size:
        raise CheckpointError(f"{path}: zip entries overlap or are cut off; fetch the file again")
    return entries
