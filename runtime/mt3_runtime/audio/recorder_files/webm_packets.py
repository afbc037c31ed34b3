"""Packets of a WebM file that still grows: the first audio track's, Opus alone.

Contract: `WebmPackets.feed` takes the next bytes, cut anywhere, and returns the packets that are
whole with them.  `head` is the track's OpusHead, None until it came.  Nothing is held but a header
of bounded size and the element that is not whole yet; video tracks are passed over.

A recorder writes a file in one go, so its segment and clusters state no length, there is no index,
and blocks have one packet each (no lacing).  Elements that WebM does not know end it: it is damaged
then, and what follows would be silence that nobody explains.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mt3_runtime.audio.recorder_files.opus_packets import MOST_PACKET
from mt3_runtime.errors import AudioError, AudioFormatError

_FILE, _TRACKS, _TRACK = 0x1A45DFA3, 0x1654AE6B, 0xAE
_NUMBER, _TYPE, _CODEC, _PRIVATE, _ENCODINGS = 0xD7, 0x83, 0x86, 0x63A2, 0x6D80
_SIMPLE_BLOCK, _BLOCK = 0xA3, 0xA1

_ENTERED = {0x18538067: "Segment", 0x1F43B675: "Cluster", 0xA0: "BlockGroup"}
"""Elements whose parts follow as if they stood alone."""

_PASSED = frozenset({
    0x114D9B74, 0x1549A966, 0x1C53BB6B, 0x1043A770, 0x1254C367, 0x1941A469,  # SeekHead, Info, Cues,
    # Chapters, Tags, Attachments; Void, CRC-32; of clusters and block groups:
    0xEC, 0xBF, 0xE7, 0x5854, 0xA7, 0xAB, 0xAF, 0x9B, 0xFB, 0xFA, 0xFD, 0x75A2, 0x75A1, 0xA4, 0x8E,
    0xC8,
})  # fmt: skip

_MOST_HEADER = 1 << 16
"""Bytes of the file's header, or of its tracks; a recorder's have some hundred."""

_BLOCK_HEAD = 11
"""Bytes, at most, ahead of a block's packet: number of the track, time, flags."""

_AUDIO = 2
_LACED = 0x06


class _Element(NamedTuple):
    """Number, length (None if it is not stated) and first byte of an element's content."""

    kind: int
    size: int | None
    body: int


class WebmPackets:
    """See the module docstring.

    Args:
        name: Of the recording, for messages.

    Attributes:
        head: OpusHead of the track; None until it came.
        end: The last sample there is, in samples at 48 kHz; None, as WebM does not say.
    """

    def __init__(self, name: str) -> None:
        self.head: bytes | None = None
        self.end: int | None = None
        self._name = name
        self._held = bytearray()
        self._skip = 0  # bytes that are of no interest
        self._track = -1
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields the packets that are whole with the next bytes.

        Raises:
            AudioFormatError: It is no WebM, or not with Opus.
            AudioError: It is damaged.
        """
        self._held += data
        at = 0
        try:
            while True:
                passed = min(self._skip, len(self._held) - at)
                at, self._skip = at + passed, self._skip - passed
                element = None if self._skip else _element(self._held, at)
                if element is None:
                    break
                if element.kind in _ENTERED and self._begun:
                    at = element.body
                    continue
                packet = self._packet(element)
                if packet is None:
                    break
                at, self._skip = element.body, element.size or 0
                if packet:
                    yield packet
        except _DamagedError:
            raise self._damaged() from None
        del self._held[:at]

    def _packet(self, element: _Element) -> bytes | None:
        """The packet in an element, empty if there is none; None if more of it must come."""
        kind, size, body = element
        if size is None or not (self._begun or kind == _FILE):
            raise _DamagedError
        here = len(self._held) - body
        if kind in (_SIMPLE_BLOCK, _BLOCK):
            return self._block(body, size) if here >= min(size, _BLOCK_HEAD) else None
        if kind in (_FILE, _TRACKS):
            if size > _MOST_HEADER:
                raise _DamagedError
            if here < size:
                return None
            if kind == _TRACKS:
                self._choose(bytes(self._held[body : body + size]))
            elif self._begun:
                raise AudioError(
                    f"{self._name} is followed by another recording; open another input for it."
                )
            self._begun = True
        elif kind not in _PASSED:
            raise _DamagedError
        return b""

    def _block(self, body: int, size: int) -> bytes | None:
        """The packet of a block; empty if it is of another track, None if it is not whole."""
        track = _number(self._held, body, 8)
        if track is None or body + size <= track.end + 3:
            raise _DamagedError
        if track.value != self._track:
            return b""
        if self._held[track.end + 2] & _LACED or size > MOST_PACKET + _BLOCK_HEAD:
            raise _DamagedError
        if len(self._held) < body + size:
            return None
        return bytes(self._held[track.end + 3 : body + size])

    def _choose(self, content: bytes) -> None:
        """Takes the first audio track."""
        codecs = []
        for kind, entry in _parts(content):
            track = dict(_parts(entry)) if kind == _TRACK else {}
            if int.from_bytes(track.get(_TYPE, b"")) != _AUDIO:
                continue
            codec = track.get(_CODEC, b"").rstrip(b"\0").decode("ascii", "replace")
            if codec == "A_OPUS" and _ENCODINGS not in track:
                self._track = int.from_bytes(track.get(_NUMBER, b""))
                self.head = track.get(_PRIVATE, b"")
                return
            codecs.append(codec[:40])
        raise AudioFormatError(
            f"{self._name} is WebM with {', '.join(codecs) or 'no audio'}; expected Opus, as of "
            "new MediaRecorder(stream, {mimeType: 'audio/webm;codecs=opus'})."
        )

    def _damaged(self) -> AudioError:
        if not self._begun:
            return AudioFormatError(
                f"{self._name} is no WebM; expected what a MediaRecorder makes, from its first "
                "byte on."
            )
        return AudioError(
            f"{self._name} is damaged, or no WebM of a recorder. Send what the MediaRecorder "
            "gives, all of it and in order."
        )


class _DamagedError(Exception):
    """These bytes are no elements that may be here."""


class _Number(NamedTuple):
    """A number of variable length: with its mark and without, and where it ends."""

    marked: int
    value: int
    end: int


def _number(data: bytes | bytearray, at: int, most: int) -> _Number | None:
    """The number at a position, of so many bytes at most; None if it is not whole."""
    if at >= len(data):
        return None
    width = 9 - data[at].bit_length()
    if width > most:
        raise _DamagedError
    if at + width > len(data):
        return None
    marked = int.from_bytes(data[at : at + width])
    return _Number(marked, marked - (1 << 7 * width), at + width)


def _element(data: bytes | bytearray, at: int) -> _Element | None:
    """The element at a position; None if its beginning is not whole."""
    kind = _number(data, at, 4)
    size = _number(data, kind.end, 8) if kind else None
    if kind is None or size is None:
        return None
    unknown = size.value == (1 << 7 * (size.end - kind.end)) - 1
    return _Element(kind.marked, None if unknown else size.value, size.end)


def _parts(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of the elements in one that is whole."""
    at = 0
    while at < len(content):
        element = _element(content, at)
        if element is None or element.size is None or element.body + element.size > len(content):
            raise _DamagedError
        at = element.body + element.size
        yield element.kind, content[element.body : at]
