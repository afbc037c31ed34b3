"""Sensitivity reports: a JSON document, a table and a picture."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mt3_evaluation.plots import FAINT, INK, PALETTE, look, new_figure
from mt3_evaluation.score_report import aligned
from mt3_quantisation.qdq.sensitivity import Loss, PartKind, Sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT, VERSION = "mt3-runtime.sensitivity", 1

_TITLES: dict[PartKind, str] = {
    "all": "everything",
    "group": "groups: one kind of product in all layers",
    "layer": "layers",
    "product": "products",
}
#: Height of a bar and of what is around the bars of a panel, in inches.
_BAR, _AROUND = 0.24, 0.7
#: What is drawn where nothing changed, as the axis is logarithmic.
_FLOOR = 1e-9


def document(found: Sensitivity) -> dict[str, Any]:
    """Plain JSON types."""
    return {"format": FORMAT, "version": VERSION, **asdict(found)}


def table(found: Sensitivity) -> str:
    """The ranking, without a line end behind it."""
    parts = []
    for kind, losses in _by_kind(found).items():
        rows = [(_TITLES[kind], "KL", "flips %", "rms", "products")]
        rows += [
            (
                loss.part,
                f"{loss.kl:.1e}",
                f"{100 * loss.flips:.2f}",
                f"{loss.rms:.4f}",
                str(len(loss.products)),
            )
            for loss in losses
        ]
        parts.append(aligned(rows))
    head = (
        f"{found.model}, {found.precision}: {found.steps} steps of {found.segments} segments, "
        "each part quantised alone"
    )
    return "\n\n".join([head, *parts])


def chart(found: Sensitivity) -> Figure:
    """Bars of KL, worst first; the dashed line is everything together."""
    every = _by_kind(found)
    kinds = {kind: losses for kind, losses in every.items() if kind != "all"} or every
    heights = [_BAR * len(losses) + _AROUND for losses in kinds.values()]
    whole = [loss.kl for loss in found.losses if loss.kind == "all"]
    with look():
        figure = new_figure(sum(heights) + 0.5)
        axes = figure.subplots(len(kinds), 1, height_ratios=heights, sharex=True, squeeze=False)[
            :, 0
        ]
        for place, (kind, losses) in zip(axes, kinds.items(), strict=True):
            _bars(place, losses)
            place.set_title(_TITLES[kind], loc="left", fontsize=10, color=INK)
            for value in whole:
                place.axvline(max(value, _FLOOR), color=FAINT, linewidth=0.8, linestyle="--")
        axes[-1].set_xlabel("KL divergence from the exact model, nats per token")
        figure.suptitle(
            f"{found.model}, {found.precision}: what quantising one part alone costs",
            x=0.01, ha="left", fontsize=12, color=INK,
        )  # fmt: skip
        figure.tight_layout()
    return figure


def _bars(axes: Axes, losses: list[Loss]) -> None:
    places = range(len(losses), 0, -1)
    values = [max(loss.kl, _FLOOR) for loss in losses]
    axes.barh(places, values, height=0.7, color=PALETTE[0])
    axes.set_xscale("log")
    axes.set_yticks(list(places), [loss.part for loss in losses])
    for place, loss, value in zip(places, losses, values, strict=True):
        axes.annotate(
            f" {100 * loss.flips:.2f} % flips", (value, place), va="center", fontsize=7, color=FAINT
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(0.4, len(losses) + 0.6)
    axes.margins(x=0.15)


def _by_kind(found: Sensitivity) -> dict[PartKind, list[Loss]]:
    kinds: dict[PartKind, list[Loss]] = {}
    for loss in found.losses:
        kinds.setdefault(loss.kind, []).append(loss)
    return kinds
