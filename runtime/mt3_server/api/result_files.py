"""Results as files: their content, media type and suffix, by format."""

from __future__ import annotations

import io
import warnings
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING

from mt3_runtime.errors import MidiWarning
from mt3_runtime.files.formats import render
from mt3_server.protection.refusals import without_path

if TYPE_CHECKING:
    from mt3_runtime.transcription import Transcription

MEDIA_TYPES = {
    "midi": "audio/midi",
    "json": "application/json",
    "jsonl": "application/jsonl",
    "csv": "text/csv; charset=utf-8",
    "zip": "application/zip",
}
"""By format."""

SUFFIXES = {"midi": "mid", "json": "json", "jsonl": "jsonl", "csv": "csv", "zip": "zip"}
"""By format."""

ACCEPTED = {
    "audio/midi": "midi",
    "application/json": "json",
    "application/jsonl": "jsonl",
    "text/csv": "csv",
}
"""Format by what a client accepts, where it does not name one."""

_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # equal results give equal archives


def contents(
    result: Transcription,
    format: str,  # noqa: A002  the word that users type
    *,
    tempo: float = 120.0,
    split: bool = False,
) -> tuple[bytes, str]:
    """The bytes of a result and the format they are in, ``zip`` for stems.

    Args:
        result: What was transcribed.
        format: One of `mt3_runtime.files.formats.FORMATS`.
        tempo: Of MIDI files.
        split: Whether every stem gets a file of that format in an archive.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MidiWarning)  # the result has it as well
        if not split:
            return render(result, format, tempo=tempo), format
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as files:
            for name, notes in result.stems().items():
                data = render(replace(result, notes=notes), format, tempo=tempo)
                files.writestr(zipfile.ZipInfo(f"{name}.{SUFFIXES[format]}", _LONG_AGO), data)
        return archive.getvalue(), "zip"


def without_paths(result: Transcription) -> Transcription:
    """A result that calls the upload so, and not by its path in the spool."""
    if result.audio_warning is None:
        return result
    return replace(result, audio_warning=without_path(result.audio_warning))


def headers(result: Transcription) -> dict[str, str]:
    """What is said of a result beside its file."""
    return {
        "x-mt3-model": result.model.encode("ascii", "replace").decode(),
        "x-mt3-duration": f"{result.duration:.6f}",
        "x-mt3-notes": str(len(result.notes)),
        "x-mt3-token-digest": result.token_digest,
        "x-mt3-warnings": str(len(result.warnings)),
    }


def attachment(format: str) -> dict[str, str]:  # noqa: A002
    """Headers of a file; its name is ours, never a client's."""
    return {
        "content-type": MEDIA_TYPES[format],
        "content-disposition": f'attachment; filename="result.{SUFFIXES[format]}"',
        "cache-control": "no-store",
    }
