"""`mt3 calibrate train-per-stem`: trains a model for each stem, one after the other."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.errors import MT3Error, OptionError
from mt3_runtime.models.cache import cache_dir
from mt3_runtime.notes.stems import STEMS, stem_named
from mt3_synthesis.stem_music import NO_VOCALS, SINGERS
from mt3_training.runs.checkpointing import CONFIG, RunFolder
from mt3_training.stem_training.stem_runs import BUNDLE, NoDataError, StemRuns, remembered
from mt3_training.stem_training.stem_summary import StemResult
from mt3_training.train_command import deferred_signals, lower_priority, open_sources, trainer
from mt3_training.train_options import (
    add_machine,
    add_training,
    check_machine,
    index_file,
    planned,
    policy_help,
    stems_named,
)

SCRATCH = "none"
"""Stands for fresh weights."""

REMEMBERED = ("stems", "policy", "config", "hours", "steps", "epochs", "batch_size", "clip_seconds",
    "lr", "seed", "start", "index")  # fmt: skip
"""Options that decide what comes out; a folder of models keeps them."""

DEFAULTS: Mapping[str, Any] = {"stems": "all", "policy": [], "start": "default"}


class StemVerb:
    """`mt3 calibrate train-per-stem`: trains a model for each stem."""

    name = "train-per-stem"
    help = "train a model for each stem, or go on with it"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the folder of the models, the stems and the options of each run."""
        add = parser.add_argument
        add("models", metavar="MODELS", help="folder of the models; a run folder per stem")
        add("--stems", metavar="LIST", help="all, or some with commas between them (default: all)")
        add("--policy", action="append", metavar="STEM=NAME", help="weights of losses, and "
            f"augmentation, of a stem: {policy_help()} (default: those of its role)")  # fmt: skip
        add_training(parser)
        add("--install", nargs="?", const="better", choices=("better", "all"), help="install the "
            "models that are better than what they began with, or all (default: none)")  # fmt: skip
        add_machine(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Trains, and says what became of each stem; 1 if one failed."""
        return _train(args)


def _train(args: argparse.Namespace) -> int:
    check_machine(args)
    lower_priority(args.nice)
    options = _options(args)
    chosen = _policies(args.policy)
    stems = stems_named(args.stems)
    if stems == [SINGERS] and args.index is None:
        raise OptionError(NO_VOCALS)
    _check_words(args, stems, chosen)
    runs = StemRuns(Path(args.models), stems, options, talk)

    def prepare(stem: str, place: Path) -> RunFolder:
        if (place / CONFIG).is_file():  # begun with the same options, which the folder keeps
            return RunFolder.existing(place)
        _check_data(args, stem)
        return planned(args, place, stem=stem, policy=chosen.get(stem)).folder(place)

    with runs.locked(), deferred_signals() as signals:
        results = runs.train(
            prepare,
            trainer(args),
            open_sources,
            should_stop=lambda: bool(signals),
            threads=args.threads,
        )
    if args.install and not signals:
        results = [_install(result, runs.models, args.install) for result in results]
        runs.keep(results)
    if signals:
        talk("saved; the same command goes on from there")
        signal.raise_signal(signals[0])  # now it may do what it always does
    print(runs.models)
    return ExitCode.FAILED if any(r.status == "failed" for r in results) else ExitCode.OK


def _check_words(args: argparse.Namespace, stems: list[str], policies: Mapping[str, str]) -> None:
    """Refuses options that no stem could be trained with, before anything is written."""
    for stem in stems:
        place = Path(args.models) / stem
        if (place / CONFIG).is_file():
            return
        try:
            _check_data(args, stem)
        except NoDataError:
            continue
        planned(args, place, stem=stem, policy=policies.get(stem))
        return


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What the folder of models was begun with, where nothing is named; fills in ``args``."""
    named = {name: getattr(args, name) for name in REMEMBERED}
    if named["index"] is not None:
        named["index"] = str(Path(named["index"]).absolute())
    known = remembered(Path(args.models))
    if known is not None and all(value is None for value in named.values()):
        found = known
    else:
        found = {n: DEFAULTS.get(n) if v is None else v for n, v in named.items()}
    for name in REMEMBERED:
        setattr(args, name, found.get(name))
    if args.start == SCRATCH:
        args.start = None
    return found


def _policies(texts: list[str]) -> dict[str, str]:
    """Policies by stem."""
    found = {}
    for text in texts:
        stem, equals, name = text.partition("=")
        if not equals or not name:
            raise OptionError(
                f"--policy is {text!r}; expected STEM=NAME, such as bass=harmonic, with one of "
                f"{', '.join(stem.name for stem in STEMS)}."
            )
        found[stem_named(stem).name] = name
    return found


def _check_data(args: argparse.Namespace, stem: str) -> None:
    """Says which stems have nothing to be trained with."""
    if args.index is None:
        if stem == SINGERS:
            raise NoDataError(NO_VOCALS)
        return
    if not Path(args.index).is_dir():
        raise OptionError(
            f"--index {args.index} is a file, which lists one stem; name the folder of all, or "
            "train this stem with: mt3 calibrate train --stem STEM --index FILE"
        )
    from mt3_training.examples.recorded_examples import (  # noqa: PLC0415
        TRAINED_SPLIT,
        stems_of_split,
    )

    try:
        file = index_file(args.index, stem)
    except OptionError as error:
        raise NoDataError(str(error)) from error
    if not stems_of_split(file, TRAINED_SPLIT):
        raise NoDataError(f"{file} has no recordings of the split {TRAINED_SPLIT!r}")


def _install(result: StemResult, models: Path, which: str) -> StemResult:
    """Copies a model to where it is found by its stem, unless it is not worth it."""
    if result.status != "complete":
        return result
    found = result.judgement
    if which == "better" and (found is None or not found.is_better):
        gain = found.gain if found else "-"
        talk(f"{result.stem}: not installed, as it is not surely better than what it began with "
            f"(gain {gain}); --install all installs it nevertheless")  # fmt: skip
        return result
    from mt3_training.shipping.trained import export_run  # noqa: PLC0415  onnx: 0.3 s

    name = f"stem_{result.stem}"
    target = cache_dir() / "bundles" / f"{name}{Path(BUNDLE).suffix}"
    try:
        export_run(RunFolder.existing(models / result.stem), target)
    except MT3Error as error:
        talk(f"{result.stem}: not installed: {error}")
        return replace(result, status="failed", reason=f"not installed: {error}")
    talk(f"{result.stem}: installed as {name}")
    return replace(result, installed=name)
