"""The board of all test sets: what is scored, what is guarded, what is put together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mt3_evaluation.scoreboards import scoreboard, testsets
from mt3_evaluation.scoreboards.scoreboard import RECORDED, SYNTHETIC, is_final, main, open_set
from mt3_evaluation.scoreboards.scoreboard_report import chart, markdown, merged, read
from mt3_evaluation.scoreboards.testsets import cached_test_set, set_named
from mt3_runtime.errors import BundleError, OptionError, OutputError
from mt3_runtime.files.formats import load_notes
from tests.synthesis.sounds import tiny_bank

DEMO = Path(__file__).parents[2] / "calibration" / "demo"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, and sets that are played with one tiny bank."""
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MT3_SHARED", raising=False)
    font = tmp_path / "font.sf2"
    font.write_bytes(b"sounds")
    monkeypatch.setattr(testsets, "find", lambda source: (font,))
    monkeypatch.setattr(testsets, "build_bank", lambda source: tiny_bank(source.name))
    return tmp_path / "cache" / "calibration" / "testsets"


@pytest.fixture
def recordings(tmp_path):
    """Recordings under the names of the real ones."""
    folder = tmp_path / "audio"
    folder.mkdir()
    for kinds in RECORDED.values():
        for name in (name for names in kinds.values() for name in names):
            shutil.copy(DEMO / "demo.flac", folder / name)
            stem = Path(name).stem
            if stem.startswith(("drums", "band")):
                (folder / f"{stem}.drums.csv").write_text("onset,class\n2.143,KD\n")
            else:
                (folder / f"{stem}.notes.csv").write_text("onset,offset,pitch\n0.0,0.5,57\n")
    return folder


def test_a_set_is_made_once_and_checked(cache):
    spec = set_named("e1")
    first = cached_test_set(spec, count=2, seconds=2.0)
    assert [path.name for path in first.recordings] == ["e1-000.wav", "e1-001.wav"]
    assert first.folder.parent == cache
    made = first.recordings[0].stat().st_mtime_ns
    again = cached_test_set(spec, count=2, seconds=2.0)
    assert again == first
    assert first.recordings[0].stat().st_mtime_ns == made
    assert cached_test_set(spec, count=3, seconds=2.0).digest != first.digest
    first.recordings[1].write_bytes(b"damaged")
    with pytest.raises(BundleError, match="e1-001.wav is damaged; delete"):
        cached_test_set(spec, count=2, seconds=2.0)


def test_other_sounds_are_another_set(cache, tmp_path):
    before = cached_test_set(set_named("e1"), count=1, seconds=2.0).folder
    (tmp_path / "font.sf2").write_bytes(b"other sounds")
    assert cached_test_set(set_named("e1"), count=1, seconds=2.0).folder != before


def test_a_set_that_was_not_finished_is_made_again(cache):
    made = cached_test_set(set_named("e1"), count=1, seconds=2.0)
    (made.folder / testsets.SUMS).unlink()
    made.recordings[0].unlink()
    (made.folder / "mine.wav").write_bytes(b"mine")
    assert cached_test_set(set_named("e1"), count=1, seconds=2.0) == made
    assert load_notes(made.recordings[0].with_suffix(".mid"))
    assert (made.folder / "mine.wav").read_bytes() == b"mine"
    assert "mine" not in (made.folder / testsets.SUMS).read_text()


def test_a_foreign_file_in_the_place_of_a_recording_stays(cache):
    made = cached_test_set(set_named("e1"), count=1, seconds=2.0)
    (made.folder / testsets.SUMS).unlink()
    made.recordings[0].write_bytes(b"mine")
    with pytest.raises(OutputError, match="e1-000.wav is there"):
        cached_test_set(set_named("e1"), count=1, seconds=2.0)
    assert made.recordings[0].read_bytes() == b"mine"


def test_what_is_kept_for_the_end():
    assert [name for name in (*SYNTHETIC, *RECORDED) if is_final(name)] == [
        "e2", "e3", "e4", "e5", "e6",
    ]  # fmt: skip


def test_sets_know_the_kinds_of_their_music(cache, recordings):
    board = open_set("e3", count=4, seconds=2.0)
    assert [member.kind for member in board.members] == ["piano", "line", "ensemble", "piano"]
    board = open_set("e5", recordings=recordings)
    assert [(m.kind, m.recording.name) for m in board.members][2:4] == [
        ("drums", "drums_rock"),
        ("bands", "band_hendrix"),
    ]
    assert not board.members[0].recording.labels.pitched
    with pytest.raises(OptionError, match="MT3_SHARED"):
        open_set("e4")
    (recordings / "piano_bach.notes.csv").unlink()
    with pytest.raises(OptionError, match="piano_bach.mp3 or its labels"):
        open_set("e6", recordings=recordings)


def test_the_end_must_be_confirmed(cache, tiny_bundle, capsys):
    assert main([str(tiny_bundle), "--sets", "e1,e2,e4"]) == 1
    error = capsys.readouterr().err
    assert "e2, e4: these sets are for the end" in error
    assert "--final" in error
    assert not cache.exists()
    assert main([str(tiny_bundle), "--sets", "e7"]) == 1
    assert "no 'e7'" in capsys.readouterr().err
    assert main([]) == 1
    assert "Name models" in capsys.readouterr().err


def test_a_board_of_two_models(cache, recordings, tiny_bundle, tmp_path, capsys):
    twin = shutil.copytree(tiny_bundle, tmp_path / "twin")
    files = {name: tmp_path / f"board.{name}" for name in ("json", "md", "svg")}
    words = [str(tiny_bundle), str(twin), "--sets", "e1,e6", "--final", "--count", "2"]
    words += ["--seconds", "2", "--recordings", str(recordings), "--threads", "1"]
    words += ["--json", str(files["json"]), "--markdown", str(files["md"])]
    assert main([*words, "--plot", str(files["svg"])]) == 0
    board = read(files["json"])
    assert [model["label"] for model in board["models"]] == ["tiny", "twin"]
    assert [item["name"] for item in board["sets"]] == ["e1", "e6"]
    places = [(row["set"], row["kind"]) for row in board["rows"] if row["model"] == "tiny"]
    assert places == [("e1", "all"), ("e1", "piano"), ("e1", "line"), ("e6", "all")]
    mine, theirs = ([r for r in board["rows"] if r["model"] == m] for m in ("tiny", "twin"))
    assert [row | {"model": ""} for row in mine] == [row | {"model": ""} for row in theirs]
    whole, *_, piano = mine
    assert whole["metrics"]["onset"]["value"] >= 0.0
    assert whole["labels"] > 0
    assert piano["metrics"]["drums"] is None
    text = files["md"].read_text()
    assert "Figures of `tiny` / `twin`" in text
    assert "| e6: recorded piano | 1 | " in text
    assert "| e1 piano |" in text
    assert files["svg"].read_text().startswith("<?xml")


def figure(value):
    return {"value": value, "low": None, "high": None}


def board(label, *, value=0.5, digest="d" * 64, name="e1"):
    metrics = {"onset": figure(value), "drums": None}
    row = {"set": name, "kind": "all", "model": label, "labels": 10, "metrics": metrics}
    item = {"name": name, "sounds": "s", "digest": digest, "recordings": 1, "kinds": ["piano"]}
    return {
        "format": "mt3-runtime.scoreboard",
        "version": 1,
        "versions": {},
        "models": [{"label": label}],
        "sets": [item],
        "rows": [row],
    }


def test_boards_of_the_same_sets_go_together():
    whole = merged([board("a"), board("b", value=0.25), board("a", value=0.1)])
    assert markdown(whole).splitlines()[4] == "| e1: s | 10 | 0.50 / 0.25 | - | - | - | - |"
    assert chart(whole) is not None
    apart = merged([board("a"), board("b", name="e2", digest="e" * 64)])
    assert "| e2: s | 10 | - / 0.50 |" in markdown(apart)
    with pytest.raises(OptionError, match="e1 is not the same"):
        merged([board("a"), board("b", digest="e" * 64)])


def test_what_is_found_by_family_is_added_up_over_sets():
    a, b = board("a", name="e2"), board("b", name="e2")
    a["rows"][0]["families"] = {"Bass": [10, 8, 4], "Reed": [2, 1, 0]}
    b["rows"][0]["families"] = {"Bass": [10, 10, 9], "Reed": [2, 2, 2]}
    other = board("a", name="e3", digest="e" * 64)
    other["rows"][0]["families"] = {"Reed": [18, 9, 0]}
    lines = markdown(merged([a, b, other])).splitlines()
    place = lines.index("| family (e2, e3) | labels | found | found on the family |")
    assert lines[place + 2 : place + 4] == [
        "| Reed | 20 | 50% / 100% | 0% / 100% |",
        "| Bass | 10 | 80% / 100% | 40% / 90% |",
    ]
    assert "family" not in markdown(merged([board("a")]))


def test_families_are_counted_where_sounds_are_unseen(cache, tiny_bundle, tmp_path):
    path = tmp_path / "board.json"
    words = [str(tiny_bundle), "--sets", "e1,e3", "--final", "--count", "3", "--seconds", "3"]
    assert main([*words, "--threads", "1", "--json", str(path)]) == 0
    rows = {(row["set"], row["kind"]): row for row in read(path)["rows"]}
    assert [place for place, row in rows.items() if "families" in row] == [("e3", "all")]
    whole = rows["e3", "all"]
    assert sum(labels for labels, _, _ in whole["families"].values()) == whole["labels"]
    assert all(labels >= found for labels, found, _ in whole["families"].values())


def test_an_earlier_board_is_added(tmp_path, capsys):
    for name in "ab":
        (tmp_path / name).write_text(json.dumps(board(name)))
    assert main(["--beside", str(tmp_path / "a"), "--beside", str(tmp_path / "b")]) == 0
    assert "0.50 / 0.50" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "cannot be read"),
        ("[]", "is no scoreboard"),
        ('{"format": "mt3-runtime.scoreboard", "version": 2}', "version 2, expected 1"),
    ],
)
def test_other_files_are_no_boards(tmp_path, text, message):
    (tmp_path / "file").write_text(text)
    with pytest.raises(OptionError, match=message):
        read(tmp_path / "file")
    with pytest.raises(OptionError, match="cannot be read"):
        read(tmp_path / "missing")


def test_sets_without_recordings_are_left_out_of_all(cache, monkeypatch, tiny_bundle):
    seen = []

    def stop(models, boards, *, threads):
        seen.extend(board.name for board in boards)
        raise OptionError("enough")

    monkeypatch.setattr(scoreboard, "measure_models", stop)
    words = [str(tiny_bundle), "--count", "1", "--seconds", "2"]
    assert main(words) == 1
    assert seen == ["e1", "choice"]
    seen.clear()
    assert main([*words, "--final"]) == 1
    assert seen == ["e1", "choice", "e2", "e3"]
