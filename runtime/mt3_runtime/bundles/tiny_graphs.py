"""Writes the few tiny ONNX models that the runtime itself needs, without the `onnx` package.

A device has no operations of its own that Python could call, but it runs graphs: copying rows from
one buffer to another and doubling a cache are graphs of a few nodes.  So are the sum by which
`mt3_runtime.diagnostics.doctor` judges a provider, and the products by which a CPU's integers and a
plug-in's floats are judged.  Field numbers are those of onnx.proto; IR version 8 and opset 17 are
old enough for every ONNX Runtime and TensorRT this project can meet.
"""

from __future__ import annotations

from collections.abc import Sequence

_FLOAT, _UINT8, _INT8, _INT32 = 1, 2, 3, 6  # TensorProto.DataType
_IR_VERSION, _OPSET = 8, 17


def sum_model() -> bytes:
    """``y = x + x`` on one float."""
    return _model([_node("Add", ["x", "x"], "y")], [_value("x", _FLOAT, [1])],
                  [_value("y", _FLOAT, [1])])  # fmt: skip


def copy_model(count: int) -> bytes:
    """``to_k = from_k`` for so many int32 vectors, each of its own length."""
    names = [(f"from_{k}", f"to_{k}", [f"length_{k}"]) for k in range(count)]
    return _model(
        [_node("Identity", [source], target) for source, target, _ in names],
        [_value(source, _INT32, shape) for source, _, shape in names],
        [_value(target, _INT32, shape) for _, target, shape in names],
    )


def double_model(count: int) -> bytes:
    """``to_k = concat(from_k, from_k)`` over the columns of so many int32 matrices of one shape."""
    axis = text(1, "axis") + number_field(3, 1) + number_field(20, 2)  # name, i, type: INT
    return _model(
        [_node("Concat", [f"from_{k}"] * 2, f"to_{k}", axis) for k in range(count)],
        [_value(f"from_{k}", _INT32, ["rows", "columns"]) for k in range(count)],
        [_value(f"to_{k}", _INT32, ["rows", "twice"]) for k in range(count)],
    )


def product_model() -> bytes:
    """``product = rows x columns`` of bytes: uint8 [M, K] and int8 [K, N], int32 [M, N]."""
    return _model(
        [_node("MatMulInteger", ["rows", "columns"], "product")],
        [_value("rows", _UINT8, ["m", "k"]), _value("columns", _INT8, ["k", "n"])],
        [_value("product", _INT32, ["m", "n"])],
    )


def float_product_model() -> bytes:
    """``product = rows x columns`` of floats: [M, K], [K, N], [M, N]."""
    ports = {"rows": ["m", "k"], "columns": ["k", "n"], "product": ["m", "n"]}
    rows, columns, product = (_value(name, _FLOAT, shape) for name, shape in ports.items())
    return _model([_node("MatMul", ["rows", "columns"], "product")], [rows, columns], [product])


def _model(nodes: list[bytes], inputs: list[bytes], outputs: list[bytes]) -> bytes:
    graph = b"".join(field(1, node) for node in nodes) + text(2, "mt3")
    graph += b"".join(field(11, value) for value in inputs)
    graph += b"".join(field(12, value) for value in outputs)
    return number_field(1, _IR_VERSION) + field(7, graph) + field(8, number_field(2, _OPSET))


def _node(operator: str, inputs: list[str], output: str, attribute: bytes = b"") -> bytes:
    node = b"".join(text(1, name) for name in inputs) + text(2, output) + text(3, f"to {output}")
    return node + text(4, operator) + (field(5, attribute) if attribute else b"")


def _value(name: str, kind: int, shape: Sequence[int | str]) -> bytes:
    """A ValueInfoProto; a name in the shape is a dimension known only when it runs."""
    dimensions = b"".join(
        field(1, number_field(1, size) if isinstance(size, int) else text(2, size))
        for size in shape
    )
    tensor = number_field(1, kind) + field(2, dimensions)
    return text(1, name) + field(2, field(1, tensor))


def text(number: int, content: str) -> bytes:
    """A protobuf field of text."""
    return field(number, content.encode())


def field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def number_field(number: int, value: int) -> bytes:
    """A varint protobuf field."""
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    """Seven bits per byte, the lowest first; all but the last byte have the highest bit set."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
