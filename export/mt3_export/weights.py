"""Canonical weights: one typed structure between every checkpoint format and every graph builder.

Whatever a checkpoint looks like on disk, its reader ends here: float32 arrays under the dotted
names of Magenta's T5X tree (``encoder.layers_0.attention.query.kernel``), kernels oriented
``[in, out]`` with heads folded (column ``head * head_dim + d``), and the sinusoidal position table
the weights are meant to run with.  Nothing is ever filled in: a `Weights` object exists only when
every tensor of its inventory is present, has its shape and is finite.  Converters that defaulted
missing norm scales to ones have produced plausible garbage before; this structure cannot hold it.

The network the names describe (pre-norm T5, RMS norm, gated tanh-GELU, no biases, no attention
scaling, untied embeddings, sinusoids added to both stack inputs) has, for the public ``mt3``
checkpoint, 189 tensors and 45,896,704 parameters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import CheckpointError

FloatArray = npt.NDArray[np.float32]

#: Longest wavelength base of the sinusoids (Vaswani et al. 2017; Magenta's ``max_scale``).
POSITION_BASE = 10000.0

#: How many offending tensors an error names before it only counts.
NAMED_IN_ERRORS = 4

#: No known member of the family has more; a file that declares more is refused unread (1 GiB).
MAX_PARAMETERS = 2**28

#: The projections that attention starts with.
QKV = ("query", "key", "value")

_LAYER = re.compile(r"^(encoder|decoder|memory_encoder)\.layers_(\d{1,3})\.")


class Shaped(Protocol):
    """Anything with a shape: an array, or a tensor that is still in its file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""


class StoredTensor(Shaped, Protocol):
    """A tensor in a checkpoint whose shape is known and whose values are not read yet."""

    def read(self) -> FloatArray:
        """Read the values as a float32 array of ``shape``; raises `CheckpointError`."""


@dataclass(frozen=True)
class T5Shape:
    """Sizes of one encoder-decoder network; the defaults are the public MT3 model.

    Attributes:
        d_model: Width of the residual stream.
        heads: Attention heads; ``heads * head_dim`` need not equal ``d_model``.
        head_dim: Width of one head.
        d_ff: Width of each of the two gated feed-forward branches.
        encoder_layers: Number of encoder blocks.
        decoder_layers: Number of decoder blocks.
        vocab_size: Rows of the token embedding and columns of the output head.
        input_bins: Width of one input frame (log-mel bins).
    """

    d_model: int = 512
    heads: int = 6
    head_dim: int = 64
    d_ff: int = 1024
    encoder_layers: int = 8
    decoder_layers: int = 8
    vocab_size: int = 1536
    input_bins: int = 512

    @property
    def inner(self) -> int:
        """Width of the concatenated heads."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Sequences decoded from one segment, each with cross keys and values of its own."""
        return 1

    @property
    def logits_scale(self) -> float:
        """What the decoder's output is multiplied by before the head."""
        return 1.0

    def encoder_inventory(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the encoder; other encoders override this."""
        return {
            "encoder.continuous_inputs_projection.kernel": (self.input_bins, self.d_model),
            **self.encoder_stack("encoder", self.encoder_layers),
        }

    def encoder_stack(self, stack: str, layers: int) -> dict[str, tuple[int, ...]]:
        """The layers of a T5 encoder and the norm behind them."""
        names = dict[str, tuple[int, ...]]()
        for index in range(layers):
            layer = f"{stack}.layers_{index}"
            names[f"{layer}.pre_attention_layer_norm.scale"] = (self.d_model,)
            names |= self.attention(f"{layer}.attention") | self.mlp(layer)
        return names | {f"{stack}.encoder_norm.scale": (self.d_model,)}

    def attention(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """The projections of one attention."""
        sizes = dict.fromkeys(QKV, (self.d_model, self.inner))
        sizes["out"] = (self.inner, self.d_model)
        return {f"{prefix}.{part}.kernel": size for part, size in sizes.items()}

    def mlp(self, layer: str) -> dict[str, tuple[int, ...]]:
        """The gated feed-forward block of one layer, its norm included."""
        d, wide = self.d_model, self.d_ff
        sizes = {"wi_0": (d, wide), "wi_1": (d, wide), "wo": (wide, d)}
        return {
            f"{layer}.pre_mlp_layer_norm.scale": (d,),
            **{f"{layer}.mlp.{part}.kernel": size for part, size in sizes.items()},
        }


@dataclass(frozen=True)
class MemoryShape(T5Shape):
    """Sizes of a network that remembers the tokens of the previous segment (MR-MT3).

    Attributes:
        memory_layers: Number of blocks of the encoder that makes the memory.
    """

    memory_layers: int = 1

    def encoder_inventory(self) -> dict[str, tuple[int, ...]]:
        return {
            **super().encoder_inventory(),
            "memory_encoder.token_projection.kernel": (self.d_model, self.d_model),
            **self.encoder_stack("memory_encoder", self.memory_layers),
        }


@dataclass(frozen=True, eq=False)
class PositionTable:
    """The sinusoids added to the inputs of both stacks.

    Columns ``0 .. d/2-1`` are ``sin(p * f_i)``, the rest ``cos(p * f_i)``.  The frequencies decide
    which original the model agrees with:

    * ``denominator=255``: ``f_i = 10000 ** (-i / (d/2 - 1))``, evaluated in float64 and rounded
      once, as Magenta's Flax ``sinusoidal`` initialiser does.
    * ``denominator=256``: ``f_i = 10000 ** (-i / (d/2))``, frequencies and angles rounded to
      float32 first, as the PyTorch ports do.

    The two tables differ by up to 1.34 within 1024 positions, so the choice belongs to the
    checkpoint, never to the code that runs it.

    Attributes:
        denominator: 255 or 256, the exponent's denominator at ``d_model`` 512; other widths use
            ``d_model/2 - 1`` and ``d_model/2``.
        frequencies: float32 ``[d_model/2]`` stored in the checkpoint (``pos_emb.inv_freq``); where
            given they replace the formula and are evaluated the way the PyTorch ports do.
        rows: float32 ``[positions, d_model]``, where the checkpoint stores the table itself, as
            YourMT3 does; it is taken as it is.
    """

    denominator: Literal[255, 256]
    frequencies: FloatArray | None = field(default=None)
    rows: FloatArray | None = field(default=None)

    def table(self, length: int, d_model: int) -> FloatArray:
        """Return the first ``length`` rows, float32 ``[length, d_model]``.

        Raises:
            CheckpointError: ``d_model`` is odd, stored frequencies or rows have another width, or
                fewer rows are stored.
        """
        if self.rows is not None:
            if self.rows.shape[0] < length or self.rows.shape[1:] != (d_model,):
                raise CheckpointError(
                    f"the checkpoint stores a position table of shape {self.rows.shape}, but "
                    f"{length} positions of width {d_model} are needed"
                )
            return self.rows[:length]
        half = d_model // 2
        if d_model % 2 or half < 2:
            raise CheckpointError(f"a sinusoid table needs an even d_model >= 4, not {d_model}")
        if self.frequencies is not None and self.frequencies.shape != (half,):
            raise CheckpointError(
                f"the checkpoint stores position frequencies of shape {self.frequencies.shape}, "
                f"but d_model {d_model} needs ({half},)"
            )
        positions = np.arange(length, dtype=np.float64)[:, np.newaxis]
        if self.frequencies is None and self.denominator == 255:
            exponent = np.arange(half) * (-math.log(POSITION_BASE) / (half - 1))
            angles = positions * np.exp(exponent)
        else:
            stored = self.frequencies
            rounded = _torch_frequencies(half) if stored is None else stored.astype(np.float32)
            # The ports multiply in float32; a float64 product rounded once is that very number.
            angles = (positions * rounded.astype(np.float64)).astype(np.float32).astype(np.float64)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _torch_frequencies(half: int) -> FloatArray:
    """``1 / 10000 ** (i / half)`` with the float32 roundings of the PyTorch ports."""
    exponent = np.arange(half, dtype=np.float32) / np.float32(half)
    power = np.power(POSITION_BASE, exponent.astype(np.float64)).astype(np.float32)
    return (np.float32(1.0) / power).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Weights:
    """A complete network; creating one validates it.

    Attributes:
        shape: Sizes of the network.
        tensors: float32 arrays by T5X dotted name, exactly the names of ``inventory(shape)``.
        positions: Position table of both stacks.

    Raises:
        CheckpointError: See `validate`.
    """

    shape: T5Shape
    tensors: Mapping[str, FloatArray]
    positions: PositionTable

    def __post_init__(self) -> None:
        validate(self.tensors, self.shape)
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(tensor.size for tensor in self.tensors.values())


def inventory(shape: T5Shape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a network of this size, encoder first."""
    d, names = shape.d_model, shape.encoder_inventory()
    names["decoder.token_embedder.embedding"] = (shape.vocab_size, d)
    for index in range(shape.decoder_layers):
        layer = f"decoder.layers_{index}"
        names[f"{layer}.pre_self_attention_layer_norm.scale"] = (d,)
        names |= shape.attention(f"{layer}.self_attention")
        names[f"{layer}.pre_cross_attention_layer_norm.scale"] = (d,)
        names |= shape.attention(f"{layer}.encoder_decoder_attention")
        names |= shape.mlp(layer)
    names["decoder.decoder_norm.scale"] = (d,)
    names["decoder.logits_dense.kernel"] = (d, shape.vocab_size)
    return names


def check_inventory(tensors: Mapping[str, Shaped], shape: T5Shape) -> None:
    """Check names and shapes, without touching values: readers call this before reading.

    Raises:
        CheckpointError: Tensors are missing, unexpected or of the wrong shape (one error names
            the first few of each kind and counts the rest), or the network is absurdly large.
    """
    wanted = inventory(shape)
    parameters = sum(math.prod(size) for size in wanted.values())
    if parameters > MAX_PARAMETERS:
        raise CheckpointError(
            f"the tensors declare {parameters:,} parameters; no supported model has more than "
            f"{MAX_PARAMETERS:,}, so this is not one of them"
        )
    _raise_faults(
        {
            "missing": [name for name in wanted if name not in tensors],
            "unexpected": sorted(name for name in tensors if name not in wanted),
            "wrong shape": [
                f"{name} {tuple(tensors[name].shape)}, expected {size}"
                for name, size in wanted.items()
                if name in tensors and tuple(tensors[name].shape) != size
            ],
        },
        len(wanted),
    )


def validate(tensors: Mapping[str, FloatArray], shape: T5Shape) -> None:
    """Check that ``tensors`` is exactly the inventory of ``shape``, in finite float32.

    Raises:
        CheckpointError: See `check_inventory`; or tensors are not float32, or not finite.
    """
    check_inventory(tensors, shape)
    _raise_faults(
        {
            "not float32": [
                f"{name} {tensor.dtype}"
                for name, tensor in tensors.items()
                if tensor.dtype != np.float32
            ],
            "not finite": [
                name for name, tensor in tensors.items() if not np.isfinite(tensor).all()
            ],
        },
        len(tensors),
    )


def _raise_faults(faults: Mapping[str, list[str]], count: int) -> None:
    """Raise one error for all faults; each kind names its first few tensors."""
    found = [f"{kind}: {_some(names)}" for kind, names in faults.items() if names]
    if found:
        raise CheckpointError(
            f"the weights are not a complete network of {count} tensors; {'; '.join(found)}. "
            "Nothing is filled in: get an undamaged checkpoint of a supported model."
        )


def infer_shape(tensors: Mapping[str, Shaped], *, head_dim: int = 64) -> T5Shape:
    """Deduce the sizes of a network from its tensors.

    Only what the deduction needs is looked at; `check_inventory` finds whatever else is wrong.

    Args:
        tensors: Arrays, or stored tensors, by T5X dotted name.
        head_dim: Width of one head, which folded kernels do not tell; 64 in all public models.

    Raises:
        CheckpointError: A tensor the deduction needs is missing or has the wrong rank, or the
            attention width is no multiple of ``head_dim``.
    """

    def sizes(name: str) -> tuple[int, int]:
        if name not in tensors:
            raise CheckpointError(f"cannot tell the size of the network: {name} is missing")
        shape = tuple(tensors[name].shape)
        if len(shape) != 2:
            raise CheckpointError(
                f"cannot tell the size of the network: {name} has shape {shape}, expected a matrix"
            )
        return shape[0], shape[1]

    layers = {"encoder": 0, "decoder": 0, "memory_encoder": 0}
    for match in filter(None, map(_LAYER.match, tensors)):
        layers[match[1]] = max(layers[match[1]], int(match[2]) + 1)
    inner = sizes("encoder.layers_0.attention.query.kernel")[1]
    if inner < head_dim or inner % head_dim:
        raise CheckpointError(
            f"the attention width {inner} is not a multiple of the head width {head_dim}"
        )
    vocab_size, d_model = sizes("decoder.token_embedder.embedding")
    found = T5Shape(
        d_model=d_model,
        heads=inner // head_dim,
        head_dim=head_dim,
        d_ff=sizes("encoder.layers_0.mlp.wi_0.kernel")[1],
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        vocab_size=vocab_size,
        input_bins=sizes("encoder.continuous_inputs_projection.kernel")[0],
    )
    memory_layers = layers["memory_encoder"]
    return MemoryShape(**vars(found), memory_layers=memory_layers) if memory_layers else found


def _some(names: list[str]) -> str:
    """Join the first few names, counting the others."""
    rest = len(names) - NAMED_IN_ERRORS
    return ", ".join(names[:NAMED_IN_ERRORS]) + (f" and {rest} more" if rest > 0 else "")
