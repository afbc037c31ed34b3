"""Makes `fp16` and `bf16` bundles: graphs that compute in 16 bits, for NVIDIA GPUs.

Contract: made of the ``portable`` graphs by the rules of `mt3_engines.building.half_precision`,
which TensorRT's engines follow too: products, caches and what the encoder hands over in 16 bits;
norms, softmax, routers and the output head in fp32.

A CPU has kernels for none of it.  ONNX Runtime casts fp16 graphs back, node by node, so they can be
judged there as they are.  It does not know bf16 at all, so `widened` writes a graph that does the
same in fp32: every value that would be bf16 is an fp32 one that was rounded to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, numpy_helper

from mt3_engines.building.half_precision import Half, to_half
from mt3_engines.building.network_graph import Rewriter
from mt3_quantisation.forms.recipes import Product, Talk
from mt3_quantisation.gates.exact_bundle import Source
from mt3_quantisation.gates.gate import GateName
from mt3_quantisation.gates.material import Material
from mt3_quantisation.gates.measure import ROLES
from mt3_runtime.bundles.manifest import Role
from mt3_runtime.bundles.precision import Precision

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

PRODUCTS = ("MatMul", "Conv", "Attention")
"""Operators that round their results."""

PROFILE = "portable"
"""The profile whose operators GPUs have kernels for."""


@dataclass(frozen=True)
class HalfRecipe:
    """Implements `mt3_quantisation.forms.recipes.Recipe`."""

    name: Half
    gate: GateName = "relaxed"

    def apply(self, source: Source, _material: Material, _talk: Talk) -> Product:
        graphs: dict[tuple[Role, str], ModelProto] = {}
        for role in ROLES:
            graphs[role, PROFILE] = source.graph(role, PROFILE)
            to_half(graphs[role, PROFILE], self.name)
        kind = self.name
        precision = Precision(kind, kind, kind, self_cache=kind, cross_cache=kind)
        if kind == "fp16":
            return Product(graphs, precision)
        stand_ins = {key: widened(model) for key, model in graphs.items()}
        return Product(graphs, precision, stand_ins, Precision(kind))


def widened(model: ModelProto) -> ModelProto:
    """A copy of a bf16 graph that computes the same in fp32, on numbers rounded to bf16.

    Products are of rounded factors, summed up in fp32 and rounded, as on a GPU.  What a fused
    attention rounds between its two products it does not imitate.
    """
    copy = type(model)()
    copy.CopyFrom(model)
    _Widener(copy).run()
    return copy


class _Widener(Rewriter):
    def __init__(self, model: ModelProto) -> None:
        super().__init__(model)
        graph = model.graph
        #: Values that are bf16 in the original.
        self._rounded: set[str] = set()
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.BFLOAT16:
                self._rounded.add(tensor.name)
                values = numpy_helper.to_array(tensor).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        for value in [*graph.input, *graph.output]:
            if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
                self._rounded.add(value.name)

    def rewrite(self, node: NodeProto) -> None:
        if node.op_type == "Cast" and self.attribute(node, "to", 0) == TensorProto.BFLOAT16:
            self._round(node.input[0], node.output[0])
        elif node.op_type in PRODUCTS and self._rounded.intersection(node.input):
            exact = self.fresh("exact")
            result, node.output[0] = node.output[0], exact
            self.keep(node)
            self._round(exact, result)
        else:
            # What casts back, or only moves rounded numbers, has rounded results.
            self.keep(node)
            moved = node.op_type != "Cast" and self._rounded.intersection(node.input[:1])
            self._rounded.update(node.output if moved else ())

    def _round(self, name: str, out: str) -> None:
        narrow = self.op("Cast", name, to=TensorProto.BFLOAT16)
        self.op("Cast", narrow, out=out, to=TensorProto.FLOAT)
        self._rounded.add(out)


FP16, BF16 = HalfRecipe("fp16"), HalfRecipe("bf16")
