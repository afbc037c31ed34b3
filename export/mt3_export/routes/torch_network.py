"""The T5 network of MT3 in plain PyTorch, for the export route through `torch.onnx`.

Written from the formulas, a third time and independently of the graph builders and of
`flax_network`: what the routes agree on is no mistake of one of them.  Parameters are registered
under the canonical names with underscores for dots, as PyTorch allows no dots in names.

This module imports torch (the extra ``torch``); import it only where that route starts.  Letters in
shapes: N rows, T encoder frames, B bins, V tokens, H heads, D head width, C columns of the cache, M
model width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mt3_export.weights import Weights

#: RMS norm epsilon of T5.
EPSILON = 1e-6


class _Stack(nn.Module):
    """Weights by name, and the parts both stacks are made of."""

    def __init__(self, weights: Weights, prefixes: tuple[str, ...], positions: int) -> None:
        super().__init__()
        self.shape = weights.shape
        for name, tensor in weights.tensors.items():
            if name.startswith(prefixes):
                values = torch.from_numpy(np.array(tensor))
                parameter = nn.Parameter(values, requires_grad=False)
                self.register_parameter(name.replace(".", "_"), parameter)
        table = torch.from_numpy(weights.positions.table(positions, weights.shape.d_model))
        self.register_buffer("table", table)

    def weight(self, name: str) -> Tensor:
        return self.get_parameter(name.replace(".", "_"))

    def dense(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weight(f"{name}.kernel")

    def norm(self, x: Tensor, name: str) -> Tensor:
        scaled = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPSILON)
        return scaled * self.weight(f"{name}.scale")

    def heads(self, x: Tensor) -> Tensor:
        """[N, L, H*D] -> [N, H, L, D]."""
        return x.unflatten(-1, (self.shape.heads, self.shape.head_dim)).transpose(1, 2)

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, out: str, hidden: Tensor | None = None
    ) -> Tensor:
        """Unscaled attention of [N, L, H*D] to keys and values; what is ``hidden`` is not seen."""
        scores = self.heads(query) @ keys.transpose(2, 3)
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        mixed = torch.softmax(scores, dim=-1) @ values
        return self.dense(mixed.transpose(1, 2).flatten(2), out)

    def feed_forward(self, x: Tensor, name: str) -> Tensor:
        gate = functional.gelu(self.dense(x, f"{name}.wi_0"), approximate="tanh")
        return self.dense(gate * self.dense(x, f"{name}.wi_1"), f"{name}.wo")


class Encoder(_Stack):
    """Features [N, T, B] -> keys and values of all decoder layers' cross-attention."""

    def __init__(self, weights: Weights, frames: int) -> None:
        cross = tuple(
            f"decoder.layers_{layer}.encoder_decoder_attention.{part}."
            for layer in range(weights.shape.decoder_layers)
            for part in ("key", "value")
        )
        super().__init__(weights, ("encoder.", *cross), frames)

    def forward(self, features: Tensor) -> list[Tensor]:
        x = self.dense(features, "encoder.continuous_inputs_projection") + self.table
        for index in range(self.shape.encoder_layers):
            layer = f"encoder.layers_{index}"
            normed = self.norm(x, f"{layer}.pre_attention_layer_norm")
            query, keys, values = (
                self.dense(normed, f"{layer}.attention.{part}")
                for part in ("query", "key", "value")
            )
            x = x + self.attend(
                query, self.heads(keys), self.heads(values), out=f"{layer}.attention.out"
            )
            normed = self.norm(x, f"{layer}.pre_mlp_layer_norm")
            x = x + self.feed_forward(normed, f"{layer}.mlp")
        x = self.norm(x, "encoder.encoder_norm")
        return [
            self.heads(self.dense(x, f"decoder.layers_{index}.encoder_decoder_attention.{part}"))
            for index in range(self.shape.decoder_layers)
            for part in ("key", "value")
        ]


class DecoderStep(_Stack):
    """One new token for every row."""

    def __init__(self, weights: Weights, max_tokens: int) -> None:
        super().__init__(weights, ("decoder.",), max_tokens)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        allowed: Tensor,
        past: list[Tensor],
        cross: list[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Reads a token.

        Args:
            token_ids: int64 [N, 1].
            positions: int32 [N].
            allowed: bool [N, V].
            past: Keys and values of each layer in turn, [N, H, C, D]; columns behind a row's
                position are ignored.
            cross: From `Encoder`, in the same order.

        Returns:
            next_ids [N, 1], top_ids [N, 2], top_log_probs [N, 2], and the cache with the new
            column written.
        """
        x = functional.embedding(token_ids, self.weight("decoder.token_embedder.embedding"))
        x = x + functional.embedding(positions, self.table)[:, None]
        columns = torch.arange(past[0].shape[2])
        rows = positions[:, None, None, None]
        here, later = columns[:, None] == rows, columns > rows
        present = []
        for index in range(self.shape.decoder_layers):
            layer = f"decoder.layers_{index}"
            normed = self.norm(x, f"{layer}.pre_self_attention_layer_norm")
            query, *new = (
                self.dense(normed, f"{layer}.self_attention.{part}")
                for part in ("query", "key", "value")
            )
            old = past[2 * index : 2 * index + 2]
            keys, values = (
                torch.where(here, self.heads(a), b) for a, b in zip(new, old, strict=True)
            )
            present += [keys, values]
            out = f"{layer}.self_attention.out"
            x = x + self.attend(query, keys, values, out=out, hidden=later)
            normed = self.norm(x, f"{layer}.pre_cross_attention_layer_norm")
            cross_attention = f"{layer}.encoder_decoder_attention"
            query = self.dense(normed, f"{cross_attention}.query")
            seen = cross[2 * index : 2 * index + 2]
            x = x + self.attend(query, *seen, out=f"{cross_attention}.out")
            normed = self.norm(x, f"{layer}.pre_mlp_layer_norm")
            x = x + self.feed_forward(normed, f"{layer}.mlp")
        logits = self.dense(self.norm(x, "decoder.decoder_norm"), "decoder.logits_dense")[:, 0]
        masked = torch.where(allowed, logits, torch.finfo(torch.float32).min)
        top_ids = torch.topk(masked, 2).indices
        top_log_probs = torch.log_softmax(logits, dim=-1).gather(1, top_ids)
        return top_ids[:, :1], top_ids, top_log_probs, present
