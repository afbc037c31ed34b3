"""`mt3 evaluate --leakage`: what leaks, and what the filters make of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_evaluation.leakage_study.leakage_scores import FILTERS, Row, chart, document, table
from mt3_evaluation.plots import to_bytes
from mt3_evaluation.scoring import Score
from mt3_runtime.cli import main
from mt3_runtime.leakage.leakage_report import AUTO_FILTERS
from mt3_runtime.loading import load_model
from tests.runtime.test_filtering import drum_loop
from tests.trees import snapshot


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory, audio) -> Path:
    place = tmp_path_factory.mktemp("recordings")
    soundfile.write(place / "drums_loop.wav", drum_loop(4.0), 16000)
    (place / "drums_loop.drums.csv").write_text("onset,class\n0.0,KD\n0.5,HH\n")
    soundfile.write(place / "song.wav", audio, 16000, subtype="FLOAT")
    (place / "song.notes.csv").write_text("onset,offset,pitch\n0.1,0.5,45\n")
    soundfile.write(place / "unlabelled.wav", audio[:20000], 16000)
    return place


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["evaluate", "--leakage", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_every_recording_model_and_filter_has_a_row(recordings, tiny_bundle, tmp_path, capsys):
    plot, out = tmp_path / "leak.png", tmp_path / "leak.json"
    models = ["-m", tiny_bundle, "--against", tiny_bundle]
    code, shown, _ = run(capsys, recordings, *models, "--json", out, "--plot", plot)
    assert code == 0
    rows = json.loads(out.read_text())["rows"]
    names = ["drums_loop", "song", "unlabelled"]
    assert [(r["model"], r["recording"], r["filter"]) for r in rows] == [
        (model, name, kind) for model in ("tiny", str(tiny_bundle)) for name in names
        for kind in FILTERS
    ]  # fmt: skip
    with load_model(tiny_bundle) as model:
        for row in rows[:9]:
            path = recordings / f"{row['recording']}.wav"
            notes = model.transcribe_notes(path, auto_filter=AUTO_FILTERS[row["filter"]]).notes
            assert row["notes"] == len(notes)
            assert row["melodic"] == sum(not note.is_drum for note in notes)
    assert all((row["drum_f1"] is None) == (row["recording"] != "drums_loop") for row in rows)
    assert all((row["onset_f1"] is None) == (row["recording"] != "song") for row in rows)
    assert "all drum stems" in shown
    assert "all others" in shown
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["song.wav", "drums_loop.drums.csv", "bundle/bundle.json"])
def test_reports_replace_nothing_that_is_read(recordings, tiny_bundle, tmp_path, capsys, name):
    place = Path(shutil.copytree(recordings, tmp_path / "place"))
    bundle = shutil.copytree(tiny_bundle, place / "bundle")
    before = snapshot(place)
    words = (place, "-m", tiny_bundle, "--against", bundle, "--json", place / name)
    code, _, err = run(capsys, *words)
    assert code == 1
    assert "cannot write" in err
    assert snapshot(place) == before


def test_only_the_beginning(recordings, tiny_bundle, capsys):
    code, shown, _ = run(
        capsys, recordings / "song.wav", "-m", tiny_bundle, "--seconds", 3, "--json", "-", "-q"
    )
    assert code == 0
    (first, *_) = json.loads(shown)["rows"]
    with load_model(tiny_bundle) as model:
        begin = soundfile.read(recordings / "song.wav", dtype="float32")[0][:48000]
        assert first["notes"] == len(model.transcribe_notes(begin, auto_filter=False).notes)


def test_bad_files_do_not_stop_the_others(recordings, tiny_bundle, tmp_path, capsys):
    (tmp_path / "bad.wav").write_bytes(b"noise")
    code, shown, err = run(capsys, tmp_path / "bad.wav", recordings / "song.wav", "-m", tiny_bundle)
    assert code == 1
    assert "bad" in err
    assert "song" in shown
    assert run(capsys, tmp_path / "bad.wav", "-m", tiny_bundle)[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [["--leakage"], ["--leakage", "x.wav", "--notes", "."], ["x.wav", "--against", "y"],
     ["--leakage", "x.wav", "--plot", "x.jpg"]],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(arguments, capsys):
    assert main(["evaluate", *arguments]) == 2
    assert "error" in capsys.readouterr().err


ROWS = [
    Row("drums_a", "mt3", "off", 100, 20, 20, Score(40, 60, 80), None),
    Row("drums_a", "mt3", "on", 90, 0, 20, Score(45, 60, 90), None),
    Row("drums_a", "mt3", "classic", 80, 0, 20, Score(40, 60, 80), None),
    Row("band", "mt3", "off", 10, 5, 5, None, Score(1, 2, 5)),
    Row("band", "mt3", "on", 10, 5, 5, None, Score(1, 2, 5)),
    Row("band", "mt3", "classic", 5, 0, 5, None, Score(0, 2, 0)),
    Row("silence", "mt3", "off", 0, 0, 0, None, None),
]


def test_the_table():
    lines = table(ROWS).splitlines()
    assert lines[1].split() == ["drums_a", "mt3", "off", "100", "80.0", "%", "100.0", "%", "0.571",
                                "-"]  # fmt: skip
    assert lines[2].split()[3:8] == ["90", "100.0", "%", "0.0", "%"]
    assert lines[7].split() == ["silence", "mt3", "off", "0", "-", "-", "-", "-"]
    assert [line.split()[:4] for line in lines if line.startswith("all drum")][1] == [
        "all", "drum", "stems", "mt3",
    ]  # fmt: skip
    assert document(ROWS)["rows"][4]["onset_f1"] == pytest.approx(2 / 7, abs=1e-6)


def test_the_chart_is_the_same_every_time():
    one, other = (to_bytes(chart(ROWS), "svg") for _ in range(2))
    assert one == other
    assert b"notes of drum stems on other instruments" in one
    assert b"20.0%" in one
    assert np.frombuffer(to_bytes(chart(ROWS[3:6]), "png"), np.uint8).size > 5000
