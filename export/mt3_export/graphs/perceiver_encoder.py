"""Builds YourMT3's Perceiver encoder as an ONNX graph: features in, a row per channel out.

    features [N, T, bins]  ->  [N * channels, T, d_model], row n * channels + c for channel c

What the layers are is told in `mt3_export.yourmt3`, how a profile spells them in
`mt3_export.graphs.latent_blocks`.  Letters in shapes: K latents of C columns, F tokens of a frame
(the filters of the convolutions) of S columns (their pooled frequencies).

The convolutions are three quarters of the arithmetic (83 of 118 GFLOP per segment).  ONNX Runtime
computes them directly on blocks of 16 channels, at nine tenths of the speed of its large matrix
products, so they stay plain Conv nodes; batch norms are folded into them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mt3_export.graphs.latent_blocks import LATENT_BLOCKS, Expert, Matrix
from mt3_export.weights import QKV
from mt3_export.yourmt3 import CONV_BLOCKS, LATENT_HEADS, POOLING, TOP_EXPERTS, PerceiverShape
from mt3_runtime.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mt3_export.graphs.profiles import Blocks
    from mt3_export.weights import FloatArray, Weights

#: Epsilon of the batch norms (PyTorch's default).
BATCH_EPSILON = 1e-5


def perceiver_stack(blocks: Blocks, weights: Weights, features: str, frames: int) -> str:
    """Adds the whole encoder up to what the decoder attends to, [N * channels, T, d_model]."""
    return _Encoder(blocks, weights, frames).build(features)


class _Encoder:
    """One graph in the making."""

    def __init__(self, blocks: Blocks, weights: Weights, frames: int) -> None:
        if not isinstance(weights.shape, PerceiverShape):
            raise TypeError(f"not a Perceiver: {weights.shape}")
        self.shape, self.tensors, self.frames = weights.shape, weights.tensors, frames
        self.graph = blocks.graph
        self.ops = LATENT_BLOCKS[blocks.profile](
            self.graph, heads=LATENT_HEADS, width=self.shape.width
        )

    def build(self, features: str) -> str:
        shape, frames = self.shape, self.frames
        source = self._convolve(features)
        hidden = self._latents(features)
        for block in range(shape.blocks):
            hidden = self._read(hidden, source, block)
            kind = "local"
            for following, name in shape.layers(block):
                if following != kind:
                    hidden = self._swap(hidden, frames, shape.latents)
                    kind = following
                hidden = self._layer(hidden, kind, name)
            hidden = self._swap(hidden, shape.latents, frames)
        return self._project(hidden)

    # --- convolutions ----------------------------------------------------------------------------

    def _convolve(self, features: str) -> str:
        """[N, T, bins] -> [N * T, F, S]."""
        graph, shape = self.graph, self.shape
        x = graph.op("Unsqueeze", features, graph.constant([1], np.int64))
        for block in range(CONV_BLOCKS):
            prefix = f"encoder.conv_{block}"
            hidden = graph.op("Relu", self._conv(x, prefix, 1))
            shortcut = x
            if block == 0:
                names = [f"{prefix}.shortcut.{part}" for part in ("filters", "bias")]
                shortcut = graph.op("Conv", x, *map(self._parameter, names))
            total = graph.op("Add", self._conv(hidden, prefix, 2), shortcut)
            pool = [1, POOLING]
            x = graph.op("AveragePool", graph.op("Relu", total), kernel_shape=pool, strides=pool)
        by_frame = graph.op("Transpose", x, perm=[0, 2, 1, 3])
        tokens = graph.constant([-1, shape.filters, shape.source_width], np.int64)
        return graph.op("Reshape", by_frame, tokens)

    def _conv(self, x: str, prefix: str, part: int) -> str:
        """A convolution and its batch norm, stored as one under both names."""
        filters, bias = fold_batch_norm(self.tensors, prefix, part)
        name = f"{prefix}.conv_{part}+norm_{part}"
        return self.graph.op(
            "Conv",
            x,
            self.graph.parameter(f"{name}.filters", filters),
            self.graph.parameter(f"{name}.bias", bias),
            pads=[1, 1, 1, 1],
        )

    # --- Perceiver -------------------------------------------------------------------------------

    def _latents(self, features: str) -> str:
        """The learned latents, with their positions where there are any: [N * T, K, C]."""
        graph, shape = self.graph, self.shape
        latents = self._parameter("encoder.latents")
        if not shape.experts:
            name = "encoder.latent_positions"
            if shape.position_rows < self.frames:
                raise CheckpointError(
                    f"the checkpoint stores the positions of {shape.position_rows} frames, but "
                    f"segments have {self.frames}"
                )
            rows = graph.parameter(name, self.tensors[name][: self.frames])
            latents = graph.op("Add", latents, rows)
        rows = graph.op("Shape", features, end=1)
        size = graph.constant([self.frames, shape.latents, shape.width], np.int64)
        spread = graph.op("Expand", latents, graph.op("Concat", rows, size, axis=0))
        return self._groups(spread, shape.latents)

    def _read(self, hidden: str, source: str, block: int) -> str:
        """Latents read the tokens of their frame: [N * T, K, C]."""
        prefix = f"encoder.blocks_{block}.spectral"
        query = self._linear(self._norm(hidden, f"{prefix}.query_norm"), prefix, "query")
        normed = self._norm(source, f"{prefix}.source_norm")
        key, value = self._fused(normed, prefix, ("key", "value"))
        read = self._attend(query, key, value, prefix, "spectral")
        return self.graph.op("Add", read, hidden) if self.shape.experts else read

    def _layer(self, hidden: str, kind: str, name: str) -> str:
        """One layer over the second axis of [B, L, C]."""
        normed = self._norm(hidden, f"{name}.attention_norm")
        query, key, value = self._fused(normed, f"{name}.attention", QKV)
        update = self._attend(query, key, value, f"{name}.attention", kind)
        scale, bias = self._norm_parameters(f"{name}.mlp_norm")
        hidden, normed = self.ops.add_norm(hidden, update, scale, bias)
        if self.shape.experts:
            return self._experts(hidden, normed, kind, f"{name}.mlp")
        wide = self.ops.gelu(self._linear(normed, f"{name}.mlp", "wi"))
        return self.graph.op("Add", self._linear(wide, f"{name}.mlp", "wo"), hidden)

    def _attend(self, query: str, key: str, value: str, prefix: str, kind: str) -> str:
        if self.shape.experts:
            query = self.ops.rotate(query, self._angles(kind))
        return self._linear(self.ops.attention(query, key, value), prefix, "out")

    def _angles(self, kind: str) -> Matrix:
        """Angle of every position and pair, [L, pairs]: the position times a stored frequency.

        Latents stand evenly on [-1, 1], frames on 0, 1, 2, ...
        """
        count = self.frames if kind == "temporal" else self.shape.latents
        positions = np.arange(count) if kind == "temporal" else np.linspace(-1, 1, count)
        frequencies = self.tensors[f"encoder.rotary.{kind}"]
        return np.outer(positions.astype(np.float32), frequencies).astype(np.float32)

    def _experts(self, hidden: str, normed: str, kind: str, prefix: str) -> str:
        graph, shape, tensors = self.graph, self.shape, self.tensors
        flat = graph.constant([-1, shape.width], np.int64)
        hidden, normed = (graph.op("Reshape", x, flat) for x in (hidden, normed))
        name = f"{prefix}.router.kernel"
        logits = graph.op("MatMul", normed, graph.parameter(name, tensors[name], exact=True))
        shares = self.ops.route(logits, experts=shape.experts, top=TOP_EXPERTS)
        experts = [
            Expert(*(tensors[f"{prefix}.experts_{e}.{w}.kernel"] for w in ("wi_0", "wi_1", "wo")))
            for e in range(shape.experts)
        ]
        mixed = self.ops.experts(hidden, normed, shares, experts, name=prefix)
        return self._groups(mixed, self.frames if kind == "temporal" else shape.latents)

    def _project(self, hidden: str) -> str:
        """[N * T, K, C] -> [N * channels, T, d_model]."""
        graph, shape = self.graph, self.shape
        name = "encoder.projection.kernel"
        pooled = self.tensors[name].shape[0]
        if shape.channels > 1:
            apart = [-1, self.frames, shape.channels, pooled]
            hidden = graph.op("Reshape", hidden, graph.constant(apart, np.int64))
            hidden = graph.op("Transpose", hidden, perm=[0, 2, 1, 3])
        rows = graph.op("Reshape", hidden, graph.constant([-1, self.frames, pooled], np.int64))
        return graph.op("MatMul", rows, self._parameter(name))

    # --- parts -----------------------------------------------------------------------------------

    def _swap(self, hidden: str, rows: int, columns: int) -> str:
        """[N * rows, columns, C] -> [N * columns, rows, C]."""
        graph, width = self.graph, self.shape.width
        apart = graph.constant([-1, rows, columns, width], np.int64)
        hidden = graph.op("Reshape", hidden, apart)
        return self._groups(graph.op("Transpose", hidden, perm=[0, 2, 1, 3]), rows)

    def _groups(self, x: str, tokens: int) -> str:
        """[..., C] -> [B, tokens, C]."""
        shape = self.graph.constant([-1, tokens, self.shape.width], np.int64)
        return self.graph.op("Reshape", x, shape)

    def _norm_parameters(self, prefix: str) -> tuple[str, str]:
        return self._parameter(f"{prefix}.scale"), self._parameter(f"{prefix}.bias")

    def _norm(self, x: str, prefix: str) -> str:
        return self.ops.layer_norm(x, *self._norm_parameters(prefix))

    def _linear(self, x: str, prefix: str, part: str) -> str:
        product = self.graph.op("MatMul", x, self._parameter(f"{prefix}.{part}.kernel"))
        return self.graph.op("Add", product, self._parameter(f"{prefix}.{part}.bias"))

    def _fused(self, x: str, prefix: str, parts: tuple[str, ...]) -> list[str]:
        """Several linear layers of one input as one product, stored under all their names."""
        graph, tensors = self.graph, self.tensors
        name = f"{prefix}.{'+'.join(parts)}"
        kernel = np.concatenate([tensors[f"{prefix}.{part}.kernel"] for part in parts], axis=1)
        bias = np.concatenate([tensors[f"{prefix}.{part}.bias"] for part in parts])
        product = graph.op("MatMul", x, graph.parameter(f"{name}.kernel", kernel))
        shifted = graph.op("Add", product, graph.parameter(f"{name}.bias", bias))
        sizes = graph.constant([self.shape.width] * len(parts), np.int64)
        outs = [graph.fresh(part) for part in parts]
        return graph.ops("Split", shifted, sizes, outs=outs, axis=-1)

    def _parameter(self, name: str) -> str:
        return self.graph.parameter(name, self.tensors[name])


def fold_batch_norm(
    tensors: Mapping[str, FloatArray], prefix: str, part: int
) -> tuple[FloatArray, FloatArray]:
    """Filters and bias that compute ``conv_part`` followed by ``norm_part`` in inference form.

    (y - mean) / sqrt(variance + BATCH_EPSILON) * scale + bias, worked out in float64 and rounded
    once.
    """
    names = ("scale", "bias", "mean", "variance")
    scale, bias, mean, variance = (
        tensors[f"{prefix}.norm_{part}.{name}"].astype(np.float64) for name in names
    )
    factor = scale / np.sqrt(variance + BATCH_EPSILON)
    filters = tensors[f"{prefix}.conv_{part}.filters"] * factor[:, None, None, None]
    return filters.astype(np.float32), (bias - mean * factor).astype(np.float32)
