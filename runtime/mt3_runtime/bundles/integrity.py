"""Scans ONNX files for external data and malformed messages before a real parser sees them.

The runtime does not depend on the ``onnx`` package, and ONNX Runtime follows references to
external files while it loads.  This module walks the protobuf wire format (varint keys, length
delimited fields; protobuf.dev/programming-guides/encoding) without building anything, to collect
the metadata and to find tensors whose data lies outside the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mt3_runtime.errors import BundleError

# Field numbers of onnx.proto (ONNX IR 3 and later; they never change once published).
_MODEL_METADATA = 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
#: Fields that can lead from a model to a tensor, by message: {field: message it holds}.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_MAX_DEPTH = 16

#: How a field is encoded, if it has a length.
BYTES = 2
_VARINT, _FIXED64, _FIXED32 = 0, 1, 5


@dataclass(frozen=True)
class OnnxSummary:
    """What `scan` finds: the model's ``metadata_props`` and whether it refers to other files."""

    metadata: dict[str, str]
    external_data: bool


def scan(data: bytes | memoryview) -> OnnxSummary:
    """Walks a serialised ``ModelProto``.

    Args:
        data: The whole file; a memory map costs no copy.

    Raises:
        BundleError: The bytes are not a protobuf message, or nest deeper than any real graph.
    """
    metadata: dict[str, str] = {}
    model = memoryview(data)
    for field, payload in _fields(model):
        if field == _MODEL_METADATA:
            entry = dict(_fields(payload))
            key, value = (bytes(entry.get(n, b"")) for n in (_ENTRY_KEY, _ENTRY_VALUE))
            metadata[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return OnnxSummary(metadata, _has_external(model, "model", 0))


def _has_external(message: memoryview, kind: str, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise BundleError(
            f"The graph nests deeper than {_MAX_DEPTH} levels; no exporter writes that."
        )
    children = _CHILDREN[kind]
    for field, payload in _fields(message):
        if kind == "tensor" and field in (_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION):
            return True  # DEFAULT (0) is never written, so the field's presence means EXTERNAL
        child = children.get(field)
        if child and _has_external(payload, child, depth + 1):
            return True
    return False


class Field(NamedTuple):
    """Where a field lies in a message.

    Attributes:
        number: Of the field.
        wire: How it is encoded.
        start: First byte of its key.
        begin: First byte of its content.
        end: One behind its last byte.
    """

    number: int
    wire: int
    start: int
    begin: int
    end: int


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of one message, in their order.

    Raises:
        BundleError: It is no message, or it is cut off.
    """
    at, end = 0, len(message)
    while at < end:
        start = at
        key, at = _varint(message, at)
        wire = key & 7
        size = 0
        if wire == BYTES:
            size, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        elif wire == _VARINT:
            size = _varint(message, at)[1] - at
        else:
            raise BundleError("The file is not an ONNX model: its protobuf structure is broken.")
        if size > end - at:
            raise BundleError("The file is not an ONNX model, or it is cut off.")
        yield Field(key >> 3, wire, start, at, at + size)
        at += size


def number(message: memoryview, field: Field) -> int:
    """The value of a field that is a varint; -1 for any other."""
    return _varint(message, field.begin)[0] if field.wire == _VARINT else -1


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields (field number, payload) of one message; scalars have an empty payload."""
    for field in fields(message):
        whole = slice(field.begin, field.end if field.wire == BYTES else field.begin)
        yield field.number, message[whole]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise BundleError("The file is not an ONNX model, or it is cut off.")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise BundleError("The file is not an ONNX model: a number in it never ends.")
