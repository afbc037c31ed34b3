"""Fusion of audio frames and notes, up to one vector a clip, with what shows how they were weighed.

    frames [rows, t, A], notes [rows, n, M], spans [rows, n, 2] int64
        ->  pooled [rows, W], steps_attention [rows, steps],
            audio_embedding, midi_embedding [rows, W],
            gates [rows, n, W]                       (gated)
            audio_to_midi [rows, t, n], midi_to_audio [rows, n, t]   (cross)

Inputs and outputs of a modality that a network lacks are left out; `spans` are there where notes
are paired with their own frames: first frame and the one after the last, of which the mean is
taken before anything else is done with it.  The published pairing (`frame_index`) cuts both
sequences to the shorter and joins frame i with note i.  Embeddings are the mean over time of what
is projected, of length one, as the contrastive loss reads it.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import ModelProto, TensorProto

from mt3_export.assessors.midi_transformer import EPSILON
from mt3_export.assessors.network_folder import NetworkWeights
from mt3_export.assessors.sequence_pooling import pooled
from mt3_export.classifiers.transformer_blocks import TransformerBlocks
from mt3_export.graphs.graph_builder import Storage

#: PyTorch's floor of a length that something is divided by.
_SHORTEST = 1e-12


def build_fusion(
    weights: NetworkWeights, *, profile: str, storage: Storage, metadata: dict[str, str]
) -> ModelProto:
    """Writes the graph; arguments as in `mt3_export.assessors.mert_encoder.build_mert`."""
    spec, shape = weights.spec, weights.shape
    blocks = TransformerBlocks(
        "fusion",
        weights.tensors,
        profile=profile,
        storage=storage,
        heads=shape.cross_heads,
        epsilon=EPSILON,
    )
    graph = blocks.graph
    sides: dict[str, str] = {}
    if spec.hears:
        frames = graph.input("frames", TensorProto.FLOAT, ["rows", "t", shape.audio_width])
        if spec.alignment == "note":
            spans = graph.input("spans", TensorProto.INT64, ["rows", "n", 2])
            frames = _frames_of_notes(blocks, frames, spans)
        sides["audio"] = frames
    if spec.reads:
        sides["midi"] = graph.input("notes", TensorProto.FLOAT, ["rows", "n", shape.midi_width])
    sides = {side: _projected(blocks, x, side) for side, x in sides.items()}
    for side, x in sides.items():
        _embedding(blocks, x, f"{side}_embedding")
        graph.output(f"{side}_embedding", TensorProto.FLOAT, ["rows", shape.width])
    if spec.alignment == "frame_index":
        sides = _cut_to_the_shorter(blocks, sides)
    fused = _FUSIONS[spec.fusion](blocks, sides, shape.width)
    pooled(blocks, shape, fused)
    graph.output("pooled", TensorProto.FLOAT, ["rows", shape.width])
    graph.output("steps_attention", TensorProto.FLOAT, ["rows", "steps"])
    if spec.fusion == "gated":
        graph.output("gates", TensorProto.FLOAT, ["rows", "paired", shape.width])
    if spec.fusion == "cross":
        graph.output("audio_to_midi", TensorProto.FLOAT, ["rows", "t", "n"])
        graph.output("midi_to_audio", TensorProto.FLOAT, ["rows", "n", "t"])
    return graph.build(metadata)


def _length(blocks: TransformerBlocks, x: str) -> str:
    """The length [1] of the middle axis."""
    graph = blocks.graph
    one, two = graph.constant([1], np.int64), graph.constant([2], np.int64)
    return graph.op("Slice", graph.op("Shape", x), one, two)


def _indices(blocks: TransformerBlocks, length: str) -> str:
    """0, 1, ... [length]."""
    graph = blocks.graph
    count = graph.op("Squeeze", length, graph.constant([0], np.int64))
    return graph.op("Range", graph.constant(0, np.int64), count, graph.constant(1, np.int64))


def _frames_of_notes(blocks: TransformerBlocks, frames: str, spans: str) -> str:
    """The mean [rows, n, A] of the frames from the first to the one before the last of each note.

    A product with a matrix of shares: differences of running sums would lose digits.
    """
    graph = blocks.graph
    at = _indices(blocks, _length(blocks, frames))
    two = graph.constant([2], np.int64)
    sizes = graph.constant([1, 1], np.int64)
    first, last = graph.ops(
        "Split", spans, sizes, outs=[graph.fresh("first"), graph.fresh("last")], axis=2
    )
    inside = graph.op("And", graph.op("GreaterOrEqual", at, first), graph.op("Less", at, last))
    ones = graph.op("Cast", inside, to=TensorProto.FLOAT)
    count = graph.op("ReduceSum", ones, two, keepdims=1)
    shares = graph.op("Div", ones, graph.op("Max", count, graph.constant([1.0], np.float32)))
    return graph.op("MatMul", shares, frames)


def _projected(blocks: TransformerBlocks, x: str, side: str) -> str:
    """Linear, norm, GELU, linear: [rows, n, in] -> [rows, n, W]."""
    place = f"projection.{side}_proj.projection"
    hidden = blocks.gelu(blocks.norm(blocks.linear(x, f"{place}.0"), f"{place}.1"))
    return blocks.linear(hidden, f"{place}.4")


def _embedding(blocks: TransformerBlocks, x: str, out: str) -> None:
    graph = blocks.graph
    mean = blocks.mean(x)
    length = graph.op("ReduceL2", mean, axes=[-1], keepdims=1)
    floor = graph.constant([_SHORTEST], np.float32)
    graph.op("Div", mean, graph.op("Max", length, floor), out=out)


def _cut_to_the_shorter(blocks: TransformerBlocks, sides: dict[str, str]) -> dict[str, str]:
    graph = blocks.graph
    count = graph.op("Min", *(_length(blocks, x) for x in sides.values()))
    zero, one = graph.constant([0], np.int64), graph.constant([1], np.int64)
    return {side: graph.op("Slice", x, zero, count, one) for side, x in sides.items()}


def _gated(blocks: TransformerBlocks, sides: dict[str, str], _width: int) -> str:
    """Gated sum: g T(audio) + (1 - g) T(midi), then linear and norm."""
    graph = blocks.graph
    both = graph.op("Concat", sides["audio"], sides["midi"], axis=-1)
    gate = graph.op("Sigmoid", blocks.linear(both, "fusion.gate"), out="gates")
    audio, midi = (
        blocks.gelu(_block(blocks, sides[side], f"fusion.{side}_transform"))
        for side in ("audio", "midi")
    )
    rest = graph.op("Sub", graph.constant([1.0], np.float32), gate)
    joined = graph.op("Add", graph.op("Mul", gate, audio), graph.op("Mul", rest, midi))
    return _block(blocks, joined, "fusion.output")


def _concatenated(blocks: TransformerBlocks, sides: dict[str, str], _width: int) -> str:
    """Linear, norm, ReLU of both side by side."""
    both = blocks.graph.op("Concat", sides["audio"], sides["midi"], axis=-1)
    return blocks.graph.op("Relu", _block(blocks, both, "fusion.output"))


def _alone(blocks: TransformerBlocks, sides: dict[str, str], _width: int) -> str:
    """Linear, norm, GELU of the one modality."""
    (only,) = sides.values()
    return blocks.gelu(_block(blocks, only, "fusion.output"))


def _block(blocks: TransformerBlocks, x: str, name: str) -> str:
    return blocks.norm(blocks.linear(x, f"{name}.0"), f"{name}.1")


def _crossed(blocks: TransformerBlocks, sides: dict[str, str], width: int) -> str:
    """Attention both ways, each with its feed-forward; notes are stretched to the frames."""
    graph, audio, midi = blocks.graph, sides["audio"], sides["midi"]
    heard = _attended(blocks, audio, midi, "audio_to_midi", width)
    read = _attended(blocks, midi, audio, "midi_to_audio", width)
    results = {}
    for side, own, update in (("audio", audio, heard), ("midi", midi, read)):
        hidden = blocks.norm(graph.op("Add", own, update), f"fusion.{side}_norm1")
        more = blocks.feed_forward(hidden, f"fusion.{side}_ffn")
        results[side] = blocks.norm(graph.op("Add", hidden, more), f"fusion.{side}_norm2")
    stretched = _stretched(blocks, results["midi"], results["audio"])
    return graph.op("Concat", results["audio"], stretched, axis=-1)


def _attended(blocks: TransformerBlocks, own: str, other: str, name: str, width: int) -> str:
    """Cross-attention; its weights, mean of the heads, become the output ``name``."""
    graph, place = blocks.graph, f"fusion.{name}_attn"
    size = width // blocks.heads
    query, key, value = (
        blocks.linear(x, f"{place}.{part}")
        for x, part in ((own, "query"), (other, "key"), (other, "value"))
    )
    q, k, v = (
        blocks.split_heads(x, size, order)
        for x, order in ((query, (0, 2, 1, 3)), (key, (0, 2, 3, 1)), (value, (0, 2, 1, 3)))
    )
    scale = graph.constant(1.0 / math.sqrt(size), np.float32)
    shares = graph.op("Softmax", graph.op("MatMul", graph.op("Mul", q, scale), k), axis=-1)
    graph.op("ReduceMean", shares, axes=[1], keepdims=0, out=name)
    back = graph.op("Transpose", graph.op("MatMul", shares, v), perm=[0, 2, 1, 3])
    mixed = graph.op("Reshape", back, graph.constant([0, 0, width], np.int64))
    return blocks.linear(mixed, f"{place}.out")


def _stretched(blocks: TransformerBlocks, x: str, like: str) -> str:
    """Linear interpolation [rows, n, W] -> [rows, t, W], sample centres aligned (PyTorch's rule).

    Place i of t lies at ((2i + 1) n - t) / 2t of n.  In whole numbers, so that the shares are exact
    for every length: a float32 place near 500 is known to 3e-5 only.
    """
    graph = blocks.graph
    n, t = _length(blocks, x), _length(blocks, like)
    one, two, zero = (graph.constant([k], np.int64) for k in (1, 2, 0))
    i = graph.op("Unsqueeze", _indices(blocks, t), one)  # [t, 1]
    odd = graph.op("Add", graph.op("Mul", i, two), one)
    unit = graph.op("Mul", t, two)
    place = graph.op("Sub", graph.op("Mul", odd, n), t)
    most = graph.op("Mul", graph.op("Sub", n, one), unit)
    place = graph.op("Min", graph.op("Max", place, zero), most)
    below = graph.op("Div", place, unit)
    rest = graph.op("Sub", place, graph.op("Mul", below, unit))
    above = graph.op(
        "Div",
        graph.op("Cast", rest, to=TensorProto.FLOAT),
        graph.op("Cast", unit, to=TensorProto.FLOAT),
    )
    j = _indices(blocks, n)  # [n]
    lower = graph.op("Cast", graph.op("Equal", j, below), to=TensorProto.FLOAT)
    upper = graph.op(
        "Cast", graph.op("Equal", j, graph.op("Add", below, one)), to=TensorProto.FLOAT
    )
    keep = graph.op("Sub", graph.constant([1.0], np.float32), above)
    shares = graph.op("Add", graph.op("Mul", lower, keep), graph.op("Mul", upper, above))
    return graph.op("MatMul", shares, x)


_FUSIONS = {
    "gated": _gated,
    "concat": _concatenated,
    "cross": _crossed,
    "audio": _alone,
    "midi": _alone,
}
