"""The network once more, in plain float64 NumPy: slow, whole-sequence, written from the formulas.

It shares no code with the exporter but the weights' names, so that a graph that agrees with it
computes T5 1.1 as MT3 uses it (variants of the formula are listed in docs/parity.md).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mt3_export.weights import MemoryShape, Weights

Array = npt.NDArray[np.float64]


def encode(weights: Weights, features: npt.NDArray[np.float32]) -> Array:
    """Encoder output [n, T, M] of features [n, T, bins]."""
    get = _getter(weights)
    hidden = features.astype(np.float64)
    if "encoder.continuous_inputs_projection.kernel" in weights.tensors:
        hidden = hidden @ get("encoder.continuous_inputs_projection.kernel")
    return _encoder(weights, hidden, "encoder", weights.shape.encoder_layers)


def remember(weights: Weights, ids: npt.NDArray[np.int64], rows: int) -> Array:
    """Memory [n, rows, M] of ids [n, L]; a decoder sees it behind the encoder output."""
    get, shape = _getter(weights), weights.shape
    assert isinstance(shape, MemoryShape)
    hidden = get("decoder.token_embedder.embedding")[ids]
    hidden = hidden @ get("memory_encoder.token_projection.kernel")
    return _encoder(weights, hidden, "memory_encoder", shape.memory_layers)[:, :rows]


def _encoder(weights: Weights, hidden: Array, stack: str, layers: int) -> Array:
    get = _getter(weights)
    hidden = hidden + weights.positions.table(hidden.shape[1], weights.shape.d_model)
    for layer in range(layers):
        name = f"{stack}.layers_{layer}"
        normed = _norm(hidden, get(f"{name}.pre_attention_layer_norm.scale"))
        hidden = hidden + _attention(weights, f"{name}.attention", normed, normed, None)
        hidden = hidden + _mlp(weights, name, hidden)
    return _norm(hidden, get(f"{stack}.encoder_norm.scale"))


def teacher_forced(weights: Weights, encoded: Array, tokens: npt.NDArray[np.int64]) -> Array:
    """Logits [n, L, V] after reading each of the tokens [n, L] (the start token first)."""
    get = _getter(weights)
    length = tokens.shape[1]
    hidden = get("decoder.token_embedder.embedding")[tokens]
    hidden = hidden + weights.positions.table(length, weights.shape.d_model)
    causal = np.tril(np.ones((length, length), bool))
    for layer in range(weights.shape.decoder_layers):
        name = f"decoder.layers_{layer}"
        normed = _norm(hidden, get(f"{name}.pre_self_attention_layer_norm.scale"))
        hidden = hidden + _attention(weights, f"{name}.self_attention", normed, normed, causal)
        normed = _norm(hidden, get(f"{name}.pre_cross_attention_layer_norm.scale"))
        cross = f"{name}.encoder_decoder_attention"
        hidden = hidden + _attention(weights, cross, normed, encoded, None)
        hidden = hidden + _mlp(weights, name, hidden)
    normed = _norm(hidden, get("decoder.decoder_norm.scale")) * weights.shape.logits_scale
    return np.asarray(normed @ get("decoder.logits_dense.kernel"))


def _getter(weights: Weights):  # type: ignore[no-untyped-def]
    return lambda name: weights.tensors[name].astype(np.float64)


def _norm(x: Array, scale: Array) -> Array:
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale)


def _attention(
    weights: Weights, name: str, queries: Array, keys: Array, mask: npt.NDArray[np.bool_] | None
) -> Array:
    get, shape = _getter(weights), weights.shape

    def heads(x: Array, part: str) -> Array:
        folded = x @ get(f"{name}.{part}.kernel")
        return np.asarray(folded.reshape(*x.shape[:2], shape.heads, shape.head_dim).swapaxes(1, 2))

    scores = heads(queries, "query") @ heads(keys, "key").swapaxes(2, 3)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (exp / exp.sum(-1, keepdims=True)) @ heads(keys, "value")
    merged = mixed.swapaxes(1, 2).reshape(*queries.shape[:2], shape.inner)
    return np.asarray(merged @ get(f"{name}.out.kernel"))


def _mlp(weights: Weights, layer: str, hidden: Array) -> Array:
    get = _getter(weights)
    normed = _norm(hidden, get(f"{layer}.pre_mlp_layer_norm.scale"))
    gate = normed @ get(f"{layer}.mlp.wi_0.kernel")
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    linear = normed @ get(f"{layer}.mlp.wi_1.kernel")
    return np.asarray((gelu * linear) @ get(f"{layer}.mlp.wo.kernel"))
