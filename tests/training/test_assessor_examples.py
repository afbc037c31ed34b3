"""Examples of assessing networks: the folder, its parts and batches; takes; judging; the verb."""

from __future__ import annotations

import argparse
import json
import signal
import wave
from dataclasses import replace

import mido
import numpy as np
import pytest

from mt3_analysis import open_assessor_networks
from mt3_export.assessors.assessor_writer import export_assessors
from mt3_runtime.errors import BundleError, MissingDependencyError, MT3Error, OptionError
from mt3_training.assessing import assessor_command
from mt3_training.assessing.assessor_command import ACTIONS, AssessorVerb
from mt3_training.assessing.assessor_config import (
    PLAIN,
    PRESETS,
    PUBLISHED,
    TINY,
    AssessorTraining,
    for_fusion,
)
from mt3_training.assessing.assessor_examples import (
    Entry,
    batches,
    is_judged,
    read_examples,
    write_examples,
)
from mt3_training.assessing.assessor_judgement import judge, probe
from mt3_training.assessing.assessor_watch import WATCHED, FusionWatch
from mt3_training.assessing.take_table import make_examples, read_takes
from tests import needs
from tests.assessor_folders import DIMENSIONS as THREE
from tests.assessor_folders import assessors_folder
from tests.parity.recipes.assessor_networks import samples
from tests.training.assessment_examples import DIMENSIONS, FRAME_SECONDS, make_example, make_set


def written(folder, examples=None):
    examples = examples or make_set()
    write_examples(folder, examples.dimensions, examples.items, frame_seconds=FRAME_SECONDS)
    return examples


def test_a_folder_is_read_as_it_was_written(tmp_path):
    made = written(tmp_path / "e")
    found = read_examples(tmp_path / "e")
    assert found.dimensions == DIMENSIONS
    assert [item.entry for item in found.items] == [item.entry for item in made.items]
    for one, other in zip(found.items, made.items, strict=True):
        assert np.array_equal(one.frames, other.frames)
        assert np.array_equal(one.notes, other.notes)


def test_no_piece_is_on_both_sides():
    examples = make_set()
    sides = [{item.entry.piece for item in examples.part(judged=judged).items} for judged in (0, 1)]
    assert not sides[0] & sides[1]
    assert len(sides[0]) == len(sides[1]) == 5
    share = np.mean([is_judged(f"work {i}, movement {i % 3}") for i in range(3000)])
    assert 0.15 < share < 0.25


def test_batches_follow_from_their_number():
    examples, network = make_set(), TINY.network(DIMENSIONS)
    source = batches(examples, network, rows=6, seed=1)
    ten = [next(source) for _ in range(10)]
    later = next(batches(examples, network, rows=6, seed=1, first=9))
    assert np.array_equal(ten[9].frames, later.frames)
    assert np.array_equal(ten[9].tokens, later.tokens)
    epoch = np.concatenate([batch.labels for batch in ten[:6]])
    assert len(np.unique(epoch[:, 0])) == 36  # nobody twice in an epoch
    assert not np.array_equal(ten[0].labels, ten[6].labels)


def test_rows_are_filled_and_masked():
    batch = next(batches(make_set(), TINY.network(DIMENSIONS), rows=5, seed=0))
    assert batch.frame_mask.sum(axis=1).max() == batch.frames.shape[1]
    assert not batch.frames[~batch.frame_mask].any()
    assert not batch.tokens[~batch.note_mask].any()
    assert (batch.spans[..., 1] > batch.spans[..., 0]).all()
    lengths = batch.frame_mask.sum(axis=1)
    assert (batch.spans[..., 1].max(axis=1) <= lengths).all()


def entry_with(**changes):
    item = make_example("a", "p", 1)
    return replace(item, entry=replace(item.entry, **changes))


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([entry_with(name="../a")], "is no name of its own"),
        ([entry_with(), entry_with()], "is no name of its own"),
        ([entry_with(labels=(1.0,))], "expected 2 from 0 to 100"),
        ([entry_with(labels=(1.0, 101.0))], "expected 2 from 0 to 100"),
        ([entry_with(labels=(1.0, float("nan")))], "expected 2 from 0 to 100"),
        ([replace(entry_with(), notes=np.zeros((0, 4)))], "no frames, or no notes"),
        ([replace(entry_with(), frames=np.zeros((0, 8), np.float32))], "no frames, or no notes"),
    ],
)
def test_examples_that_are_wrong_are_not_written(tmp_path, items, said):
    with pytest.raises(OptionError, match=said):
        write_examples(tmp_path / "e", DIMENSIONS, items, frame_seconds=FRAME_SECONDS)
    assert not (tmp_path / "e" / "examples.json").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OptionError, match="holds something else"):
        written(tmp_path)


def damage(folder, how):
    index = json.loads((folder / "examples.json").read_text())
    if how == "no index":
        (folder / "examples.json").unlink()
    elif how == "no file":
        (folder / "0-0.npz").unlink()
    elif how == "no archive":
        (folder / "0-0.npz").write_bytes(b"PK")
    elif how == "another name":
        index["recordings"][0]["name"] = "../x"
    elif how == "a label less":
        index["recordings"][0]["labels"] = [1.0]
    elif how == "a label too high":
        index["recordings"][0]["labels"] = [1.0, 1000.0]
    elif how == "none":
        index["recordings"] = []
    elif how == "another width":
        np.savez(folder / "0-0.npz", frames=np.ones((3, 5)), notes=[[0, 1, 60, 64]], nuisances=np.zeros(6))  # fmt: skip  # noqa: E501
    elif how == "no frames":
        np.savez(folder / "0-0.npz", frames=np.ones(3), notes=[[0, 1, 60, 64]], nuisances=[0.0] * 6)
    elif how == "fewer numbers":
        np.savez(folder / "0-0.npz", frames=np.ones((3, 8)), notes=[[0, 1, 60, 64]], nuisances=[0.0])  # fmt: skip  # noqa: E501
    if (folder / "examples.json").exists():
        (folder / "examples.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "how",
    ["no index", "no file", "no archive", "another name", "a label less", "a label too high",
     "none", "another width", "no frames", "fewer numbers"],
)  # fmt: skip
def test_damaged_examples_are_one_error(tmp_path, how):
    written(tmp_path / "e")
    damage(tmp_path / "e", how)
    with pytest.raises(OptionError):
        read_examples(tmp_path / "e")


def test_a_watch_leaves_out_what_was_filled_up():
    batch = next(batches(make_set(), TINY.network(DIMENSIONS), rows=4, seed=0))
    rows, notes = batch.note_mask.shape
    frames = batch.frames.shape[1]
    gates = np.where(batch.note_mask[..., None], 0.7, 0.1) * np.ones((1, 1, 3))
    counts = batch.note_mask.sum(axis=1)
    heard = np.where(batch.note_mask[:, None], 1.0 / counts[:, None, None], 0.0)
    sharp = np.zeros((rows, notes, frames))
    sharp[..., 0] = 1.0
    unit = np.eye(4)
    watch = FusionWatch()
    watch.add(
        batch,
        gates=gates,
        embeddings={"audio": unit, "midi": unit},
        attention=(heard + np.zeros((rows, frames, notes)), sharp),
    )
    found = watch.figures()
    assert found.keys() == set(WATCHED)
    assert found["gate_mean"] == pytest.approx(0.7)
    assert found["gate_sd"] == pytest.approx(0.0, abs=1e-9)
    assert found["alignment"] == pytest.approx(1.0)
    assert found["audio_to_midi_entropy"] == pytest.approx(1.0)
    assert found["midi_to_audio_entropy"] == 0.0
    assert FusionWatch().figures() == {}


# --- configurations ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_configurations_survive(name):
    config = PRESETS[name]
    assert AssessorTraining.from_json(config.to_json(), "test") == config
    for fusion in ("gated", "concat", "cross", "audio", "midi"):
        assert not for_fusion(config, fusion).network(("timing",)).faults()


def test_the_published_numbers():
    assert (PUBLISHED.batch, PUBLISHED.accumulate, PUBLISHED.clip) == (16, 2, 0.5)
    assert (PUBLISHED.backbone_rate, PUBLISHED.head_rate) == (3e-5, 3e-4)
    losses = PUBLISHED.losses
    assert (losses.ranking, losses.ranking_margin, losses.contrastive) == (0.2, 5.0, 0.1)
    assert (losses.temperature, losses.ordinal, losses.bootstrap) == (0.07, 0.3, 0.8)
    assert PLAIN.losses.bootstrap == 1.0
    assert PUBLISHED.differences(PLAIN)


@pytest.mark.parametrize(
    "change", [{"fusion": "film"}, {"alignment": "attention"}, {"steps": 0}, {"batch": 1}, {"x": 1}]
)
def test_configurations_that_are_wrong_are_refused(change):
    document = {**json.loads(TINY.to_json()), **change}
    with pytest.raises(OptionError):
        AssessorTraining.from_json(json.dumps(document).encode(), "test")


def test_names_that_cannot_be_exported_are_refused_before_training():
    with pytest.raises(OptionError, match="lower-case"):
        TINY.network(("Timing!",))
    with pytest.raises(OptionError, match="expected one of"):
        for_fusion(TINY, "film")


# --- takes, judging, the verb --------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    export_assessors(assessors_folder(folder / "s"), folder / "b", name="all")
    return folder / "b"


@pytest.fixture
def takes(tmp_path):
    """A table of eight takes with their files."""
    lines = ["name,piece,condition,audio,midi," + ",".join(THREE)]
    for number in range(8):
        audio = (samples() * (0.2 + 0.1 * number) * 32767).astype("<i2")
        with wave.open(str(tmp_path / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 24000, 0, "NONE", ""))
            file.writeframes(audio.tobytes())
        midi = mido.MidiFile()
        track = midi.add_track("piano")
        for step in range(6):
            pitch = 50 + 3 * number + step
            track.append(mido.Message("note_on", note=pitch, velocity=60, time=20))
            track.append(mido.Message("note_off", note=pitch, time=60))
        midi.save(tmp_path / f"{number}.mid")
        labels = ",".join(str(10 * number + k) for k in range(3))
        lines.append(
            f"t{number},piece {number % 4},c{number % 2},{number}.wav,{number}.mid,{labels}"
        )
    table = tmp_path / "takes.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def test_takes_become_examples(takes, bundle, tmp_path):
    networks = open_assessor_networks(bundle)
    assert make_examples(takes, networks, tmp_path / "e") == 8
    found = read_examples(tmp_path / "e")
    assert found.dimensions == THREE
    assert found.items[3].entry == Entry("t3", "piece 3", "c1", (30.0, 31.0, 32.0))
    assert found.items[0].frames.shape == (74, 48)
    assert found.items[0].notes[0, 2] == 50
    assert found.frame_seconds == pytest.approx(320 / 24000)


def test_a_set_of_degraded_performances_is_a_table(tmp_path):
    rows = [
        {"file": f"0-{kind}-{level}.mid", "source": "a.mid", "group": "a", "kind": kind,
         "level": level, "sha256": "0" * 64}
        for kind, level in (("none", 0.0), ("jitter", 0.25), ("jitter", 1.0), ("late-pedal", 0.5))
    ]  # fmt: skip
    document = {
        "format": "mt3-runtime.degraded-performances",
        "version": 1,
        "seed": 0,
        "files": rows,
    }
    path = tmp_path / "set.json"
    path.write_text(json.dumps(document))
    dimensions, takes = read_takes(path)
    assert dimensions == ("jitter", "late_pedal")
    assert [take.entry.labels for take in takes] == [(100, 100), (75, 100), (0, 100), (100, 50)]
    assert takes[1].entry.condition == "jitter"
    assert takes[1].audio == tmp_path / "0-jitter-0.25.wav"
    for change in ({"files": 3}, {"files": []}, {"version": 2}, {"files": [{"file": "x"}]}):
        path.write_text(json.dumps({**document, **change}))
        with pytest.raises(OptionError):
            read_takes(path)


def test_networks_are_judged_with_all_that_diagnostics_say(takes, bundle, tmp_path):
    networks = open_assessor_networks(bundle)
    make_examples(takes, networks, tmp_path / "e")
    report = judge(networks, read_examples(tmp_path / "e"), resamples=20)
    assert {row.model for row in report.models} == set(networks.networks)
    checks = {name: {f.check for f in several} for name, several in report.findings.items()}
    assert {"gate", "modality alignment", "worth of audio", "worth of midi"} <= checks["gated"]
    ways = {"attention audio_to_midi", "attention midi_to_audio"}
    assert ways | {"label ceiling", "artefact probe", "fusion gain"} <= checks["cross"]
    assert {"constant confidence", "collapse"} <= checks["midi"]
    assert "constant confidence" in report.flagged  # published: one number a dimension
    json.dumps(report.to_dict())


def test_labels_are_probed_before_training():
    sound = make_set()
    assert [f.check for f in probe(sound)] == ["label rank", "label ceiling", "artefact probe"]
    assert not any(f.flagged for f in probe(sound))
    chance = np.random.default_rng(0)
    items = []
    for number, item in enumerate(sound.items):
        tier = number % 3
        labels = tuple(float(x) for x in (0.9 - 0.3 * tier) * chance.uniform(85, 100, 2))
        entry = replace(item.entry, condition=str(tier), labels=labels)
        items.append(replace(item, entry=entry, nuisances=np.array([tier * 10.0, *chance.normal(0, 1, 5)])))  # fmt: skip  # noqa: E501
    assert all(f.flagged for f in probe(replace(sound, items=tuple(items))))


def test_judging_needs_the_same_dimensions_and_some_recordings(bundle):
    networks = open_assessor_networks(bundle)
    with pytest.raises(OptionError, match="expected a bundle with networks of the same"):
        judge(networks, make_set())
    few = replace(make_set(), dimensions=THREE, items=make_set().items[:3])
    with pytest.raises(OptionError, match="too few"):
        judge(networks, few)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must begin with the columns"),
        ("name,piece,condition,audio,midi\n", "must begin with the columns"),
        ("name,piece,condition,audio,midi,x\n", "has no takes"),
        ("name,piece,condition,audio,midi,x\na,b,c,d,e,f\n", "line 2: expected 6 values"),
        ("name,piece,condition,audio,midi,x\na,b,c,d,e,101\n", "line 2: expected 6 values"),
        ("name,piece,condition,audio,midi,x\na,b,c,d,e\n", "line 2: expected 6 values"),
        ("\xff", "cannot be read|must begin"),
    ],
)
def test_tables_that_are_wrong_are_refused(tmp_path, text, said):
    path = tmp_path / "takes.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(OptionError, match=said):
        read_takes(path)
    with pytest.raises(OptionError, match="cannot be read"):
        read_takes(tmp_path / "nowhere.csv")


def run(*words):
    verb, parser = AssessorVerb(), argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args([str(word) for word in words]))


def test_the_verb_makes_examples_and_reports(takes, bundle, tmp_path, capsys):
    assert run("examples", takes, "-b", bundle, "-o", tmp_path / "e") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "e")
    assert run("probe", tmp_path / "e") == 0
    assert "label rank: 3 dimensions are 1.00 effective ones" in capsys.readouterr().out
    assert run("report", tmp_path / "e", "-b", bundle, "-o", tmp_path / "r.json", "--all") == 0
    assert "8 recordings of 4 pieces" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["version"] == 1


@pytest.mark.parametrize("action", ["train", "pretrain"])
def test_training_names_the_extra_that_brings_pytorch(tmp_path, action):
    written(tmp_path / "e")
    with pytest.raises(MissingDependencyError, match="Training needs torch.*torch"):
        run(action, tmp_path / "e", "-o", tmp_path / "run", "--config", "tiny", "--seed", "3")
    assert not (tmp_path / "run").exists()


def test_a_configuration_is_read_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_bytes(TINY.to_json())
    written(tmp_path / "e")
    with pytest.raises(MissingDependencyError):
        run("train", tmp_path / "e", "-o", tmp_path / "run", "--config", path, "--fusion", "midi")
    path.write_text("{}")
    with pytest.raises(OptionError, match="no training configuration"):
        run("train", tmp_path / "e", "-o", tmp_path / "run", "--config", path)


def test_interrupts_wait_for_the_end_of_a_step():
    before = signal.getsignal(signal.SIGINT)
    with assessor_command._held_signals() as found:
        signal.raise_signal(signal.SIGINT)
        assert found == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("threads", [0, 5000])
def test_threads_are_checked(threads):
    with pytest.raises(OptionError, match="--threads is"):
        assessor_command._threads(argparse.Namespace(threads=threads))


@pytest.mark.parametrize(
    "words",
    [
        ("examples", "x.csv"),
        ("examples", "x.csv", "-o", "e"),
        ("report", "nowhere", "-b", "b"),
        ("train", "nowhere", "-o", "run"),
        ("train", "nowhere", "-o", "run", "--config", "nowhere.json"),
        ("train", "nowhere", "-o", "run", "--fusion", "film"),
        ("train", "nowhere", "-o", "run", "--steps", "0"),
        ("pretrain", "nowhere"),
    ],
)
def test_what_the_verb_lacks_is_one_error(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MT3Error):
        run(*words)
    assert not list(tmp_path.iterdir())


def test_what_the_page_shows_is_accepted():
    page = (needs.ROOT / "docs" / "assessment-networks.md").read_text(encoding="utf-8")
    parser = argparse.ArgumentParser()
    AssessorVerb().add_arguments(parser)
    shown = [line.split()[3:] for line in page.splitlines() if line.startswith("mt3 calibrate assessor")]  # fmt: skip  # noqa: E501
    assert {parser.parse_args(words).action for words in shown} == set(ACTIONS)  # fmt: skip


def test_a_bundle_without_an_audio_encoder_makes_no_examples(takes, tmp_path):
    from tests.assessor_folders import network_folder

    export_assessors(network_folder(tmp_path / "n", "midi"), tmp_path / "b", name="x")
    with pytest.raises(BundleError, match="no audio encoder"):
        make_examples(takes, open_assessor_networks(tmp_path / "b"), tmp_path / "e")
