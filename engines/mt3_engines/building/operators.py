"""Operators that TensorRT's ONNX parser accepts, and whether a graph keeps to them.

The parser of a version is known by its documentation and source, collected in ``operators.json``
with their origin.  `faults` compares a graph with that table, so that a graph that TensorRT would
refuse, or read wrongly (it drops some inputs without a word), is found without TensorRT.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mt3_engines.versions import Version, parse_version

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

#: TopK's k must be smaller.
_TOP_LIMIT = 3840


@dataclass(frozen=True)
class Rule:
    """One operator's row of the table; see there."""

    since: str
    max_inputs: int | None = None
    max_outputs: int | None = None
    network_io: bool = False
    symmetric: bool = False
    constant: tuple[int, ...] = ()
    rank: dict[str, list[int]] = field(default_factory=dict)
    values: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The table.

    Attributes:
        opsets: Newest operator set by TensorRT version; holds until the next version listed.
        rules: By operator of the standard domain.
    """

    opsets: dict[Version, int]
    rules: dict[str, Rule]

    def opset(self, version: Version) -> int:
        """The newest operator set a version reads."""
        return self.opsets[max(known for known in self.opsets if known <= version)]


@functools.cache
def table() -> Table:
    """Reads the table."""
    text = (
        importlib.resources.files("mt3_engines.building")
        .joinpath("operators.json")
        .read_text("utf-8")
    )
    document = json.loads(text)
    opsets = {parse_version(name): row["opset"] for name, row in document["versions"].items()}
    return Table(opsets, {name: Rule(**row) for name, row in document["operators"].items()})


def faults(model: ModelProto, version: Version) -> list[str]:
    """What TensorRT would refuse or misread in a graph.

    Args:
        model: The graph; shapes are inferred here.
        version: TensorRT's.

    Returns:
        One sentence per fault, without repetitions; empty for a graph it reads as it is meant.
    """
    from onnx import shape_inference  # noqa: PLC0415  0.3 s

    known = table()
    found = []
    opset = next((item.version for item in model.opset_import if item.domain == ""), 0)
    if opset > known.opset(version):
        found.append(f"opset {opset} is newer than {known.opset(version)}")
    surroundings = _Surroundings(shape_inference.infer_shapes(model).graph)
    for node in model.graph.node:
        rule = known.rules.get(node.op_type)
        if node.domain or rule is None:
            found.append(f"there is no operator {node.domain or 'ai.onnx'}::{node.op_type}")
        elif parse_version(rule.since) > version:
            found.append(f"{node.op_type} came with TensorRT {rule.since}")
        else:
            found += [f"{node.op_type}: {fault}" for fault in surroundings.broken(node, rule)]
    return list(dict.fromkeys(found))


class _Surroundings:
    """What must be known around a node to judge it."""

    def __init__(self, graph: GraphProto) -> None:
        values = [*graph.input, *graph.output, *graph.value_info]
        self._shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in values
            if value.type.tensor_type.HasField("shape")
        }
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._shapes |= {name: list(tensor.dims) for name, tensor in self._constants.items()}
        self._inputs = {value.name for value in graph.input}
        self._outputs = {value.name for value in graph.output}

    def broken(self, node: NodeProto, rule: Rule) -> list[str]:
        """Which parts of a rule a node breaks."""
        return [
            *self._too_many(node, rule),
            *self._wrong_ranks(node, rule),
            *self._wrong_values(node, rule),
            *self._not_constant(node, rule),
            *(self._not_io(node) if rule.network_io else []),
            *(self._not_symmetric(node) if rule.symmetric else []),
        ]

    def _too_many(self, node: NodeProto, rule: Rule) -> list[str]:
        found = []
        for what, names, limit in (
            ("input", node.input, rule.max_inputs),
            ("output", node.output, rule.max_outputs),
        ):
            used = [index for index, name in enumerate(names) if name]
            found += [f"{what} {index} is not read" for index in used if index >= (limit or 99)]
        return found

    def _wrong_ranks(self, node: NodeProto, rule: Rule) -> list[str]:
        found = []
        for index, allowed in rule.rank.items():
            name = node.input[int(index)] if int(index) < len(node.input) else ""
            if name and len(self._shapes.get(name, [])) not in allowed:
                rank = len(self._shapes[name]) if name in self._shapes else "unknown"
                found.append(f"input {index} has rank {rank}, not {allowed[0]}")
        return found

    def _wrong_values(self, node: NodeProto, rule: Rule) -> list[str]:
        from onnx import helper  # noqa: PLC0415

        found = []
        for attribute in node.attribute:
            value = helper.get_attribute_value(attribute)
            plain = value.decode() if isinstance(value, bytes) else value
            plain = list(plain) if isinstance(plain, list | tuple) else plain
            allowed = rule.values.get(attribute.name)
            if allowed is not None and plain not in allowed:
                found.append(f"{attribute.name} is {plain}, not {allowed[0]}")
        return found

    def _not_constant(self, node: NodeProto, rule: Rule) -> list[str]:
        from onnx import numpy_helper  # noqa: PLC0415

        names = [node.input[index] for index in rule.constant if index < len(node.input)]
        found = [f"{name} is not constant" for name in names if name not in self._constants]
        if node.op_type == "TopK" and not found:
            count = numpy_helper.to_array(self._constants[node.input[1]]).max()
            found += ["k is too large"] if count >= _TOP_LIMIT else []
        return found

    def _not_io(self, node: NodeProto) -> list[str]:
        cache, found = node.input[0], []
        if cache not in self._inputs or node.output[0] not in self._outputs:
            found.append("the cache is not an input and an output of the network")
        elif not self._shapes[cache][2]:
            found.append("the length of the cache is not fixed")
        return found

    def _not_symmetric(self, node: NodeProto) -> list[str]:
        """What a Q or DQ has that is not symmetric quantisation to 8 bits."""
        from onnx import TensorProto, numpy_helper  # noqa: PLC0415

        if len(node.input) < 3:
            return ["there is no zero point, which says the type"]
        if not {node.input[1], node.input[2]} <= self._constants.keys():
            return []  # said already
        scale, zero = (self._constants[name] for name in node.input[1:3])
        scales, zeros = (numpy_helper.to_array(tensor) for tensor in (scale, zero))
        found = []
        if zero.data_type not in (TensorProto.INT8, TensorProto.FLOAT8E4M3FN):
            found.append("the type is neither int8 nor fp8 E4M3")
        if zeros.astype(np.float32).any() or zeros.size != scales.size:
            found.append(f"{node.input[2]} is not one zero per scale")
        if not (scales.astype(np.float32) > 0).all():
            found.append(f"{node.input[1]} is not above 0")
        several = scales.size > 1
        if several and node.input[0] not in self._constants:
            found.append(f"{node.input[0]} changes, and has several scales")
        if several and all(attribute.name != "axis" for attribute in node.attribute):
            found.append("there is no axis for several scales")
        return found
