"""Rewrites float matrix products of a graph as products of 8-bit integers.

Contract: `multiply_integers` turns MatMul nodes into products of whole numbers with the same name
of the output.  All that a row's result depends on is the row itself: its inputs become integers by
a scale of its own, or by a fixed one, integers are summed exactly, and so tokens do not depend on
what is decoded together with them.  (ONNX Runtime's usual dynamic form, one scale for a whole
batch, would break that.)

    one term     x ~ s h                     h in -127..127
    two terms    x ~ s h + s l / 254         l the same of what h leaves: 16 bits in all

Two terms make two products of integers, still faster than one of floats, and their inputs lose
nothing that matters.  Inputs are unsigned with 128 as zero, because kernels for signed ones are
slow.  A weight keeps its name; ``NAME/scales`` has the scales of its columns.

Where integers are multiplied ten times as fast as floats (AMX), passes over whole tensors are what
is left.  A product that is split at once can be written as one product per part, ``NAME/0`` and so
on: the same sums without the copy, of tensors that stay in the cache until their terms are added.
"""

from __future__ import annotations

from collections import Counter
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


def multiply_integers(
    model: ModelProto, plans: Mapping[str, Plan], *, apart: bool = False
) -> ModelProto:
    """Replaces the products of these weights, in place; returns the model.

    Args:
        model: The graph.
        plans: By the weight's name.
        apart: Products whose columns are split at once become one product per part.
    """
    graph, written = model.graph, _Writer()
    splits = _splits(model) if apart else {}
    for node in graph.node:
        plan = plans.get(node.input[1]) if node.op_type == "MatMul" else None
        if plan is not None:
            written.products(node, plan, splits.get(node.output[0]))
        elif node.op_type != "Split" or not set(node.output) & written.written:
            written.nodes.append(node)
    used = {name for node in written.nodes for name in node.input}
    kept = [each for each in graph.initializer if each.name in used - written.tensors.keys()]
    nodes = list(written.nodes)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *written.tensors.values()])
    if all(opset.domain != MICROSOFT for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return model


def _splits(model: ModelProto) -> dict[str, list[tuple[str, int]]]:
    """Tensors that are read by nothing but a split of their columns -> parts and their widths."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = Counter(name for node in model.graph.node for name in node.input)
    readers.update(output.name for output in model.graph.output)
    found = {}
    for node in model.graph.node:
        sizes = tensors.get(node.input[1]) if node.op_type == "Split" and node.input[1:] else None
        last = any(each.name == "axis" and each.i in (-1, 2) for each in node.attribute)
        if sizes is not None and last and readers[node.input[0]] == 1:
            widths = (int(width) for width in numpy_helper.to_array(sizes))
            found[node.input[0]] = list(zip(node.output, widths, strict=True))
    return found


@dataclass
class _Writer:
    """Nodes and tensors of the new graph."""

    nodes: list[NodeProto] = field(default_factory=list)
    tensors: dict[str, TensorProto] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    _integer: dict[tuple[str, int, float | None], Integers] = field(default_factory=dict)

    def products(self, node: NodeProto, plan: Plan, parts: list[tuple[str, int]] | None) -> None:
        """The product of a MatMul node, as a whole or in parts."""
        inputs, name = node.input
        if parts is None:
            self._product(inputs, name, node.output[0], plan)
            return
        levels, scales = plan.rounded
        first = 0
        for index, (output, width) in enumerate(parts):
            columns = slice(first, first + width)
            part = Rounded(np.ascontiguousarray(levels[:, columns]), scales[columns])
            self._product(inputs, f"{name}/{index}", output, plan._replace(rounded=part))
            self.written.add(output)
            first += width

    def _product(self, inputs: str, name: str, result: str, plan: Plan) -> None:
        self._tensor(name, plan.rounded.levels)
        columns = self._tensor(f"{name}/scales", plan.rounded.scales)
        terms, rows = self._integers(inputs, plan)
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
        if key not in self._integer:
            stem, rows, scale = f"{inputs}/int8", "", plan.scale
            if scale is None:
                inputs, rows = self._by_row(inputs, stem)
                scale = 1 / LEVELS
            self._integer[key] = Integers(self._terms(inputs, stem, plan.terms, scale), rows)
        return self._integer[key]

    def _by_row(self, inputs: str, stem: str) -> tuple[str, str]:
        """Inputs as shares of their row's largest, and what that is.

        Two passes that reduce take less time than one that writes all sizes and one that reduces.
        """
        axis = self._tensor("int8/last_axis", np.array([-1]))
        most, least = (
            self._node(f"Reduce{kind}", [inputs, axis], f"{stem}/{kind.lower()}", keepdims=1)
            for kind in ("Max", "Min")
        )
        below = self._node("Neg", [least], f"{stem}/below")
        tiny = self._scalar("tiny", TINY)
        scale = self._node("Max", [most, below, tiny], f"{stem}/scale")
        return self._node("Div", [inputs, scale], f"{stem}/shares"), scale

    def _terms(self, inputs: str, stem: str, terms: int, first: float) -> list[tuple[str, str]]:
        """The integers of the inputs and their scales, term by term."""
        zero = self._zero()
        scale = self._tensor(f"{stem}/first_scale", np.float32(first))
        high = self._node("QuantizeLinear", [inputs, scale, zero], f"{stem}/first")
        if terms == 1:
            return [(high, scale)]
        fine = self._tensor(f"{stem}/second_scale", np.float32(first / (2 * LEVELS)))
        near = self._node("DequantizeLinear", [high, scale, zero], f"{stem}/known")
        left = self._node("Sub", [inputs, near], f"{stem}/left")
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
