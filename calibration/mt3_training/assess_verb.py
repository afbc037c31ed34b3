"""`mt3 calibrate assess`: sets, scales, references and style heads for `mt3 assess`."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.errors import OptionError

MIDI = ("*.mid", "*.midi")


class AssessVerb:
    """`mt3 calibrate assess`: makes what `mt3 assess` judges by."""

    name = "assess"
    help = "make degraded performances, scales, references and style heads"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds what can be made."""
        makes = parser.add_subparsers(dest="makes", required=True, metavar="WHAT")
        one = makes.add_parser("degrade", help="spoil the performances of a folder, kind by kind")
        one.add_argument("folder", metavar="MIDI_DIR", help="folder of MIDI files")
        one.add_argument("-o", "--output", required=True, metavar="DIR", help="new folder")
        one.add_argument("--kinds", metavar="LIST", help="comma-separated (default: all)")
        one.add_argument("--levels", default="0.25,0.5,1", metavar="LIST", help="0..1 "
            "(default: 0.25,0.5,1)")  # fmt: skip
        one.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
        two = makes.add_parser("scale", help="make the scale of execution that the package holds")
        two.add_argument("-o", "--output", default="-", metavar="FILE", help="default: stdout")
        two.add_argument("--pieces", type=int, default=40, metavar="N", help="default: 40")
        three = makes.add_parser("style", help="train a style head with a copy of PercePiano")
        three.add_argument("folder", metavar="PERCEPIANO_DIR", help="copy of its repository")
        three.add_argument("-o", "--output", required=True, metavar="BUNDLE", help="new folder")
        three.add_argument("--report", metavar="FILE", help="write figures of all 19 scales")
        three.add_argument("--folds", metavar="FILE", help="published folds, for the report")
        three.add_argument("--unverified", action="store_true", help="labels may be others")
        four = makes.add_parser("reference", help="make percentiles of performances one has")
        four.add_argument("takes", nargs="+", metavar="TAKE", help="MIDI files, or folders of them")
        four.add_argument("--scores", metavar="DIR", help="their scores, of the same names")
        four.add_argument("--style", metavar="BUNDLE", help="judge style as well")
        four.add_argument("-o", "--output", required=True, metavar="FILE", help="JSON file")

    def run(self, args: argparse.Namespace) -> int:
        """Makes it."""
        makers = {"degrade": _degrade, "scale": _scale, "style": _style, "reference": _reference}
        makers[args.makes](args)
        return ExitCode.OK


def _degrade(args: argparse.Namespace) -> None:
    from mt3_analysis.assessment.performance import Performance  # noqa: PLC0415  NumPy, mido
    from mt3_runtime.errors import OutputError  # noqa: PLC0415
    from mt3_runtime.filesystem.atomic import make_folder, write_atomic  # noqa: PLC0415
    from mt3_training.performance_sets.degradation import KINDS, degraded  # noqa: PLC0415
    from mt3_training.performance_sets.performance_files import midi_bytes  # noqa: PLC0415

    kinds = list(KINDS) if args.kinds is None else args.kinds.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise OptionError(f"no kind {unknown[0]!r}; there are {', '.join(KINDS)}.")
    levels, files = _levels(args.levels), _midi_files([args.folder])
    out = Path(args.output)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is there already; name a new folder.")
    make_folder(out)
    rows = []
    for number, file in enumerate(files):
        take = Performance.from_midi(file)
        if not len(take):
            talk(f"{file}: no notes; passed over")
            continue
        versions = [("none", 0.0), *((kind, level) for kind in kinds for level in levels)]
        for kind, level in versions:
            made = take if kind == "none" else degraded(take, kind, level, seed=args.seed + number)
            name = f"{number:04d}-{kind}-{level:.2f}.mid"
            data = midi_bytes(made)
            write_atomic(out / name, data)
            digest = hashlib.sha256(data).hexdigest()
            rows.append({"file": name, "source": file.name, "group": file.stem, "kind": kind,
                         "level": level, "sha256": digest})  # fmt: skip
    content = {"format": "mt3-runtime.degraded-performances", "version": 1, "seed": args.seed,
               "files": rows}  # fmt: skip
    write_atomic(out / "set.json", (json.dumps(content, indent=1) + "\n").encode())
    talk(f"{len(rows)} files of {len(files)} performances")
    print(out)  # noqa: T201  the result of the verb


def _scale(args: argparse.Namespace) -> None:
    from mt3_runtime.filesystem.atomic import write_output  # noqa: PLC0415
    from mt3_training.performance_sets.execution_levels import (  # noqa: PLC0415
        TRAINING_SEEDS,
        make_scale,
    )

    if not 2 <= args.pieces <= 1000:
        raise OptionError(f"--pieces is {args.pieces}; expected 2 to 1000.")
    first = TRAINING_SEEDS[0]
    write_output(args.output, make_scale(range(first, first + args.pieces), talk))


def _style(args: argparse.Namespace) -> None:
    from mt3_runtime.filesystem.atomic import write_output  # noqa: PLC0415
    from mt3_training.performance_sets.percepiano import (  # noqa: PLC0415
        read_folds,
        read_percepiano,
    )
    from mt3_training.performance_sets.style_training import report, train_style  # noqa: PLC0415

    rated = read_percepiano(Path(args.folder), verify=not args.unverified, told=talk)
    for name, reason in list(rated.left_out.items())[:5]:
        talk(f"left out: {name}: {reason}")
    talk(f"{len(rated.names)} recordings, {len(rated.left_out)} left out")
    manifest = train_style(rated, Path(args.output), told=talk)
    for each in manifest.dimensions:
        talk(f"{each.name}: r {each.r:.2f}, pairs {each.pairs:.2f} on unseen excerpts")
    if args.report:
        folds = None if args.folds is None else read_folds(Path(args.folds), rated.names)
        write_output(args.report, (report(rated, folds) + "\n").encode())
    print(args.output)  # noqa: T201  the result of the verb


def _reference(args: argparse.Namespace) -> None:
    from mt3_analysis.assessment.judging.reference_knots import make_reference  # noqa: PLC0415
    from mt3_analysis.assessment.performance_assessment import assess  # noqa: PLC0415  NumPy
    from mt3_runtime.filesystem.atomic import check_output, write_output  # noqa: PLC0415

    files = _midi_files(args.takes)
    check_output(args.output, files)
    scores = {} if args.scores is None else {p.stem: p for p in Path(args.scores).iterdir()}
    found = []
    for file in files:
        try:
            found.append(assess(file, score=scores.get(file.stem), style=args.style))
        except OptionError as error:
            talk(f"left out: {error}")
    write_output(args.output, make_reference(found))


def _levels(text: str) -> list[float]:
    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError:
        levels = [math.nan]
    if not all(0.0 < level <= 1.0 for level in levels):
        raise OptionError(f"--levels is {text!r}; expected numbers above 0, up to 1.")
    return levels


def _midi_files(given: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, given):
        inside = sorted(file for pattern in MIDI for file in path.glob(pattern))
        if path.is_dir() and not inside:
            raise OptionError(f"{path} holds no MIDI files.")
        if not path.exists():
            raise OptionError(f"{path} does not exist; expected MIDI files or a folder of them.")
        found += inside if path.is_dir() else [path]
    return found
