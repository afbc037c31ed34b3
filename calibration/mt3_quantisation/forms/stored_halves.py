"""Stores weights as fp16 and computes in fp32: `fp16-stored`, the default packaging.

The default packaging.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from mt3_export.bundle_writer import stored
from mt3_export.graphs.graph_builder import LARGEST_HALF
from mt3_quantisation.forms.recipes import Product, Talk
from mt3_quantisation.gates.exact_bundle import Source
from mt3_quantisation.gates.gate import GateName
from mt3_quantisation.gates.material import Material
from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    from onnx import ModelProto

EXACT = (".router.",)
"""Parts of the names of parameters that stay fp32: what chooses experts."""


class StoredHalf:
    """Stores the matrices of every graph as fp16, as `mt3 export` does by default."""

    name = "fp16-stored"
    gate: GateName = "packaging"

    def apply(self, source: Source, _material: Material, _talk: Talk) -> Product:
        if source.manifest.precision.weights != "fp32":
            raise OptionError(
                f"The weights of {source.bundle.path} are stored as "
                f"{source.manifest.precision.weights} already, and nothing tells what they were; "
                "export the checkpoint with --weights fp32 to compare."
            )
        graphs = {
            (graph.role, graph.profile): halved(source.graph(graph.role, graph.profile))
            for graph in source.manifest.graphs
        }
        return Product(graphs, stored("fp16"))


def halved(model: ModelProto) -> ModelProto:
    """Stores matrices as fp16 and casts them back, in place; returns the model."""
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        exact = any(part in tensor.name for part in EXACT)
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or exact:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max(initial=0.0) > LARGEST_HALF:
            continue
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
        cast = f"{tensor.name}/fp32"
        casts.append(
            helper.make_node("Cast", [tensor.name], [cast], name=cast, to=TensorProto.FLOAT)
        )
    names = {cast.input[0]: cast.output[0] for cast in casts}
    nodes = list(graph.node)
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    return model


RECIPE = StoredHalf()
