"""Scales the inputs of products so that 8 bits do their weights more justice, at no cost.

Contract: where inputs come from a norm, its scale is divided by a vector and the rows of all
matrices behind it are multiplied by the same; where they are the product of the two branches of a
feed-forward, the columns of the linear branch are divided.  The graph computes what it did before,
but rows that meet large inputs have become larger, and lose less (Xiao et al. 2022, "SmoothQuant",
the other way round; Lin et al. 2023, "AWQ").  How far to go is tried: what is best differs from
layer to layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper

from mt3_calibration.fast.inputs import Inputs
from mt3_calibration.fast.rounding import LEVELS, Matrix, nearest

if TYPE_CHECKING:
    from onnx import ModelProto

ROWS = 512
"""Rows of inputs that errors are measured with; of more, so many are taken."""

NORMS = {"RMSNormalization": 1, "SkipSimplifiedLayerNormalization": 2}
"""Operators whose result has a scale per column, and which of their inputs that is."""

STRENGTHS = (0.5, 0.65, 0.8)
"""Exponents that are tried: 0 leaves all as it is, 1 makes all inputs equally large."""


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


def best_factors(inputs: Inputs, weights: Sequence[Matrix]) -> Matrix:
    """What some products of one input are best divided and multiplied by.

    Args:
        inputs: What comes in.
        weights: Their matrices, [K, N] each.

    Returns:
        float64 [K]: what the inputs are divided by, and the rows of the weights multiplied.
    """
    weight = np.concatenate(weights, axis=1)
    # Evenly, but by no whole stride: that would take the same row of every chunk.
    rows = np.linspace(0, len(inputs.sample) - 1, min(ROWS, len(inputs.sample))).astype(int)
    sample = inputs.sample[rows].astype(np.float64)
    usual = np.sqrt((sample**2).mean(axis=0))
    largest, strongest = np.abs(sample).max(axis=0), np.abs(weight).max(axis=1)
    tried = [np.ones(len(weight))]
    for size in (usual, largest):
        # An input that never came and a row of zeros keep what they have.
        known = (size > 0) & (strongest > 0)
        for strength in STRENGTHS:
            factors = np.ones(len(weight))
            factors[known] = size[known] ** strength / strongest[known] ** (1 - strength)
            tried.append(factors / np.exp(np.log(factors).mean()))
    return min(tried, key=lambda factors: _error(sample, weight, factors))


def _error(sample: Matrix, weight: Matrix, factors: Matrix) -> float:
    """By how much the products of a sample differ if weights are rounded to the nearest."""
    matrix = weight * factors[:, np.newaxis]
    columns = np.abs(matrix).max(axis=0) / LEVELS
    columns[columns == 0] = 1.0
    wrong = matrix - nearest(matrix, columns) * columns
    return float(np.linalg.norm((sample / factors) @ wrong))
