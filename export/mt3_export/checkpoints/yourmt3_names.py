"""Parameter names of YourMT3's checkpoints, translated to canonical weights.

The T5 stacks are named as in the other PyTorch ports, but for a doubled prefix (``decoder.decoder.
block``); everything else is listed here.  Of what a file holds beside the network, the windows and
filters of its spectrogram, the counters of its batch norms and the kernels of the pitch shifter
(a quarter of a ``_ps`` file) are never read.  One tensor of rotary frequencies lies under many
names, as the modules that share it are registered many times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from mt3_export.checkpoints.torch_names import canonical_name, translate
from mt3_export.weights import FloatArray, PositionTable, StoredTensor
from mt3_runtime.errors import CheckpointError

#: Entries of a state dict that are no part of the network.
_BESIDE = re.compile(r"(pitchshift|spectrogram)\..+|.+\.num_batches_tracked")

_DOUBLED = re.compile(r"^(encoder|decoder)\.\1\.")
_TABLES = ("encoder.encoder.additive_pe.weight", "decoder.decoder.additive_pe.weight")

#: Modules at the top, and the canonical name of each of their tensors.
_TOP = {
    "embed_tokens.weight": "decoder.token_embedder.embedding",
    "lm_head.lm_head.weight": "decoder.logits_dense.kernel",
    "encoder.latent_array.latents": "encoder.latents",
    "encoder.pos_emb._pos_emb": "encoder.latent_positions",
    "encoder.rotary_emb_sca.freqs": "encoder.rotary.spectral",
    "encoder.rotary_emb_latent.freqs": "encoder.rotary.local",
    "encoder.rotary_emb_temporal.freqs": "encoder.rotary.temporal",
    "pre_decoder.0.projection_layer.weight": "encoder.projection.kernel",
    "pre_decoder.0.linear.weight": "encoder.projection.kernel",
}

_BATCH_NORM = {
    "weight": "scale",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "variance",
}

#: Modules of a Perceiver block; what ends in ``norm`` has a scale, the others have kernels.
_SPECTRAL_PARTS = {
    "self.layernorm1": "query_norm",
    "self.layernorm2": "source_norm",
    "self.query": "query",
    "self.key": "key",
    "self.value": "value",
    "output.dense": "out",
}
_LAYER_PARTS = {
    "attention.self.layernorm1": "attention_norm",
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.out",
    "layernorm": "mlp_norm",
    "mlp.dense1": "mlp.wi",
    "mlp.dense2": "mlp.wo",
    "mlp.gate": "mlp.router",
}
_EXPERT = re.compile(r"mlp\.experts\.(\d{1,3})\.(w1|gate|w2)")
_EXPERT_PARTS = {"w1": "wi_0", "gate": "wi_1", "w2": "wo"}


def yourmt3_tensors(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Translate names and orientation; unknown names are kept, for the inventory to report."""
    network = {
        name: tensor
        for name, tensor in stored.items()
        if not _BESIDE.fullmatch(name) and name not in _TABLES
    }
    return translate(network, _canonical)


def is_yourmt3_name(name: str) -> bool:
    """Whether a file of YourMT3 may have an entry of this name."""
    beside = _BESIDE.fullmatch(name) or name in _TABLES
    return bool(beside) or _canonical(name) is not None


def stored_table(stored: Mapping[str, StoredTensor], d_model: int) -> PositionTable:
    """Take the position table from the file; nothing is worked out here.

    Raises:
        CheckpointError: It is missing, has another width, or the two stacks have different ones.
    """
    tables = [stored[name].read() for name in _TABLES if name in stored]
    decoder = _TABLES[-1]
    if decoder not in stored:
        raise CheckpointError(f"the position table {decoder} is missing; the file is damaged")
    if not all(np.array_equal(tables[0], table) for table in tables):
        raise CheckpointError(f"{' and '.join(_TABLES)} must be equal; the file is damaged")
    rows: FloatArray = tables[0]
    if rows.ndim != 2 or rows.shape[1] != d_model or not np.isfinite(rows).all():
        raise CheckpointError(
            f"{decoder} has shape {rows.shape} or values that are not finite; expected a table of "
            f"positions {d_model} wide"
        )
    return PositionTable(256, rows=rows)


def _canonical(name: str) -> str | None:
    """The canonical name of a YourMT3 tensor, or None."""
    for pattern, translated in _PATTERNS.items():
        if match := pattern.fullmatch(name):
            return translated(*match.groups())
    return _TOP.get(name) or canonical_name(_DOUBLED.sub(r"\1.", name))


def _conv_name(block: str, module: str, tensor: str) -> str | None:
    kind, part = module[:-1], module[-1]
    if kind == "bn":
        leaf = _BATCH_NORM.get(tensor)
        return leaf and f"encoder.conv_{block}.norm_{part}.{leaf}"
    leaf = {"weight": "filters", "bias": "bias"}.get(tensor)
    return leaf and f"encoder.conv_{block}.{f'conv_{part}' if kind == 'conv' else module}.{leaf}"


def _spectral_name(block: str, module: str, tensor: str) -> str | None:
    if module == "self.rotary_emb":
        return "encoder.rotary.spectral"
    return _part_name(f"encoder.blocks_{block}.spectral", _SPECTRAL_PARTS, module, tensor)


def _layer_name(block: str, kind: str, index: str, module: str, tensor: str) -> str | None:
    if module == "attention.self.rotary_emb":
        return f"encoder.rotary.{kind}"
    prefix = f"encoder.blocks_{block}.{kind}_{index}"
    if expert := _EXPERT.fullmatch(module):
        return f"{prefix}.mlp.experts_{int(expert[1])}.{_EXPERT_PARTS[expert[2]]}.kernel"
    return _part_name(prefix, _LAYER_PARTS, module, tensor)


def _part_name(prefix: str, parts: Mapping[str, str], module: str, tensor: str) -> str | None:
    if module not in parts or tensor not in ("weight", "bias"):
        return None
    part = parts[module]
    matrix = "scale" if part.endswith("norm") else "kernel"
    return f"{prefix}.{part}.{matrix if tensor == 'weight' else 'bias'}"


#: What lies in numbered modules, and who translates the groups of the match.
_PATTERNS: dict[re.Pattern[str], Callable[..., str | None]] = {
    re.compile(pattern): translated
    for pattern, translated in (
        (r"pre_encoder\.0\.blocks\.(\d)\.(conv[12]|bn[12]|shortcut)\.(\w+)", _conv_name),
        (r"encoder\.blocks\.(\d)\.spectral_cross_attention\.(.+)\.(\w+)", _spectral_name),
        (
            r"encoder\.blocks\.(\d)\.(local|temporal)_transformer\.(\d)\.(.+)\.(\w+)",
            _layer_name,
        ),
    )
}
