"""Training configuration, in code and as a JSON file.

Contract: `TrainConfig` says everything that decides the result of a run; it is written into the
run's folder, read back strictly, and compared when a run is resumed.  What only decides how fast
the result is reached (device, threads, worker processes) is no part of it.

A run has a budget, in hours or in steps.  With a budget in steps every number of a run follows from
its seed.  With one in hours it ends in time on any machine, and its examples still follow from the
seed, but how many are seen depends on the clock.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from mt3_export.weights import T5Shape
from mt3_runtime.errors import OptionError
from mt3_runtime.notes.stems import stem_named
from mt3_training.runs.role_policies import RolePolicy
from mt3_training.runs.typed_json import flat, read

FORMAT = "mt3-runtime.training"
FORMAT_VERSION = 2

#: What configurations of version 1 do not say; their runs go on as they began.
_SINCE_2 = ("stem", "start", "index", "policy")

#: The bundles' readers assume this width of a head.
HEAD_DIM = 64

#: Frames of a full segment of MT3.
FULL_FRAMES = 256

Optimiser = Literal["adamw", "muon"]
Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum.

    Attributes:
        name: For logs and pictures.
        frames: Length of the examples; full segments have 256.
        share: Part of the budget, relative to the other stages'.
        batch: Examples per step.
        music: Kind of pieces, one of `mt3_training.examples.example_sources.MUSIC`, or "stem": what
            the run's stem holds.
    """

    name: str
    frames: int
    share: float
    batch: int
    music: str

    def __post_init__(self) -> None:
        _at_least(f"frames of stage {self.name}", self.frames, 1)
        _at_least(f"batch of stage {self.name}", self.batch, 1)
        if self.frames > FULL_FRAMES:
            raise OptionError(
                f"stage {self.name} has {self.frames} frames; a segment has at most {FULL_FRAMES}"
            )
        _above_zero(f"share of stage {self.name}", self.share)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result of a run.

    Attributes:
        stages: In order; the last one decides what the model is for.
        shape: Sizes of the network.
        hours: Budget in hours of training; None if it is in steps.
        steps: Budget in steps; None if it is in hours.
        seed: Of the initial weights, the examples and dropout.
        optimiser: "adamw", or "muon" for the matrices inside the layers and AdamW for the rest.
        rate: Highest learning rate.
        weight_decay: Of AdamW (decoupled), and of Muon.
        warmup: Steps until the rate is reached.
        decay_from: Progress from which on the rate falls, linearly, to zero at the end.
        clip: Largest norm of the gradient.
        average: Share of the old values that the averaged weights keep at each step.
        dropout: Probability.
        precision: Of the matrix products; weights and optimiser are always fp32.
        auxiliary: Weight of the loss of the rolls.
        next_event: Weight of the loss of the time to the next event.
        guide: Weight of the guided attention's loss.
        aids_fade: Progress from which on these weights fall, linearly, to zero at the second.
        max_tokens: Targets are cut behind so many tokens.
        slice_size: Examples that are worked on together; a batch has one or more slices.
        bucket: Batches that are sorted by length together.
        evaluations: How often the weights are judged, evenly over the run.
        held_out: Examples they are judged with.
        sounds: Collections (`mt3_synthesis.soundfonts`) or files of sample banks.
        held_out_sounds: The same, for the held-out examples.
        vary: Whether training goes beyond these sounds: more kits, skins that are made up, and what
            `mt3_synthesis.timbres.varied` does; held-out examples are never varied.
        programs: General MIDI programs to play with; none means all that the sounds have.
        corpus: Share of windows from written music, which must be installed if this is above 0.
        offset_steps: Grid of the ends of notes, in steps of 10 ms.
        stem: What the model is for, one of `mt3_runtime.notes.stems.STEMS`; empty for anything.
        start: Digest of the weights that training begins with, which the run's folder keeps; empty
            for fresh ones.
        index: Digest of the list of recordings to train on; empty for music that is made up.
        policy: Weights of losses and augmentation; None leaves all weights at one.
    """

    stages: tuple[Stage, ...]
    shape: T5Shape
    hours: float | None = None
    steps: int | None = None
    seed: int = 0
    optimiser: Optimiser = "adamw"
    rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 300
    decay_from: float = 0.6
    clip: float = 1.0
    average: float = 0.999
    dropout: float = 0.05
    precision: Precision = "bf16"
    auxiliary: float = 0.3
    next_event: float = 0.1
    guide: float = 0.3
    aids_fade: tuple[float, float] = (0.67, 0.95)
    max_tokens: int = 512
    slice_size: int = 16
    bucket: int = 8
    evaluations: int = 40
    held_out: int = 64
    sounds: tuple[str, ...] = ("fluidr3mono", "musescore")
    held_out_sounds: tuple[str, ...] = ("gmbank",)
    vary: bool = False
    programs: tuple[int, ...] = ()
    corpus: float = 0.0
    offset_steps: int = 5
    stem: str = ""
    start: str = ""
    index: str = ""
    policy: RolePolicy | None = None

    def __post_init__(self) -> None:
        self._check_budget()
        self._check_choices()
        for name in ("max_tokens", "slice_size", "bucket", "evaluations", "held_out"):
            _at_least(name, getattr(self, name), 1)
        _at_least("offset_steps", self.offset_steps, 1)
        for name in ("seed", "warmup", "weight_decay", "auxiliary", "next_event", "guide"):
            _at_least(name, getattr(self, name), 0)
        for name in ("rate", "clip"):
            _above_zero(name, getattr(self, name))
        for name, size in asdict(self.shape).items():
            _at_least(f"{name} of the shape", size, 1)
        for name in ("decay_from", "average", "dropout", "corpus"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise OptionError(f"{name} is {getattr(self, name)}; expected 0 or more, below 1")
        if not 0.0 <= self.aids_fade[0] <= self.aids_fade[1]:
            raise OptionError(f"aids_fade is {self.aids_fade}; expected two ascending numbers")
        self._check_origins()

    def _check_origins(self) -> None:
        if self.stem:
            stem_named(self.stem)
        for name in ("start", "index"):
            if getattr(self, name) and not re.fullmatch("[0-9a-f]{64}", getattr(self, name)):
                raise OptionError(f"{name} is {getattr(self, name)!r}; expected a SHA-256, or none")

    def _check_budget(self) -> None:
        if (self.hours is None) == (self.steps is None):
            raise OptionError("a run needs a budget, in hours or in steps, and not in both")
        if self.steps is not None:  # none at all only judges the weights it starts with
            _at_least("steps", self.steps, 0 if self.start else 1)
        if self.hours is not None:
            _above_zero("hours", self.hours)

    def _check_choices(self) -> None:
        if not self.stages or self.shape.head_dim != HEAD_DIM:
            raise OptionError(
                f"a run has {len(self.stages)} stages and heads of width {self.shape.head_dim}; "
                f"expected at least one stage, and width {HEAD_DIM}, which bundles assume"
            )
        if self.optimiser not in get_args(Optimiser) or self.precision not in get_args(Precision):
            raise OptionError(
                f"optimiser is {self.optimiser!r} and precision {self.precision!r}; expected one "
                f"of {get_args(Optimiser)} and one of {get_args(Precision)}"
            )

    def to_json(self) -> str:
        """The configuration as text; `from_json` is the inverse."""
        document = {"format": FORMAT, "version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> TrainConfig:
        """Read what `to_json` wrote.

        Args:
            text: The file.
            where: Its name, for messages.

        Raises:
            OptionError: It is no such file, or a value is missing, unknown or out of range.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"{where} is not valid JSON ({error})") from error
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise OptionError(f"{where} is no configuration of a training ({FORMAT})")
        version = document.pop("version", None)
        if version not in range(1, FORMAT_VERSION + 1) or isinstance(version, bool):
            raise OptionError(
                f"{where} is of version {version!r}, this program reads 1 to {FORMAT_VERSION}; "
                "use the version of mt3-runtime that wrote it"
            )
        if version == 1:
            document = {name: getattr(cls, name) for name in _SINCE_2} | document
        stages = document.get("stages")
        if not isinstance(stages, list):
            raise OptionError(f"{where}: stages must be a list")
        document["stages"] = tuple(read(Stage, item, f"{where}: stage") for item in stages)
        document["shape"] = read(T5Shape, document.get("shape"), f"{where}: shape")
        if document.get("policy") is not None:
            document["policy"] = RolePolicy.from_dict(document["policy"], f"{where}: policy")
        return read(cls, document, where)

    def differences(self, other: TrainConfig) -> list[str]:
        """What ``other`` says differently, one line per value, such as ``seed: 0, not 1``."""
        mine, theirs = (dict(flat(json.loads(c.to_json()))) for c in (self, other))
        return [
            f"{name}: {mine.get(name)!r}, not {theirs.get(name)!r}"
            for name in dict.fromkeys([*mine, *theirs])
            if mine.get(name) != theirs.get(name)
        ]


def _at_least(name: str, value: float, lowest: int) -> None:
    if not lowest <= value < math.inf:
        raise OptionError(f"{name} is {value}; expected a number from {lowest} on")


def _above_zero(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise OptionError(f"{name} is {value}; expected a number above 0")


def _small_stages() -> tuple[Stage, ...]:
    return (
        Stage("half-second solos", 65, 4.0, 64, "solo"),
        Stage("one-second duos", 130, 2.0, 64, "duo"),
        Stage("two-second bands", FULL_FRAMES, 14.0, 32, "band"),
    )


def _shape(d_model: int, heads: int, d_ff: int, encoder: int, decoder: int) -> T5Shape:
    return T5Shape(
        d_model=d_model,
        heads=heads,
        head_dim=HEAD_DIM,
        d_ff=d_ff,
        encoder_layers=encoder,
        decoder_layers=decoder,
    )


PRESETS = {
    # 7.2 M parameters, 14.4 MB in fp16: 9 core-hours.
    "small": TrainConfig(
        _small_stages(),
        _shape(256, 4, 512, 4, 4),
        steps=20000,
        optimiser="muon",
        rate=2e-3,
        warmup=200,
        evaluations=50,
        corpus=0.1,
        vary=True,
    ),
    # 18.5 M parameters, 37 MB: half an hour on a data-centre GPU.
    "medium": TrainConfig(
        tuple(dataclasses.replace(stage, batch=512) for stage in _small_stages()),
        _shape(384, 6, 768, 6, 4),
        hours=0.4,
        optimiser="muon",
        rate=2e-3,
        slice_size=512,
        vary=True,
    ),
    # One stem, going on from weights that know music: an hour of one core.
    "stem": TrainConfig(
        (Stage("two-second stems", FULL_FRAMES, 1.0, 32, "stem"),),
        _shape(256, 4, 512, 4, 4),
        steps=2000,
        optimiser="muon",
        rate=5e-4,
        warmup=100,
        decay_from=0.3,
        auxiliary=0.1,
        next_event=0.0,
        guide=0.0,
        evaluations=10,
        vary=True,
    ),
    # 1 M parameters: whether everything works, in two minutes.
    "tiny": TrainConfig(
        (Stage("half-second solos", 65, 1.0, 16, "solo"),),
        _shape(64, 1, 128, 2, 2),
        hours=1 / 30,
        warmup=40,
        evaluations=2,
        held_out=16,
    ),
}
"""Configurations by name."""
