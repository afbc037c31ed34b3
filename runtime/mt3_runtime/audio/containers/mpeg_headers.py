"""Headers of MPEG audio frames (layers I to III): lengths, beginnings of streams, counts, silence.

Contract: :func:`parse_header` reads one, :func:`find_frames` looks for the first of a stream, and
the functions on a frame that counts the others (Xing, Info, VBRI) read and correct it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from mt3_runtime.audio.containers.audio_tags import skip_tags
from mt3_runtime.audio.containers.byte_source import SCAN_BYTES, Bytes

SYNC_BYTES = 1 << 16
"""How far the beginning of a file is searched for frames: a cut frame, or an uncounted padding."""

_AGREEING = 3
"""Frames in a row that make a beginning: two agree by chance in one of 4,000 random 64 kB."""

# kbit/s by layer, of MPEG 1 and of MPEG 2 and 2.5
_RATES_1 = {
    1: (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_RATES_2 = {
    1: (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_2[3] = _RATES_2[2]

_SYNC = re.compile(rb"\xff[\xe2-\xff]|ID3[\x02-\x04]\0")
_FREE_MOST = 6000
"""Longest frame of free bit rate: 640 kbit/s at 8 kHz."""

_FREE_TRIES = 256
"""Beginnings of a next frame that are tried; bytes that look like one are rare, one in 2,000."""

COUNTS = (b"Xing", b"Info")
LOOK_AHEAD = 64
"""A frame's header and side information are at most 38 bytes, the mark of its count 4 more."""


class Header(NamedTuple):
    """What the first four bytes of a frame say.

    Attributes:
        stream: What all frames of a stream have in common: version, layer, rate, mono or not.
        rate: Sample rate [Hz].
        length: Bytes of the frame, 0 for one of free bit rate whose length is not given.
        samples: Sample frames in it.
        side: Bytes of the side information of layer III, 0 for the others.
        body: Where it begins: behind the header, and its checksum if there is one.
        mpeg1: MPEG 1, not 2 or 2.5.
    """

    stream: int
    rate: int
    length: int
    samples: int
    side: int
    body: int
    mpeg1: bool


@lru_cache(maxsize=1024)
def parse_header(word: bytes, free: int = 0) -> Header | None:
    """Read the four bytes of a frame's header; None if they are none.

    Args:
        word: The bytes.
        free: Bytes of a frame whose bit rate is free, as :func:`free_length` finds it; its header
            does not say.
    """
    bits = int.from_bytes(word)
    version, layer = bits >> 19 & 3, 4 - (bits >> 17 & 3)
    index, rate_index = bits >> 12 & 15, bits >> 10 & 3
    if len(word) < 4 or bits >> 21 != 0x7FF or version == 1 or layer == 4:
        return None
    if index == 15 or rate_index == 3:
        return None
    mpeg1 = version == 3
    rate = (44100, 48000, 32000)[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    samples = {1: 384, 2: 1152, 3: 1152 if mpeg1 else 576}[layer]
    slot = 4 if layer == 1 else 1
    length = (bits >> 9 & 1) * slot
    if index:
        kbits = (_RATES_1 if mpeg1 else _RATES_2)[layer][index - 1]
        length += samples // 8 // slot * kbits * 1000 // rate * slot
    else:
        length = length + free if free else 0
    mono = bits >> 6 & 3 == 3
    side = ((17 if mono else 32) if mpeg1 else (9 if mono else 17)) if layer == 3 else 0
    body = 4 if bits >> 16 & 1 else 6
    if 0 < length < body + side:
        return None
    return Header(bits & 0xFFFE0C00 | mono, rate, length, samples, side, body, mpeg1)


def free_length(source: Bytes, at: int) -> int:
    """Bytes of a frame of free bit rate without padding: the distance to the next, 0 if unknown."""
    block = source.at(at, 2 * _FREE_MOST + 8)
    first = parse_header(block[:4])
    for found in islice(_SYNC.finditer(block, 24), _FREE_TRIES):
        for padding in (0, 1, 4):
            free = found.start() - padding
            if first and parse_header(block[:4], free) and _agree(block, first, free):
                return free
    return 0


def _agree(block: bytes, first: Header, free: int) -> bool:
    """Whether two more frames follow the first one of a block, if each has ``free`` bytes."""
    at = 0
    for _ in range(_AGREEING - 1):
        header = parse_header(block[at : at + 4], free)
        at += header.length if header else 0
        following = parse_header(block[at : at + 4], free)
        if following is None or following.stream != first.stream or block[at + 2] >> 4:
            return False
    return True


def find_frames(source: Bytes, at: int, end: int, *, within: int) -> int | None:
    """Position of the first frame or ID3 tag that others follow, None if there is none.

    Args:
        source: The file.
        at: Where to begin.
        end: Where it ends.
        within: How many bytes to search.
    """
    stop = min(end, at + within)
    while at < stop:
        block = source.at(at, min(SCAN_BYTES, stop - at) + 4)
        for found in _SYNC.finditer(block):
            place = at + found.start()
            if place >= stop:
                break
            if begins_stream(source, skip_tags(source, place), end, searching=True):
                return place
        at += len(block) - 4 if len(block) > 4 else len(block)
    return None


def begins_stream(source: Bytes, at: int, end: int, *, searching: bool = False) -> bool:
    """Whether frames of one stream follow one another from ``at`` on, three or up to the end.

    Frames of free bit rate are not looked for while ``searching``: finding their length costs
    milliseconds, and any two bytes may be such a frame's.
    """
    stream, free = None, 0
    for seen in range(1, _AGREEING + 1):
        header = parse_header(source.at(at, 4), free)
        if header is not None and header.length == 0 and not searching:
            free = free_length(source, at)
            header = parse_header(source.at(at, 4), free)
        if header is None or not header.length or stream not in (None, header.stream):
            return False
        stream = header.stream
        at += header.length
        if at >= end or skip_tags(source, at) >= end:
            return at == end or seen > 1
    return True


def most_reservoir(header: Header) -> int:
    """How far back a frame of layer III can point: 9 bits in MPEG 1, 8 in MPEG 2."""
    return 511 if header.mpeg1 else 255


def count_mark(block: bytes, header: Header, at: int) -> bytes:
    """The mark of a frame that counts the others, empty if it is an ordinary one."""
    for mark in (at + 4 + header.side, at + header.body + header.side):  # few mind the checksum
        if (word := block[mark : mark + 4]) in COUNTS:
            return word
    return word if (word := block[at + 36 : at + 40]) == b"VBRI" else b""


def _fields(head: bytes) -> tuple[int | None, int | None, int]:
    """Offsets in a Xing frame: of the number of frames, of that of bytes, and of the LAME tag."""
    at = head.index(b"Xing" if b"Xing" in head else b"Info") + 4
    flags, at = int.from_bytes(head[at : at + 4]), at + 4
    places = []
    for bit, size in ((1, 4), (2, 4), (4, 100), (8, 4)):  # frames, bytes, index, quality
        places.append(at if flags & bit else None)
        at += size if flags & bit else 0
    return places[0], places[1], at


def read_count(head: bytes) -> int | None:
    """The number of frames that a Xing frame states, None if it states none."""
    frames = _fields(head)[0]
    return None if frames is None else int.from_bytes(head[frames : frames + 4]) or None


def corrected_count(head: bytes, size: int, frames: int | None) -> bytes:
    """A Xing frame with the true number of bytes, and with more frames than it counted.

    libmpg123 remarks on a wrong number of bytes.  Where frames were added behind those counted, the
    padding that the encoder noted lies in the middle, and is not to be cut from the end.
    """
    frames_at, size_at, lame_at = _fields(head)
    fixed = bytearray(head)
    if size_at is not None:
        fixed[size_at : size_at + 4] = min(size, 0xFFFFFFFF).to_bytes(4)
    if frames is not None and frames_at is not None:
        fixed[frames_at : frames_at + 4] = frames.to_bytes(4)
        delays = lame_at + 21  # twelve bits of delay, twelve of padding
        if delays + 3 <= len(fixed):
            fixed[delays + 1] &= 0xF0
            fixed[delays + 2] = 0
    return bytes(fixed[: len(head)])


def silent_frame(head: bytes, header: Header, reservoir: int) -> bytes:
    """Header and side information of a frame without sound, its checksum renewed.

    It still points back as far as there are bytes: libmpg123 keeps those of earlier frames only
    where each frame points to the one before.
    """
    back = reservoir << 7 if header.mpeg1 else reservoir << 8
    side = back.to_bytes(2) + bytes(header.side - 2)
    if header.body == 4:
        return head[:4] + side
    check = 0xFFFF
    for byte in head[2:4] + side:
        check ^= byte << 8
        for _ in range(8):
            check = (check << 1 ^ (0x8005 if check & 0x8000 else 0)) & 0xFFFF
    return head[:4] + check.to_bytes(2) + side
