"""Instruments of a recording: from notes, from a tagger, and who agrees."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import soundfile

from mt3_analysis import load_tagger, open_classifier, tag
from mt3_analysis.networks.classifier_session import Heard
from mt3_analysis.tagging.instrument_families import FAMILIES, family_of_label, family_of_note
from mt3_analysis.tagging.instrument_tagging import agreement, tagger_evidence
from mt3_analysis.tagging.note_evidence import note_evidence
from mt3_analysis.tagging.tag_command import TagCommand
from mt3_export.classifiers.classifier_writer import export_classifier
from mt3_runtime import cli
from mt3_runtime.audio.sources import load_audio
from mt3_runtime.errors import AudioError, BundleError, BundleNotFoundError, OptionError
from mt3_runtime.notes.note import Note
from tests.classifier_networks import (
    LABELS,
    ast_config,
    ast_folder,
    ast_tensors,
    named,
    write_folder,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder without taggers."""
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tagger_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagger")
    export_classifier(ast_folder(folder / "source"), folder / "bundle", name="tiny")
    return folder / "bundle"


def note(onset, offset, program=0, *, drum=False, confidence=1.0):
    return Note(onset, offset, 60, 100, program, drum, confidence)


def scores(evidence):
    return {item.name: item.score for item in evidence.families}


def test_a_share_is_length_times_confidence():
    notes = [note(0, 3, 40), note(3, 4, 0), note(0, 4, 73, confidence=0.25)]
    assert scores(note_evidence(notes, 4.0, "m")) == {"strings": 0.6, "flutes": 0.2, "piano": 0.2}


def test_hits_of_drums_count_though_they_have_no_length():
    notes = [note(0.5 * i, 0.5 * i + 0.01, drum=True) for i in range(10)] + [note(0, 1, 33)]
    assert scores(note_evidence(notes, 5.0, "m")) == {"bass": 0.5, "drums": 0.5}


def test_evidence_over_time():
    windows = note_evidence([note(0, 4, 40), note(6, 9, 0)], 12.0, "m").windows
    assert [(w.start, w.end) for w in windows] == [(0, 5), (5, 10), (10, 12)]
    assert [[item.name for item in w.families] for w in windows] == [["strings"], ["piano"], []]


def test_nothing_is_heard_in_no_notes():
    assert note_evidence([], 3.0, "m").families == ()


def test_every_program_is_in_one_family_at_most():
    programs = [program for family in FAMILIES for program in family.programs]
    labels = [label for family in FAMILIES for label in family.labels]
    assert len(set(programs)) == len(programs)
    assert len(set(labels)) == len(labels)
    assert all(label == label.lower() for label in labels)
    assert family_of_note(110, is_drum=False) == "strings"
    assert family_of_note(0, is_drum=True) == "drums"
    assert family_of_note(125, is_drum=False) is None
    assert family_of_label("Violin, fiddle") == "strings"
    assert family_of_label("Speech") is None


def test_all_labels_of_the_table_are_those_of_audioset(shared):
    listed = (shared / "models" / "yamnet_class_map.csv").read_text().lower()
    labels = {label for family in FAMILIES for label in family.labels}
    # YAMNet leaves these two of AudioSet's 527 classes out.
    assert {name for name in labels if name not in listed} == {"male singing", "female singing"}


def test_a_tagger_is_averaged_over_what_is_not_silent(tagger_folder):
    tagger = open_classifier(tagger_folder, threads=1)
    kit = tagger.labels.index("drum kit")
    loud, soft = np.full(7, -9.0, np.float32), np.full(7, -9.0, np.float32)
    loud[kit], soft[kit] = 2.0, -1.0
    rows = [Heard(0, 10, loud), Heard(10, 20, None), Heard(20, 25, soft)]
    found = tagger_evidence(tagger, rows)
    one, other = (1 / (1 + np.exp(-x)) for x in (2.0, -1.0))
    assert found.families[0].name == "drums"
    assert found.families[0].score == pytest.approx((10 * one + 5 * other) / 15, abs=1e-4)
    assert [len(window.families) for window in found.windows] == [1, 0, 1]


def test_agreement_names_both_sides(tagger_folder):
    tagger = open_classifier(tagger_folder, threads=1)
    logits = np.full(7, -9.0, np.float32)
    logits[[0, 1]] = 2.0, 1.0
    tagged = tagger_evidence(tagger, [Heard(0, 5, logits)])
    notes = note_evidence([note(0, 5, 40), note(0, 5, 0), note(0, 0.2, 73)], 5.0, "m")
    found = {each.family: each.heard_by for each in agreement(notes, tagged)}
    assert found == {"strings": "both", "drums": "tagger", "piano": "transcription"}
    alone = {each.heard_by for each in agreement(notes, None)}
    assert alone == {"transcription"}


def test_a_fresh_install_uses_the_notes_and_says_so(tiny_model, audio):
    found = tag(audio, sr=16000, model=tiny_model)
    assert found.tagger is None
    assert found.transcription.families
    assert any("No tagger is installed" in sentence for sentence in found.warnings)
    assert not any("No tagger" in s for s in tag(audio, model=tiny_model, tagger=False).warnings)


def test_both_sources_of_a_recording(tiny_model, audio, tagger_folder, tmp_path):
    stereo = np.stack([audio, audio], axis=1)
    path = tmp_path / "a.wav"
    soundfile.write(path, np.repeat(stereo, 2, axis=0), 32000)
    found = tag(path, model=tiny_model, tagger=tagger_folder)
    assert found.tagger.source == "tagger"
    assert {item.name for item in found.tagger.labels} <= set(LABELS)
    assert found.duration == pytest.approx(9.0)
    assert json.loads(json.dumps(found.to_dict()))["tagger"]["model"] == "tiny"
    same = tag(np.repeat(stereo, 2, axis=0), sr=32000, model=tiny_model, tagger=tagger_folder)
    assert scores(same.tagger) == pytest.approx(scores(found.tagger), abs=1e-3)


def test_silence_is_said_to_be_silence(tiny_model, tagger_folder):
    found = tag(np.zeros(40000, np.float32), model=tiny_model, tagger=tagger_folder)
    assert found.tagger.families == ()
    assert [window.families for window in found.tagger.windows] == [()]


def test_what_is_shorter_than_a_frame_is_said(tiny_model, tagger_folder):
    found = tag(np.full(300, 0.1, np.float32), model=tiny_model, tagger=tagger_folder)
    assert any("shorter than the 0.025 s" in sentence for sentence in found.warnings)


@pytest.mark.parametrize("bad", [np.zeros(0, np.float32), np.full(900, np.nan, np.float32)])
def test_what_is_no_audio_is_refused(tiny_model, tagger_folder, bad):
    with pytest.raises(AudioError):
        tag(bad, model=tiny_model, tagger=tagger_folder)


def test_taggers_are_found_by_name(cache, tagger_folder, tmp_path):
    assert load_tagger() is None
    with pytest.raises(BundleNotFoundError, match=r"'ast' of kind tagger \(installed: none\)"):
        load_tagger("ast")
    for name in ("one", "two"):
        export_classifier(ast_folder(tmp_path / "s"), cache / "classifiers" / name, name=name)
        if name == "one":
            assert load_tagger().manifest.name == "one"
    with pytest.raises(OptionError, match="one, two"):
        load_tagger()
    assert load_tagger("two").manifest.name == "two"


def test_labels_without_instruments_are_refused(tmp_path):
    labels = tuple(f"LABEL_{i}" for i in range(7))
    config = {**ast_config(), **named(labels)}
    source = write_folder(tmp_path / "s", config, ast_tensors())
    export_classifier(source, tmp_path / "b", name="tiny")
    with pytest.raises(BundleError, match="no label that names an instrument"):
        load_tagger(tmp_path / "b")


def test_a_bundle_of_another_kind_is_refused(tiny_bundle, tmp_path):
    with pytest.raises(BundleError, match="describes a transcriber"):
        load_tagger(tiny_bundle)


def run(*arguments):
    """`mt3 tag` without its entry point."""
    parser = argparse.ArgumentParser()
    command = TagCommand()
    command.add_arguments(parser)
    return cli.guarded(lambda: command.run(parser.parse_args(list(map(str, arguments)))))


@pytest.fixture
def recording(tmp_path, audio):
    path = tmp_path / "song.wav"
    soundfile.write(path, audio, 16000)
    return path


def test_the_command_prints_text_json_and_tables(capsys, recording, tiny_bundle, tagger_folder):
    assert run(recording, "-m", tiny_bundle, "--tagger", tagger_folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{recording}: tagger (tiny): ")
    assert lines[1].startswith(f"{recording}: transcription (")
    assert run(recording, "-m", tiny_bundle, "--tagger", "none", "-f", "json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["tagger"] is None
    assert row["transcription"]["families"]
    assert run(recording, "-m", tiny_bundle, "-f", "csv") == 0
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head == "file,source,start,end,family,score"
    assert first.startswith(f"{recording},transcription,0.0,5.0,")


def test_one_bad_file_does_not_stop_the_others(capsys, recording, tiny_bundle, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    out = tmp_path / "tags.json"
    code = run(bad, recording, "-m", tiny_bundle, "-f", "json", "-o", out)
    said = capsys.readouterr().err
    assert code == cli.ExitCode.FAILED
    assert "bad.wav" in said
    assert [json.loads(row)["file"] for row in out.read_text().splitlines()] == [str(recording)]


def test_a_missing_tagger_is_one_line(capsys, recording, tiny_bundle):
    assert run(recording, "-m", tiny_bundle, "--tagger", "nobody") == cli.ExitCode.UNUSABLE
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "mt3 export yamnet" in said[0]


@pytest.mark.parametrize(
    ("name", "family", "seconds"),
    [
        ("violin_solo.mp3", "strings", 20),
        ("piano_bach.mp3", "piano", 10),
        ("drums_rock.flac", "drums", 6),
        ("drums_80s.flac", "drums", 6),
        ("drums_reggae.flac", "drums", 6),
        ("drums_fdnb.wav", "drums", 6),
    ],
)
def test_the_notes_of_the_default_model_name_the_family(
    shared, default_bundle, name, family, seconds
):
    samples = load_audio(shared / "audio" / name)[: seconds * 16000]
    found = tag(samples, model=default_bundle, tagger=False)
    assert found.transcription.families[0].name == family
