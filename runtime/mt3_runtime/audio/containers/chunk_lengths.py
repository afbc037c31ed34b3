"""Lengths in WAV, RF64, W64, AIFF, CAF and AU files: stated, missing, too large.

Contract: :func:`chunk_part` takes the file that begins at a position, up to its last chunk.  A
length that was never filled in, or filled in with the largest number there is, because the writer
could not go back (a pipe) or did not come to it (a recorder that died), means that the samples go
on to the end; the decoder is handed the true length.  A length larger than the file is left to be
reported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from mt3_runtime.audio.containers.byte_source import SCAN_BYTES, Bytes, ByteView, Part
from mt3_runtime.audio.containers.mpeg_frames import mpeg_part
from mt3_runtime.audio.containers.mpeg_headers import SYNC_BYTES, find_frames

_LIMIT_32 = 1 << 32

_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
_W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")

_W64_TAILS = (_W64_TAIL, _W64_RIFF[4:])

_PLACEHOLDERS = ((0x7F000000, 0x7F000200), (0x7FFE0000, 0x80010000), (0xFFFE0000, _LIMIT_32))
"""Lengths [from, to) that writers put where they know none: sox has 0x7F000000 for AIFF and
0x7FFFF000
for WAV, others the ends of signed and unsigned 32-bit numbers, all with or without the headers."""

_PLACEHOLDER_64 = 1 << 48
"""Lengths of 64 bits from here up are placeholders; W64 has 2**63 - 1, CAF -1."""

_UNCLOSED = "states no length, as if its recording had never been closed"

_WRAPPED = _LIMIT_32 - (1 << 16)
"""So much more than stated: the length was counted in 32 bits, and began again from 0."""

_HEAD = 64
"""Bytes by which a format is recognised."""

_OTHER_FILES = (b"OggS", b"fLaC")
"""What looks like a chunk's name, and is another file."""

_MOST_CHUNKS = 1 << 16
"""More are no sound file."""

_MPEG_TAGS = (0x50, 0x55)
"""Format tags of WAV for MPEG audio, layers I and II, and III."""

_EXTENSIBLE, _PLAIN_TAGS = 0xFFFE, (1, 3, 6, 7)
"""Format tag of WAV that says that another one follows; tags of PCM, floats, A-law and mu-law."""

_PLAIN_CODES = (
    b"NONE", b"twos", b"sowt", b"raw ", b"in24", b"in32", b"fl32", b"FL32", b"fl64", b"FL64",
    b"alaw", b"ALAW", b"ulaw", b"ULAW", b"lpcm",
)  # fmt: skip
"""The same of AIFF-C and CAF."""


@dataclass(frozen=True)
class Layout:
    """How a format lays out its chunks: name, length, content, name, length, content.

    Attributes:
        kind: Name for messages.
        magic: Pattern of the first bytes of the file.
        first: Offset of the first chunk.
        name: Bytes of a chunk's name.
        width: Bytes of its length.
        order: Their order.
        data: Name of the chunk of samples.
        inner: Bytes in it before the samples.
        round: Chunks begin at multiples of this.
        whole: The length counts name and length, too.
        zero_is_none: 0 is how this format's writers say that they know no length.
    """

    kind: str
    magic: re.Pattern[bytes]
    first: int
    name: int
    width: int
    order: Literal["little", "big"]
    data: bytes
    inner: int = 0
    round: int = 2
    whole: bool = False
    zero_is_none: bool = False


def _magic(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)


_WAV = Layout("WAV", _magic(rb"RIFF....WAVE"), 12, 4, 4, "little", b"data")
CHUNKED = (
    _WAV,
    replace(_WAV, kind="RIFX", magic=_magic(rb"RIFX....WAVE"), order="big"),
    replace(_WAV, kind="RF64", magic=_magic(rb"(RF64|BW64)....WAVE"), zero_is_none=True),
    Layout(
        "AIFF", _magic(rb"FORM....AIF[FC]"), 12, 4, 4, "big", b"SSND", inner=8, zero_is_none=True
    ),
    Layout(
        "W64",
        _magic(re.escape(_W64_RIFF) + rb".{8}wave" + re.escape(_W64_TAIL)),
        40,
        16,
        8,
        "little",
        b"data" + _W64_TAIL,
        round=8,
        whole=True,
    ),
    Layout("CAF", _magic(rb"caff\0\x01..desc"), 8, 4, 8, "big", b"data", inner=4, round=1),
)

AU = Layout(
    "AU", _magic(rb"\.snd\0\0[\0-\x0f].{5}\0\0\0.\0.{3}\0\0\0."), 0, 4, 4, "big", b"", round=1
)
LAYOUTS = (*CHUNKED, AU)


class _Chunk(NamedTuple):
    name: bytes
    start: int
    content: int  # offset of its first byte
    length: int  # of the content, as stated
    behind: int  # offset of the next chunk


def chunk_layout(source: Bytes, at: int) -> Layout | None:
    """The format of the file that begins at ``at``, None if it is none of these."""
    head = source.at(at, _HEAD)
    return next((layout for layout in LAYOUTS if layout.magic.match(head)), None)


def chunk_part(source: Bytes, start: int, layout: Layout) -> Part:
    """Take the file that begins at ``start``, in the format that :func:`chunk_layout` found."""
    if layout is AU:
        return _au_part(source, start)
    format_tag, long_at = 0, 0
    chunk = _chunk(source, start + layout.first, layout)
    for _ in range(_MOST_CHUNKS):
        if chunk is None or chunk.name == layout.data:
            break
        if chunk.name == b"fmt ":
            format_tag = int.from_bytes(source.at(chunk.content, 2), layout.order)
        if chunk.name == b"ds64":
            long_at = chunk.content + 8  # behind the length of the file, that of the samples
        chunk = _chunk(source, chunk.behind, layout)
    if chunk is None or chunk.name != layout.data:
        whole = ByteView(source, [range(start, source.size)])
        return Part(start, source.size, whole, layout.kind)
    stated = chunk.length
    if long_at and stated == _LIMIT_32 - 1:
        stated = int.from_bytes(source.at(long_at, 8), "little")
        chunk = chunk._replace(behind=chunk.content + stated + stated % 2)
    samples = _Samples(source, start, layout, chunk, stated, long_at)
    return (samples.mpeg() if format_tag in _MPEG_TAGS else None) or samples.part()


def chunk_codec(source: Bytes, start: int, layout: Layout) -> str:
    """How samples are coded in the file that begins at ``start``; empty for plain numbers.

    Plain are PCM, floats, A-law and mu-law, in all chunks that say so.
    """
    if layout is AU:  # numbers from 1 on: mu-law, PCM, floats, ...; A-law
        number = int.from_bytes(source.at(start + 12, 4), "big")
        return "" if number in (*range(1, 8), 27) else f"codec {number}"
    found: set[str] = set()
    chunk = _chunk(source, start + layout.first, layout)
    for _ in range(_MOST_CHUNKS):
        if chunk is None:
            break
        content = source.at(chunk.content, 40)
        if chunk.name[:4] == b"fmt ":
            tag = int.from_bytes(content[:2], layout.order)
            tag = int.from_bytes(content[24:26], layout.order) if tag == _EXTENSIBLE else tag
            found.add("" if tag in _PLAIN_TAGS else f"codec 0x{tag:04x}")
        elif chunk.name in (b"COMM", b"desc"):
            plain = chunk.name == b"COMM" and chunk.length < 22  # AIFF before AIFC
            code = content[18:22] if chunk.name == b"COMM" else content[8:12]
            known = plain or code in _PLAIN_CODES
            found.add("" if known else f"codec {code.decode('ascii', 'replace')!r}")
        chunk = _chunk(source, chunk.behind, layout)
    return max(found, default="no stated codec")


def _au_part(source: Bytes, start: int) -> Part:
    head = source.at(start, 12)
    content, stated = start + int.from_bytes(head[4:8]), int.from_bytes(head[8:12])
    chunk = _Chunk(b"", start + 4, content, stated, content + stated)  # its "name": the offset
    return _Samples(source, start, AU, chunk, stated, 0).part()


def _chunk(source: Bytes, at: int, layout: Layout) -> _Chunk | None:
    """The chunk at ``at``; None if the file ends there, or what is there is no chunk."""
    size = layout.name + layout.width
    head = source.at(at, size)
    if len(head) < size or not all(0x20 <= byte < 0x7F for byte in head[:4]):
        return None
    if layout.name == 16 and head[4:16] not in _W64_TAILS:
        return None
    length = int.from_bytes(head[layout.name :], layout.order)
    length = max(0, length - size) if layout.whole else length
    behind = at + size + length
    return _Chunk(head[: layout.name], at, at + size, length, behind + -length % layout.round)


@dataclass(frozen=True)
class _Samples:
    """The chunk of samples, the length it states, and what follows from it."""

    source: Bytes
    start: int
    layout: Layout
    chunk: _Chunk
    stated: int
    long_at: int  # offset of a length of 64 bits elsewhere in the header, 0 if there is none

    def part(self) -> Part:
        """The file, with the true length where the stated one is not."""
        stop, present, note = self._extent()
        stated = self.stated if note is None else present
        changed = self.stated != present or self.source.at(self.start, 4) == b"BW64"
        pieces = self._pieces(present, stop) if changed else [range(self.start, stop)]
        return Part(
            self.start,
            stop,
            ByteView(self.source, pieces),
            self.layout.kind,
            stated=max(1, stated - self.layout.inner),
            present=max(1, present - self.layout.inner),
            note=note or "",
        )

    def mpeg(self) -> Part | None:
        """The stream of MPEG audio that the chunk holds, None if none is found in it."""
        stop, present, note = self._extent()
        end = self.chunk.content + present
        found = find_frames(self.source, self.chunk.content, end, within=SYNC_BYTES)
        if found is None:
            return None
        inner = mpeg_part(self.source, found, end)
        stated = present if note is not None else self.stated
        return replace(
            inner,
            start=self.start,
            end=stop,
            stated=max(1, stated),
            present=max(1, present),
            lost=inner.lost + end - inner.end,
            note=note or "",
        )

    def _extent(self) -> tuple[int, int, str | None]:
        """End of the file, bytes of the chunk, and a note if its length was never filled in."""
        layout, chunk = self.layout, self.chunk
        room = max(0, self.source.size - chunk.content)
        note: str | None = None
        follows = self._is_chain(chunk.behind)  # other chunks, and not samples that nobody counted
        if self.stated == 0 and room > layout.inner and not follows:
            note = "" if layout.zero_is_none else _UNCLOSED
        elif room - self.stated > _WRAPPED and not follows:
            note = ""
        if _is_placeholder(self.stated) and (self.stated > room or not follows):
            note = ""
        if note is not None:
            stop = self._next_file()
            return stop, stop - chunk.content, note
        if self.stated > room:
            return self.source.size, room, None
        if layout is AU:
            return chunk.behind, self.stated, None
        end = chunk.content + self.stated
        padding = self.source.at(end, chunk.behind - end)  # not every writer puts it
        return self._last_chunk(end if padding.strip(b"\0") else chunk.behind), self.stated, None

    def _pieces(self, present: int, stop: int) -> list[bytes | range]:
        """The file with the true length of the chunk, as RF64 where 32 bits are too few."""
        layout, chunk, start = self.layout, self.chunk, self.start
        field = chunk.start + layout.name
        length = present + layout.name + layout.width if layout.whole else present
        if layout is AU:
            length = length if length < 1 << 31 else _LIMIT_32 - 1
        elif layout.kind in ("WAV", "RF64") and (length >= _LIMIT_32 or layout.kind == "RF64"):
            sizes = b"".join(n.to_bytes(8, "little") for n in (stop - start, length, 0))
            head = b"RF64\xff\xff\xff\xffWAVEds64" + (28).to_bytes(4, "little") + sizes + bytes(4)
            before: list[bytes | range] = [head, range(start + layout.first, chunk.start)]
            if self.long_at:  # without the other ds64, which is the first chunk
                before[1] = range(_chunk_behind(self.source, start + layout.first), chunk.start)
            return [*before, b"data\xff\xff\xff\xff", range(chunk.content, stop)]
        encoded = min(length, (1 << 8 * layout.width) - 1).to_bytes(layout.width, layout.order)
        return [range(start, field), encoded, range(field + layout.width, stop)]

    def _is_chain(self, at: int) -> bool:
        """Whether chunks follow one another from ``at`` up to the end."""
        return self.layout is not AU and self._last_chunk(at) >= self.source.size

    def _last_chunk(self, at: int) -> int:
        """Position behind the last of the chunks that follow one another from ``at`` on."""
        for _ in range(_MOST_CHUNKS):
            chunk = _chunk(self.source, at, self.layout)
            if (
                chunk is None
                or chunk.name in _OTHER_FILES
                or chunk.behind > self.source.size + 1
                or chunk_layout(self.source, at)
            ):
                break
            at = chunk.behind
        return min(at, self.source.size)

    def _next_file(self) -> int:
        """Position of the next file of the same format, else the end."""
        at = self.chunk.content
        while block := self.source.at(at, SCAN_BYTES + _HEAD):
            if found := self.layout.magic.search(block):
                return at + found.start()
            if len(block) <= _HEAD:
                break
            at += len(block) - _HEAD
        return self.source.size


def _chunk_behind(source: Bytes, at: int) -> int:
    chunk = _chunk(source, at, _WAV)
    return chunk.behind if chunk and chunk.name == b"ds64" else at


def _is_placeholder(length: int) -> bool:
    return length >= _PLACEHOLDER_64 or any(low <= length < high for low, high in _PLACEHOLDERS)
