"""``fast`` and ``small``: products of 8-bit integers, where a song spends nine tenths of its time.

The weights of all products of the T5 layers are smoothed (`mt3_calibration.fast.smoothing`) and
rounded to 8 bits, one scale per column, so that their products change least on the calibration
material (`mt3_calibration.fast.rounding`).  What is multiplied by them has 16 bits, in two terms:
of a scale per row in the encoder, and of a fixed one in the decoder, whose steps have few rows.

A single term of 8 bits would make the encoder take 1/1.9 instead of 1/1.4 of its time, and the
divergence from the exact one almost twice as large.

Cross keys and values are int8 as well (`mt3_calibration.precision.caches`): reading them is most of
a step, and they lose next to nothing.  In ``small``, for machines with little memory, so are the
self caches.

The decoder's last layer, the head, the embedding, norms, attention and otherwise the self caches
stay fp32; so does what is no T5 layer: the input projection, and the whole encoder of YourMT3 but
for its cross projections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper

from mt3_calibration.fast.inputs import (
    Inputs,
    layer_products,
    watch_decoder,
    watch_encoder,
)
from mt3_calibration.fast.integers import Plan, multiply_integers
from mt3_calibration.fast.rounding import LEVELS, Matrix, rounded
from mt3_calibration.fast.smoothing import best_factors, divide_norm, divisible
from mt3_calibration.precision.caches import PROFILE, with_caches
from mt3_calibration.precision.forced import Segment, segments_of
from mt3_calibration.precision.gate import GateName
from mt3_calibration.precision.material import Material
from mt3_calibration.precision.recipes import Graphs, Product, Talk
from mt3_calibration.precision.source import Source
from mt3_runtime.errors import BundleError
from mt3_runtime.manifest import Role
from mt3_runtime.precision import Precision

if TYPE_CHECKING:
    from onnx import ModelProto

HEADROOM = 4.0
"""Times the largest input ever met that a fixed scale has room for; it costs 2 of 16 bits."""


@dataclass(frozen=True)
class IntegerProducts:
    """Makes encoder and decoder multiply integers, and read the cross caches as such.

    The caches come first: their scales are folded into fp32 columns, so that what is rounded after
    that is what is really multiplied.

    Attributes:
        name: What ``--precision`` calls it.
        self_caches: Whether the self caches are int8, too: less memory, and less exact.
    """

    name: str
    self_caches: bool
    gate: GateName = "relaxed"

    def apply(self, source: Source, material: Material, talk: Talk) -> Product:
        segments = segments_of(source.listen(material.calibration), source.manifest)
        changed = with_caches(source, segments, talk, self_caches=self.self_caches)
        graphs = integer_products(changed, segments, talk)
        precision = Precision(
            self.name,
            weights="int8",
            arithmetic="int8",
            self_cache="int8" if self.self_caches else "fp32",
            cross_cache="int8",
        )
        return Product(graphs, precision)


def integer_products(source: Source, segments: Sequence[Segment], talk: Talk) -> Graphs:
    """Encoder and decoder that multiply integers; caches stay as the source has them.

    Raises:
        BundleError: The source lacks the profile, or its graphs have none of the products.
    """
    encoder, decoder = source.graph("encoder", PROFILE), source.graph("decoder", PROFILE)
    graphs: dict[Role, ModelProto] = {"encoder": encoder, "decoder": decoder}
    for role, model in graphs.items():
        if not layer_products(model, role):
            raise BundleError(
                f"The {role} of {source.bundle.path} has none of the products that become "
                "integers: they are found by the names that `mt3 export` gives them."
            )
    talk(f"watching the exact graphs over {len(segments)} segments")
    inputs = watch_decoder(graphs, source.manifest, segments, threads=source.threads)
    said = quantised(decoder, "decoder", inputs)
    inputs = watch_encoder(encoder, segments, threads=source.threads)
    made = quantised(encoder, "encoder", inputs)
    return {("encoder", PROFILE): made, ("decoder", PROFILE): said}


def quantised(model: ModelProto, role: Role, inputs: Mapping[str, Inputs]) -> ModelProto:
    """Makes a graph multiply integers, in place; returns the model.

    Args:
        model: A graph with plain fp32 weights.
        role: Which one it is.
        inputs: What comes into its products, by the tensor's name.
    """
    groups: dict[str, list[str]] = {}
    for product in layer_products(model, role):
        groups.setdefault(product.activation, []).append(product.weight)
    weights = {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float64)
        for tensor in model.graph.initializer
        if any(tensor.name in names for names in groups.values())
    }
    factors = {name: _smooth(model, weights, inputs[name], name, groups[name]) for name in groups}
    plans = {}
    for name, names in groups.items():
        scales = factors[name]
        moments = inputs[name].moments / np.outer(scales, scales)
        room = HEADROOM * float((inputs[name].largest / scales).max()) / LEVELS or 1.0
        for weight in names:
            became = rounded(weights[weight], moments)
            plans[weight] = Plan(became, room if role == "decoder" else None)
    return multiply_integers(model, plans)


def _smooth(
    model: ModelProto, weights: dict[str, Matrix], inputs: Inputs, name: str, group: list[str]
) -> Matrix:
    """Smooths what goes into a group of products, in the weights and the model."""
    divisor = divisible(model, name, group)
    if divisor is None:
        return np.ones(len(inputs.largest))
    factors = best_factors(inputs, [weights[weight] for weight in group])
    for weight in group:
        weights[weight] *= factors[:, np.newaxis]
    if divisor in weights:
        weights[divisor][:, -len(factors) :] /= factors
    else:
        divide_norm(model, divisor, factors)
    return factors


FAST = IntegerProducts("fast", self_caches=False)
SMALL = IntegerProducts("small", self_caches=True)
