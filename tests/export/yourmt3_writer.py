"""Writes YourMT3's checkpoints as published, byte by byte, with no framework.

As in `writers`, names and orientations are spelled out again, independently of the reader.  A file
is a Lightning checkpoint (network, two optimiser moments per trained tensor, hyper-parameters with
live objects of the authors' classes) or a bare state dict, as it is repackaged.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mt3_export.weights import Weights
from mt3_export.yourmt3 import PerceiverShape
from tests.export.writers import (
    NONE,
    contiguous,
    dict_,
    global_,
    integer,
    ordered,
    reduce_,
    storage,
    stream,
    tensor,
    text,
)

Array = np.ndarray[Any, np.dtype[Any]]

#: Kernel shapes of the pitch shifter by semitones.
PITCH_KERNELS = {-2: (4000, 1, 3577), -1: (160, 1, 165), 1: (4000, 1, 4251), 2: (4000, 1, 4503)}

_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}


def state_dict(weights: Weights, *, pitch_shift: bool = False) -> dict[str, Array]:
    """All entries of the state dict; modules that are one object there are one array here."""
    source = weights.tensors
    found: dict[str, Array] = {
        "embed_tokens.weight": source["decoder.token_embedder.embedding"],
        "lm_head.lm_head.weight": source["decoder.logits_dense.kernel"].T,
        **_t5(weights, "decoder"),
    }
    window = np.hanning(2049)[:-1].astype(np.float32)
    if isinstance(weights.shape, PerceiverShape):
        found |= _conv_block(source) | _perceiver(weights, weights.shape)
        found["spectrogram.stft.window"] = window
    else:
        found |= _t5(weights, "encoder")
        found["spectrogram.mel_stft.spectrogram.window"] = window
        found["spectrogram.mel_stft.mel_scale.fb"] = np.zeros((1025, 512), np.float32)
    if pitch_shift:
        for semitones, shape in PITCH_KERNELS.items():
            prefix = f"pitchshift.pshifters.{semitones}"
            found[f"{prefix}.kernel"] = np.broadcast_to(np.float32(0.5), shape)
            found[f"{prefix}.window"] = np.ones(512, np.float32)
    return found


def _t5(weights: Weights, stack: str) -> dict[str, Array]:
    source, found, there = weights.tensors, dict[str, Array](), f"{stack}.{stack}"
    rows = weights.positions.rows
    assert rows is not None
    found[f"{there}.additive_pe.weight"] = rows
    attentions = {
        "encoder": ("attention",),
        "decoder": ("self_attention", "encoder_decoder_attention"),
    }
    modules = ("SelfAttention", "EncDecAttention")
    layers = getattr(weights.shape, f"{stack}_layers")
    for i in range(layers):
        here, block = f"{stack}.layers_{i}", f"{there}.block.{i}.layer"
        for sub, (ours, theirs) in enumerate(zip(attentions[stack], modules, strict=False)):
            norm = "cross_attention" if ours.startswith("encoder_") else ours
            found[f"{block}.{sub}.layer_norm.weight"] = source[
                f"{here}.pre_{norm}_layer_norm.scale"
            ]
            for short, long in zip("qkvo", ("query", "key", "value", "out"), strict=True):
                found[f"{block}.{sub}.{theirs}.{short}.weight"] = source[
                    f"{here}.{ours}.{long}.kernel"
                ].T
        last = len(attentions[stack])
        found[f"{block}.{last}.layer_norm.weight"] = source[f"{here}.pre_mlp_layer_norm.scale"]
        for part in ("wi_0", "wi_1", "wo"):
            kernel = source[f"{here}.mlp.{part}.kernel"]
            found[f"{block}.{last}.DenseReluDense.{part}.weight"] = kernel.T
    found[f"{there}.final_layer_norm.weight"] = source[f"{stack}.{stack}_norm.scale"]
    return found


def _conv_block(source: Mapping[str, Array]) -> dict[str, Array]:
    found = dict[str, Array]()
    for b in range(3):
        here, there = f"encoder.conv_{b}", f"pre_encoder.0.blocks.{b}"
        for n in (1, 2):
            found[f"{there}.conv{n}.weight"] = source[f"{here}.conv_{n}.filters"]
            found[f"{there}.bn{n}.weight"] = source[f"{here}.norm_{n}.scale"]
            found[f"{there}.bn{n}.bias"] = source[f"{here}.norm_{n}.bias"]
            found[f"{there}.bn{n}.running_mean"] = source[f"{here}.norm_{n}.mean"]
            found[f"{there}.bn{n}.running_var"] = source[f"{here}.norm_{n}.variance"]
            found[f"{there}.bn{n}.num_batches_tracked"] = np.array(7, np.int64)
    found["pre_encoder.0.blocks.0.shortcut.weight"] = source["encoder.conv_0.shortcut.filters"]
    found["pre_encoder.0.blocks.0.shortcut.bias"] = source["encoder.conv_0.shortcut.bias"]
    return found


def _perceiver(weights: Weights, shape: PerceiverShape) -> dict[str, Array]:
    source, found = weights.tensors, dict[str, Array]()
    found["encoder.latent_array.latents"] = source["encoder.latents"]
    if shape.experts:
        for theirs, ours in (("sca", "spectral"), ("latent", "local"), ("temporal", "temporal")):
            found[f"encoder.rotary_emb_{theirs}.freqs"] = source[f"encoder.rotary.{ours}"]
    else:
        found["encoder.pos_emb._pos_emb"] = source["encoder.latent_positions"]
    for b in range(shape.blocks):
        here, there = f"encoder.blocks_{b}", f"encoder.blocks.{b}"
        sca = f"{there}.spectral_cross_attention"
        _norm(found, f"{sca}.self.layernorm1", source, f"{here}.spectral.query_norm")
        _norm(found, f"{sca}.self.layernorm2", source, f"{here}.spectral.source_norm")
        _attention(found, sca, source, f"{here}.spectral")
        if shape.experts:
            found[f"{sca}.self.rotary_emb.freqs"] = source["encoder.rotary.spectral"]
        for kind, count in (("local", shape.local_layers), ("temporal", shape.temporal_layers)):
            for j in range(count):
                layer, ours = f"{there}.{kind}_transformer.{j}", f"{here}.{kind}_{j}"
                _norm(found, f"{layer}.attention.self.layernorm1", source, f"{ours}.attention_norm")
                _attention(found, f"{layer}.attention", source, f"{ours}.attention")
                if shape.experts:
                    name = f"{layer}.attention.self.rotary_emb.freqs"
                    found[name] = source[f"encoder.rotary.{kind}"]
                _norm(found, f"{layer}.layernorm", source, f"{ours}.mlp_norm")
                _mlp(found, f"{layer}.mlp", source, f"{ours}.mlp", shape.experts)
    module = "projection_layer" if shape.channels == 1 else "linear"
    found[f"pre_decoder.0.{module}.weight"] = source["encoder.projection.kernel"].T
    return found


def _norm(found: dict[str, Array], there: str, source: Mapping[str, Array], here: str) -> None:
    found[f"{there}.weight"] = source[f"{here}.scale"]
    found[f"{there}.bias"] = source[f"{here}.bias"]


def _linear(found: dict[str, Array], there: str, source: Mapping[str, Array], here: str) -> None:
    found[f"{there}.weight"] = source[f"{here}.kernel"].T
    found[f"{there}.bias"] = source[f"{here}.bias"]


def _attention(found: dict[str, Array], there: str, source: Mapping[str, Array], here: str) -> None:
    for part in ("query", "key", "value"):
        _linear(found, f"{there}.self.{part}", source, f"{here}.{part}")
    _linear(found, f"{there}.output.dense", source, f"{here}.out")


def _mlp(
    found: dict[str, Array], there: str, source: Mapping[str, Array], here: str, experts: int
) -> None:
    if not experts:
        _linear(found, f"{there}.dense1", source, f"{here}.wi")
        _linear(found, f"{there}.dense2", source, f"{here}.wo")
        return
    found[f"{there}.gate.weight"] = source[f"{here}.router.kernel"].T
    for e in range(experts):
        for theirs, ours in (("w1", "wi_0"), ("gate", "wi_1"), ("w2", "wo")):
            kernel = source[f"{here}.experts_{e}.{ours}.kernel"]
            found[f"{there}.experts.{e}.{theirs}.weight"] = kernel.T


# --- files ---------------------------------------------------------------------------------------


def write_yourmt3(
    path: Path,
    weights: Weights,
    *,
    pitch_shift: bool = False,
    bare: bool = False,
    full_size: bool = False,
) -> Path:
    """A checkpoint file.

    Args:
        path: The file.
        weights: The network.
        pitch_shift: With the buffers of the pitch shifter, as in the ``_ps`` files.
        bare: The state dict alone, as it is repackaged.
        full_size: Write the values of moments and pitch kernels, too; they are only declared
            otherwise, and whoever reads them fails.
    """
    entries = state_dict(weights, pitch_shift=pitch_shift)
    keys: dict[int, str] = {}
    storages: dict[str, Array] = {}
    described = {}
    for name, array in entries.items():
        key = keys.setdefault(id(array), str(len(keys)))
        source = storage(key, array.size, _STORAGES[array.dtype.name])
        described[name] = tensor(source, array.shape, contiguous(array.shape))
        if full_size or not name.startswith("pitchshift."):
            storages[key] = array
    body = ordered(described)
    if not bare:
        moments = dict(_moments(entries, len(keys)))
        body = _lightning(body, moments)
        if full_size:
            storages |= {k: np.broadcast_to(np.float32(0.1), n) for k, n in moments.items()}
    return _write(path, stream(body), storages)


def _moments(entries: Mapping[str, Array], start: int) -> Iterator[tuple[str, int]]:
    """Key and length of the two moments of every trained tensor."""
    fixed = ("spectrogram", "pitchshift", "num_batches", "running_", "additive_pe", "freqs")
    trained = [a for name, a in entries.items() if not any(part in name for part in fixed)]
    for index, array in enumerate(trained):
        yield str(start + 2 * index), array.size
        yield str(start + 2 * index + 1), array.size


def _lightning(state: bytes, moments: Mapping[str, int]) -> bytes:
    """The training checkpoint around a state dict, with a live task manager in it."""
    codec = reduce_(global_("utils.event_codec", "FastCodec"))
    manager = reduce_(global_("utils.task_manager", "TaskManager")) + dict_({"codec": codec}) + b"b"
    numbers = reduce_(global_("numpy.core.multiarray", "_reconstruct"), NONE)
    averages = [tensor(storage(key, size), (size,), (1,)) for key, size in moments.items()]
    return dict_(
        {
            "epoch": integer(90),
            "global_step": integer(320000),
            "pytorch-lightning_version": text("2.2.0.post0"),
            "state_dict": state,
            "loops": dict_({"fit_loop": dict_({})}),
            "optimizer_states": b"](" + b"".join(averages) + b"e",
            "hparams_name": text("kwargs"),
            "hyper_parameters": dict_(
                {
                    "audio_cfg": dict_({"codec": text("spec")}),
                    "task_manager": manager,
                    "onset_tolerance": numbers,
                }
            ),
        }
    )


def _write(path: Path, pickle: bytes, storages: Mapping[str, Array]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", b"little")
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", b"3\n")
    return path
