"""`mt3 calibrate train` and `export`: trains a small model, makes a bundle of what was trained."""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.errors import OptionError
from mt3_runtime.filesystem.atomic import write_atomic
from mt3_runtime.imports.extras import named
from mt3_runtime.notes.stems import STEMS
from mt3_training.examples.batches import Sources
from mt3_training.runs.checkpointing import SOUNDS, RunFolder
from mt3_training.train_options import (
    add_machine,
    add_training,
    check_machine,
    planned,
    policy_help,
)


class TrainVerb:
    """`mt3 calibrate train`: begins a training run, or goes on with one."""

    name = "train"
    help = "begin a training run, or go on with one"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the run, its configuration and its budget."""
        add = parser.add_argument
        add("run", metavar="RUN", help="folder of the run")
        add("--stem", choices=[stem.name for stem in STEMS], help="what the model is for: it "
            "learns this stem's music alone (default: anything)")  # fmt: skip
        add("--policy", metavar="NAME", help="weights of losses, and augmentation: "
            f"{policy_help()} (default: that of the stem's role)")  # fmt: skip
        add_training(parser)
        add_machine(parser)

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
        add("--name", help="the model's name (default: default, or that of the stem)")
        add("--stem", choices=[stem.name for stem in STEMS], help="what the model is for: it is "
            "preferred for this stem (default: what the run trained, else anything)")  # fmt: skip
        add("--confidence", metavar="FILE", help="how reliable its notes are: what mt3 evaluate "
            "--confidence --json wrote about an earlier export")  # fmt: skip

    def run(self, args: argparse.Namespace) -> int:
        """Writes the bundle."""
        _export(args)
        return ExitCode.OK


def _train(args: argparse.Namespace) -> None:
    check_machine(args)
    lower_priority(args.nice)
    folder = planned(args, args.run, stem=args.stem or "", policy=args.policy).folder(args.run)
    train_folder = trainer(args)
    with deferred_signals() as signals:
        step, complete = train_folder(folder, lambda: bool(signals))
    if signals:
        talk(f"saved at step {step}; the same command goes on from there")
        signal.raise_signal(signals[0])  # now it may do what it always does
    talk("complete" if complete else f"stopped at step {step}; saved")
    print(folder.path)


def trainer(
    args: argparse.Namespace,
) -> Callable[[RunFolder, Callable[[], bool]], tuple[int, bool]]:
    """What trains a run on the machine of the options; returns the step, and whether it is done.

    Raises:
        MissingDependencyError: What training needs is not installed.
    """
    with named("Training", "cpu", "calibration", "torch", "viz"):
        from mt3_training.runs.train import Machine, Run  # noqa: PLC0415  torch takes 2 s to import

    def train_folder(folder: RunFolder, should_stop: Callable[[], bool]) -> tuple[int, bool]:
        sources = open_sources(folder)
        machine = Machine(args.device, args.threads, args.workers)
        with folder.locked():
            remember_sounds(folder, sources)
            with Run(folder, sources, machine, talk) as run:
                complete = run.train(should_stop)
                return run.position.step, complete

    return train_folder


def lower_priority(nice: int | None) -> None:
    """Makes this process polite to others."""
    if nice is not None and hasattr(os, "nice"):
        os.nice(nice)


def open_sources(folder: RunFolder) -> DescribedSources:
    """Where a run's examples come from: recordings, or music that is made up.

    Raises:
        OptionError: The list of recordings is not where it was, or another one.
    """
    if not folder.config.index:
        from mt3_training.examples.example_sources import SyntheticSources  # noqa: PLC0415

        return SyntheticSources(folder.config)
    from mt3_training.examples.recorded_examples import (  # noqa: PLC0415
        RecordedSources,
        index_digest,
    )

    index = Path(folder.origins().get("index", ""))
    if index_digest(index) != folder.config.index:
        raise OptionError(
            f"{index} is not the list of recordings that the run began with; name the right one "
            "with --index, or begin a run in a new folder"
        )
    return RecordedSources(folder.config, index)


class DescribedSources(Sources, Protocol):
    """Sources that say what they sound like."""

    def describe(self) -> list[dict[str, Any]]:
        """Name, licence, credit and digests of each collection."""


def remember_sounds(folder: RunFolder, sources: DescribedSources) -> None:
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
def deferred_signals() -> Iterator[list[int]]:
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
        stem=args.stem,
        profiles=[name.strip() for name in args.profiles.split(",")],
        confidence=read_confidence(args.confidence) if args.confidence else None,
    )
    talk(f"{manifest.name}: step {manifest.source['step']}; {manifest.licence}")
    for graph in manifest.graphs:
        talk(f"{graph.file}: {graph.size / 2**20:.1f} MiB")
    print(args.output)
