"""The recipes `fast` and `small`: 8-bit integers in matrix products and caches, for CPUs.

The weights of all products of the T5 layers are rounded to 8 bits, one scale per column, so that
their products change least on the calibration material (`mt3_quantisation.integers.rounding`).
What is multiplied by them:

decoder   16 bits in two terms of a fixed scale: a step is bound by reading weights and caches, so
          the second term costs little, and its errors are what moves tokens.
encoder   the same; the feed-forward's inner activations, which nothing bounds, have a scale per
          row.  It is bound by arithmetic, so ``fast`` takes the first term alone, 8 bits with a
          scale per row, where products lose least by that.  Inputs of those are smoothed for
          their own sake, all others for that of the weights
          (`mt3_quantisation.integers.channel_smoothing`).

The caches are int8 as well (`mt3_quantisation.forms.caches`): reading them is most of a step,
and they take a quarter of the memory.

The decoder's last layer, the head, the embedding, norms and attention stay fp32; so does what is no
T5 layer: the input projection, and the whole encoder of YourMT3 but for its cross projections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper

from mt3_quantisation.forms.caches import PROFILE, with_caches
from mt3_quantisation.forms.recipes import Graphs, Product, Talk
from mt3_quantisation.gates.exact_bundle import Source
from mt3_quantisation.gates.gate import GateName
from mt3_quantisation.gates.material import Material
from mt3_quantisation.gates.teacher_forcing import Segment, segments_of
from mt3_quantisation.integers.channel_smoothing import divide_norm, divisible, smoothed
from mt3_quantisation.integers.integer_inputs import (
    Inputs,
    layer_products,
    watch_decoder,
    watch_encoder,
)
from mt3_quantisation.integers.integer_products import Plan, multiply_integers
from mt3_quantisation.integers.rounding import LEVELS, Matrix, rounded
from mt3_runtime.bundles.manifest import Role
from mt3_runtime.bundles.precision import Precision
from mt3_runtime.errors import BundleError

if TYPE_CHECKING:
    from onnx import ModelProto

HEADROOM = 4.0
"""Times the largest input ever met that a fixed scale has room for; it costs 2 of 16 bits."""

UNBOUNDED = ".mlp.wo."
"""Products of unbounded inputs: those of Magenta's encoder have rows a hundred times as large."""


@dataclass(frozen=True)
class IntegerProducts:
    """Makes encoder and decoder multiply integers, and keep the caches as such.

    The caches come first: their scales are folded into fp32 columns, so that what is rounded after
    that is what is really multiplied.

    Attributes:
        name: What ``--precision`` calls it.
        lost: Relative error of a product from 8-bit inputs above which the encoder takes two terms.
            Magenta's products lose 0.005 to 0.017: feed-forwards in (0.0051 to 0.0062), queries,
            keys and values (0.0056 to 0.0067), cross projections (0.0064), attention out (0.006
            to 0.011), feed-forwards out (0.013 to 0.016).
    """

    name: str
    lost: float
    gate: GateName = "relaxed"

    def apply(self, source: Source, material: Material, talk: Talk) -> Product:
        segments = segments_of(source.listen(material.calibration), source.manifest)
        changed = with_caches(source, segments, talk)
        graphs = integer_products(changed, segments, talk, lost=self.lost)
        precision = Precision(
            self.name,
            weights="int8",
            arithmetic="int8",
            self_cache="int8",
            cross_cache="int8",
        )
        return Product(graphs, precision)


def integer_products(
    source: Source, segments: Sequence[Segment], talk: Talk, *, lost: float
) -> Graphs:
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
    said = quantised(decoder, "decoder", inputs, lost=0.0)
    inputs = watch_encoder(encoder, segments, threads=source.threads)
    made = quantised(encoder, "encoder", inputs, lost=lost)
    return {("encoder", PROFILE): made, ("decoder", PROFILE): said}


def quantised(
    model: ModelProto, role: Role, inputs: Mapping[str, Inputs], *, lost: float
) -> ModelProto:
    """Makes a graph multiply integers, in place; returns the model.

    Args:
        model: A graph with plain fp32 weights.
        role: Which one it is.
        inputs: What comes into its products, by the tensor's name.
        lost: As of `IntegerProducts`.
    """
    groups: dict[str, list[str]] = {}
    for product in layer_products(model, role):
        groups.setdefault(product.activation, []).append(product.weight)
    weights = {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float64)
        for tensor in model.graph.initializer
        if any(tensor.name in names for names in groups.values())
    }
    found = {
        name: _smooth(model, weights, inputs[name], name, groups[name], lost) for name in groups
    }
    plans = {}
    for name, names in groups.items():
        factors, terms = found[name]
        fixed = role == "decoder" or (terms == 2 and not any(UNBOUNDED in n for n in names))
        moments = inputs[name].moments / np.outer(factors, factors)
        room = HEADROOM * float((inputs[name].largest / factors).max()) / LEVELS or 1.0
        for weight in names:
            became = rounded(weights[weight], moments)
            plans[weight] = Plan(became, terms, room if fixed else None)
    # A step's tensors are small: what counts there is the number of nodes.
    return multiply_integers(model, plans, apart=role == "encoder")


def _smooth(
    model: ModelProto,
    weights: dict[str, Matrix],
    inputs: Inputs,
    name: str,
    group: list[str],
    lost: float,
) -> tuple[Matrix, int]:
    """Smooths what goes into a group of products, in the weights and the model.

    Returns:
        What the inputs are divided by [K], and how many terms they take.
    """
    divisor = divisible(model, name, group)
    smooth = partial(smoothed, inputs, [weights[w] for w in group], fixed=divisor is None)
    found, terms = smooth(), 1
    if found.input_error > lost:  # the second term makes inputs exact
        found, terms = smooth(exact_inputs=True), 2
    factors = found.factors
    for weight in group:
        weights[weight] *= factors[:, np.newaxis]
    if divisor in weights:
        weights[divisor][:, -len(factors) :] /= factors
    elif divisor is not None:
        divide_norm(model, divisor, factors)
    return factors, terms


FAST = IntegerProducts("fast", lost=0.0055)
SMALL = IntegerProducts("small", lost=0.0)
