"""Parameter names of the PyTorch ports, translated to canonical weights.

kunato's MT3-PyTorch and the code derived from it name tensors like Hugging Face's T5 and store
linear layers as ``[out, in]``, so kernels are transposed on the way; embeddings and norm scales
are not.  Two modules are registered twice, so their tensors are stored under two names.  Beside the
weights lie the frequencies of the position tables (``pos_emb.inv_freq``), which differ from
Magenta's and are what these files were published to run with.

MR-MT3 adds a third stack of the same kind, ``segmem_encoder``, which makes a memory of the tokens
of the previous segment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mt3_export.weights import POSITION_BASE, FloatArray, PositionTable, StoredTensor
from mt3_runtime.errors import CheckpointError

#: Tensors outside the blocks; a second name is an alias of the first.
_OUTSIDE = {
    "encoder.continuous_inputs_projection.kernel": ("proj", "encoder.embed_tokens"),
    "encoder.encoder_norm.scale": ("encoder.final_layer_norm",),
    "memory_encoder.token_projection.kernel": ("segmem_proj", "segmem_encoder.embed_tokens"),
    "memory_encoder.encoder_norm.scale": ("segmem_encoder.final_layer_norm",),
    "decoder.token_embedder.embedding": ("decoder_embed_tokens", "decoder.embed_tokens"),
    "decoder.decoder_norm.scale": ("decoder.final_layer_norm",),
    "decoder.logits_dense.kernel": ("lm_head",),
}

_PROJECTIONS = {"q": "query", "k": "key", "v": "value", "o": "out"}

#: Names of the stacks, theirs and ours.
_STACKS = {"encoder": "encoder", "decoder": "decoder", "segmem_encoder": "memory_encoder"}

_ENCODER = (
    ("pre_attention_layer_norm", "attention", "SelfAttention"),
    ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
)

#: Per stack: the sublayers of a block in order, as (norm, module here, module there).
_SUBLAYERS = {
    "encoder": _ENCODER,
    "segmem_encoder": _ENCODER,
    "decoder": (
        ("pre_self_attention_layer_norm", "self_attention", "SelfAttention"),
        ("pre_cross_attention_layer_norm", "encoder_decoder_attention", "EncDecAttention"),
        ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
    ),
}

_BLOCK = re.compile(r"(encoder|decoder|segmem_encoder)\.block\.(\d{1,3})\.(.+)\.weight")
_FREQUENCIES = tuple(f"{stack}.pos_emb.inv_freq" for stack in _STACKS)

#: How far stored frequencies may be from a known formula; half precision loses 0.4 %, while the
#: two formulas end 3.7 % apart.
_FREQUENCY_TOLERANCE = 0.01

#: Families of names that say no more than that.
PORT, MR_MT3 = "mt3_pytorch", "mr_mt3"

#: A key that occurs in one family only, most specific first.
_FAMILIES = (
    ("segmem_", MR_MT3),
    ("encoder.encoder.additive_pe.", "ymt3_plus"),
    (".mlp.experts.", "yptf_moe_multi"),
    ("pre_decoder.0.projection_layer.", "yptf_single"),
    ("pre_decoder.0.linear.", "yptf_multi"),
)

#: Models published with the kernels of the pitch shifter they were trained with, as ``name_ps``.
PITCH_SHIFTED = ("yptf_multi", "yptf_moe_multi")


@dataclass(frozen=True)
class _Transposed:
    """A linear layer's weight, turned to ``[in, out]``."""

    stored: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[::-1]

    def read(self) -> FloatArray:
        return np.ascontiguousarray(self.stored.read().T)


@dataclass(frozen=True)
class _Aliased:
    """A tensor stored under several names, which must agree."""

    stored: Mapping[str, StoredTensor]

    @property
    def shape(self) -> tuple[int, ...]:
        return next(iter(self.stored.values())).shape

    def read(self) -> FloatArray:
        (first, values), *others = ((name, each.read()) for name, each in self.stored.items())
        for name, other in others:
            if not np.array_equal(values, other):
                raise CheckpointError(
                    f"{first} and {name} are one tensor of the model, but differ in the file; it "
                    "is damaged or of another model"
                )
        return values


def family_of(names: Collection[str]) -> str | None:
    """Name the model whose naming a state dict follows; None if it follows no known one."""
    for part, family in _FAMILIES:
        if any(part in name for name in names):
            shifted = family in PITCH_SHIFTED and any("pitchshift" in name for name in names)
            return f"{family}_ps" if shifted else family
    has_decoder = any(name.startswith("decoder.block.") for name in names)
    return PORT if has_decoder and all(map(is_port_name, names)) else None


def is_port_name(name: str) -> bool:
    """Whether a tensor of the ports, or of MR-MT3, may have this name."""
    return canonical_name(name) is not None or name in _FREQUENCIES


def canonical_tensors(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Translate names and orientation; names without a counterpart are kept as they are."""
    network = {name: tensor for name, tensor in stored.items() if name not in _FREQUENCIES}
    return translate(network, canonical_name)


def translate(
    stored: Mapping[str, StoredTensor], rename: Callable[[str], str | None]
) -> dict[str, StoredTensor]:
    """Rename tensors and turn kernels to ``[in, out]``; several may have one canonical name.

    Names that ``rename`` does not know are not dropped, so that the inventory check reports them.
    """
    aliases: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        aliases.setdefault(rename(name) or name, {})[name] = tensor
    return {
        name: _Transposed(_Aliased(found)) if name.endswith(".kernel") else _Aliased(found)
        for name, found in aliases.items()
    }


def position_table(stored: Mapping[str, StoredTensor], d_model: int) -> PositionTable:
    """Take the position frequencies from the file; a file without them runs with the formula.

    Raises:
        CheckpointError: Not all stacks have them, the stacks differ, or they are not sinusoid
            frequencies of this width.
    """
    stacks = [stack for stack in _STACKS if any(name.startswith(f"{stack}.") for name in stored)]
    wanted = [f"{stack}.pos_emb.inv_freq" for stack in stacks]
    found = [stored[name].read() for name in wanted if name in stored]
    if not found:
        return PositionTable(256)
    if len(found) != len(wanted) or not all(np.array_equal(found[0], each) for each in found):
        raise CheckpointError(
            f"{' and '.join(wanted)} must all be stored and equal; the file is damaged"
        )
    half = d_model // 2
    frequencies = found[0]
    formulas: tuple[tuple[Literal[255, 256], int], ...] = ((256, half), (255, half - 1))
    for denominator, divisor in formulas:
        expected = POSITION_BASE ** (-np.arange(half) / divisor)
        if frequencies.shape == (half,) and np.allclose(
            frequencies, expected, rtol=_FREQUENCY_TOLERANCE, atol=0.0
        ):
            return PositionTable(denominator, frequencies)
    raise CheckpointError(
        f"the {wanted[0]} of the file, of shape {frequencies.shape}, are not the sinusoid "
        f"frequencies of a model {d_model} wide"
    )


def canonical_name(name: str) -> str | None:
    """The canonical name of a port's tensor, or None."""
    block = _BLOCK.fullmatch(name)
    if block is None:
        return _OUTSIDE_NAMES.get(name)
    part = _BLOCK_NAMES[block[1]].get(block[3])
    return part and f"{_STACKS[block[1]]}.layers_{int(block[2])}.{part}"


def _block_names(stack: str) -> dict[str, str]:
    """Name within a port's block -> name within a canonical layer."""
    names = {}
    for index, (norm, here, there) in enumerate(_SUBLAYERS[stack]):
        names[f"layer.{index}.layer_norm"] = f"{norm}.scale"
        parts = {part: part for part in ("wi_0", "wi_1", "wo")} if here == "mlp" else _PROJECTIONS
        for theirs, ours in parts.items():
            names[f"layer.{index}.{there}.{theirs}"] = f"{here}.{ours}.kernel"
    return names


_BLOCK_NAMES = {stack: _block_names(stack) for stack in _SUBLAYERS}
_OUTSIDE_NAMES = {
    f"{alias}.weight": name for name, aliases in _OUTSIDE.items() for alias in aliases
}
