"""Builds the T5 decoder step as an ONNX graph: one new token for every row.

    token_ids [N, 1] int64      the token to read (the start token 0 first)
    positions [N] int32         its position, which is also the number of tokens already cached
    allowed   [N, V] bool       tokens the choice may fall on
    past_key_i, past_value_i    [N, H, L, D], L = capacity (in place), tokens so far (concat)
    cross_key_i, cross_value_i  from the encoder graph
 ->
    next_ids      [N, 1] int64  the best allowed token; bind it to the buffer of token_ids
    top_ids       [N, 2] int64  the two best allowed tokens, best first
    top_log_probs [N, 2]        their log-softmax over all tokens (the mask has no say in it)
    present_key_i, present_value_i

Ties go to the lower id, as in the reference implementations' arg-max.  Every ``past`` tensor is
read by exactly one node, the one that writes its ``present``; this is what makes it safe to bind
both to one buffer, and `mt3_export.graphs.lint` checks it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from mt3_export.graphs.encoder import feed_forward, fused_dense, scale_parameter
from mt3_export.graphs.profiles import Blocks, SelfAttention, blocks_for

if TYPE_CHECKING:
    import onnx

    from mt3_export.graphs.graph_builder import Dim, Storage
    from mt3_export.weights import Weights


def build_decoder(
    weights: Weights,
    frames: int,
    *,
    max_tokens: int,
    profile: str,
    storage: Storage = "fp32",
    metadata: dict[str, str] | None = None,
    expose_logits: bool = False,
) -> onnx.ModelProto:
    """Writes the decoder step graph.

    Args:
        weights: Canonical weights.
        frames: T, the number of encoder frames.
        max_tokens: Length of the stored position table; decoding stops there.
        profile: A key of `mt3_export.graphs.profiles.PROFILES`.
        storage: Precision of the stored matrices; arithmetic is fp32.
        metadata: Written to the model's ``metadata_props``.
        expose_logits: Adds ``logits`` [N, V], for parity tests.
    """
    shape = weights.shape
    blocks = blocks_for(profile)("mt3_decoder_step", shape, storage=storage)
    graph = blocks.graph
    token_ids = graph.input("token_ids", TensorProto.INT64, ["rows", 1])
    positions = graph.input("positions", TensorProto.INT32, ["rows"])
    allowed = graph.input("allowed", TensorProto.BOOL, ["rows", shape.vocab_size])
    hidden = _embed(blocks, weights, token_ids, positions, max_tokens=max_tokens)
    blocks.prepare_cache(positions)
    normed = _layers(blocks, weights, hidden, frames=frames)
    if shape.logits_scale != 1.0:
        normed = graph.op("Mul", normed, graph.constant(shape.logits_scale, np.float32))
    name = "decoder.logits_dense.kernel"
    logits = graph.op(
        "Squeeze", blocks.dense(normed, name, weights.tensors[name]), graph.constant([1], np.int64)
    )
    if expose_logits:
        graph.op("Identity", logits, out="logits")
        graph.output("logits", TensorProto.FLOAT, ["rows", shape.vocab_size])
    _choose(blocks, logits, allowed)
    return graph.build(metadata or {})


def _embed(
    blocks: Blocks, weights: Weights, token_ids: str, positions: str, *, max_tokens: int
) -> str:
    """Token embedding plus position row: [N, 1, M]."""
    graph = blocks.graph
    name = "decoder.token_embedder.embedding"
    embedding = graph.parameter(name, weights.tensors[name])
    table = weights.positions.table(max_tokens, weights.shape.d_model)
    rows = graph.op("Unsqueeze", positions, graph.constant([1], np.int64))
    return graph.op(
        "Add",
        graph.op("Gather", embedding, token_ids),
        graph.op("Gather", graph.parameter("decoder.position_table", table), rows),
    )


def _layers(blocks: Blocks, weights: Weights, hidden: str, *, frames: int) -> str:
    """All decoder layers and the final norm: [N, 1, M]."""
    tensors, layers = weights.tensors, weights.shape.decoder_layers
    scale = scale_parameter(blocks, weights, "decoder.layers_0.pre_self_attention_layer_norm.scale")
    normed = blocks.rms_norm(hidden, scale)
    for layer in range(layers):
        prefix = f"decoder.layers_{layer}"
        qkv = fused_dense(
            blocks, weights, normed, f"{prefix}.self_attention", ("query", "key", "value")
        )
        mixed = blocks.cached_attention(_declare_cache(blocks, weights, qkv, layer))
        name = f"{prefix}.self_attention.out.kernel"
        update = blocks.dense(mixed, name, tensors[name])
        scale = scale_parameter(blocks, weights, f"{prefix}.pre_cross_attention_layer_norm.scale")
        hidden, normed = blocks.add_norm(hidden, update, scale)

        name = f"{prefix}.encoder_decoder_attention.query.kernel"
        query = blocks.dense(normed, name, tensors[name])
        mixed = blocks.cross_attention(query, *_declare_cross(blocks, weights, layer, frames))
        name = f"{prefix}.encoder_decoder_attention.out.kernel"
        update = blocks.dense(mixed, name, tensors[name])
        scale = scale_parameter(blocks, weights, f"{prefix}.pre_mlp_layer_norm.scale")
        hidden, normed = blocks.add_norm(hidden, update, scale)

        update = feed_forward(blocks, weights, normed, f"{prefix}.mlp")
        following = (
            f"decoder.layers_{layer + 1}.pre_self_attention_layer_norm.scale"
            if layer + 1 < layers
            else "decoder.decoder_norm.scale"
        )
        hidden, normed = blocks.add_norm(
            hidden, update, scale_parameter(blocks, weights, following)
        )
    return normed


def _declare_cache(blocks: Blocks, weights: Weights, qkv: str, layer: int) -> SelfAttention:
    """Declares one layer's self-attention cache as inputs and outputs."""
    graph, shape = blocks.graph, weights.shape
    concat = blocks.cache == "concat"
    past: list[Dim] = ["rows", shape.heads, "past" if concat else "capacity", shape.head_dim]
    present: list[Dim] = ["rows", shape.heads, "present" if concat else "capacity", shape.head_dim]
    return SelfAttention(
        qkv=qkv,
        past_key=graph.input(f"past_key_{layer}", TensorProto.FLOAT, past),
        past_value=graph.input(f"past_value_{layer}", TensorProto.FLOAT, past),
        present_key=graph.output(f"present_key_{layer}", TensorProto.FLOAT, present),
        present_value=graph.output(f"present_value_{layer}", TensorProto.FLOAT, present),
    )


def _declare_cross(blocks: Blocks, weights: Weights, layer: int, frames: int) -> tuple[str, str]:
    """Declares one layer's cross-attention keys and values as inputs."""
    graph, shape = blocks.graph, weights.shape
    value: list[Dim] = ["rows", shape.heads, frames, shape.head_dim]
    key: list[Dim] = (
        ["rows", shape.heads, shape.head_dim, frames] if blocks.cross_key_transposed else value
    )
    return (
        graph.input(f"cross_key_{layer}", TensorProto.FLOAT, key),
        graph.input(f"cross_value_{layer}", TensorProto.FLOAT, value),
    )


def _choose(blocks: Blocks, logits: str, allowed: str) -> None:
    """The two best allowed tokens, their log-probabilities and the one to feed back."""
    graph = blocks.graph
    # The lowest fp32 number instead of -inf keeps a row with nothing allowed free of NaN.
    lowest = graph.constant(np.finfo(np.float32).min, np.float32)
    masked = graph.op("Where", allowed, logits, lowest)
    two = graph.constant([2], np.int64)
    _, top_ids = graph.ops("TopK", masked, two, outs=["top_logits", "top_ids"], axis=-1)
    log_probs = graph.op("LogSoftmax", logits, axis=-1)
    graph.op("GatherElements", log_probs, top_ids, axis=1, out="top_log_probs")
    start, end, axis = (graph.constant([n], np.int64) for n in (0, 1, 1))
    graph.op("Slice", top_ids, start, end, axis, out="next_ids")
    graph.output("next_ids", TensorProto.INT64, ["rows", 1])
    graph.output("top_ids", TensorProto.INT64, ["rows", 2])
    graph.output("top_log_probs", TensorProto.FLOAT, ["rows", 2])
