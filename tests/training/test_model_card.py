"""The page about the default model: all figures from files, nothing left open."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from mt3_export.weights import T5Shape
from mt3_training.examples.tables import SCORE_COLUMNS, SCORES, Table
from mt3_training.runs.checkpointing import Best, RunFolder
from mt3_training.runs.config import PRESETS
from mt3_training.shipping.model_card import main
from mt3_training.shipping.trained import export_run
from tests import needs
from tests.seeded import seeded_weights
from tests.trees import snapshot

needs.package("matplotlib")

SHAPE = T5Shape(d_model=64, heads=1, head_dim=64, d_ff=32, encoder_layers=1, decoder_layers=1)


def answers(seconds):
    return [{"seconds": s, "peak_rss": 100 << 20, "digest": "d"} for s in seconds]


SPEED = {
    "machine": {"cpu": "A CPU"},
    "seconds": 180.0,
    "threads": 2,
    "load_before": 0.1,
    "bytes": {"default": 15_000_000, "magenta_mt3": 186_000_000},
    "rounds": {"default": answers([3.0, 1.0, 2.0]), "magenta_mt3": answers([9.0, 6.0, 5.0])},
    "first": {"default": answers([1.0]), "magenta_mt3": answers([1.5])},
}
BOARD = {
    "format": "mt3-runtime.scoreboard",
    "version": 1,
    "versions": {},
    "models": [{"label": "default"}, {"label": "magenta_mt3"}],
    "sets": [
        {"name": "e2", "sounds": "font", "digest": "a" * 64, "recordings": 1, "kinds": ["piano"]}
    ],
    "rows": [
        {
            "set": "e2",
            "kind": "all",
            "model": model,
            "labels": 9,
            "metrics": {"onset": {"value": value, "low": None, "high": None}},
        }
        for model, value in (("default", 0.4321), ("magenta_mt3", 0.8))
    ],
}


@pytest.fixture
def run(tmp_path):
    config = dataclasses.replace(PRESETS["small"], shape=SHAPE)
    folder = RunFolder.prepare(tmp_path / "run", config)
    folder.save_best(Best(500, 2, 0.5), seeded_weights(SHAPE).tensors)
    bank = {
        "bank": "a",
        "held_out": False,
        "licence": "MIT",
        "credit": "Ann",
        "files": {"a.sf2": "0"},
    }
    other = {"bank": "b", "held_out": True, "licence": "GPL", "credit": "Bob", "files": {}}
    (folder.path / "sounds.json").write_text(json.dumps([bank, other]))
    row = dict.fromkeys(SCORE_COLUMNS, "0.5") | {"time": "now", "stage": "solos"}
    table = Table(folder.path / SCORES, SCORE_COLUMNS)
    for step, examples in ((500, 32000), (1000, 64000)):
        table.append({**row, "step": step, "examples": examples, "cpu_seconds": 7200})
    export_run(folder, tmp_path / "bundle")
    return folder


@pytest.fixture
def words(run, tmp_path):
    for name, content in (("board", BOARD), ("speed", SPEED)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "docs").mkdir()
    return [
        *(str(run.path), "--model", str(tmp_path / "bundle"), "-o", str(tmp_path / "docs")),
        *("--board", str(tmp_path / "board.json"), "--speed", str(tmp_path / "speed.json")),
    ]


def test_the_page_says_what_was_measured(words, tmp_path, capsys):
    (tmp_path / "notes.md").write_text("It was made on a **Friday**.\n")
    assert main([*words, "--notes", str(tmp_path / "notes.md")]) == 0
    page = tmp_path / "docs" / "default-model.md"
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text()
    for fact in (
        "step 500, 32,000 examples, 2.0 hours of one CPU core",
        "| e2: font | 9 | 0.43 / 0.80 | - |",
        "| `default` | 15.0 MB | 2.0 s | 90 | 1.0 s | 100 MiB |",
        "| `a.sf2` | MIT | Ann |",
        "Freedoom (BSD-3-Clause",
        "made on a **Friday**.",
        "grid of 50 ms",
        "confidence | not fitted",
    ):
        assert fact in text
    assert "Bob" not in text
    assert not re.search(r"[{}]|None|nan", text)
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) == 2
    for name in pictures:
        assert "<title>" in (tmp_path / "docs" / name).read_text()


def test_a_bundle_of_another_run_is_refused(words, run, capsys):
    (run.path / SCORES).unlink()
    assert main(words) == 1
    assert "step 500, which" in capsys.readouterr().err


def test_files_of_another_kind_are_refused(words, tmp_path, capsys):
    (tmp_path / "speed.json").write_text("{}")
    assert main(words) == 1
    assert "speed.json is no measurement of speed" in capsys.readouterr().err
    assert not list((tmp_path / "docs").iterdir())


@pytest.mark.parametrize(
    "name", ["default-model.md", "default-model-training.svg", "default-model-scores.svg"]
)
def test_pages_and_pictures_of_others_are_not_replaced(words, tmp_path, capsys, name):
    (tmp_path / "docs" / name).write_text("mine")
    before = snapshot(tmp_path / "docs")
    assert main(words) == 1
    assert f"{name} was not written by this program" in capsys.readouterr().err
    assert snapshot(tmp_path / "docs") == before


def test_an_older_page_is_replaced(words, tmp_path):
    assert main(words) == 0
    page = tmp_path / "docs" / "default-model.md"
    text = page.read_text()
    page.write_text(text.replace("step 500", "step 400"))
    assert main(words) == 0
    assert page.read_text() == text
