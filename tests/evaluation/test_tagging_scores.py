"""`mt3 evaluate --tags`: families that are heard, against labels."""

from __future__ import annotations

import json

import pytest
import soundfile

from mt3_analysis.tagging.note_evidence import note_evidence
from mt3_analysis.tagging.tag_results import Evidence, Scored, Tags
from mt3_evaluation.labels import Labels
from mt3_evaluation.tagging_scores import Heard, average_precision, document, families_of, measured
from mt3_export.classifiers.classifier_writer import export_classifier
from mt3_runtime.cli import main
from mt3_runtime.files.formats import render
from mt3_runtime.notes.note import Note
from tests.classifier_networks import ast_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def note(program, *, drum=False, length=1.0):
    return Note(0.0, length, 40, 100, program, drum)


def heard(name, known, *notes, judged=None, tagged=None):
    said = note_evidence(notes, 1.0, "m")
    scored = None if tagged is None else tuple(Scored(*item) for item in tagged)
    other = None if scored is None else Evidence("tagger", "t", scored, (), ())
    return Heard(name, frozenset(known), judged, Tags(1.0, said, other, ()))


def test_average_precision_of_a_known_order():
    assert average_precision([(0.9, True), (0.5, False), (0.4, True)]) == pytest.approx(5 / 6)
    assert average_precision([(0.2, False), (0.9, True)]) == 1.0
    assert average_precision([(0.5, True), (0.5, False)]) == 0.5  # ties are no merit
    assert average_precision([(0.1, False)]) == 0.0


def test_figures_of_three_recordings():
    rows = [
        heard("a", {"strings"}, note(40), tagged=[("strings", 0.9), ("piano", 0.3)]),
        heard("b", {"piano"}, note(73), tagged=[("piano", 0.4)]),
        heard("c", {"piano", "drums"}, note(0), note(0, drum=True), tagged=[("organ", 0.2)]),
    ]
    notes, tagger = measured(rows, "transcription"), measured(rows, "tagger")
    assert (notes["first"], tagger["first"]) == (2, 2)
    assert (notes["precision"], notes["recall"]) == (0.75, 0.75)
    assert (tagger["precision"], tagger["recall"]) == (0.5, 0.5)
    both = measured(rows, "both")
    assert (both["precision"], both["recall"], both["first"]) == (1.0, 0.25, None)
    assert tagger["ap_by_family"]["strings"] == 1.0


def test_what_labels_do_not_know_is_not_judged():
    known, judged = families_of(Labels((note(0, drum=True),), pitched=False, programs=False))
    assert (known, judged) == ({"drums"}, {"drums"})
    row = heard("a", known, note(40), note(0, drum=True), judged=judged)
    assert row.found("transcription") == {"drums"}
    assert row.first("transcription") == "drums"
    everything = families_of(Labels((note(40), note(0, drum=True))))
    assert everything == ({"strings", "drums"}, None)
    assert families_of(Labels((note(40),), drums=False, programs=False)) == (set(), set())


def test_without_a_tagger_only_the_notes_are_shown():
    report = document([heard("a", {"strings"}, note(40))], tagger=None)
    assert list(report["sources"]) == ["transcription"]


def test_the_command(tiny_bundle, audio, cache, tmp_path, capsys):
    folder = tmp_path / "audio"
    folder.mkdir()
    for name in ("one", "two", "bare", "tuneless"):
        soundfile.write(folder / f"{name}.wav", audio[:48000], 16000)
    for name in ("one", "two"):
        (folder / f"{name}.mid").write_bytes(render([note(40), note(0, drum=True)], "midi"))
    (folder / "tuneless.notes.csv").write_text("onset,offset,pitch\n0.1,0.5,45\n")
    (folder / "broken.wav").write_bytes(b"no audio")
    (folder / "broken.mid").write_bytes(render([note(40)], "midi"))
    export_classifier(ast_folder(tmp_path / "source"), cache / "classifiers" / "tiny", name="tiny")
    out = tmp_path / "tags.json"
    call = ["evaluate", "--tags", str(folder), "-m", str(tiny_bundle), "--labels", str(folder)]
    assert main([*call, "--json", str(out)]) == 1  # one is broken, the others are judged
    shown = capsys.readouterr()
    assert "broken" in shown.err
    assert "bare: no labels" in shown.err
    assert "tuneless: its labels name no instrument" in shown.err
    assert "transcription" in shown.out
    report = json.loads(out.read_bytes())
    assert report["tagger"] == "tiny"
    assert [row["name"] for row in report["recordings"]] == ["one", "two"]
    assert report["recordings"][0]["labels"] == ["drums", "strings"]
    assert set(report["sources"]) == {"tagger", "transcription", "either", "both"}


@pytest.mark.parametrize("more", [["--confidence"], ["--plot", "a.png"], ["--seconds", "3"]])
def test_options_without_use_are_refused(more, tmp_path, tiny_bundle, capsys):
    code = main(["evaluate", "--tags", str(tmp_path), "-m", str(tiny_bundle), *more])
    assert code != 0
    assert "--tags" in capsys.readouterr().err


def test_nothing_labelled_is_one_error(tmp_path, audio, tiny_bundle, capsys):
    soundfile.write(tmp_path / "a.wav", audio[:16000], 16000)
    assert main(["evaluate", "--tags", str(tmp_path), "-m", str(tiny_bundle)]) == 2
    assert "Nothing to score" in capsys.readouterr().err
