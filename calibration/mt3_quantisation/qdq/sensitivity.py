"""Quantisation sensitivity: which groups of products and layers lose most when quantised alone.

All other products stay exact, the decoder is taught the exact model's tokens, and what it thinks is
compared step by step.  KL divergence ranks: it is small where nothing changes and needs no luck,
while flips (another token is best) are few and come by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from mt3_quantisation.forms.products import WeightProduct
from mt3_quantisation.gates.exact_bundle import FloatArray, Source
from mt3_quantisation.gates.measure import ROLES
from mt3_quantisation.gates.teacher_forcing import Segment, forced
from mt3_quantisation.qdq.insertion import Format, insert
from mt3_quantisation.qdq.ranges import Ranges
from mt3_runtime.bundles.manifest import Role

if TYPE_CHECKING:
    from onnx import ModelProto

#: What a part is: everything together, one kind of product in all layers, one layer, one product.
PartKind = Literal["all", "group", "layer", "product"]


@dataclass(frozen=True)
class Part:
    """Products that are quantised together.

    Attributes:
        name: What ``--keep`` calls it.
        kind: What it is.
        products: Those in it.
    """

    name: str
    kind: PartKind
    products: tuple[WeightProduct, ...]


@dataclass(frozen=True)
class Loss:
    """What quantising one part, and nothing else, does to the decoder's thoughts.

    Attributes:
        part: Name of the part.
        kind: What it is.
        products: Names of its products.
        kl: Mean over all steps of KL(exact || quantised), in nats.
        flips: Share of the steps at which another token is best.
        rms: Root mean square of the change of log-probabilities, in standard deviations of the
            exact ones.
    """

    part: str
    kind: PartKind
    products: tuple[str, ...]
    kl: float
    flips: float
    rms: float


@dataclass(frozen=True)
class Sensitivity:
    """A report.

    Attributes:
        export_id: The bundle's.
        model: Its name.
        precision: Format the products were quantised to.
        segments: What was listened to.
        steps: Decoder steps that were compared.
        losses: One per part: everything first, then groups, layers, products, each with the worst
            first.
    """

    export_id: str
    model: str
    precision: Format
    segments: int
    steps: int
    losses: tuple[Loss, ...]


def parts_of(products: Sequence[WeightProduct], *, each: bool = False) -> list[Part]:
    """Everything, the groups, the layers, and ``each`` product if wanted; no part twice."""
    found = [Part("all", "all", tuple(products))]
    kinds: list[tuple[PartKind, Callable[[WeightProduct], str]]] = [
        ("group", lambda product: product.group),
        ("layer", lambda product: product.layer),
    ]
    if each:
        kinds.append(("product", lambda product: product.name))
    for kind, name_of in kinds:
        for name in dict.fromkeys(map(name_of, products)):
            members = tuple(product for product in products if name_of(product) == name)
            if all(members != part.products for part in found):
                found.append(Part(name, kind, members))
    return found


def measure(
    source: Source,
    graphs: Mapping[Role, ModelProto],
    ranges: Ranges,
    segments: Sequence[Segment],
    parts: Sequence[Part],
    *,
    kind: Format,
    report: Callable[[float, float | None, str], None] = lambda *_: None,
) -> Sensitivity:
    """Quantises each part alone.

    Args:
        source: The exact bundle.
        graphs: Its graphs, of the profile that engines are made of.
        ranges: Of their activations.
        segments: What is listened to.
        parts: What to try.
        kind: Format of the products.
        report: Called with (done, in all, name) before each part.
    """

    def thoughts(made: Mapping[Role, ModelProto]) -> Iterator[FloatArray]:
        for thought in forced(made, source.manifest, segments, threads=source.threads):
            yield thought.log_probs

    exact = list(thoughts(graphs))
    losses = []
    for done, part in enumerate(parts):
        report(done, len(parts), part.name)
        made = {
            role: insert(
                graphs[role], [p for p in part.products if p.role == role], ranges.of(role), kind
            )
            for role in ROLES
        }
        losses.append(_loss(part, exact, thoughts(made)))
    order = ("all", "group", "layer", "product")
    losses.sort(key=lambda loss: (order.index(loss.kind), -loss.kl))
    return Sensitivity(
        export_id=source.manifest.export_id,
        model=source.manifest.name,
        precision=kind,
        segments=len(segments),
        steps=sum(map(len, exact)),
        losses=tuple(losses),
    )


def _loss(part: Part, exact: Sequence[FloatArray], other: Iterator[FloatArray]) -> Loss:
    kl = squares = 0.0
    flips = 0
    for one, two in zip(exact, other, strict=True):
        mine, theirs = one.astype(np.float64), two.astype(np.float64)
        kl += float((np.exp(mine) * (mine - theirs)).sum())
        squares += float(((mine - theirs) ** 2).sum())
        flips += int(np.count_nonzero(mine.argmax(axis=1) != theirs.argmax(axis=1)))
    steps, values = sum(map(len, exact)), sum(one.size for one in exact)
    spread = float(np.std(np.concatenate(exact)))
    return Loss(
        part=part.name,
        kind=part.kind,
        products=tuple(product.name for product in part.products),
        kl=max(kl / steps, 0.0),
        flips=flips / steps,
        rms=(squares / values) ** 0.5 / spread,
    )
