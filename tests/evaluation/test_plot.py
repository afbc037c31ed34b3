"""`mt3 plot`: what is in the picture, by its SVG text, and what can go wrong."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET

import mido
import pytest

from mt3_evaluation import pianoroll
from mt3_evaluation.family_chart import read_tags
from mt3_evaluation.labels import Labels
from mt3_evaluation.pianoroll import View, draw, pitch_name
from mt3_evaluation.plots import PALETTE, to_bytes
from mt3_runtime.cli import main
from mt3_runtime.files.formats import render
from mt3_runtime.notes.note import Note

MELODY = [Note(0.5 * i, 0.5 * i + 0.4, 60 + i, 100, 40) for i in range(8)]
CHORDS = [Note(float(i), i + 0.9, 48, 100, 0) for i in range(2)]
DRUMS = [Note(0.5 * i, 0.5 * i, (36, 38, 42, 39)[i % 4], 100, is_drum=True) for i in range(8)]
PIECE = [*MELODY, *CHORDS, *DRUMS]


@pytest.fixture
def plot(tmp_path, capsys):
    """Runs the command on a file of notes: exit code, what was printed, what was said."""

    def run(*arguments, notes=PIECE, suffix="mid"):
        name = {"mid": "midi"}.get(suffix, suffix)
        (tmp_path / f"song.{suffix}").write_bytes(render(notes, name))
        code = main(["plot", str(tmp_path / f"song.{suffix}"), *map(str, arguments)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def words(path_or_bytes):
    data = path_or_bytes if isinstance(path_or_bytes, bytes) else path_or_bytes.read_bytes()
    return [text.strip() for text in ET.fromstring(data).itertext() if text.strip()]


def picture(notes, start=0.0, end=4.0, **options):
    figure = draw(notes, View(start, end), title="t", **options)
    return words(to_bytes(figure, "svg"))


@pytest.mark.parametrize("suffix", ["mid", "json", "jsonl", "csv"])
def test_the_default_is_a_picture_beside_the_notes(plot, tmp_path, suffix):
    code, out, err = plot(suffix=suffix)
    assert (code, out, err) == (0, f"{tmp_path / 'song.png'}\n", "")
    assert (tmp_path / "song.png").read_bytes().startswith(b"\x89PNG")


def test_a_made_up_name_replaces_nothing(plot, tmp_path):
    (tmp_path / "song.png").write_text("mine")
    code, out, err = plot()
    assert (code, out) == (2, "")
    assert "exists; name it with -o, or add --overwrite" in err
    assert (tmp_path / "song.png").read_text() == "mine"
    assert plot("--overwrite")[0] == 0
    assert plot("-o", tmp_path / "song.png")[0] == 0


def test_what_is_in_the_picture(plot, tmp_path):
    assert plot("-o", tmp_path / "a.svg", "--title", "A & B")[0] == 0
    found = words(tmp_path / "a.svg")
    for text in ("A & B", "Violin  8", "Grand Piano  2", "C3", "C4", "seconds"):
        assert text in found, text
    for text in ("kick", "snare", "hi-hat", "other", "10 notes   ·   8 drums"):
        assert text in found, text
    assert "toms" not in found  # rows of nothing are left out


def test_equal_notes_give_equal_bytes(plot, tmp_path):
    for suffix in ("svg", "png", "pdf"):
        contents = []
        for name in ("a", "b"):
            path = tmp_path / f"{name}.{suffix}"
            assert plot("-o", path)[0] == 0
            contents.append(path.read_bytes())
        assert contents[0] == contents[1]
        assert len(contents[0]) > 5000


def test_an_excerpt(plot, tmp_path):
    plot("-o", tmp_path / "a.svg", "--start", "2", "--seconds", "1.5")
    found = words(tmp_path / "a.svg")
    assert "Violin  3" in found
    assert "Grand Piano  2" not in found
    assert "3 notes   ·   3 drums" in found


def test_notes_that_sound_into_an_excerpt_are_in_it():
    assert "Grand Piano  1" in picture(CHORDS, 0.5, 0.95)


def test_one_kind_alone():
    found = picture(MELODY)
    assert "8 notes" in found
    assert "kick" not in found
    found = picture(DRUMS)
    assert "8 drums" in found
    assert "C4" not in found
    assert "1 note" in picture(MELODY[:1])


def test_instruments_beyond_the_palette_share_a_colour():
    notes = [Note(0.1 * i, 1.0, 60, 100, i) for i in range(len(PALETTE) + 3)]
    assert "others  3" in picture(notes)


def test_more_notes_come_first_in_the_legend():
    assert list(pianoroll._colours([*CHORDS, *MELODY])) == [40, 0]


def test_compared_with_labels():
    missed = Note(3.6, 3.8, 70, 100, 40)
    labels = Labels((*MELODY[1:], missed, *DRUMS[2:]), drum_keys=False)
    found = picture([*MELODY, *DRUMS], labels=labels)
    assert "extra  1" in found
    assert "missed  1" in found
    assert f"note onset F1 {2 * 7 / 16:.3f}   ·   drum onset F1 {2 * 6 / 14:.3f}" in found


def test_what_is_not_labelled_is_neither_right_nor_wrong():
    labels = Labels(tuple(DRUMS), pitched=False, programs=False, drum_keys=False)
    found = picture(PIECE, labels=labels)
    assert "10 notes   ·   drum onset F1 1.000" in found
    assert not [text for text in found if text.startswith(("extra", "missed"))]


def test_only_labels_are_there():
    found = picture([], labels=Labels(tuple(MELODY)))
    assert "missed  8" in found
    assert "note onset F1 0.000" in found


def test_labels_by_file_and_by_folder(plot, tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "song.notes.csv").write_text("onset,offset,pitch\n0,0.4,60\n9,9.4,60\n")
    for labels in (folder, folder / "song.notes.csv"):
        code, *_ = plot("-o", tmp_path / "a.svg", "--labels", labels)
        assert code == 0
        assert "missed  1" in words(tmp_path / "a.svg")
    code, _, err = plot("-o", tmp_path / "a.svg", "--labels", tmp_path / "labels" / "..")
    assert code == 0  # song.mid itself: all is right
    (folder / "song.notes.csv").unlink()
    code, _, err = plot("-o", tmp_path / "a.svg", "--labels", folder)
    assert code == 2
    assert f"There are no labels of song in {folder}" in err


def test_the_picture_does_not_replace_the_labels(plot, tmp_path):
    labels = tmp_path / "song.png"
    labels.write_text("onset,offset,pitch\n0,0.4,60\n")
    code, _, err = plot("-o", labels, "--labels", labels)
    assert code == 1
    assert "also an input" in err
    assert labels.read_text().startswith("onset")


def test_names_of_octaves():
    assert [pitch_name(pitch) for pitch in (0, 60, 120)] == ["C-1", "C4", "C9"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a.gif"], "A picture must be named *.png, *.svg, *.pdf: a.gif"),
        (["--start", "100", "--seconds", "1"], "There is no note from 100 s to 101 s"),
        (["--start", "-1"], "'-1' is not a time in seconds"),
    ],
)
def test_contradictions(plot, arguments, message):
    code, out, err = plot(*arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_nothing_to_draw(plot, tmp_path):
    code, _, err = plot(notes=[])
    assert code == 2
    assert "There is no note" in err
    assert not (tmp_path / "song.png").exists()


ABSURD = {
    "json": [
        '"onset": 0, "offset": 1e308, "pitch": 60',
        '"onset": NaN, "offset": 1, "pitch": 60',
        '"onset": 0, "offset": Infinity, "pitch": 60',
        '"onset": -1e308, "offset": 1, "pitch": 60',
        f'"onset": 0, "offset": 1{"0" * 400}, "pitch": 60',
        '"onset": 0, "offset": 1e10, "pitch": 60, "is_drum": true',
        '"onset": 0, "offset": 1, "pitch": 200',
        '"onset": 0, "offset": 1, "pitch": -1e300',
        f'"onset": 0, "offset": 1, "pitch": 6{"0" * 5000}',
        '"onset": 0, "offset": 1, "pitch": 60, "program": 128',
        '"onset": 0, "offset": 1, "pitch": 60, "velocity": 1e308',
        '"onset": 0, "offset": 1, "pitch": 60, "confidence": 1e308',
        '"onset": 0, "offset": 1, "pitch": 60, "probabilities": {"pitch": -3}',
    ],
    "csv": [
        "0,1e308,60",
        "nan,1,60",
        "0,inf,60",
        "-1,1,60",
        "0,1,1e308",
        "0,1,200",
        "1e11,2e11,60",
    ],
}


@pytest.mark.parametrize(
    ("suffix", "note"), [(suffix, note) for suffix, notes in ABSURD.items() for note in notes]
)
def test_absurd_numbers_are_one_error(tmp_path, capsys, suffix, note):
    path = tmp_path / f"song.{suffix}"
    document = f'{{"format": "mt3-runtime.notes", "version": 1, "notes": [{{{note}}}]}}'
    path.write_text({"json": document, "csv": f"onset,offset,pitch\n{note}\n"}[suffix])
    assert main(["plot", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mt3: error: '{path}': ")
    assert not (tmp_path / "song.png").exists()


@pytest.mark.parametrize("end", [1e-300, 1e9])
def test_the_shortest_and_the_longest_piece(plot, end):
    notes = [Note(0.0, end, 60, 100), Note(end / 2, end, 36, 100, is_drum=True)]
    assert plot(notes=notes, suffix="jsonl" if end > 1 else "mid")[0] == 0


def test_midi_files_of_absurd_length_are_one_error(tmp_path, capsys):
    """Sixteen seconds to a tick, and 2 ** 28 ticks to a note."""
    song = mido.MidiFile(ticks_per_beat=1)
    for _ in range(2):
        track = song.add_track()
        track.append(mido.MetaMessage("set_tempo", tempo=2**24 - 1))
        track.append(mido.Message("note_on", note=60))
        track.append(mido.Message("note_off", note=60, time=2**28 - 1))
    song.save(tmp_path / "song.mid")
    assert main(["plot", str(tmp_path / "song.mid")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "song.mid': note 0 spans 0.0..4503" in line


def test_notes_that_may_be_missing_are_said(plot, tmp_path, capsys):
    plot(suffix="mid")
    data = (tmp_path / "song.mid").read_bytes()
    (tmp_path / "cut.mid").write_bytes(data[: data.rindex(b"MTrk")])
    assert main(["plot", str(tmp_path / "cut.mid")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mt3: warning: {tmp_path / 'cut.mid'}: the MIDI file holds 3 tracks")


def test_without_matplotlib(plot, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = plot()
    assert code == 3
    assert "the extra [viz]: pip install" in err


def tags_file(path, *names, score=0.5, windows=None):
    """What `mt3 tag -f json` writes of so many recordings."""
    given = windows or [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0)]
    heard = [
        {"start": a, "end": b, "families": [{"name": "strings", "score": score}]} for a, b in given
    ]
    rows = [
        {
            "file": f"/music/{name}.wav",
            "tagger": {"source": "tagger", "windows": heard},
            "transcription": {"source": "transcription", "windows": heard[:1]},
        }
        for name in names
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_instruments_over_time_are_drawn_below(plot, tmp_path):
    tags = tags_file(tmp_path / "tags.json", "song", "other")
    code, _, _ = plot("-o", tmp_path / "song.svg", "--tags", tags)
    assert code == 0
    shown = words(tmp_path / "song.svg")
    assert {"tagger", "transcription", "strings"} <= set(shown)
    plot("-o", tmp_path / "bare.svg")
    assert "tagger" not in words(tmp_path / "bare.svg")


def test_windows_that_overlap_are_drawn_once(tmp_path):
    panel, _ = read_tags(tags_file(tmp_path / "tags.json", "a"), "another name")
    assert [window[:2] for window in panel.windows] == [(0.0, 1.0), (1.0, 2.0), (2.0, 4.0)]
    assert panel.rows(0.0, 4.0) == ["strings"]
    assert panel.rows(9.0, 10.0) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "nonsense",
        '{"file": 3}',
        '{"file": "a.wav", "tagger": 3, "transcription": null}',
    ],
)
def test_what_is_no_result_of_tag_is_refused(plot, tmp_path, text):
    (tmp_path / "tags.json").write_text(text)
    code, _, said = plot("-o", tmp_path / "a.png", "--tags", tmp_path / "tags.json")
    assert code == 2
    assert "tags.json" in said
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("score", [-1, 7, "NaN", None])
def test_scores_that_are_none_are_refused(plot, tmp_path, score):
    tags = tags_file(tmp_path / "tags.json", "song", score=score)
    assert plot("-o", tmp_path / "a.png", "--tags", tags)[0] == 2


def test_tags_of_several_others_are_not_guessed_at(plot, tmp_path):
    tags = tags_file(tmp_path / "tags.json", "one", "two")
    code, _, said = plot("-o", tmp_path / "a.png", "--tags", tags)
    assert code == 2
    assert "2 recordings" in said
