"""Evaluation reports: a table to read and a JSON document to keep.

The table has a row per recording and two summaries, each above the ends of its 95 % intervals; a
metric that does not apply is ``-``.  The document (``docs/evaluation.md`` lists its keys) holds
everything that is needed to compare it with another one, and nothing that changes from run to run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mt3_evaluation.evaluation import Estimate, Evaluation, Result
from mt3_evaluation.metrics import METRICS, WINDOW, Measure
from mt3_evaluation.scoring import OFFSET_RATIO, TOLERANCE

FORMAT = "mt3-runtime.evaluation"
VERSION = 1

DECIMALS = 6
"""Digits behind the point in the document."""

_Row = tuple[str, ...]


def table(evaluation: Evaluation) -> str:
    """The table, without a line end behind it."""
    head = ("recording", "seconds", "labels", "notes", *METRICS)
    singles = [
        (*_facts(result), *_cells(evaluation.single(result, metric) for metric in METRICS))
        for result in evaluation.results
    ]
    rows: list[_Row] = [head, *singles, ("",) * len(head)]
    for name, summary in (("pooled", evaluation.pooled), ("mean", evaluation.mean)):
        estimates = [summary(metric) for metric in METRICS]
        rows.append((name, "", "", "", *_cells(estimates)))
        for end, word in enumerate(("from", "to")):
            limits = [item.interval if item else None for item in estimates]
            cells = ["" if limit is None else _figure(limit[end]) for limit in limits]
            rows.append((f"  {word}", "", "", "", *cells))
    return aligned(rows)


def document(
    evaluation: Evaluation,
    *,
    model: Mapping[str, Any] | None,
    versions: Mapping[str, str],
    seconds: float | None,
    skipped: Mapping[str, str],
) -> dict[str, Any]:
    """The evaluation as plain JSON types.

    Args:
        evaluation: The scores.
        model: What transcribed, or None where notes were read.
        versions: Of what took part, by distribution.
        seconds: Length of the excerpts, None for whole recordings.
        skipped: Recordings without scores, with the reason.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": None if model is None else dict(model),
        "versions": dict(versions),
        "settings": {
            "seconds": seconds,
            "tolerance": TOLERANCE,
            "offset_ratio": OFFSET_RATIO,
            "window": WINDOW,
            "resamples": evaluation.resamples,
            "seed": evaluation.seed,
        },
        "recordings": [_recording(evaluation, result) for result in evaluation.results],
        "pooled": {metric: _estimate(evaluation.pooled(metric)) for metric in METRICS},
        "mean": {metric: _estimate(evaluation.mean(metric)) for metric in METRICS},
        "skipped": dict(skipped),
    }


def _recording(evaluation: Evaluation, result: Result) -> dict[str, Any]:
    recording, findings = result.recording, result.findings
    labels = recording.labels
    return {
        "name": recording.name,
        "audio": None if recording.audio is None else str(recording.audio),
        "label_files": [str(path) for path in labels.files],
        "notes_file": None if findings.source is None else str(findings.source),
        "seconds": _rounded(findings.seconds),
        "token_digest": findings.token_digest,
        "labelled": {
            "pitched": labels.pitched,
            "drums": labels.drums,
            "programs": labels.programs,
            "drum_keys": labels.drum_keys,
        },
        "labels": len(labels.notes),
        "notes": result.note_count,
        "metrics": {
            metric: _detail(evaluation.single(result, metric), result.measures.get(metric))
            for metric in METRICS
        },
    }


def _detail(estimate: Estimate | None, measure: Measure | None) -> dict[str, Any] | None:
    """An estimate and what it was computed from."""
    found = _estimate(estimate)
    if found is None or measure is None:
        return None
    if measure.score is None:
        numerator, denominator = (int(count) for count in measure.total)
        return found | {"numerator": numerator, "denominator": denominator}
    counts = measure.score
    return found | {
        "precision": _rounded(counts.precision),
        "recall": _rounded(counts.recall),
        "matched": counts.matched,
        "labels": counts.labels,
        "notes": counts.notes,
    }


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    low, high = estimate.interval or (None, None)
    return {"value": _rounded(estimate.value), "low": _rounded(low), "high": _rounded(high)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)


def _facts(result: Result) -> _Row:
    seconds = result.findings.seconds
    return (
        result.recording.name,
        "-" if seconds is None else f"{seconds:.1f}",
        str(len(result.recording.labels.notes)),
        str(result.note_count),
    )


def _cells(estimates: Iterable[Estimate | None]) -> list[str]:
    return ["-" if item is None else _figure(item.value) for item in estimates]


def _figure(value: float) -> str:
    return f"{value:.3f}"


def aligned(rows: Sequence[_Row]) -> str:
    """Columns of text: the first one flush left, all others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
