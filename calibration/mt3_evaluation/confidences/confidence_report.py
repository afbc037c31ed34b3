"""Confidence reports: a table, a JSON document and a reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mt3_evaluation.confidences.confidence_fit import BINS, Assessment, Judged, Trust
from mt3_evaluation.plots import FAINT, GRID, INK, PALETTE, look, new_figure
from mt3_evaluation.score_report import DECIMALS, aligned
from mt3_evaluation.scoring import TOLERANCE
from mt3_runtime.notes.confidence import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT = "mt3-runtime.confidence"
VERSION = 1

_HEAD = ("recording", "notes", "right", "AP", "gain", "error", "AP refit", "gain", "error")


def table(assessment: Assessment) -> str:
    """The table, and the numbers of the fit to everything."""
    rows: list[tuple[str, ...]] = [_HEAD]
    rows += [_row(judged) for judged in assessment.recordings]
    rows += [("",) * len(_HEAD), _row(assessment.pooled)]
    return f"{aligned(rows)}\n\nfit to all of them:\n{_numbers(assessment.fitted)}"


def document(
    assessment: Assessment,
    *,
    model: Mapping[str, Any] | None,
    versions: Mapping[str, str],
    seconds: float | None,
    skipped: Mapping[str, str],
) -> dict[str, Any]:
    """The assessment as plain JSON types; arguments as of `score_report.document`."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": None if model is None else dict(model),
        "versions": dict(versions),
        "settings": {"seconds": seconds, "tolerance": TOLERANCE, "bins": BINS},
        "recordings": [_judged(judged) for judged in assessment.recordings],
        "pooled": _judged(assessment.pooled),
        "fitted": assessment.fitted.to_dict(),
        "skipped": dict(skipped),
    }


def reliability_plot(assessment: Assessment, *, title: str) -> Figure:
    """Share of right notes over confidence: as given, and refitted without the recording."""
    pooled = assessment.pooled
    panels = [("as given", pooled.given, PALETTE[0])]
    if pooled.refitted:
        panels.append(("fitted to the other recordings", pooled.refitted, PALETTE[5]))
    with look():
        figure = new_figure(5.2)
        grid = figure.add_gridspec(
            2, 2, height_ratios=(3, 1), left=0.07, right=0.985, top=0.84, bottom=0.1, wspace=0.14
        )
        for column, (name, trust, colour) in enumerate(panels):
            upper = figure.add_subplot(grid[0, column])
            lower = figure.add_subplot(grid[1, column], sharex=upper)
            _curve(upper, trust, colour, f"{name}: {_summary(trust)}")
            _counts(lower, trust, colour)
        figure.text(0.015, 0.97, title, va="top", fontsize=12, fontweight="bold")
        about = f"{pooled.notes} notes, {pooled.given.base:.1%} of them right"
        figure.text(0.015, 0.915, about, va="top", color=FAINT)
    return figure


def _curve(axes: Axes, trust: Trust, colour: str, title: str) -> None:
    axes.plot((0, 1), (0, 1), color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
    axes.axhline(trust.base, color=FAINT, linewidth=0.7, linestyle=(0, (1, 2)))
    points = [found for found in trust.bins if found]
    places = [found.confidence for found in points], [found.right for found in points]
    most = max(found.notes for found in points)
    axes.plot(*places, color=colour, linewidth=1.2, alpha=0.5)
    sizes = [6 + 90 * found.notes / most for found in points]  # few notes say little
    axes.scatter(*places, s=sizes, color=colour, zorder=3, clip_on=False)
    axes.set_title(title, loc="left", fontsize=9, color=INK, pad=5)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of right notes")
    axes.grid(color=GRID, linewidth=0.6)
    axes.tick_params(length=0, labelbottom=False)


def _counts(axes: Axes, trust: Trust, colour: str) -> None:
    heights = [found.notes if found else 0 for found in trust.bins]
    edges = [(index + 0.5) / BINS for index in range(BINS)]
    axes.bar(edges, heights, width=0.9 / BINS, color=colour, alpha=0.6)
    axes.set(xlim=(0, 1), xlabel="confidence", ylabel="notes")
    axes.tick_params(length=0)


def _summary(trust: Trust) -> str:
    return f"AP {_figure(trust.average_precision)}, calibration error {trust.error:.3f}"


def _numbers(fitted: Calibration) -> str:
    rows: list[tuple[str, ...]] = []
    for kind, weights in asdict(fitted).items():
        rows = rows or [("", *weights)]
        rows.append((kind, *(f"{weight:.4f}" for weight in weights.values())))
    return aligned(rows)


def _row(judged: Judged) -> tuple[str, ...]:
    found = [
        judged.name,
        str(judged.notes),
        f"{judged.given.base:.3f}",
        *_cells(judged.given),
        *(("-",) * 3 if judged.refitted is None else _cells(judged.refitted)),
    ]
    return tuple(found)


def _cells(trust: Trust) -> tuple[str, str, str]:
    precision = trust.average_precision
    gain = "-" if precision is None else f"{precision - trust.base:+.3f}"
    return _figure(precision), gain, f"{trust.error:.3f}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _judged(judged: Judged) -> dict[str, Any]:
    return {
        "name": judged.name,
        "notes": judged.notes,
        "right": round(judged.given.base, DECIMALS),
        "given": _trust(judged.given),
        "refitted": None if judged.refitted is None else _trust(judged.refitted),
    }


def _trust(trust: Trust) -> dict[str, Any]:
    precision = trust.average_precision
    return {
        "average_precision": None if precision is None else round(precision, DECIMALS),
        "error": round(trust.error, DECIMALS),
        "bins": [
            None
            if found is None
            else {
                "notes": found.notes,
                "confidence": round(found.confidence, DECIMALS),
                "right": round(found.right, DECIMALS),
            }
            for found in trust.bins
        ],
    }
