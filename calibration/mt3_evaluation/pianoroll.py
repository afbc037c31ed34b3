"""Draws piano rolls: notes by time and pitch, one colour per instrument, drums as marks below.

With labels the picture shows what is right (full colour), what is missed (outlined) and what is too
much (pale, outlined in red), by the onset metrics of `mt3_evaluation.scoring`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mt3_evaluation.family_chart import FamilyPanel, draw_families, panel_height
from mt3_evaluation.labels import Labels
from mt3_evaluation.plots import DPI, FAINT, GRID, INK, PALETTE, PAPER, WIDTH, look, new_figure
from mt3_evaluation.scoring import (
    DRUM_KEYS,
    Score,
    by_drum_class,
    by_pitch,
    drums,
    match,
    pitched,
)
from mt3_runtime.errors import OptionError
from mt3_runtime.notes.instruments import PROGRAMS_PER_FAMILY, instrument_name
from mt3_runtime.notes.note import Note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["View", "draw", "pitch_name"]

#: Rows of the drum strip, from the floor up: name, and the percussion keys that belong there.
STRIP = (
    ("kick", DRUM_KEYS["KD"]),
    ("snare", DRUM_KEYS["SD"]),
    ("toms", DRUM_KEYS["TT"]),
    ("hi-hat", DRUM_KEYS["HH"]),
    ("cymbals", DRUM_KEYS["CY"]),
    ("other", ()),
)
_ROWS = {key: row for row, (_, keys) in enumerate(STRIP) for key in keys}

BLACK_KEYS = (1, 3, 6, 8, 10)
"""Pitch classes, from C."""

LEAST_PITCHES = 24
"""Two octaves are shown at least, so that a melody does not fill the picture with five rows."""

RIGHT = 0.825
"""Where the notes end and the legend begins, as a share of the picture's width."""

EXTRA = "#d02f3a"
OTHER = "#b4bac4"


@dataclass(frozen=True)
class View:
    """What of a piece is shown: seconds ``start`` to ``end``."""

    start: float
    end: float

    def shows(self, note: Note) -> bool:
        """Whether any of a note lies inside."""
        return note.onset < self.end and (note.offset > self.start or note.onset >= self.start)


@dataclass(frozen=True)
class _Sorted:
    """Notes by what the labels say about them; without labels all are right."""

    right: list[Note]
    extra: list[Note]
    missed: list[Note]
    score: Score | None = None


def draw(
    notes: Sequence[Note],
    view: View,
    *,
    title: str,
    labels: Labels | None = None,
    families: Sequence[FamilyPanel] = (),
) -> Figure:
    """Draws notes.

    Args:
        notes: In any order.
        view: What of them is shown.
        title: Stands above.
        labels: Compare with these; kinds of notes that are not labelled are drawn as right.
        families: Instruments over time, drawn below.

    Raises:
        OptionError: There is nothing to see.
    """
    melodic = _sorted(pitched(notes), labels, view, is_drum=False)
    percussive = _sorted(drums(notes), labels, view, is_drum=True)
    roll = [*melodic.right, *melodic.extra, *melodic.missed]
    strip = [*percussive.right, *percussive.extra, *percussive.missed]
    if not roll and not strip:
        raise OptionError(f"There is no note from {view.start:g} s to {view.end:g} s.")
    with look():
        rows = sorted({_row(note) for note in strip})
        heights = [_roll_height(roll)] if roll else []
        heights += [0.25 + 0.17 * len(rows)] if strip else []
        own = len(heights)
        heights += [panel_height(len(each.rows(view.start, view.end))) for each in families]
        height = sum(heights) + 1.15 + 0.1 * (len(heights) - 1)
        figure = new_figure(height)
        grid = figure.add_gridspec(
            len(heights), 1, height_ratios=heights, left=0.062, right=RIGHT,
            top=1 - 0.6 / height, bottom=0.5 / height, hspace=0.05,
        )  # fmt: skip
        panels: list[Axes] = [figure.add_subplot(grid[i]) for i in range(len(heights))]
        if roll:
            _draw_roll(panels[0], melodic, view, compared=labels is not None)
        if strip:
            _draw_strip(panels[own - 1], percussive, rows, view)
        for axes, each in zip(panels[own:], families, strict=True):
            draw_families(axes, each, view.start, view.end)
        for axes in panels:
            _draw_time(axes, view, last=axes is panels[-1])
        figure.text(0.062, 1 - 0.2 / height, title, va="top", fontsize=12, fontweight="bold")
        facts = _facts(melodic, percussive)
        figure.text(RIGHT, 1 - 0.23 / height, facts, va="top", ha="right", fontsize=9, color=FAINT)
    return figure


def pitch_name(pitch: int) -> str:
    """The name of a C, with middle C (60) as C4."""
    return f"C{pitch // 12 - 1}"


def _sorted(notes: list[Note], labels: Labels | None, view: View, *, is_drum: bool) -> _Sorted:
    if labels is None or not (labels.drums if is_drum else labels.pitched):
        return _Sorted([note for note in notes if view.shows(note)], [], [])
    known = drums(labels.notes) if is_drum else pitched(labels.notes)
    known, notes = ([n for n in side if view.shows(n)] for side in (known, notes))
    pairs = match(known, notes, by_drum_class if is_drum else by_pitch)
    found, hit = {i for i, _ in pairs}, {j for _, j in pairs}
    return _Sorted(
        right=[note for j, note in enumerate(notes) if j in hit],
        extra=[note for j, note in enumerate(notes) if j not in hit],
        missed=[label for i, label in enumerate(known) if i not in found],
        score=Score(len(pairs), len(known), len(notes)),
    )


def _facts(melodic: _Sorted, percussive: _Sorted) -> str:
    """What stands at the upper right."""
    parts = []
    for kind, side in (("note", melodic), ("drum", percussive)):
        if side.score is not None and side.score.f1 is not None:
            parts.append(f"{kind} onset F1 {side.score.f1:.3f}")
        elif side.right:
            parts.append(f"{len(side.right)} {kind}{'s' if len(side.right) > 1 else ''}")
    return "   ·   ".join(parts)


# --- notes ---------------------------------------------------------------------------------------


def _range(notes: Sequence[Note]) -> tuple[int, int]:
    """Lowest and highest pitch shown: those of the notes, and some air."""
    low, high = (end(note.pitch for note in notes) for end in (min, max))
    lacking = max(0, LEAST_PITCHES - (high - low + 1))
    return low - 2 - lacking // 2, high + 2 + (lacking + 1) // 2


def _roll_height(notes: Sequence[Note]) -> float:
    low, high = _range(notes)
    return min(4.8, 1.2 + 0.06 * (high - low))


def _draw_roll(axes: Axes, notes: _Sorted, view: View, *, compared: bool) -> None:
    everything = [*notes.right, *notes.extra, *notes.missed]
    low, high = _range(everything)
    for pitch in range(low, high + 1):
        if pitch % 12 in BLACK_KEYS:
            axes.axhspan(pitch - 0.5, pitch + 0.5, color="#f5f6f8", linewidth=0, zorder=0)
    octaves = [pitch for pitch in range(low, high + 1) if pitch % 12 == 0]
    for pitch in octaves:
        axes.axhline(pitch - 0.5, color=GRID, linewidth=0.9, zorder=1)
    axes.set_yticks(octaves, [pitch_name(pitch) for pitch in octaves])
    axes.set_ylim(low - 0.5, high + 0.5)

    # A mark for every note, however short: three pixels at least.
    least = 3 * (view.end - view.start) / ((RIGHT - 0.062) * WIDTH * DPI)
    colours = _colours([*notes.right, *notes.extra])
    for program, colour in colours.items():
        for members, style in (
            (notes.right, {"facecolor": colour, "edgecolor": PAPER, "linewidth": 0.4, "zorder": 4}),
            (
                notes.extra,
                {"facecolor": colour + "48", "edgecolor": EXTRA, "linewidth": 0.8, "zorder": 3},
            ),
        ):
            _boxes(axes, [n for n in members if n.program == program], least, **style)
    missed = {"facecolor": "none", "edgecolor": INK, "linewidth": 0.9, "zorder": 5}
    _boxes(axes, notes.missed, least, **missed)
    _legend(axes, notes, colours, compared=compared)


def _boxes(axes: Axes, notes: Sequence[Note], least: float, **style: Any) -> None:
    from matplotlib.collections import PolyCollection  # noqa: PLC0415  see plots._matplotlib

    corners = []
    for note in notes:
        left, right = note.onset, max(note.offset, note.onset + least)
        low, high = note.pitch - 0.42, note.pitch + 0.42
        corners.append([(left, low), (right, low), (right, high), (left, high)])
    axes.add_collection(PolyCollection(corners, **style), autolim=False)


def _colours(notes: Sequence[Note]) -> dict[int, str]:
    """A colour for every program, in the order of how much they play.

    A program gets the colour of its MIDI class, so that most pictures agree, or else a free one.
    """
    ranked = sorted(Counter(note.program for note in notes).items(), key=lambda i: (-i[1], i[0]))
    free = dict.fromkeys(PALETTE)
    colours = {}
    for program, _ in ranked:
        own = PALETTE[program // PROGRAMS_PER_FAMILY % len(PALETTE)]
        colours[program] = own if own in free else next(iter(free), OTHER)
        free.pop(colours[program], None)
    return colours


def _legend(axes: Axes, notes: _Sorted, colours: dict[int, str], *, compared: bool) -> None:
    from matplotlib.patches import Patch  # noqa: PLC0415

    counts = Counter(note.program for note in [*notes.right, *notes.extra])
    entries = [
        Patch(facecolor=colour, label=f"{_short(program)}  {counts[program]}")
        for program, colour in colours.items()
        if colour != OTHER
    ]
    rest = sum(counts[program] for program, colour in colours.items() if colour == OTHER)
    if rest:
        entries.append(Patch(facecolor=OTHER, label=f"others  {rest}"))
    if compared and notes.score is not None:
        label = f"extra  {len(notes.extra)}"
        entries.append(Patch(facecolor="#f6e4e5", edgecolor=EXTRA, linewidth=0.8, label=label))
        label = f"missed  {len(notes.missed)}"
        entries.append(Patch(facecolor="none", edgecolor=INK, linewidth=0.9, label=label))
    axes.legend(
        handles=entries,
        loc="upper left",
        bbox_to_anchor=(1.005, 1.0),
        borderaxespad=0.0,
        frameon=False,
        fontsize=7.5,
        handlelength=1.1,
        handleheight=0.8,
        labelspacing=0.45,
    )


def _short(program: int) -> str:
    return instrument_name(program, is_drum=False).replace("Acoustic Grand ", "Grand ")


# --- drums ---------------------------------------------------------------------------------------


def _row(note: Note) -> int:
    return _ROWS.get(note.pitch, len(STRIP) - 1)


def _draw_strip(axes: Axes, notes: _Sorted, rows: list[int], view: View) -> None:
    places = {row: index for index, row in enumerate(rows)}
    for index in range(0, len(rows), 2):
        axes.axhspan(index - 0.5, index + 0.5, color="#f5f6f8", linewidth=0, zorder=0)
    size = min(13.0, max(3.0, 300 / (view.end - view.start)))
    styles: tuple[tuple[list[Note], dict[str, Any]], ...] = (
        (notes.right, {"marker": "D", "s": size, "color": INK, "linewidth": 0}),
        (notes.extra, {"marker": "x", "s": size, "color": EXTRA, "linewidth": 1.0}),
        (
            notes.missed,
            {"marker": "D", "s": size, "facecolor": PAPER, "edgecolor": INK, "linewidth": 0.9},
        ),
    )
    for members, style in styles:
        times = [note.onset for note in members]
        axes.scatter(times, [places[_row(n)] for n in members], zorder=4, **style)
    axes.set_yticks(range(len(rows)), [STRIP[row][0] for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)


# --- time ----------------------------------------------------------------------------------------


def _draw_time(axes: Axes, view: View, *, last: bool) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    air = 0.005 * (view.end - view.start)  # or marks at the ends would be cut in half
    axes.set_xlim(view.start - air, view.end + air)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", color=GRID, linewidth=0.7, zorder=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelbottom=last)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "left")
    if last:
        axes.set_xlabel("seconds", fontsize=8.5)
