"""Options of training commands: which configuration they ask for, and what contradicts what."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest

from mt3_runtime.errors import OptionError
from mt3_runtime.notes.stems import STEMS
from mt3_training.datasets.index_entry import write_index
from mt3_training.runs.checkpointing import RunFolder
from mt3_training.runs.config import PRESETS
from mt3_training.runs.role_policies import policies
from mt3_training.shipping.small_model import digest, write_bundle
from mt3_training.train_options import (
    add_machine,
    add_training,
    check_machine,
    index_file,
    planned,
    stems_named,
)
from tests.seeded import seeded_weights
from tests.training.synthetic import SHAPE, tiny
from tests.training.test_recorded_examples import bass, song


def typed(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_training(parser)
    add_machine(parser)
    return parser.parse_args(list(map(str, words)))


def plan(tmp_path, *words: object, stem: str = "", policy: str | None = None):
    return planned(typed(*words), tmp_path / "run", stem=stem, policy=policy)


@pytest.fixture
def general(tmp_path):
    path = tmp_path / "general.mt3"
    write_bundle(seeded_weights(SHAPE, seed=5), path, origin={"step": "1"}, storage="fp32")
    return path


def test_a_new_run_is_what_it_was_before_there_were_stems(tmp_path):
    assert plan(tmp_path).config == PRESETS["small"]
    found = plan(tmp_path, "--config", "tiny", "--steps", 7, "--seed", 3).config
    assert found == replace(PRESETS["tiny"], hours=None, steps=7, seed=3)
    assert plan(tmp_path, "--hours", 2).config == replace(PRESETS["small"], steps=None, hours=2.0)


def test_a_stem_learns_its_own_music(tmp_path):
    config = plan(tmp_path, stem="bass").config
    assert (config.stem, config.policy, config.corpus) == ("bass", policies()["melodic"], 0.0)
    assert {stage.music for stage in config.stages} == {"stem"}
    assert [stage.frames for stage in config.stages] == [65, 130, 256]
    assert plan(tmp_path, stem="bass", policy="harmonic").config.policy == policies()["harmonic"]
    assert plan(tmp_path, stem="bass", policy="none").config.policy is None
    with pytest.raises(OptionError, match="name one with --stem"):
        plan(tmp_path, policy="harmonic")


def test_other_weights_are_gone_on_from(tmp_path, general):
    found = plan(tmp_path, "--from", general, stem="drums")
    assert found.start is not None
    assert found.config.start == digest(found.start)
    assert found.config.shape == SHAPE
    assert found.config.stages == PRESETS["stem"].stages
    folder = found.folder(tmp_path / "run")
    assert folder.origins()["start"].startswith("default, export id")
    # Nothing named: the folder says it all; the same named again: nothing changes.
    assert plan(tmp_path).config is None
    assert plan(tmp_path, "--from", general, stem="drums").config == found.config
    plan(tmp_path, "--from", general, stem="drums").folder(tmp_path / "run")
    with pytest.raises(OptionError, match=r"stem: 'drums', not 'bass'"):
        plan(tmp_path, stem="bass").folder(tmp_path / "run")
    general.unlink()
    assert plan(tmp_path).folder(tmp_path / "run").config == found.config


def test_a_configuration_file_must_have_the_sizes_of_the_weights(tmp_path, general):
    path = tmp_path / "own.json"
    path.write_text(tiny(shape=replace(SHAPE, d_ff=64)).to_json())
    with pytest.raises(OptionError, match="d_ff=64.*d_ff=32"):
        plan(tmp_path, "--config", path, "--from", general)
    path.write_text(tiny().to_json())
    assert plan(tmp_path, "--config", path, "--from", general).config.stages == tiny().stages


def test_single_values_change(tmp_path):
    config = plan(tmp_path, "--batch-size", 8, "--lr", 1e-4, "--clip-seconds", 1.024).config
    assert [(s.frames, s.batch) for s in config.stages] == [(128, 8)]
    assert config.rate == 1e-4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--clip-seconds", 20), r"--clip-seconds is 20; .* at most 2.048"),
        (("--clip-seconds", 0), "expected more than 0"),
        (("--clip-seconds", "nan"), "--clip-seconds is nan"),
        (("--batch-size", 0), "--batch-size is 0"),
        (("--lr", 0), "rate is 0.0"),
        (("--epochs", 3), "--epochs counts how often recordings are heard"),
        (("--steps", 0), "steps is 0"),
        (("--hours", -1), "hours is -1"),
        (("--config", "huge"), "neither a file"),
        (("--index", "."), "name a stem with --stem"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, words, message):
    with pytest.raises(OptionError, match=message):
        plan(tmp_path, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--threads", 0), "--threads is 0"),
        (("--workers", -1), "--workers is -1"),
        (("--nice", 20), "--nice is 20"),
        (("--device", "tpu"), "'tpu'"),
    ],
)
def test_machines_are_checked(words, message):
    with pytest.raises(OptionError, match=message):
        check_machine(typed(*words))


def test_there_is_no_music_of_singers(tmp_path):
    with pytest.raises(OptionError, match="vocals: no data"):
        plan(tmp_path, stem="vocals")
    assert not (tmp_path / "run").exists()


def test_epochs_are_counted_in_seconds_of_recordings(tmp_path):
    entries = [song(tmp_path, f"song {n}", "S00", "bass", bass(), seconds=6.0) for n in range(4)]
    entries[3] = replace(entries[3], split="test")
    (tmp_path / "index").mkdir()
    write_index(tmp_path / "index" / "dataset_bass.json", entries, {})
    words = ("--index", tmp_path / "index", "--clip-seconds", 1.0, "--batch-size", 2)
    config = plan(tmp_path, *words, "--epochs", 10, stem="bass").config
    assert config.steps == 90  # ten times 18 seconds, two at a time
    assert len(config.index) == 64
    with pytest.raises(OptionError, match="--epochs is 0"):
        plan(tmp_path, *words, "--epochs", 0, stem="bass")
    with pytest.raises(OptionError, match="no dataset_piano.json.*mt3 calibrate index"):
        plan(tmp_path, *words, stem="piano")
    # Voices are trained where there are recordings of them.
    write_index(tmp_path / "index" / "dataset_vocals.json", entries, {})
    assert plan(tmp_path, *words, "--epochs", 1, stem="vocals").config.stem == "vocals"
    write_index(tmp_path / "index" / "filtered_dataset_bass.json", entries[:1], {})
    assert index_file(str(tmp_path / "index"), "bass").name == "filtered_dataset_bass.json"
    origins = plan(tmp_path, *words, stem="bass").folder(tmp_path / "run").origins()
    assert origins["index"].endswith("filtered_dataset_bass.json")
    assert RunFolder.existing(tmp_path / "run").config.stem == "bass"


def test_lists_of_stems():
    assert stems_named("all") == [stem.name for stem in STEMS]
    assert stems_named("drums, bass,bass") == ["bass", "drums"]
    for text in ("", ","):
        with pytest.raises(OptionError, match="names none"):
            stems_named(text)
    with pytest.raises(OptionError, match="Unknown stem 'tuba'"):
        stems_named("bass,tuba")
