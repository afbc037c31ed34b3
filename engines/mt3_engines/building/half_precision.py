"""Rewrites a graph to compute in fp16 or bf16 where that pays off.

Matrix products and convolutions read 16 bits (their sums are fp32 inside, on every GPU that
matters), caches and what the encoder hands over have 16: those are the bytes a step moves.
Everything between stays fp32: residual sums, norms, softmax, gates.  So does every product that
decides something: the output head, whose near-ties choose tokens, and the routers that choose
experts.

A product that is quantised already (int8, fp8) stays quantised: what is dequantised becomes fp16
instead of fp32, and what is there as fp16 is quantised from it.  Scales that are fp16 numbers, as
`mt3 calibrate` writes them, are the same numbers then.

In a strongly typed network the casts are the precision; TensorRT fuses them into the products.  In
ONNX Runtime's CUDA provider `Attention` is one kernel, which keeps scores and softmax in fp32
registers whatever it reads; the attribute that would demand it (``softmax_precision``) is one that
the kernel refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from mt3_engines.building.network_graph import Rewriter

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Half = Literal["fp16", "bf16"]

#: Operators that compute in 16 bits, and which of their inputs are values to cast.
_COMPUTE = {
    "MatMul": (0, 1), "Conv": (0, 1, 2), "TensorScatter": (0, 1), "Attention": (0, 1, 2),
}  # fmt: skip
#: Operators that only move values: done in 16 bits where the value is there in them already.
_MOVE = {"Transpose", "Reshape", "Slice", "Split", "Unsqueeze", "Squeeze"}
#: Parameters whose products stay fp32.
_EXACT = ("logits_dense", ".router.")
#: Inputs and outputs of the graph that get 16 bits.
_CARRIED = ("past_", "present_", "cross_")
#: Largest finite fp16; a larger weight would become infinite.
_LARGEST = 65504.0


def to_half(model: ModelProto, kind: Half = "fp16") -> None:
    """Changes a graph in place; what it stores as fp16 must be wanted as fp16.

    Raises:
        ValueError: A weight does not fit into fp16.
    """
    _Halver(model, kind).run()
    _drop_unused(model)


def is_exact(node: NodeProto, parameters: Mapping[str, str]) -> bool:
    """Whether a product decides something, so that it stays fp32.

    Args:
        node: The product.
        parameters: What `mt3_engines.building.network_graph.parameters` says of its graph.
    """
    names = [parameters.get(name, name) for name in node.input]
    return any(part in name for name in names for part in _EXACT)


def bf16_words(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Finite numbers as bf16, to the nearest, ties to even: the upper words of fp32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


class _Halver(Rewriter):
    def __init__(self, model: ModelProto, kind: Half) -> None:
        from onnx import TensorProto  # noqa: PLC0415

        super().__init__(model)
        self._half = TensorProto.FLOAT16 if kind == "fp16" else TensorProto.BFLOAT16
        self._float = TensorProto.FLOAT
        graph = model.graph
        self._weights = {t.name: t for t in graph.initializer if t.data_type == self._float}
        #: Names under which a value is there in 16 bits.
        self._halves: dict[str, str] = {
            t.name: t.name for t in graph.initializer if t.data_type == self._half
        }
        for value in [*graph.input, *graph.output]:
            if value.name.startswith(_CARRIED):
                value.type.tensor_type.elem_type = self._half
        inputs = {v.name for v in graph.input if v.name.startswith(_CARRIED)}
        self._results = {v.name for v in graph.output if v.name.startswith(_CARRIED)}
        self._halves |= {name: name for name in inputs}
        #: Values there are in 16 bits alone, and their casts for those who want fp32.
        self._only_half = inputs | self._results
        self._casts: dict[str, str] = {}
        #: What was dequantised, by the name of its value.
        self._dequantized: dict[str, NodeProto] = {}

    def rewrite(self, node: NodeProto) -> None:
        kind = node.op_type
        if kind == "Cast" and self.attribute(node, "to", 0) == self._float:
            if node.input[0] in self._halves:
                self._halves[node.output[0]] = self._halves[node.input[0]]
            self.keep(node)
        elif kind in _COMPUTE and not self._exact(node):
            self._compute(node, {node.input[i] for i in _COMPUTE[kind] if i < len(node.input)})
        elif kind == "Where" and {node.input[2], node.output[0]} & {*self._halves, *self._results}:
            self._compute(node, set(node.input[1:]))
        elif kind in _MOVE and node.input[0] in self._halves:
            self._compute(node, {node.input[0]})
        elif kind == "QuantizeLinear" and node.input[0] in self._halves:
            node.input[0] = self._halves[node.input[0]]
            node.input[1] = self._as_half(node.input[1])
            self.keep(node)
        else:
            if kind == "DequantizeLinear":
                self._dequantized[node.output[0]] = node
            self._leave(node)

    def _exact(self, node: NodeProto) -> bool:
        return is_exact(node, self._parameters)

    def _compute(self, node: NodeProto, values: set[str]) -> None:
        """Writes the node with 16-bit inputs; its results so and, for others, as fp32."""
        for index, name in enumerate(node.input):
            if name in values:
                node.input[index] = self._as_half(name)
        results = list(node.output)
        for index, result in enumerate(results):
            self._halves[result] = result if result in self._results else self.fresh("half")
            node.output[index] = self._halves[result]
        self.keep(node)
        for result in results:
            if result not in self._results:
                self.op("Cast", self._halves[result], out=result, to=self._float)

    def _leave(self, node: NodeProto) -> None:
        """Writes the node in fp32, whatever is around it."""
        for index, name in enumerate(node.input):
            if name in self._only_half:
                if name not in self._casts:
                    self._casts[name] = self.op("Cast", name, to=self._float)
                node.input[index] = self._casts[name]
        self.keep(node)
        for index, result in enumerate(node.output):
            if result in self._results:
                node.output[index] = self.fresh("float")
                self._halves[result] = self.op(
                    "Cast", node.output[index], out=result, to=self._half
                )

    def _as_half(self, name: str) -> str:
        if name not in self._halves:
            if name in self._weights:
                self._halves[name] = self._store(name)
            elif name in self._dequantized:
                self._halves[name] = self._dequantize(self._dequantized[name])
            else:
                self._halves[name] = self.op("Cast", name, to=self._half)
        return self._halves[name]

    def _dequantize(self, node: NodeProto) -> str:
        """The same as fp16; the type of the scale is that of the result."""
        axis = self.attribute(node, "axis", None)
        attributes = {} if axis is None else {"axis": axis}
        values, scale, *zero = node.input
        return self.op("DequantizeLinear", values, self._as_half(scale), *zero, **attributes)

    def _store(self, name: str) -> str:
        """A weight in 16 bits, under its own name if nobody else reads it as fp32."""
        from onnx import TensorProto, numpy_helper  # noqa: PLC0415

        values, halved = numpy_helper.to_array(self._weights[name]), self.fresh(name)
        words: npt.NDArray[np.uint16]
        if self._half == TensorProto.BFLOAT16:
            words = bf16_words(values)
        elif np.abs(values).max(initial=0.0) > _LARGEST:
            raise ValueError(f"{name} holds values beyond fp16; build it with --precision fp32")
        else:
            words = values.astype(np.float16).view(np.uint16)
        self.model.graph.initializer.add(
            name=halved,
            data_type=self._half,
            dims=values.shape,
            raw_data=words.astype("<u2").tobytes(),
        )
        return halved


def _drop_unused(model: ModelProto) -> None:
    """Removes nodes and parameters nobody reads, and gives weights their own names back."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    taken, names = {tensor.name for tensor in tensors}, {}
    for tensor in tensors:
        own = tensor.name.removeprefix("_halver/").rpartition("_")[0]
        if tensor.name.startswith("_halver/") and own not in taken:
            names[tensor.name] = tensor.name = own
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    del graph.initializer[:]
    graph.initializer.extend(tensors)
