"""The protobuf walk against files the onnx package wrote, and against garbage."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mt3_runtime.bundles.integrity import scan
from mt3_runtime.errors import BundleError


def _model(*, where: str = "") -> onnx.ModelProto:
    """A small model; ``where`` hides a reference to another file in one of the possible places."""
    inside = numpy_helper.from_array(np.ones(3, np.float32), "w")
    outside = TensorProto(name="x", data_type=1, dims=[3])
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../secret")
    branch = helper.make_graph([], "branch", [], [], [outside if where == "subgraph" else inside])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=outside if where == "attribute" else inside),
        helper.make_node("If", ["b"], ["y"], then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(nodes, "g", [], [], [inside] + [outside] * (where == "initializer"))
    if where == "sparse":
        graph.sparse_initializer.add().values.CopyFrom(outside)
    model = helper.make_model(graph)
    constant = helper.make_node("Constant", [], ["c"], value=outside)
    if where == "function":
        function = helper.make_function("d", "f", [], ["c"], [constant], [], ["value"])
        model.functions.append(function)
    if where == "function attribute":
        function = helper.make_function("d", "f", [], ["c"], [], [], ["value"])
        function.attribute_proto.extend(constant.attribute)
        model.functions.append(function)
    if where == "training":
        model.training_info.add().algorithm.node.append(constant)
    helper.set_model_props(model, {"mt3.export_id": "abc", "other": "value"})
    return model


def test_metadata_is_found() -> None:
    summary = scan(_model().SerializeToString())
    assert summary.metadata == {"mt3.export_id": "abc", "other": "value"}
    assert not summary.external_data


@pytest.mark.parametrize(
    "where",
    [
        *("initializer", "attribute", "subgraph", "sparse"),
        *("function", "function attribute", "training"),
    ],
)
def test_external_data_is_found(where: str) -> None:
    assert scan(_model(where=where).SerializeToString()).external_data


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read_as_protobuf_reads_it(data: bytes) -> None:
    try:
        found = scan(data)
    except BundleError:
        return
    with contextlib.suppress(DecodeError):
        model = onnx.ModelProto.FromString(data)
        assert found.metadata == {item.key: item.value for item in model.metadata_props}


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_cut_file_is_refused(cut: int) -> None:
    with pytest.raises(BundleError):
        scan(_model().SerializeToString()[:-cut])


def test_endless_nesting_is_refused() -> None:
    data = b""
    for _ in range(60):  # attribute.g -> graph.node -> node.attribute -> ...
        for key in (0x32, 0x2A, 0x0A):
            data = bytes([key]) + _varint(len(data)) + data
    with pytest.raises(BundleError, match="nests deeper"):
        scan(bytes([0x3A]) + _varint(len(data)) + data)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
