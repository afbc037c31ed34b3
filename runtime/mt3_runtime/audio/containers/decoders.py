"""Decode one sound: what a decoder is, and libsndfile as one.

Contract: a :class:`Decoder` yields blocks float32 [n, channels] of at most about three seconds, and
knows afterwards what was wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.containers.byte_source import Bytes, VirtualFile
from mt3_runtime.errors import AudioError
from mt3_runtime.imports.extras import require

BLOCK_SECONDS = 3.0
"""Length of one decoded block: long enough that per-call costs vanish, about 1 MB in stereo."""

_MAX_BLOCK_FRAMES = 1 << 19
"""Upper bound of one block in frames, whatever the sample rate."""

_UNKNOWN_FRAMES = 1 << 48
"""libsndfile reports numbers near 2**63 where a container states no length."""

_HOLE = re.compile(r"Corrupted bitstream|reports a hole")
"""libsndfile's log lines for an Ogg file with damaged pages."""

Frames = npt.NDArray[np.float32]


def block_frames(rate: float) -> int:
    """Number of frames in one block at this sample rate [Hz]."""
    return max(1, min(_MAX_BLOCK_FRAMES, round(BLOCK_SECONDS * rate)))


class Decoder(Protocol):
    """What decodes one part of a file.

    Attributes:
        rate: Sample rate [Hz].
        channels: Number of channels.
        frames: Number of sample frames, None where that is not stated.
        trouble: Why decoding stopped, known once the rest was decoded.
        remark: What was passed over, as a clause behind the name of the file; known likewise.
    """

    rate: int
    channels: int
    frames: int | None
    trouble: str

    @property
    def remark(self) -> str: ...

    def blocks(self) -> Iterator[tuple[int, Frames]]:
        """Yield sample rate [Hz] and float32 [n, channels], valid until the next one."""
        ...

    def close(self) -> None: ...


class SndfileDecoder:
    """libsndfile on one part of a file; attributes as those of :class:`Decoder`."""

    def __init__(self, view: Bytes, *, forward: bool = False, claim: int = 1) -> None:
        soundfile = require("soundfile", "Reading audio files", "cpu")
        opened = forward_only(soundfile) if forward else soundfile.SoundFile
        self._file = VirtualFile(view, claim)
        with self._file.reporting():
            try:
                self._sound: Any = opened(self._file)
            except (RuntimeError, TypeError) as error:  # TypeError: *.raw, which states no rate
                raise AudioError(_reason(error)) from error
        self.rate, self.channels = int(self._sound.samplerate), int(self._sound.channels)
        known = claim == 1 and self._sound.frames < _UNKNOWN_FRAMES
        self.frames: int | None = self._sound.frames if known else None
        self.trouble = ""

    @property
    def remark(self) -> str:
        """What libsndfile's log says of an Ogg file."""
        hole = _HOLE.search(self._sound.extra_info)
        return "is damaged: parts of it could not be decoded" if hole else ""

    def blocks(self) -> Iterator[tuple[int, Frames]]:
        """Yield sample rate [Hz] and float32 [n, channels], valid until the next one."""
        buffer = np.empty((block_frames(self.rate), self.channels), np.float32)
        while not self.trouble:
            buffer.fill(np.nan)  # marks what a failing decoder leaves unwritten
            try:
                with self._file.reporting():
                    frames = self._sound.read(out=buffer)
            except RuntimeError as error:  # LibsndfileError
                self.trouble = _reason(error)
                frames = buffer[: _leading_rows_without_nan(buffer)]
            if len(frames) == 0:
                break
            yield self.rate, frames

    def close(self) -> None:
        """Close the decoder."""
        self._sound.close()


@cache
def forward_only(soundfile: ModuleType) -> type:
    """soundfile.SoundFile that reads forward only, for MPEG 2 and for frames with a checksum.

    The original seeks to where it is after every read.  libmpg123 then decodes again, from frames
    whose bits in earlier ones it has forgotten; of the two kinds it fails to silence them, and says
    so on standard error.  (Of MPEG 1 it does not fail, and rounds a little differently.)
    """

    class ForwardOnly(soundfile.SoundFile):  # type: ignore[name-defined, misc]
        def seekable(self) -> bool:
            return False

    return ForwardOnly


def _reason(error: BaseException) -> str:
    """The decoder's own words, without its prefix and full stop."""
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def _leading_rows_without_nan(buffer: Frames) -> int:
    rows = np.flatnonzero(np.isnan(buffer).any(axis=1))
    return int(rows[0]) if len(rows) else len(buffer)
