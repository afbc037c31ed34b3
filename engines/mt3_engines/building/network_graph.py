"""Rewrites an ONNX graph node by node, in its order, under its own tensor names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


#: Operators whose result is their first input, in another type, shape or order.
_SAME = ("Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze")


def parameters(model: ModelProto) -> dict[str, str]:
    """Values that are a parameter, as stored or in another type, shape or order -> its name.

    Bundles store weights as fp16 and cast them, so a product seldom reads a parameter itself.
    """
    found = {tensor.name: tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in _SAME and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


class Rewriter(ABC):
    """Visits all nodes of a graph and writes what shall stand in their place.

    Args:
        model: Changed by `run`; its nodes must be in topological order, as ONNX demands.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self._nodes: list[NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0
        self._parameters = parameters(model)

    @abstractmethod
    def rewrite(self, node: NodeProto) -> None:
        """Writes a node's replacement with `op`, or the node itself with `keep`."""

    def run(self) -> None:
        """Rewrites the model."""
        for node in self.model.graph.node:
            self.rewrite(node)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self._nodes)
        self._nodes = []

    def keep(self, node: NodeProto) -> None:
        """Writes a node as it is."""
        self._nodes.append(node)

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Writes a node with one output and returns the output's name."""
        from onnx import helper  # noqa: PLC0415  0.3 s

        name = out or self.fresh(kind)
        self._nodes.append(
            helper.make_node(kind, inputs, [name], name=self.fresh("node"), **attributes)
        )
        return name

    def fresh(self, stem: str) -> str:
        """A name that is not in use; those of the exporter hold no slash."""
        self._count += 1
        return f"{type(self).__name__.lower()}/{stem}_{self._count}"

    def constant(self, value: Any) -> str:
        """Stores a constant, once: floats as fp32, integers as int64."""
        from onnx import numpy_helper  # noqa: PLC0415

        array = np.asarray(value)
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.fresh("constant")
            tensor = numpy_helper.from_array(array, self._constants[key])
            self.model.graph.initializer.append(tensor)
        return self._constants[key]

    @staticmethod
    def attribute(node: NodeProto, name: str, default: Any) -> Any:
        """A node's attribute."""
        from onnx import helper  # noqa: PLC0415

        for attribute in node.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default
