"""The MT3 network in PyTorch, as it is trained.

Contract: `Network` holds exactly the tensors of `mt3_export.weights.inventory`, under those names
and in that orientation (kernels ``[in, out]``, applied as ``x @ kernel``), so that its state dict
*is* a set of canonical weights and no table of names can be wrong.  It computes T5 1.1 as MT3 uses
it: RMS norm ahead of every sublayer, no biases, unscaled attention, gated tanh-GELU, sinusoids
added to both inputs, an untied output head.

`Aids` are the parts that exist during training only: frame-wise heads on the encoder's output.
The other aid, guided attention, has no parameters: `Network.forward` hands out the attention of two
heads of the middle decoder layer, and `mt3_training.networks.losses` teaches them where to look.

This module imports torch; import it only where training or conversion really starts.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mt3_export.weights import PositionTable, T5Shape, Weights, inventory
from mt3_runtime.errors import CheckpointError
from mt3_training.examples.dataset import PITCHES, ROLLS

#: Epsilon of all norms, as in T5 (`mt3_export` writes the same into its graphs).
NORM_EPSILON = 1e-6

#: How many heads of the middle decoder layer are taught where to look: one at the event that is
#: written, one at the event before.
GUIDED_HEADS = 2

#: Rows of the position tables: the token limit of the exported graphs, and more than any encoder.
MAX_POSITIONS = 1024

#: Classes of the distance to the next event: 1 to 63 frames ahead, and more.
NEXT_EVENT = 64

#: Gain of the input projection at the start of training.  Log-mel values of music have a standard
#: deviation of about 2.5 around their mean; the result then is about as large as the sinusoids.
INPUT_GAIN = 0.4


class Output(NamedTuple):
    """What the network says about one batch.

    Attributes:
        logits: [n, L, V], the next token after each of the tokens read.
        encoded: [n, T, d_model], the encoder's output.
        attention: Logarithm of the attention of the guided heads, [n, heads, L, T]; None unless it
            was asked for.
    """

    logits: Tensor
    encoded: Tensor
    attention: Tensor | None


class Dense(nn.Module):
    """A linear map without bias; ``kernel`` is ``[in, out]``."""

    def __init__(self, inputs: int, outputs: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs) * (gain / math.sqrt(inputs)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel


class RMSNorm(nn.Module):
    """Divides by the root of the mean square, then scales."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.scale.shape, self.scale, NORM_EPSILON)


class Attention(nn.Module):
    """Multi-head attention; there is no scaling, the query's initialisation contains it."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query = Dense(shape.d_model, shape.inner, gain=shape.head_dim**-0.5)
        self.key = Dense(shape.d_model, shape.inner)
        self.value = Dense(shape.d_model, shape.inner)
        self.out = Dense(shape.inner, shape.d_model)

    def split(self, x: Tensor) -> Tensor:
        """[n, L, inner] -> [n, heads, L, head_dim]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, memory: Tensor, *, causal: bool = False) -> Tensor:
        parts = (self.query(x), self.key(memory), self.value(memory))
        mixed = _attend(*map(self.split, parts), causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def log_attention(self, x: Tensor, memory: Tensor, heads: int) -> Tensor:
        """Logarithm of where the first ``heads`` heads look, float32 [n, heads, L, T]."""
        queries = self.split(self.query(x))[:, :heads].float()
        keys = self.split(self.key(memory))[:, :heads].float()
        return functional.log_softmax(queries @ keys.transpose(2, 3), dim=-1)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
    """Softmax of products, times values: all [n, heads, L or T, head_dim].

    The fused kernel is for GPUs: on CPUs its gradient takes 1.5 (encoder) to 6 times (short crops)
    as long as that of the formula.
    """
    if queries.is_cuda:
        return functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=causal, scale=1.0
        )
    scores = queries @ keys.transpose(2, 3)
    if causal:
        size = scores.shape[-2:]
        scores = scores + scores.new_full(size, -math.inf).triu(1)
    return torch.softmax(scores, dim=-1) @ values


class Dropout(nn.Module):
    """Drops features of whole sequences, as T5X does: one mask [n, 1, d] for all positions.

    A mask per position would cost a CPU 7 % of a step for random numbers alone.  Each thread draws
    from a generator of its own, once it was given one with `seed`.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self._own = threading.local()

    def seed(self, seed: int, device: torch.device) -> None:
        """Makes what this thread draws from now on depend on nothing but the seed."""
        self._own.generator = torch.Generator(device).manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return x
        keep = 1.0 - self.probability
        generator = getattr(self._own, "generator", None)
        drawn = torch.rand(x.shape[0], 1, x.shape[2], generator=generator, device=x.device)
        return x * ((drawn < keep).to(x.dtype) / keep)


class GatedMLP(nn.Module):
    """gelu(x W0) * (x W1), then Wo."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.wi_0 = Dense(shape.d_model, shape.d_ff)
        self.wi_1 = Dense(shape.d_model, shape.d_ff)
        self.wo = Dense(shape.d_ff, shape.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(functional.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class EncoderLayer(nn.Module):
    """Self-attention over all frames, then the feed-forward part."""

    def __init__(self, shape: T5Shape, dropout: Dropout) -> None:
        super().__init__()
        self.pre_attention_layer_norm = RMSNorm(shape.d_model)
        self.attention = Attention(shape)
        self.pre_mlp_layer_norm = RMSNorm(shape.d_model)
        self.mlp = GatedMLP(shape)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        normed = self.pre_attention_layer_norm(x)
        x = x + self.dropout(self.attention(normed, normed))
        return x + self.dropout(self.mlp(self.pre_mlp_layer_norm(x)))


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder's output, the feed-forward part."""

    def __init__(self, shape: T5Shape, dropout: Dropout) -> None:
        super().__init__()
        self.pre_self_attention_layer_norm = RMSNorm(shape.d_model)
        self.self_attention = Attention(shape)
        self.pre_cross_attention_layer_norm = RMSNorm(shape.d_model)
        self.encoder_decoder_attention = Attention(shape)
        self.pre_mlp_layer_norm = RMSNorm(shape.d_model)
        self.mlp = GatedMLP(shape)
        self.dropout = dropout

    def forward(self, x: Tensor, encoded: Tensor, guided: int) -> tuple[Tensor, Tensor | None]:
        normed = self.pre_self_attention_layer_norm(x)
        x = x + self.dropout(self.self_attention(normed, normed, causal=True))
        normed = self.pre_cross_attention_layer_norm(x)
        cross = self.encoder_decoder_attention
        attention = cross.log_attention(normed, encoded, guided) if guided else None
        x = x + self.dropout(cross(normed, encoded))
        return x + self.dropout(self.mlp(self.pre_mlp_layer_norm(x))), attention


class Encoder(nn.Module):
    """Features [n, T, bins] -> [n, T, d_model]."""

    def __init__(self, shape: T5Shape, dropout: Dropout) -> None:
        super().__init__()
        self.continuous_inputs_projection = Dense(shape.input_bins, shape.d_model)
        self.layers = [f"layers_{index}" for index in range(shape.encoder_layers)]
        for name in self.layers:
            self.add_module(name, EncoderLayer(shape, dropout))
        self.encoder_norm = RMSNorm(shape.d_model)
        self.dropout = dropout
        # Raw log-mel has a large constant part (silence is -11.5) and no bias absorbs it: columns
        # that sum to zero do not see it.
        with torch.no_grad():
            kernel = self.continuous_inputs_projection.kernel
            kernel -= kernel.mean(dim=0, keepdim=True)
            kernel *= INPUT_GAIN

    def forward(self, features: Tensor, positions: Tensor) -> Tensor:
        x = self.continuous_inputs_projection(features)
        x = self.dropout(x.float() + positions[: features.shape[1]])
        for name in self.layers:
            x = self.get_submodule(name)(x)
        return self.encoder_norm(x)


class Embedder(nn.Module):
    """Token ids [n, L] -> [n, L, d_model]."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(shape.vocab_size, shape.d_model))

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.embedding(tokens, self.embedding)


class Decoder(nn.Module):
    """Tokens read so far and the encoder's output -> logits of the next token."""

    def __init__(self, shape: T5Shape, dropout: Dropout) -> None:
        super().__init__()
        self.token_embedder = Embedder(shape)
        self.layers = [f"layers_{index}" for index in range(shape.decoder_layers)]
        for name in self.layers:
            self.add_module(name, DecoderLayer(shape, dropout))
        self.decoder_norm = RMSNorm(shape.d_model)
        self.logits_dense = Dense(shape.d_model, shape.vocab_size)
        self.dropout = dropout

    def forward(
        self, tokens: Tensor, encoded: Tensor, positions: Tensor, *, guide: bool
    ) -> tuple[Tensor, Tensor | None]:
        x = self.dropout(self.token_embedder(tokens) + positions[: tokens.shape[1]])
        taught = None
        for index, name in enumerate(self.layers):
            guided = GUIDED_HEADS if guide and index == len(self.layers) // 2 else 0
            x, attention = self.get_submodule(name)(x, encoded, guided)
            taught = attention if attention is not None else taught
        return self.logits_dense(self.decoder_norm(x)), taught


class Network(nn.Module):
    """The whole encoder-decoder.

    Args:
        shape: Sizes.
        dropout: Probability with which values entering the residual streams are dropped.
        positions: Position table; Magenta's by default.
    """

    def __init__(
        self, shape: T5Shape, *, dropout: float = 0.0, positions: PositionTable | None = None
    ) -> None:
        super().__init__()
        self.shape = shape
        self.positions = positions or PositionTable(255)
        self.dropout = Dropout(dropout)
        self.encoder = Encoder(shape, self.dropout)
        self.decoder = Decoder(shape, self.dropout)
        table = torch.from_numpy(self.positions.table(MAX_POSITIONS, shape.d_model))
        self.register_buffer("table", table, persistent=False)

    def encode(self, features: Tensor) -> Tensor:
        """Features float32 [n, T, bins] -> [n, T, d_model]."""
        return self.encoder(features, self.table)

    def decode(self, tokens: Tensor, encoded: Tensor) -> Tensor:
        """Logits [n, L, V] after each of the tokens int64 [n, L], the start token first."""
        logits, _ = self.decoder(tokens, encoded, self.table, guide=False)
        return logits

    def forward(self, features: Tensor, tokens: Tensor, *, guide: bool = False) -> Output:
        """Teacher-forced pass.

        Args:
            features: float32 [n, T, bins].
            tokens: int64 [n, L]: the start token, then the targets but the last.
            guide: Hand out the attention of the guided heads.
        """
        encoded = self.encode(features)
        logits, attention = self.decoder(tokens, encoded, self.table, guide=guide)
        return Output(logits, encoded, attention)

    def to_weights(self) -> Weights:
        """A copy of the parameters as canonical weights.

        Raises:
            CheckpointError: A parameter is not finite: the training has diverged.
        """
        return as_weights(dict(self.named_parameters()), self.shape, self.positions)

    @classmethod
    def from_weights(cls, weights: Weights, *, dropout: float = 0.0) -> Network:
        """A network that starts from canonical weights."""
        network = cls(weights.shape, dropout=dropout, positions=weights.positions)
        network.begin_with(weights)
        return network

    def begin_with(self, weights: Weights) -> None:
        """Takes all values of canonical weights; the position table stays.

        Raises:
            CheckpointError: They are those of a network of other sizes.
        """
        if weights.shape != self.shape:
            raise CheckpointError(
                f"the weights are those of a network of {weights.shape}, and this one has "
                f"{self.shape}"
            )
        copies = {name: torch.from_numpy(np.array(t)) for name, t in weights.tensors.items()}
        self.load_state_dict(copies)


def as_weights(
    tensors: dict[str, Tensor], shape: T5Shape, positions: PositionTable | None = None
) -> Weights:
    """Canonical weights from tensors under canonical names; others are left out.

    Raises:
        CheckpointError: A tensor is missing or not finite.
    """
    arrays = {
        name: tensors[name].detach().to("cpu", torch.float32).numpy().copy()
        for name in inventory(shape)
        if name in tensors
    }
    return Weights(shape, arrays, positions or PositionTable(255))


class Aids(nn.Module):
    """Frame-wise heads on the encoder's output; they are never exported.

    Their task needs no search, so the encoder learns from them where notes begin, and which
    instruments sound, long before the decoder can tell it.
    """

    #: Rolls are nearly empty; the heads start out saying so (probability 0.018).
    START_BIAS = -4.0

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.heads = nn.Linear(shape.d_model, len(ROLLS) * PITCHES)
        nn.init.constant_(self.heads.bias, self.START_BIAS)
        self.next = nn.Linear(shape.d_model, NEXT_EVENT)

    def forward(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the rolls [n, T, rolls, pitches] and of the next event [n, T, NEXT_EVENT]."""
        return self.heads(encoded).unflatten(-1, (len(ROLLS), PITCHES)), self.next(encoded)
