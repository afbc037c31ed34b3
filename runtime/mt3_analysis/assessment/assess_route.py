"""Route of the service: ``/v1/assess``.

Contract: see `mt3_runtime.extensions.service_routes`.  The upload is a performance, as MIDI or
audio; the option ``score`` is a score, as text of MusicXML or MIDI in base64.  The answer is what
`mt3 assess --json` writes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mt3_analysis.assessment.assessment_results import document
from mt3_analysis.assessment.performance import Performance
from mt3_analysis.assessment.performance_assessment import Assessor, Source
from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    from mt3_runtime.extensions.service_routes import RouteRequest

MAX_SCORE = 8 << 20
"""Characters of the option ``score``."""


def assess_upload(request: RouteRequest) -> Mapping[str, Any]:
    """Answers how a performance was played; option ``score``: MusicXML, or MIDI in base64.

    Raises:
        AudioError: The upload cannot be read.
        OptionError: An option is not known, there are no notes, or the score is none of them.
    """
    for name in request.options:
        if name != "score":
            raise OptionError(f"There is no option {name!r} here; expected score.")
    with TemporaryDirectory() as folder:
        text = request.options.get("score")
        score = None if text is None else _score(text, Path(folder))
        assessor = Assessor(score=score, model=request.model)
        said = assessor.take(_performance(request)).assessment
    return document([said])


def _performance(request: RouteRequest) -> Source:
    """The upload: MIDI, by its first bytes, or what is heard in it."""
    with request.upload.open("rb") as file:
        head = file.read(12)
        if not (head.startswith(b"MThd") or (head.startswith(b"RIFF") and head[8:] == b"RMID")):
            return request.transcribe()
    return Performance.from_midi(request.upload)


def _score(text: str, folder: Path) -> Path:
    """A score as a file, for the readers of files."""
    if len(text) > MAX_SCORE:
        raise OptionError(f"score has {len(text):,} characters; expected at most {MAX_SCORE:,}.")
    if text.lstrip("\ufeff \r\n\t").startswith("<"):
        path, data = folder / "score.musicxml", text.encode()
    else:
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise OptionError("score is neither MusicXML nor base64.") from error
        path = folder / ("score.mxl" if data.startswith(b"PK") else "score.mid")
    path.write_bytes(data)
    return path
