"""Transcription with a line-up chosen by evidence: ``instruments="auto"``.

A recording is transcribed freely; packages say who plays (`mt3_runtime.extensions.evidence`); if
the free transcription has notes of anybody else, the recording is transcribed again with that
line-up.  What is left out by evidence is then heard as somebody who plays, or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mt3_runtime.audio.sources import load_audio
from mt3_runtime.errors import OptionError
from mt3_runtime.extensions.evidence import EvidenceSource, HeardRecording, evidence_source
from mt3_runtime.notes.instruments import AUTO, Lineup, choose
from mt3_runtime.transcription import Progress, Transcription

if TYPE_CHECKING:
    from mt3_runtime.audio.sources import AudioSource
    from mt3_runtime.notes.instruments import Instruments
    from mt3_runtime.notes.note import Note


def is_auto(instruments: object) -> bool:
    """Whether a line-up is to be chosen by evidence."""
    return isinstance(instruments, str) and instruments.strip().lower() == AUTO


def transcribe_auto(
    once: Callable[..., Transcription],
    audio: AudioSource,
    sr: float | None,
    *,
    rate: int,
    exclude: Instruments | None = None,
    progress: Callable[[Progress], None] | None = None,
    source: EvidenceSource | None = None,
    **options: Any,
) -> Transcription:
    """Transcribes a recording with the line-up that evidence speaks for.

    Args:
        once: `mt3_runtime.model.Model.transcribe_notes`.
        audio: As there.
        sr: As there.
        rate: The model's sample rate in Hz.
        exclude: What may not occur, whatever the evidence says.
        progress: Is told of both passes as of one.
        source: Who judges; what is installed if None.
        options: Others of `mt3_runtime.request.Options`; ``instruments`` is passed over.

    Raises:
        MissingDependencyError: No package hears instruments.
        OptionError: As in ``once``, or nothing is left.
    """
    options.pop("instruments", None)
    judge = evidence_source() if source is None else source
    if not isinstance(audio, str | os.PathLike):
        audio, sr = load_audio(audio, sr=sr, target_rate=rate), None
    free = once(audio, sr, exclude=exclude, progress=_part(progress, 0.0), **options)
    report = judge.lineup(HeardRecording(audio, sr, free.notes, free.duration))
    lineup = report.lineup
    if exclude is not None:
        lineup -= choose(exclude) or Lineup()
        if not lineup:
            raise OptionError("No instrument is left: all that evidence speaks for are excluded.")
    applied = not _within(free.notes, lineup)
    report = replace(report, lineup=lineup, applied=applied)
    result = free
    if applied:
        result = once(audio, sr, instruments=lineup, progress=_part(progress, 0.5), **options)
    return replace(result, lineup=report, remarks=(*result.remarks, *report.remarks))


def _within(notes: Iterable[Note], lineup: Lineup) -> bool:
    """Whether all notes are of a line-up."""
    return all(
        note.pitch in lineup.drum_keys if note.is_drum else note.program in lineup.programs
        for note in notes
    )


def _part(
    progress: Callable[[Progress], None] | None, done: float
) -> Callable[[Progress], None] | None:
    """Tells of one of two passes as of a half of the work."""
    if progress is None:
        return None

    def tell(now: Progress) -> None:
        whole = now.seconds_total or now.seconds_done
        progress(replace(now, seconds_done=done * whole + now.seconds_done / 2))

    return tell
