"""Scans ONNX files for external data and malformed messages before a real parser sees them.

The runtime does not depend on the ``onnx`` package, and ONNX Runtime follows references to
external files while it loads.  This module walks the protobuf wire format (varint keys, length
delimited fields; protobuf.dev/programming-guides/encoding) without building anything.

What is found must be what ONNX Runtime's parser finds, and that one is lenient: it cuts keys to 32
bits, merges repeated messages, and skips what it does not know.  So only one spelling of a message
is accepted: fields of onnx.proto with their own encoding, numbers in their shortest form, and
nothing twice that is there once.  Every writer of protobuf spells messages like that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mt3_runtime.errors import BundleError

#: How a field is encoded, if it has a length.
BYTES = 2
_VARINT, _FIXED64, _FIXED32 = 0, 1, 5

#: How scalars are encoded.  ``word`` is a number of 32 bits, of which a parser would cut off more;
#: ``bytes`` are texts, data, and messages that lead to no tensor.
_SCALARS = {
    "bytes": BYTES,
    "int": _VARINT,
    "word": _VARINT,
    "float": _FIXED32,
    "double": _FIXED64,
}
#: The fields of onnx.proto as of IR version 13: what they hold, and their numbers.  What has a
#: ``*`` may be repeated, or, if it is a number, be packed.  They never change once published.
_ONNX = {
    "model": "int 1 5, bytes 2 3 4 6, graph 7, bytes* 8 26, entry* 14, training* 20, function* 25",
    "training": "graph 1 2, bytes* 3 4",
    "function": "bytes 1 8 10 13, bytes* 4 5 6 9 12 14, node* 7, attribute* 11",
    "graph": "node* 1, bytes 2 10, tensor* 5, sparse* 15, bytes* 11 12 13 14 16",
    "node": "bytes 3 4 6 7 8, bytes* 1 2 9 10, attribute* 5",
    "attribute": "bytes 1 4 13 14 21, float 2, int 3, word 20, tensor 5, graph 6, sparse 22, "
    "float* 7, int* 8, bytes* 9 15, tensor* 10, graph* 11, sparse* 23",
    "sparse": "tensor 1 2, int* 3",
    "tensor": "int* 1 5 7 11, word 2 14, bytes 3 8 9 12, float* 4, double* 10, bytes* 6 16, "
    "entry* 13",
    "entry": "bytes 1 2",
}
_MESSAGES = {
    message: {
        int(number): content
        for content, *numbers in map(str.split, text.split(","))
        for number in numbers
    }
    for message, text in _ONNX.items()
}
_MODEL_METADATA = 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_MAX_DEPTH = 16


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
        BundleError: The bytes are not a protobuf message, are spelled in a way that parsers may
            take differently, or nest deeper than any real graph.
    """
    model = memoryview(data)
    external = _has_external(model, "model", 0)
    metadata: dict[str, str] = {}
    for part in fields(model):
        if part.number == _MODEL_METADATA:
            entry = model[part.begin : part.end]
            texts = {f.number: bytes(entry[f.begin : f.end]) for f in fields(entry)}
            key, value = (texts.get(n, b"") for n in (_ENTRY_KEY, _ENTRY_VALUE))
            metadata[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
    return OnnxSummary(metadata, external)


def _has_external(message: memoryview, kind: str, depth: int) -> bool:
    """Whether a tensor in a message lies in another file; all of the message is checked."""
    if depth > _MAX_DEPTH:
        raise BundleError(
            f"The graph nests deeper than {_MAX_DEPTH} levels; no exporter writes that."
        )
    external, seen = False, set[int]()
    for part in fields(message):
        content = _content(kind, part)
        if not content.endswith("*"):
            if part.number in seen:
                raise _strange(f"field {part.number} of a {kind} twice")
            seen.add(part.number)
        child = content.removesuffix("*")
        if child == "word" and number(message, part) >> 31:
            raise _strange(f"a number of more than 32 bits in field {part.number} of a {kind}")
        if child in _MESSAGES:
            external |= _has_external(message[part.begin : part.end], child, depth + 1)
        if kind == "tensor" and part.number == _TENSOR_EXTERNAL_DATA:
            external = True
        if kind == "tensor" and part.number == _TENSOR_DATA_LOCATION:
            external |= number(message, part) != 0
    return external


def _content(kind: str, part: Field) -> str:
    """What a field holds, by its name in the tables."""
    content = _MESSAGES[kind].get(part.number)
    if content is None:
        raise _strange(f"field {part.number} of a {kind}, which onnx.proto does not have")
    wire = _SCALARS.get(content.removesuffix("*"), BYTES)
    packed = content.endswith("*") and part.wire == BYTES
    if part.wire != wire and not packed:
        raise _strange(f"field {part.number} of a {kind} in another encoding than its own")
    return content


def _strange(what: str) -> BundleError:
    return BundleError(
        f"The file is no ONNX model as exporters write it: it has {what}. Export the model again."
    )


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


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number in its shortest form, of at most 64 bits, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise BundleError("The file is not an ONNX model, or it is cut off.")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if (byte == 0 and shift) or value >> 64:
                break
            return value, at
    raise _strange("a number that is longer than it need be")
