"""Assesses a performance, of any origin, against a score if there is one, and compares takes.

Contract: see `assess`.  Of audio, what the transcription says is judged, and what it does not say
(velocities, pedals, with the default model exact onsets) is not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mt3_analysis.assessment.alignment import Alignment, align_best
from mt3_analysis.assessment.assessment_results import AlignmentCounts, Assessment, Comparison
from mt3_analysis.assessment.judging.execution import judge_execution
from mt3_analysis.assessment.judging.take_comparison import check_same_piece, compare_assessments
from mt3_analysis.assessment.measures.all_measures import measure_take
from mt3_analysis.assessment.measures.measured_take import Take
from mt3_analysis.assessment.performance import Performance
from mt3_analysis.assessment.score import MIDI_SUFFIXES, Score, read_scores
from mt3_runtime.arguments.argument_checks import as_items, refused
from mt3_runtime.errors import OptionError
from mt3_runtime.transcription import Transcription

if TYPE_CHECKING:
    from mt3_analysis.assessment.judging.reference_knots import Reference
    from mt3_analysis.assessment.judging.style_bundle import StyleHead
    from mt3_runtime.model import Model

Source = str | os.PathLike[str] | Performance | Transcription

COARSE_MODEL = "default"
"""The model whose onsets are too coarse for `mt3_analysis.assessment.judging.execution.FINE`."""

_COARSE = "needs more exact onsets than the default model's: give MIDI, or another --model"
_NARROW_HZ = 4200.0
_NARROW_SHARE = 1e-6  # of the power above: -60 dB


@dataclass(frozen=True, eq=False)
class Assessed:
    """A take with what was said of it, for pictures.

    Attributes:
        take: Performance and alignment.
        assessment: What was said.
    """

    take: Take
    assessment: Assessment


def assess(
    source: Source,
    *,
    score: str | os.PathLike[str] | None = None,
    style: str | os.PathLike[str] | None = None,
    reference: str | os.PathLike[str] | None = None,
    model: Model | None = None,
) -> Assessment:
    """Assesses one performance on the piano.

    Args:
        source: MIDI file, audio file (transcribed first), `Performance` or `Transcription`.
        score: MIDI or MusicXML file of what was to be played.
        style: Bundle of kind ``assessor`` that `mt3 calibrate assess style` made; None: style is
            not judged.
        reference: File of `mt3 calibrate assess reference`; percentiles are in it.
        model: What transcribes audio; the default model if None.

    Raises:
        AudioError: Audio cannot be read.
        BundleError: ``style`` is no such bundle.
        OptionError: There are no notes, the score is of another piece, or an argument is wrong.
    """
    return (
        Assessor(score=score, style=style, reference=reference, model=model).take(source).assessment
    )


def compare(
    sources: Sequence[Source],
    *,
    score: str | os.PathLike[str] | None = None,
    style: str | os.PathLike[str] | None = None,
    model: Model | None = None,
) -> tuple[Comparison, ...]:
    """Puts takes of one piece in order, each with the probability that it is better than another.

    Args:
        sources: Two or more, as of `assess`.
        score: As of `assess`.
        style: As of `assess`.
        model: As of `assess`.

    Raises:
        AudioError, BundleError, OptionError: As of `assess`; or the takes are of different pieces.
    """
    assessor = Assessor(score=score, style=style, model=model)
    given = as_items("sources", sources, "takes of one piece")
    return assessor.compare([assessor.take(source) for source in given])


class Assessor:
    """Assesses several takes with one score, one style head and one model."""

    def __init__(
        self,
        *,
        score: str | os.PathLike[str] | None = None,
        style: str | os.PathLike[str] | None = None,
        reference: str | os.PathLike[str] | None = None,
        model: Model | None = None,
    ) -> None:
        """Reads what all takes share; see `assess`."""
        self._scores: tuple[Score, ...] = () if score is None else read_scores(score)
        self._style: StyleHead | None = None
        self._reference: Reference | None = None
        self._model = model
        if style is not None:
            from mt3_analysis.assessment.judging.style_bundle import open_style  # noqa: PLC0415  seldom used

            self._style = open_style(style)
        if reference is not None:
            from mt3_analysis.assessment.judging.reference_knots import read_reference  # noqa: PLC0415

            self._reference = read_reference(reference)

    def take(self, source: Source) -> Assessed:
        """Assesses one take; raises as `assess`."""
        performance, kind, coarse = self._performance(source)
        if not len(performance):
            left = " ".join(performance.remarks)
            raise OptionError(
                f"{performance.name} holds no notes to assess. {left or 'Is it silent?'}"
            )
        alignment = align_best(performance, self._scores) if self._scores else None
        return self._assessed(Take(performance, alignment), kind, coarse)

    def compare(self, takes: Sequence[Assessed]) -> tuple[Comparison, ...]:
        """Puts takes in order; raises `OptionError` if they are of different pieces."""
        if not self._scores and len(takes) > 1:
            check_same_piece([each.take.performance for each in takes])
        return compare_assessments([each.assessment for each in takes])

    def _performance(self, source: Any) -> tuple[Performance, str, tuple[str, ...]]:
        """The notes, where they are from, and why their onsets are not exact, if so."""
        if isinstance(source, Performance):
            return source, "notes", ()
        if isinstance(source, Transcription):
            return Performance.from_transcription(source), "audio", _coarse(source.model)
        if not isinstance(source, str | os.PathLike):
            raise refused("source", source, "a path, a Performance or a Transcription")
        path = Path(source)
        if path.suffix.lower() in MIDI_SUFFIXES:
            return Performance.from_midi(path), "midi", ()
        return self._transcribed(path)

    def _transcribed(self, path: Path) -> tuple[Performance, str, tuple[str, ...]]:
        from dataclasses import replace  # noqa: PLC0415

        if self._model is None:
            from mt3_runtime.loading import load_model  # noqa: PLC0415  loads a session

            self._model = load_model()
        result = self._model.transcribe_notes(path)
        performance = Performance.from_transcription(result, name=path.name)
        remarks = [f"Transcribed with the model {result.model}.", *result.warnings]
        if _is_narrow(path):
            remarks.append("There is no sound above 4.2 kHz: high notes may be missing.")
        performance = replace(performance, remarks=(*performance.remarks, *remarks))
        return performance, "audio", _coarse(result.model)

    def _assessed(self, take: Take, kind: Any, coarse: tuple[str, ...]) -> Assessed:
        performance, alignment = take.performance, take.alignment
        measures = measure_take(take)
        has_score = alignment is not None
        notes = len(performance)
        dimensions = judge_execution(measures, notes=notes, has_score=has_score, coarse=coarse)
        if self._style is not None:
            dimensions += self._style.judge(measures, notes=notes)
        if self._reference is not None:
            dimensions = self._reference.placed(dimensions)
        remarks = list(performance.remarks)
        if performance.on_grid:
            remarks.append("All onsets lie on a grid: this is written, not a performance.")
        if alignment is not None:
            remarks += alignment.remarks
        assessment = Assessment(
            name=performance.name,
            source=kind,
            duration_s=performance.duration_s,
            notes=notes,
            known=tuple(sorted(take.known)),
            dimensions=dimensions,
            measures=tuple(measures.values()),
            alignment=None if alignment is None else _counts(alignment),
            remarks=tuple(remarks),
        )
        return Assessed(take, assessment)


def _counts(alignment: Alignment) -> AlignmentCounts:
    return AlignmentCounts(
        score=alignment.score.name,
        written=alignment.written,
        matched=len(alignment.matched),
        wrong=len(alignment.wrong),
        missing=len(alignment.missing),
        extra=len(alignment.extra),
        unplayed=alignment.unplayed,
    )


def _coarse(model: str) -> tuple[str, ...]:
    return (_COARSE,) if model == COARSE_MODEL else ()


def _is_narrow(path: Path) -> bool:
    """Whether a recording has no sound above 4.2 kHz, as of a telephone or a file of 8 kHz."""
    import numpy as np  # noqa: PLC0415

    from mt3_runtime.audio.sources import load_audio  # noqa: PLC0415

    rate = 16_000
    samples = load_audio(path, target_rate=rate)
    blocks = samples[: len(samples) // 2048 * 2048].reshape(-1, 2048)
    if not len(blocks):
        return False
    power = (np.abs(np.fft.rfft(blocks * np.hanning(2048))) ** 2).mean(0)
    above = np.fft.rfftfreq(2048, 1 / rate) > _NARROW_HZ
    return bool(power[above].sum() < _NARROW_SHARE * power.sum())
