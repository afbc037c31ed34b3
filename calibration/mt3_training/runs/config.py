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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from mt3_export.weights import T5Shape
from mt3_runtime.errors import OptionError

FORMAT = "mt3-runtime.training"
FORMAT_VERSION = 1

#: The bundles' readers assume this width of a head.
HEAD_DIM = 64

#: Frames of a full segment of MT3.
FULL_FRAMES = 256

Optimiser = Literal["adamw", "muon"]
Precision = Literal["bf16", "fp32"]
T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum.

    Attributes:
        name: For logs and pictures.
        frames: Length of the examples; full segments have 256.
        share: Part of the budget, relative to the other stages'.
        batch: Examples per step.
        music: Kind of pieces, one of `mt3_training.examples.example_sources.MUSIC`.
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

    def _check_budget(self) -> None:
        if (self.hours is None) == (self.steps is None):
            raise OptionError("a run needs a budget, in hours or in steps, and not in both")
        if self.steps is not None:
            _at_least("steps", self.steps, 1)
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
        if version != FORMAT_VERSION:
            raise OptionError(
                f"{where} is of version {version!r}, this program reads {FORMAT_VERSION}; "
                "use the version of mt3-runtime that wrote it"
            )
        stages = document.get("stages")
        if not isinstance(stages, list):
            raise OptionError(f"{where}: stages must be a list")
        document["stages"] = tuple(_read(Stage, item, f"{where}: stage") for item in stages)
        document["shape"] = _read(T5Shape, document.get("shape"), f"{where}: shape")
        return _read(cls, document, where)

    def differences(self, other: TrainConfig) -> list[str]:
        """What ``other`` says differently, one line per value, such as ``seed: 0, not 1``."""
        mine, theirs = (dict(_flat(json.loads(c.to_json()))) for c in (self, other))
        return [
            f"{name}: {mine.get(name)!r}, not {theirs.get(name)!r}"
            for name in dict.fromkeys([*mine, *theirs])
            if mine.get(name) != theirs.get(name)
        ]


def _read(kind: type[T], data: object, where: str) -> T:
    """A dataclass from a mapping with exactly its fields, types checked as far as JSON tells."""
    if not isinstance(data, Mapping):
        raise OptionError(f"{where}: expected an object, found {data!r}")
    wanted = {f.name: str(f.type) for f in fields(kind)}  # type: ignore[arg-type]
    missing, unknown = sorted(set(wanted) - set(data)), sorted(map(str, set(data) - set(wanted)))
    if missing or unknown:
        raise OptionError(f"{where}: missing are {missing}, unknown {unknown}")
    values = {name: _value(data[name], wanted[name], f"{where}: {name}") for name in wanted}
    return kind(**values)


def _value(value: Any, annotation: str, where: str) -> Any:
    if annotation.startswith("tuple[") and isinstance(value, list):
        value = tuple(value)
    expected = _JSON_TYPES.get(annotation)
    if expected and (type(value) not in expected or value in (math.inf, -math.inf)):
        raise OptionError(f"{where} is {value!r}, expected {annotation}")
    if annotation == "tuple[float, float]" and (
        len(value) != 2 or not all(type(item) in (int, float) for item in value)
    ):
        raise OptionError(f"{where} is {value!r}, expected two numbers")
    if annotation in _ITEMS and not all(type(item) is _ITEMS[annotation] for item in value):
        raise OptionError(f"{where} is {value!r}, expected {annotation}")
    return value


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "str": (str,),
    "tuple[float, float]": (tuple,),
    "tuple[str, ...]": (tuple,),
    "tuple[int, ...]": (tuple,),
}
_ITEMS: dict[str, type] = {"tuple[str, ...]": str, "tuple[int, ...]": int}


def _at_least(name: str, value: float, lowest: int) -> None:
    if not lowest <= value < math.inf:
        raise OptionError(f"{name} is {value}; expected a number from {lowest} on")


def _above_zero(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise OptionError(f"{name} is {value}; expected a number above 0")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested JSON with their paths, ``stages[1].batch``."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _flat(item, f"{name}[{index}]")
    else:
        yield name, value


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
