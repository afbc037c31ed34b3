"""Specialists against the general model, at equal compute: one model per stem, paired intervals.

Goes on from the general model for so many steps: once with general music (the control), once per
stem with that stem's music alone, and compares them on recordings whose sounds no model has met
(`mt3_training.stem_training.stem_comparison`).  Everything is kept in one folder, and the same
command goes on where it was stopped; Ctrl-C, SIGTERM and the files ``stop`` and ``pause`` work as
in training.  Two thousand steps take about an hour of one core, for the control and for each stem.

    python benchmarks/specialists.py OUT --stems drums,piano,bass,synth_pad_fx --steps 2000

OUT/comparison.md is the table, OUT/comparison.json has everything, OUT/models/STEM/best.mt3 are the
models and OUT/models/STEM/log.csv how they learned.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import guarded, talk
from mt3_runtime.cli import main as mt3
from mt3_runtime.errors import MT3Error
from mt3_runtime.filesystem.atomic import make_folder, write_atomic
from mt3_runtime.models.installed import resolve_model
from mt3_synthesis.bank import Bank, build_bank, load_bank
from mt3_synthesis.mixer import Palette
from mt3_synthesis.soundfonts import Role, source_named
from mt3_training.runs.checkpointing import RunFolder
from mt3_training.runs.config import PRESETS
from mt3_training.runs.starting_weights import read_start
from mt3_training.stem_training.stem_comparison import (
    COUNT,
    SECONDS,
    compare_stem,
    digest_of,
    recordings,
    table,
)
from mt3_training.stem_training.stem_runs import BUNDLE, export_best, is_complete

STEMS = "drums,piano,bass,synth_pad_fx"


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains what is missing, compares, and writes the table."""
    args = _parser().parse_args(arguments)
    try:
        return _run(args)
    except MT3Error as error:
        talk(f"error: {error}")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="compare specialists with the general model")
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder of runs, models and results")
    add("--stems", default=STEMS, metavar="LIST", help=f"what to train (default: {STEMS})")
    add("--steps", type=int, default=2000, metavar="N", help="of each run (default: 2000)")
    add("--general", default="default", metavar="MODEL", help="what all begin with")
    add("--config", default="stem", metavar="NAME", help="configuration of all runs")
    add("--sounds", default="gmbank", metavar="LIST", help="of the recordings that compare: "
        "collections, or files of banks (default: gmbank)")  # fmt: skip
    add("--final", action="store_true", help="yes, use up sounds that are kept for the end")
    add("--count", type=int, default=COUNT, metavar="N", help=f"recordings a stem ({COUNT})")
    add("--seconds", type=float, default=SECONDS, metavar="S", help=f"of each ({SECONDS:g})")
    add("--threads", type=int, default=2, metavar="N", help="CPU threads (default: 2)")
    add("--workers", type=int, default=1, metavar="N", help="processes that make examples")
    add("--nice", type=int, default=15, metavar="N", help="politeness, 0 to 19 (default: 15)")
    return parser


def _run(args: argparse.Namespace) -> int:
    banks = [_bank(name.strip(), final=args.final) for name in args.sounds.split(",")]
    make_folder(args.out)
    machine = ["--threads", args.threads, "--workers", args.workers, "--nice", args.nice]
    budget = ["--from", args.general, "--steps", args.steps]
    control, models = args.out / "control", args.out / "models"
    begun = [] if (control / "config.json").is_file() else ["--config", _control(args), *budget]
    code = _mt3("train", control, *begun, *machine)
    run = RunFolder.existing(control) if code == 0 else None
    if run is None or not is_complete(run):
        return code or 1
    export_best(run)
    config = ["--config", args.config]
    code = _mt3("train-per-stem", models, "--stems", args.stems, *config, *budget, *machine)
    rows = [_row(args, stem, Palette(banks)) for stem in args.stems.split(",")]
    found = [row for row in rows if row is not None]
    document = {
        "format": "mt3-runtime.specialists",
        "version": 1,
        "steps": args.steps,
        "rows": found,
    }
    write_atomic(args.out / "comparison.json", (json.dumps(document, indent=1) + "\n").encode())
    write_atomic(args.out / "comparison.md", table(found).encode())
    print(table(found), end="")
    return code


def _mt3(*words: object) -> int:
    return mt3(["calibrate", *map(str, words)])


def _control(args: argparse.Namespace) -> Path:
    """The configuration of the stems with general music, as a file."""
    named = Path(args.config)
    config = PRESETS[args.config].to_json() if args.config in PRESETS else named.read_text("utf-8")
    document: dict[str, Any] = json.loads(config)
    document["shape"] = asdict(read_start(args.general).weights.shape)
    for stage in document["stages"]:
        stage |= {"name": "general music", "music": "band"}
    path: Path = args.out / "control.json"
    write_atomic(path, json.dumps(document, indent=1).encode())
    return path


def _bank(name: str, *, final: bool) -> Bank:
    """Sounds to compare with: those of the training would flatter, those of the end are kept."""
    bank = load_bank(name) if name.endswith(".npz") else build_bank(source_named(name))
    role = bank.meta.get("role", Role.CHOICE)
    if role == Role.TRAIN or (role == Role.TEST and not final):
        raise SystemExit(
            f"the sounds {name!r} are for {role!r}: those of the training were learned by heart, "
            "and those of the final test are used up by a look (--final)"
        )
    return bank


def _row(args: argparse.Namespace, stem: str, palette: Palette) -> dict[str, Any] | None:
    """The comparison of a stem, from its file if nothing has changed since."""
    specialist = args.out / "models" / stem / BUNDLE
    if not specialist.exists():
        return None
    bundles = {
        "general": Bundle(resolve_model(args.general)),
        "control": Bundle(args.out / "control" / BUNDLE),
        "specialist": Bundle(specialist),
    }
    some = list(recordings(stem, palette, count=args.count, seconds=args.seconds))
    wanted = digest_of(some), {name: b.manifest.export_id for name, b in bundles.items()}
    kept = args.out / f"compared-{stem}.json"
    if kept.is_file():
        row: dict[str, Any] = json.loads(kept.read_bytes())
        ids = {name: one["export_id"] for name, one in row["contenders"].items()}
        if (row["digest"], ids) == wanted:
            return row
    row = compare_stem(stem, bundles, some, threads=args.threads, say=talk)
    write_atomic(kept, (json.dumps(row, indent=1) + "\n").encode())
    return row


if __name__ == "__main__":
    sys.exit(guarded(main))
