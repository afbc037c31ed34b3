"""Lints exported graphs for promises that the ONNX checker does not know.

Every graph passes here before it is written: a broken promise is a bug of the exporter, found at
export time instead of as garbled notes on a user's machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import onnx

from mt3_export.graphs.graph_builder import IR_VERSIONS

#: Operators whose output may be their input's memory.
_VIEWS = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}


def lint(model: onnx.ModelProto, *, traced: bool = False) -> list[str]:
    """Checks a graph.

    Args:
        model: What was built.
        traced: A framework's converter wrote it.  What reads a ``past`` tensor then need not be one
            node, but still has to be done before its ``present`` is written.

    Returns:
        One sentence per broken promise; empty for a sound graph.  The promises: every ``past``
        tensor is read by exactly one node, which also writes its ``present`` (so both may share a
        buffer); no tensor lies outside the file; inputs are all used; names are unique; opset and
        IR version belong together.
    """
    graph = model.graph
    return [
        *(_traced_cache_faults(graph) if traced else _cache_faults(graph)),
        *_name_faults(graph),
        *_version_faults(model),
        *(
            f"tensor {tensor.name} lies outside the file"
            for part in _nested(graph)
            for tensor in part.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        ),
    ]


def _cache_faults(graph: onnx.GraphProto) -> list[str]:
    faults = []
    for past, present in _shared(graph):
        readers = [node for node in graph.node if past in node.input]
        if len(readers) != 1:
            faults.append(f"{past} is read by {len(readers)} nodes instead of one")
        elif present not in readers[0].output:
            faults.append(f"the node that reads {past} does not write {present}")
    return faults


def _shared(graph: onnx.GraphProto) -> list[tuple[str, str]]:
    """Inputs and outputs that may be one buffer: self caches, and cross caches given out again."""
    names = [value.name for value in graph.input]
    pairs = [(n, n.replace("past_", "present_", 1)) for n in names if n.startswith("past_")]
    given = {value.name for value in graph.output}
    return pairs + [(n, f"present_{n}") for n in names if f"present_{n}" in given]


def _traced_cache_faults(graph: onnx.GraphProto) -> list[str]:
    writers = {name: node for node in graph.node for name in node.output if name}
    faults = []
    for past in (value.name for value in graph.input if value.name.startswith("past_")):
        present = past.replace("past_", "present_", 1)
        before, views = _needed(present, writers), {past}
        for node in graph.node:
            if node.op_type == "Shape":  # reads no memory
                continue
            if node.op_type in _VIEWS and node.input[0] in views:
                views.update(node.output)
            elif views.intersection(node.input) and not before.intersection(node.output):
                reader = f"{node.op_type} {node.name}".strip()
                faults.append(f"{reader} reads {past}, and {present} does not wait for it")
    return faults


def _needed(name: str, writers: Mapping[str, onnx.NodeProto]) -> set[str]:
    """All tensors that are computed before this one, and itself."""
    needed, open_ = {name}, [name]
    while open_:
        node = writers.get(open_.pop())
        fresh = set(node.input) - needed if node else set()
        needed |= fresh
        open_ += fresh
    return needed


def _name_faults(graph: onnx.GraphProto) -> list[str]:
    parts = list(_nested(graph))  # a body sees, and may not repeat, the names around it
    nodes = [node for part in parts for node in part.node]
    parameters = [tensor for part in parts for tensor in part.initializer]
    written = [name for node in nodes for name in node.output if name]
    written += [tensor.name for tensor in parameters]
    written += [value.name for part in parts for value in part.input]
    read = {name for node in nodes for name in node.input}
    twice = [name for name, count in Counter(written).items() if count > 1]
    return [
        *(f"the name {name} is used twice" for name in twice),
        *(f"input {value.name} is not used" for value in graph.input if value.name not in read),
        *(
            f"output {value.name} is not written"
            for part in parts
            for value in part.output
            if value.name not in written
        ),
        *(
            f"parameter {tensor.name} is not used"
            for tensor in parameters
            if tensor.name not in read
        ),
    ]


def _nested(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nested(attribute.g)


def _version_faults(model: onnx.ModelProto) -> list[str]:
    opset = next((item.version for item in model.opset_import if item.domain == ""), 0)
    if IR_VERSIONS.get(opset) != model.ir_version:
        return [f"IR version {model.ir_version} does not go with opset {opset}"]
    return []
