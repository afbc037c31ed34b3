"""Audio spectrogram transformer (AST): reads its three layouts, writes its graph.

    features [rows, frames, bins]  ->  logits [rows, labels]

The authors publish a ``torch.save`` file with the names of their program, Hugging Face a folder in
two spellings; all end in the same canonical weights and so in the same bytes.  Strides of 10, 12,
14 and 16 are known; where nothing states them, the number of stored positions does.

Only the class and the distillation token leave the last layer, so only these are computed there:
7 % less work, the same result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto

from mt3_export.classifiers.model_folder import Settings, Source, Stored, Tensors
from mt3_export.classifiers.transformer_blocks import TransformerBlocks
from mt3_export.graphs.graph_builder import Storage
from mt3_export.weights import FloatArray
from mt3_runtime.bundles.classifier import Activation, FrontEnd, KaldiConfig, WindowSpec
from mt3_runtime.errors import CheckpointError

PATCH = 16
STRIDES = (10, 12, 14, 16)
#: Class token and distillation token.
TOKENS = 2
#: What the authors trained with: frames, filters, mean and deviation of AudioSet's log-mel.
FRAMES, BINS, MEAN, DEVIATION = 1024, 128, -4.2677393, 4.5689974
#: The head width of every published size.
_HEAD = 64
RATE, FRAME, HOP = 16000, 400, 160

_ORIGINAL = "module.v."
#: Canonical name of a layer's part -> in the authors' file, as Hugging Face publishes it, and as
#: transformers 5 names it in memory.
_PARTS = {
    "norm_before": ("norm1", "layernorm_before", "layernorm_before"),
    "norm_after": ("norm2", "layernorm_after", "layernorm_after"),
    "attention.query": ("", "attention.attention.query", "attention.q_proj"),
    "attention.key": ("", "attention.attention.key", "attention.k_proj"),
    "attention.value": ("", "attention.attention.value", "attention.v_proj"),
    "attention.out": ("attn.proj", "attention.output.dense", "attention.o_proj"),
    "mlp.wide": ("mlp.fc1", "intermediate.dense", "mlp.fc1"),
    "mlp.narrow": ("mlp.fc2", "output.dense", "mlp.fc2"),
}
_TOP = {
    "class_token": ("v.cls_token", "embeddings.cls_token"),
    "distillation_token": ("v.dist_token", "embeddings.distillation_token"),
    "positions": ("v.pos_embed", "embeddings.position_embeddings"),
    "patch": ("v.patch_embed.proj", "embeddings.patch_embeddings.projection"),
    "norm": ("v.norm", "layernorm"),
    "head_norm": ("mlp_head.0", "classifier.layernorm"),
    "head": ("mlp_head.1", "classifier.dense"),
}


@dataclass(frozen=True, eq=False)
class AstWeights:
    """The network.

    Attributes:
        tensors: By canonical name; matrices are [out, in].
        layers: Number of blocks.
        width: Of the tokens.
        strides: Of the patches, over frequency and time.
        labels: Names of the logits; empty where the file has none.
        front_end: How its features are made.
        epsilon: Of its LayerNorms.
        activation: What it was taught its logits are.
    """

    tensors: Mapping[str, FloatArray]
    layers: int
    width: int
    strides: tuple[int, int]
    labels: tuple[str, ...]
    front_end: KaldiConfig
    epsilon: float
    activation: Activation


def is_ast(source: Source) -> bool:
    """Whether these are the weights of an AST."""
    kind = source.config.values.get("model_type")
    if kind is not None:
        return bool(kind == "audio-spectrogram-transformer")
    return any(name.removeprefix("module.") == "v.dist_token" for name in source.tensors)


def read_ast(source: Source) -> AstWeights:
    """Reads an AST of any layout.

    Raises:
        CheckpointError: A tensor is missing, too many or of another shape, or a setting is one
            that the graph does not compute.
    """
    stored, column = _without_prefix(source.tensors)
    config, where = source.config, str(source.path)
    width = config.whole("hidden_size", _width(stored, where), _HEAD, 4096)
    names = [re.match(r"(?:v\.blocks|encoder\.layer|layers)\.(\d+)\.", name) for name in stored]
    layers = 1 + max((int(match[1]) for match in names if match), default=-1)
    front_end = _front_end(source)
    _check_settings(config, width, layers)
    tensors = Tensors(stored, where)
    head = _TOP["head"][min(column, 1)]
    classes = tensors.shape(f"{head}.weight")[0]
    found = _top(tensors, column, width, classes, front_end)
    for layer in range(layers):
        found |= _layer(tensors, column, layer, width)
    tensors.done()
    rows = found["positions"].shape[1]
    labels = config.labels() if "id2label" in config.values else ()
    single = config.values.get("problem_type") == "single_label_classification"
    return AstWeights(
        found,
        layers,
        width,
        _strides(config, rows, front_end),
        labels,
        front_end,
        float(config.number("layer_norm_eps", 1e-12, 0.0, 1e-2)) if column else 1e-12,
        "share" if single else "probability",
    )


def _without_prefix(stored: Mapping[str, Stored]) -> tuple[dict[str, Stored], int]:
    """The tensors without what all names begin with, and the layout: 0 authors', 1, 2 HF's."""
    names = {re.sub(r"^(module|audio_spectrogram_transformer)\.", "", n): n for n in stored}
    if len(names) != len(stored):
        raise CheckpointError("Two tensors have the same name but for their prefix.")
    found = {short: stored[name] for short, name in names.items()}
    if "v.dist_token" in found:  # and heads of the network it was initialised from
        return {n: t for n, t in found.items() if not re.match(r"v\.head(_dist)?\.", n)}, 0
    return found, 2 if any(re.match(r"(encoder\.)?layers\.", name) for name in found) else 1


def _width(stored: Mapping[str, Stored], where: str) -> int:
    for name in ("v.cls_token", "embeddings.cls_token"):
        if name in stored:
            return stored[name].shape[-1]
    raise CheckpointError(f"{where} has no class token; it is no audio spectrogram transformer")


def _check_settings(config: Settings, width: int, layers: int) -> None:
    config.must_be("hidden_act", "gelu")
    config.fixed("qkv_bias", value=True)
    config.must_be("patch_size", PATCH)
    config.must_be("num_attention_heads", width // _HEAD)
    config.must_be("num_hidden_layers", layers)


def _front_end(source: Source) -> KaldiConfig:
    settings = source.preprocessor
    settings.fixed("do_normalize", value=True)
    settings.must_be("sampling_rate", RATE)
    frames = source.config.whole("max_length", FRAMES, PATCH, 8192)
    bins = source.config.whole("num_mel_bins", BINS, PATCH, 1024)
    settings.must_be("max_length", frames)
    settings.must_be("num_mel_bins", bins)
    mean = float(settings.number("mean", MEAN, -100, 100))
    deviation = float(settings.number("std", DEVIATION, 1e-3, 100))
    return KaldiConfig(
        RATE, FRAME, HOP, 512, bins, 20.0, RATE / 2, 0.97, frames, mean, 2 * deviation
    )


def _strides(config: Settings, rows: int, front_end: KaldiConfig) -> tuple[int, int]:
    """The strides that go with the number of positions."""
    stated = [config.values.get(f"{axis}_stride") for axis in ("frequency", "time")]
    known = [(s, s) for s in STRIDES]
    if any(value is not None for value in stated):
        known = [
            (
                config.whole("frequency_stride", 10, 1, 64),
                config.whole("time_stride", 10, 1, 64),
            )
        ]
    for strides in known:
        if TOKENS + _patches(front_end, strides)[0] * _patches(front_end, strides)[1] == rows:
            return strides
    raise CheckpointError(
        f"{config.where}: {rows} positions go with none of the strides {known} for "
        f"{front_end.frames} frames of {front_end.bins} filters"
    )


def _patches(front_end: KaldiConfig, strides: tuple[int, int]) -> tuple[int, int]:
    """Patches over frequency and time."""
    return (
        (front_end.bins - PATCH) // strides[0] + 1,
        (front_end.frames - PATCH) // strides[1] + 1,
    )


def _top(
    tensors: Tensors, column: int, width: int, classes: int, front_end: KaldiConfig
) -> dict[str, FloatArray]:
    """What lies outside the layers."""
    names = {name: spellings[min(column, 1)] for name, spellings in _TOP.items()}
    found = {n: tensors.take(names[n], 1, 1, width) for n in ("class_token", "distillation_token")}
    shape = tensors.shape(names["positions"])
    most = TOKENS + front_end.bins * front_end.frames
    if len(shape) != 3 or shape[0] != 1 or shape[2] != width or not TOKENS < shape[1] <= most:
        raise CheckpointError(f"the positions have the shape {list(shape)}")
    found["positions"] = tensors.take(names["positions"], *shape)
    found["patch.weight"] = tensors.take(f"{names['patch']}.weight", width, 1, PATCH, PATCH)
    found["patch.bias"] = tensors.take(f"{names['patch']}.bias", width)
    for norm in ("norm", "head_norm"):
        for part in ("weight", "bias"):
            found[f"{norm}.{part}"] = tensors.take(f"{names[norm]}.{part}", width)
    found["head.weight"] = tensors.take(f"{names['head']}.weight", classes, width)
    found["head.bias"] = tensors.take(f"{names['head']}.bias", classes)
    return found


def _layer(tensors: Tensors, column: int, layer: int, width: int) -> dict[str, FloatArray]:
    places = ("v.blocks", "encoder.layer", "layers")
    place = f"{places[column]}.{layer}"
    if column == 2 and f"encoder.{place}.layernorm_before.weight" in tensors:
        place = f"encoder.{place}"
    shapes = {"mlp.wide": (4 * width, width), "mlp.narrow": (width, 4 * width)}
    found = {}
    for part, spellings in _PARTS.items():
        if not spellings[column]:
            continue
        rows = shapes.get(part, (width,) if part.startswith("norm") else (width, width))
        name = f"{place}.{spellings[column]}"
        found[f"layers.{layer}.{part}.weight"] = tensors.take(f"{name}.weight", *rows)
        found[f"layers.{layer}.{part}.bias"] = tensors.take(f"{name}.bias", rows[0])
    if column == 0:  # query, key and value stand in one matrix
        for kind, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
            values = tensors.take(f"{place}.attn.qkv.{kind}", *shape)
            for part, piece in zip(("query", "key", "value"), np.split(values, 3), strict=True):
                found[f"layers.{layer}.attention.{part}.{kind}"] = piece
    return found


def window_of(front_end: KaldiConfig) -> WindowSpec:
    """Windows that hear every frame once: the next begins one hop behind the last frame's begin."""
    return WindowSpec(
        samples=(front_end.frames - 1) * front_end.hop + front_end.frame,
        hop=front_end.frames * front_end.hop,
        shortest=front_end.frame,
    )


def front_end_of(weights: AstWeights) -> FrontEnd:
    """The manifest's section."""
    return FrontEnd(kaldi=weights.front_end)


def build_ast(
    weights: AstWeights, *, profile: str, storage: Storage, metadata: dict[str, str]
) -> ModelProto:
    """Writes the graph.

    Args:
        weights: The network.
        profile: See `mt3_export.classifiers.transformer_blocks`.
        storage: Precision of the stored matrices; arithmetic is fp32.
        metadata: Written to the model's ``metadata_props``.
    """
    tensors, width = weights.tensors, weights.width
    blocks = TransformerBlocks(
        "ast",
        tensors,
        profile=profile,
        storage=storage,
        heads=width // _HEAD,
        epsilon=weights.epsilon,
    )
    graph, front_end = blocks.graph, weights.front_end
    shape: list[int | str] = ["rows", front_end.frames, front_end.bins]
    features = graph.input("features", TensorProto.FLOAT, shape)
    hidden = _embed(blocks, weights, features)
    for layer in range(weights.layers):
        prefix = f"layers.{layer}"
        rows = TOKENS if layer + 1 == weights.layers else 0
        normed = blocks.norm(hidden, f"{prefix}.norm_before")
        update = blocks.self_attention(normed, f"{prefix}.attention", width, rows=rows)
        hidden = graph.op("Add", blocks.first(hidden, rows) if rows else hidden, update)
        normed = blocks.norm(hidden, f"{prefix}.norm_after")
        hidden = graph.op("Add", hidden, blocks.feed_forward(normed, f"{prefix}.mlp"))
    pooled = blocks.mean(blocks.norm(hidden, "norm"))
    logits = blocks.linear(blocks.norm(pooled, "head_norm"), "head")
    graph.op("Identity", logits, out="logits")
    graph.output("logits", TensorProto.FLOAT, ["rows", len(tensors["head.bias"])])
    return graph.build(metadata)


def _embed(blocks: TransformerBlocks, weights: AstWeights, features: str) -> str:
    """Patches, frequency by frequency, behind the two tokens, with their positions."""
    graph, tensors, width = blocks.graph, weights.tensors, weights.width
    image = graph.op("Unsqueeze", features, graph.constant([1], np.int64))
    # The kernel is turned instead of the features: [width, 1, time, frequency].
    kernel = graph.parameter("patch.kernel", tensors["patch.weight"].transpose(0, 1, 3, 2))
    bias = graph.parameter("patch.bias", tensors["patch.bias"])
    patches = graph.op("Conv", image, kernel, bias, strides=list(weights.strides[::-1]))
    turned = graph.op("Transpose", patches, perm=[0, 3, 2, 1])
    rows = graph.op("Reshape", turned, graph.constant([0, -1, width], np.int64))
    padded = graph.op("Pad", rows, graph.constant([0, TOKENS, 0, 0, 0, 0], np.int64))
    table = tensors["positions"].copy()
    table[0, 0] += tensors["class_token"][0, 0]
    table[0, 1] += tensors["distillation_token"][0, 0]
    return graph.op("Add", padded, graph.parameter("positions", table, exact=True))
