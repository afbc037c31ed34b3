"""Decodes Opus in a WebM or Ogg file that still grows, through libsndfile.

Contract: `OpusStream.feed` takes the next bytes of the file, cut anywhere; `OpusStream.decode`
gives what can be heard of them, a bounded piece at a time.  The samples are those that libsndfile
gives of the whole file, bit by bit.

libsndfile reads no WebM and no file that grows: it looks for the last page first, and never goes on
behind an end.  So the packets are put into pages of Ogg as they come, libsndfile is shown a last
page that states a length without end, and is never asked for more samples than have come.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.containers.decoders import forward_only
from mt3_runtime.audio.recorder_files.ogg_packets import BEGINS, ENDS, OggPackets, ogg_page
from mt3_runtime.audio.recorder_files.opus_packets import (
    OPUS_RATE,
    opus_head,
    opus_samples,
)
from mt3_runtime.audio.recorder_files.webm_packets import WebmPackets
from mt3_runtime.errors import AudioError, OptionError
from mt3_runtime.imports.extras import require

CONTAINERS: dict[str, type[WebmPackets | OggPackets]] = {"webm": WebmPackets, "ogg": OggPackets}
"""Files that browsers record."""

_ENDLESS = 1 << 46
"""Samples that the last page states: 46,000 years; libsndfile doubts more than 1 << 47."""

_TAGS = b"OpusTags" + bytes(8)

Frames = npt.NDArray[np.float32]


class OpusStream:
    """See the module docstring.

    Args:
        container: One of `CONTAINERS`.
        name: Of the recording, for messages.

    Raises:
        OptionError: There is no such container.
        MissingDependencyError: soundfile is not installed.
    """

    def __init__(self, container: str, name: str) -> None:
        if container not in CONTAINERS:
            raise OptionError(f"{container!r} is none of {', '.join(CONTAINERS)}.")
        self._packets = CONTAINERS[container](name)
        self._soundfile = require("soundfile", "Reading audio files", "cpu")
        self._name = name
        self._waiting: deque[bytes] = deque()
        self._pages = _GrowingFile()
        self._sound: Any = None
        self._number = 0  # of the next page
        self._skipped = 0
        self._granule = self._done = 0

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the file.

        Raises:
            AudioFormatError: It is no such file, or another codec.
            AudioError: It is damaged.
        """
        self._waiting.extend(self._packets.feed(data))

    def decode(self, most: int = OPUS_RATE) -> Frames:
        """What can be heard, float32 [n, channels] at 48 kHz.

        Args:
            most: Samples after which no further packet is taken; a packet has 5,760 at most.

        Returns:
            Without rows if nothing waits.

        Raises:
            AudioError: It is damaged.
        """
        frames = np.zeros((0, 1), np.float32)
        while self._waiting and not len(frames):
            while self._waiting and self._ready() < most:
                self._take(self._waiting.popleft())
            frames = self._read(self._ready())
        return frames

    def _ready(self) -> int:
        """Samples that have come, can be heard, and were not decoded."""
        end = self._granule
        if self._packets.end is not None:
            end = min(end, self._packets.end)
        return max(0, end - self._skipped - self._done)

    def _take(self, packet: bytes) -> None:
        """Gives libsndfile a packet, as a page."""
        samples = opus_samples(packet)
        if not samples:
            raise self._damaged("a packet is none of Opus")
        self._granule += samples
        if self._sound is None:
            self._open(packet)
        else:
            self._pages.append(ogg_page(packet, self._granule, self._number))
        self._number += 1

    def _open(self, packet: bytes) -> None:
        """Opens the stream with its first packet."""
        head = opus_head(self._packets.head or b"")
        if head is None:
            raise self._damaged("its header is none of Opus")
        self._skipped, self._number = head.skipped, 2
        self._pages.append(ogg_page(head.data, 0, 0, BEGINS) + ogg_page(_TAGS, 0, 1))
        self._pages.append(ogg_page(packet, self._granule, self._number))
        last = ogg_page(packet, _ENDLESS, self._number + 1, ENDS)
        with self._pages.followed_by(last), self._failing():
            self._sound = forward_only(self._soundfile)(self._pages)

    def _read(self, count: int) -> Frames:
        if not count:
            return np.zeros((0, 1), np.float32)
        with self._failing():
            frames: Frames = self._sound.read(count, dtype="float32", always_2d=True)
        if len(frames) != count:
            raise self._damaged("decoding stopped")
        self._done += count
        return frames

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # LibsndfileError
            raise self._damaged(str(getattr(error, "error_string", error)).rstrip(".")) from error

    def _damaged(self, why: str) -> AudioError:
        return AudioError(
            f"{self._name} is damaged ({why}). Send what the MediaRecorder gives, all of it and in "
            "order."
        )


class _GrowingFile:
    """Pages as a file object, without those that were read."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._start = self._position = 0  # in the file: of what is held, and of the next byte
        self._opening = True

    def append(self, page: bytes) -> None:
        """Adds a page behind the others."""
        self._data += page

    @contextmanager
    def followed_by(self, last: bytes) -> Iterator[None]:
        """Shows a last page for a while."""
        self._data += last
        try:
            yield
        finally:
            del self._data[-len(last) :]
            self._opening = False

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to an offset from the start, the position or the end."""
        end = self._start + len(self._data)
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: end}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Returns the position."""
        return self._position

    def read(self, count: int) -> bytes:
        """Reads up to so many bytes."""
        at = self._position - self._start
        found = bytes(self._data[at : at + count]) if at >= 0 else b""
        self._position += len(found)
        if not self._opening:
            del self._data[: at + len(found)]
            self._start = self._position
        return found
