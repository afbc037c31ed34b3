"""The sounds that a file holds, one behind the other.

Contract: :func:`sound_parts` walks through a file and yields a
:class:`~mt3_runtime.audio.containers.byte_source.Part` for each sound: one for most files, several
for joined ones (MP3 behind MP3, chained Ogg, FLAC behind FLAC, ...).  Tags and zeros between them
are passed over; bytes that are neither come out as a :class:`Gap`.  Every byte of the file is in a
part, a gap, a tag, or a run of zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mt3_runtime.audio.containers.audio_kinds import container_kind, container_part
from mt3_runtime.audio.containers.audio_tags import skip_tags, skip_zeros, tail_start
from mt3_runtime.audio.containers.byte_source import Bytes, ByteView, Part
from mt3_runtime.audio.containers.chunk_lengths import chunk_layout, chunk_part
from mt3_runtime.audio.containers.flac_stream import flac_part
from mt3_runtime.audio.containers.mpeg_frames import LONGEST, MPEG, mpeg_part
from mt3_runtime.audio.containers.mpeg_headers import SYNC_BYTES, begins_stream, find_frames
from mt3_runtime.audio.containers.ogg_pages import CAPTURE, ogg_part

_MOST_PARTS = 4096
"""Sounds, gaps and tags that are taken apart; what has more is made to take time."""


class Gap(NamedTuple):
    """Bytes of a file that are neither audio nor a tag."""

    start: int
    end: int


def sound_parts(source: Bytes) -> Iterator[Part | Gap]:
    """Yield the sounds of a file in their order, and the gaps between and behind them.

    A file whose format is not known here comes out as one part of kind "".
    """
    end = tail_start(source)
    at, found_any, count = 0, False, 0
    while at < end:
        if (count := count + 1) > _MOST_PARTS:
            yield Gap(at, end)
            return
        part = _known(source, at, end)
        if part is None and (behind := skip_tags(source, at)) > at:
            at = behind
            continue
        if part is None:
            first = find_frames(source, at, end, within=SYNC_BYTES)
            if first is None:
                yield Gap(at, end) if found_any else _unknown(source, at)
                return
            if first > at:
                yield Gap(at, first)
            at = skip_tags(source, first)
            part = mpeg_part(source, at, end)
        if part.kind == MPEG and found_any and part.frames is not None and part.frames <= LONGEST:
            yield Gap(part.start, part.end)  # a frame alone: libmpg123 wants another behind it
        else:
            yield part
            found_any = True
        at = max(part.end, at + 1)


def _known(source: Bytes, at: int, end: int) -> Part | None:
    """The sound whose first byte is at ``at``; None if none begins there."""
    head = source.at(at, 8)
    if head.startswith(b"fLaC"):
        return flac_part(source, at, end)
    if head.startswith(CAPTURE):
        return ogg_part(source, at, end)
    if layout := chunk_layout(source, at):
        return chunk_part(source, at, layout)
    if kind := container_kind(source, at):
        return container_part(source, at, kind)
    if head[:1] == b"\xff" and begins_stream(source, at, end):
        return mpeg_part(source, at, end)
    return None


def _unknown(source: Bytes, at: int) -> Part:
    """A file of another format, behind the tag in front of it."""
    start = at if skip_zeros(source, 0) == 0 else 0  # zeros may be its own
    return Part(start, source.size, ByteView(source, [range(start, source.size)]), "")
