"""HuBERT and Wav2Vec2 without their heads: reads their tensors, writes samples to hidden states.

    samples [rows, n]  ->  hidden states [rows, frames, width], after any layer

What differs between the families is read from ``config.json``: how the convolutions are normalised
(``group``: the first only, each channel over the whole clip; ``layer``: all), whether features are
normalised before their projection, where the norms of the layers stand.  The weight norm of the
positional convolution is folded.  MERT is a HuBERT too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from mt3_export.classifiers.chunked_convolutions import LoopBody, channel_norm, in_chunks
from mt3_export.classifiers.model_folder import Settings, Tensors
from mt3_export.classifiers.transformer_blocks import TransformerBlocks
from mt3_export.weights import FloatArray
from mt3_runtime.errors import CheckpointError

#: torch's default of GroupNorm and LayerNorm, which no setting changes in the convolutions.
_CONV_EPSILON = 1e-5

_LAYER = {
    "attention.query": "attention.q_proj",
    "attention.key": "attention.k_proj",
    "attention.value": "attention.v_proj",
    "attention.out": "attention.out_proj",
    "mlp.wide": "feed_forward.intermediate_dense",
    "mlp.narrow": "feed_forward.output_dense",
    "norm_attention": "layer_norm",
    "norm_mlp": "final_layer_norm",
}


@dataclass(frozen=True)
class WaveShape:
    """What ``config.json`` says of the network.

    Attributes:
        family: Its ``model_type``.
        width: Of the layers.
        wide: Of their feed-forward blocks.
        heads: Of their attention.
        layers: Number of them.
        channels: Of each convolution.
        kernels: Their lengths.
        strides: Their steps.
        conv_bias: Whether they have biases.
        norm: ``group`` or ``layer``.
        projection_norm: Whether features are normalised before their projection.
        stable: Whether layers are normalised before attention and feed-forward, not after.
        positions: Length of the positional kernel.
        groups: Its groups.
        projected: Width of the projector.
        epsilon: Of the LayerNorms.
    """

    family: str
    width: int
    wide: int
    heads: int
    layers: int
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    conv_bias: bool
    norm: str
    projection_norm: bool
    stable: bool
    positions: int
    groups: int
    projected: int
    epsilon: float

    @property
    def shortest(self) -> int:
        """Samples that give one frame."""
        need = 1
        for kernel, stride in zip(self.kernels[::-1], self.strides[::-1], strict=True):
            need = (need - 1) * stride + kernel
        return need


def read_shape(config: Settings, families: tuple[str, ...]) -> WaveShape:
    """What ``config.json`` says; raises `CheckpointError` for what the graph does not compute."""
    family = config.must_be("model_type", *families)
    for name in ("hidden_act", "feat_extract_activation"):
        config.must_be(name, "gelu")
    for name in ("use_weighted_layer_sum", "conv_pos_batch_norm", "add_adapter"):
        config.fixed(name, value=False)
    config.must_be("adapter_attn_dim", None)
    channels = config.sizes("conv_dim", (512,) * 7)
    kernels = config.sizes("conv_kernel", (10, 3, 3, 3, 3, 2, 2))
    strides = config.sizes("conv_stride", (5, 2, 2, 2, 2, 2, 2))
    width, heads = (
        config.whole("hidden_size", 768, 1, 4096),
        config.whole("num_attention_heads", 12, 1, 64),
    )
    groups = config.whole("num_conv_pos_embedding_groups", 16, 1, 256)
    if not len(channels) == len(kernels) == len(strides) or width % heads or width % groups:
        raise CheckpointError(f"{config.where}: the sizes of its parts do not fit each other")
    return WaveShape(
        family,
        width,
        config.whole("intermediate_size", 3072, 1, 16384),
        heads,
        config.whole("num_hidden_layers", 12, 1, 64),
        channels,
        kernels,
        strides,
        config.flag("conv_bias", usual=False),
        config.must_be("feat_extract_norm", "group", "layer"),
        family == "wav2vec2" or config.flag("feat_proj_layer_norm", usual=True),
        config.flag("do_stable_layer_norm", usual=False),
        config.whole("num_conv_pos_embeddings", 128, 2, 1024),
        groups,
        config.whole("classifier_proj_size", 256, 1, 4096),
        float(config.number("layer_norm_eps", 1e-5, 0.0, 1e-2)),
    )


def read_body(
    tensors: Tensors, shape: WaveShape, prefix: str = "", *, layers: int | None = None
) -> dict[str, FloatArray]:
    """Takes the tensors of convolutions, positions and layers, by canonical name.

    Args:
        tensors: Of the file.
        shape: Of the network.
        prefix: Of all names in the file, with its full stop.
        layers: How many layers are taken; all by default.

    Raises:
        CheckpointError: One is missing, or of another shape.
    """
    found = _read_convolutions(tensors, shape, f"{prefix}feature_extractor.conv_layers")
    features = shape.channels[-1]
    sizes: dict[str, tuple[str, tuple[int, ...]]] = {
        "projection": (f"{prefix}feature_projection.projection", (shape.width, features)),
        "norm": (f"{prefix}encoder.layer_norm", (shape.width,)),
    }
    if shape.projection_norm:
        sizes["projection_norm"] = (f"{prefix}feature_projection.layer_norm", (features,))
    for layer in range(shape.layers if layers is None else layers):
        for part, name in _LAYER.items():
            size: tuple[int, ...] = (shape.width, shape.width)
            size = (shape.width,) if part.startswith("norm") else size
            size = (shape.wide, shape.width) if part == "mlp.wide" else size
            size = (shape.width, shape.wide) if part == "mlp.narrow" else size
            sizes[f"layers.{layer}.{part}"] = (f"{prefix}encoder.layers.{layer}.{name}", size)
    for canonical, (name, size) in sizes.items():
        found[f"{canonical}.weight"] = tensors.take(f"{name}.weight", *size)
        found[f"{canonical}.bias"] = tensors.take(f"{name}.bias", size[0])
    return found | _positions(tensors, shape, f"{prefix}encoder.pos_conv_embed.conv")


def _read_convolutions(tensors: Tensors, shape: WaveShape, prefix: str) -> dict[str, FloatArray]:
    found: dict[str, FloatArray] = {}
    before = 1
    for index, (channels, kernel) in enumerate(zip(shape.channels, shape.kernels, strict=True)):
        place, name = f"{prefix}.{index}", f"conv.{index}"
        found[f"{name}.weight"] = tensors.take(f"{place}.conv.weight", channels, before, kernel)
        if shape.conv_bias:
            found[f"{name}.bias"] = tensors.take(f"{place}.conv.bias", channels)
        if shape.norm == "layer" or index == 0:
            for part in ("weight", "bias"):
                found[f"{name}.norm.{part}"] = tensors.take(f"{place}.layer_norm.{part}", channels)
        before = channels
    return found


def _positions(tensors: Tensors, shape: WaveShape, prefix: str) -> dict[str, FloatArray]:
    """The positional kernel: its direction scaled to its length, one for each place in time."""
    old = f"{prefix}.weight_g" in tensors
    length, direction = (
        ("weight_g", "weight_v")
        if old
        else ("parametrizations.weight.original0", "parametrizations.weight.original1")
    )
    size = (shape.width, shape.width // shape.groups, shape.positions)
    g = tensors.take(f"{prefix}.{length}", 1, 1, shape.positions).astype(np.float64)
    v = tensors.take(f"{prefix}.{direction}", *size).astype(np.float64)
    norm = np.sqrt((v * v).sum(axis=(0, 1), keepdims=True))
    if not norm.all():
        raise CheckpointError(f"tensor {prefix}.{direction} is zero somewhere in time")
    return {
        "positions.weight": (v * (g / norm)).astype(np.float32),
        "positions.bias": tensors.take(f"{prefix}.bias", shape.width),
    }


def hidden_states(
    blocks: TransformerBlocks,
    shape: WaveShape,
    *,
    layers: int | None = None,
    samples: str = "features",
) -> Iterator[str]:
    """Declares the input of samples [rows, n], writes hidden states [rows, frames, width].

    Yields what enters the first layer, then what leaves each one; the last of all is normalised
    where the layers are normalised before attention.

    Args:
        blocks: Where they are written.
        shape: Of the network.
        layers: How many are run; all by default.
        samples: Name of the input.
    """
    graph = blocks.graph
    graph.input(samples, TensorProto.FLOAT, ["rows", "samples"])
    if blocks.fused:
        hidden = _chunked(blocks, shape, samples)
    else:
        hidden = _convolutions_of(blocks, shape, samples)
    if shape.projection_norm:
        hidden = blocks.norm(hidden, "projection_norm")
    hidden = blocks.linear(hidden, "projection")
    hidden = graph.op("Add", hidden, _positional(blocks, shape, hidden))
    if not shape.stable:
        hidden = blocks.norm(hidden, "norm")
    yield hidden
    count = shape.layers if layers is None else layers
    for layer in range(count):
        hidden = _layer(blocks, shape, hidden, f"layers.{layer}")
        if shape.stable and layer == shape.layers - 1:
            hidden = blocks.norm(hidden, "norm")
        yield hidden


def _chunked(blocks: TransformerBlocks, shape: WaveShape, samples: str) -> str:
    """The same frames as of `_convolutions_of`, with memory that does not grow with the clip."""
    graph, norm = blocks.graph, None
    if shape.norm == "group":
        tensors, name = blocks.weights, "conv.0.norm"
        scale, bias = (
            graph.parameter(f"{name}.{part}", tensors[f"{name}.{part}"])
            for part in ("weight", "bias")
        )
        norm = channel_norm(
            graph,
            samples,
            tensors["conv.0.weight"],
            stride=shape.strides[0],
            scale=scale,
            bias=bias,
            epsilon=_CONV_EPSILON,
        )

    def make(body: LoopBody, piece: str) -> str:
        return _convolutions_of(blocks.within(body), shape, piece, norm)

    return in_chunks(
        graph,
        samples,
        make,
        stride=math.prod(shape.strides),
        receptive=shape.shortest,
        channels=shape.channels[-1],
    )


def _convolutions_of(
    blocks: TransformerBlocks, shape: WaveShape, samples: str, norm: tuple[str, str] | None = None
) -> str:
    """Frames [rows, frames, channels] of samples [rows, n].

    Args:
        blocks: Where they are written.
        shape: Of the network.
        samples: float32.
        norm: Factor and offset of the first norm over the whole clip, if they are known.
    """
    graph = blocks.graph
    hidden = graph.op("Unsqueeze", samples, graph.constant([1], np.int64))
    for index in range(len(shape.channels)):
        hidden = _convolution(blocks, shape, hidden, index, norm if index == 0 else None)
    return graph.op("Transpose", hidden, perm=[0, 2, 1])


def _convolution(
    blocks: TransformerBlocks,
    shape: WaveShape,
    x: str,
    index: int,
    norm: tuple[str, str] | None = None,
) -> str:
    graph, tensors, name = blocks.graph, blocks.weights, f"conv.{index}"
    inputs = [x, graph.parameter(f"{name}.weight", tensors[f"{name}.weight"])]
    if norm is not None:  # which takes the bias away again
        x = graph.op("Conv", *inputs, strides=[shape.strides[index]])
        return blocks.gelu(graph.op("Add", graph.op("Mul", x, norm[0]), norm[1]))
    if shape.conv_bias:
        inputs.append(graph.parameter(f"{name}.bias", tensors[f"{name}.bias"]))
    x = graph.op("Conv", *inputs, strides=[shape.strides[index]])
    if f"{name}.norm.weight" in tensors:
        scale, bias = (
            graph.parameter(f"{name}.norm.{part}", tensors[f"{name}.norm.{part}"])
            for part in ("weight", "bias")
        )
        if shape.norm == "group":  # a group a channel
            x = graph.op("InstanceNormalization", x, scale, bias, epsilon=_CONV_EPSILON)
        else:
            x = graph.op("Transpose", x, perm=[0, 2, 1])
            x = graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=_CONV_EPSILON)
            x = graph.op("Transpose", x, perm=[0, 2, 1])
    return blocks.gelu(x)


def _positional(blocks: TransformerBlocks, shape: WaveShape, x: str) -> str:
    """Positions from a convolution over time, which pads both ends; an even one gives one more."""
    graph, tensors = blocks.graph, blocks.weights
    kernel = graph.parameter("positions.weight", tensors["positions.weight"])
    bias = graph.parameter("positions.bias", tensors["positions.bias"])
    begin = shape.positions // 2
    pads = [begin, begin - (1 - shape.positions % 2)]
    turned = graph.op("Transpose", x, perm=[0, 2, 1])
    found = graph.op("Conv", turned, kernel, bias, pads=pads, group=shape.groups)
    return graph.op("Transpose", blocks.gelu(found), perm=[0, 2, 1])


def _layer(blocks: TransformerBlocks, shape: WaveShape, x: str, prefix: str) -> str:
    graph, attention = blocks.graph, f"{prefix}.attention"
    first, second = f"{prefix}.norm_attention", f"{prefix}.norm_mlp"
    if shape.stable:
        update = blocks.self_attention(blocks.norm(x, first), attention, shape.width)
        x = graph.op("Add", x, update)
        update = blocks.feed_forward(blocks.norm(x, second), f"{prefix}.mlp")
        return graph.op("Add", x, update)
    x = blocks.norm(graph.op("Add", x, blocks.self_attention(x, attention, shape.width)), first)
    return blocks.norm(graph.op("Add", x, blocks.feed_forward(x, f"{prefix}.mlp")), second)
