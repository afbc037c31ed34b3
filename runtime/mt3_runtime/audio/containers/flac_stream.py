"""Length of FLAC streams: the number of samples, and where another stream follows.

Contract: :func:`flac_part` takes the stream that begins at a position.  A stream that was written
to a pipe states no number of samples, and libFLAC then ends with an error; the last frame of a
stream says where it stands, so the true number is entered in the header that the decoder reads.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mt3_runtime.audio.containers.audio_kinds import begins_file
from mt3_runtime.audio.containers.audio_tags import skip_tags
from mt3_runtime.audio.containers.byte_source import SCAN_BYTES, Bytes, ByteView, Part
from mt3_runtime.audio.containers.mpeg_headers import begins_stream

_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_START_BYTES = 8
_INFO_BYTES = 34
_FRAME_MOST = 16
"""Most bytes of a frame's header, its checksum included."""

_CRC_16 = []
"""Remainders of one byte for the polynomial x^16 + x^15 + x^2 + 1."""
for _byte in range(256):
    _check = _byte << 8
    for _ in range(8):
        _check = (_check << 1 ^ (0x8005 if _check & 0x8000 else 0)) & 0xFFFF
    _CRC_16.append(_check)

_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_BLOCK_SIZES = (0, 192, 576, 1152, 2304, 4608, 0, 0, *(256 << n for n in range(8)))
_RATES = (0, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000)
_BITS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}


class StreamInfo(NamedTuple):
    """The first block of metadata."""

    block: int
    longest_block: int
    rate: int
    channels: int
    bits: int
    samples: int


class Frame(NamedTuple):
    """One frame: where it begins in the file, and its samples in the stream."""

    at: int
    first: int
    behind: int


def flac_part(source: Bytes, start: int, end: int) -> Part:
    """Take the stream that begins at ``start``.

    Args:
        source: The file.
        start: Where "fLaC" stands.
        end: Where the file, or its audio, ends.
    """
    following = _next_stream(source, start + _START_BYTES, end)
    stop = end if following is None else following
    whole = ByteView(source, [range(start, stop)])
    info = read_info(source.at(start, _START_BYTES + _INFO_BYTES))
    frames = _metadata_end(source, start + 4, stop)
    last = info and last_frame(source, frames, stop, info)
    if info is None or last is None:
        return Part(start, stop, whole, "FLAC")
    first = _frame_samples(source.at(frames, _FRAME_MOST), info) or (0, 0)
    samples = last.behind - first[0]  # what was cut from a broadcast does not begin with sample 0
    reach = min(stop, last.at + _most_bytes(info))
    stop = _end_of_frame(source, last.at, reach, stop)
    if info.samples >= samples:
        return Part(start, stop, ByteView(source, [range(start, reach)]), "FLAC")
    field = start + _START_BYTES + 13  # four bits, then four bytes, of the number of samples
    upper = source.at(field, 1)[0] & 0xF0
    count = (upper << 32 | samples).to_bytes(5)
    view = ByteView(source, [range(start, field), count, range(field + 5, reach)])
    return Part(start, stop, view, "FLAC")


def read_info(head: bytes) -> StreamInfo | None:
    """Read STREAMINFO from the first 42 bytes of a stream; None if it is not there."""
    if not _START.match(head) or len(head) < _START_BYTES + _INFO_BYTES:
        return None
    block = head[_START_BYTES:]
    packed = int.from_bytes(block[10:18])
    return StreamInfo(
        block=int.from_bytes(block[0:2]),
        longest_block=int.from_bytes(block[2:4]),
        rate=packed >> 44,
        channels=(packed >> 41 & 7) + 1,
        bits=(packed >> 36 & 31) + 1,
        samples=packed & (1 << 36) - 1,
    )


def last_frame(source: Bytes, start: int, end: int, info: StreamInfo) -> Frame | None:
    """The last frame between two positions; None if there is none."""
    stop = end
    while stop > start:
        begin = max(start, stop - (1 << 16))
        block = source.at(begin, stop - begin + _FRAME_MOST)
        found = [match.start() for match in _SYNC.finditer(block, 0, stop - begin + 1)]
        for offset in reversed(found):
            samples = _frame_samples(block[offset : offset + _FRAME_MOST], info)
            if samples is not None:
                return Frame(begin + offset, *samples)
        stop = begin
    return None


def _end_of_frame(source: Bytes, at: int, reach: int, stop: int) -> int:
    """Where the frame at ``at`` ends: its checksum fits, and what follows is known if possible."""
    check, first = 0, 0
    for end, byte in enumerate(source.at(at, reach - at), start=at + 1):
        before, check = check, check << 8 & 0xFFFF ^ _CRC_16[check >> 8 ^ byte]
        if before and not check:  # zeros behind it would leave it as it is
            if _is_known(source, end, stop):
                return end
            first = first or end
    return first or reach


def _is_known(source: Bytes, at: int, stop: int) -> bool:
    """Whether tags lie between ``at`` and the end, or another file."""
    at = skip_tags(source, at)
    return at >= stop or begins_file(source, at) or begins_stream(source, at, stop)


def _metadata_end(source: Bytes, at: int, end: int) -> int:
    """Position behind the blocks of metadata, the first of which begins at ``at``."""
    last = False
    while not last and at + 4 <= end:
        head = source.at(at, 4)
        last = bool(head[0] & 0x80)
        at += 4 + int.from_bytes(head[1:])
    return min(at, end)


def _next_stream(source: Bytes, at: int, end: int) -> int | None:
    while at < end:
        block = source.at(at, min(SCAN_BYTES, end - at) + _START_BYTES - 1)
        if found := _START.search(block):
            return at + found.start()
        at += SCAN_BYTES
    return None


def _most_bytes(info: StreamInfo) -> int:
    """Most bytes of a frame: samples as they are, and 64 bytes of headers."""
    return info.longest_block * info.channels * (info.bits + 1) // 8 + 64


def _frame_samples(head: bytes, info: StreamInfo) -> tuple[int, int] | None:
    """First sample of a frame and the one behind its last; None if it is no frame of the stream."""
    head = head.ljust(_FRAME_MOST, b"\0")
    if not _SYNC.match(head) or not _agrees(head, info):
        return None
    number, at = _coded_number(head)
    if at == 0:
        return None
    block, at = _block_size(head, head[2] >> 4, at)
    at += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if _checksum(head[:at]) != head[at]:
        return None
    first = number if head[1] & 1 else number * info.block
    return first, first + block


def _agrees(head: bytes, info: StreamInfo) -> bool:
    """Whether rate, channels and sample size of a frame's header are those of the stream."""
    rate_code, channel_code, bits_code = head[2] & 15, head[3] >> 4, head[3] >> 1 & 7
    rate = _RATES[rate_code] if rate_code < len(_RATES) else 0
    bits = _BITS.get(bits_code, 0)
    return (
        head[2] >> 4 != 0
        and rate_code != 15
        and rate in (0, info.rate)
        and channel_code <= 10
        and info.channels == (channel_code + 1 if channel_code < 8 else 2)
        and bits_code != 3
        and bits in (0, info.bits)
        and not head[3] & 1
    )


def _coded_number(head: bytes) -> tuple[int, int]:
    """The number at byte 4, coded as in UTF-8, and the offset behind it; 0 if it is none."""
    lead = head[4]
    if lead < 0x80:
        return lead, 5
    more = f"{lead:08b}".find("0") - 1 if lead != 0xFF else -1
    if not 1 <= more <= 6 or any(byte >> 6 != 2 for byte in head[5 : 5 + more]):
        return 0, 0
    number = lead & (0x3F >> more)
    for byte in head[5 : 5 + more]:
        number = number << 6 | byte & 0x3F
    return number, 5 + more


def _block_size(head: bytes, code: int, at: int) -> tuple[int, int]:
    """Samples of a frame by their code, and the offset behind what the code refers to."""
    if code == 6:
        return head[at] + 1, at + 1
    if code == 7:
        return int.from_bytes(head[at : at + 2]) + 1, at + 2
    return _BLOCK_SIZES[code], at


def _checksum(data: bytes) -> int:
    """CRC-8 of the polynomial x^8 + x^2 + x + 1."""
    check = 0
    for byte in data:
        check ^= byte
        for _ in range(8):
            check = (check << 1 ^ (0x07 if check & 0x80 else 0)) & 0xFF
    return check
