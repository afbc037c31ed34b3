"""Options of training commands: which configuration they ask for, and what a run begins with.

Contract: `add_training`, `add_stem` and `add_machine` add options; `planned` turns what was typed
into a configuration with its starting weights and its list of recordings, or says in one sentence
what contradicts what.  Where a run exists already, what is not named is what its folder says.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mt3_export.weights import Weights
from mt3_runtime.errors import OptionError
from mt3_runtime.notes.stems import STEMS, stem_named
from mt3_synthesis.stem_music import NO_VOCALS, SINGERS
from mt3_training.runs.checkpointing import CONFIG, RunFolder
from mt3_training.runs.config import FULL_FRAMES, PRESETS, Stage, TrainConfig
from mt3_training.runs.role_policies import NONE, policies, policy_for

DEFAULT_CONFIG = "small"

STEM_CONFIG = "stem"
"""Configuration of runs for one stem that go on from other weights."""

STEM_MUSIC = "stem"
"""Kind of music of the stages of such runs."""

FRAMES_PER_SECOND = 125.0
"""At 16 kHz with hops of 128 samples."""

INDEX_FILES = ("filtered_dataset_{stem}.json", "dataset_{stem}.json")
"""Lists of recordings of a stem in a folder of ``mt3 calibrate index``; the first found counts."""


@dataclass(frozen=True)
class Planned:
    """What a command asks for.

    Attributes:
        config: The run; None: what its folder says.
        start: Weights that a new run begins with; None for fresh ones.
        origins: See `RunFolder.origins`.
    """

    config: TrainConfig | None
    start: Weights | None
    origins: Mapping[str, str]

    def folder(self, path: str | os.PathLike[str]) -> RunFolder:
        """The run's folder, made or checked.

        Raises:
            OptionError: As of `RunFolder.prepare`.
            OutputError: As there.
        """
        folder = RunFolder.prepare(path, self.config, self.start.tensors if self.start else None)
        folder.remember(**self.origins)
        return folder


def add_training(parser: argparse.ArgumentParser) -> None:
    """Adds the configuration and its budget."""
    add = parser.add_argument
    add("--config", metavar="NAME", help=f"{', '.join(PRESETS)}, or a JSON file (default: what the "
        f"folder says; for a new run {DEFAULT_CONFIG}, or {STEM_CONFIG} with --from)")  # fmt: skip
    budget = parser.add_mutually_exclusive_group().add_argument
    budget("--hours", type=float, metavar="H", help="train so long")
    budget("--steps", type=int, metavar="N", help="train so many steps, reproducibly")
    budget("--epochs", type=float, metavar="N", help="hear all recordings so often, with --index")
    add("--batch-size", type=int, metavar="N", help="examples per step")
    add("--clip-seconds", type=float, metavar="S", help="length of an example, up to 2.048")
    add("--lr", type=float, metavar="R", help="highest learning rate")
    add("--seed", type=int, metavar="N", help="of weights and examples")
    add("--from", dest="start", metavar="MODEL", help="begin with the weights of a bundle trained "
        "here, such as default, or of another run")  # fmt: skip
    add("--index", metavar="PLACE", help="train on recordings: folder or file that mt3 calibrate "
        "index wrote (default: on music that is made up)")  # fmt: skip


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Adds what decides how fast a run goes."""
    add = parser.add_argument
    add("--device", default="auto", help="auto (default), cpu or cuda[:N]")
    add("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    add("--workers", type=int, default=1, metavar="N", help="processes that make examples")
    add("--nice", type=int, metavar="N", help="be polite to other programs, 1 to 19")


def policy_help() -> str:
    """What may be said of policies."""
    return f"{', '.join(policies())}, {NONE}, or a JSON file"


def check_machine(args: argparse.Namespace) -> None:
    """Checks what `add_machine` added.

    Raises:
        OptionError: A value is out of range.
    """
    for name, low, high in (("threads", 1, 1024), ("workers", 0, 1024), ("nice", 0, 19)):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise OptionError(f"--{name} is {value}; expected {low} to {high}.")
    if args.device not in ("auto", "cpu") and not args.device.startswith("cuda"):
        raise OptionError(f"--device is {args.device!r}; expected auto, cpu or cuda[:N].")


def planned(
    args: argparse.Namespace, run: str | os.PathLike[str], *, stem: str, policy: str | None
) -> Planned:
    """What the options ask of a run.

    Args:
        args: Those of `add_training`.
        run: The run's folder, which need not exist.
        stem: What the model is for; empty for anything, or for what the folder says.
        policy: The policy's name or file; None for the one of the stem's role.

    Raises:
        OptionError: Options contradict each other, or the folder's configuration cannot be read.
    """
    there = (Path(run) / CONFIG).is_file()
    begun = RunFolder.existing(run).config if there else None
    named = [args.config, args.hours, args.steps, args.epochs, args.batch_size, args.clip_seconds]
    named += [args.lr, args.seed, args.start, args.index, stem or None, policy]
    if begun is not None and all(value is None for value in named):
        return Planned(None, None, {})
    stem = stem or (begun.stem if begun else "")
    if stem == SINGERS and args.index is None and not (begun and begun.index):
        raise OptionError(NO_VOCALS)
    start, origins = _start(args.start)
    index = index_file(args.index, stem) if args.index is not None else None
    config = begun if begun and args.config is None else _base(args, stem, start)
    if stem and not (begun and begun.stem == stem and policy is None):
        config = replace(config, stem=stem, policy=policy_for(stem, policy))
    elif policy is not None:
        raise OptionError("--policy is for a stem; name one with --stem.")
    if start is not None:
        from mt3_training.shipping.small_model import digest  # noqa: PLC0415  onnx: 0.3 s

        config = replace(config, start=digest(start), shape=_shape(args, config, start))
    if index is not None:
        from mt3_training.examples.recorded_examples import index_digest  # noqa: PLC0415

        config = replace(config, index=index_digest(index))
        origins["index"] = str(index)
    return Planned(_changed(args, config, index), start, origins)


def index_file(place: str, stem: str) -> Path:
    """The list of recordings of a stem: a file, or the one in a folder.

    Raises:
        OptionError: There is none.
    """
    path = Path(place).absolute()
    if not path.is_dir():
        return path
    if not stem:
        raise OptionError(f"--index {place} is a folder; name a stem with --stem, or a file.")
    for name in INDEX_FILES:
        file = path / name.format(stem=stem)
        if file.is_file():
            return file
    raise OptionError(
        f"{place} has no {INDEX_FILES[1].format(stem=stem)}: no recordings of the stem {stem} are "
        "known. Make one with: mt3 calibrate index DATASET -o DIR"
    )


def stems_named(text: str) -> list[str]:
    """Stems from a list with commas, or all of them; in the order of `STEMS`.

    Raises:
        OptionError: A name is none, or nothing is named.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return [stem.name for stem in STEMS]
    if not names:
        raise OptionError("--stems names none; expected all, or some with commas between them.")
    wanted = {stem_named(name).name for name in names}
    return [stem.name for stem in STEMS if stem.name in wanted]


def _start(source: str | None) -> tuple[Weights | None, dict[str, str]]:
    if source is None:
        return None, {}
    from mt3_training.runs.starting_weights import read_start  # noqa: PLC0415  onnx: 0.3 s

    found = read_start(source)
    return found.weights, {"start": found.name}


def _base(args: argparse.Namespace, stem: str, start: Weights | None) -> TrainConfig:
    """The configuration that is named, or the usual one."""
    if args.config is not None and args.config not in PRESETS:
        try:
            return TrainConfig.from_json(Path(args.config).read_bytes(), args.config)
        except OSError as error:
            raise OptionError(
                f"--config is {args.config!r}, which is neither a file that can be read "
                f"({error.strerror}) nor one of {', '.join(PRESETS)}."
            ) from error
    usual = STEM_CONFIG if stem and start is not None else DEFAULT_CONFIG
    config = PRESETS[args.config or usual]
    if not stem:
        return config
    stages = tuple(replace(stage, music=STEM_MUSIC) for stage in config.stages)
    return replace(config, stages=stages, corpus=0.0)


def _shape(args: argparse.Namespace, config: TrainConfig, start: Weights) -> Any:
    """The starting weights' sizes; a configuration file has to say the same."""
    if args.config is not None and args.config not in PRESETS and config.shape != start.shape:
        raise OptionError(
            f"{args.config} asks for {config.shape}, and {args.start} has {start.shape}; give both "
            "the same sizes, or leave --from out."
        )
    return start.shape


def _changed(args: argparse.Namespace, config: TrainConfig, index: Path | None) -> TrainConfig:
    """The configuration with the single values that were named."""
    stages = config.stages
    if args.clip_seconds is not None:
        stages = (replace(stages[-1], frames=_frames(args.clip_seconds)),)
    if args.batch_size is not None:
        if args.batch_size < 1:
            raise OptionError(f"--batch-size is {args.batch_size}; expected 1 or more.")
        stages = tuple(replace(stage, batch=args.batch_size) for stage in stages)
    changes: dict[str, Any] = {"stages": stages}
    if args.seed is not None:
        changes["seed"] = args.seed
    if args.lr is not None:
        changes["rate"] = args.lr
    if args.epochs is not None:
        changes |= {"hours": None, "steps": _steps(args.epochs, stages, index)}
    elif args.hours is not None or args.steps is not None:
        changes |= {"hours": args.hours, "steps": args.steps}
    return replace(config, **changes)


def _frames(seconds: float) -> int:
    longest = FULL_FRAMES / FRAMES_PER_SECOND
    if not 0.0 < seconds <= longest:
        raise OptionError(
            f"--clip-seconds is {seconds:g}; expected more than 0 and at most {longest:g}, a "
            "segment of the model. Longer recordings are cut into such pieces anyway."
        )
    return max(1, round(seconds * FRAMES_PER_SECOND))


def _steps(epochs: float, stages: tuple[Stage, ...], index: Path | None) -> int:
    """Steps in which recordings are heard so often."""
    if index is None:
        raise OptionError(
            "--epochs counts how often recordings are heard, and music that is made up has no end; "
            "name --steps or --hours, or recordings with --index."
        )
    if not 0.0 < epochs < math.inf:
        raise OptionError(f"--epochs is {epochs:g}; expected a number above 0.")
    from mt3_training.examples.recorded_examples import (  # noqa: PLC0415
        TRAINED_SPLIT,
        stems_of_split,
    )

    seconds = sum(stem.seconds for stem in stems_of_split(index, TRAINED_SPLIT))
    share = sum(stage.share for stage in stages)
    heard = sum(s.share / share * s.frames / FRAMES_PER_SECOND * s.batch for s in stages)
    return max(1, math.ceil(epochs * seconds / heard))
