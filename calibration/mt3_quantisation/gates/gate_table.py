"""Writes the verdict of a precision gate as a table."""

from __future__ import annotations

from mt3_evaluation.score_report import aligned
from mt3_quantisation.gates.gate import Change
from mt3_quantisation.gates.judge import Judgement
from mt3_quantisation.gates.measure import Comparison

_MIB = 2**20


def table(judgement: Judgement) -> str:
    """The table, without a line end behind it."""
    parts = [_files(name, each) for name, each in judgement.sets.items()]
    return "\n\n".join([*parts, _figures(judgement), _verdict(judgement)])


def _files(name: str, comparison: Comparison) -> str:
    head = (name, "labels", "exact F1", "F1", "change")
    return aligned([head, *map(_row, comparison.changes)])


def _row(change: Change) -> tuple[str, ...]:
    exact, other = change.exact.whole, change.other.whole
    figures = ("-" if score.f1 is None else f"{score.f1:.4f}" for score in (exact, other))
    return (change.name, str(exact.labels), *figures, f"{change.f1:+.4f}")


def _figures(judgement: Judgement) -> str:
    rows = [("", *judgement.sets)]
    names = dict.fromkeys(key for each in judgement.sets.values() for key in each.figures)
    for key in names:
        sign = "" if key in ("identical_segments", "notes_f1") else "+"
        cells = [each.figures.get(key) for each in judgement.sets.values()]
        shown = ("-" if value is None else format(value, f"{sign}.4f") for value in cells)
        rows.append((key.replace("_", " "), *shown))
    drift, (old, new), loads = judgement.drift, judgement.sizes, judgement.loads
    lines = [
        f"logit KL {drift.kl:.2e}, top-1 flips {100 * drift.flips:.2f} % of {drift.steps} steps",
        f"tokens independent of batch and slots: {'yes' if judgement.independent else 'NO'}",
        f"graphs {new / _MIB:.1f} MiB (exact {old / _MIB:.1f})",
        *([f"loaded in {loads[1]:.2f} s (exact {loads[0]:.2f})"] if loads else []),
    ]
    return "\n".join([aligned(rows), "", *lines])


def _verdict(judgement: Judgement) -> str:
    verdict = judgement.verdict
    head = f"gate {verdict.gate}: {'passed' if verdict.passed else 'FAILED'} ({verdict.judged})"
    return "\n".join([head, *(f"  {fault}" for fault in verdict.faults)])
