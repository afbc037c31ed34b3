"""A run's weights as a bundle, and that bundle in the package."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from mt3_export.weights import T5Shape
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import CheckpointError, OptionError, OutputError
from mt3_runtime.notes.confidence import Calibration, Weights
from mt3_training.runs.checkpointing import Best, Position, RunFolder, State
from mt3_training.runs.config import PRESETS
from mt3_training.shipping import ship as shipping
from mt3_training.shipping.ship import ship
from mt3_training.shipping.trained import export_run, read_confidence
from tests.seeded import seeded_weights
from tests.trees import snapshot

SHAPE = T5Shape(d_model=64, heads=1, head_dim=64, d_ff=32, encoder_layers=1, decoder_layers=1)
FIT = Calibration(Weights(0.1, 0.2, 0.3, 0.4, 0.5), Weights(1.0, 0.0, 2.0, 0.0, 0.0))


@pytest.fixture
def run(tmp_path):
    """A run with weights, sounds and music."""
    config = dataclasses.replace(PRESETS["tiny"], shape=SHAPE, corpus=0.1)
    folder = RunFolder.prepare(tmp_path / "run", config)
    folder.save_best(Best(7, 2, 0.5), seeded_weights(SHAPE, seed=3).tensors)
    banks = [
        {"bank": "a", "held_out": False, "licence": "MIT", "credit": "A"},
        {"bank": "a", "held_out": False, "licence": "MIT", "credit": "A"},
        {"bank": "b", "held_out": True, "licence": "GPL", "credit": "B"},
    ]
    (folder.path / "sounds.json").write_text(json.dumps(banks))
    return folder


def test_a_bundle_says_whose_sounds_and_music_it_knows(run, tmp_path):
    manifest = export_run(run, tmp_path / "bundle", confidence=FIT)
    assert manifest.source["sounds"] == "a (MIT; A)"
    assert manifest.source["music"].startswith("Freedoom (BSD-3-Clause")
    assert manifest.source["step"] == "7"
    assert manifest.confidence == FIT
    assert Bundle(tmp_path / "bundle").manifest == manifest
    assert export_run(run, tmp_path / "other").confidence is None


def test_the_weights_where_a_run_stands(run, tmp_path):
    arrays = {f"average.{name}": array for name, array in seeded_weights(SHAPE).tensors.items()}
    with pytest.raises(CheckpointError, match="no saved state yet"):
        export_run(run, tmp_path / "bundle", which="last")
    run.save(State(Position(step=9), arrays, b""))
    last, best = (export_run(run, tmp_path / w, which=w).source for w in ("last", "best"))
    assert last["step"] == "9"
    assert "held_out_onset_f1" not in last
    assert last["digest"] != best["digest"]
    (run.path / "best.json").unlink()
    with pytest.raises(CheckpointError, match="no judged weights yet"):
        export_run(run, tmp_path / "best")


def test_what_is_shipped_is_listed_by_digest_and_always_the_same(run, tmp_path):
    for name in ("one", "two", "two"):  # the last time over what is there
        bundle = ship(run, tmp_path / name)
        assert bundle == tmp_path / name / "default"
    files = sorted(path for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 4
    for path in files:
        twin = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == twin.read_bytes()
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"default", "default.files.json"}
    rows = json.loads((tmp_path / "one" / "default.files.json").read_text())["files"]
    assert [row["path"] for row in rows] == ["decoder.cpu.onnx", "encoder.cpu.onnx", "bundle.json"]
    for row in rows:
        data = (tmp_path / "one" / "default" / row["path"]).read_bytes()
        assert (row["size"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_bundle_that_is_too_large_is_not_shipped(run, tmp_path, monkeypatch):
    bundle = ship(run, tmp_path / "data")
    before = (bundle / "bundle.json").read_bytes()
    monkeypatch.setattr(shipping, "LIMIT", 1000)
    with pytest.raises(OutputError, match="1000 are the most"):
        ship(run, tmp_path / "data", confidence=FIT)
    assert (bundle / "bundle.json").read_bytes() == before
    assert len(list((tmp_path / "data").iterdir())) == 2


def test_the_command(run, tmp_path, capsys):
    fit = tmp_path / "fit.json"
    fit.write_text(json.dumps({"format": "mt3-runtime.confidence", "fitted": FIT.to_dict()}))
    words = [str(run.path), "--into", str(tmp_path / "data"), "--confidence", str(fit)]
    (tmp_path / "data").mkdir()
    assert shipping.main(words) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'data' / 'default'}\n"
    assert Bundle(tmp_path / "data" / "default").manifest.confidence == FIT
    assert shipping.main([str(tmp_path / "nowhere")]) == 1
    assert "no folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "other"}', '{"format": "mt3-runtime.confidence"}',
             '{"format": "mt3-runtime.confidence", "fitted": {"pitched": {}}}']
)  # fmt: skip
def test_a_file_without_a_fit_is_refused(tmp_path, text):
    (tmp_path / "fit.json").write_text(text)
    with pytest.raises(OptionError, match=r"holds no fit|is of the format"):
        read_confidence(tmp_path / "fit.json")
    with pytest.raises(OptionError, match="holds no fit"):
        read_confidence(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("default/notes.txt", "mine"),
        ("default/bundle.json", '{"name": "webapp"}'),
        ("default.files.json", '{"files": "those of a wedding"}'),
        ("default.files.json", "no JSON"),
        ("default.files.json", '{"files": [{"path": "a"}]}'),
    ],
)
def test_nothing_else_is_replaced_by_what_is_shipped(run, tmp_path, name, content):
    ship(run, tmp_path / "data")
    (tmp_path / "data" / name).write_text(content)
    before = snapshot(tmp_path / "data")
    with pytest.raises(OutputError, match=r"default"):
        ship(run, tmp_path / "data", confidence=FIT)
    assert snapshot(tmp_path / "data") == before


def test_a_folder_that_is_called_as_ours_was_stays(run, tmp_path):
    (tmp_path / "data" / ".default.part").mkdir(parents=True)
    (tmp_path / "data" / ".default.part" / "mine.txt").write_text("mine")
    ship(run, tmp_path / "data")
    assert (tmp_path / "data" / ".default.part" / "mine.txt").read_text() == "mine"
