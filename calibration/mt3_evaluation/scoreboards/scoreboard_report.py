"""Scoreboard reports: a JSON document, tables and a picture.

The document is JSON: ``format`` ("mt3-runtime.scoreboard"), ``version`` (1), ``versions`` of what
took part, ``models`` (label, variant, export id, precision, bytes), ``sets`` (name, sounds, digest,
number of recordings, kinds of music) and ``rows``: a set, a kind of music or "all", a model,
seconds, numbers of labels and notes, and per metric ``value``, ``low`` and ``high`` (95 %), or null
where the labels say nothing about it.  Some rows have ``families``, too: by the name of the General
MIDI family the number of labels, of those found, and of those found on the same family.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mt3_evaluation.plots import FAINT, INK, PALETTE, look, new_figure
from mt3_runtime.commands.machine import versions
from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT, VERSION = "mt3-runtime.scoreboard", 1

PACKAGES = ("mt3-runtime", "mir_eval", "numpy", "onnxruntime", "soxr")

TITLES = {
    "onset": "onset F1",
    "offset": "onset + offset F1",
    "drums": "drum onset F1",
    "class": "multi-instrument F1",
    "right": "right instrument",
}

Document = dict[str, Any]
Row = Mapping[str, Any]


def document(models: Sequence[Row], sets: Sequence[Row], rows: Sequence[Row]) -> Document:
    """Puts the parts together."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "versions": versions(PACKAGES),
        "models": [dict(model) for model in models],
        "sets": [dict(item) for item in sets],
        "rows": [dict(row) for row in rows],
    }


def read(path: str | Path) -> Document:
    """An earlier board.

    Raises:
        OptionError: The file cannot be read, or is none.
    """
    try:
        found = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise OptionError(f"{path} cannot be read as a scoreboard: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise OptionError(f"{path} is no scoreboard ({FORMAT})")
    if found.get("version") != VERSION:
        raise OptionError(f"{path} is of version {found.get('version')}, expected {VERSION}")
    return found


def merged(boards: Sequence[Document]) -> Document:
    """Several boards as one; of a model that is in several, the first counts.

    Raises:
        OptionError: A set is not the same in all of them.
    """
    sets: dict[str, Row] = {}
    models: dict[str, Row] = {}
    rows: dict[tuple[str, str, str], Row] = {}
    for board in boards:
        for item in board["sets"]:
            known = sets.setdefault(item["name"], item)
            if known["digest"] != item["digest"]:
                raise OptionError(
                    f"the set {item['name']} is not the same in these boards (digests "
                    f"{known['digest'][:8]} and {item['digest'][:8]}); score the models again"
                )
        for model in board["models"]:
            models.setdefault(model["label"], model)
        for row in board["rows"]:
            rows.setdefault((row["set"], row["kind"], row["model"]), row)
    whole = document(list(models.values()), list(sets.values()), list(rows.values()))
    return whole | {"versions": boards[0]["versions"]}


def markdown(board: Document) -> str:
    """Tables of whole sets, of kinds of music, of families; a cell holds all models' figures."""
    labels = [model["label"] for model in board["models"]]
    rows = {(row["set"], row["kind"], row["model"]): row for row in board["rows"]}
    names = " / ".join(f"`{label}`" for label in labels)
    head = [f"Figures of {names}; - where the labels say nothing.", ""]
    whole = [
        (f"{item['name']}: {item['sounds']}", [rows.get((item["name"], "all", m)) for m in labels])
        for item in board["sets"]
    ]
    kinds = [
        (f"{item['name']} {kind}", [rows.get((item["name"], kind, m)) for m in labels])
        for item in board["sets"]
        if len(item["kinds"]) > 1
        for kind in item["kinds"]
    ]
    lines = [*head, *_table("set", whole), *(["", *_table("kind", kinds)] if kinds else [])]
    lines += _family_table(board["rows"], labels)
    digests = ", ".join(f"{item['name']} {item['digest'][:12]}" for item in board["sets"])
    return "\n".join([*lines, "", f"Digests of the sets: {digests}.", ""])


def _table(what: str, rows: Iterable[tuple[str, Sequence[Row | None]]]) -> list[str]:
    lines = [f"| {' | '.join((what, 'labels', *TITLES.values()))} |", "|---" * 7 + "|"]
    for name, found in rows:
        present = [row for row in found if row is not None]
        if present:
            cells = [" / ".join(_figure(row, metric) for row in found) for metric in TITLES]
            cells = ["-" if not set(cell) - set("- /") else cell for cell in cells]
            lines.append(f"| {' | '.join((name, str(present[0]['labels']), *cells))} |")
    return lines


def _family_table(rows: Sequence[Row], models: Sequence[str]) -> list[str]:
    """How many notes of each family are found, over all sets that say so; most labels first."""
    told = [row for row in rows if "families" in row]
    sets = ", ".join(dict.fromkeys(row["set"] for row in told))
    counts: dict[str, dict[str, list[int]]] = {}
    for row in told:
        for family, found in row["families"].items():
            before = counts.setdefault(family, {}).get(row["model"], [0, 0, 0])
            counts[family][row["model"]] = [a + b for a, b in zip(before, found, strict=True)]
    ordered = sorted(counts.items(), key=lambda item: -max(n for n, *_ in item[1].values()))
    lines = [
        f"| {family} | {max(n for n, *_ in own.values())} "
        f"| {_shares(own, models, 1)} | {_shares(own, models, 2)} |"
        for family, own in ordered
    ]
    head = [f"| family ({sets}) | labels | found | found on the family |", "|---" * 4 + "|"]
    return ["", *head, *lines] if lines else []


def _shares(counts: Mapping[str, Sequence[int]], models: Sequence[str], place: int) -> str:
    """Of each model's labels the share that was found, or found on the family."""
    return " / ".join(
        f"{counts[model][place] / counts[model][0]:.0%}" if model in counts else "-"
        for model in models
    )


def _figure(row: Row | None, metric: str) -> str:
    estimate = row["metrics"].get(metric) if row else None
    return "-" if estimate is None else f"{estimate['value']:.2f}"


def chart(board: Document) -> Figure:
    """A panel per metric, a group of bars per set, a bar per model with its interval."""
    sets, labels = board["sets"], [model["label"] for model in board["models"]]
    rows = {(row["set"], row["model"]): row for row in board["rows"] if row["kind"] == "all"}
    height = 1.5 + 0.24 * len(sets) * (len(labels) + 0.6)
    with look():
        figure = new_figure(height)
        grid = figure.add_gridspec(
            1, len(TITLES), left=0.17, right=0.985, wspace=0.1,
            top=1 - 0.95 / height, bottom=0.25 / height,
        )  # fmt: skip
        for column, (metric, title) in enumerate(TITLES.items()):
            axes = figure.add_subplot(grid[column])
            _panel(axes, rows, [item["name"] for item in sets], labels, metric)
            axes.set_title(title, loc="left", fontsize=9, color=INK, pad=5)
            names = [f"{item['name']}: {item['sounds']}" for item in sets]
            axes.set_yticks(range(len(sets)), names if column == 0 else [""] * len(sets))
            axes.tick_params(length=0, labelcolor=INK, labelsize=7.5)
        figure.text(0.015, 1 - 0.14 / height, "Test sets", va="top", fontsize=12, weight="bold")
        for place, label in enumerate(labels):
            figure.text(
                0.17 + 0.2 * place, 1 - 0.2 / height, f"\u25a0 {label}", va="top",
                color=PALETTE[place % len(PALETTE)], fontsize=9, weight="bold",
            )  # fmt: skip
    return figure


def _panel(
    axes: Axes,
    rows: Mapping[tuple[str, str], Row],
    sets: Sequence[str],
    labels: Sequence[str],
    metric: str,
) -> None:
    thickness = 0.8 / len(labels)
    for place, name in enumerate(sets):
        for number, label in enumerate(labels):
            at = place - 0.4 + thickness * (number + 0.5)
            row = rows.get((name, label))
            estimate = row["metrics"].get(metric) if row else None
            if estimate is None:
                continue
            value, low, high = (estimate[key] for key in ("value", "low", "high"))
            colour = PALETTE[number % len(PALETTE)]
            axes.barh(at, value, height=0.9 * thickness, color=colour, alpha=0.85)
            if low is not None:
                axes.plot((low, high), (at, at), color=INK, linewidth=1.0)
            axes.text(max(value, high or 0.0) + 0.02, at, f"{value:.2f}", va="center",
                color=INK, fontsize=7.5)  # fmt: skip
    axes.set(xlim=(0, 1.15), ylim=(len(sets) - 0.5, -0.5), xticks=[])
    axes.axvline(1.0, color=FAINT, linewidth=0.4)
    for spine in axes.spines.values():
        spine.set_visible(False)
