"""Graph profiles: attention, norms and GELU in three sets of ONNX operators.

A profile is a set of building blocks with equal arithmetic and different operators:

``cpu``       ONNX Runtime's fused operators; the cache is updated in place by GroupQueryAttention,
              whose cost follows the true length of each row.
``portable``  Standard opset 24 (TensorScatter, Attention, RMSNormalization): CUDA, and
              what TensorRT engines are made of.
``compat``    Opset 17 primitives and a concatenated cache: onnxruntime-web, old parsers.

The graphs themselves (`mt3_export.graphs.encoder`, `mt3_export.graphs.decoder`) are written once
against the `Blocks` interface.  All tensors are fp32 unless said otherwise; letters in shapes: N
rows, T encoder frames, H heads, D head width, L tokens in the cache, M model width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import pi, sqrt
from typing import Literal

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from mt3_export.graphs.graph_builder import MICROSOFT, Graph, Storage
from mt3_export.weights import T5Shape
from mt3_runtime.errors import OptionError

#: RMS norm epsilon of T5 (``layer_norm_epsilon`` of every published configuration).
EPSILON = 1e-6
#: T5 does not scale attention scores; training folded 1/sqrt(D) into the weights.
SCALE = 1.0


@dataclass(frozen=True)
class SelfAttention:
    """Names a decoder layer's self-attention needs inside a step graph.

    ``qkv`` [N, 1, 3*H*D]; ``past_*`` and ``present_*`` are the cache tensors' names.
    """

    qkv: str
    past_key: str
    past_value: str
    present_key: str
    present_value: str


class Blocks(ABC):
    """Building blocks of one profile, adding nodes to one graph."""

    #: Name of the profile, as in the bundle and on the command line.
    profile: str
    #: Standard operator set version.
    opset: int
    #: Whether cross-attention keys are stored [N, H, D, T] instead of [N, H, T, D].
    cross_key_transposed = False
    #: ``in_place``: past and present are one [N, H, capacity, D] buffer.  ``concat``: the present
    #: cache is one longer than the past one, and a row's own tokens are the last ones in it.
    cache: Literal["in_place", "concat"] = "in_place"

    def __init__(self, name: str, shape: T5Shape, *, storage: Storage = "fp32") -> None:
        self.shape = shape
        self.graph = Graph(name, opset=self.opset, storage=storage)

    def rms_norm(self, x: str, scale: str) -> str:
        """Normalises the last axis: x / sqrt(mean(x^2) + EPSILON) * scale."""
        return self.graph.op("RMSNormalization", x, scale, axis=-1, epsilon=EPSILON)

    def add_norm(self, residual: str, update: str, scale: str) -> tuple[str, str]:
        """Returns (residual + update, rms_norm of that sum)."""
        total = self.graph.op("Add", residual, update)
        return total, self.rms_norm(total, scale)

    @abstractmethod
    def gelu(self, x: str) -> str:
        """GELU in its tanh form, the one T5 1.1 and Flax's ``nn.gelu`` use."""

    def full_attention(self, qkv: str) -> str:
        """Unmasked self-attention of an encoder: [N, T, 3*H*D] -> [N, T, H*D]."""
        return self.attention(*self.split(qkv, 3, self.shape.inner))

    @abstractmethod
    def attention(self, query: str, key: str, value: str) -> str:
        """Unmasked attention: [N, Q, H*D], [N, T, H*D] and [N, T, H*D] -> [N, Q, H*D]."""

    @abstractmethod
    def prepare_cache(self, positions: str) -> None:
        """Adds what all layers' cached attention shares; ``positions`` int32 [N]."""

    @abstractmethod
    def cached_attention(self, attention: SelfAttention) -> str:
        """Causal self-attention of one new token per row: returns [N, 1, H*D]."""

    def cross_attention(self, query: str, key: str, value: str) -> str:
        """[N, 1, H*D] against the encoder's keys and values: returns [N, 1, H*D]."""
        return self._merge(self._attend(self._heads(query), key, value))

    def dense(self, x: str, name: str, weight: npt.NDArray[np.float32]) -> str:
        """Multiplies by a weight, which is stored under ``name``."""
        return self.graph.op("MatMul", x, self.graph.parameter(name, weight))

    def split(self, x: str, parts: int, width: int) -> list[str]:
        """Cuts the last axis into ``parts`` of ``width``."""
        sizes = self.graph.constant([width] * parts, np.int64)
        outs = [self.graph.fresh("Split") for _ in range(parts)]
        return self.graph.ops("Split", x, sizes, outs=outs, axis=-1)

    def first_rows(self, x: str, rows: int) -> str:
        """[N, L, ...] -> [N, rows, ...]."""
        start, end, axis = (self.graph.constant([n], np.int64) for n in (0, rows, 1))
        return self.graph.op("Slice", x, start, end, axis)

    def split_heads(self, x: str, *, transposed: bool = False, out: str = "") -> str:
        """[N, L, H*D] -> [N, H, L, D], or [N, H, D, L] where ``transposed``."""
        shape = self.graph.constant([0, 0, self.shape.heads, self.shape.head_dim], np.int64)
        perm = [0, 2, 3, 1] if transposed else [0, 2, 1, 3]
        return self.graph.op("Transpose", self.graph.op("Reshape", x, shape), perm=perm, out=out)

    def _heads(self, x: str) -> str:
        """One token's [N, 1, H*D] -> [N, H, 1, D] without moving data."""
        shape = self.graph.constant([0, self.shape.heads, 1, self.shape.head_dim], np.int64)
        return self.graph.op("Reshape", x, shape)

    def _merge(self, x: str) -> str:
        """One token's [N, H, 1, D] -> [N, 1, H*D] without moving data."""
        return self.graph.op("Reshape", x, self.graph.constant([0, 1, self.shape.inner], np.int64))

    def _attend(self, query: str, key: str, value: str) -> str:
        """softmax(query . key) . value; key [N, H, D, T] where the profile transposes it."""
        graph = self.graph
        if not self.cross_key_transposed:
            key = graph.op("Transpose", key, perm=[0, 1, 3, 2])
        weights = graph.op("Softmax", graph.op("MatMul", query, key), axis=-1)
        return graph.op("MatMul", weights, value)


class CpuBlocks(Blocks):
    """ONNX Runtime's fused CPU operators."""

    profile = "cpu"
    opset = 24
    cross_key_transposed = True

    def add_norm(self, residual: str, update: str, scale: str) -> tuple[str, str]:
        total, normed = self.graph.fresh("residual"), self.graph.fresh("normed")
        self.graph.ops(
            "SkipSimplifiedLayerNormalization",
            *(residual, update, scale),
            outs=[normed, "", "", total],
            domain=MICROSOFT,
            epsilon=EPSILON,
        )
        return total, normed

    def gelu(self, x: str) -> str:
        return self.graph.op("FastGelu", x, domain=MICROSOFT)

    def attention(self, query: str, key: str, value: str) -> str:
        return self.graph.op(
            "MultiHeadAttention",
            *(query, key, value),
            domain=MICROSOFT,
            num_heads=self.shape.heads,
            scale=SCALE,
        )

    def prepare_cache(self, positions: str) -> None:
        # GroupQueryAttention wants the length of each row without the new token, and the longest
        # length with it, to bound its loops.
        graph = self.graph
        longest = graph.op("ReduceMax", positions, keepdims=0)
        self._past_lengths = positions
        self._longest = graph.op("Add", longest, graph.constant(1, np.int32))

    def cached_attention(self, attention: SelfAttention) -> str:
        out = self.graph.fresh("attention")
        self.graph.ops(
            "GroupQueryAttention",
            *(attention.qkv, "", "", attention.past_key, attention.past_value),
            *(self._past_lengths, self._longest),
            outs=[out, attention.present_key, attention.present_value],
            domain=MICROSOFT,
            num_heads=self.shape.heads,
            kv_num_heads=self.shape.heads,
            scale=SCALE,
        )
        return out


class PortableBlocks(Blocks):
    """Standard operators only, newest forms."""

    profile = "portable"
    opset = 24

    def gelu(self, x: str) -> str:
        return self.graph.op("Gelu", x, approximate="tanh")

    def attention(self, query: str, key: str, value: str) -> str:
        heads = self.shape.heads
        return self.graph.op(
            "Attention", query, key, value, q_num_heads=heads, kv_num_heads=heads, scale=SCALE
        )

    def prepare_cache(self, positions: str) -> None:
        graph = self.graph
        self._write_at = graph.op("Cast", positions, to=TensorProto.INT64)
        self._lengths = graph.op("Add", self._write_at, graph.constant(1, np.int64))

    def cached_attention(self, attention: SelfAttention) -> str:
        graph = self.graph
        query, key, value = (self._heads(x) for x in self.split(attention.qkv, 3, self.shape.inner))
        keys = graph.op(
            "TensorScatter",
            *(attention.past_key, key, self._write_at),
            axis=2,
            out=attention.present_key,
        )
        values = graph.op(
            "TensorScatter",
            *(attention.past_value, value, self._write_at),
            axis=2,
            out=attention.present_value,
        )
        # Inputs 4 to 6 (mask, past key, past value) stay empty; the 7th hides unwritten positions.
        out = graph.op("Attention", query, keys, values, "", "", "", self._lengths, scale=SCALE)
        return self._merge(out)

    def _attend(self, query: str, key: str, value: str) -> str:
        return self.graph.op("Attention", query, key, value, scale=SCALE)


class CompatBlocks(Blocks):
    """Opset 17 primitives."""

    profile = "compat"
    opset = 17
    cache: Literal["in_place", "concat"] = "concat"

    def rms_norm(self, x: str, scale: str) -> str:
        graph = self.graph
        mean = graph.op("ReduceMean", graph.op("Mul", x, x), axes=[-1], keepdims=1)
        deviation = graph.op("Sqrt", graph.op("Add", mean, graph.constant(EPSILON, np.float32)))
        return graph.op("Mul", graph.op("Div", x, deviation), scale)

    def gelu(self, x: str) -> str:
        # 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), Hendrycks & Gimpel 2016.
        graph = self.graph
        cube = graph.op("Mul", graph.op("Mul", x, x), x)
        inner = graph.op("Add", x, graph.op("Mul", cube, graph.constant(0.044715, np.float32)))
        tanh = graph.op("Tanh", graph.op("Mul", inner, graph.constant(sqrt(2 / pi), np.float32)))
        half = graph.op("Mul", x, graph.constant(0.5, np.float32))
        return graph.op("Mul", half, graph.op("Add", tanh, graph.constant(1, np.float32)))

    def attention(self, query: str, key: str, value: str) -> str:
        graph = self.graph
        mixed = self._attend(
            self.split_heads(query), self.split_heads(key), self.split_heads(value)
        )
        merged = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return graph.op("Reshape", merged, graph.constant([0, 0, self.shape.inner], np.int64))

    def prepare_cache(self, positions: str) -> None:
        # A row that started later than its neighbours has foreign or empty columns on the left of
        # the shared cache; they get a bias.
        self._positions = self.graph.op("Cast", positions, to=TensorProto.INT64)
        self._bias = ""

    def cached_attention(self, attention: SelfAttention) -> str:
        graph = self.graph
        query, key, value = (self._heads(x) for x in self.split(attention.qkv, 3, self.shape.inner))
        keys = graph.op("Concat", attention.past_key, key, axis=2, out=attention.present_key)
        values = graph.op(
            "Concat", attention.past_value, value, axis=2, out=attention.present_value
        )
        bias = self._bias or self._make_bias(keys)
        scores = graph.op("MatMul", query, graph.op("Transpose", keys, perm=[0, 1, 3, 2]))
        weights = graph.op("Softmax", graph.op("Add", scores, bias), axis=-1)
        return self._merge(graph.op("MatMul", weights, values))

    def _make_bias(self, keys: str) -> str:
        """0 on a row's own columns, -1e9 elsewhere: [N, 1, 1, columns]; shared by all layers."""
        graph = self.graph
        columns = graph.op("Gather", graph.op("Shape", keys), graph.constant(2, np.int64))
        one = graph.constant(1, np.int64)
        # A row's own columns are the last (position + 1) of them, the new token's included.
        index = graph.op("Range", one, graph.op("Add", columns, one), one)
        first = graph.op("Sub", columns, self._positions)
        rows = graph.op("Unsqueeze", first, graph.constant([1, 2, 3], np.int64))
        foreign = graph.op("Less", index, rows)
        blocked, free = graph.constant(-1e9, np.float32), graph.constant(0.0, np.float32)
        self._bias = graph.op("Where", foreign, blocked, free)
        return self._bias


PROFILES: dict[str, type[Blocks]] = {
    blocks.profile: blocks for blocks in (CpuBlocks, PortableBlocks, CompatBlocks)
}


def blocks_for(profile: str) -> type[Blocks]:
    """Returns the building blocks of a profile.

    Raises:
        OptionError: There is no such profile.
    """
    if profile not in PROFILES:
        raise OptionError(
            f"There is no graph profile {profile!r}; choose from {', '.join(PROFILES)}."
        )
    return PROFILES[profile]
