"""Decode a sound file block by block: the only place that knows libsndfile and its gaps.

Contract: :func:`open_sound` takes a path or a binary file object and returns a
:class:`SoundReader`, whose :meth:`~SoundReader.blocks` are mono float32 at the file's own rate,
about three seconds each, so memory does not grow with the length of the file.  Amplitudes are what
the file states: nothing is normalised or clipped.

Nothing is lost silently.  Where a file holds less than it declares, or decoding stops in the
middle, what could be decoded is delivered and an :class:`~mt3_runtime.errors.AudioWarning` says how
much that is.  Two habits of libsndfile make this more than a loop: it shortens the declared length
of cut WAV, AIFF and AU files without telling (the true figure is only in its log), and for an MP3
without a length header it guesses a length from the first frame's bit rate and stops there, which
can be less than half of a variable-bit-rate file (see :class:`_UnboundedMp3`).
"""

from __future__ import annotations

import importlib
import io
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import (
    AudioError,
    AudioNotFoundError,
    AudioWarning,
    MissingDependencyError,
)

T = TypeVar("T")

BLOCK_SECONDS = 3.0
"""Length of one decoded block: long enough that per-call costs vanish, about 1 MB in stereo."""

_MAX_BLOCK_FRAMES = 1 << 19
"""Upper bound of one block in frames, whatever the sample rate."""

_SHORTFALL_SECONDS = 0.1
"""Less than this is missing: two or three codec frames or a sloppy header, not a cut file."""

_UNKNOWN_FRAMES = 1 << 48
"""libsndfile reports numbers near 2**63 where a container (a streamed FLAC) states no length."""

_UNKNOWN_BYTES = 0x7FFF0000
"""Chunk sizes from here up are what writers put when they could not go back to fill them in."""

_CUT_CHUNK = re.compile(
    r"^\s*(?:data|SSND|Data Size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE
)
"""libsndfile's log line for a data chunk that promises more bytes than the file has."""

_NO_END = "Last page lacks an end-of-stream bit"
_HOLE = re.compile(r"Corrupted bitstream|reports a hole")
"""libsndfile's log lines for an Ogg file without its last page, and for one with damaged pages."""

_MAX_UNSEEKABLE = 1 << 31
"""Most bytes read from a pipe, three hours of CD sound: some pipes never end."""


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Args:
        module: Import name, here also the name on PyPI.
        purpose: What it is needed for, as the object of "is needed to ...".

    Raises:
        MissingDependencyError: The package, or the C library below it, is not installed.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"{module} is needed to {purpose} and cannot be imported ({error}). "
            'Install it with: pip install "mt3-runtime[cpu]"'
        ) from error


def block_frames(rate: float) -> int:
    """Number of frames in one block at this sample rate [Hz]."""
    return max(1, min(_MAX_BLOCK_FRAMES, round(BLOCK_SECONDS * rate)))


def mix_down(frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean over channels: float32 [n, channels] to a fresh float32 [n].

    Adds column by column, ten times faster than ``mean(axis=1)`` and, up to seven channels, equal
    to it bit by bit.
    """
    mono = frames[:, 0].copy()
    channels = frames.shape[1]
    for channel in range(1, channels):
        mono += frames[:, channel]
    if channels > 1:
        mono /= np.float32(channels)
    return mono


class SoundReader:
    """One open sound file.

    Attributes:
        name: Path or stream name for messages.
        rate: Sample rate of the file [Hz].
        channels: Number of channels.
        duration: Length [s], or None where the file does not state it.
        warning: What of it could not be read, known once the rest was; None if nothing is missing.
    """

    def __init__(
        self,
        sound: Any,
        name: str,
        *,
        length_known: bool,
        owned: BinaryIO | None,
        reporting: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._sound = sound
        self._reporting = reporting
        self._owned = owned
        self.name = name
        self.rate = int(sound.samplerate)
        self.channels = int(sound.channels)
        known = length_known and sound.frames < _UNKNOWN_FRAMES
        self.duration: float | None = sound.frames / self.rate if known else None
        self.warning: str | None = None

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield mono float32 blocks until the file or its decodable part ends.

        Raises:
            AudioError: Nothing at all can be decoded, or the file cannot be read any more.
        """
        buffer = np.empty((block_frames(self.rate), self.channels), np.float32)
        decoded = 0
        trouble = ""
        while not trouble:
            buffer.fill(np.nan)  # marks what a failing decoder leaves unwritten
            try:
                with self._reporting(self.name):
                    frames = self._sound.read(out=buffer)
            except RuntimeError as error:  # LibsndfileError
                trouble = _reason(error)
                frames = buffer[: _leading_rows_without_nan(buffer)]
            if len(frames) == 0:
                break
            decoded += len(frames)
            yield mix_down(frames)
        self._report(decoded, trouble)

    def close(self) -> None:
        """Close the decoder, and the file if it was opened here."""
        self._sound.close()
        if self._owned is not None:
            self._owned.close()

    def _report(self, decoded: int, trouble: str) -> None:
        """Raise if nothing was decoded, warn if less was than the file declares."""
        if decoded == 0:
            raise AudioError(
                f"{self.name} holds no audio that can be decoded"
                + (f" ({trouble})" if trouble else "")
                + "; expected at least one sample. Check that the file is complete."
            )
        got = decoded / self.rate
        declared = self._declared_seconds()
        log = self._sound.extra_info
        if declared is not None and declared - got > _SHORTFALL_SECONDS:
            text = f"ends early: {got:.2f} s of {declared:.2f} s could be read"
        elif trouble:
            text = f"is damaged: decoding stopped after {got:.2f} s ({trouble})"
        elif _NO_END in log:
            text = f"has no end mark, so it is probably cut: {got:.2f} s could be read"
        elif _HOLE.search(log):
            text = "is damaged: parts of it could not be decoded"
        else:
            return
        self.warning = f"{self.name} {text}; the rest is left out."
        warnings.warn(self.warning, AudioWarning, stacklevel=2)

    def _declared_seconds(self) -> float | None:
        """Length the file claims to have [s], None where it claims none."""
        cut = _CUT_CHUNK.search(self._sound.extra_info)
        if self.duration is None or cut is None:
            return self.duration
        stated, present = int(cut[1]), int(cut[2])
        if stated >= _UNKNOWN_BYTES or present == 0:
            return self.duration
        return self.duration * max(1.0, stated / present)


def open_sound(source: str | os.PathLike[str] | BinaryIO) -> SoundReader:
    """Open a sound file in any format libsndfile reads (WAV, FLAC, OGG, MP3, AIFF, ...).

    Args:
        source: A path, or a binary file object.  A file object is read from its beginning
            whatever its position and is left open; one that cannot seek is read into memory first
            (the compressed bytes, not the samples).

    Raises:
        AudioNotFoundError: The path does not exist or is a folder.
        AudioError: The file is empty, cannot be read, is a device, or is not audio.
        MissingDependencyError: soundfile is not installed.
    """
    name, handle, owned = _open_bytes(source)
    guarded = _Guarded(handle)
    try:
        soundfile = require("soundfile", "read audio files")
        with guarded.reporting(name):
            counted = _has_mp3_frame_count(guarded)
            sound = _open_decoder(soundfile, guarded, name)
            length_known = counted or sound.format != "MP3"
            if not length_known:
                sound.close()
                sound = _open_decoder(soundfile, _UnboundedMp3(guarded), name)
        return SoundReader(
            sound, name, length_known=length_known, owned=owned, reporting=guarded.reporting
        )
    except BaseException:
        if owned is not None:
            owned.close()
        raise


def _open_bytes(
    source: str | os.PathLike[str] | BinaryIO,
) -> tuple[str, BinaryIO, BinaryIO | None]:
    """Return (name, seekable binary handle, the handle to close in the end or None)."""
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


def _open_decoder(soundfile: ModuleType, handle: Any, name: str) -> Any:
    if handle.seek(0, io.SEEK_END) == 0:
        raise AudioError(f"{name} is empty (0 bytes); expected an audio file.")
    handle.seek(0)
    try:
        return soundfile.SoundFile(handle)
    except (RuntimeError, TypeError) as error:  # TypeError: *.raw, which states no rate
        raise AudioError(
            f"{name} is not audio that can be decoded ({_reason(error)}); expected a complete WAV, "
            "FLAC, OGG, MP3 or AIFF file. Convert other formats first, for example with "
            "ffmpeg -i INPUT OUTPUT.wav"
        ) from error


def _reason(error: BaseException) -> str:
    """The decoder's own words, without its prefix and full stop."""
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def _leading_rows_without_nan(buffer: npt.NDArray[np.float32]) -> int:
    rows = np.flatnonzero(np.isnan(buffer).any(axis=1))
    return int(rows[0]) if len(rows) else len(buffer)


def _has_mp3_frame_count(handle: _Guarded) -> bool:
    """Whether an MP3 starts with a Xing, Info or VBRI frame, which counts the others."""
    handle.seek(0)
    head = handle.read(10)
    start = 0
    if head[:3] == b"ID3" and len(head) == 10:  # tag size: four bytes of seven bits
        start = 10 + sum(
            byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True)
        )
    handle.seek(start)
    first = handle.read(2048)
    return any(mark in first for mark in (b"Xing", b"Info", b"VBRI"))


class _Guarded:
    """View of a file that keeps its exceptions and ends instead.

    Exceptions do not pass libsndfile: Python would print and forget them, Ctrl-C among them.
    """

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._error: BaseException | None = None

    @contextmanager
    def reporting(self, name: str) -> Iterator[None]:
        """Raise what was kept, even where the end that was made up for it raised something."""
        try:
            yield
        finally:
            error, self._error = self._error, None
            if isinstance(error, Exception):
                raise AudioError(f"{name} cannot be read: {error}.") from error
            if error is not None:
                raise error

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._keep(lambda: self._handle.seek(offset, whence), -1)

    def tell(self) -> int:
        return self._keep(self._handle.tell, -1)

    def read(self, count: int) -> bytes:
        return self._keep(lambda: self._handle.read(count), b"")

    def _keep(self, action: Callable[[], T], otherwise: T) -> T:
        try:
            return action()
        except BaseException as error:  # noqa: BLE001  raised by `reporting`
            self._error = self._error or error
            return otherwise


class _UnboundedMp3:
    """View of an MP3 without length header that claims to be 64 times as long as it is.

    libsndfile divides the size of the file by the first frame's bit rate and decodes no further
    than that; bit rates differ by 40 at most (8 to 320 kbit/s), so with this claim the end of the
    bytes, not the guess, ends the decoding.  The probe for a tag in the last 128 bytes reads zeros.
    """

    def __init__(self, handle: _Guarded) -> None:
        self._handle = handle
        self._size = 64 * handle.seek(0, io.SEEK_END)
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, count: int) -> bytes:
        if self._position >= self._size - 128:
            data = bytes(max(0, min(count, self._size - self._position)))
        else:
            self._handle.seek(self._position)
            data = self._handle.read(count)
        self._position += len(data)
        return data
