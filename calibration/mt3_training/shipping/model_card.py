"""Writes the default model's card from what was measured.

Contract: `write_card` makes ``default-model.md`` and its pictures from the shipped bundle, the run
it came from, a scoreboard and a measurement of speed.  Every figure on the page comes from one of
these files, so none can be out of date or mistyped; the words are in ``model_card.md``.

    python -m mt3_training.shipping.model_card RUN --board board.json --speed speed.json -o docs
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import textwrap
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from mt3_evaluation.plots import to_bytes
from mt3_evaluation.scoreboards import scoreboard_report
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import guarded
from mt3_runtime.errors import MT3Error, OptionError, OutputError
from mt3_runtime.filesystem.atomic import write_atomic
from mt3_runtime.filesystem.ownership import is_regular
from mt3_runtime.models.installed import resolve_model
from mt3_training.examples.tables import LOG, LOG_COLUMNS, SCORE_COLUMNS, SCORES, Table
from mt3_training.runs import progress_plot
from mt3_training.runs.checkpointing import SOUNDS, RunFolder
from mt3_training.runs.config import PRESETS

TEMPLATE = resources.files("mt3_training.shipping").joinpath("model_card.md")
"""The words."""

CURVE_TITLE, CHART_TITLE = "Training of the default model", "Scores of the test sets"
"""Titles inside the pictures."""

PAGE, CURVE, CHART = "default-model.md", "default-model-training.svg", "default-model-scores.svg"


def write_card(
    run: RunFolder,
    folder: Path,
    *,
    board: Mapping[str, Any],
    speed: Mapping[str, Any],
    notes: str = "",
    model: str = "default",
) -> Path:
    """Writes the page and its pictures.

    Args:
        run: Where the model was trained.
        folder: Where the page goes.
        board: A document of `mt3_evaluation.scoreboards.scoreboard`.
        speed: What ``benchmarks/default_model.py --out`` wrote.
        notes: What else to say about how the model was made; Markdown.
        model: Name or path of the bundle.

    Raises:
        BundleNotFoundError: There is no such model.
        OptionError: The bundle is not of this run.
        MissingDependencyError: matplotlib is not installed.
        OutputError: A file cannot be written, or one is there that was not written here.
    """
    _check_older(folder)
    bundle = Bundle(resolve_model(model))
    log = Table(run.path / LOG, LOG_COLUMNS).rows()
    scores = Table(run.path / SCORES, SCORE_COLUMNS).rows()
    step = bundle.manifest.source.get("step")
    if step not in {row["step"] for row in scores}:
        raise OptionError(f"the bundle was made at step {step}, which {run.path} does not know")
    text = TEMPLATE.read_text(encoding="utf-8").format(
        facts=_facts(bundle, run, scores),
        board=scoreboard_report.markdown(dict(board)),
        chart=CHART,
        speed=_speed(speed),
        sounds=_sounds(run),
        music=f"and music of {bundle.manifest.source.get('music', 'no corpus')}.",
        made=_made(run, scores, notes),
        curve=CURVE,
        grid=10 * run.config.offset_steps,
    )
    page = folder / PAGE
    curve = progress_plot.draw(log, scores, title=CURVE_TITLE)
    chart = scoreboard_report.chart(dict(board))
    write_atomic(folder / CURVE, to_bytes(curve, "svg", title=CURVE_TITLE))
    write_atomic(folder / CHART, to_bytes(chart, "svg", title=CHART_TITLE))
    write_atomic(page, text.encode())
    return page


def _check_older(folder: Path) -> None:
    """Refuses to replace what is no older page or picture of ours."""
    heading = TEMPLATE.read_text(encoding="utf-8").partition("\n")[0]
    for name, mark in ((PAGE, heading), (CURVE, CURVE_TITLE), (CHART, CHART_TITLE)):
        path = folder / name
        if not os.path.lexists(path):
            continue
        if not is_regular(path) or mark.encode() not in path.read_bytes():
            raise OutputError(f"{path} was not written by this program; move it elsewhere first.")


def _facts(bundle: Bundle, run: RunFolder, scores: Sequence[Mapping[str, str]]) -> str:
    manifest, shape = bundle.manifest, run.config.shape
    parameters = sum(int(array.size) for array in run.best_weights().values())
    size = sum(graph.size for graph in manifest.graphs)
    (row,) = [row for row in scores if row["step"] == manifest.source["step"]][-1:]
    rows = {
        "network": f"T5 as in MT3: {shape.encoder_layers} + {shape.decoder_layers} layers, width "
        f"{shape.d_model}, {shape.heads} heads, feed-forward {shape.d_ff}; {parameters / 1e6:.1f} "
        "million parameters (MT3: 45.9)",
        "size": f"{size / 1e6:.1f} MB: weights stored in fp16, arithmetic in fp32",
        "licence": "Apache-2.0, as the package",
        "weights": f"step {row['step']}, {int(row['examples']):,} examples, "
        f"{float(row['cpu_seconds']) / 3600:.1f} hours of one CPU core",
        "export id": f"`{manifest.export_id}`",
        "weights, SHA-256": f"`{manifest.source['digest']}`",
        "confidence": "fitted, see [confidence](confidence.md)"
        if manifest.confidence
        else "not fitted: the probability of the pitch or drum token",
    }
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]
    )


def _speed(speed: Mapping[str, Any]) -> str:
    about = (
        f"A song of {speed['seconds']:g} s, file to MIDI with the model loaded, and the "
        "demonstration recording (13 s) from an empty process to the MIDI file; medians, in "
        f"turns, {speed['threads']} threads of {speed['machine'].get('cpu', 'an unknown CPU')} "
        f"(load {speed['load_before']:.1f} before):"
    )
    lines = [
        _filled(about),
        "",
        "| model | size | song | times real time | first recording | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for side, answers in speed["rounds"].items():
        took = statistics.median(answer["seconds"] for answer in answers)
        first = statistics.median(answer["seconds"] for answer in speed["first"][side])
        peak = max(answer["peak_rss"] for answer in answers) / 2**20
        lines.append(
            f"| `{side}` | {speed['bytes'][side] / 1e6:.1f} MB | {took:.1f} s | "
            f"{speed['seconds'] / took:.0f} | {first:.1f} s | {peak:.0f} MiB |"
        )
    return "\n".join(lines)


def _sounds(run: RunFolder) -> str:
    banks = json.loads((run.path / SOUNDS).read_bytes())
    used = {
        (bank.get("licence"), bank.get("credit")): next(iter(bank.get("files", {})), bank["bank"])
        for bank in banks
        if not bank["held_out"]
    }
    rows = [f"| `{file}` | {licence} | {credit} |" for (licence, credit), file in used.items()]
    return "\n".join(["| soundfont | licence | by |", "|---|---|---|", *rows])


def _made(run: RunFolder, scores: Sequence[Mapping[str, str]], notes: str) -> str:
    config = run.config
    stages = "; ".join(
        f"{stage.name} ({stage.frames} frames, batches of {stage.batch})" for stage in config.stages
    )
    changes = PRESETS["small"].differences(config)
    about = (
        f"A run of {int(scores[-1]['examples']):,} examples in stages: {stages}. Optimiser "
        f"{config.optimiser}, highest rate {config.rate:g}, seed {config.seed}; sounds varied "
        f"beyond the soundfonts: {'yes' if config.vary else 'no'}."
    )
    if changes:
        names = "; ".join(f"`{change}`" for change in changes)
        about += f" Its configuration is the one called `small` but for (small's first): {names}."
    return "\n\n".join(filter(None, (_filled(about), notes.strip())))


def _filled(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page that the command line describes."""
    parser = argparse.ArgumentParser(description="write the page about the default model")
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of the run")
    add("--board", metavar="FILE", required=True, help="scoreboard, as JSON")
    add("--speed", metavar="FILE", required=True, help="of benchmarks/default_model.py --out")
    add("--notes", metavar="FILE", type=Path, help="Markdown: what else to say about the making")
    add("--model", default="default", help="bundle (default: the shipped one)")
    add("-o", "--output", metavar="DIR", type=Path, required=True, help="folder of the page")
    args = parser.parse_args(arguments)
    try:
        page = write_card(
            RunFolder.existing(args.run),
            args.output,
            board=scoreboard_report.read(args.board),
            speed=_read_speed(args.speed),
            notes=args.notes.read_text(encoding="utf-8") if args.notes else "",
            model=args.model,
        )
    except MT3Error as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(page)  # noqa: T201
    return 0


def _read_speed(path: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(Path(path).read_bytes())
        for key in ("machine", "seconds", "threads", "load_before", "bytes", "rounds", "first"):
            found[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{path} is no measurement of speed ({error!r})") from error
    return found


if __name__ == "__main__":
    sys.exit(guarded(main))
