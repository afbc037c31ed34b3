"""Graphs that ONNX Runtime cannot load or run: one error of ours in one line, and silence."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import variant_named
from mt3_export.weights import Weights
from mt3_runtime.backends.base import FloatArray
from mt3_runtime.backends.ort_common import import_onnxruntime
from mt3_runtime.backends.ort_session import open_session
from mt3_runtime.bundles.bundle import MANIFEST
from mt3_runtime.bundles.tiny_graphs import field, sum_model
from mt3_runtime.errors import BundleError, MT3Error
from mt3_runtime.loading import load_model

ROLES = ("encoder", "decoder")


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def source(request, tmp_path_factory: pytest.TempPathFactory, tiny_weights: Weights) -> Path:
    path = tmp_path_factory.mktemp("graphs") / "tiny"
    export_bundle(
        tiny_weights,
        variant_named("magenta_mt3"),
        path,
        source={"digest": "0" * 64},
        storage=request.param,
        profiles=("cpu", "compat"),
    )
    return path


def _changed(source: Path, target: Path, change: Callable[[bytes], bytes], name: str) -> Path:
    """A copy of a bundle with one graph file changed and the digest made to fit."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    data = change((target / name).read_bytes())
    (target / name).write_bytes(data)
    document = json.loads((target / MANIFEST).read_bytes())
    for graph in document["graphs"]:
        if graph["file"] == name:
            graph |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (target / MANIFEST).write_text(json.dumps(document))
    return target


def _edited(edit: Callable[[ModelProto], object]) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        model = ModelProto.FromString(data)
        edit(model)
        return model.SerializeToString()

    return change


def _run(path: Path, audio: FloatArray, profile: str = "cpu") -> None:
    with load_model(path, device="cpu", threads=1, profile=profile) as model:
        model.transcribe_notes(audio)


def _short_table(model: ModelProto) -> None:
    """Leaves one row of the table of positions: the second step reads beyond it."""
    (table,) = [t for t in model.graph.initializer if t.name == "decoder.position_table"]
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table)[:1], table.name))


def _unknown_operator(model: ModelProto) -> None:
    model.graph.node[3].op_type = "NoSuchOperator"


def _broken_shape(model: ModelProto) -> None:
    model.graph.initializer[0].dims.append(7)


def _dangling_input(model: ModelProto) -> None:
    model.graph.node[5].input[0] = "nothing makes this"


def _future_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 4000


def _text_that_is_none(data: bytes) -> bytes:
    return data.replace(b"NoSuch", b"\xff\xfeSuch").replace(b"Split", b"\xff\xfe\xff\xfe\xff")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "change",
    [
        *map(_edited, (_unknown_operator, _broken_shape, _dangling_input, _future_opset)),
        lambda data: _text_that_is_none(_edited(_unknown_operator)(data)),
        _text_that_is_none,
    ],
)
def test_what_cannot_be_loaded_is_refused_in_silence(
    source: Path, tmp_path: Path, capfd, change: Callable[[bytes], bytes], role: str
) -> None:
    path = _changed(source, tmp_path / "x", change, f"{role}.cpu.onnx")
    with pytest.raises(BundleError, match=rf"cannot load {role}\.cpu\.onnx") as caught:
        load_model(path, device="cpu", threads=1)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("profile", ["cpu", "compat"])
def test_what_fails_while_it_runs_is_refused_in_silence(
    source: Path, tmp_path: Path, capfd, audio: FloatArray, profile: str
) -> None:
    path = _changed(source, tmp_path / "x", _edited(_short_table), f"decoder.{profile}.onnx")
    with pytest.raises(BundleError, match="failed while it ran on the CPU") as caught:
        _run(path, audio, profile)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_encoder_that_fails_while_it_runs_is_refused(
    source: Path, tmp_path: Path, capfd, audio: FloatArray
) -> None:
    def edit(model: ModelProto) -> None:
        sizes = next(node.input[1] for node in model.graph.node if node.op_type == "Reshape")
        (found,) = [t for t in model.graph.initializer if t.name == sizes]
        wrong = np.array([0, 0, 3, 5], np.int64)
        found.CopyFrom(numpy_helper.from_array(wrong, sizes))

    path = _changed(source, tmp_path / "x", _edited(edit), "encoder.compat.onnx")
    with pytest.raises(BundleError):
        _run(path, audio, "compat")
    assert capfd.readouterr() == ("", "")


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_mutated_graphs_run_or_are_refused(
    source: Path, tmp_path: Path, capfd, audio: FloatArray, data: st.DataObject
) -> None:
    role = data.draw(st.sampled_from(ROLES))

    def change(whole: bytes) -> bytes:
        changed = bytearray(whole)
        graph = ModelProto.FromString(whole).graph
        weights = sum(len(tensor.raw_data) for tensor in graph.initializer)
        places = st.integers(0, len(whole) - weights - 1)  # nodes stand before the weights
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(places)] = data.draw(st.integers(0, 255))
        return bytes(changed)

    path = _changed(source, tmp_path / "x", change, f"{role}.cpu.onnx")
    try:
        _run(path, audio[: 3 * 16000])
    except MT3Error as error:
        lines = str(error).count("\n")
        assert lines == 0
    assert capfd.readouterr().out == ""


def _disguised(model: bytes) -> bytes:
    """A model that ONNX Runtime takes for one of its own format: ``ORTM`` at the fifth byte."""
    return field(2, b"\0\0ORTM") + model


def test_another_format_is_not_looked_for() -> None:
    runtime, data = import_onnxruntime(), _disguised(sum_model())
    with pytest.raises(Exception, match="ORT model"):
        runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    session = open_session(runtime, data)
    assert session.run(None, {"x": np.ones(1, np.float32)})[0] == [2.0]


@pytest.mark.parametrize("name", ["encoder.ort", "encoder.onnx.ort"])
def test_another_format_is_not_read_by_name(source: Path, tmp_path: Path, name: str) -> None:
    path = _changed(source, tmp_path / "x", lambda data: data, "encoder.cpu.onnx")
    (path / "encoder.cpu.onnx").rename(path / name)
    text = (path / MANIFEST).read_text().replace('"encoder.cpu.onnx"', f'"{name}"')
    (path / MANIFEST).write_text(text)
    load_model(path, device="cpu", threads=1).warmup()


def test_a_damaged_constant_is_a_damaged_bundle(source: Path, tmp_path: Path) -> None:
    """The parser that exporters use is not asked by the runtime, and its errors stay there."""
    path = _changed(source, tmp_path / "x", lambda data: data + b"\x42\x01\x07", "decoder.cpu.onnx")
    with pytest.raises(BundleError):
        load_model(path, device="cpu", threads=1)
    with pytest.raises(Exception, match="pars"):
        onnx.load(path / "decoder.cpu.onnx")


def test_a_session_plans_memory_unless_it_is_told_not_to():
    runtime, seen = import_onnxruntime(), []

    class Watched:
        SessionOptions = runtime.SessionOptions

        @staticmethod
        def InferenceSession(source, options, **others):  # noqa: N802
            seen.append(options.enable_mem_pattern)
            return runtime.InferenceSession(source, options, **others)

    for plan in (True, False):
        session = open_session(Watched, sum_model(), memory_plan=plan)
        assert session.get_outputs()
    assert seen == [True, False]
