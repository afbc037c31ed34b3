"""Frames of MPEG audio (layers I to III): where they lie, so that the decoder is given them alone.

Contract: :func:`mpeg_part` walks from the first frame of a stream to its end.  The result holds
whole frames only: no tags, no padding, nothing that is not audio, so libmpg123 has nothing to
search for (and nothing to say on standard error about it).

A new stream begins, and with it another part, where a frame counts the frames behind it (Xing,
Info, VBRI: joined files each have their own, with their own encoder delay) and where the sample
rate, the layer or mono / stereo changes.  A frame of layer III may take bits from the ones before
it; where those are missing, it is replaced by a silent one of the same length, as libmpg123 itself
does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mt3_runtime.audio.containers.audio_kinds import begins_file
from mt3_runtime.audio.containers.audio_tags import skip_tags
from mt3_runtime.audio.containers.byte_source import SCAN_BYTES, Bytes, ByteView, Part
from mt3_runtime.audio.containers.mpeg_headers import (
    COUNTS,
    LOOK_AHEAD,
    Header,
    begins_stream,
    corrected_count,
    count_mark,
    find_frames,
    free_length,
    most_reservoir,
    parse_header,
    read_count,
    silent_frame,
)

MPEG = "MPEG audio"
LONGEST = 1152
"""Most samples of a frame."""

_SLOPPY_SECONDS = 0.1
"""A count that is so much too small is an encoder's way of counting."""


def mpeg_part(source: Bytes, start: int, end: int) -> Part:
    """Walk from the frame at ``start`` to the end of its stream.

    Args:
        source: The file.
        start: Where a frame begins.
        end: Where the file, or its audio, ends.
    """
    walk = _Walk(source, end, start)
    while walk.take_frames() and walk.resume():
        pass
    return walk.part()


@dataclass
class _Walk:
    """One stream on the way."""

    source: Bytes
    end: int
    start: int
    first: Header = field(init=False)
    free: int = field(init=False, default=0)  # bytes of a frame of free bit rate
    at: int = field(init=False)
    pieces: list[bytes | range] = field(init=False, default_factory=list)
    frames: int = field(init=False, default=0)
    lost: int = field(init=False, default=0)
    counted: int | None = field(init=False, default=None)  # frames by the count, None without one
    reservoir: int = field(init=False, default=0)  # bytes that frames behind may take bits from
    last: int = field(init=False, default=0)  # where the last frame taken begins

    def __post_init__(self) -> None:
        first = self.header(self.start)
        if first is None:
            raise ValueError(self.start)
        self.first, self.at = first, self.start
        head = self.source.at(self.start, first.length)
        kind = count_mark(head, first, 0)
        if kind:
            self.at += first.length
            if kind in COUNTS:
                self.pieces.append(head)
                self.counted = read_count(head)

    def header(self, at: int, word: bytes = b"") -> Header | None:
        """The header at a position, its length known; None if there is none."""
        word = word or self.source.at(at, 4)
        header = parse_header(word, self.free)
        if header is not None and header.length == 0:
            self.free = free_length(self.source, at)
            header = parse_header(word, self.free)
        return header if header and header.length else None

    def take_frames(self) -> bool:
        """Take frames as long as each begins where the one before ends; False at a stream's end."""
        stream, end, at = self.first.stream, self.end, self.at
        base, block, run = at, b"", at
        while True:
            offset = at - base
            if offset + LOOK_AHEAD > len(block):
                base, block, offset = at, self.source.at(at, SCAN_BYTES), 0
            header = self.header(at, block[offset : offset + 4])
            if header is None or header.stream != stream or at + header.length > end:
                self._take_run(run, at)
                return True
            if header.side:
                if self.frames and count_mark(block, header, offset):
                    self._take_run(run, at)
                    return False
                if self.reservoir < most_reservoir(header):
                    self._take_run(run, at)
                    self._take_dependent(at, header)
                    run = at + header.length
            self.last = at
            at += header.length
            self.frames += 1

    def _take_run(self, start: int, stop: int) -> None:
        self.at = stop
        if start == stop:
            return
        before = self.pieces[-1] if self.pieces else None
        if isinstance(before, range) and before.stop == start:
            self.pieces[-1] = range(before.start, stop)
        else:
            self.pieces.append(range(start, stop))

    def _take_dependent(self, at: int, header: Header) -> None:
        """Take a frame of layer III behind a gap: silent, if bits are missing that it needs."""
        head = self.source.at(at, header.body + header.side)
        needed = int.from_bytes(head[header.body : header.body + 2])
        needed >>= 7 if header.mpeg1 else 8
        if needed > self.reservoir:
            self.pieces.append(silent_frame(head, header, self.reservoir))
            self.pieces.append(range(at + len(head), at + header.length))
        else:
            self._take_run(at, at + header.length)
        self.reservoir += header.length - header.body - header.side

    def resume(self) -> bool:
        """Go on behind what is no frame of this stream; False if the stream has ended."""
        if self.frames:  # the last frame may have been cut, and another begin within its length
            within = self.at - self.last - 1
            found = find_frames(self.source, self.last + 1, self.end, within=within)
            if found is not None:
                self._drop_last()
                return self._resume_at(found)
        found = skip_tags(self.source, self.at)
        if found >= self.end:
            self.at = self.end
            return False
        if begins_file(self.source, found):
            return False
        if not begins_stream(self.source, found, self.end):
            found = find_frames(self.source, self.at, self.end, within=self.end - self.at)
            if found is None:
                return False
            self.lost += found - self.at
        return self._resume_at(found)

    def _resume_at(self, at: int) -> bool:
        at = skip_tags(self.source, at)
        header = self.header(at)
        self.at, self.reservoir = at, 0
        return header is not None and header.stream == self.first.stream

    def _drop_last(self) -> None:
        """Give back the last frame."""
        self.frames -= 1
        self.at = self.last
        while self.pieces:
            piece = self.pieces.pop()
            if isinstance(piece, bytes):  # it was silenced
                break
            if piece.start <= self.last:
                self.pieces.append(range(piece.start, self.last))
                break

    def part(self) -> Part:
        """The frames that were taken."""
        counted, first = self.counted, self.first
        if counted is not None:
            excess = (self.frames - counted) * first.samples / first.rate
            size = sum(map(len, self.pieces))
            head = self.pieces[0]
            if isinstance(head, bytes):
                more = self.frames if excess > _SLOPPY_SECONDS else None
                self.pieces[0] = corrected_count(head, size, more)
        return Part(
            start=self.start,
            end=self.at,
            view=ByteView(self.source, self.pieces),
            kind=MPEG,
            frames=None if counted is not None else self.frames * first.samples,
            claim=1 if counted is not None else 64,
            forward=not first.mpeg1 or first.body > 4,
            lost=self.lost,
        )
