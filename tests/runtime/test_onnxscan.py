"""The protobuf walk against what the onnx package's parser reads from the same bytes."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

from mt3_runtime.bundles.onnx_scan import _MESSAGES, fields, scan
from mt3_runtime.bundles.tiny_graphs import sum_model
from mt3_runtime.errors import BundleError
from tests.protobuf_spellings import ODD, delimited, spelled, varint

GRAPH = 7 << 3 | 2
PLACES = (
    *("initializer", "attribute", "attribute list", "subgraph", "subgraph list", "sparse"),
    *("sparse indices", "sparse attribute", "function", "function attribute", "training"),
)


def _outside(name: str = "x") -> TensorProto:
    tensor = TensorProto(name=name, data_type=1, dims=[3])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    return tensor


def _attribute(where: str, tensor: TensorProto) -> AttributeProto:
    """An attribute that holds a tensor in one of the possible places."""
    branch = helper.make_graph([], "branch", [], [], [tensor])
    if where == "attribute list":
        return AttributeProto(name="a", type=AttributeProto.TENSORS, tensors=[tensor])
    if where == "subgraph":
        return helper.make_attribute("a", branch)
    if where == "subgraph list":
        return AttributeProto(name="a", type=AttributeProto.GRAPHS, graphs=[branch])
    if where == "sparse attribute":
        sparse = onnx.SparseTensorProto(values=tensor, dims=[3])
        return AttributeProto(name="a", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
    return helper.make_attribute("a", tensor)


def _model(where: str = "", tensor: TensorProto | None = None) -> ModelProto:
    """A small model; ``where`` puts a tensor in one of the places there are for them."""
    inside = numpy_helper.from_array(np.ones(3, np.float32), "w")
    hidden = _outside() if tensor is None else tensor
    held = _attribute(where, hidden if where else inside)
    nodes = [helper.make_node("Constant", [], ["c"], value=inside)]
    graph = helper.make_graph(nodes, "g", [], [], [inside] + [hidden] * (where == "initializer"))
    if where == "sparse":
        graph.sparse_initializer.add().values.CopyFrom(hidden)
    if where == "sparse indices":
        graph.sparse_initializer.add().indices.CopyFrom(hidden)
    model = helper.make_model(graph)
    if where == "function":
        node = onnx.NodeProto(op_type="Constant", output=["c"], attribute=[held])
        model.functions.append(helper.make_function("d", "f", [], ["c"], [node], [], ["value"]))
    elif where == "function attribute":
        model.functions.append(helper.make_function("d", "f", [], ["c"], [], [], ["value"]))
        model.functions[0].attribute_proto.append(held)
    elif where == "training":
        model.training_info.add().algorithm.node.add(op_type="X").attribute.append(held)
    elif "attribute" in where or "subgraph" in where or not where:
        graph_node = model.graph.node.add(op_type="If", output=["y"])
        graph_node.attribute.append(held)
    helper.set_model_props(model, {"mt3.export_id": "abc", "other": "value"})
    return model


def _messages(message: Any) -> Iterator[Any]:
    """A message and all that are in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                yield from _messages(item)


def _refers(model: ModelProto) -> bool:
    """Whether the parser finds a tensor in another file."""
    return any(
        isinstance(part, TensorProto)
        and (part.data_location != TensorProto.DEFAULT or len(part.external_data) > 0)
        for part in _messages(model)
    )


def _parsed(data: bytes) -> ModelProto | None:
    """What the onnx package's parser reads; None if it refuses."""
    try:
        return ModelProto.FromString(data)
    except DecodeError:
        return None


def test_metadata_is_found() -> None:
    summary = scan(_model().SerializeToString())
    assert summary.metadata == {"mt3.export_id": "abc", "other": "value"}
    assert not summary.external_data


@pytest.mark.parametrize("where", PLACES)
def test_external_data_is_found(where: str) -> None:
    model = _model(where)
    assert _refers(model)
    assert scan(model.SerializeToString()).external_data


@pytest.mark.parametrize("where", PLACES)
def test_a_location_alone_is_found(where: str) -> None:
    """An entry without the flag, and the flag without an entry."""
    for change in ("data_location", "external_data"):
        tensor = _outside()
        tensor.ClearField(change)
        assert scan(_model(where, tensor).SerializeToString()).external_data


def test_data_that_is_said_to_be_inside_is_inside() -> None:
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "w")
    tensor.data_location = TensorProto.DEFAULT
    assert not scan(_model("initializer", tensor).SerializeToString()).external_data


@settings(max_examples=400, deadline=None)
@given(
    where=st.sampled_from(["", *PLACES]),
    oddity=st.sampled_from([None, *ODD]),
    share=st.sampled_from([0.05, 0.3, 1.0]),
    seed=st.integers(0, 2**32),
)
@example(where="initializer", oddity="key with bit 32", share=0.3, seed=1)
def test_nothing_the_parser_finds_is_missed(
    where: str, oddity: str | None, share: float, seed: int
) -> None:
    data = spelled(_model(where), random.Random(seed), oddity, share)
    try:
        summary = scan(data)
    except BundleError:
        assert oddity is not None
        return
    model = _parsed(data)
    if model is None:
        return
    assert summary.external_data == _refers(model)
    assert summary.metadata == {entry.key: entry.value for entry in model.metadata_props}
    for part in _messages(model):
        looked_at = not isinstance(part, onnx.ValueInfoProto | onnx.OperatorSetIdProto)
        assert not (looked_at and len(UnknownFieldSet(part)))


@pytest.mark.parametrize("oddity", ["key with bit 32", "key with bit 34", "in two parts", "twice"])
@pytest.mark.parametrize("where", ["initializer", "subgraph", "function"])
def test_a_graph_under_a_strange_key_is_refused(where: str, oddity: str) -> None:
    data = spelled(_model(where), random.Random(0), oddity, 1.0)
    with pytest.raises(BundleError, match="as exporters write it"):
        scan(data)


def _under(key: bytes, model: bytes) -> bytes:
    """A model with its graph under another key."""
    parts = [model[part.start : part.end] for part in fields(memoryview(model))]
    graph = next(part for part in parts if part[0] == GRAPH)
    assert varint(len(graph) - 2) == graph[1:2]
    return b"".join(part for part in parts if part is not graph) + key + graph[1:]


@pytest.mark.parametrize(
    "key",
    [
        varint(GRAPH | 1 << 32),
        varint(GRAPH | 1 << 34),
        varint(GRAPH, longer=1),
        varint(GRAPH, longer=3),
    ],
)
def test_keys_that_onnx_runtime_cuts_are_refused(key: bytes) -> None:
    """Its parser is more lenient than that of the onnx package, so it is asked itself."""
    data = _under(key, sum_model())
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones(1, np.float32)})[0] == [2.0], "it reads a graph"
    with pytest.raises(BundleError, match="onnx.proto does not have|longer than it need be"):
        scan(data)


def test_a_graph_in_two_parts_is_refused() -> None:
    """Each is harmless, and together they are a tensor elsewhere: the parser merges them."""
    data = _model().SerializeToString()
    more = GraphProto(initializer=[_outside()]).SerializeToString()
    merged = data + delimited(GRAPH, more)
    assert _refers(ModelProto.FromString(merged))
    with pytest.raises(BundleError, match="field 7 of a model twice"):
        scan(merged)


@pytest.mark.parametrize("location", [1, 1 + (1 << 32), 1 << 32, 2, (1 << 64) - 1, 1 << 31])
def test_locations_beyond_their_width_are_refused(location: int) -> None:
    tensor = varint(8 << 3 | 2) + b"\x01x" + varint(14 << 3) + varint(location)
    data = delimited(GRAPH, delimited(5 << 3 | 2, tensor))
    if location >> 31:
        with pytest.raises(BundleError, match="more than 32 bits"):
            scan(data)
    else:
        assert scan(data).external_data


@pytest.mark.parametrize(
    "part",
    [
        varint(20 << 3 | 0) + b"\x01",  # training_info as a number
        varint(7 << 3 | 3) + varint(7 << 3 | 4),  # a group
        varint(2) + b"\x00",  # field 0
        varint(27 << 3 | 2) + b"\x00",  # a field of a later onnx.proto
        delimited((1 << 29) - 1 << 3 | 2, b"x"),
        varint(1 << 3) + b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02",  # 65 bits
        varint(1 << 3) + b"\x8a\x00",
        varint(6 << 3 | 2) + b"\x80\x00",
    ],
)
def test_strange_parts_are_refused(part: bytes) -> None:
    data = _model().SerializeToString()
    for whole in (data + part, part + data):
        with pytest.raises(BundleError):
            scan(whole)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_harmless(data: bytes) -> None:
    _compare(data)


@settings(max_examples=300, deadline=None)
@given(
    where=st.sampled_from(PLACES),
    at=st.integers(0, 10_000),
    byte=st.integers(0, 255),
    insert=st.booleans(),
)
def test_changed_bytes_hide_nothing(where: str, at: int, byte: int, insert: bool) -> None:
    data = bytearray(_model(where).SerializeToString())
    at %= len(data)
    data[at : at + (not insert)] = bytes([byte])
    _compare(bytes(data))


def _compare(data: bytes) -> None:
    """What is not refused is what the parser finds, if it finds anything."""
    with contextlib.suppress(BundleError):
        summary, model = scan(data), _parsed(data)
        assert model is None or summary.external_data == _refers(model)


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_cut_file_is_refused(cut: int) -> None:
    with pytest.raises(BundleError):
        scan(_model().SerializeToString()[:-cut])


def test_endless_nesting_is_refused() -> None:
    data = b""
    for key in itertools.chain.from_iterable([(0x32, 0x2A, 0x0A)] * 60):
        data = bytes([key]) + varint(len(data)) + data  # attribute.g -> graph.node -> ...
    with pytest.raises(BundleError, match="nests deeper"):
        scan(bytes([0x3A]) + varint(len(data)) + data)


def test_lists_may_be_packed_or_not() -> None:
    """Writers differ in that, and it hides nothing."""
    tensor = TensorProto(name="w", data_type=1, dims=[2], float_data=[1.0, 2.0])
    data = spelled(_model("initializer", tensor), random.Random(0), "packed", 1.0)
    assert ModelProto.FromString(data).graph.initializer[1].dims == [2]
    assert not scan(data).external_data


def test_the_tables_are_those_of_onnx_proto() -> None:
    """Every field, and every message on the way to a tensor, is known to the scanner."""
    tables = {
        "model": ModelProto, "graph": GraphProto, "node": onnx.NodeProto, "tensor": TensorProto,
        "attribute": AttributeProto, "sparse": onnx.SparseTensorProto,
        "function": onnx.FunctionProto, "training": onnx.TrainingInfoProto,
        "entry": onnx.StringStringEntryProto,
    }  # fmt: skip
    names = {kind.DESCRIPTOR.full_name: name for name, kind in tables.items()}
    leading = _leading_to_tensors(ModelProto.DESCRIPTOR)
    assert leading <= set(names)
    for name, kind in tables.items():
        for field in kind.DESCRIPTOR.fields:
            content = _MESSAGES[name][field.number]
            assert content.endswith("*") == field.is_repeated
            held = field.message_type and names.get(field.message_type.full_name)
            if held and held != "entry":
                assert content.removesuffix("*") == held


def _leading_to_tensors(start: Any) -> set[str]:
    """Full names of the messages from which tensors can be reached."""
    children: dict[str, set[str]] = {}
    waiting = [start]
    while waiting:
        one = waiting.pop()
        if one.full_name not in children:
            held = [f.message_type for f in one.fields if f.message_type is not None]
            children[one.full_name] = {kind.full_name for kind in held}
            waiting += held
    found = {TensorProto.DESCRIPTOR.full_name}
    while more := {name for name, held in children.items() if held & found} - found:
        found |= more
    return found
