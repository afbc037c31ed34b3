"""Opus packets: how long they last, and what their stream's header states (RFC 6716, RFC 7845)."""

from __future__ import annotations

import struct
from typing import NamedTuple

OPUS_RATE = 48_000
"""Samples per second that Opus is decoded to, and in which it counts."""

MOST_PACKET = 48 * 1275 + 100
"""Bytes of a packet: 48 frames of 1,275 bytes, and their lengths."""

_LONGEST = 5760
"""Samples of a packet: 120 ms."""

_HEAD = struct.Struct("<8sBBHIhB")
_RATE = slice(12, 16)


class OpusHead(NamedTuple):
    """What the header of a stream states.

    Attributes:
        channels: How many.
        skipped: Samples ahead of the first that is heard.
        data: The header itself, with the rate to which it is decoded.
    """

    channels: int
    skipped: int
    data: bytes


def opus_head(data: bytes) -> OpusHead | None:
    """Reads the header of a stream; None if it is none."""
    if len(data) < _HEAD.size:
        return None
    mark, version, channels, skipped, *_ = _HEAD.unpack_from(data)
    if mark != b"OpusHead" or version > 15 or not channels:
        return None
    rate = OPUS_RATE.to_bytes(4, "little")
    return OpusHead(channels, skipped, data[: _RATE.start] + rate + data[_RATE.stop :])


def opus_samples(packet: bytes) -> int:
    """Samples at 48 kHz of a packet; 0 if it is none."""
    if not packet:
        return 0
    kind, code = packet[0] >> 3, packet[0] & 3
    if kind < 12:  # SILK: 10, 20, 40, 60 ms
        frame = (480, 960, 1920, 2880)[kind & 3]
    elif kind < 16:  # hybrid: 10, 20 ms
        frame = (480, 960)[kind & 1]
    else:  # CELT: 2.5, 5, 10, 20 ms
        frame = 120 << (kind & 3)
    if code == 3 and len(packet) < 2:
        return 0
    count = (1, 2, 2, packet[1] & 63 if code == 3 else 0)[code]
    total = frame * count
    return total if total <= _LONGEST else 0
