"""Loads encoder and decoder-step graphs for rewriting: plain weights, extra outputs, stamps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    pass

LOG_PROBS = "LogSoftmax"
"""The operator whose result are the log-probabilities of all tokens, in every decoder graph."""


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turns weights that are stored as fp16 and cast into fp32 ones, in place; returns the model.

    Parameters keep their names, and the casts are gone.
    """
    graph = model.graph
    stored = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT16}
    casts = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in stored
    }
    for name in set(casts.values()):
        values = numpy_helper.to_array(stored[name]).astype(np.float32)
        stored[name].CopyFrom(numpy_helper.from_array(values, name))
    kept = [node for node in graph.node if node.output[0] not in casts]
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = casts.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)
    return model


def exposing(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of a model that also gives out these fp32 tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    there = {value.name for value in copy.graph.output}
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in names
        if name not in there
    )
    return copy


def drop_unused(graph: onnx.GraphProto) -> None:
    """Removes parameters that no node reads."""
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def log_probs_of(decoder: onnx.ModelProto) -> str:
    """The tensor of a decoder graph that holds the log-probabilities of all tokens [N, V]."""
    (found,) = [str(node.output[0]) for node in decoder.graph.node if node.op_type == LOG_PROBS]
    return found


def stamp(model: onnx.ModelProto, key: str, value: str) -> None:
    """Sets one entry of a model's ``metadata_props``."""
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = value
            return
    model.metadata_props.add(key=key, value=value)
