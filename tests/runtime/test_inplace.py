"""Weights that are read where they lie: the same model, and nothing else of it in memory."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import variant_named
from mt3_export.weights import Weights
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.bundles.weights_in_place import LEAST, referring
from mt3_runtime.errors import BundleError
from mt3_runtime.loading import load_model


@pytest.fixture(scope="module", params=["half", "half.mt3"])
def half(request, tmp_path_factory: pytest.TempPathFactory, tiny_weights: Weights) -> Path:
    path = tmp_path_factory.mktemp("bundles") / request.param
    export_bundle(
        tiny_weights,
        variant_named("magenta_mt3"),
        path,
        source={"layout": "seeded", "digest": "0" * 64},
        storage="fp16",
    )
    return path


def test_references_lead_to_the_weights(half: Path):
    bundle = Bundle(half)
    for graph in bundle.manifest.graphs:
        source = bundle.verified(graph)
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        whole = onnx.load_model_from_string(data)
        placed = bundle.in_place(graph)
        assert placed is not None
        assert len(placed.model) < 0.3 * len(data)
        made = onnx.load_model_from_string(placed.model)
        assert made.metadata_props == whole.metadata_props
        assert made.opset_import == whole.opset_import
        assert made.graph.node == whole.graph.node
        moved = 0
        for one, two in zip(whole.graph.initializer, made.graph.initializer, strict=True):
            assert (one.name, one.data_type, one.dims) == (two.name, two.data_type, two.dims)
            if one.data_type != TensorProto.FLOAT16 or len(one.raw_data) < LEAST:
                assert one == two
                continue
            moved += 1
            onnx.external_data_helper.load_external_data_for_tensor(two, placed.folder)
            assert np.array_equal(numpy_helper.to_array(one), numpy_helper.to_array(two))
        assert moved


def test_the_model_is_the_same(half: Path, audio, monkeypatch):
    with load_model(half, threads=1) as model:
        here = model.transcribe_notes(audio)
    monkeypatch.setattr(Bundle, "in_place", lambda *_: None)
    with load_model(half, threads=1) as model:
        assert model.transcribe_notes(audio).token_digest == here.token_digest
    assert here.notes


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_stays_mapped(half: Path):
    with load_model(half, threads=1) as model:
        model.warmup()
        maps = Path("/proc/self/maps").read_text()
        assert str(half) not in maps


def test_exact_bundles_are_read_as_before(tiny_bundle: Path):
    bundle = Bundle(tiny_bundle)
    assert bundle.in_place(bundle.graph("decoder", "cpu")) is None


def test_digests_are_still_checked(half: Path, tmp_path: Path):
    path = tmp_path / half.name
    (shutil.copytree if half.is_dir() else shutil.copy)(half, path)
    changed = path / "decoder.cpu.onnx" if path.is_dir() else path
    data = bytearray(changed.read_bytes())
    data[-len(data) // 3] ^= 1
    changed.write_bytes(data)
    with pytest.raises(BundleError):
        load_model(path)


def test_what_refers_to_nothing_is_copied():
    tensor = numpy_helper.from_array(np.ones(5, np.float16), "small")
    typed = TensorProto(name="typed", data_type=TensorProto.FLOAT16, dims=[4], int32_data=[1] * 4)
    graph = onnx.helper.make_graph([], "g", [], [], [tensor, typed])
    data = onnx.helper.make_model(graph).SerializeToString()
    assert referring(memoryview(data), "file") == data
