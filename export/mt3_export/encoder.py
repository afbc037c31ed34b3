"""The T5 encoder as an ONNX graph that ends in the decoder's cross-attention keys and values.

    features [N, T, bins]  ->  cross_key_i [N, H, D, T] or [N, H, T, D],  cross_value_i [N, H, T, D]

The encoder's own output is not an output of the graph: a decoder needs it only through its cross
projections, which are constant over all steps of a segment and therefore computed once, here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from mt3_export.profiles import Blocks, blocks_for

if TYPE_CHECKING:
    import onnx

    from mt3_export.graph import Storage
    from mt3_export.weights import Weights


def build_encoder(
    weights: Weights,
    frames: int,
    *,
    profile: str,
    storage: Storage = "fp32",
    metadata: dict[str, str] | None = None,
    expose_output: bool = False,
) -> onnx.ModelProto:
    """Writes the encoder graph.

    Args:
        weights: Canonical weights.
        frames: T, the fixed number of feature frames of a segment.
        profile: A key of `mt3_export.profiles.PROFILES`.
        storage: Precision of the stored matrices; arithmetic is fp32.
        metadata: Written to the model's ``metadata_props``.
        expose_output: Adds ``encoded`` [N, T, M], for parity tests.
    """
    blocks = blocks_for(profile)("mt3_encoder", weights.shape, storage=storage)
    graph = blocks.graph
    features = graph.input(
        "features", TensorProto.FLOAT, ["rows", frames, weights.shape.input_bins]
    )
    encoded = _stack(blocks, weights, features, frames)
    for layer in range(weights.shape.decoder_layers):
        _cross_projection(blocks, weights, encoded, layer=layer, frames=frames)
    if expose_output:
        graph.op("Identity", encoded, out="encoded")
        graph.output("encoded", TensorProto.FLOAT, ["rows", frames, weights.shape.d_model])
    return graph.build(metadata or {})


def _stack(blocks: Blocks, weights: Weights, features: str, frames: int) -> str:
    """Input projection, positions, layers and final norm: returns [N, T, M]."""
    graph, tensors = blocks.graph, weights.tensors
    name = "encoder.continuous_inputs_projection.kernel"
    positions = weights.positions.table(frames, weights.shape.d_model)
    hidden = graph.op(
        "Add",
        blocks.dense(features, name, tensors[name]),
        graph.parameter("encoder.position_table", positions[None]),
    )
    layers = weights.shape.encoder_layers
    scale = scale_parameter(blocks, weights, "encoder.layers_0.pre_attention_layer_norm.scale")
    normed = blocks.rms_norm(hidden, scale)
    for layer in range(layers):
        prefix = f"encoder.layers_{layer}"
        qkv = fused_dense(blocks, weights, normed, f"{prefix}.attention", ("query", "key", "value"))
        name = f"{prefix}.attention.out.kernel"
        update = blocks.dense(blocks.full_attention(qkv), name, tensors[name])
        scale = scale_parameter(blocks, weights, f"{prefix}.pre_mlp_layer_norm.scale")
        hidden, normed = blocks.add_norm(hidden, update, scale)
        update = feed_forward(blocks, weights, normed, f"{prefix}.mlp")
        following = (
            f"encoder.layers_{layer + 1}.pre_attention_layer_norm.scale"
            if layer + 1 < layers
            else "encoder.encoder_norm.scale"
        )
        hidden, normed = blocks.add_norm(
            hidden, update, scale_parameter(blocks, weights, following)
        )
    return normed


def _cross_projection(
    blocks: Blocks, weights: Weights, encoded: str, *, layer: int, frames: int
) -> None:
    """Adds the outputs ``cross_key_i`` and ``cross_value_i`` of one decoder layer."""
    graph, shape = blocks.graph, weights.shape
    prefix = f"decoder.layers_{layer}.encoder_decoder_attention"
    both = fused_dense(blocks, weights, encoded, prefix, ("key", "value"))
    key, value = blocks.split(both, 2, shape.inner)
    transposed = blocks.cross_key_transposed
    blocks.split_heads(key, transposed=transposed, out=f"cross_key_{layer}")
    blocks.split_heads(value, out=f"cross_value_{layer}")
    key_shape = [shape.head_dim, frames] if transposed else [frames, shape.head_dim]
    graph.output(f"cross_key_{layer}", TensorProto.FLOAT, ["rows", shape.heads, *key_shape])
    graph.output(
        f"cross_value_{layer}", TensorProto.FLOAT, ["rows", shape.heads, frames, shape.head_dim]
    )


def scale_parameter(blocks: Blocks, weights: Weights, name: str) -> str:
    """Stores a norm scale [M] under its own name."""
    return blocks.graph.parameter(name, weights.tensors[name])


def fused_dense(
    blocks: Blocks, weights: Weights, x: str, prefix: str, parts: tuple[str, ...]
) -> str:
    """One matrix product for several projections of the same input.

    The fused matrix is stored as ``prefix.part1+part2.kernel``, so that a weight map can find its
    columns again: they stand side by side in the order of the name.
    """
    kernels = [weights.tensors[f"{prefix}.{part}.kernel"] for part in parts]
    return blocks.dense(x, f"{prefix}.{'+'.join(parts)}.kernel", np.concatenate(kernels, axis=1))


def feed_forward(blocks: Blocks, weights: Weights, x: str, prefix: str) -> str:
    """Gated GELU block: (gelu(x W0) * (x W1)) Wo."""
    graph = blocks.graph
    both = fused_dense(blocks, weights, x, prefix, ("wi_0", "wi_1"))
    gate, linear = blocks.split(both, 2, weights.shape.d_ff)
    mixed = graph.op("Mul", blocks.gelu(gate), linear)
    name = f"{prefix}.wo.kernel"
    return blocks.dense(mixed, name, weights.tensors[name])
