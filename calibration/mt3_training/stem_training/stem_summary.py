"""Summaries of per-stem training: one row per stem, as JSON, CSV and Markdown.

Contract: `write_summary` replaces ``summary.json``, ``summary.csv`` and ``summary.md`` of a folder
of models; what is not known is null, empty or ``-``.  Scores are onset F1 with 95 % intervals.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mt3_runtime.errors import OutputError
from mt3_runtime.filesystem.atomic import write_atomic
from mt3_runtime.filesystem.ownership import is_regular
from mt3_training.stem_training.stem_judgement import NOTHING, Estimate, Judgement

FORMAT, VERSION = "mt3-runtime.stem-models", 1

SUMMARY = ("summary.json", "summary.csv", "summary.md")

Status = Literal["waiting", "stopped", "complete", "failed", "no data"]


@dataclass(frozen=True)
class StemResult:
    """What became of a stem.

    Attributes:
        stem: Its name.
        status: "complete"; "stopped": goes on where it stands; "failed" or "no data": see
            ``reason``; "waiting": its turn has not come.
        reason: Why it failed, or has no data.
        step: Steps done.
        examples: Examples seen.
        core_hours: CPU time spent, by all processes.
        judgement: Scores, where it is complete.
        data: What it was trained with.
        licence: Of that, as stated.
        bundle: The model's file, relative to the folder of models.
        installed: The name under which it is installed; empty if it is not.
    """

    stem: str
    status: Status
    reason: str = ""
    step: int = 0
    examples: int = 0
    core_hours: float = 0.0
    judgement: Judgement | None = None
    data: str = ""
    licence: str = ""
    bundle: str = ""
    installed: str = ""

    def row(self) -> dict[str, object]:
        """The columns of a table; None where nothing is known."""
        found = self.judgement
        scores = {
            "start": found.start if found else NOTHING,
            "best": found.best if found else NOTHING,
            "gain": found.gain if found else NOTHING,
        }
        columns: dict[str, object] = {
            "stem": self.stem,
            "status": self.status,
            "step": self.step,
            "examples": self.examples,
            "core_hours": round(self.core_hours, 3),
        }
        for name, value in scores.items():
            columns |= _columns(name, value)
        return columns | {
            "judged_with": found.examples if found else None,
            "data": self.data,
            "licence": self.licence,
            "bundle": self.bundle,
            "installed": self.installed,
            "reason": self.reason,
        }


def check_summary(folder: Path) -> None:
    """Refuses to replace files that are no summaries of ours.

    Raises:
        OutputError: One of those names is taken.
    """
    first = folder / SUMMARY[0]
    there = [folder / name for name in SUMMARY if (folder / name).exists()]
    if not there:
        return
    try:
        ours = json.loads(first.read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours or not all(map(is_regular, there)):
        raise OutputError(
            f"{there[0]} is no summary of per-stem training; move it elsewhere, or name a new "
            "folder for the models."
        )


def installed_before(folder: Path) -> dict[str, str]:
    """By stem, the names under which models were installed, as the summary says."""
    try:
        rows = json.loads((folder / SUMMARY[0]).read_bytes())["stems"]
        return {str(row["stem"]): str(row["installed"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_summary(
    folder: Path, results: Sequence[StemResult], options: Mapping[str, object]
) -> None:
    """Writes all three files.

    Args:
        folder: Of the models.
        results: One per stem.
        options: What was asked for.

    Raises:
        OutputError: They cannot be written.
    """
    rows = [result.row() for result in results]
    document = {"format": FORMAT, "version": VERSION, "options": dict(options), "stems": rows}
    table = io.StringIO()
    writer = csv.DictWriter(table, list(StemResult("", "waiting").row()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    texts = (json.dumps(document, indent=1) + "\n", table.getvalue(), "\n".join(_markdown(results)))
    for name, text in zip(SUMMARY, texts, strict=True):
        write_atomic(folder / name, text.encode())


def _columns(name: str, value: Estimate) -> dict[str, object]:
    def short(number: float | None) -> float | None:
        return None if number is None else round(number, 4)

    return {
        f"{name}_f1": short(value.value),
        f"{name}_low": short(value.low),
        f"{name}_high": short(value.high),
    }


def _markdown(results: Sequence[StemResult]) -> Iterator[str]:
    heads = ("stem", "status", "steps", "core-hours", "start", "trained", "gain", "data", "licence")
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for one in results:
        found = one.judgement
        scores = (found.start, found.best, found.gain) if found else (NOTHING,) * 3
        cells = (one.stem, one.status, one.step, f"{one.core_hours:.2f}", *scores, one.data,
                 one.licence)  # fmt: skip
        yield f"| {' | '.join(_cell(cell) for cell in cells)} |"
    yield ""
    yield "Onset F1 on held-out examples, with 95 % intervals; gain: trained less start."
    yield ""
    for one in results:
        if one.reason:
            yield f"- {one.stem}: {_cell(one.reason)}"
    yield ""


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|") or "-"
