"""`mt3 calibrate train-per-stem`: models of several stems, from the command to installed ones."""

from __future__ import annotations

import csv
import json
import signal
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_runtime import cli
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.commands import calibrate_command
from mt3_runtime.models.installed import installed_models, resolve_model
from mt3_runtime.notes.stems import STEMS
from mt3_training.datasets.index_entry import write_index
from mt3_training.runs.checkpointing import RunFolder
from mt3_training.runs.config import PRESETS, Stage
from mt3_training.shipping.small_model import write_bundle
from mt3_training.stem_training.stem_runs import StemRuns, is_complete, remembered
from tests import needs
from tests.seeded import seeded_weights
from tests.synthesis.sounds import tiny_bank, tone
from tests.training.synthetic import SHAPE, tiny
from tests.training.test_recorded_examples import bass, song

torch = needs.torch()

from mt3_training import stem_command  # noqa: E402
from mt3_training.runs import train  # noqa: E402
from mt3_training.runs.train import Run  # noqa: E402

PLAIN = ("--device", "cpu", "--threads", 1, "--workers", 0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(train, "LOG_STEPS", 3)


@pytest.fixture
def begin(tmp_path) -> tuple[object, ...]:
    """Options that train from a seeded bundle with sines."""
    bank, general, config = (tmp_path / n for n in ("tones.npz", "general.mt3", "run.json"))
    tiny_bank().save(bank)
    write_bundle(seeded_weights(SHAPE, seed=5), general, origin={"step": "1"}, storage="fp32")
    stages = (Stage("stems", 40, 1.0, 2, "stem"),)
    made = tiny(
        stages=stages, held_out=2, evaluations=2, dropout=0.2,
        sounds=(str(bank),), held_out_sounds=(str(bank),),
    )  # fmt: skip
    config.write_text(made.to_json())
    return ("--config", config, "--from", general, "--steps", 6)


def calibrate(monkeypatch, *words: object) -> int:
    """Runs the command, whether it is registered in this environment or not."""
    made = EntryPoint("train-per-stem", f"{stem_command.__name__}:StemVerb", "")
    listing = cli.Listing("calibrate train-per-stem", "", "", made)
    monkeypatch.setattr(calibrate_command, "verbs", lambda: {"train-per-stem": listing})
    return cli.main(["calibrate", "train-per-stem", *map(str, words)])


def summary(models: Path) -> dict[str, dict[str, object]]:
    """Rows by stem; the three files must agree."""
    document = json.loads((models / "summary.json").read_text())
    rows = {row["stem"]: row for row in document["stems"]}
    with (models / "summary.csv").open() as file:
        table = {row["stem"]: row for row in csv.DictReader(file)}
    assert {s: (r["status"], str(r["step"])) for s, r in rows.items()} == {
        s: (r["status"], r["step"]) for s, r in table.items()
    }
    text = (models / "summary.md").read_text()
    assert all(f"| {stem} | {row['status']} |" in text for stem, row in rows.items())
    return rows


def same_bits(one: Path, other: Path) -> bool:
    states = [RunFolder.existing(place).load() for place in (one, other)]
    arrays = [state.arrays for state in states]
    return states[0].optimiser == states[1].optimiser and all(
        np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0]
    )


def test_stems_are_trained_one_after_the_other(tmp_path, begin, monkeypatch, capsys):
    models = tmp_path / "models"
    assert calibrate(monkeypatch, models, "--stems", "bass,drums,vocals", *begin, *PLAIN) == 0
    out, said = capsys.readouterr()
    assert out == f"{models}\n"
    assert "[1/3] bass" in said
    assert "examples/s" in said
    rows = summary(models)
    assert {stem: row["status"] for stem, row in rows.items()} == {
        "bass": "complete", "drums": "complete", "vocals": "no data",
    }  # fmt: skip
    assert "recordings with labels" in rows["vocals"]["reason"]
    for stem in ("bass", "drums"):
        row, place = rows[stem], models / stem
        assert row["step"] == 6
        assert row["core_hours"] >= 0.0
        assert row["data"].startswith("music that is made up: tiny")
        assert row["licence"] == "none"
        assert row["judged_with"] == 8
        names = ("config.json", "state.json", "best.npz", "log.csv", "scores.csv", "judged.json")
        assert all((place / name).is_file() for name in names)
        manifest = Bundle(place / "best.mt3").manifest
        assert (manifest.stem, manifest.name) == (stem, f"stem_{stem}")
        assert manifest.source["start"].startswith("default, export id")
        assert RunFolder.existing(place).config.policy.name == (
            "melodic" if stem == "bass" else "percussive"
        )
    with (models / "bass" / "log.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["examples_per_second"]) > 0.0
    assert float(last["memory_mib"]) > 50.0
    # Once more, without a word: nothing is left to do, and nothing is done.
    before = {path: path.stat().st_mtime_ns for path in models.rglob("best*")}
    monkeypatch.setattr(Run, "_step", None)
    assert calibrate(monkeypatch, models, *PLAIN) == 0
    assert before == {path: path.stat().st_mtime_ns for path in models.rglob("best*")}
    assert summary(models) == rows


@pytest.fixture
def _interruptible():
    """Obeys Ctrl-C, as a program at a terminal does and one in the background does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupted_sequence_gives_the_same_bits(tmp_path, begin, monkeypatch, capsys):
    words = ("--stems", "bass,piano", *begin, *PLAIN)
    assert calibrate(monkeypatch, tmp_path / "whole", *words) == 0
    step, left = Run._step, [2, 5, 3]

    def interrupted(self, progress):
        step(self, progress)
        left[0] -= 1
        if not left[0]:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "_step", interrupted)
        codes = [calibrate(monkeypatch, tmp_path / "cut", *words)]
        assert summary(tmp_path / "cut")["bass"]["status"] == "stopped"
        assert summary(tmp_path / "cut")["piano"]["status"] == "waiting"
        for _ in range(2):
            left.pop(0)
            codes.append(calibrate(monkeypatch, tmp_path / "cut", *PLAIN))  # nothing named again
    assert codes == [cli.ExitCode.INTERRUPTED] * 3
    assert calibrate(monkeypatch, tmp_path / "cut", *PLAIN) == 0
    for stem in ("bass", "piano"):
        assert same_bits(tmp_path / "whole" / stem, tmp_path / "cut" / stem)
        one, two = (tmp_path / name / stem / "best.mt3" for name in ("whole", "cut"))
        assert one.read_bytes() == two.read_bytes()
    strip = ("core_hours",)
    one, two = (summary(tmp_path / name) for name in ("whole", "cut"))
    for stem, row in one.items():
        assert {k: v for k, v in row.items() if k not in strip} == {
            k: v for k, v in two[stem].items() if k not in strip
        }


def test_a_stem_that_fails_does_not_stop_the_others(tmp_path, begin, monkeypatch, capsys):
    models = tmp_path / "models"
    models.mkdir()
    (models / "guitar").mkdir()
    (models / "guitar" / "notes.txt").write_text("somebody's")
    words = ("--stems", "synth_lead,guitar,drums", *begin, *PLAIN)
    assert calibrate(monkeypatch, models, *words) == cli.ExitCode.FAILED
    rows = summary(models)
    assert {stem: row["status"] for stem, row in rows.items()} == {
        "synth_lead": "failed", "guitar": "failed", "drums": "complete",
    }  # fmt: skip
    assert "no instruments of the stem synth_lead" in rows["synth_lead"]["reason"]
    assert "holds something else" in rows["guitar"]["reason"]
    assert (models / "guitar" / "notes.txt").read_text() == "somebody's"
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError("full"), RuntimeError("out of memory")])
def test_a_full_memory_ends_one_stem(tmp_path, begin, monkeypatch, error):
    step, seen = Run._step, []

    def failing(self, progress):
        if self._folder.config.stem == "bass":
            seen.append(self.position.step)
            raise error
        step(self, progress)

    monkeypatch.setattr(Run, "_step", failing)
    models = tmp_path / "models"
    assert calibrate(monkeypatch, models, "--stems", "bass,piano", *begin, *PLAIN) == 1
    rows = summary(models)
    assert (rows["bass"]["status"], rows["piano"]["status"]) == ("failed", "complete")
    assert type(error).__name__ in rows["bass"]["reason"]
    monkeypatch.setattr(Run, "_step", step)
    assert calibrate(monkeypatch, models, *PLAIN) == 0  # it is tried again
    assert summary(models)["bass"]["status"] == "complete"
    assert seen == [0]


def test_files_stop_and_pause_all_runs(tmp_path, begin, monkeypatch, capsys):
    monkeypatch.setattr(train, "POLL", 0.01)
    models = tmp_path / "models"
    models.mkdir()
    for name in ("stop", "pause"):
        (models / name).touch()
    talk, paused = stem_command.talk, []

    def say(line: str) -> None:
        talk(line)
        if "paused until" in line:
            paused.append(line)
            (models / "pause").unlink()

    monkeypatch.setattr("mt3_training.train_command.talk", say)
    assert calibrate(monkeypatch, models, "--stems", "bass,piano", *begin, *PLAIN) == 0
    assert summary(models)["bass"]["status"] == "stopped"
    assert not (models / "stop").exists()
    assert calibrate(monkeypatch, models, *PLAIN) == 0
    assert {row["status"] for row in summary(models).values()} == {"complete"}
    assert paused == [f"paused until {models / 'pause'} is removed"]


def test_models_are_installed_where_they_are_found(tmp_path, begin, monkeypatch, capsys):
    models = tmp_path / "models"
    words = ("--stems", "bass", *begin, *PLAIN)
    assert calibrate(monkeypatch, models, *words, "--install") == 0
    judged = json.loads((models / "bass" / "judged.json").read_text())
    if not (judged["gain"]["low"] or 0.0) > 0.0:  # six steps of a network of sixteen columns
        assert "not installed, as it is not surely better" in capsys.readouterr().err
        assert installed_models() == {}
    assert calibrate(monkeypatch, models, *PLAIN, "--install", "all") == 0
    assert list(installed_models()) == ["stem_bass"]
    assert summary(models)["bass"]["installed"] == "stem_bass"
    assert Bundle(installed_models()["stem_bass"]).manifest.stem == "bass"
    assert calibrate(monkeypatch, models, *PLAIN) == 0
    assert summary(models)["bass"]["installed"] == "stem_bass"
    # Whole songs are still transcribed by a general model.
    assert resolve_model().name == "default"
    # What is not ours is not replaced.
    place = installed_models()["stem_bass"]
    place.unlink()
    place.mkdir()
    (place / "notes.txt").write_text("somebody's")
    assert calibrate(monkeypatch, models, *PLAIN, "--install", "all") == 1
    assert (place / "notes.txt").read_text() == "somebody's"
    assert summary(models)["bass"]["status"] == "failed"


def test_a_folder_of_models_keeps_to_what_it_was_begun_with(tmp_path, begin, monkeypatch, capsys):
    models = tmp_path / "models"
    assert calibrate(monkeypatch, models, "--stems", "bass", *begin, *PLAIN) == 0
    assert calibrate(monkeypatch, models, "--stems", "bass", *begin, *PLAIN) == 0
    capsys.readouterr()
    assert calibrate(monkeypatch, models, "--stems", "bass,piano", *begin, *PLAIN) == 2
    assert "stems: 'bass', not 'bass,piano'" in capsys.readouterr().err
    assert remembered(models)["steps"] == 6
    with StemRuns(models, ["bass"], remembered(models), print).locked():
        assert calibrate(monkeypatch, models, *PLAIN) == 2
    assert "another program is training" in capsys.readouterr().err
    (models / "options.json").write_text("[]")
    assert calibrate(monkeypatch, models, *PLAIN) == 2
    assert "options.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--stems", "vocals"), "vocals: no data"),
        (("--stems", "tuba"), "Unknown stem 'tuba'"),
        (("--policy", "bass"), "expected STEM=NAME"),
        (("--policy", "bass=loud"), "no policy 'loud'"),
        (("--clip-seconds", "20"), "at most 2.048"),
        (("--epochs", "3"), "music that is made up has no end"),
        (("--threads", "0"), "--threads is 0"),
        (("--index", "nothing.json"), "which lists one stem"),
    ],
)
def test_wrong_words_leave_nothing_behind(tmp_path, monkeypatch, capsys, words, message):
    words = ("--stems", "bass", *words) if "--stems" not in words else words
    assert calibrate(monkeypatch, tmp_path / "models", "--from", "none", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_somebodys_summary_is_left_alone(tmp_path, begin, monkeypatch, capsys):
    models = tmp_path / "models"
    models.mkdir()
    (models / "summary.csv").write_text("mine")
    words = ("--stems", "bass", *begin, *PLAIN)
    assert calibrate(monkeypatch, models, *words) == cli.ExitCode.FAILED
    assert "summary.csv is no summary" in capsys.readouterr().err
    assert [path.name for path in models.iterdir()] == ["summary.csv"]


def test_recordings_train_the_stems_they_have(tmp_path, begin, monkeypatch, capsys):
    splits = ("train", "train", "validation")
    entries = [
        song(tmp_path, f"song {n}", "S00", "bass", bass(), split=split)
        for n, split in enumerate(splits)
    ]
    (tmp_path / "index").mkdir()
    for name in ("dataset", "dataset_bass"):
        write_index(tmp_path / "index" / f"{name}.json", entries, {"dataset": "songs"})
    write_index(tmp_path / "index" / "dataset_piano.json", entries[2:], {"dataset": "songs"})
    words = ("--index", tmp_path / "index", *begin, *PLAIN)
    models = tmp_path / "models"
    assert calibrate(monkeypatch, models, "--policy", "bass=harmonic", *words) == 0
    rows = summary(models)
    assert {s for s, row in rows.items() if row["status"] == "complete"} == {"bass"}
    assert {row["status"] for s, row in rows.items() if s != "bass"} == {"no data"}
    assert set(rows) == {stem.name for stem in STEMS}
    assert "no recordings of the split 'train'" in rows["piano"]["reason"]
    assert rows["bass"]["data"] == "recordings: songs"
    assert rows["bass"]["licence"] == "CC BY 4.0"
    assert RunFolder.existing(models / "bass").config.policy.name == "harmonic"
    assert Bundle(models / "bass" / "best.mt3").manifest.licence.startswith("that of the record")
    # Another list under the same name is another data set.
    state = models / "bass" / "state.json"
    state.write_text(state.read_text().replace('"step": 6', '"step": 5'))
    assert not is_complete(RunFolder.existing(models / "bass"))
    write_index(tmp_path / "index" / "dataset_bass.json", entries[1:], {"dataset": "songs"})
    assert calibrate(monkeypatch, models, *PLAIN) == 1
    assert "is not the list of recordings" in summary(models)["bass"]["reason"]


def test_sixty_steps_halve_the_loss_and_the_model_is_chosen(tmp_path, monkeypatch, capsys):
    bank = tmp_path / "tones.npz"
    tiny_bank().save(bank)
    stage = replace(PRESETS["tiny"].stages[0], music="stem")
    config = replace(
        PRESETS["tiny"], stages=(stage,), rate=4e-3, warmup=10, steps=60, hours=None,
        sounds=(str(bank),), held_out_sounds=(str(bank),), held_out=4,
    )  # fmt: skip
    (tmp_path / "run.json").write_text(config.to_json())
    models = tmp_path / "models"
    words = ("--stems", "bass,piano", "--config", tmp_path / "run.json", "--from", "none")
    assert calibrate(monkeypatch, models, *words, *PLAIN, "--install", "all") == 0
    for stem in ("bass", "piano"):
        with (models / stem / "log.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    song_folder = tmp_path / "song"
    song_folder.mkdir()
    for stem, pitch in (("bass", 40), ("piano", 64)):
        soundfile.write(song_folder / f"{stem}.wav", 0.3 * tone(pitch, 1.0), 16000)
    capsys.readouterr()
    out = tmp_path / "song.mid"
    assert cli.main(["transcribe", str(song_folder), "--per-stem", "-o", str(out)]) == 0
    said = capsys.readouterr().err
    assert "stem_bass.mt3: bass" in said
    assert "stem_piano.mt3: piano" in said
    assert out.is_file()
