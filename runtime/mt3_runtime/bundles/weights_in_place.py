"""Maps fp16 weights of a bundle's file into memory, so that ONNX Runtime reads them in place.

A graph with fp16-stored weights casts them to fp32, which ONNX Runtime does once, while it loads.
But it keeps what it parsed until it is done, so that for a moment both are there: 50 MB more than
an fp32 graph of twice the size needs.  `referring` makes a copy of such a graph, without the
weights, that says where in the file they are; ONNX Runtime then maps one after the other, casts it
and forgets it.  Nothing of the file stays mapped, as nothing but the casts reads it.

The references are made here, to a file whose digest was checked; those in a bundle are refused
(`mt3_runtime.bundles.bundle`).
"""

from __future__ import annotations

from mt3_runtime.bundles.onnx_scan import BYTES, fields, number
from mt3_runtime.bundles.tiny_graphs import field, number_field, text

FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime's session entry: the folder that references are relative to."""

LEAST = 4096
"""Bytes; smaller weights stay in the graph."""

# Field numbers and values of onnx.proto.
_GRAPH, _INITIALIZER = 7, 5
_DATA_TYPE, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 2, 9, 13, 14
_FLOAT16, _EXTERNAL = 10, 1


def referring(model: memoryview, file: str, offset: int = 0) -> bytes:
    """A copy of a model whose large fp16 parameters are references.

    Args:
        model: A serialised ``ModelProto``.
        file: Name of the file that holds it.
        offset: Where in the file it begins.
    """
    return b"".join(
        field(_GRAPH, _graph(model[part.begin : part.end], file, offset + part.begin))
        if part.number == _GRAPH
        else bytes(model[part.start : part.end])
        for part in fields(model)
    )


def _graph(graph: memoryview, file: str, offset: int) -> bytes:
    return b"".join(
        field(_INITIALIZER, _tensor(graph[part.begin : part.end], file, offset + part.begin))
        if part.number == _INITIALIZER
        else bytes(graph[part.start : part.end])
        for part in fields(graph)
    )


def _tensor(tensor: memoryview, file: str, offset: int) -> bytes:
    parts = list(fields(tensor))
    kinds = [number(tensor, part) for part in parts if part.number == _DATA_TYPE]
    raw = [part for part in parts if part.number == _RAW_DATA and part.wire == BYTES]
    if kinds != [_FLOAT16] or len(raw) != 1 or raw[0].end - raw[0].begin < LEAST:
        return bytes(tensor)
    (data,) = raw
    entries = {"location": file, "offset": offset + data.begin, "length": data.end - data.begin}
    kept = [bytes(tensor[part.start : part.end]) for part in parts if part is not data]
    references = [
        field(_EXTERNAL_DATA, text(1, key) + text(2, str(value))) for key, value in entries.items()
    ]
    return b"".join([*kept, *references, number_field(_DATA_LOCATION, _EXTERNAL)])
