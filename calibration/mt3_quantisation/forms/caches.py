"""Quantises the decoder's key/value caches to int8 in graphs of the profile `cpu`.

Contract: `find_scales` listens for how large keys and values become, channel by channel; the two
rewrites, `int8_encoder` and `int8_decoder`, make an exact pair of graphs keep them in int8.  Scales
are constants of the graphs, so a row's numbers do not depend on its neighbours.

What that costs, and why it is done like this (ONNX Runtime 1.31, AVX-512):

- The encoder's cross keys and values are rounded with one scale of 1 for the whole tensor, which is
  one vectorised pass, because each channel's own scale is folded into its column of the projection
  before them: W / s.  A `QuantizeLinear` with a scale per channel costs 0.8 s of a song instead.
- The decoder reads both caches with GroupQueryAttention, whose int8 kernels multiply by the scales
  on the way and add up in fp32.  Cross-attention is its form without new keys: all of them are past
  ones.  That takes half the time of fp32 products, because a quarter of the bytes is read; fp16
  caches would take three times as long as int8 ones.
- The kernel insists on giving the cross caches out again, as ``present_cross_*``.  Bound to the
  buffers it reads, as the contract says, nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from mt3_export.graphs.graph_builder import MICROSOFT
from mt3_quantisation.forms.recipes import Talk
from mt3_quantisation.forms.step_graphs import drop_unused
from mt3_quantisation.gates.exact_bundle import Changed, FloatArray, Source
from mt3_quantisation.gates.teacher_forcing import Segment, encoded, forced, open_session
from mt3_runtime.errors import BundleError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

    from mt3_runtime.bundles.manifest import Role

PROFILE = "cpu"
"""The profile whose graphs have these operators."""

LEVELS = 127
"""Steps of int8 on either side of zero."""

MARGIN = 1.1
"""How much further than anything heard a scale reaches.  What is clipped hurts more than what is
rounded a tenth coarser: with 1.0 the self caches cost half as much again in KL."""

PARTS = ("key", "value")

Scales = Mapping[str, FloatArray]
"""Size of an int8 step [heads, head_dim], by the name of the decoder's input."""


def with_caches(source: Source, segments: Sequence[Segment], talk: Talk) -> Changed:
    """A source whose graphs have int8 caches.

    Raises:
        BundleError: As with `find_scales`.
    """
    talk("looking for the ranges of the caches")
    scales = find_scales(source, segments)
    graphs: dict[tuple[Role, str], ModelProto] = {
        ("encoder", PROFILE): int8_encoder(source.graph("encoder", PROFILE), scales),
        ("decoder", PROFILE): int8_decoder(source.graph("decoder", PROFILE), scales),
    }
    return Changed(source, graphs)


def find_scales(source: Source, segments: Sequence[Segment]) -> dict[str, FloatArray]:
    """Scales for the caches of a model, from what it makes of some segments.

    Args:
        source: The exact bundle; its profile ``cpu`` is used.
        segments: What to listen to.

    Raises:
        BundleError: There is no such profile, or its decoder is none of the exporter's.
    """
    spec = source.manifest.model
    encoder, decoder = source.graph("encoder", PROFILE), source.graph("decoder", PROFILE)
    peaks: dict[str, FloatArray] = {}

    def hear(name: str, rows: FloatArray) -> None:
        """Takes in values [n, heads, head_dim]."""
        peak = np.abs(rows).max(axis=0)
        peaks[name] = np.maximum(peaks.get(name, peak), peak)

    transposed = source.bundle.graph("decoder", PROFILE).cross_key_transposed
    session = open_session(encoder, source.threads)
    for segment in segments:
        for name, value in encoded(session, [segment]).items():
            is_key = name.startswith("cross_key")
            last = value if not (is_key and transposed) else value.swapaxes(2, 3)
            hear(name, last.swapaxes(1, 2).reshape(-1, spec.heads, spec.head_dim))
    graphs: dict[Role, ModelProto] = {"encoder": encoder, "decoder": decoder}
    packed = {_self_attention(decoder.graph, i).input[0]: i for i in range(spec.layers)}
    for thought in forced(
        graphs, source.manifest, segments, watch=list(packed), threads=source.threads
    ):
        for name, layer in packed.items():
            qkv = thought.watched[name].reshape(-1, 3, spec.heads, spec.head_dim)
            for index, part in enumerate(PARTS, 1):
                hear(f"past_{part}_{layer}", qkv[:, index])
    return {name: _scale(peak) for name, peak in peaks.items()}


def _scale(peak: FloatArray) -> FloatArray:
    """What a step is worth; channels that were always zero get a step of any size."""
    return np.where(peak > 0, peak * (MARGIN / LEVELS), 1.0).astype(np.float32)


def int8_encoder(encoder: ModelProto, scales: Scales) -> ModelProto:
    """Makes an encoder give its cross keys and values in int8, in place; returns it.

    Cross keys come out as [N, H, T, D], whatever their layout was.
    """
    graph = encoder.graph
    one = _constant(graph, "cross_cache.one", np.float32(1))
    zero = _constant(graph, "cross_cache.zero", np.int8(0))
    for layer in range(_layers(graph.output, "cross_key_")):
        both = [f"cross_{part}_{layer}" for part in PARTS]
        key, value = (_written(graph, name) for name in both)
        split = _written(graph, _written(graph, key.input[0]).input[0])
        product = _written(graph, split.input[0])
        _expect([key, value, split, product], ["Transpose", "Transpose", "Split", "MatMul"])
        steps = np.concatenate([scales[name].reshape(-1) for name in both])
        _divide_columns(graph, product.input[1], steps)
        rounded = f"{split.input[0]}.int8"
        node = helper.make_node(
            "QuantizeLinear", [product.output[0], one, zero], [rounded], name=f"node_{rounded}"
        )
        graph.node.insert(list(graph.node).index(split), node)
        split.input[0] = rounded
        value_port = _port(graph.output, both[1])
        del key.attribute[:]
        key.attribute.extend(value.attribute)
        value_port.type.tensor_type.elem_type = TensorProto.INT8
        _port(graph.output, both[0]).type.CopyFrom(value_port.type)
    return encoder


def int8_decoder(decoder: ModelProto, scales: Scales) -> ModelProto:
    """Makes a decoder read and write int8 caches, in place; returns it."""
    graph = decoder.graph
    layers = _layers(graph.input, "past_key_")
    lengths = _cross_lengths(graph, scales["cross_key_0"].size)
    for layer in range(layers):
        _self_cache(graph, layer, scales)
        _cross_attention(graph, layer, lengths, scales)
    drop_unused(graph)
    return decoder


def _self_cache(graph: GraphProto, layer: int, scales: Scales) -> None:
    """Makes one layer's self caches int8."""
    _quantise(graph, _self_attention(graph, layer), f"past_{{}}_{layer}", scales)
    for side in ("past", "present"):
        ports = graph.input if side == "past" else graph.output
        for part in PARTS:
            _port(ports, f"{side}_{part}_{layer}").type.tensor_type.elem_type = TensorProto.INT8


def _cross_lengths(graph: GraphProto, inner: int) -> dict[str, str]:
    """Adds what all cross-attentions share, at the beginning; names by what they are.

    The kernel takes zero new keys [N, 0, inner] for: all of them are in the cache already.
    """
    frames = _port(graph.input, "cross_value_0").type.tensor_type.shape.dim[2].dim_value
    rows, past, shape, none = (f"cross_cache.{name}" for name in ("rows", "past", "shape", "none"))
    width = _constant(graph, "cross_cache.width", np.array([0, inner]))
    last = numpy_helper.from_array(np.array([frames - 1], np.int32))
    nodes = (
        helper.make_node("Shape", ["positions"], [rows]),
        helper.make_node("ConstantOfShape", [rows], [past], value=last),
        helper.make_node("Concat", [rows, width], [shape], axis=0),
        helper.make_node("ConstantOfShape", [shape], [none]),
    )
    for index, node in enumerate(nodes):
        node.name = f"node_{node.output[0]}"
        graph.node.insert(index, node)
    total = _constant(graph, "cross_cache.frames", np.int32(frames))
    return {"none": none, "past": past, "total": total}


def _cross_attention(
    graph: GraphProto, layer: int, lengths: Mapping[str, str], scales: Scales
) -> None:
    """Replaces the products of one layer's cross-attention by a kernel that reads int8."""
    names = [f"cross_{part}_{layer}" for part in PARTS]
    scores = _reader(graph, names[0])
    softmax = _reader(graph, scores.output[0])
    mixed = _reader(graph, softmax.output[0])
    merged, heads = _reader(graph, mixed.output[0]), _written(graph, scores.input[0])
    old = [heads, scores, softmax, mixed, merged]
    _expect(old, ["Reshape", "MatMul", "Softmax", "MatMul", "Reshape"])
    count = len(scales[names[0]])
    node = helper.make_node(
        "GroupQueryAttention",
        [heads.input[0], *[lengths["none"]] * 2, *names, lengths["past"], lengths["total"]],
        [merged.output[0], *(f"present_{name}" for name in names)],
        name=f"node_{merged.output[0]}",
        domain=MICROSOFT,
        num_heads=count,
        kv_num_heads=count,
        scale=1.0,
    )
    _quantise(graph, node, f"cross_{{}}_{layer}", scales)
    graph.node.insert(list(graph.node).index(merged), node)
    for each in old:
        graph.node.remove(each)
    value = _port(graph.input, names[1])
    value.type.tensor_type.elem_type = TensorProto.INT8
    _port(graph.input, names[0]).type.CopyFrom(value.type)
    for name in names:
        given = graph.output.add(name=f"present_{name}")
        given.type.CopyFrom(value.type)


def _quantise(graph: GraphProto, node: NodeProto, pattern: str, scales: Scales) -> None:
    """Tells a GroupQueryAttention that its cache is int8, and the scales of its channels."""
    given = []
    for part in PARTS:
        name = pattern.format(part)
        given.append(_constant(graph, f"{name}.scale", scales[name][np.newaxis, :, np.newaxis]))
    # Inputs 7 to 11 are rotary tables, positions, bias and sink, which T5 has none of.
    node.input.extend([*[""] * (12 - len(node.input)), *given])
    for name, value in (
        ("k_quant_type", "PER_CHANNEL"),
        ("v_quant_type", "PER_CHANNEL"),
        ("kv_cache_bit_width", 8),
    ):
        node.attribute.append(helper.make_attribute(name, value))


def _self_attention(graph: GraphProto, layer: int) -> NodeProto:
    node = _reader(graph, f"past_key_{layer}")
    _expect([node], ["GroupQueryAttention"])
    return node


def _divide_columns(graph: GraphProto, name: str, steps: FloatArray) -> None:
    """Divides every column of a weight by a step of its own."""
    (weight,) = [tensor for tensor in graph.initializer if tensor.name == name]
    values = numpy_helper.to_array(weight) / steps
    weight.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))


def _constant(graph: GraphProto, name: str, value: object) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def _layers(ports: Sequence[ValueInfoProto], prefix: str) -> int:
    return sum(port.name.startswith(prefix) for port in ports)


def _port(ports: Sequence[ValueInfoProto], name: str) -> ValueInfoProto:
    (found,) = [port for port in ports if port.name == name]
    return found


def _written(graph: GraphProto, name: str) -> NodeProto:
    """The node that writes a tensor."""
    return _only([node for node in graph.node if name in node.output], name)


def _reader(graph: GraphProto, name: str) -> NodeProto:
    """The only node that reads a tensor."""
    return _only([node for node in graph.node if name in node.input], name)


def _only(nodes: Sequence[NodeProto], name: str) -> NodeProto:
    if len(nodes) != 1:
        raise BundleError(f"{len(nodes)} nodes at {name} instead of one: {_STRANGE}")
    return nodes[0]


def _expect(nodes: Sequence[NodeProto], kinds: Sequence[str]) -> None:
    found = [node.op_type for node in nodes]
    if found != list(kinds):
        raise BundleError(f"operators {found} instead of {list(kinds)}: {_STRANGE}")


_STRANGE = (
    "the graphs of this bundle are built otherwise than `mt3 export` builds them today. "
    "Export the model again."
)
