"""The MIDI encoder of the assessing networks: Octuple tokens to one vector a note.

    tokens [rows, n, 8] int64  ->  notes [rows, n, width]

Eight embeddings side by side, a linear layer, learned positions, post-norm layers, a last norm.
There is no mask: rows of a batch have one length, and what the caller fills up is read, as in the
published network.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto

from mt3_export.assessors.network_folder import TOKEN_FIELDS, NetworkWeights
from mt3_export.classifiers.transformer_blocks import TransformerBlocks
from mt3_export.graphs.graph_builder import Storage

EPSILON = 1e-5
"""PyTorch's default of LayerNorm, which the published networks keep."""


def build_midi_encoder(
    weights: NetworkWeights, *, profile: str, storage: Storage, metadata: dict[str, str]
) -> ModelProto:
    """Writes the graph; arguments as in `mt3_export.assessors.mert_encoder.build_mert`."""
    shape, tensors, top = weights.shape, weights.tensors, "midi_encoder"
    blocks = TransformerBlocks(
        "midi_encoder",
        tensors,
        profile=profile,
        storage=storage,
        heads=shape.midi_heads,
        epsilon=EPSILON,
    )
    graph = blocks.graph
    tokens = graph.input("tokens", TensorProto.INT64, ["rows", "n", len(TOKEN_FIELDS)])
    parts = []
    for index, (field, _, _) in enumerate(TOKEN_FIELDS):
        name = f"{top}.{field}_embed.weight"
        column = graph.op("Gather", tokens, graph.constant(index, np.int64), axis=2)
        parts.append(graph.op("Gather", graph.parameter(name, tensors[name]), column))
    hidden = blocks.linear(graph.op("Concat", *parts, axis=-1), f"{top}.embed_projection")
    table = graph.parameter(f"{top}.positions", tensors[f"{top}.positions"])
    one, two = graph.constant([1], np.int64), graph.constant([2], np.int64)
    count = graph.op("Slice", graph.op("Shape", tokens), one, two)
    zero = graph.constant([0], np.int64)
    hidden = graph.op("Add", hidden, graph.op("Slice", table, zero, count, zero))
    for layer in range(shape.midi_layers):
        place = f"{top}.transformer.layers.{layer}"
        update = blocks.self_attention(hidden, f"{place}.self_attn", shape.midi_width)
        hidden = blocks.norm(graph.op("Add", hidden, update), f"{place}.norm1")
        update = blocks.feed_forward(hidden, place)
        hidden = blocks.norm(graph.op("Add", hidden, update), f"{place}.norm2")
    last = blocks.norm(hidden, f"{top}.layer_norm")
    graph.op("Identity", last, out="notes")
    graph.output("notes", TensorProto.FLOAT, ["rows", "n", shape.midi_width])
    return graph.build(metadata)
