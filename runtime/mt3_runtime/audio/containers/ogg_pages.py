"""Pages of Ogg files: the links of a chain, and FLAC unpacked from its pages.

Contract: :func:`ogg_part` takes one link, from the pages that begin its streams to those that begin
the next one's.  Of several streams only the first with audio is kept, so pictures and subtitles do
not disturb libsndfile, which reads the first link of a chain and no further.

Ogg FLAC, which libsndfile cannot read, is unpacked: its packets in a row, behind the header in the
first one, are a FLAC file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mt3_runtime.audio.containers.audio_kinds import begins_file
from mt3_runtime.audio.containers.audio_tags import skip_tags
from mt3_runtime.audio.containers.byte_source import SCAN_BYTES, Bytes, ByteView, Part
from mt3_runtime.audio.containers.flac_stream import flac_part
from mt3_runtime.audio.containers.mpeg_headers import begins_stream

CAPTURE = b"OggS\0"
_HEADER = 27
_BEGINS = 2
_ENDS = 4

_CODECS = {
    b"\x01vorbis": "Vorbis",
    b"OpusHead": "Opus",
    b"\x7fFLAC": "FLAC",
    b"fLaC": "FLAC",  # before version 1.1.1 of FLAC
    b"Speex   ": "Speex",
}
_FLAC_HEADER = 9  # of the first packet: 0x7F, "FLAC", version, number of header packets


class Page(NamedTuple):
    """One page: where it lies, and the parts of its header that matter here."""

    start: int
    body: int
    end: int
    flags: int
    serial: bytes
    packets_end: bool

    @property
    def begins(self) -> bool:
        """Whether a stream begins with it."""
        return bool(self.flags & _BEGINS)

    @property
    def ends(self) -> bool:
        """Whether it is the last page of its stream."""
        return bool(self.flags & _ENDS)


def read_page(source: Bytes, at: int) -> Page | None:
    """Read the header of the page at ``at``; None if there is no whole page."""
    head = source.at(at, _HEADER + 255)
    if not head.startswith(CAPTURE) or len(head) < _HEADER or len(head) < _HEADER + head[26]:
        return None
    body = _HEADER + head[26]
    lengths = head[_HEADER:body]
    end = at + body + sum(lengths)
    if end > source.size:
        return None
    return Page(at, at + body, end, head[5], head[14:18], not lengths or lengths[-1] < 255)


def ogg_part(source: Bytes, start: int, end: int) -> Part:
    """Take the link that begins with the page at ``start``.

    Args:
        source: The file.
        start: Where a page begins.
        end: Where the file ends.
    """
    link = _Link(source, end)
    serial, codec = b"", ""
    kept: list[Page] = []
    started = False
    for page in link.pages(start):
        if page.begins and started:
            link.at = page.start
            break
        started = started or not page.begins
        if page.begins and not serial and (codec := _codec(source, page)):
            serial = page.serial
        if page.serial == serial:
            kept.append(page)
    view: Bytes = ByteView(source, [range(page.start, page.end) for page in kept])
    stop = link.at
    if source.at(stop, len(CAPTURE)) == CAPTURE and not read_page(source, stop):
        stop = end  # a page that was cut, or none at all
    cut = not kept or not kept[-1].ends
    kind = f"Ogg {codec}".rstrip()
    if codec == "FLAC":
        native = _unpacked(source, kept)
        inner = flac_part(native, 0, native.size)
        return Part(start, stop, inner.view, kind, lost=link.lost, cut=cut)
    foreign = codec in ("", "Speex")
    if foreign:
        view = ByteView(source, [range(start, stop)])
    return Part(start, stop, view, kind, lost=link.lost, cut=cut, foreign=foreign)


class _Link:
    """Pages one behind the other, and what was passed over between them."""

    def __init__(self, source: Bytes, end: int) -> None:
        self._source = source
        self._end = end
        self.at = 0
        self.lost = 0

    def pages(self, at: int) -> Iterator[Page]:
        """Pages from ``at`` on; afterwards ``at`` is where they end."""
        self.at = at
        while True:
            page = read_page(self._source, self.at)
            if page is not None and self._is_whole(page):
                self.at = page.end
                yield page
                continue
            behind = skip_tags(self._source, self.at)
            if self._is_other(behind):
                return
            if behind == self.at or not read_page(self._source, behind):
                # Junk, or a page that was cut: the next one may lie within its length.
                found = self._search(self.at)
                if found is None:
                    return
                self.lost += found - self.at
                behind = found
            self.at = behind

    def _is_whole(self, page: Page) -> bool:
        """Whether a page was not cut short by another one."""
        if page.end >= self._end or self._source.at(page.end, len(CAPTURE)) == CAPTURE:
            return True
        return CAPTURE not in self._source.at(page.start + 1, page.end - page.start - 1)

    def _is_other(self, at: int) -> bool:
        """Whether a file of another format begins at ``at``."""
        if self._source.at(at, len(CAPTURE)) == CAPTURE:
            return False
        return begins_file(self._source, at) or begins_stream(self._source, at, self._end)

    def _search(self, at: int) -> int | None:
        """Position of the next whole page behind ``at``."""
        at += 1
        while block := self._source.at(at, SCAN_BYTES + 4):
            found = block.find(CAPTURE)
            while found >= 0:
                if read_page(self._source, at + found):
                    return at + found
                found = block.find(CAPTURE, found + 1)
            if len(block) <= 4:
                return None
            at += len(block) - 4
        return None


def _codec(source: Bytes, page: Page) -> str:
    first = source.at(page.body, 16)
    return next((name for mark, name in _CODECS.items() if first.startswith(mark)), "")


def _unpacked(source: Bytes, pages: list[Page]) -> Bytes:
    """The FLAC file that the pages of one stream hold, without its metadata but the first block."""
    first = pages[0]
    if source.at(first.body, 4) == b"fLaC":
        return ByteView(source, [range(page.body, page.end) for page in pages])
    native = source.at(first.body + _FLAC_HEADER, first.end - first.body - _FLAC_HEADER)
    head = native[:4] + b"\x80" + native[5:]  # no other metadata follows
    behind = pages[1:]
    # The other header packets end with a page; a frame's first byte is 0xFF, no header's is.
    while behind and not _begins_frame(source, behind[0]):
        while behind and not behind[0].packets_end:
            behind = behind[1:]
        behind = behind[1:]
    return ByteView(source, [head, *(range(page.body, page.end) for page in behind)])


def _begins_frame(source: Bytes, page: Page) -> bool:
    return source.at(page.body, 1) == b"\xff"
