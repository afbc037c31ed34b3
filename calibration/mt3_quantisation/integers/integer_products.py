"""Rewrites float matrix products of a graph as products of 8-bit integers.

Contract: `multiply_integers` turns MatMul nodes into products of whole numbers with the same name
of the output.  All that a row's result depends on is the row itself: its inputs become integers by
a scale of its own, or by a fixed one, integers are summed exactly, and so tokens do not depend on
what is decoded together with them.  (ONNX Runtime's usual dynamic form, one scale for a whole
batch, would break that.)

    one term     x ~ s h                     h in -127..127, s = largest of the row / 127
    two terms    x ~ s h + s l / 254         l the same of what h leaves: 16 bits in all

Two terms make two products of integers, still faster than one of floats, and their inputs lose
nothing that matters.  Inputs are unsigned with 128 as zero, because kernels for signed ones are
slow.  A weight keeps its name; ``NAME/scales`` has the scales of its columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from onnx import helper, numpy_helper

from mt3_export.graphs.graph_builder import MICROSOFT
from mt3_quantisation.integers.rounding import LEVELS, Rounded

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

ZERO = 128
"""What stands for 0 among unsigned inputs."""

TINY = 1e-20
"""Stands in for the largest input of a row of zeros."""


class Plan(NamedTuple):
    """How one product is to be computed.

    Attributes:
        rounded: The weight.
        terms: 1 or 2.
        scale: Fixed scale of the first term; None for one per row.
    """

    rounded: Rounded
    terms: int
    scale: float | None = None


class Integers(NamedTuple):
    """Inputs as integers.

    Attributes:
        terms: Names of the integers and of their scale, term by term.
        rows: Name of the rows' scales, or "" where one is fixed.
    """

    terms: list[tuple[str, str]]
    rows: str


def multiply_integers(model: ModelProto, plans: Mapping[str, Plan]) -> ModelProto:
    """Replaces the products of these weights, in place; returns the model."""
    graph, written = model.graph, _Writer()
    for node in graph.node:
        plan = plans.get(node.input[1]) if node.op_type == "MatMul" else None
        if plan is None:
            written.nodes.append(node)
        else:
            written.product(node, plan)
    kept = [tensor for tensor in graph.initializer if tensor.name not in plans]
    nodes = list(written.nodes)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *written.tensors.values()])
    if all(opset.domain != MICROSOFT for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return model


@dataclass
class _Writer:
    """Nodes and tensors of the new graph."""

    nodes: list[NodeProto] = field(default_factory=list)
    tensors: dict[str, TensorProto] = field(default_factory=dict)
    _known: dict[tuple[str, int, float | None], Integers] = field(default_factory=dict)

    def product(self, node: NodeProto, plan: Plan) -> None:
        """The product of a MatMul node."""
        name, result = node.input[1], node.output[0]
        self._tensor(name, plan.rounded.levels)
        columns = self._tensor(f"{name}/scales", plan.rounded.scales)
        terms, rows = self._integers(node.input[0], plan)
        total = f"{name}/sum" if rows else result
        parts = [total] if len(terms) == 1 else [f"{name}/part_{k}" for k in range(len(terms))]
        for (integers, scale), part in zip(terms, parts, strict=True):
            operands = [integers, name, scale, columns, self._zero()]
            self._node("MatMulIntegerToFloat", operands, part, domain=MICROSOFT)
        if len(terms) > 1:
            self._node("Add", parts, total)
        if rows:
            self._node("Mul", [total, rows], result)

    def _integers(self, inputs: str, plan: Plan) -> Integers:
        """Inputs as integers; the products that share them share this as well."""
        key = (inputs, plan.terms, plan.scale)
        if key not in self._known:
            stem, rows = f"{inputs}/int8", ""
            if plan.scale is None:
                inputs, rows = self._by_row(inputs, stem)
            self._known[key] = Integers(self._terms(inputs, stem, plan), rows)
        return self._known[key]

    def _by_row(self, inputs: str, stem: str) -> tuple[str, str]:
        """Inputs as multiples of a 127th of their row's largest, and what that is worth."""
        axis = self._tensor("int8/last_axis", np.array([-1]))
        size = self._node("Abs", [inputs], f"{stem}/sizes")
        largest = self._node("ReduceMax", [size, axis], f"{stem}/largest", keepdims=1)
        largest = self._node("Max", [largest, self._scalar("tiny", TINY)], f"{stem}/not_zero")
        scale = self._node("Mul", [largest, self._scalar("step", 1 / LEVELS)], f"{stem}/scale")
        return self._node("Div", [inputs, scale], f"{stem}/multiples"), scale

    def _terms(self, inputs: str, stem: str, plan: Plan) -> list[tuple[str, str]]:
        """The integers of the inputs and their scales, term by term."""
        zero = self._zero()
        first = 1.0 if plan.scale is None else plan.scale
        scale = self._tensor(f"{stem}/first_scale", np.float32(first))
        high = self._node("QuantizeLinear", [inputs, scale, zero], f"{stem}/first")
        if plan.terms == 1:
            return [(high, scale)]
        fine = self._tensor(f"{stem}/second_scale", np.float32(first / (2 * LEVELS)))
        known = self._node("DequantizeLinear", [high, scale, zero], f"{stem}/known")
        left = self._node("Sub", [inputs, known], f"{stem}/left")
        low = self._node("QuantizeLinear", [left, fine, zero], f"{stem}/second")
        return [(high, scale), (low, fine)]

    def _zero(self) -> str:
        return self._tensor("int8/zero", np.uint8(ZERO))

    def _scalar(self, name: str, value: float) -> str:
        return self._tensor(f"int8/{name}", np.float32(value))

    def _tensor(self, name: str, value: Any) -> str:
        self.tensors[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output
