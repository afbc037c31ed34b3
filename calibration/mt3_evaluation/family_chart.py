"""Draws instruments over time below a piano roll, from a result of `mt3 tag -f json`.

Contract: a panel for each source, a row for each family, the darker the surer.  Scores are drawn
relative to the strongest of their panel: a tagger's and a transcription's are of different kinds.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mt3_analysis.tagging.instrument_families import FAMILIES
from mt3_evaluation.plots import FAINT, GRID, PALETTE
from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST = 0.1
"""Share of the strongest score from which a family gets a row."""

SOURCES = ("tagger", "transcription")
_MOST_BYTES = 1 << 26
_ORDER = [family.name for family in FAMILIES]
_COLOURS = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(_ORDER)}


@dataclass(frozen=True)
class FamilyPanel:
    """What one source hears over time.

    Attributes:
        source: What stands beside the panel.
        windows: Start and end [s], and scores by family; none overlap: where a network's do, each
            is shown until the next one begins.
    """

    source: str
    windows: tuple[tuple[float, float, dict[str, float]], ...]

    def strongest(self, start: float, end: float) -> float:
        """The highest score between two times; 0 if nothing is heard."""
        shown = (scores for first, last, scores in self.windows if first < end and last > start)
        return max((max(scores.values(), default=0.0) for scores in shown), default=0.0)

    def rows(self, start: float, end: float) -> list[str]:
        """Families that are drawn between two times, the last of General MIDI at the floor."""
        least = LEAST * self.strongest(start, end)
        there = {
            name
            for first, last, scores in self.windows
            if first < end and last > start
            for name, score in scores.items()
            if score >= least > 0
        }
        return [name for name in reversed(_ORDER) if name in there]


def read_tags(path: Path, name: str) -> list[FamilyPanel]:
    """The panels of one recording.

    Args:
        path: What `mt3 tag -f json` wrote, an object a line.
        name: Of the recording, without its suffix; not asked for where there is only one.

    Raises:
        OptionError: It cannot be read, is something else, or has nothing of this name.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES)
        rows = [json.loads(line) for line in data.splitlines() if line.strip()]
        found = [row for row in rows if Path(row["file"]).stem == name] or rows
        panels = [_panel(row[key]) for row in found for key in SOURCES if row[key] is not None]
    except OSError as error:
        raise OptionError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OptionError(f"{path} is no result of `mt3 tag -f json`.") from error
    if len(found) != 1:
        raise OptionError(
            f"{path} has {len(rows)} recordings, and {len(found)} may be meant by {name!r}; write "
            "the tags of that one with `mt3 tag FILE -f json`."
        )
    return panels


def _panel(source: dict[str, Any]) -> FamilyPanel:
    windows = [
        (
            float(window["start"]),
            float(window["end"]),
            {str(item["name"]): _share(item["score"]) for item in window["families"]},
        )
        for window in source["windows"]
    ]
    windows.sort(key=lambda window: window[0])
    begins = [window[0] for window in windows[1:]] + [math.inf]
    told = ((b, min(e, then), s) for (b, e, s), then in zip(windows, begins, strict=True))
    return FamilyPanel(str(source["source"]), tuple(told))


def _share(value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(value)
    return float(value)


def panel_height(rows: int) -> float:
    """Inches of a panel."""
    return 0.25 + 0.17 * max(1, rows)


def draw_families(axes: Axes, panel: FamilyPanel, start: float, end: float) -> None:
    """Draws a panel.

    Args:
        axes: Where.
        panel: What.
        start: First second shown.
        end: Last one.
    """
    rows, strongest = panel.rows(start, end), panel.strongest(start, end)
    for place, name in enumerate(rows):
        axes.axhline(place, color=GRID, linewidth=0.6, zorder=1)
        for first, last, scores in panel.windows:
            score = scores.get(name, 0.0)
            if score and first < end and last > start:
                axes.broken_barh(
                    [(first, last - first)],
                    (place - 0.4, 0.8),
                    facecolor=_COLOURS.get(name, FAINT),
                    alpha=0.1 + 0.9 * score / strongest,
                    linewidth=0,
                    zorder=3,
                )
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(-0.6, max(1, len(rows)) - 0.4)
    axes.text(
        1.005,
        0.98,
        panel.source,
        transform=axes.transAxes,
        va="top",
        fontsize=7.5,
        color=FAINT,
    )
