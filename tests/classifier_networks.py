"""Small seeded taggers and genre classifiers in every published layout, byte by byte.

The names are spelled out here again, independently of the readers.  `seeded_folder` writes what
`transformers` opens, so that the recipes of the goldens judge names and shapes, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mt3_export.weights import FloatArray
from tests.export.writers import write_torch
from tests.seeded import seeded_normal

AST_WIDTH, AST_LAYERS, CLASSES = 128, 2, 7
POSITIONS = {10: 1214, 12: 852, 14: 659, 16: 514}
LABELS = ("violin, fiddle", "drum kit", "harmonica", "banjo", "rock music", "speech", "silence")

WAVE: dict[str, Any] = {
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "conv_dim": [32] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "num_feat_extract_layers": 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 24,
    "layer_norm_eps": 1e-5,
    "use_weighted_layer_sum": False,
}
#: As DistilHuBERT is, and as the large Wav2Vec2 models are.
WAVES: dict[str, dict[str, Any]] = {
    "hubert": {
        **WAVE,
        "model_type": "hubert",
        "architectures": ["HubertForSequenceClassification"],
        "feat_extract_norm": "group",
        "feat_proj_layer_norm": False,
        "do_stable_layer_norm": False,
        "conv_bias": False,
    },
    "wav2vec2": {
        **WAVE,
        "model_type": "wav2vec2",
        "architectures": ["Wav2Vec2ForSequenceClassification"],
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
        "add_adapter": False,
    },
}


def values(name: str, shape: tuple[int, ...]) -> FloatArray:
    """Lively seeded values: norms near one, matrices of unit gain, small biases."""
    normal = seeded_normal(f"classifier {name}", shape)
    if re.search(r"norm\.weight$|layernorm(_before|_after)?\.weight$", name):
        return 1 + np.float32(0.2) * normal
    if len(shape) == 1 or "token" in name or "position_embeddings" in name:
        return np.float32(0.3) * normal
    if name.endswith(("weight_g", "original0")):
        return np.float32(2.0) + np.abs(normal)
    return normal * np.float32(1.5 / np.sqrt(np.prod(shape[1:])))


def ast_tensors(stride: int = 10, classes: int = CLASSES) -> dict[str, FloatArray]:
    """An AST as Hugging Face publishes it."""
    d, top = AST_WIDTH, "audio_spectrogram_transformer"
    shapes: dict[str, tuple[int, ...]] = {
        f"{top}.embeddings.cls_token": (1, 1, d),
        f"{top}.embeddings.distillation_token": (1, 1, d),
        f"{top}.embeddings.position_embeddings": (1, POSITIONS[stride], d),
        f"{top}.embeddings.patch_embeddings.projection.weight": (d, 1, 16, 16),
        f"{top}.embeddings.patch_embeddings.projection.bias": (d,),
    }
    matrices = {
        "attention.attention.query": (d, d),
        "attention.attention.key": (d, d),
        "attention.attention.value": (d, d),
        "attention.output.dense": (d, d),
        "intermediate.dense": (4 * d, d),
        "output.dense": (d, 4 * d),
        "layernorm_before": (d,),
        "layernorm_after": (d,),
    }
    for layer in range(AST_LAYERS):
        for name, shape in matrices.items():
            shapes[f"{top}.encoder.layer.{layer}.{name}.weight"] = shape
            shapes[f"{top}.encoder.layer.{layer}.{name}.bias"] = shape[:1]
    norms = {f"{top}.layernorm": (d,), "classifier.layernorm": (d,)}
    for name, shape in {**norms, "classifier.dense": (classes, d)}.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    return {name: values(name, shape) for name, shape in shapes.items()}


def in_memory(published: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """The names that transformers 5 has in memory."""
    pairs = (
        ("encoder.layer.", "layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        (".output.dense", ".mlp.fc2"),
    )
    found = {}
    for name, array in published.items():
        new = name
        for old, other in pairs:
            new = new.replace(old, other)
        found[new] = array
    return found


def original(published: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """The authors' own file, with the unused heads of the network it was initialised from."""
    top = "audio_spectrogram_transformer"
    d = AST_WIDTH
    found = {
        "module.v.cls_token": published[f"{top}.embeddings.cls_token"],
        "module.v.dist_token": published[f"{top}.embeddings.distillation_token"],
        "module.v.pos_embed": published[f"{top}.embeddings.position_embeddings"],
        "module.v.head.weight": np.zeros((10, d), np.float32),
        "module.v.head_dist.bias": np.zeros(10, np.float32),
    }
    patch = f"{top}.embeddings.patch_embeddings.projection"
    for part in ("weight", "bias"):
        found[f"module.v.patch_embed.proj.{part}"] = published[f"{patch}.{part}"]
        found[f"module.v.norm.{part}"] = published[f"{top}.layernorm.{part}"]
        found[f"module.mlp_head.0.{part}"] = published[f"classifier.layernorm.{part}"]
        found[f"module.mlp_head.1.{part}"] = published[f"classifier.dense.{part}"]
        for layer in range(AST_LAYERS):
            here, there = f"module.v.blocks.{layer}", f"{top}.encoder.layer.{layer}"
            found[f"{here}.attn.qkv.{part}"] = np.concatenate(
                [
                    published[f"{there}.attention.attention.{name}.{part}"]
                    for name in ("query", "key", "value")
                ]
            )
            for short, long in (
                ("norm1", "layernorm_before"),
                ("norm2", "layernorm_after"),
                ("attn.proj", "attention.output.dense"),
                ("mlp.fc1", "intermediate.dense"),
                ("mlp.fc2", "output.dense"),
            ):
                found[f"{here}.{short}.{part}"] = published[f"{there}.{long}.{part}"]
    return found


def ast_config(stride: int = 10, labels: tuple[str, ...] = LABELS) -> dict[str, Any]:
    """Its ``config.json``."""
    return {
        "model_type": "audio-spectrogram-transformer",
        "architectures": ["ASTForAudioClassification"],
        "hidden_size": AST_WIDTH,
        "num_attention_heads": AST_WIDTH // 64,
        "num_hidden_layers": AST_LAYERS,
        "intermediate_size": 4 * AST_WIDTH,
        "frequency_stride": stride,
        "time_stride": stride,
        **named(labels),
    }


def named(labels: tuple[str, ...]) -> dict[str, Any]:
    """The names of the classes, as ``config.json`` has them."""
    return {
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
    }


def wave_tensors(family: str) -> dict[str, FloatArray]:
    """A HuBERT or Wav2Vec2 classifier as it is published since PyTorch 2."""
    config = WAVES[family]
    d, wide, narrow = config["hidden_size"], config["intermediate_size"], 24
    shapes: dict[str, tuple[int, ...]] = {f"{family}.masked_spec_embed": (d,)}
    before = 1
    for index, (channels, kernel) in enumerate(
        zip(config["conv_dim"], config["conv_kernel"], strict=True)
    ):
        place = f"{family}.feature_extractor.conv_layers.{index}"
        shapes[f"{place}.conv.weight"] = (channels, before, kernel)
        if config["conv_bias"]:
            shapes[f"{place}.conv.bias"] = (channels,)
        if index == 0 or config["feat_extract_norm"] == "layer":
            shapes[f"{place}.layer_norm.weight"] = shapes[f"{place}.layer_norm.bias"] = (channels,)
        before = channels
    if config.get("feat_proj_layer_norm", True):
        place = f"{family}.feature_projection.layer_norm"
        shapes[f"{place}.weight"] = shapes[f"{place}.bias"] = (before,)
    place = f"{family}.encoder.pos_conv_embed.conv"
    shapes[f"{place}.bias"] = (d,)
    shapes[f"{place}.parametrizations.weight.original0"] = (1, 1, 16)
    shapes[f"{place}.parametrizations.weight.original1"] = (d, d // 4, 16)
    matrices = {
        f"{family}.feature_projection.projection": (d, before),
        f"{family}.encoder.layer_norm": (d,),
        "projector": (narrow, d),
        "classifier": (CLASSES, narrow),
    }
    for layer in range(2):
        here = f"{family}.encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            matrices[f"{here}.attention.{name}"] = (d, d)
        matrices[f"{here}.layer_norm"] = matrices[f"{here}.final_layer_norm"] = (d,)
        matrices[f"{here}.feed_forward.intermediate_dense"] = (wide, d)
        matrices[f"{here}.feed_forward.output_dense"] = (d, wide)
    for name, shape in matrices.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    return {name: values(name, shape) for name, shape in shapes.items()}


def old_spelling(tensors: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """The names before PyTorch 2."""
    return {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): array
        for name, array in tensors.items()
    }


def write_safetensors(path: Path, tensors: Mapping[str, FloatArray]) -> Path:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        offsets = [offset, offset + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        offset += array.nbytes
    text = json.dumps(header).encode()
    body = b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, FloatArray],
    *,
    pickled: bool = False,
    preprocessor: Mapping[str, Any] | None = None,
) -> Path:
    """A Hugging Face folder, with weights as safetensors or as torch.save writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    if pickled:
        write_torch(folder / "pytorch_model.bin", tensors)
    else:
        write_safetensors(folder / "model.safetensors", tensors)
    return folder


def ast_folder(folder: Path, stride: int = 10, *, pickled: bool = False) -> Path:
    """A whole AST."""
    return write_folder(folder, ast_config(stride), ast_tensors(stride), pickled=pickled)


def wave_folder(folder: Path, family: str = "hubert", **changes: Any) -> Path:
    """A whole HuBERT or Wav2Vec2."""
    config = {**WAVES[family], **named(LABELS), **changes}
    preprocessor = {"do_normalize": True, "sampling_rate": 16000}
    return write_folder(folder, config, wave_tensors(family), preprocessor=preprocessor)
