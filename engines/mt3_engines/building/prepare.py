"""Prepares a bundle's `portable` graph for TensorRT.

TensorRT's parser ignores the lengths that say how much of a cache is valid, wants the cache's
length fixed, and before 10.15 knows neither in-place writing nor RMS norms.  And its networks are
strongly typed: an engine's precision is what the graph says.  So, before building:

- attention is spelled out: products, mask, softmax (TensorRT fuses that pattern itself);
- the cache gets its fixed length; where it cannot be written in place, a selection over all
  columns makes the new one;
- for GPUs without fp32 matrix products, those that decide something become sums of products;
- with ``fp16``, every matrix product and convolution reads fp16 and so do the caches.  Softmax,
  norms, residual sums, the output head and the choice of experts stay fp32.

The result is ordinary ONNX with the bundle's tensor names.  It runs in ONNX Runtime as well, which
is how the tests compare it with the original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mt3_engines.building.half_precision import is_exact, to_half
from mt3_engines.building.network_graph import Rewriter
from mt3_engines.building.operators import table
from mt3_engines.versions import Version, updates_in_place

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from mt3_engines.storage.keys import Precision

#: What hides unwritten columns: far below any score, and finite, as NaN must not arise.
_HIDDEN = -1e30
#: The newest IR version that goes with an operator set.
_IR_VERSIONS = {20: 9, 23: 11, 24: 11}


def prepare(
    model: ModelProto,
    version: Version,
    *,
    precision: Precision = "fp32",
    capacity: int = 0,
    matrix_products: bool = True,
) -> ModelProto:
    """Makes the graph that an engine is built from.

    Args:
        model: A ``portable`` graph; it is left as it is.
        version: TensorRT's.
        precision: Of matrix products and caches.
        capacity: Columns of the cache, for a decoder.
        matrix_products: Whether there are matrix products of fp32.
    """
    from onnx import ModelProto as Model  # noqa: PLC0415  0.3 s

    copy = Model()
    copy.CopyFrom(model)
    opset = min(24, table().opset(version))
    for item in copy.opset_import:
        item.version = opset
    copy.ir_version = min(copy.ir_version, _IR_VERSIONS[opset])
    _fix_capacity(copy, capacity)
    _Speller(copy, version).run()
    if precision == "fp16":
        to_half(copy)
    if not matrix_products:
        _Summer(copy).run()
    return copy


def _fix_capacity(model: ModelProto, capacity: int) -> None:
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.startswith("capacity"):
                dim.dim_value = capacity
    del model.graph.value_info[:]


class _Summer(Rewriter):
    """Spells products that stay fp32, a vector times a matrix each, as sums of products."""

    def rewrite(self, node: NodeProto) -> None:
        if node.op_type != "MatMul" or not is_exact(node, self._parameters):
            self.keep(node)
            return
        rows, matrix = node.input
        products = self.op(
            "Mul",
            self.op("Unsqueeze", rows, self.constant([-2])),
            self.op("Transpose", matrix, perm=[1, 0]),
        )
        self.op("ReduceSum", products, self.constant([-1]), out=node.output[0], keepdims=0)


class _Speller(Rewriter):
    """Spells out what the parser does not know, or reads wrongly."""

    def __init__(self, model: ModelProto, version: Version) -> None:
        super().__init__(model)
        self._in_place = updates_in_place(version)
        self._masks: dict[tuple[str, int], str] = {}
        self._columns = {
            value.name: value.type.tensor_type.shape.dim[2].dim_value
            for value in model.graph.input
            if value.name.startswith("past_")
        }

    def rewrite(self, node: NodeProto) -> None:
        if node.op_type == "Attention":
            self._attention(node)
        elif node.op_type == "TensorScatter" and not self._in_place:
            self._select(node)
        elif node.op_type == "RMSNormalization" and not self._in_place:
            self._rms_norm(node)
        else:
            self.keep(node)
        if node.op_type == "TensorScatter":
            self._columns[node.output[0]] = self._columns[node.input[0]]

    def _attention(self, node: NodeProto) -> None:
        """softmax(scale * query . key) . value, of the first ``lengths`` columns."""
        query, key, value = node.input[:3]
        heads = self.attribute(node, "q_num_heads", 0)
        if heads:
            query, key, value = (self._split_heads(x, heads) for x in (query, key, value))
        scores = self.op("MatMul", query, self.op("Transpose", key, perm=[0, 1, 3, 2]))
        scale = self.attribute(node, "scale", None)
        if scale is None:
            raise ValueError(f"{node.name}: attention without a scale is not ours")
        if scale != 1.0:
            scores = self.op("Mul", scores, self.constant(scale))
        if len(node.input) > 6:
            mask = self._mask(node.input[6], self._columns[key])
            scores = self.op("Where", mask, scores, self.constant(_HIDDEN))
        weights = self.op("Softmax", scores, axis=-1)
        if not heads:
            self.op("MatMul", weights, value, out=node.output[0])
            return
        merged = self.op("Transpose", self.op("MatMul", weights, value), perm=[0, 2, 1, 3])
        self.op("Reshape", merged, self.constant([0, 0, -1]), out=node.output[0])

    def _split_heads(self, x: str, heads: int) -> str:
        """[N, L, H*D] -> [N, H, L, D]."""
        split = self.op("Reshape", x, self.constant([0, 0, heads, -1]))
        return self.op("Transpose", split, perm=[0, 2, 1, 3])

    def _mask(self, lengths: str, columns: int) -> str:
        """[N] -> [N, 1, 1, L], true in front of each row's length."""
        if (lengths, columns) not in self._masks:
            numbers = self.constant([[[list(range(columns))]]])
            limits = self.op("Unsqueeze", lengths, self.constant([1, 2, 3]))
            self._masks[lengths, columns] = self.op("Less", numbers, limits)
        return self._masks[lengths, columns]

    def _select(self, node: NodeProto) -> None:
        """The update where a row's column is to be written, the past elsewhere."""
        past, update, at = node.input
        columns = self._columns[past]
        numbers = self.constant([[[[column] for column in range(columns)]]])
        written = self.op("Equal", numbers, self.op("Unsqueeze", at, self.constant([1, 2, 3])))
        self.op("Where", written, update, past, out=node.output[0])

    def _rms_norm(self, node: NodeProto) -> None:
        x, scale = node.input
        epsilon: Any = self.attribute(node, "epsilon", 1e-5)
        mean = self.op("ReduceMean", self.op("Mul", x, x), self.constant([-1]), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.constant(epsilon)))
        self.op("Mul", self.op("Div", x, root), scale, out=node.output[0])
