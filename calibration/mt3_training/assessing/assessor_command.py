"""`mt3 calibrate assessor`: makes examples, trains assessing networks, judges exported ones."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.errors import OptionError
from mt3_runtime.filesystem.atomic import write_atomic
from mt3_runtime.imports.extras import named
from mt3_training.assessing.assessor_config import PRESETS, AssessorTraining, for_fusion
from mt3_training.assessing.assessor_examples import read_examples

ACTIONS = ("examples", "probe", "pretrain", "train", "report")


class AssessorVerb:
    """Networks that assess performances: from a table of takes to a report."""

    name = "assessor"
    help = "train networks that assess performances, and judge them"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the actions' arguments."""
        add = parser.add_argument
        add("action", choices=ACTIONS, help="examples: of a table of takes; probe: what labels "
            "are worth; pretrain: the MIDI encoder; train; report: on exported ones")  # fmt: skip
        add("source", metavar="SOURCE", help="a table of takes (examples), or their folder")
        add("-b", "--bundle", metavar="BUNDLE", help="exported networks: whose audio encoder makes "
            "frames (examples), or that are judged (report)")  # fmt: skip
        add("-o", "--output", metavar="OUT", help="folder of the examples or of the run; file "
            "of the report as JSON")  # fmt: skip
        add(
            "--config",
            metavar="NAME",
            help=f"{', '.join(PRESETS)}, or a JSON file (default: plain)",
        )
        add("--fusion", metavar="NAME", help="gated (default), concat, cross, audio or midi")
        add(
            "--steps",
            type=int,
            metavar="N",
            help="of the optimiser (default: of the configuration)",
        )
        add("--seed", type=int, metavar="N", help="of weights, order and dropout")
        add("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
        add("--device", default="cpu", help="cpu (default) or cuda[:N]")
        add("--all", action="store_true", help="report on all recordings, not on the judged ones "
            "alone")  # fmt: skip

    def run(self, args: argparse.Namespace) -> int:
        """Does what was asked for; the folder that was written, or the report, goes to stdout."""
        {
            "examples": _examples,
            "probe": _probe,
            "pretrain": _pretrain,
            "train": _train,
            "report": _report,
        }[args.action](args)
        return ExitCode.OK


def _output(args: argparse.Namespace) -> Path:
    if not args.output:
        raise OptionError(f"{args.action} needs -o, the name of a folder.")
    return Path(args.output)


def _bundle(args: argparse.Namespace) -> str:
    if not args.bundle:
        raise OptionError(f"{args.action} needs -b, a bundle that `mt3 export` wrote.")
    return str(args.bundle)


def _examples(args: argparse.Namespace) -> None:
    from mt3_analysis.assessment_networks.network_session import (  # noqa: PLC0415
        open_assessor_networks,
    )
    from mt3_training.assessing.take_table import make_examples  # noqa: PLC0415

    folder, networks = _output(args), open_assessor_networks(_bundle(args))
    count = make_examples(Path(args.source), networks, folder)
    talk(f"{count} examples")
    print(folder)


def _probe(args: argparse.Namespace) -> None:
    from mt3_training.assessing.assessor_judgement import probe  # noqa: PLC0415

    for found in probe(read_examples(Path(args.source))):
        print(f"{'FLAG' if found.flagged else 'ok':4}  {found.check}: {found.said}")


def _config(args: argparse.Namespace) -> AssessorTraining:
    from dataclasses import replace  # noqa: PLC0415

    name = args.config or "plain"
    if name in PRESETS:
        config = PRESETS[name]
    else:
        try:
            config = AssessorTraining.from_json(Path(name).read_bytes(), name)
        except OSError as error:
            raise OptionError(
                f"--config is {name!r}; expected {', '.join(PRESETS)}, or a JSON file "
                f"({error.strerror})."
            ) from error
    if args.fusion is not None:
        config = for_fusion(config, args.fusion)
    for option, low in (("steps", 1), ("seed", 0)):
        value = getattr(args, option)
        if value is not None:
            if not low <= value < 1 << 24:
                raise OptionError(f"--{option} is {value}; expected {low} or more.")
            config = replace(config, **{option: value})
    return config


def _threads(args: argparse.Namespace) -> int:
    found: int = args.threads
    if not 1 <= found <= 1024:
        raise OptionError(f"--threads is {found}; expected 1 to 1024.")
    return found


def _pretrain(args: argparse.Namespace) -> None:
    folder, config = _output(args), _config(args)
    examples = read_examples(Path(args.source))
    with named("Training", "cpu", "calibration", "export", "torch"):
        from mt3_training.assessing.midi_pretraining import MaskedPretraining  # noqa: PLC0415
    notes = [item.notes for item in examples.part(judged=False).items]
    with _held_signals() as signals:
        run = MaskedPretraining(folder, config, notes, threads=_threads(args))
        run.train(config.steps, lambda: bool(signals))
    talk(f"stands at step {run.step} of {config.steps}")
    print(folder)


def _train(args: argparse.Namespace) -> None:
    folder, config = _output(args), _config(args)
    examples = read_examples(Path(args.source))
    with named("Training", "cpu", "calibration", "export", "torch"):
        from mt3_training.assessing.assessor_learner import (  # noqa: PLC0415  torch takes 2 s
            NETWORK,
            AssessorLearner,
        )
    with _held_signals() as signals:
        run = AssessorLearner(folder, config, examples, device=args.device, threads=_threads(args))
        complete = run.train(lambda: bool(signals))
    if not complete:
        talk(f"saved at step {run.step}; the same command goes on from there")
        signal.raise_signal(signals[0])  # now it may do what it always does
    talk(f"complete at step {run.step}: r {run.best:.3f} on the judged recordings")
    print(folder / NETWORK)


def _report(args: argparse.Namespace) -> None:
    from mt3_analysis.assessment_networks.network_session import (  # noqa: PLC0415
        open_assessor_networks,
    )
    from mt3_training.assessing.assessor_judgement import judge  # noqa: PLC0415

    examples = read_examples(Path(args.source))
    judged = examples if args.all else examples.part(judged=True)
    report = judge(open_assessor_networks(_bundle(args)), judged)
    if args.output:
        write_atomic(Path(args.output), (json.dumps(report.to_dict(), indent=1) + "\n").encode())
    print(report.text(), end="")


@contextmanager
def _held_signals() -> Iterator[list[int]]:
    """Collects interrupts and terminations, so that a step is never cut in two."""
    found: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        found.append(number)

    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, note) for kind in kinds]
    try:
        yield found
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
