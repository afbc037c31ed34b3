"""`mt3 calibrate train` and `export`: trains a small model, makes a bundle of what was trained."""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.errors import OptionError
from mt3_runtime.filesystem.atomic import write_atomic
from mt3_runtime.imports.extras import named
from mt3_training.runs.checkpointing import SOUNDS, RunFolder
from mt3_training.runs.config import PRESETS, TrainConfig

if TYPE_CHECKING:
    from mt3_training.examples.example_sources import SyntheticSources

DEFAULT_CONFIG = "small"

OVERRIDES = ("hours", "steps", "seed")
"""Options that change a value of the configuration."""


class TrainVerb:
    """`mt3 calibrate train`: begins a training run, or goes on with one."""

    name = "train"
    help = "begin a training run, or go on with one"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the run, its configuration and its budget."""
        add = parser.add_argument
        add("run", metavar="RUN", help="folder of the run")
        add("--config", metavar="NAME", help=f"{', '.join(PRESETS)}, or a JSON file (default: what "
            f"the folder says, and {DEFAULT_CONFIG} for a new one)")  # fmt: skip
        budget = parser.add_mutually_exclusive_group().add_argument
        budget("--hours", type=float, metavar="H", help="train so long")
        budget("--steps", type=int, metavar="N", help="train so many steps, reproducibly")
        add("--seed", type=int, metavar="N", help="of weights and examples")
        add("--device", default="auto", help="auto (default), cpu or cuda[:N]")
        add("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
        add("--workers", type=int, default=1, metavar="N", help="processes that make examples")
        add("--nice", type=int, metavar="N", help="be polite to other programs, 1 to 19")

    def run(self, args: argparse.Namespace) -> int:
        """Trains until the budget is used up, or somebody stops it."""
        _train(args)
        return ExitCode.OK


class ExportVerb:
    """`mt3 calibrate export`: makes a bundle of what was trained; its path goes to stdout."""

    name = "export"
    help = "make a bundle of what was trained"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the run, and what the bundle holds."""
        add = parser.add_argument
        add("run", metavar="RUN", help="folder of the run")
        add("-o", "--output", required=True, metavar="OUT", help="folder or .mt3 file to write")
        add("--weights", choices=("fp16", "fp32"), default="fp16", help="precision of the stored "
            "weights; arithmetic is always fp32 (default: fp16)")  # fmt: skip
        add("--state", choices=("best", "last"), default="best", help="the averaged weights of the "
            "best score (default), or those where the run stands")  # fmt: skip
        add("--profiles", default="cpu", metavar="LIST", help="comma-separated graph profiles: "
            "cpu, portable, compat (default: cpu)")  # fmt: skip
        add("--name", default="default", help="the model's name (default: default)")
        add("--confidence", metavar="FILE", help="how reliable its notes are: what mt3 evaluate "
            "--confidence --json wrote about an earlier export")  # fmt: skip

    def run(self, args: argparse.Namespace) -> int:
        """Writes the bundle."""
        _export(args)
        return ExitCode.OK


def _train(args: argparse.Namespace) -> None:
    _check(args)
    folder = RunFolder.prepare(args.run, _config(args))
    _lower_priority(args.nice)
    with named("Training", "cpu", "calibration", "torch", "viz"):
        from mt3_training.runs.train import Machine, Run  # noqa: PLC0415  torch takes 2 s to import
    from mt3_training.examples.example_sources import SyntheticSources  # noqa: PLC0415

    sources = SyntheticSources(folder.config)
    machine = Machine(args.device, args.threads, args.workers)
    with folder.locked(), _deferred_signals() as signals:
        _remember_sounds(folder, sources)
        with Run(folder, sources, machine, talk) as run:
            complete = run.train(lambda: bool(signals))
    if signals:
        talk(f"saved at step {run.position.step}; the same command goes on from there")
        signal.raise_signal(signals[0])  # now it may do what it always does
    talk("complete" if complete else f"stopped at step {run.position.step}; saved")
    print(folder.path)


def _check(args: argparse.Namespace) -> None:
    for name, low, high in (("threads", 1, 1024), ("workers", 0, 1024), ("nice", 0, 19)):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise OptionError(f"--{name} is {value}; expected {low} to {high}.")
    if args.device not in ("auto", "cpu") and not args.device.startswith("cuda"):
        raise OptionError(f"--device is {args.device!r}; expected auto, cpu or cuda[:N].")


def _config(args: argparse.Namespace) -> TrainConfig | None:
    """The configuration that was asked for; None if that is whatever the folder says."""
    changes = {n: getattr(args, n) for n in OVERRIDES if getattr(args, n) is not None}
    there = (Path(args.run) / "config.json").is_file()
    if args.config is None and there and not changes:
        return None
    if args.config is None:
        base = RunFolder.existing(args.run).config if there else PRESETS[DEFAULT_CONFIG]
    elif args.config in PRESETS:
        base = PRESETS[args.config]
    else:
        try:
            base = TrainConfig.from_json(Path(args.config).read_bytes(), args.config)
        except OSError as error:
            raise OptionError(
                f"--config is {args.config!r}, which is neither a file that can be read "
                f"({error.strerror}) nor one of {', '.join(PRESETS)}."
            ) from error
    budget = {"hours": None, "steps": None} if {"hours", "steps"} & set(changes) else {}
    return replace(base, **{**budget, **changes})


def _lower_priority(nice: int | None) -> None:
    if nice is not None and hasattr(os, "nice"):
        os.nice(nice)


def _remember_sounds(folder: RunFolder, sources: SyntheticSources) -> None:
    """Writes down what a run sounds like; refuses to go on with other sounds.

    Raises:
        OptionError: The sounds have changed since the run began.
    """
    sounds = json.loads(json.dumps(sources.describe()))
    file = folder.path / SOUNDS
    if not file.exists():
        write_atomic(file, json.dumps(sounds, indent=1).encode())
    elif json.loads(file.read_bytes()) != sounds:
        raise OptionError(
            f"the sounds of the run are not those it began with (see {file}); put those back, or "
            "begin a run in a new folder"
        )


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM instead of obeying them; a second one is obeyed at once."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        restore()
        with suppress(OSError):  # print must not be used here: it may be what was interrupted
            os.write(2, b"mt3: stopping after this step; once more to stop at once\n")

    def restore() -> None:
        for number in numbers:
            signal.signal(number, before[number])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()


def _export(args: argparse.Namespace) -> None:
    from mt3_training.shipping.trained import export_run, read_confidence  # noqa: PLC0415  onnx: 0.3 s

    manifest = export_run(
        RunFolder.existing(args.run),
        args.output,
        which=args.state,
        storage=args.weights,
        name=args.name,
        profiles=[name.strip() for name in args.profiles.split(",")],
        confidence=read_confidence(args.confidence) if args.confidence else None,
    )
    talk(f"{manifest.name}: step {manifest.source['step']}; {manifest.licence}")
    for graph in manifest.graphs:
        talk(f"{graph.file}: {graph.size / 2**20:.1f} MiB")
    print(args.output)
