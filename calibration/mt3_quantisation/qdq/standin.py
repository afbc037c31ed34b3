"""Emulates fp8 graphs on a CPU, where ONNX Runtime has no kernels for their Q/DQ pairs.

The same numbers in other operators: dividing by the scale and casting is what QuantizeLinear does
to fp8, and a weight is what its bytes stand for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mt3_quantisation.forms.step_graphs import drop_unused

if TYPE_CHECKING:
    from onnx import ModelProto


def simulated(model: ModelProto) -> ModelProto:
    """A copy of a graph of `mt3_quantisation.qdq.insertion`, without Q/DQ operators."""
    from onnx import ModelProto as Model  # noqa: PLC0415  0.3 s
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    made = Model()
    made.CopyFrom(model)
    graph = made.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes, exact = [], {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            values, scale, zero = node.input
            divided, (result,) = f"{node.output[0]}/divided", node.output
            kind = stored[zero].data_type
            nodes.append(helper.make_node("Div", [values, scale], [divided]))
            nodes.append(helper.make_node("Cast", [divided], [result], to=kind))
        elif node.op_type == "DequantizeLinear" and node.input[0] in stored:
            weight, scale = (numpy_helper.to_array(stored[name]) for name in node.input[:2])
            values = weight.astype(np.float32) * scale
            stored[node.input[0]].CopyFrom(numpy_helper.from_array(values, node.input[0]))
            exact[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear":
            cast, (result,) = f"{node.output[0]}/cast", node.output
            nodes.append(helper.make_node("Cast", [node.input[0]], [cast], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Mul", [cast, node.input[1]], [result]))
        else:
            nodes.append(node)
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = exact.get(name, name)
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)
    return made
