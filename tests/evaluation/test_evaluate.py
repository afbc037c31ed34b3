"""Labels, and `mt3 evaluate` from audio or notes to table, JSON and chart."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import soundfile

from mt3_evaluation import labels as labels_module
from mt3_evaluation.candidates import excerpt, read_findings
from mt3_evaluation.evaluation import unique_names
from mt3_evaluation.labels import Labels, find_labels, labelled_names, read_labels
from mt3_evaluation.metrics import METRICS
from mt3_runtime.cli import main
from mt3_runtime.errors import OptionError
from mt3_runtime.files.formats import render
from mt3_runtime.loading import load_model
from mt3_runtime.notes.note import Note
from tests.trees import snapshot

NOTES = "onset,offset,pitch,program\n0.5,1.0,60,0\n1.5,2.0,64,0\n3.0,3.5,67,0\n5.0,5.5,72,0\n"
DRUMS = "onset,class\n0.5,KD\n1.0,SD\n1.5,OT\n"
FOUND = [
    Note(0.5, 1.0, 60, 100),
    Note(1.5, 2.0, 64, 100, 33),
    Note(3.0, 3.1, 67, 100),
    Note(0.5, 0.5, 36, 100, is_drum=True),
]


@pytest.fixture
def folder(tmp_path):
    """Labels of three recordings, notes of two; `mixed` has both kinds of tables."""
    labels, notes = tmp_path / "labels", tmp_path / "notes"
    labels.mkdir()
    notes.mkdir()
    (labels / "mixed.notes.csv").write_text(NOTES)
    (labels / "mixed.drums.csv").write_text(DRUMS)
    (labels / "kit.drums.csv").write_text(DRUMS)
    (notes / "mixed.mid").write_bytes(render(FOUND, "midi"))
    (notes / "kit.json").write_bytes(render(FOUND, "json"))
    return tmp_path


@pytest.fixture
def evaluate(folder, capsys):
    """Runs the command on the folders: exit code, what was printed, what was said."""

    def run(*arguments):
        code = main(["evaluate", *map(str, arguments)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def evaluate_notes(evaluate, folder, *more):
    return evaluate("--notes", folder / "notes", "--labels", folder / "labels", *more)


# --- labels --------------------------------------------------------------------------------------


def test_tables_go_together(folder):
    files = find_labels("mixed", folder / "labels")
    assert [path.name for path in files] == ["mixed.notes.csv", "mixed.drums.csv"]
    found = read_labels(files)
    assert (found.pitched, found.drums, found.programs, found.drum_keys) == (
        True,
        True,
        True,
        False,
    )
    assert [note.pitch for note in found.notes if note.is_drum] == [35, 37, 37]
    assert len(found.notes) == 7


def test_a_table_says_nothing_about_the_other_kind(folder):
    found = read_labels(find_labels("kit", folder / "labels"))
    assert (found.pitched, found.drums, found.programs) == (False, True, False)
    assert not found.covers(Note(0, 1, 60, 100))
    assert found.covers(Note(0, 1, 36, 100, is_drum=True))


def test_a_table_without_programs(tmp_path):
    path = tmp_path / "a.notes.csv"
    path.write_text("\ufeffpitch,onset,offset,comment\n60,0.25,0.5,first\n", encoding="utf-8")
    found = read_labels([path])
    assert found == Labels(
        (Note(0.25, 0.5, 60, 100),), True, False, programs=False, drum_keys=False, files=(path,)
    )


@pytest.mark.parametrize("suffix", [".mid", ".midi", ".jsonl"])
def test_files_that_know_everything(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(render(FOUND, "jsonl" if suffix == ".jsonl" else "midi"))
    found = read_labels(find_labels("a", tmp_path))
    assert found.files == (path,)
    assert (found.pitched, found.drums, found.programs, found.drum_keys) == (True,) * 4
    assert len(found.notes) == len(FOUND)
    assert {(n.pitch, n.program, n.is_drum) for n in found.notes} == {
        (n.pitch, n.program, n.is_drum) for n in FOUND
    }


def test_short_note_objects_are_labels(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"onset": 1, "offset": 2, "pitch": 60}\n\n')
    assert read_labels([path]).notes == (Note(1.0, 2.0, 60, 100),)


def test_tables_are_preferred(folder):
    (folder / "labels" / "kit.mid").write_bytes(render(FOUND, "midi"))
    (file,) = find_labels("kit", folder / "labels")
    assert file.name == "kit.drums.csv"
    assert labelled_names(folder / "labels") == ["kit", "mixed"]
    assert find_labels("other", folder / "labels") == ()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.notes.csv",
            "onset,offset,pitch\n0,1,60\n1,x,60\n",
            "line 3: offset is 'x', expected a",
        ),
        ("a.notes.csv", "onset,offset,pitch\n0,1\n", "line 2: pitch is None, expected a number"),
        ("a.notes.csv", "onset,offset,pitch\n2,1,60\n", "line 2: the note spans 2..1 s, expected"),
        ("a.notes.csv", "onset,offset,pitch\n0,nan,60\n", "line 2: offset is 'nan', expected a"),
        (
            "a.notes.csv",
            "onset,offset,pitch\n0,1,60.5\n",
            "line 2: pitch is 60.5, expected a whole",
        ),
        ("a.notes.csv", "onset,offset,pitch\n0,1,128\n", "line 2: pitch is 128, expected a whole"),
        ("a.notes.csv", "onset,offset\n0,1\n", "line 1: the column 'pitch' is missing; expected"),
        ("a.notes.csv", "", "line 1: the column 'onset' is missing"),
        ("a.notes.csv", 'onset,offset,pitch\n"0"x,1,6\n', "line 2: "),
        ("a.notes.csv", "onset,offset,pitch,is_drum\n0,1,36,1\n", "line 2: a drum among pitched"),
        (
            "a.drums.csv",
            "onset,class\n0,KD\n1,XY\n",
            "line 3: the class is 'XY', expected one of KD",
        ),
        ("a.jsonl", '{"onset": 0, "offset": 1, "pitch": 1}\n{\n', "line 2: this is not valid JSON"),
        ("a.jsonl", "[1]\n", "line 1: expected a note object"),
        ("a.jsonl", '{"onset": 0, "offset": 1}\n', "line 1: pitch is None, expected a number"),
        ("a.mid", "MThd", "a.mid': not a readable MIDI file"),
    ],
)
def test_bad_labels_name_file_and_line(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(OptionError) as caught:
        read_labels([path])
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("separator", [";", "\t"])
def test_labels_of_spreadsheets(tmp_path, separator, encoding):
    tables = {
        "a.notes.csv": "Onset;Offset;Pitch;Program;Velocity\r\n0,25;1,5;60;40;\r\n;;;;\r\n",
        "a.drums.csv": "onset;class\r\n0,75;SD\r\n",
    }
    for name, text in tables.items():
        (tmp_path / name).write_bytes(text.replace(";", separator).encode(encoding))
    labels = read_labels([tmp_path / name for name in tables])
    assert labels.notes == (Note(0.25, 1.5, 60, 100, 40), Note(0.75, 0.75, 37, 100, 0, True))
    assert labels.programs


def test_labels_of_absurd_times(tmp_path):
    path = tmp_path / "a.notes.csv"
    for offset in ("1e308", "1e10"):
        path.write_text(f"onset,offset,pitch\n0,{offset},60\n")
        with pytest.raises(OptionError, match=r"line 2: the note spans 0\.\.1e\+\d+ s, expected"):
            read_labels([path])


@pytest.mark.parametrize("duration", ["1e308", '"ten"', "-1", "[]", "NaN"])
def test_notes_of_absurd_duration(tmp_path, duration):
    (tmp_path / "a.json").write_text(
        f'{{"format": "mt3-runtime.notes", "version": 1, "notes": [], "duration": {duration}}}'
    )
    with pytest.raises(OptionError, match=r"a\.json: the duration is .*, expected seconds"):
        read_findings("a", tmp_path)


def test_labels_that_are_no_text(tmp_path):
    path = tmp_path / "a.notes.csv"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(OptionError, match="a.notes.csv is not UTF-8 text"):
        read_labels([path])
    with pytest.raises(OptionError, match="b.notes.csv cannot be read: No such file"):
        read_labels([tmp_path / "b.notes.csv"])


# --- notes that are there already ----------------------------------------------------------------


def test_the_table(evaluate, folder):
    code, out, err = evaluate_notes(evaluate, folder)
    assert (code, err) == (0, "")
    title, gap, *lines = out.splitlines()
    assert title == f"notes in {folder / 'notes'}"
    assert gap == ""
    rows = [line.split() for line in lines]
    assert rows[0] == ["recording", "seconds", "labels", "notes", *METRICS]
    assert rows[1] == ["kit", "-", "3", "1", "-", "-", "0.500", *"------"]
    assert rows[2] == [
        "mixed", "-", "7", "4",
        "0.857", "0.571", "0.500", "0.545", "0.364", "0.364", "0.250", "1.500", "0.667",
    ]  # fmt: skip
    assert rows[3] == []
    assert [row[0] for row in rows[4:]] == ["pooled", "from", "to", "mean", "from", "to"]
    assert len({len(line) for line in lines if line and "from" not in line}) == 1  # aligned
    assert "nan" not in out


def test_drums_are_pooled_and_the_rest_stands_alone(evaluate, folder):
    (folder / "labels" / "kit.drums.csv").write_text(DRUMS + "7,CY\n")
    evaluate_notes(evaluate, folder, "--json", folder / "out.json")
    report = json.loads((folder / "out.json").read_text())
    kit, mixed = report["recordings"]
    assert kit["metrics"]["drums"]["value"] == 0.4
    assert report["pooled"]["drums"]["value"] == pytest.approx(4 / 9, abs=1e-6)  # of 4+1 and 3+1
    assert report["mean"]["drums"]["value"] == 0.45
    low, high = (report["pooled"]["drums"][end] for end in ("low", "high"))
    assert low < 0.4
    assert high >= 0.5
    for metric in set(METRICS) - {"drums"}:
        assert kit["metrics"][metric] is None
        for name in ("value", "low", "high"):
            expected = mixed["metrics"][metric][name]
            assert report["pooled"][metric][name] == report["mean"][metric][name] == expected


def test_the_document(evaluate, folder):
    code, out, _ = evaluate_notes(evaluate, folder, "--json", "-", "--seconds", "4", "--seed", "3")
    assert code == 0
    report = json.loads(out)
    assert (report["format"], report["version"]) == ("mt3-runtime.evaluation", 1)
    assert report["model"] is None
    assert report["skipped"] == {}
    assert {"mt3-runtime", "mir_eval", "numpy"} <= set(report["versions"])
    assert report["settings"] == {
        "seconds": 4.0, "tolerance": 0.05, "offset_ratio": 0.2, "window": 2.0, "resamples": 1000,
        "seed": 3,
    }  # fmt: skip
    mixed = report["recordings"][1]
    onset, leaked = mixed.pop("metrics")["onset"], report["recordings"][1]
    assert leaked == {
        "name": "mixed",
        "audio": None,
        "label_files": [
            str(folder / "labels" / f"mixed.{kind}.csv") for kind in ("notes", "drums")
        ],
        "notes_file": str(folder / "notes" / "mixed.mid"),
        "seconds": None,
        "token_digest": None,
        "labelled": {"pitched": True, "drums": True, "programs": True, "drum_keys": False},
        "labels": 6,
        "notes": 4,
    }
    assert onset == {
        "value": 1.0, "low": 1.0, "high": 1.0, "precision": 1.0, "recall": 1.0, "matched": 3,
        "labels": 3, "notes": 3,
    }  # fmt: skip


def test_equal_input_gives_equal_bytes(evaluate, folder):
    outs = []
    for name in ("a.json", "b.json"):
        evaluate_notes(evaluate, folder, "--json", folder / name, "--resamples", "50")
        outs.append((folder / name).read_bytes())
    assert outs[0] == outs[1]


def test_what_a_json_transcription_says_of_itself(evaluate, folder):
    document = json.loads(render(FOUND, "json")) | {"duration": 9.5, "token_digest": "abc"}
    (folder / "notes" / "kit.json").write_text(json.dumps(document))
    report = json.loads(evaluate_notes(evaluate, folder, "--json", "-")[1])
    assert report["recordings"][0]["seconds"] == 9.5
    assert report["recordings"][0]["token_digest"] == "abc"


def test_the_chart(evaluate, folder):
    path = folder / "chart.svg"
    assert evaluate_notes(evaluate, folder, "--plot", path)[0] == 0
    text = "\n".join(ET.parse(path).getroot().itertext())
    for words in ("kit", "mixed", "drum onset F1", "0.857", "not applicable", "pooled 0.500"):
        assert words in text
    assert "right instrument" not in text


def test_a_chart_of_one_bad_recording(evaluate, folder):
    (folder / "notes" / "kit.json").write_bytes(render([], "json"))
    (folder / "labels" / "mixed.notes.csv").unlink()
    (folder / "labels" / "mixed.drums.csv").unlink()
    path = folder / "chart.png"
    assert evaluate_notes(evaluate, folder, "--plot", path)[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")


# --- a model -------------------------------------------------------------------------------------


@pytest.fixture
def recordings(tmp_path, audio, tiny_bundle):
    """One recording whose labels are the tiny model's own notes, and one without labels."""
    place = tmp_path / "recordings"
    place.mkdir()
    soundfile.write(place / "song.wav", audio, 16000, subtype="FLOAT")
    soundfile.write(place / "other.wav", audio[:16000], 16000)
    with load_model(tiny_bundle) as model:
        result = model.transcribe_notes(place / "song.wav")
    lines = [
        json.dumps(
            {key: getattr(note, key) for key in ("onset", "offset", "pitch", "program", "is_drum")}
        )
        for note in result.notes
    ]
    (place / "song.jsonl").write_text("\n".join(lines))
    return place, result


def test_a_model_against_its_own_notes(evaluate, recordings, tiny_bundle):
    place, result = recordings
    code, out, err = evaluate(place, "-m", tiny_bundle, "--json", "-")
    assert code == 0
    assert f"skipped: other: no labels in {place}" in err
    report = json.loads(out)
    assert report["skipped"] == {"other": f"no labels in {place}"}
    assert report["model"]["name"] == "tiny"
    assert len(report["model"]["export_id"]) == 32
    assert report["model"]["decoding"] == "greedy"
    assert report["model"]["auto_filter"] is True
    (song,) = report["recordings"]
    assert song["token_digest"] == result.token_digest
    assert song["seconds"] == 9.0
    assert song["notes"] == song["labels"] == len(result.notes)
    applicable = {name: item["value"] for name, item in song["metrics"].items() if item}
    assert applicable.pop("leaked") == 0.0
    assert set(applicable.values()) == {1.0}


def test_reports_replace_no_recording_label_or_model(evaluate, recordings, tiny_bundle, tmp_path):
    place, _ = recordings
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    before = snapshot(tmp_path)
    for path in (place / "song.wav", place / "song.jsonl", bundle / "bundle.json"):
        code, out, err = evaluate(place, "-m", bundle, "--json", path)
        assert (code, out) == (1, "")
        assert "cannot write" in err
    assert snapshot(tmp_path) == before


def test_an_excerpt_is_scored_as_if_all_had_been_transcribed(evaluate, recordings, tiny_bundle):
    place, result = recordings
    code, out, _ = evaluate(
        place / "song.wav", "-m", tiny_bundle, "--seconds", "3", "--no-auto-filter"
    )
    assert code == 0
    assert out.startswith("tiny (fp32, greedy), first 3 s\n")
    row = out.splitlines()[3].split()
    count = str(sum(note.onset < 3 for note in result.notes))
    assert row[:4] == ["song", "3.0", count, count]
    assert row[7] == "1.000"


def test_an_excerpt_has_a_tail(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(44100 * 20, np.float32), 44100)
    assert len(excerpt(tmp_path / "a.wav", 5.0, rate=16000)) == 15 * 16000
    assert len(excerpt(tmp_path / "a.wav", 60.0, rate=16000)) == 20 * 16000


def test_what_transcribe_left_beside_the_audio_is_no_label(evaluate, recordings, tiny_bundle):
    place, result = recordings
    for name in ("song.mid", "song.jsonl"):
        (place / "song.jsonl").unlink(missing_ok=True)
        result.save(place / name)
        code, _, err = evaluate(place / "song.wav", "-m", tiny_bundle)
        assert code == 2
        assert "no recording has labels" in err
    code, *_ = evaluate(place / "song.wav", "-m", tiny_bundle, "--labels", place)
    assert code == 0


def test_unreadable_audio_does_not_stop_the_others(evaluate, recordings, tiny_bundle):
    place, _ = recordings
    (place / "broken.wav").write_bytes(b"RIFF")
    (place / "broken.notes.csv").write_text(NOTES)
    (place / "damaged.wav").write_bytes(b"RIFF")
    (place / "damaged.notes.csv").write_text("onset\n")
    code, out, err = evaluate(place, "-m", tiny_bundle)
    assert code == 1
    assert "error: broken: " in err
    assert "damaged.notes.csv, line 1: the column" in err
    assert [line.split()[0] for line in out.splitlines()[3:4]] == ["song"]
    (place / "song.jsonl").unlink()
    assert evaluate(place, "-m", tiny_bundle)[:2] == (1, "")
    code, out, err = evaluate(place / "nothing.wav", "-m", tiny_bundle)
    assert (code, out) == (1, "")
    assert "error: There is no audio file at" in err


def test_truncated_segments_are_mentioned(evaluate, recordings, tiny_bundle, monkeypatch):
    place, _ = recordings
    monkeypatch.setattr(
        "mt3_runtime.transcription.Transcription.warnings", property(lambda self: ["mind this"])
    )
    assert (
        "warning: " + str(place / "song.wav") + ": mind this"
        in evaluate(place, "-m", tiny_bundle)[2]
    )


# --- what can go wrong ---------------------------------------------------------------------------


def test_notes_that_are_missing(evaluate, folder):
    (folder / "notes" / "kit.json").unlink()
    code, out, err = evaluate_notes(evaluate, folder)
    assert code == 1
    assert "error: kit: There are no notes of kit in" in err
    assert "mixed" in out
    (folder / "notes" / "mixed.mid").unlink()
    assert evaluate_notes(evaluate, folder)[:2] == (1, "")


def test_labels_are_not_compared_with_themselves(evaluate, folder):
    (folder / "notes" / "new.mid").write_bytes(render(FOUND, "midi"))
    code, _, err = evaluate("--notes", folder / "notes", "--labels", folder / "notes")
    assert code == 1
    assert "would be compared with itself" in err


def test_damaged_labels_alone(evaluate, folder):
    for path in (folder / "labels").iterdir():
        path.write_text("x\n")
    code, out, err = evaluate_notes(evaluate, folder)
    assert (code, out) == (1, "")
    assert err.count("line 1: the column 'onset' is missing") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name audio files or folders"),
        (["--notes", "{}/notes"], "Name audio files or folders"),
        (["--notes", "{}/nowhere", "--labels", "{}/labels"], "--notes takes a folder"),
        (["x.wav", "--labels", "{}/nowhere"], "--labels takes a folder"),
        (["--notes", "{}/notes", "--labels", "{}/notes/.."], "no recording has labels"),
        (["x.wav", "--resamples", "0"], "--resamples must be at least 1"),
        (["x.wav", "--plot", "scores.gif"], "A picture must be named *.png, *.svg, *.pdf"),
        (["x.wav", "--seconds", "0"], "'0' is not a length in seconds"),
        (["x.wav", "--seconds", "long"], "'long' is not a time in seconds"),
    ],
)
def test_contradictions(evaluate, folder, arguments, message):
    code, out, err = evaluate(*(text.format(folder) for text in arguments))
    assert (code, out) == (2, "")
    assert message in err


def test_reports_are_checked_before_the_work(evaluate, folder):
    code, out, err = evaluate_notes(evaluate, folder, "--json", folder / "no" / "folder.json")
    assert (code, out) == (1, "")
    assert "there is no folder" in err


@pytest.mark.parametrize("option", ["--json", "--plot"])
@pytest.mark.parametrize("name", ["labels/mixed.notes.csv", "notes/mixed.mid", "notes/kit.json"])
def test_reports_replace_nothing_that_is_judged(evaluate, folder, option, name):
    before = snapshot(folder)
    code, out, err = evaluate_notes(evaluate, folder, option, folder / name)
    assert (code, out) == (1, "")
    assert "it is also an input" in err
    assert snapshot(folder) == before


def test_names_stay_unique(tmp_path):
    paths = [tmp_path / name for name in ("a.wav", "a.mp3", "b.wav", "c/d.wav", "e/d.wav")]
    assert unique_names(paths) == ["a.wav", "a.mp3", "b", str(paths[3]), str(paths[4])]


def test_what_a_module_promises_about_suffixes():
    assert all(suffix in labels_module.__doc__ for suffix in labels_module.SUFFIXES)
