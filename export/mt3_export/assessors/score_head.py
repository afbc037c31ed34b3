"""The multi-task head: scores with their learned uncertainty, and the ordinal output.

    pooled [rows, W]  ->  scores [rows, k] from 0 to 100, log_variance [k],
                          ordinal [rows, classes - 1] logits of "above class c" (CORAL)

The uncertainty is one number a dimension, not one a recording: that is what was published, and
`mt3_analysis.assessment_networks` says so where it is constant.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto

from mt3_export.assessors.midi_transformer import EPSILON
from mt3_export.assessors.network_folder import NetworkWeights
from mt3_export.classifiers.transformer_blocks import TransformerBlocks
from mt3_export.graphs.graph_builder import Storage

#: Scores are from 0 to this.
SCALE = 100.0


def build_head(
    weights: NetworkWeights, *, profile: str, storage: Storage, metadata: dict[str, str]
) -> ModelProto:
    """Writes the graph; arguments as in `mt3_export.assessors.mert_encoder.build_mert`."""
    spec, shape, tensors = weights.spec, weights.shape, weights.tensors
    blocks = TransformerBlocks(
        "head", tensors, profile=profile, storage=storage, heads=1, epsilon=EPSILON
    )
    graph, count, each = blocks.graph, len(spec.dimensions), shape.head_widths[2]
    x = graph.input("pooled", TensorProto.FLOAT, ["rows", shape.width])
    shared = x
    for layer in (0, 3):
        shared = graph.op("Relu", blocks.linear(shared, f"mtl_head.shared_extractor.{layer}"))
    own = [f"mtl_head.task_heads.{name}.0" for name in spec.dimensions]
    hidden = graph.op("Relu", blocks.linear(shared, *own))
    apart = graph.op("Reshape", hidden, graph.constant([0, count, each], np.int64))
    weight = graph.parameter("mtl_head.dimensions.weight", tensors["mtl_head.dimensions.weight"])
    bias = graph.parameter("mtl_head.dimensions.bias", tensors["mtl_head.dimensions.bias"])
    last = graph.constant([2], np.int64)
    sums = graph.op("ReduceSum", graph.op("Mul", apart, weight), last, keepdims=0)
    shares = graph.op("Sigmoid", graph.op("Add", sums, bias))
    graph.op("Mul", shares, graph.constant([SCALE], np.float32), out="scores")
    graph.output("scores", TensorProto.FLOAT, ["rows", count])
    known = graph.parameter("mtl_head.log_vars", tensors["mtl_head.log_vars"])
    graph.op("Identity", known, out="log_variance")
    graph.output("log_variance", TensorProto.FLOAT, [count])
    if spec.ordinal_classes:
        kernel = graph.parameter("mtl_head.ordinal.kernel", tensors["mtl_head.ordinal.weight"].T)
        biases = graph.parameter("mtl_head.ordinal.bias", tensors["mtl_head.ordinal.bias"])
        graph.op("Add", graph.op("MatMul", x, kernel), biases, out="ordinal")
        graph.output("ordinal", TensorProto.FLOAT, ["rows", spec.ordinal_classes - 1])
    return graph.build(metadata)
