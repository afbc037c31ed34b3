"""Runs that begin with the weights of a bundle or of another run."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import variant_named
from mt3_export.weights import PositionTable, Weights
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import BundleNotFoundError, CheckpointError, OptionError
from mt3_runtime.loading import load_model
from mt3_training.runs.checkpointing import Best, RunFolder
from mt3_training.runs.starting_weights import read_start
from mt3_training.shipping.small_model import DEFAULT, digest, write_bundle
from mt3_training.shipping.trained import export_run
from tests.seeded import seeded_weights
from tests.training.synthetic import SHAPE, tiny


@pytest.fixture
def weights() -> Weights:
    return seeded_weights(SHAPE, seed=5)


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
def test_a_bundle_gives_its_tensors_back(tmp_path, weights, storage):
    path = tmp_path / "own.mt3"
    write_bundle(weights, path, origin={"step": "7"}, storage=storage)
    found = read_start(path)
    assert found.weights.shape == SHAPE
    assert Bundle(path).manifest.export_id in found.name
    for name, tensor in weights.tensors.items():
        same = tensor if storage == "fp32" else tensor.astype(np.float16).astype(np.float32)
        stored = found.weights.tensors[name]
        assert np.array_equal(stored, tensor) or np.array_equal(stored, same), name


def test_a_run_gives_its_best_weights(tmp_path, weights):
    folder = RunFolder.prepare(tmp_path / "run", tiny())
    with pytest.raises(CheckpointError, match="train on"):
        read_start(tmp_path / "run")
    folder.save_best(Best(9, 0, 0.5), weights.tensors)
    found = read_start(tmp_path / "run")
    assert digest(found.weights) == digest(weights)
    assert found.name == "run, step 9"


def test_other_models_are_refused(tmp_path, tiny_bundle, weights):
    with pytest.raises(OptionError, match="variant magenta_mt3.*trained here"):
        read_start(tiny_bundle)
    with pytest.raises(BundleNotFoundError, match="no bundle at"):
        read_start(str(tmp_path / "nothing.mt3"))
    other = Weights(weights.shape, weights.tensors, PositionTable(256))
    export_bundle(other, DEFAULT, tmp_path / "other", source={"digest": "0" * 64})
    with pytest.raises(OptionError, match="another kind of network"):
        read_start(tmp_path / "other")
    assert variant_named("magenta_mt3").name != DEFAULT.name


def test_a_bundle_says_its_stem_and_where_it_began(tmp_path, weights):
    config = tiny(stem="bass", start=digest(weights))
    folder = RunFolder.prepare(tmp_path / "run", config, weights.tensors)
    folder.remember(start="default, export id 8c00")
    folder.save_best(Best(9, 0, 0.5), weights.tensors)
    manifest = export_run(folder, tmp_path / "a.mt3")
    assert (manifest.stem, manifest.name) == ("bass", "stem_bass")
    assert manifest.source["start"] == "default, export id 8c00"
    manifest = export_run(folder, tmp_path / "b.mt3", stem="piano", name="mine")
    assert (manifest.stem, manifest.name) == ("piano", "mine")
    plain = RunFolder.prepare(tmp_path / "plain", tiny())
    plain.save_best(Best(9, 0, 0.5), weights.tensors)
    assert export_run(plain, tmp_path / "c.mt3").stem == "other"
    assert Bundle(tmp_path / "a.mt3").manifest.stem == "bass"


def test_models_of_recordings_do_not_claim_our_licence(tmp_path, weights):
    folder = RunFolder.prepare(tmp_path / "run", tiny(stem="bass", index="0" * 64))
    folder.save_best(Best(9, 0, 0.5), weights.tensors)
    rows = '[{"bank": "slakh", "held_out": false, "licence": "CC BY 4.0", "credit": "c"}]'
    (tmp_path / "run" / "sounds.json").write_text(rows)
    manifest = export_run(folder, tmp_path / "a.mt3")
    assert manifest.licence.startswith("that of the recordings")
    assert manifest.source["recordings"] == "slakh (CC BY 4.0; c)"
    assert "sounds" not in manifest.source
    with load_model(tmp_path / "a.mt3", threads=1) as model:
        assert model.info.stem == "bass"
