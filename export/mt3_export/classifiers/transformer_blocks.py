"""Building blocks of audio transformers: linear layers, norms, attention, GELU.

Two ways to write them: profile ``cpu`` uses ONNX Runtime's fused attention, which needs the least
memory (no table of scores per layer); profiles ``portable`` and ``compat`` operators of opset 17
alone, for CUDA, TensorRT, browsers and old runtimes: two names, as transcribers have two forms,
for one graph.  All compute the same within rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Self

import numpy as np

from mt3_export.graphs.graph_builder import MICROSOFT, Graph, Storage
from mt3_export.weights import FloatArray
from mt3_runtime.errors import OptionError

PROFILES = ("cpu", "portable", "compat")
OPSET = 17


class TransformerBlocks:
    """Writes blocks into one graph.

    Args:
        name: Of the graph.
        weights: By canonical name; matrices are [out, in].
        profile: One of `PROFILES`.
        storage: Precision of the stored matrices.
        heads: Of every attention.
        epsilon: Of every LayerNorm.
    """

    def __init__(
        self,
        name: str,
        weights: Mapping[str, FloatArray],
        *,
        profile: str,
        storage: Storage,
        heads: int,
        epsilon: float,
    ) -> None:
        if profile not in PROFILES:
            raise OptionError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}.")
        self.graph = Graph(name, opset=OPSET, storage=storage)
        self.weights = weights
        self.fused = profile == "cpu"
        self.heads = heads
        self._epsilon = epsilon

    def within(self, graph: Graph) -> Self:
        """The same blocks, written into another graph, such as the body of a loop."""
        other = copy.copy(self)
        other.graph = graph
        return other

    def linear(self, x: str, *names: str) -> str:
        """X W' + b of one or more layers side by side: [..., in] -> [..., sum of out]."""
        graph = self.graph
        kernels = [self.weights[f"{name}.weight"].T for name in names]
        both = "+".join((names[0], *(name.rpartition(".")[2] for name in names[1:])))
        kernel = graph.parameter(f"{both}.kernel", np.concatenate(kernels, axis=1))
        biases = [self.weights[f"{name}.bias"] for name in names]
        bias = graph.parameter(f"{both}.bias", np.concatenate(biases))
        return graph.op("Add", graph.op("MatMul", x, kernel), bias)

    def norm(self, x: str, name: str) -> str:
        """LayerNorm over the last axis."""
        scale, bias = (
            self.graph.parameter(f"{name}.{part}", self.weights[f"{name}.{part}"])
            for part in ("weight", "bias")
        )
        return self.graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=self._epsilon)

    def gelu(self, x: str) -> str:
        """x/2 (1 + erf(x / sqrt 2))."""
        graph = self.graph
        if self.fused:
            return graph.op("Gelu", x, domain=MICROSOFT)
        root = graph.constant(math.sqrt(0.5), np.float32)
        error = graph.op("Erf", graph.op("Mul", x, root))
        both = graph.op("Mul", x, graph.op("Add", error, graph.constant(1.0, np.float32)))
        return graph.op("Mul", both, graph.constant(0.5, np.float32))

    def attention(self, query: str, key: str, value: str, width: int) -> str:
        """Attention without mask: [rows, L, width], [rows, S, width] twice -> [rows, L, width]."""
        graph = self.graph
        if self.fused:
            return graph.op(
                "MultiHeadAttention", query, key, value, domain=MICROSOFT, num_heads=self.heads
            )
        size = width // self.heads
        scale = graph.constant(1.0 / math.sqrt(size), np.float32)
        q, v = (self.split_heads(x, size, (0, 2, 1, 3)) for x in (query, value))
        k = self.split_heads(key, size, (0, 2, 3, 1))
        scores = graph.op("MatMul", graph.op("Mul", q, scale), k)
        mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), v)
        back = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return graph.op("Reshape", back, graph.constant([0, 0, width], np.int64))

    def split_heads(self, x: str, size: int, order: tuple[int, ...]) -> str:
        """Cuts [rows, L, heads * size] into heads and turns its four axes into an order."""
        shape = self.graph.constant([0, 0, self.heads, size], np.int64)
        return self.graph.op("Transpose", self.graph.op("Reshape", x, shape), perm=list(order))

    def self_attention(self, x: str, prefix: str, width: int, *, rows: int = 0) -> str:
        """Projections, attention and output of a layer; of its first ``rows`` only, if given."""
        names = [f"{prefix}.{part}" for part in ("query", "key", "value")]
        if rows:
            query = self.linear(self.first(x, rows), names[0])
            key, value = self.split(self.linear(x, *names[1:]), 2, width)
        else:
            query, key, value = self.split(self.linear(x, *names), 3, width)
        return self.linear(self.attention(query, key, value, width), f"{prefix}.out")

    def feed_forward(self, x: str, prefix: str) -> str:
        """Two linear layers with GELU between."""
        return self.linear(self.gelu(self.linear(x, f"{prefix}.wide")), f"{prefix}.narrow")

    def first(self, x: str, rows: int) -> str:
        """The first rows of [n, L, width]."""
        begin, end, axis = (self.graph.constant([n], np.int64) for n in (0, rows, 1))
        return self.graph.op("Slice", x, begin, end, axis)

    def split(self, x: str, parts: int, width: int) -> list[str]:
        """Cuts the last axis into equal parts."""
        graph = self.graph
        sizes = graph.constant([width] * parts, np.int64)
        outs = [graph.fresh("part") for _ in range(parts)]
        return graph.ops("Split", x, sizes, outs=outs, axis=-1)

    def mean(self, x: str) -> str:
        """The mean over the middle axis: [n, L, width] -> [n, width]."""
        return self.graph.op("ReduceMean", x, axes=[1], keepdims=0)
