"""Route of the service: ``/v1/assess``.

Contract: see `mt3_runtime.extensions.service_routes`.  The upload is a performance, as MIDI or
audio; or a zip of two files: a performance ``take.mid`` and its ``score`` (.mid, .musicxml, .mxl).
The answer is what `mt3 assess --json` writes.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mt3_analysis.assessment.assessment_results import document
from mt3_analysis.assessment.performance import Performance
from mt3_analysis.assessment.performance_assessment import Assessor
from mt3_analysis.assessment.score import MIDI_SUFFIXES, XML_SUFFIXES
from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    from mt3_runtime.extensions.service_routes import RouteRequest

MAX_MEMBER = 16 << 20
"""Bytes of a file in the zip, unpacked."""

TAKE, SCORE = "take", "score"


def assess_upload(request: RouteRequest) -> Mapping[str, Any]:
    """Answers how a performance was played; it has no options.

    Raises:
        AudioError: The upload cannot be read.
        OptionError: An option is given, there are no notes, or the zip holds something else.
    """
    for name in request.options:
        raise OptionError(f"There is no option {name!r} here; a score goes into a zip beside it.")
    with request.upload.open("rb") as file:
        head = file.read(12)
    if head.startswith(b"PK"):
        return _with_score(request.upload)
    assessor = Assessor(model=request.model)
    if head.startswith(b"MThd") or (head.startswith(b"RIFF") and head[8:] == b"RMID"):
        with _without_paths(request.upload.parent):
            return document([assessor.take(Performance.from_midi(request.upload)).assessment])
    return document([assessor.take(request.transcribe()).assessment])


def _with_score(upload: Path) -> Mapping[str, Any]:
    """What is said of the performance in a zip, against the score beside it."""
    with TemporaryDirectory() as folder, _without_paths(Path(folder)):
        found: dict[str, Path] = {}
        try:
            with zipfile.ZipFile(upload) as archive:
                for name in archive.namelist()[:3]:
                    stem, suffix = Path(name.lower()).stem, Path(name.lower()).suffix
                    known = {TAKE: MIDI_SUFFIXES, SCORE: (*MIDI_SUFFIXES, *XML_SUFFIXES)}
                    if suffix in known.get(stem, ()):
                        found[stem] = Path(folder, stem + suffix)
                        found[stem].write_bytes(_member(archive, name))
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise OptionError("The upload is no readable zip.") from error
        if set(found) != {TAKE, SCORE}:
            raise OptionError("The zip holds no take.mid and score (.mid, .musicxml, .mxl) alone.")
        return document([Assessor(score=found[SCORE]).take(found[TAKE]).assessment])


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as member:
        data = member.read(MAX_MEMBER + 1)
    if len(data) > MAX_MEMBER:
        raise OptionError(f"{name!r:.60} unpacks to more than {MAX_MEMBER >> 20} MB.")
    return data


@contextmanager
def _without_paths(folder: Path) -> Iterator[None]:
    """Leaves a folder of the service out of what is said of files in it."""
    try:
        yield
    except OptionError as error:
        raise OptionError(str(error).replace(f"{folder}{os.sep}", "")) from error
