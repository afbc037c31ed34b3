"""Plots the progress of a training run from its tables.

Contract: `save_picture` draws what the tables in a run's folder say: losses by kind of token above,
scores on the held-out examples below, both over the examples seen, with the stages marked.  It
needs matplotlib (the extra ``viz``) and nothing of torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mt3_evaluation.plots import FAINT, GRID, INK, PALETTE, look, new_figure, to_bytes
from mt3_runtime.filesystem.atomic import write_atomic
from mt3_training.examples.tables import LOG, LOG_COLUMNS, SCORE_COLUMNS, SCORES, Table
from mt3_training.runs.checkpointing import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURE = "progress.svg"

_LOSSES = ("loss", "shift", "pitch", "program", "drum")
_CURVES = {
    "onset_f1": ("onset F1", "-"),
    "onset_precision": ("precision", ":"),
    "onset_recall": ("recall", "--"),
    "drum_f1": ("drum F1", "-"),
}

Rows = Sequence[Mapping[str, str]]


def save_picture(folder: RunFolder) -> None:
    """Draws the progress of a run into its folder.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        CheckpointError: A table is damaged.
        OutputError: The picture cannot be written.
    """
    log = Table(folder.path / LOG, LOG_COLUMNS).rows()
    scores = Table(folder.path / SCORES, SCORE_COLUMNS).rows()
    figure = draw(log, scores, title=folder.path.resolve().name)
    write_atomic(folder.path / PICTURE, to_bytes(figure, "svg"))


def draw(log: Rows, scores: Rows, *, title: str) -> Figure:
    """The picture of two tables."""
    with look():
        figure = new_figure(6.4)
        upper, lower = figure.subplots(2, 1, sharex=True)
        figure.subplots_adjust(left=0.07, right=0.86, top=0.9, bottom=0.09, hspace=0.12)
        for colour, name in zip(PALETTE, _LOSSES, strict=False):
            label = "all tokens" if name == "loss" else name
            _curve(upper, log, name, label, colour, "-")
        upper.set_ylabel("nats per token")
        upper.set_ylim(bottom=0.0)
        for colour, (name, (label, dashes)) in zip(PALETTE, _CURVES.items(), strict=False):
            _curve(lower, scores, name, label, colour, dashes)
        lower.set(ylim=(0.0, 1.0), ylabel="held-out, greedy", xlabel="thousand examples")
        for axes in (upper, lower):
            axes.grid(visible=True, color=GRID, linewidth=0.6)
            axes.set_axisbelow(True)
            if axes.lines:
                axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
            _mark_stages(axes, [*log, *scores], named=axes is upper)
        figure.text(0.015, 0.965, title, va="top", fontsize=12, fontweight="bold", color=INK)
    return figure


def _curve(axes: Axes, rows: Rows, column: str, label: str, colour: str, dashes: str) -> None:
    """A curve of the rows that have a value in a column; none, no curve."""
    points = [(int(row["examples"]) / 1000.0, float(row[column])) for row in rows if row[column]]
    if points:
        marker = "o" if len(points) < 30 else ""
        axes.plot(
            *zip(*points, strict=True), color=colour, linestyle=dashes, label=label,
            linewidth=1.3, marker=marker, markersize=2.5,
        )  # fmt: skip


def _mark_stages(axes: Axes, rows: Rows, *, named: bool) -> None:
    first: dict[str, float] = {}
    for row in sorted(rows, key=lambda row: int(row["examples"])):
        first.setdefault(row["stage"], int(row["examples"]) / 1000.0)
    for name, start in first.items():
        axes.axvline(start, color=FAINT, linewidth=0.8, linestyle=(0, (3, 2)))
        if named:
            axes.text(start, 1.01, f" {name}", transform=axes.get_xaxis_transform(),
                      color=FAINT, fontsize=8, va="bottom")  # fmt: skip
