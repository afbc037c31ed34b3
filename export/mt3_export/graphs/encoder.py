"""Builds the T5 encoder as an ONNX graph that ends in cross-attention keys and values.

    features [N, T, bins]  ->  cross_key_i [N, H, D, T] or [N, H, T, D],  cross_value_i [N, H, T, D]

A model of several decoder channels has N * channels output rows, those of one segment in sequence.
The layers here are T5's; YourMT3's other encoder is `mt3_export.graphs.perceiver_encoder`.

The encoder's own output is not an output of the graph: a decoder needs it only through its cross
projections, which are constant over all steps of a segment and therefore computed once, here.

A model with memory (MR-MT3) has a second input, ``previous_ids`` [N, tokens]: the tokens of the
segment before.  An encoder of their own, T5 as well and without any mask, so that padding counts,
turns them into rows of which the first M are the memory.  They stand behind the T rows of the
audio, and the cross projections have T + M rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from mt3_export.graphs.perceiver_encoder import perceiver_stack
from mt3_export.graphs.profiles import Blocks, blocks_for
from mt3_export.weights import MemoryShape
from mt3_export.yourmt3 import PerceiverShape
from mt3_runtime.errors import CheckpointError

if TYPE_CHECKING:
    import onnx

    from mt3_export.graphs.graph_builder import Storage
    from mt3_export.weights import Weights


def build_encoder(
    weights: Weights,
    frames: int,
    *,
    profile: str,
    storage: Storage = "fp32",
    metadata: dict[str, str] | None = None,
    memory: int = 0,
    memory_tokens: int = 0,
    expose_output: bool = False,
) -> onnx.ModelProto:
    """Writes the encoder graph.

    Args:
        weights: Canonical weights.
        frames: T, the fixed number of feature frames of a segment.
        profile: A key of `mt3_export.graphs.profiles.PROFILES`.
        storage: Precision of the stored matrices; arithmetic is fp32.
        metadata: Written to the model's ``metadata_props``.
        memory: M, rows of memory; 0 for a graph without ``previous_ids``.
        memory_tokens: Length of ``previous_ids``.
        expose_output: Adds ``encoded`` [rows, T + M, d_model], for parity tests.

    Raises:
        CheckpointError: A memory is wanted of weights that have none.
    """
    blocks = blocks_for(profile)("mt3_encoder", weights.shape, storage=storage)
    graph = blocks.graph
    features = graph.input(
        "features", TensorProto.FLOAT, ["rows", frames, weights.shape.input_bins]
    )
    encode = perceiver_stack if isinstance(weights.shape, PerceiverShape) else _encode
    encoded = encode(blocks, weights, features, frames)
    if memory:
        previous = graph.input("previous_ids", TensorProto.INT64, ["rows", memory_tokens])
        remembered = _remember(blocks, weights, previous, memory, memory_tokens)
        encoded = graph.op("Concat", encoded, remembered, axis=1)
    rows = frames + memory
    for layer in range(weights.shape.decoder_layers):
        _cross_projection(blocks, weights, encoded, layer=layer, frames=rows)
    if expose_output:
        graph.op("Identity", encoded, out="encoded")
        graph.output("encoded", TensorProto.FLOAT, [_rows(weights), rows, weights.shape.d_model])
    return graph.build(metadata or {})


def _rows(weights: Weights) -> str:
    """Name of the row axis of what leaves the encoder."""
    return "rows" if weights.shape.channels == 1 else "channel_rows"


def _encode(blocks: Blocks, weights: Weights, features: str, frames: int) -> str:
    """The output of a T5 encoder for features, projected where it has a matrix for that."""
    name = "encoder.continuous_inputs_projection.kernel"
    if name in weights.tensors:
        features = blocks.dense(features, name, weights.tensors[name])
    hidden = _add_positions(blocks, weights, features, "encoder", frames)
    return _stack(blocks, weights, hidden, "encoder", weights.shape.encoder_layers)


def _remember(blocks: Blocks, weights: Weights, ids: str, rows: int, tokens: int) -> str:
    """The memory of the tokens [N, tokens] of the segment before: [N, rows, d_model]."""
    graph, tensors, shape = blocks.graph, weights.tensors, weights.shape
    if not isinstance(shape, MemoryShape):
        raise CheckpointError(
            f"a memory of {rows} rows needs weights that make it, and these have none"
        )
    name = "decoder.token_embedder.embedding"
    embedded = graph.op("Gather", graph.parameter(name, tensors[name]), ids)
    name = "memory_encoder.token_projection.kernel"
    projected = blocks.dense(embedded, name, tensors[name])
    hidden = _add_positions(blocks, weights, projected, "memory_encoder", tokens)
    return _stack(blocks, weights, hidden, "memory_encoder", shape.memory_layers, rows=rows)


def _add_positions(blocks: Blocks, weights: Weights, x: str, stack: str, length: int) -> str:
    positions = weights.positions.table(length, weights.shape.d_model)
    table = blocks.graph.parameter(f"{stack}.position_table", positions[None])
    return blocks.graph.op("Add", x, table)


def _stack(
    blocks: Blocks, weights: Weights, hidden: str, stack: str, layers: int, *, rows: int = 0
) -> str:
    """Layers and final norm: [N, L, d_model], or of its first ``rows`` only, if given.

    What the other rows come to in the last layer is then not computed; as keys and values they
    count in any case.
    """
    tensors = weights.tensors
    scale = scale_parameter(blocks, weights, f"{stack}.layers_0.pre_attention_layer_norm.scale")
    normed = blocks.rms_norm(hidden, scale)
    for layer in range(layers):
        prefix = f"{stack}.layers_{layer}"
        if rows and layer + 1 == layers:
            both = fused_dense(blocks, weights, normed, f"{prefix}.attention", ("key", "value"))
            hidden, normed = (blocks.first_rows(x, rows) for x in (hidden, normed))
            query = fused_dense(blocks, weights, normed, f"{prefix}.attention", ("query",))
            mixed = blocks.attention(query, *blocks.split(both, 2, weights.shape.inner))
        else:
            parts = ("query", "key", "value")
            qkv = fused_dense(blocks, weights, normed, f"{prefix}.attention", parts)
            mixed = blocks.full_attention(qkv)
        name = f"{prefix}.attention.out.kernel"
        update = blocks.dense(mixed, name, tensors[name])
        scale = scale_parameter(blocks, weights, f"{prefix}.pre_mlp_layer_norm.scale")
        hidden, normed = blocks.add_norm(hidden, update, scale)
        update = feed_forward(blocks, weights, normed, f"{prefix}.mlp")
        following = (
            f"{stack}.layers_{layer + 1}.pre_attention_layer_norm.scale"
            if layer + 1 < layers
            else f"{stack}.encoder_norm.scale"
        )
        hidden, normed = blocks.add_norm(
            hidden, update, scale_parameter(blocks, weights, following)
        )
    return normed


def _cross_projection(
    blocks: Blocks, weights: Weights, encoded: str, *, layer: int, frames: int
) -> None:
    """Adds the outputs ``cross_key_i`` and ``cross_value_i`` of one decoder layer."""
    graph, shape, rows = blocks.graph, weights.shape, _rows(weights)
    prefix = f"decoder.layers_{layer}.encoder_decoder_attention"
    both = fused_dense(blocks, weights, encoded, prefix, ("key", "value"))
    key, value = blocks.split(both, 2, shape.inner)
    transposed = blocks.cross_key_transposed
    blocks.split_heads(key, transposed=transposed, out=f"cross_key_{layer}")
    blocks.split_heads(value, out=f"cross_value_{layer}")
    key_shape = [shape.head_dim, frames] if transposed else [frames, shape.head_dim]
    graph.output(f"cross_key_{layer}", TensorProto.FLOAT, [rows, shape.heads, *key_shape])
    graph.output(
        f"cross_value_{layer}", TensorProto.FLOAT, [rows, shape.heads, frames, shape.head_dim]
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
