"""Aggregation over time: two-way LSTM layers, then attention of one learned query.

    fused [rows, steps, F]  ->  pooled [rows, W], steps_attention [rows, steps]

PyTorch orders the gates of an LSTM input, forget, cell, output; ONNX input, output, forget, cell.
"""

from __future__ import annotations

import math

import numpy as np

from mt3_export.assessors.network_folder import NetworkShape
from mt3_export.classifiers.transformer_blocks import TransformerBlocks
from mt3_export.weights import FloatArray


def pooled(blocks: TransformerBlocks, shape: NetworkShape, x: str) -> None:
    """Writes ``pooled`` and ``steps_attention`` of what was fused.

    Args:
        blocks: Where they are written, with the weights.
        shape: Of the network.
        x: [rows, steps, F].
    """
    graph, place, width = blocks.graph, "aggregator.attention", 2 * shape.lstm_width
    for layer in range(shape.lstm_layers):
        x = _two_way_lstm(blocks, shape, x, layer)
    size = width // shape.pool_heads
    query = graph.constant(_query(blocks, size, shape.pool_heads), np.float32)
    heads = graph.constant([0, 0, shape.pool_heads, size], np.int64)
    key, value = (
        graph.op(
            "Transpose", graph.op("Reshape", blocks.linear(x, f"{place}.{part}"), heads), perm=order
        )
        for part, order in (("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
    )
    shares = graph.op("Softmax", graph.op("MatMul", query, key), axis=-1)  # [rows, heads, 1, steps]
    graph.op("ReduceMean", shares, axes=[1, 2], keepdims=0, out="steps_attention")
    mixed = graph.op("MatMul", shares, value)  # [rows, heads, 1, size]
    flat = graph.op("Reshape", mixed, graph.constant([0, width], np.int64))
    normed = blocks.norm(blocks.linear(flat, f"{place}.out"), "aggregator.layer_norm")
    graph.op("Relu", blocks.linear(normed, "aggregator.projection.0"), out="pooled")


def _query(blocks: TransformerBlocks, size: int, heads: int) -> FloatArray:
    """The learned query, projected and scaled once and for all: [1, heads, 1, size]."""
    weights, place = blocks.weights, "aggregator.attention.query"
    query = weights["aggregator.query"].astype(np.float64)
    made = query @ weights[f"{place}.weight"].astype(np.float64).T + weights[f"{place}.bias"]
    return (made / math.sqrt(size)).reshape(1, heads, 1, size).astype(np.float32)


def _two_way_lstm(blocks: TransformerBlocks, shape: NetworkShape, x: str, layer: int) -> str:
    """One layer both ways: [rows, steps, in] -> [rows, steps, 2 hidden]."""
    graph, hidden = blocks.graph, shape.lstm_width
    ways = ("", "_reverse")
    parts = {
        part: [_onnx_order(blocks.weights[f"aggregator.lstm.{part}_l{layer}{way}"]) for way in ways]
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    name = f"aggregator.lstm.{layer}"
    read = graph.parameter(f"{name}.input", np.stack(parts["weight_ih"]))
    kept = graph.parameter(f"{name}.recurrence", np.stack(parts["weight_hh"]))
    biases = [np.concatenate(pair) for pair in zip(parts["bias_ih"], parts["bias_hh"], strict=True)]
    bias = graph.parameter(f"{name}.bias", np.stack(biases), exact=True)
    first = graph.op("Transpose", x, perm=[1, 0, 2])
    every = graph.op(
        "LSTM", first, read, kept, bias, hidden_size=hidden, direction="bidirectional"
    )  # [steps, 2, rows, hidden]
    turned = graph.op("Transpose", every, perm=[2, 0, 1, 3])
    return graph.op("Reshape", turned, graph.constant([0, 0, 2 * hidden], np.int64))


def _onnx_order(rows: FloatArray) -> FloatArray:
    """Gates [4 hidden, ...] in the order of ONNX."""
    i, f, g, o = np.split(rows, 4)
    return np.concatenate([i, o, f, g])
