"""Packets of an Ogg file that still grows, and packets as pages of Ogg: Opus alone.

Contract: `OggPackets.feed` takes the next bytes, cut anywhere, and yields the packets that are
whole with them; it has the face of `mt3_runtime.audio.recorder_files.webm_packets.WebmPackets`.
`ogg_page` is the inverse, for one packet.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from mt3_runtime.audio.recorder_files.opus_packets import MOST_PACKET
from mt3_runtime.errors import AudioError, AudioFormatError

CAPTURE = b"OggS\0"
BEGINS, ENDS = 2, 4
"""Flags of a stream's first and last page."""

_HEADER = struct.Struct("<5sBqIIIB")
_CHECKSUM = slice(22, 26)
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_page(packet: bytes, granule: int, number: int, flags: int = 0, serial: int = 1) -> bytes:
    """A page that holds one packet.

    Args:
        packet: Of 65,024 bytes at most.
        granule: Samples at 48 kHz up to its end.
        number: Of the page.
        flags: Whether the stream begins or ends with it.
        serial: Number of the stream.
    """
    lengths = b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
    head = _HEADER.pack(CAPTURE, flags, granule, serial, number, 0, len(lengths))
    page = bytearray(head + lengths + packet)
    page[_CHECKSUM] = checksum(page)
    return bytes(page)


def checksum(page: bytes | bytearray) -> bytes:
    """The checksum of a page whose own one is zero.

    It is the CRC-32 of zlib with its bits in reverse order and no inversion.
    """
    found = ~zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) & 0xFFFFFFFF
    return int(f"{found:032b}"[::-1], 2).to_bytes(4, "little")


class OggPackets:
    """See the module docstring.

    Args:
        name: Of the recording, for messages.

    Attributes:
        head: OpusHead of the stream; None until it came.
        end: The last sample there is, in samples at 48 kHz; None until it is known.
    """

    def __init__(self, name: str) -> None:
        self.head: bytes | None = None
        self.end: int | None = None
        self._name = name
        self._held = bytearray()
        self._serial = 0
        self._packet = b""  # the beginning of one that goes on in the next page
        self._packets = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yields the packets that are whole with the next bytes.

        Raises:
            AudioFormatError: It is no Ogg, or not with Opus.
            AudioError: It is damaged.
        """
        self._held += data
        while (page := self._page()) is not None:
            _, flags, granule, serial, _, _, count = _HEADER.unpack_from(page)
            body = _HEADER.size + count
            if self.head is None:
                self._begin(page[body:], serial)
            if self.end is not None:
                raise AudioError(
                    f"{self._name} is followed by another recording; open another input for it."
                )
            if serial != self._serial:
                continue
            if flags & ENDS and granule >= 0:
                self.end = granule
            yield from self._packets_of(page, page[_HEADER.size : body])

    def _page(self) -> bytes | None:
        """The next page; None if it is not whole."""
        held = self._held
        if not CAPTURE.startswith(bytes(held[: len(CAPTURE)])):
            if self.head is not None:
                raise self._damaged()
            raise AudioFormatError(
                f"{self._name} is no Ogg; expected what a MediaRecorder makes, from its first byte "
                "on."
            )
        if len(held) < _HEADER.size or len(held) < (body := _HEADER.size + held[26]):
            return None
        end = body + sum(held[_HEADER.size : body])
        if len(held) < end:
            return None
        page = bytearray(held[:end])
        del held[:end]
        stated, page[_CHECKSUM] = bytes(page[_CHECKSUM]), bytes(4)
        if checksum(page) != stated:
            raise self._damaged()
        return bytes(page)

    def _begin(self, body: bytes, serial: int) -> None:
        if not body.startswith(b"OpusHead"):
            raise AudioFormatError(
                f"{self._name} is Ogg without Opus; expected Opus, as of "
                "new MediaRecorder(stream, {mimeType: 'audio/ogg;codecs=opus'})."
            )
        self._serial, self.head = serial, body

    def _packets_of(self, page: bytes, lengths: bytes) -> Iterator[bytes]:
        at = _HEADER.size + len(lengths)
        for length in lengths:
            self._packet += page[at : at + length]
            at += length
            if len(self._packet) > MOST_PACKET:
                raise self._damaged()
            if length < 255:
                packet, self._packet = self._packet, b""
                self._packets += 1
                if self._packets > 2:  # behind OpusHead and OpusTags
                    yield packet

    def _damaged(self) -> AudioError:
        return AudioError(
            f"{self._name} is damaged. Send what the MediaRecorder gives, all of it and in order."
        )
