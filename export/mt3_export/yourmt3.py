"""Network shapes of YourMT3: a T5 decoder behind one of three encoders.

``ymt3_plus`` has a T5 encoder that reads the features as they are.  The other three share one:

1. Three residual blocks of convolutions, batch norms and a pooling that halves the frequencies turn
   [T, bins] into [T, channels, bins / 8].  Each channel of a frame is a token of that width.
2. The Perceiver: for every frame, K latent vectors read the frame's tokens (``spectral``), then
   each other (``local_j``), and then themselves in all other frames (``temporal_j``); three times.
3. A projection of the latents to the decoder's width: all K to one sequence of T rows
   (``yptf_single``), or pairs of them to 13 sequences (``yptf_multi``), one per decoder channel.

In the two sizes of the latter, ``experts`` 0 and 8, more differs than the feed-forward blocks: the
small one adds a table of positions to its latents and drops them after they have read a frame; the
other turns its queries by their position (``rotary``) and keeps the latents beside what they read.

Canonical names are ours, in the style of T5X.  Linear layers are ``kernel`` [in, out] and ``bias``;
convolutions are ``filters`` [out, in, height, width]; layer and batch norms have ``scale`` and
``bias``.  Sizes that tensors do not tell are constants here, as all published files agree on them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mt3_export.weights import QKV, Shaped, T5Shape
from mt3_runtime.errors import CheckpointError

Inventory = dict[str, tuple[int, ...]]

#: Attention heads of the Perceiver.
LATENT_HEADS = 8
#: Experts that read each token.
TOP_EXPERTS = 2
#: Residual convolution blocks, and how much each shortens the frequency axis.
CONV_BLOCKS, POOLING = 3, 2
POOLED = 8  # POOLING ** CONV_BLOCKS
#: Angles per head that turn with the position; each turns two columns.
ROTARY_PAIRS = 2
#: The three attentions of a Perceiver block and what their positions count: latents or frames.
ROTARY_KINDS = ("spectral", "local", "temporal")


@dataclass(frozen=True)
class YourMT3Shape(T5Shape):
    """Sizes of ``ymt3_plus``; see `T5Shape`."""

    @property
    def logits_scale(self) -> float:
        """T5's rule for embeddings that serve as head, kept although they are separate here."""
        return 1.0 / math.sqrt(self.d_model)

    def encoder_inventory(self) -> Inventory:
        return self.encoder_stack("encoder", self.encoder_layers)


@dataclass(frozen=True)
class PerceiverShape(YourMT3Shape):
    """Sizes of the ``yptf`` models; the defaults are ``yptf_moe_multi``.

    Attributes:
        decoder_channels: Sequences per segment; ``latents`` is a multiple of it.
        latents: K, latent vectors per frame.
        width: Width of a latent vector.
        ff_width: Width of a feed-forward block, or of each expert's two branches.
        filters: Channels of the convolutions.
        blocks: Perceiver blocks.
        local_layers: Layers per block over the latents of one frame.
        temporal_layers: Layers per block over the frames of one latent.
        experts: Experts per layer; 0 for one plain feed-forward block.
        position_rows: Length of the table of positions; 0 where there are experts.
    """

    decoder_channels: int = 13
    latents: int = 26
    width: int = 128
    ff_width: int = 512
    filters: int = 128
    blocks: int = 3
    local_layers: int = 2
    temporal_layers: int = 2
    experts: int = 8
    position_rows: int = 0

    @property
    def channels(self) -> int:
        return self.decoder_channels

    @property
    def source_width(self) -> int:
        """Width of the tokens that the latents read: frequencies after pooling."""
        return self.input_bins // POOLED

    @property
    def head_width(self) -> int:
        """Width of one latent attention head."""
        return self.width // LATENT_HEADS

    def layers(self, block: int) -> list[tuple[str, str]]:
        """Kind and name of a block's layers, in order."""
        return [
            (kind, f"encoder.blocks_{block}.{kind}_{index}")
            for kind, count in (("local", self.local_layers), ("temporal", self.temporal_layers))
            for index in range(count)
        ]

    def encoder_inventory(self) -> Inventory:
        names = self._conv_inventory()
        names["encoder.latents"] = (self.latents, self.width)
        if self.experts:
            names |= {f"encoder.rotary.{kind}": (ROTARY_PAIRS,) for kind in ROTARY_KINDS}
        else:
            names["encoder.latent_positions"] = (self.position_rows, self.latents, self.width)
        for block in range(self.blocks):
            spectral = f"encoder.blocks_{block}.spectral"
            names |= _norm(f"{spectral}.query_norm", self.width)
            names |= _norm(f"{spectral}.source_norm", self.source_width)
            names |= self._attention(spectral, self.source_width)
            for _, layer in self.layers(block):
                names |= _norm(f"{layer}.attention_norm", self.width)
                names |= self._attention(f"{layer}.attention", self.width)
                names |= _norm(f"{layer}.mlp_norm", self.width)
                names |= self._mlp(f"{layer}.mlp")
        pooled = self.latents // self.channels * self.width
        names["encoder.projection.kernel"] = (pooled, self.d_model)
        return names

    def _conv_inventory(self) -> Inventory:
        names = Inventory()
        for block in range(CONV_BLOCKS):
            prefix, inputs = f"encoder.conv_{block}", self.filters if block else 1
            for part, channels in ((1, inputs), (2, self.filters)):
                names[f"{prefix}.conv_{part}.filters"] = (self.filters, channels, 3, 3)
                names |= _norm(f"{prefix}.norm_{part}", self.filters)
                for statistic in ("mean", "variance"):
                    names[f"{prefix}.norm_{part}.{statistic}"] = (self.filters,)
            if block == 0:
                names[f"{prefix}.shortcut.filters"] = (self.filters, 1, 1, 1)
                names[f"{prefix}.shortcut.bias"] = (self.filters,)
        return names

    def _attention(self, prefix: str, source: int) -> Inventory:
        names = Inventory()
        for part in (*QKV, "out"):
            inputs = source if part in ("key", "value") else self.width
            names |= _linear(f"{prefix}.{part}", inputs, self.width)
        return names

    def _mlp(self, prefix: str) -> Inventory:
        width, wide = self.width, self.ff_width
        if not self.experts:
            return _linear(f"{prefix}.wi", width, wide) | _linear(f"{prefix}.wo", wide, width)
        names: Inventory = {f"{prefix}.router.kernel": (width, self.experts)}
        for expert in range(self.experts):
            one = f"{prefix}.experts_{expert}"
            names |= {f"{one}.wi_0.kernel": (width, wide), f"{one}.wi_1.kernel": (width, wide)}
            names[f"{one}.wo.kernel"] = (wide, width)
        return names


def _norm(prefix: str, width: int) -> Inventory:
    return {f"{prefix}.{part}": (width,) for part in ("scale", "bias")}


def _linear(prefix: str, inputs: int, outputs: int) -> Inventory:
    return {f"{prefix}.kernel": (inputs, outputs), f"{prefix}.bias": (outputs,)}


def infer_yourmt3(tensors: Mapping[str, Shaped], *, head_dim: int = 64) -> YourMT3Shape:
    """Deduce the sizes of a YourMT3 network from its tensors, as `weights.infer_shape` does.

    Args:
        tensors: Arrays, or stored tensors, by canonical name.
        head_dim: Width of one head of the decoder.

    Raises:
        CheckpointError: A tensor the deduction needs is missing or misshapen.
    """

    def size(name: str, rank: int = 2) -> tuple[int, ...]:
        found = tuple(tensors[name].shape) if name in tensors else ()
        if len(found) != rank or 0 in found:
            what = f"has shape {found}" if name in tensors else "is missing"
            raise CheckpointError(f"cannot tell the size of the network: {name} {what}")
        return found

    def count(pattern: str) -> int:
        found = filter(None, (re.match(pattern, name) for name in tensors))
        return max((int(match[1]) + 1 for match in found), default=0)

    vocab_size, d_model = size("decoder.token_embedder.embedding")
    inner = size("decoder.layers_0.self_attention.query.kernel")[1]
    sizes = {
        "d_model": d_model,
        "heads": inner // head_dim,
        "head_dim": head_dim,
        "d_ff": size("decoder.layers_0.mlp.wi_0.kernel")[1],
        "decoder_layers": count(r"decoder\.layers_(\d{1,3})\."),
        "vocab_size": vocab_size,
    }
    layers = count(r"encoder\.layers_(\d{1,3})\.")
    if layers:
        return YourMT3Shape(**sizes, encoder_layers=layers, input_bins=d_model)
    latents, width = size("encoder.latents")
    pooled = size("encoder.projection.kernel")[0]
    first = "encoder.blocks_0.local_0.mlp"
    experts = count(rf"{re.escape(first)}\.experts_(\d{{1,3}})\.")
    wide = f"{first}.experts_0.wi_0.kernel" if experts else f"{first}.wi.kernel"
    table = 0 if experts else size("encoder.latent_positions", 3)[0]
    source = size("encoder.blocks_0.spectral.key.kernel")[0]
    return PerceiverShape(
        **sizes,
        encoder_layers=0,
        input_bins=source * POOLED,
        decoder_channels=max(latents * width // pooled, 1),
        latents=latents,
        width=width,
        ff_width=size(wide)[1],
        filters=size("encoder.conv_0.conv_1.filters", 4)[0],
        blocks=count(r"encoder\.blocks_(\d{1,3})\."),
        local_layers=count(r"encoder\.blocks_0\.local_(\d{1,3})\."),
        temporal_layers=count(r"encoder\.blocks_0\.temporal_(\d{1,3})\."),
        experts=experts,
        position_rows=table,
    )
