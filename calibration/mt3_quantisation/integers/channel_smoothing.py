"""Scales input channels of matrix products so that 8 bits represent them better (SmoothQuant).

Contract: where inputs come from a norm, its scale is divided by a vector and the rows of all
matrices behind it are multiplied by the same; where they are the product of the two branches of a
feed-forward, the columns of the linear branch are divided.  The graph computes what it did before,
but columns of few large inputs, which would make the steps of all others coarse, have become
smaller (Xiao et al. 2022, "SmoothQuant").  How far to go is tried: what is best differs from layer
to layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from onnx import numpy_helper

from mt3_quantisation.integers.integer_inputs import Inputs
from mt3_quantisation.integers.rounding import LEVELS, Matrix, nearest

if TYPE_CHECKING:
    from onnx import ModelProto

ROWS = 512
"""Rows of inputs that errors are measured with; of more, so many are taken."""

NORMS = {"RMSNormalization": 1, "SkipSimplifiedLayerNormalization": 2}
"""Operators whose result has a scale per column, and which of their inputs that is."""

STRENGTHS = (0.5, 0.65, 0.8)
"""Exponents that are tried: 0 leaves all as it is, 1 makes all inputs equally large."""


class Smoothed(NamedTuple):
    """What was found for the products that share an input.

    Attributes:
        factors: float64 [K], what the inputs are divided by.
        input_error: Relative error of the products from inputs of 8 bits, one scale per row.
        weight_error: The same from weights of 8 bits, rounded to the nearest.
    """

    factors: Matrix
    input_error: float
    weight_error: float


def divisible(model: ModelProto, name: str, kernels: Sequence[str]) -> str | None:
    """The parameter that can take over a division of what goes into some products.

    Args:
        model: The graph.
        name: The tensor that goes in.
        kernels: The weights of the products.

    Returns:
        The scale of the norm that the tensor comes from, or the weight of the branches whose
        product it is: then the last of its columns make the linear branch.  None if there is none,
        or it serves something else as well.
    """
    nodes = model.graph.node
    reading = [node for node in nodes if name in node.input]
    if any(node.op_type != "MatMul" or node.input[1] not in kernels for node in reading):
        return None
    (source,) = [node for node in nodes if name in node.output] or [None]
    if source is None:
        return None
    if source.op_type in NORMS:
        scale = str(source.input[NORMS[source.op_type]])
        return scale if sum(scale in node.input for node in nodes) == 1 else None
    branches = kernels[0].removesuffix("wo.kernel") + "wi_0+wi_1.kernel"
    there = any(node.op_type == "MatMul" and node.input[1] == branches for node in nodes)
    return branches if there and kernels[0].endswith(".wo.kernel") else None


def divide_norm(model: ModelProto, scale: str, factors: Matrix) -> None:
    """Divides the scale of a norm, in place."""
    (tensor,) = [t for t in model.graph.initializer if t.name == scale]
    divided = (numpy_helper.to_array(tensor) / factors).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(divided, scale))


def smoothed(
    inputs: Inputs, weights: Sequence[Matrix], *, fixed: bool = False, exact_inputs: bool = False
) -> Smoothed:
    """Tries factors for some products of one input.

    Args:
        inputs: What comes in.
        weights: Their matrices, [K, N] each.
        fixed: Inputs cannot be divided: only finds what they lose.
        exact_inputs: Inputs will lose nothing, so only the weights count.
    """
    weight = np.concatenate(weights, axis=1)
    # Evenly, but by no whole stride: that would take the same row of every chunk.
    rows = np.linspace(0, len(inputs.sample) - 1, min(ROWS, len(inputs.sample))).astype(int)
    sample = inputs.sample[rows].astype(np.float64)
    usual = np.sqrt((sample**2).mean(axis=0))
    largest, strongest = np.abs(sample).max(axis=0), np.abs(weight).max(axis=1)
    tried = [np.ones(len(weight))]
    for size in () if fixed else (usual, largest):
        # An input that never came and a row of zeros keep what they have.
        known = (size > 0) & (strongest > 0)
        for strength in STRENGTHS:
            factors = np.ones(len(weight))
            factors[known] = size[known] ** strength / strongest[known] ** (1 - strength)
            tried.append(factors / np.exp(np.log(factors).mean()))
    found = [Smoothed(factors, *_errors(sample, weight, factors)) for factors in tried]
    return min(
        found, key=lambda s: np.hypot(0.0 if exact_inputs else s.input_error, s.weight_error)
    )


def _errors(sample: Matrix, weight: Matrix, factors: Matrix) -> tuple[float, float]:
    inputs, matrix = sample / factors, weight * factors[:, np.newaxis]
    scales = np.abs(inputs).max(axis=1, keepdims=True) / LEVELS
    scales[scales == 0] = 1.0
    lost = inputs - np.rint(inputs / scales) * scales
    columns = np.abs(matrix).max(axis=0) / LEVELS
    columns[columns == 0] = 1.0
    wrong = matrix - nearest(matrix, columns) * columns
    whole = float(np.linalg.norm(inputs @ matrix)) or 1.0
    return float(np.linalg.norm(lost @ matrix)) / whole, float(
        np.linalg.norm(inputs @ wrong)
    ) / whole
