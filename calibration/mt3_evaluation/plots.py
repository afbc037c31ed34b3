"""Draws charts with matplotlib: the common style, and the chart of an evaluation.

Nothing here opens a window or touches matplotlib's global state.  Equal input gives equal bytes in
one version of matplotlib: no dates, no random ids.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mt3_evaluation.evaluation import Estimate, Evaluation
from mt3_evaluation.metrics import METRICS
from mt3_runtime.errors import OptionError
from mt3_runtime.imports.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
"""What pictures can be written as."""

DPI = 160
"""Of PNG files: 11 inches make 1760 pixels, twice what a README page shows."""

WIDTH = 11.0
"""Inches."""

INK, FAINT, GRID, PAPER = "#22262e", "#6b7280", "#e3e6eb", "#ffffff"

#: Told apart by hue and lightness, also by most colour-blind people; red is kept for what is wrong.
#: In the order of the MIDI classes: piano, chromatic percussion, organ, guitar; bass, strings,
#: ensemble, brass; reed, pipe, synth lead, synth pad.
PALETTE = (
    "#3568b8", "#1aa3c4", "#c9a414", "#e58a2c",
    "#9a5cc4", "#2f9e77", "#7a8f2a", "#8a5a3c",
    "#d1619e", "#7f9bd9", "#f0b27a", "#5f6b7a",
)  # fmt: skip

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so pictures are alike everywhere
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "svg.hashsalt": "mt3",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}

_TITLES = {
    "onset": "onset F1",
    "offset": "onset + offset F1",
    "drums": "drum onset F1",
    "flat": "multi-instrument F1, flat",
    "class": "multi-instrument F1, class",
    "full": "multi-instrument F1, full",
    "leaked": "leaked notes",
    "right": "right instrument",
}
"""Panels of the chart; ``phi`` is no share of 1 and has none."""

CHART = ("onset", "offset", "drums", "class", "leaked")
"""Metrics with a panel, where they apply; those left out are close relatives."""


def check_picture(path: str) -> str:
    """The format that a picture's name asks for.

    Raises:
        OptionError: The suffix is none of `SUFFIXES`.
        MissingDependencyError: matplotlib is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise OptionError(f"A picture must be named {', '.join('*' + s for s in SUFFIXES)}: {path}")
    _matplotlib()
    return suffix[1:]


def new_figure(height: float) -> Figure:
    """An empty picture, `WIDTH` inches wide; draw inside `look`."""
    figure: Figure = _matplotlib().figure.Figure(figsize=(WIDTH, height), facecolor=PAPER)
    return figure


def look() -> Any:
    """A context in which everything that is made has the common look."""
    return _matplotlib().rc_context(_STYLE)


def to_bytes(figure: Figure, kind: str, *, title: str | None = None) -> bytes:
    """The picture as a file of the kind ``png``, ``svg`` or ``pdf``.

    Args:
        figure: The picture.
        kind: Of file.
        title: What it is, for those who cannot see it.
    """
    dates = {"svg": "Date", "pdf": "CreationDate"}
    metadata: dict[str, str | None] = {dates.get(kind, "Software"): None}
    metadata |= {"Title": title} if title else {}
    buffer = io.BytesIO()
    with look():
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def score_chart(evaluation: Evaluation, *, title: str) -> Figure:
    """Scores per recording with their intervals: a panel per metric, a bar per recording.

    Args:
        evaluation: The scores.
        title: What was evaluated.
    """
    metrics = [name for name in CHART if evaluation.pooled(name)] or ["flat"]
    count = len(evaluation.results)
    height = 1.35 + 0.34 * count
    with look():
        figure = new_figure(height)
        names = [result.recording.name for result in evaluation.results]
        margin = min(0.3, 0.02 + 0.0075 * max(map(len, names)))
        grid = figure.add_gridspec(
            1, len(metrics), left=margin, right=0.985, wspace=0.12,
            top=1 - 0.78 / height, bottom=0.42 / height,
        )  # fmt: skip
        for column, metric in enumerate(metrics):
            axes = figure.add_subplot(grid[column])
            _panel(axes, evaluation, metric, PALETTE[list(METRICS).index(metric)])
            axes.set_yticks(range(count), names if column == 0 else [""] * count, color=INK)
        figure.text(0.015, 1 - 0.16 / height, title, va="top", fontsize=12, fontweight="bold")
    return figure


def _panel(axes: Axes, evaluation: Evaluation, metric: str, colour: str) -> None:
    pooled = evaluation.pooled(metric)
    for row, result in enumerate(evaluation.results):
        estimate = evaluation.single(result, metric)
        axes.barh(row, 1.0, height=0.62, color="#f4f5f7", zorder=1)
        if estimate is None:
            axes.text(0.02, row, "not applicable", va="center", color="#a5abb5", fontsize=7.5)
        else:
            _bar(axes, row, estimate, colour, clear_of=pooled.value if pooled else 0.0)
    if pooled:
        axes.axvline(pooled.value, color=INK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=4)
        text = f"pooled {pooled.value:.3f}"
        if pooled.interval:
            text += f"  [{pooled.interval[0]:.2f}, {pooled.interval[1]:.2f}]"
        axes.set_xlabel(text, color=INK, fontsize=8)
    axes.set_title(_TITLES[metric], loc="left", fontsize=9, color=INK, pad=5)
    axes.set(xlim=(0, 1), ylim=(len(evaluation.results) - 0.5, -0.5), xticks=[])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _bar(axes: Axes, row: int, estimate: Estimate, colour: str, *, clear_of: float) -> None:
    """A bar, its interval, and its figure: at its foot, or behind it if it is too short."""
    axes.barh(row, estimate.value, height=0.62, color=colour, alpha=0.85, zorder=2)
    ends = estimate.interval or (estimate.value, estimate.value)
    axes.plot(ends, (row, row), color=INK, linewidth=1.3, zorder=3)
    inside = min(ends) > 0.25
    behind = max(*ends, clear_of if clear_of < ends[1] + 0.25 else 0.0) + 0.02
    axes.text(
        0.02 if inside else behind,
        row,
        f"{estimate.value:.3f}",
        va="center",
        color=PAPER if inside else INK,
        fontsize=8,
        fontweight="bold",
        zorder=5,
    )


def _matplotlib() -> Any:
    require("matplotlib.figure", "A picture", "viz")  # half a second, and only in the extra viz
    return require("matplotlib", "A picture", "viz")
