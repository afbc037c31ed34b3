"""Building blocks of YourMT3's Perceiver encoder, once per profile.

They stand beside `mt3_export.graphs.profiles`, whose blocks are T5's: here norms subtract the mean
and have biases, attention is scaled and has many small heads, and experts take turns.  All tensors
are fp32; letters in shapes: B any number of groups, L tokens of a group, C width.

Experts.  The exact form with static shapes lets all of them read every token and multiplies the
branches of the ones that were not chosen by zero: four times the arithmetic of the chosen two.
ONNX Runtime's CPU kernels gather each expert's tokens instead, a fifth of the time (62 and 12 ms
for one layer of 2860 tokens and 8 experts on one core; its own MoE operator takes 36 ms).  Shapes
then depend on the data, so the other profiles keep the static form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from mt3_export.graphs.graph_builder import Graph

#: Layer norm epsilon of all published models.
EPSILON = 1e-5

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Expert:
    """One gated expert: (silu(x wi_0) * (x wi_1)) wo."""

    wi_0: Matrix
    wi_1: Matrix
    wo: Matrix


class LatentBlocks:
    """Building blocks in opset 17 primitives (profile ``compat``); others replace what they can.

    Args:
        graph: Nodes are added to it.
        heads: Attention heads.
        width: C, width of all heads together.
    """

    def __init__(self, graph: Graph, *, heads: int, width: int) -> None:
        self.graph, self.heads, self.width = graph, heads, width

    def layer_norm(self, x: str, scale: str, bias: str) -> str:
        """Normalises the last axis to mean 0 and variance 1, then scales and shifts."""
        return self.graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=EPSILON)

    def add_norm(self, residual: str, update: str, scale: str, bias: str) -> tuple[str, str]:
        """Returns (residual + update, layer_norm of that sum)."""
        total = self.graph.op("Add", residual, update)
        return total, self.layer_norm(total, scale, bias)

    def gelu(self, x: str) -> str:
        """The exact GELU, x times the normal distribution function of x."""
        graph = self.graph
        erf = graph.op("Erf", graph.op("Mul", x, graph.constant(sqrt(0.5), np.float32)))
        half = graph.op("Mul", x, graph.constant(0.5, np.float32))
        return graph.op("Mul", half, graph.op("Add", erf, graph.constant(1.0, np.float32)))

    def silu(self, x: str) -> str:
        """SiLU: x * sigmoid(x)."""
        return self.graph.op("Mul", x, self.graph.op("Sigmoid", x))

    def attention(self, query: str, key: str, value: str) -> str:
        """Scaled attention of [B, L, C] to [B, L', C]: returns [B, L, C]."""
        graph = self.graph
        split = graph.constant([0, 0, self.heads, self.width // self.heads], np.int64)
        query, key, value = (graph.op("Reshape", x, split) for x in (query, key, value))
        query = graph.op("Mul", query, graph.constant(self._scale, np.float32))
        query, value = (graph.op("Transpose", x, perm=[0, 2, 1, 3]) for x in (query, value))
        scores = graph.op("MatMul", query, graph.op("Transpose", key, perm=[0, 2, 3, 1]))
        mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
        merged = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return graph.op("Reshape", merged, graph.constant([0, 0, self.width], np.int64))

    def rotate(self, x: str, angles: Matrix) -> str:
        """Turns the first columns of each head, two by two, by ``angles`` [L, pairs] in radians.

        (a, b) becomes (a cos - b sin, b cos + a sin); the other columns stay as they are.
        """
        graph, heads = self.graph, self.heads
        head_width = self.width // heads
        cos = np.ones((len(angles), head_width))
        sin = np.zeros((len(angles), head_width))
        turned = 2 * angles.shape[1]
        cos[:, :turned] = np.repeat(np.cos(angles), 2, axis=1)
        sin[:, :turned] = np.repeat(np.sin(angles), 2, axis=1)
        swap = np.zeros((head_width, head_width))
        for pair in range(0, turned, 2):
            swap[pair + 1, pair], swap[pair, pair + 1] = -1.0, 1.0
        swapped = graph.op("MatMul", x, graph.constant(np.kron(np.eye(heads), swap), np.float32))
        return graph.op(
            "Add",
            graph.op("Mul", x, graph.constant(np.tile(cos, heads), np.float32)),
            graph.op("Mul", swapped, graph.constant(np.tile(sin, heads), np.float32)),
        )

    def route(self, logits: str, *, experts: int, top: int) -> str:
        """Shares of the experts in every token, [S, experts]: of the ``top`` best, 0 for others."""
        graph = self.graph
        best, chosen = graph.ops(
            "TopK",
            graph.op("Softmax", logits, axis=-1),
            graph.constant([top], np.int64),
            outs=[graph.fresh("best"), graph.fresh("chosen")],
            axis=-1,
        )
        last, inner = graph.constant([-1], np.int64), graph.constant([1], np.int64)
        shares = graph.op("Div", best, graph.op("ReduceSum", best, last))
        rows = graph.op(
            "OneHot",
            chosen,
            graph.constant([experts], np.int64),
            graph.constant([0, 1], np.float32),
        )
        weighted = graph.op("Mul", rows, graph.op("Unsqueeze", shares, last))
        return graph.op("ReduceSum", weighted, inner, keepdims=0)

    def experts(
        self, residual: str, x: str, shares: str, experts: Sequence[Expert], *, name: str
    ) -> str:
        """``residual`` plus the experts' outputs by their ``shares``; all [S, C], shares [S, E].

        The matrices are stored as ``name.experts.wi_0+wi_1.kernel`` and ``name.experts.wo.kernel``,
        the experts side by side.
        """
        graph, count = self.graph, len(experts)
        wide = experts[0].wi_0.shape[1]
        branches = [e.wi_0 for e in experts] + [e.wi_1 for e in experts]
        both = graph.op(
            "MatMul",
            x,
            graph.parameter(f"{name}.experts.wi_0+wi_1.kernel", np.concatenate(branches, axis=1)),
        )
        sizes = graph.constant([count * wide] * 2, np.int64)
        gate, linear = graph.ops(
            "Split", both, sizes, outs=[graph.fresh("gate"), graph.fresh("linear")], axis=-1
        )
        mixed = graph.op("Mul", self.silu(gate), linear)
        apart = graph.op("Reshape", mixed, graph.constant([0, count, wide], np.int64))
        weighted = graph.op(
            "Mul", apart, graph.op("Unsqueeze", shares, graph.constant([-1], np.int64))
        )
        together = graph.op("Reshape", weighted, graph.constant([0, count * wide], np.int64))
        out = graph.parameter(f"{name}.experts.wo.kernel", np.concatenate([e.wo for e in experts]))
        return graph.op("Add", graph.op("MatMul", together, out), residual)

    @property
    def _scale(self) -> float:
        return float((self.width // self.heads) ** -0.5)


class PortableLatentBlocks(LatentBlocks):
    """Standard opset 24."""

    def gelu(self, x: str) -> str:
        return self.graph.op("Gelu", x)

    def attention(self, query: str, key: str, value: str) -> str:
        return self.graph.op(
            "Attention",
            *(query, key, value),
            q_num_heads=self.heads,
            kv_num_heads=self.heads,
            scale=self._scale,
        )


class CpuLatentBlocks(PortableLatentBlocks):
    """Experts that read their own tokens only.

    ONNX Runtime's own operators (MultiHeadAttention, SkipLayerNormalization, QuickGelu) are no
    faster here than the standard ones, which it fuses by itself.
    """

    def experts(
        self, residual: str, x: str, shares: str, experts: Sequence[Expert], *, name: str
    ) -> str:
        """As `LatentBlocks.experts`, with a matrix ``name.experts_e...`` for every expert."""
        graph, count = self.graph, len(experts)
        columns = [graph.fresh("share") for _ in experts]
        graph.ops("Split", shares, graph.constant([1] * count, np.int64), outs=columns, axis=1)
        last, first = graph.constant([-1], np.int64), graph.constant([0], np.int64)
        total = residual
        for index, (expert, column) in enumerate(zip(experts, columns, strict=True)):
            prefix = f"{name}.experts_{index}"
            found = graph.op("NonZero", graph.op("Squeeze", column, last))
            rows = graph.op("Squeeze", found, first)
            both = graph.op(
                "MatMul",
                graph.op("Gather", x, rows, axis=0),
                graph.parameter(
                    f"{prefix}.wi_0+wi_1.kernel",
                    np.concatenate([expert.wi_0, expert.wi_1], axis=1),
                ),
            )
            sizes = graph.constant([expert.wi_0.shape[1]] * 2, np.int64)
            gate, linear = graph.ops(
                "Split", both, sizes, outs=[graph.fresh("gate"), graph.fresh("linear")], axis=-1
            )
            mixed = graph.op("Mul", self.silu(gate), linear)
            out = graph.op("MatMul", mixed, graph.parameter(f"{prefix}.wo.kernel", expert.wo))
            update = graph.op("Mul", out, graph.op("Gather", column, rows, axis=0))
            where = graph.op("Unsqueeze", rows, last)
            total = graph.op("ScatterND", total, where, update, reduction="add")
        return total


LATENT_BLOCKS: dict[str, type[LatentBlocks]] = {
    "cpu": CpuLatentBlocks,
    "portable": PortableLatentBlocks,
    "compat": LatentBlocks,
}
