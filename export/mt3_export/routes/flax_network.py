"""The T5 network of MT3 in Flax, for the export route through JAX and TensorFlow.

Written from the formulas, a second time and independently of `encoder`, `decoder` and `profiles`:
what the two routes agree on is no mistake of one of them.  The module tree has the names of the T5X
tree, so canonical weights are its parameters as they are.

This module imports flax and jax (the extra ``jax2tf``); import it only where that route starts.
Letters in shapes: N rows, T encoder frames, B bins, V tokens, H heads, D head width, C columns of
the cache, M model width.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mt3_export.weights import T5Shape, Weights

#: RMS norm epsilon of T5.
EPSILON = 1e-6

#: Per layer: self-attention (or cross-attention) keys and values, both [N, H, columns, D].
Cache = tuple[tuple[Array, Array], ...]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON) * scale


class Attention(nn.Module):
    """Projections of multi-head attention; T5 scales no scores."""

    shape: T5Shape

    def setup(self) -> None:
        self.query = nn.Dense(self.shape.inner, use_bias=False)
        self.key = nn.Dense(self.shape.inner, use_bias=False)
        self.value = nn.Dense(self.shape.inner, use_bias=False)
        self.out = nn.Dense(self.shape.d_model, use_bias=False)

    def heads(self, x: Array) -> Array:
        """[N, L, H*D] -> [N, H, L, D]."""
        split = (x.shape[0], x.shape[1], self.shape.heads, self.shape.head_dim)
        return jnp.transpose(jnp.reshape(x, split), (0, 2, 1, 3))

    def keys_and_values(self, x: Array) -> tuple[Array, Array]:
        """What ``x`` [N, L, M] can be attended by: both [N, H, L, D]."""
        return self.heads(self.key(x)), self.heads(self.value(x))

    def attend(self, x: Array, keys: Array, values: Array, bias: Array | float = 0.0) -> Array:
        """``x`` [N, L, M] looks at keys and values; ``bias`` is added to the scores."""
        scores = self.heads(self.query(x)) @ jnp.swapaxes(keys, 2, 3) + bias
        mixed = jnp.transpose(jax.nn.softmax(scores, axis=-1) @ values, (0, 2, 1, 3))
        return self.out(jnp.reshape(mixed, (*x.shape[:2], self.shape.inner)))


class GatedMLP(nn.Module):
    """(gelu(x W0) * (x W1)) Wo, with the tanh form of GELU."""

    shape: T5Shape

    def setup(self) -> None:
        self.wi_0 = nn.Dense(self.shape.d_ff, use_bias=False)
        self.wi_1 = nn.Dense(self.shape.d_ff, use_bias=False)
        self.wo = nn.Dense(self.shape.d_model, use_bias=False)

    def __call__(self, x: Array) -> Array:
        return self.wo(nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))


class EncoderLayer(nn.Module):
    """Self-attention over all frames, then the feed-forward part."""

    shape: T5Shape

    def setup(self) -> None:
        self.pre_attention_layer_norm = RMSNorm()
        self.attention = Attention(self.shape)
        self.pre_mlp_layer_norm = RMSNorm()
        self.mlp = GatedMLP(self.shape)

    def __call__(self, x: Array) -> Array:
        normed = self.pre_attention_layer_norm(x)
        x = x + self.attention.attend(normed, *self.attention.keys_and_values(normed))
        return x + self.mlp(self.pre_mlp_layer_norm(x))


class DecoderLayer(nn.Module):
    """One new token per row: self-attention to the cache, cross-attention, feed-forward part."""

    shape: T5Shape

    def setup(self) -> None:
        self.pre_self_attention_layer_norm = RMSNorm()
        self.self_attention = Attention(self.shape)
        self.pre_cross_attention_layer_norm = RMSNorm()
        self.encoder_decoder_attention = Attention(self.shape)
        self.pre_mlp_layer_norm = RMSNorm()
        self.mlp = GatedMLP(self.shape)

    def __call__(
        self, x: Array, positions: Array, past: tuple[Array, Array], cross: tuple[Array, Array]
    ) -> tuple[Array, tuple[Array, Array]]:
        columns = jnp.arange(past[0].shape[2])[None, None, :, None]
        here = columns == positions[:, None, None, None]
        normed = self.pre_self_attention_layer_norm(x)
        new_key, new_value = self.self_attention.keys_and_values(normed)
        keys, values = jnp.where(here, new_key, past[0]), jnp.where(here, new_value, past[1])
        later = jnp.swapaxes(columns, 2, 3) > positions[:, None, None, None]
        bias = jnp.where(later, jnp.float32(-1e10), jnp.float32(0))
        x = x + self.self_attention.attend(normed, keys, values, bias)
        normed = self.pre_cross_attention_layer_norm(x)
        x = x + self.encoder_decoder_attention.attend(normed, *cross)
        return x + self.mlp(self.pre_mlp_layer_norm(x)), (keys, values)


class Encoder(nn.Module):
    """Features [N, T, B] and position rows [T, M] -> [N, T, M]."""

    shape: T5Shape

    def setup(self) -> None:
        self.continuous_inputs_projection = nn.Dense(self.shape.d_model, use_bias=False)
        self.layers = [EncoderLayer(self.shape) for _ in range(self.shape.encoder_layers)]
        self.encoder_norm = RMSNorm()

    def __call__(self, features: Array, table: Array) -> Array:
        x = self.continuous_inputs_projection(features) + table
        for layer in self.layers:
            x = layer(x)
        return self.encoder_norm(x)


class Embedder(nn.Module):
    """Token ids [N, L] -> [N, L, M]."""

    shape: T5Shape

    def setup(self) -> None:
        size = (self.shape.vocab_size, self.shape.d_model)
        self.embedding = self.param("embedding", nn.initializers.normal(), size)

    def __call__(self, token_ids: Array) -> Array:
        return rows(self.embedding, token_ids)


def rows(table: Array, indices: Array) -> Array:
    """Rows of a table; an index outside is an error of the graph.

    JAX would fill in NaN, by a select that tf2onnx writes as a sum of two products: NaN everywhere.
    """
    return jnp.asarray(table).at[indices].get(mode="promise_in_bounds")


class Decoder(nn.Module):
    """The decoder's layers, its embedding and its output head."""

    shape: T5Shape

    def setup(self) -> None:
        self.token_embedder = Embedder(self.shape)
        self.layers = [DecoderLayer(self.shape) for _ in range(self.shape.decoder_layers)]
        self.decoder_norm = RMSNorm()
        self.logits_dense = nn.Dense(self.shape.vocab_size, use_bias=False)

    def cross(self, encoded: Array) -> Cache:
        """Keys and values of the encoder's output for every layer."""
        return tuple(
            layer.encoder_decoder_attention.keys_and_values(encoded) for layer in self.layers
        )

    def __call__(
        self, token_ids: Array, positions: Array, table: Array, past: Cache, cross: Cache
    ) -> tuple[Array, Cache]:
        x = self.token_embedder(token_ids) + rows(table, positions)[:, None, :]
        present = []
        for layer, old, seen in zip(self.layers, past, cross, strict=True):
            x, new = layer(x, positions, old, seen)
            present.append(new)
        return self.logits_dense(self.decoder_norm(x))[:, 0], tuple(present)


class Transformer(nn.Module):
    """Both stacks, cut into the two functions that become graphs."""

    shape: T5Shape

    def setup(self) -> None:
        self.encoder = Encoder(self.shape)
        self.decoder = Decoder(self.shape)

    def encode(self, features: Array, table: Array) -> Cache:
        """Features float32 [N, T, B] -> cross-attention keys and values."""
        return self.decoder.cross(self.encoder(features, table))

    def step(
        self, token_ids: Array, positions: Array, table: Array, past: Cache, cross: Cache
    ) -> tuple[Array, Cache]:
        """One token for every row.

        Args:
            token_ids: int32 [N, 1].
            positions: int32 [N], where it goes; columns behind it are ignored.
            table: Position rows, float32 [longest, M].
            past: The cache, [N, H, C, D] each.
            cross: From `encode`.

        Returns:
            Logits [N, V], and the cache with the new column written.
        """
        return self.decoder(token_ids, positions, table, past, cross)


def parameters(weights: Weights) -> dict[str, Any]:
    """Canonical weights as the variables of `Transformer`."""
    tree: dict[str, Any] = {}
    for name, tensor in weights.tensors.items():
        *modules, last = name.split(".")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[last] = tensor
    return {"params": tree}
