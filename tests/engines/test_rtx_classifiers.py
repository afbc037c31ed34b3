"""Graphs of taggers and genre classifiers with the true compiler of TensorRT for RTX.

The profile ``compat`` is what engines are built of: plain operators, static shapes.
"""

from __future__ import annotations

import json

import pytest

from mt3_export.classifiers.classifier_writer import export_classifier
from tests import needs
from tests.classifier_networks import ast_folder, wave_folder
from tests.conftest import _beside


def compiled(graph, length):
    beside = _beside(needs.python_of("rtx"))
    return json.loads(beside("-m", "tests.engines.rtx_graphs", str(graph), str(length)))


@pytest.mark.parametrize("stride", [10, 16])
def test_a_spectrogram_transformer_is_built(tmp_path, stride):
    export_classifier(
        ast_folder(tmp_path / "a", stride), tmp_path / "b", name="a", profiles=("compat",)
    )
    (found,) = compiled(tmp_path / "b" / "tagger.compat.onnx", 1)
    assert found["errors"] == []
    assert found["size"] > 0


@pytest.mark.parametrize("family", ["hubert", "wav2vec2"])
def test_a_wave_network_is_built_for_a_length(tmp_path, family):
    source = wave_folder(tmp_path / "a", family)
    export_classifier(source, tmp_path / "b", name="a", profiles=("compat",))
    (found,) = compiled(tmp_path / "b" / "genre.compat.onnx", 16000)
    assert found["errors"] == []
    assert found["size"] > 0


def test_the_8_bit_network_is_built(tmp_path, shared):
    models = shared / "models"
    export_classifier(
        models / "yamnet.tflite",
        tmp_path / "b",
        name="a",
        profiles=("compat",),
        labels=models / "yamnet_class_map.csv",
    )
    (found,) = compiled(tmp_path / "b" / "tagger.compat.onnx", 1)
    assert found["errors"] == []
    assert found["size"] > 0
