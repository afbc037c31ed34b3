"""Formats that may be decoded where files come from strangers.

Contract: `check_format` refuses a sound before any decoder sees it, unless its format is accepted.
The format is told by the bytes, whatever a file is called.  libsndfile reads 26 formats, most of
them of the last century and hardly ever used; a file of strangers in one of these is more likely
made for a hole in its decoder than for music.
"""

from __future__ import annotations

from collections.abc import Collection

from mt3_runtime.audio.containers.audio_kinds import describe
from mt3_runtime.audio.containers.byte_source import Part
from mt3_runtime.audio.containers.chunk_lengths import chunk_codec, chunk_layout
from mt3_runtime.errors import AudioFormatError

SAFE_FORMATS = frozenset(
    {"WAV", "RF64", "W64", "AIFF", "CAF", "FLAC", "MPEG audio"}
    | {f"Ogg {codec}" for codec in ("Vorbis", "Opus", "FLAC")}
)
"""Formats of today's music files; of WAV, AIFF and CAF those of plain samples (PCM, floats, A-law,
mu-law)."""


def format_of(part: Part) -> str:
    """Name of a sound's format, with the codec where it is not plain samples; empty if unknown."""
    layout = chunk_layout(part.view, 0) if part.kind else None
    codec = chunk_codec(part.view, 0, layout) if layout and layout.kind == part.kind else ""
    return f"{part.kind} with {codec}" if codec else part.kind


def check_format(part: Part, name: str, accepted: Collection[str]) -> None:
    """Raises `AudioFormatError` unless the format of a sound in file ``name`` is accepted."""
    found = format_of(part)
    if found not in accepted:
        what = found or describe(part.view) or "a file of unknown format"
        raise AudioFormatError(
            f"{name} is {what}; only {', '.join(sorted(accepted))} are accepted here. "
            "Convert it, for example with ffmpeg -i INPUT OUTPUT.flac"
        )
