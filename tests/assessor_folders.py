"""Small seeded networks that assess performances, in the layout that the exporter reads.

The names are spelled out here again, independently of the reader.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mt3_export.weights import FloatArray
from tests.classifier_networks import WAVE, WAVES, old_spelling, wave_tensors, write_safetensors
from tests.seeded import seeded_normal

FUSIONS = ("gated", "concat", "cross", "audio", "midi")
ALIGNMENTS = {"gated": "note", "concat": "note", "cross": "attention", "audio": "none"}
DIMENSIONS = ("timing", "pedal", "tone_quality")
CLASSES = 5
MOST_NOTES = 40
SHAPE: dict[str, Any] = {
    "audio_width": 48,
    "midi_width": 32,
    "midi_layers": 2,
    "midi_heads": 4,
    "width": 24,
    "cross_heads": 8,
    "lstm_width": 12,
    "lstm_layers": 2,
    "pool_heads": 4,
    "head_widths": [20, 16, 8],
}
FIELDS = {
    "type": (5, 4),
    "beat": (16, 4),
    "position": (16, 4),
    "pitch": (88, 8),
    "duration": (128, 4),
    "velocity": (128, 4),
    "instrument": (1, 2),
    "bar": (512, 2),
}
#: A MERT as small; what is not here is as in the published one.
MERT: dict[str, Any] = {
    **{name: value for name, value in WAVES["hubert"].items() if name != "architectures"},
    "model_type": "mert_model",
    "feat_proj_layer_norm": True,
    "num_hidden_layers": 2,
    "feature_extractor_cqt": False,
    "deepnorm": False,
}
CLIP = 24000


def network_config(fusion: str, **changes: Any) -> dict[str, Any]:
    """Its ``config.json``."""
    return {
        "model_type": "performance-assessor-network",
        "fusion": fusion,
        "alignment": ALIGNMENTS.get(fusion, "none"),
        "max_notes": MOST_NOTES,
        "dimensions": list(DIMENSIONS),
        "ordinal_classes": CLASSES,
        **SHAPE,
        **changes,
    }


def shapes(fusion: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of its tensors."""
    found: dict[str, tuple[int, ...]] = {}
    width, m, a = SHAPE["width"], SHAPE["midi_width"], SHAPE["audio_width"]

    def linear(name: str, out: int, read: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (out, read), (out,)

    def norm(name: str, size: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (size,)

    def attention(name: str, size: int) -> None:
        found[f"{name}.in_proj_weight"], found[f"{name}.in_proj_bias"] = (
            (3 * size, size),
            (3 * size,),
        )
        linear(f"{name}.out_proj", size, size)

    if fusion != "audio":
        for field, size in FIELDS.items():
            found[f"midi_encoder.{field}_embed.weight"] = size
        linear("midi_encoder.embed_projection", m, m)
        found["midi_encoder.positional_encoding"] = (1, MOST_NOTES, m)
        for layer in range(SHAPE["midi_layers"]):
            place = f"midi_encoder.transformer.layers.{layer}"
            attention(f"{place}.self_attn", m)
            linear(f"{place}.linear1", 4 * m, m)
            linear(f"{place}.linear2", m, 4 * m)
            norm(f"{place}.norm1", m)
            norm(f"{place}.norm2", m)
        norm("midi_encoder.layer_norm", m)
    sides = {"audio": a, "midi": m}
    for side in (fusion,) if fusion in sides else sides:
        place = f"projection.{side}_proj.projection"
        linear(f"{place}.0", width, sides[side])
        norm(f"{place}.1", width)
        linear(f"{place}.4", width, width)
        if fusion == "gated":
            linear(f"fusion.{side}_transform.0", width, width)
            norm(f"fusion.{side}_transform.1", width)
        if fusion == "cross":
            norm(f"fusion.{side}_norm1", width)
            linear(f"fusion.{side}_ffn.0", 4 * width, width)
            linear(f"fusion.{side}_ffn.3", width, 4 * width)
            norm(f"fusion.{side}_norm2", width)
    if fusion == "gated":
        linear("fusion.gate", width, 2 * width)
    if fusion == "cross":
        attention("fusion.audio_to_midi_attn", width)
        attention("fusion.midi_to_audio_attn", width)
    else:
        linear("fusion.output.0", width, 2 * width if fusion == "concat" else width)
        norm("fusion.output.1", width)
    hidden, read = SHAPE["lstm_width"], 2 * width if fusion == "cross" else width
    for layer in range(SHAPE["lstm_layers"]):
        for way in ("", "_reverse"):
            end = f"l{layer}{way}"
            found[f"aggregator.lstm.weight_ih_{end}"] = (
                4 * hidden,
                read if layer == 0 else 2 * hidden,
            )
            found[f"aggregator.lstm.weight_hh_{end}"] = (4 * hidden, hidden)
            found[f"aggregator.lstm.bias_ih_{end}"] = (4 * hidden,)
            found[f"aggregator.lstm.bias_hh_{end}"] = (4 * hidden,)
    attention("aggregator.attention", 2 * hidden)
    found["aggregator.attention_query"] = (1, 1, 2 * hidden)
    norm("aggregator.layer_norm", 2 * hidden)
    linear("aggregator.projection.0", width, 2 * hidden)
    first, second, each = SHAPE["head_widths"]
    linear("mtl_head.shared_extractor.0", first, width)
    linear("mtl_head.shared_extractor.3", second, first)
    for name in DIMENSIONS:
        linear(f"mtl_head.task_heads.{name}.0", each, second)
        linear(f"mtl_head.task_heads.{name}.3", 1, each)
    found["mtl_head.log_vars"] = (len(DIMENSIONS),)
    found["mtl_head.ordinal.weight"] = (1, width)
    found["mtl_head.ordinal.bias"] = (CLASSES - 1,)
    return found


def value_of(name: str, shape: tuple[int, ...], seed: str) -> FloatArray:
    """Lively seeded values: norms near one, matrices of unit gain, small biases."""
    normal = seeded_normal(f"assessor {seed} {name}", shape)
    if "norm" in name and name.endswith("weight"):
        return 1 + np.float32(0.2) * normal
    if ".1.weight" in name and len(shape) == 1:
        return 1 + np.float32(0.2) * normal
    if len(shape) == 1 or name.endswith(("positional_encoding", "_embed.weight")):
        return np.float32(0.4) * normal
    if name.endswith("attention_query"):
        return np.float32(2.0) * normal
    gain = 2.0 if name.startswith("mtl_head") else 1.6
    return normal * np.float32(gain / np.sqrt(shape[-1]))


def network_tensors(fusion: str) -> dict[str, FloatArray]:
    """All tensors of a network."""
    return {name: value_of(name, shape, fusion) for name, shape in shapes(fusion).items()}


def network_folder(folder: Path, fusion: str, **changes: Any) -> Path:
    """A whole network."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(network_config(fusion, **changes)))
    write_safetensors(folder / "model.safetensors", network_tensors(fusion))
    return folder


def mert_tensors(*, old: bool = True) -> dict[str, FloatArray]:
    """A MERT as it is published: no prefix, and weight norm as PyTorch 1 spelled it."""
    found = {
        name.removeprefix("hubert."): array
        for name, array in wave_tensors("hubert").items()
        if name.startswith("hubert.")
    }
    width = WAVE["conv_dim"][-1]
    for part in ("weight", "bias"):
        name = f"feature_projection.layer_norm.{part}"
        found[name] = value_of(name, (width,), "mert")
    return old_spelling(found) if old else found


def mert_folder(folder: Path, **changes: Any) -> Path:
    """A whole MERT, with layers that nobody reads."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**MERT, **changes}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 24000}))
    write_safetensors(folder / "model.safetensors", mert_tensors())
    return folder


def assessors_folder(folder: Path, fusions: tuple[str, ...] = FUSIONS, **changes: Any) -> Path:
    """Several networks that share an audio encoder; the mean of hidden states 0 and 1 is read."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "performance-assessor",
        "networks": list(fusions),
        "licence": "made for tests",
        "audio_layers": [0, 1],
        "clip_samples": CLIP,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    mert_folder(folder / "audio_encoder")
    for fusion in fusions:
        network_folder(folder / fusion, fusion)
    return folder
