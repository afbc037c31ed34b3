"""Extent of the tags that lie around and between sounds: ID3, APE, Lyrics3, and runs of zeros.

Contract: :func:`skip_tags` walks forward over whatever of them begins at a position;
:func:`tail_start` walks backward from the end of a file.  Nothing of a tag is read but its size.
"""

from __future__ import annotations

import re

from mt3_runtime.audio.containers.byte_source import SCAN_BYTES, Bytes

_ID3_HEADER = 10
_APE_HEADER = 32
_ID3V1 = 128
_ID3V1_EXTENDED = 227
_LYRICS_MOST = 1 << 20
"""Lyrics3 states its size with six digits, so no tag is longer than 1 MB."""

_NOT_ZERO = re.compile(rb"[^\0]")


def skip_tags(source: Bytes, at: int) -> int:
    """Position behind all tags and zeros that begin at ``at``; ``at`` if there are none."""
    while at < source.size:
        size = _tag_size(source, at)
        if (
            at + size > source.size
        ):  # a tag larger than the file is none, but its header is no audio
            size = _ID3_HEADER
        if size == 0:
            behind = skip_zeros(source, at)
            if behind == at:
                break
            at = behind
        at += size
    return min(at, source.size)


def skip_zeros(source: Bytes, at: int) -> int:
    """Position of the first byte from ``at`` on that is not zero."""
    size = 64  # mostly there are none
    while block := source.at(at, size):
        if found := _NOT_ZERO.search(block):
            return at + found.start()
        at += len(block)
        size = min(16 * size, SCAN_BYTES)
    return at


def tail_start(source: Bytes) -> int:
    """Position where the tags at the end of the file begin; its size if there are none."""
    end = source.size
    while (start := _tail_tag(source, end)) < end:
        end = start
    return end


def _tag_size(source: Bytes, at: int) -> int:
    """Size of the tag whose first byte is at ``at``, 0 if there is none."""
    head = source.at(at, _APE_HEADER)
    if len(head) >= _ID3_HEADER and head[:3] in (b"ID3", b"3DI") and head[3] < 0xFF:
        footer = _ID3_HEADER if head[5] & 0x10 else 0
        return _ID3_HEADER + (_seven_bits(head[6:10]) + footer if head[:3] == b"ID3" else 0)
    if head[:8] == b"APETAGEX" and len(head) == _APE_HEADER:
        is_header = head[23] & 0x20
        return _APE_HEADER + (int.from_bytes(head[12:16], "little") if is_header else 0)
    if head[:4] == b"TAG+" and at + _ID3V1_EXTENDED <= source.size:
        return _ID3V1_EXTENDED
    if head[:3] == b"TAG" and at + _ID3V1 <= source.size:
        return _ID3V1
    if head[:11] == b"LYRICSBEGIN":
        found = re.search(rb"LYRICS(200|END)", source.at(at, _LYRICS_MOST))
        return found.end() if found else 0
    return 0


def _seven_bits(digits: bytes) -> int:
    size = 0
    for digit in digits:
        size = size << 7 | digit & 0x7F
    return size


def _tail_tag(source: Bytes, end: int) -> int:
    """Start of the tag that ends at ``end``; ``end`` if there is none."""
    last = source.at(max(0, end - _ID3V1_EXTENDED), min(end, _ID3V1_EXTENDED))
    size = 0
    if last[-_ID3V1:].startswith(b"TAG") and len(last) >= _ID3V1:
        size = _ID3V1
    elif last.startswith(b"TAG+") and len(last) == _ID3V1_EXTENDED:
        size = _ID3V1_EXTENDED
    elif last[-_APE_HEADER:].startswith(b"APETAGEX"):
        has_header = last[-9] & 0x80
        size = int.from_bytes(last[-20:-16], "little") + (_APE_HEADER if has_header else 0)
    elif last.endswith(b"LYRICS200") and last[-15:-9].isdigit():
        size = int(last[-15:-9]) + 15
    elif last.endswith(b"LYRICSEND"):
        before = source.at(max(0, end - 5120), min(end, 5120))  # version 1 has 5100 bytes at most
        size = len(before) - before.rfind(b"LYRICSBEGIN") if b"LYRICSBEGIN" in before else 0
    elif last[-_ID3_HEADER:].startswith(b"3DI"):
        size = _seven_bits(last[-4:]) + 2 * _ID3_HEADER
    return end - size if size <= end else end
