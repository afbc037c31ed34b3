"""What a training run of an assessing network does, as one frozen JSON document.

Contract: `AssessorTraining` is all that a run depends on beside its examples.  Numbers of the
published training are the defaults; `PLAIN` leaves out the parts of its loss that cannot help.
This module does not import torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated

from mt3_export.assessors.network_folder import NetworkShape
from mt3_runtime.bundles.assessor_networks import (
    ALIGNMENTS,
    FUSIONS,
    Alignment,
    AssessorNetwork,
    Fusion,
)
from mt3_runtime.errors import BundleError, OptionError
from mt3_runtime.schema import Between, document_bytes, parse_document, read_fields

FORMAT, VERSION = "mt3-training.assessor", 1

Share = Annotated[float, Between(0.0, 1.0)]
Weight = Annotated[float, Between(0.0, 100.0)]
Rate = Annotated[float, Between(1e-8, 1.0)]
Count = Annotated[int, Between(1, 1 << 24)]


@dataclass(frozen=True)
class LossWeights:
    """What the loss is made of; scores and labels are from 0 to 100.

    Attributes:
        huber_delta: Where the regression loss turns from square to straight.
        ranking: Of the hinge on pairs of a batch.
        ranking_margin: Points by which a better recording must be ahead.
        contrastive: Of InfoNCE between the two embeddings.
        temperature: Of InfoNCE.
        ordinal: Of CORAL on the mean of the dimensions.
        uncertainty: Whether dimensions are weighted by a learned variance.
        smoothing: Whether rare labels weigh more (label distribution smoothing).
        bootstrap: Share of the label in the target, the rest is the prediction itself; 1 is off.
            With a Huber loss it does no more than scale the residual.
    """

    huber_delta: Annotated[float, Between(0.01, 100.0)] = 1.0
    ranking: Weight = 0.2
    ranking_margin: Weight = 5.0
    contrastive: Weight = 0.1
    temperature: Annotated[float, Between(0.001, 10.0)] = 0.07
    ordinal: Weight = 0.3
    uncertainty: bool = True
    smoothing: bool = True
    bootstrap: Share = 0.8


@dataclass(frozen=True)
class AssessorTraining:
    """One run.

    Attributes:
        fusion: One of `mt3_runtime.bundles.assessor_networks.FUSIONS`.
        alignment: What a note is paired with.
        max_notes: Of a clip.
        ordinal_classes: Of the ordinal output; 0 for none.
        shape: Sizes.
        losses: What is minimised.
        steps: Of the optimiser.
        evaluate_every: Steps between two evaluations.
        patience: Evaluations without a better one that end the run.
        batch: Recordings.
        accumulate: Batches a step.
        backbone_rate: Learning rate of the MIDI encoder.
        head_rate: Of everything else.
        weight_decay: Of AdamW.
        warmup: Steps in which the rate rises; then it falls as a cosine.
        clip: Largest norm of the gradient.
        mixup: Alpha of the mixture of pooled vectors on half of the batches; 0 for none.
        modality_dropout: Share of rows that lose a modality, for each of the two.
        seed: Of weights, order and dropout.
    """

    fusion: Fusion = "gated"
    alignment: Alignment = "note"
    max_notes: Annotated[int, Between(1, 4096)] = 512
    ordinal_classes: Annotated[int, Between(0, 1000)] = 20
    shape: NetworkShape = field(default_factory=NetworkShape)
    losses: LossWeights = field(default_factory=LossWeights)
    steps: Count = 20000
    evaluate_every: Count = 500
    patience: Count = 4
    batch: Annotated[int, Between(2, 4096)] = 16
    accumulate: Annotated[int, Between(1, 1024)] = 2
    backbone_rate: Rate = 3e-5
    head_rate: Rate = 3e-4
    weight_decay: Share = 0.01
    warmup: Annotated[int, Between(0, 1 << 24)] = 1000
    clip: Annotated[float, Between(1e-6, 1e6)] = 0.5
    mixup: Annotated[float, Between(0.0, 100.0)] = 0.2
    modality_dropout: Annotated[float, Between(0.0, 0.5)] = 0.15
    seed: Annotated[int, Between(0, (1 << 32) - 1)] = 0

    def __post_init__(self) -> None:
        """Raises `OptionError` for parts that do not fit each other."""
        if self.alignment not in ALIGNMENTS[self.fusion]:
            known = " or ".join(ALIGNMENTS[self.fusion])
            raise OptionError(
                f"fusion {self.fusion} has no alignment {self.alignment}; expected {known}."
            )
        if faults := self.shape.faults():
            raise OptionError("; ".join(faults) + ".")

    def network(self, dimensions: tuple[str, ...]) -> AssessorNetwork:
        """What the manifest will say; raises `OptionError` for dimensions without plain names."""
        most = 0 if self.fusion == "audio" else self.max_notes
        found = AssessorNetwork(
            self.fusion,
            self.fusion,
            self.alignment,
            most,
            fill=False,
            dimensions=dimensions,
            ordinal_classes=self.ordinal_classes,
        )
        if faults := found.faults():
            raise OptionError("; ".join(faults) + ".")
        return found

    def to_json(self) -> bytes:
        """The document."""
        return document_bytes(self, FORMAT, VERSION)

    @classmethod
    def from_json(cls, data: bytes, where: str) -> AssessorTraining:
        """Reads a document; raises `OptionError`."""
        try:
            body = parse_document(
                data,
                where,
                FORMAT,
                VERSION,
                otherwise="is no training configuration of an assessing network",
                remedy="Begin another run.",
            )
            return read_fields(cls, body, where)
        except BundleError as error:
            raise OptionError(str(error)) from error

    def differences(self, other: AssessorTraining) -> list[str]:
        """Fields that differ, with both values."""
        return [
            f"{item.name} is {getattr(self, item.name)}, not {getattr(other, item.name)}"
            for item in fields(self)
            if getattr(self, item.name) != getattr(other, item.name)
        ]


def folder_config(config: AssessorTraining, network: AssessorNetwork) -> str:
    """The ``config.json`` that `mt3 export` reads beside the trained weights."""
    shape = asdict(config.shape)
    shape["head_widths"] = list(config.shape.head_widths)
    values = {
        "model_type": "performance-assessor-network",
        "fusion": network.fusion,
        "alignment": network.alignment,
        "max_notes": config.max_notes,
        "fill": network.fill,
        "dimensions": list(network.dimensions),
        "ordinal_classes": network.ordinal_classes,
        **shape,
    }
    return json.dumps(values, indent=1) + "\n"


def for_fusion(config: AssessorTraining, fusion: str) -> AssessorTraining:
    """The same training of another fusion, with its first alignment; raises `OptionError`."""
    for known in FUSIONS:
        if known == fusion:
            return replace(config, fusion=known, alignment=ALIGNMENTS[known][0])
    raise OptionError(f"fusion is {fusion!r:.40}; expected one of {', '.join(FUSIONS)}.")


PUBLISHED = AssessorTraining()
PLAIN = replace(
    PUBLISHED, losses=LossWeights(ordinal=0.0, smoothing=False, bootstrap=1.0), ordinal_classes=0
)
#: A network for tests of the machinery.
TINY = replace(
    PLAIN,
    max_notes=32,
    ordinal_classes=5,
    losses=LossWeights(),
    shape=NetworkShape(8, 32, 1, 4, 16, 4, 8, 1, 4, (16, 12, 8)),
    steps=6,
    evaluate_every=3,
    batch=4,
    accumulate=2,
    warmup=2,
)
PRESETS = {"published": PUBLISHED, "plain": PLAIN, "tiny": TINY}
