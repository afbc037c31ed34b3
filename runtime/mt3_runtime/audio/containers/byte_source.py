"""Bytes of audio files: open them, piece them together, divide them into parts.

Contract: :func:`open_bytes` turns a path or a binary file object into random access
(:class:`FileBytes`).  A :class:`ByteView` shows ranges of it, and literal bytes, as one run, so
that a decoder is handed exactly what it can read: no tags, no padding, true lengths.
:class:`VirtualFile` is the file object that libsndfile gets.
"""

from __future__ import annotations

import io
import itertools
import os
import stat
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from mt3_runtime.errors import AudioError, AudioNotFoundError

_MAX_UNSEEKABLE = 1 << 31
"""Most bytes read from a pipe, three hours of CD sound: some pipes never end."""

SCAN_BYTES = 1 << 20
"""What is read at a time where a file is searched."""

_AHEAD_BYTES = 1 << 16
"""What a decoder's small reads are served from.  libmpg123 takes each frame of an MP3 in two, 77 a
second of sound; a call through Python for each was a fifth of the decoding."""


class Bytes(Protocol):
    """Random access to a number of bytes."""

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def at(self, offset: int, count: int) -> bytes:
        """Read ``count`` bytes at ``offset``, fewer only at the end."""
        ...


@dataclass(frozen=True)
class Part:
    """One sound within a file; most files are one, joined or chained files are several.

    Attributes:
        start: First byte in the file.
        end: Byte behind its last one.
        view: What the decoder is given.
        kind: Format, for messages.
        frames: Number of sample frames, where it is known better than the decoder can know.
        claim: How many times its length the decoder is told, see :class:`VirtualFile`.
        forward: The decoder must not seek, see ``decoders``.
        stated: Bytes of samples that its header states ...
        present: ... and that are there.
        lost: Bytes between its frames that are neither audio nor a tag.
        cut: The mark of its end is missing.
        note: What is unusual about it, though all of it is there: a clause behind the file's name.
        demuxer: FFmpeg's name for what reads it, empty if it is not to be asked.
        foreign: libsndfile does not read it.
    """

    start: int
    end: int
    view: Bytes
    kind: str
    frames: int | None = None
    claim: int = 1
    forward: bool = False
    stated: int = 1
    present: int = 1
    lost: int = 0
    cut: bool = False
    note: str = ""
    demuxer: str = ""
    foreign: bool = False


class FileBytes:
    """Random access to an open binary file.

    Args:
        handle: A seekable file object.
        name: For messages.
    """

    def __init__(self, handle: BinaryIO, name: str) -> None:
        self._handle = handle
        self._name = name
        with self._reporting():
            handle.seek(0, io.SEEK_END)
            self.size = handle.tell()

    def at(self, offset: int, count: int) -> bytes:
        """Read ``count`` bytes at ``offset``, fewer only at the end.

        Raises:
            AudioError: The file cannot be read.
        """
        if offset >= self.size:  # a length that some header states may be of any size
            return b""
        with self._reporting():
            self._handle.seek(offset)
            data = self._handle.read(count)
            while len(data) < count and (more := self._handle.read(count - len(data))):
                data += more
        return data

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a file object of somebody else's raises
            raise AudioError(f"{self._name} cannot be read: {error}.") from error


class ByteView:
    """Ranges of the bytes of ``source``, and literal bytes, one behind the other.

    Args:
        source: What the ranges are of.
        pieces: ``range(start, stop)`` of the source, or bytes.
    """

    def __init__(self, source: Bytes, pieces: Iterable[bytes | range]) -> None:
        self._source = source
        self._pieces = [piece for piece in pieces if len(piece)]
        self._starts = list(itertools.accumulate(map(len, self._pieces), initial=0))
        self.size = self._starts.pop()

    def at(self, offset: int, count: int) -> bytes:
        """Read ``count`` bytes at ``offset``, fewer only at the end."""
        found = []
        while count > 0 and 0 <= offset < self.size:
            index = bisect_right(self._starts, offset) - 1
            part = self._pieces[index][offset - self._starts[index] :][:count]
            found.append(
                self._source.at(part.start, len(part)) if isinstance(part, range) else part
            )
            if len(found[-1]) < len(part):
                break  # the file has become shorter
            offset, count = offset + len(part), count - len(part)
        return b"".join(found)


class VirtualFile:
    """File object over bytes that keeps exceptions and ends instead.

    Exceptions do not pass libsndfile: Python would print and forget them, Ctrl-C among them.

    Args:
        source: The bytes.
        claim: How many times longer the file says it is.  For an MP3 without a count of its frames,
            libsndfile divides the size of the file by the bit rate of the first frame and decodes
            no further than that; bit rates differ by 40 at most (8 to 320 kbit/s), so with a claim
            of 64 the end of the bytes, not the guess, ends the decoding.  The probe for a tag in
            the last 128 bytes reads zeros.
    """

    def __init__(self, source: Bytes, claim: int = 1) -> None:
        self._source = source
        self._size = source.size * claim
        self._claimed = claim > 1
        self._position = 0
        self._ahead, self._ahead_at = b"", 0
        self._error: BaseException | None = None

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Raise what was kept, even where the end that was made up for it raised something."""
        try:
            yield
        finally:
            error, self._error = self._error, None
            if error is not None:
                raise error

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset from the start, the position or the end; may lie behind the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def read(self, count: int) -> bytes:
        """Read up to ``count`` bytes; none at the end, or after an exception."""
        if self._claimed and self._position >= self._size - 128:
            data = bytes(max(0, min(count, self._size - self._position)))
        else:
            data = self._read(count)
        self._position += len(data)
        return data

    def _read(self, count: int) -> bytes:
        start = self._position - self._ahead_at
        if start < 0 or start + count > len(self._ahead):
            try:
                self._ahead = self._source.at(self._position, max(count, _AHEAD_BYTES))
            except BaseException as error:  # noqa: BLE001  raised by `reporting`
                self._error = self._error or error
                self._ahead = b""
            self._ahead_at, start = self._position, 0
        return self._ahead[start : start + count]


def open_bytes(
    source: str | os.PathLike[str] | BinaryIO,
) -> tuple[str, BinaryIO, BinaryIO | None]:
    """Open a path, or take a binary file object, for reading at any position.

    Returns:
        The name for messages, a seekable handle, and the handle to close in the end or None.

    Raises:
        AudioNotFoundError: The path does not exist or is a folder.
        AudioError: It cannot be read, is a device, or is open in text mode.
    """
    if isinstance(source, str | os.PathLike):
        if not os.fspath(source):  # to Path: the current folder
            raise AudioNotFoundError("The path of the audio file is empty.")
        name, handle = str(source), _open_path(Path(source))
        owned: BinaryIO | None = handle
    else:
        name, handle, owned = str(getattr(source, "name", "<audio stream>")), source, None
    try:
        if not isinstance(handle.read(0), bytes):
            raise AudioError(f"{name} is open in text mode; expected a file opened with mode 'rb'.")
        seekable = getattr(handle, "seekable", None)
        if seekable is not None and seekable():
            return name, handle, owned
        data = _read_all(handle, name)
    except (OSError, ValueError) as error:  # ValueError: the file object is closed
        if owned is not None:
            owned.close()
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"{name} cannot be read: {error}.") from error
    if owned is not None:
        owned.close()
    return name, data, None


def _open_path(path: Path) -> BinaryIO:
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
            return path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AudioNotFoundError(
            f"There is no file at {path}; expected the path of an audio file."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise AudioError(f"{path} cannot be opened: {error}.") from error
    if stat.S_ISDIR(mode):
        raise AudioNotFoundError(f"{path} is a folder; expected the path of an audio file.")
    raise AudioError(f"{path} is a device or a socket; expected an audio file, or a pipe.")


def _read_all(pipe: BinaryIO, name: str) -> io.BytesIO:
    data = io.BytesIO()
    while block := pipe.read(1 << 20):
        if data.write(block) and data.tell() > _MAX_UNSEEKABLE:
            raise AudioError(
                f"{name} cannot be sought in and does not end within {_MAX_UNSEEKABLE >> 30} GiB; "
                "expected one audio file. For endless audio, pass its blocks to Model.stream."
            )
    return data
