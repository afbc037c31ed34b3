"""Sequences of runs, whatever trains them: order, judgement, summaries; without PyTorch."""

from __future__ import annotations

import json

import pytest

from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import CheckpointError, OptionError, OutputError
from mt3_training.runs.checkpointing import Best, Position, RunFolder, State
from mt3_training.shipping.small_model import digest
from mt3_training.stem_training.stem_judgement import Judgement, judge, read_judgement
from mt3_training.stem_training.stem_runs import NoDataError, StemRuns, is_complete, remembered
from tests.seeded import seeded_weights
from tests.training.synthetic import SHAPE, BlipSources, tiny

START, TRAINED = (seeded_weights(SHAPE, seed=seed) for seed in (5, 6))


def prepare(stem, place):
    if stem == "vocals":
        raise NoDataError("vocals: no data")
    config = tiny(stem=stem, start=digest(START), steps=4, held_out=2)
    return RunFolder.prepare(place, config, START.tensors)


def trained(folder: RunFolder, should_stop) -> tuple[int, bool]:
    """Another program's training: the folder of a run that is complete, or stopped half-way."""
    if folder.config.stem == "guitar":
        raise CheckpointError("it is damaged")
    step = 2 if should_stop() else 4
    arrays = {f"average.{name}": tensor for name, tensor in TRAINED.tensors.items()}
    folder.save(State(Position(step, 1, 2, 8, 9.0, 7200.0, 1), arrays, b"optimiser"))
    folder.save_best(Best(step, 1, 0.5), TRAINED.tensors)
    return step, step == 4


def run(models, stems, *, stop=lambda: False, options=None):
    said = []
    runs = StemRuns(models, stems, options or {"steps": 4}, said.append)
    with runs.locked():
        results = runs.train(
            prepare, trained, lambda f: BlipSources(f.config), should_stop=stop, threads=1
        )
    return {result.stem: result for result in results}, said


def test_each_stem_has_its_turn_and_its_end(tmp_path):
    results, said = run(tmp_path / "m", ["bass", "guitar", "vocals"])
    assert {stem: one.status for stem, one in results.items()} == {
        "bass": "complete", "guitar": "failed", "vocals": "no data",
    }  # fmt: skip
    assert results["guitar"].reason == "it is damaged"
    assert results["bass"].core_hours == 2.0
    assert said[0] == "[1/3] bass"
    assert said[-1].startswith("[3/3] vocals: no data")
    assert Bundle(tmp_path / "m" / "bass" / "best.mt3").manifest.stem == "bass"
    document = json.loads((tmp_path / "m" / "summary.json").read_text())
    assert document["options"] == {"steps": 4}
    row = document["stems"][0]
    assert row["judged_with"] == 8
    assert row["gain_f1"] == pytest.approx(row["best_f1"] - row["start_f1"], abs=2e-4)
    text = (tmp_path / "m" / "summary.md").read_text()
    assert "| bass | complete | 4 | 2.00 |" in text
    assert "- guitar: it is damaged" in text


def test_a_sequence_that_was_stopped_goes_on(tmp_path):
    results, _ = run(tmp_path / "m", ["bass", "piano"], stop=lambda: True)
    assert [one.status for one in results.values()] == ["stopped", "waiting"]
    assert not is_complete(RunFolder.existing(tmp_path / "m" / "bass"))
    (tmp_path / "m" / "stop").touch()
    results, _ = run(tmp_path / "m", ["bass", "piano"])
    assert [one.status for one in results.values()] == ["stopped", "waiting"]
    results, _ = run(tmp_path / "m", ["bass", "piano"])
    assert [one.status for one in results.values()] == ["complete", "complete"]


def test_judgements_are_kept_until_the_weights_change(tmp_path):
    folder = prepare("bass", tmp_path / "run")
    with pytest.raises(CheckpointError, match="train on"):
        judge(folder, BlipSources(folder.config))
    trained(folder, lambda: False)
    found = judge(folder, BlipSources(folder.config), threads=1)
    assert read_judgement(folder) == found
    assert found.start.value is not None
    kept = Judgement(4, 8, found.start, found.best, found.best)
    file = folder.path / "judged.json"
    file.write_text(file.read_text().replace('"examples": 8', '"examples": 9'))
    assert judge(folder, BlipSources(folder.config)).examples == 9
    folder.save_best(Best(5, 1, 0.6), START.tensors)
    again = judge(folder, BlipSources(folder.config), threads=1)
    assert again.examples == 8
    assert again.gain.value == 0.0
    assert not again.is_better
    assert kept.is_better is bool(found.best.low and found.best.low > 0.0)
    file.write_text("{")
    assert read_judgement(folder) is None


def test_a_folder_is_for_one_thing(tmp_path):
    run(tmp_path / "m", ["vocals"])
    assert remembered(tmp_path / "m") == {"steps": 4}
    assert remembered(tmp_path / "new") is None
    with pytest.raises(OptionError, match=r"begun with other options: steps: 4, not 5"):
        run(tmp_path / "m", ["vocals"], options={"steps": 5})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "summary.md").write_text("mine")
    with pytest.raises(OutputError, match="no summary of per-stem training"):
        run(tmp_path / "other", ["vocals"])
    assert (tmp_path / "other" / "summary.md").read_text() == "mine"
    (tmp_path / "m" / "options.json").write_text('{"format": "other"}')
    with pytest.raises(OptionError, match="cannot be read as the options"):
        remembered(tmp_path / "m")
