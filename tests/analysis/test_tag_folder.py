"""`mt3 tag FOLDER -o OUT/`: a result a recording, and a journal to go on with."""

from __future__ import annotations

import json

import pytest
import soundfile

from mt3_runtime.cli import main
from tests.trees import snapshot


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def songs(tmp_path, audio):
    folder = tmp_path / "songs"
    folder.mkdir()
    for name in ("a.wav", "b.flac"):
        soundfile.write(folder / name, audio[:24000], 16000)
    return folder


@pytest.fixture
def tag(tiny_bundle, tmp_path, capsys):
    out = tmp_path / "out"

    def run(*inputs, form="json"):
        code = main(["tag", *map(str, inputs), "-m", str(tiny_bundle), "-o", f"{out}/", "-f", form])
        return code, capsys.readouterr().err

    run.out = out
    return run


def results(out):
    return sorted(path.name for path in out.iterdir() if not path.name.startswith("."))


def test_what_is_done_is_not_done_again(tag, songs):
    assert tag(songs)[0] == 0
    assert results(tag.out) == ["a.wav.tags.json", "b.flac.tags.json"]
    document = json.loads((tag.out / "a.wav.tags.json").read_bytes())
    assert document["file"].endswith("a.wav")
    before = snapshot(tag.out)
    code, said = tag(songs)
    assert code == 0
    assert "2 of 2 files done before" in said
    after = snapshot(tag.out)
    assert {k: v for k, v in after.items() if ".tags." in str(k)} == {
        k: v for k, v in before.items() if ".tags." in str(k)
    }


def test_changed_lost_and_new_files_are_done(tag, songs, audio):
    tag(songs)
    soundfile.write(songs / "a.wav", audio[:40000], 16000)
    (tag.out / "b.flac.tags.json").unlink()
    soundfile.write(songs / "c.wav", audio[:24000], 16000)
    code, said = tag(songs)
    assert code == 0
    assert "done before" not in said
    assert results(tag.out) == ["a.wav.tags.json", "b.flac.tags.json", "c.wav.tags.json"]
    assert json.loads((tag.out / "a.wav.tags.json").read_bytes())["duration"] == 2.5


def test_other_options_and_restart_do_all_again(tag, songs):
    tag(songs, form="csv")
    assert "done before" not in tag(songs, form="json")[1]
    assert len(results(tag.out)) == 4
    assert "2 of 2 files done before" in tag(songs, form="csv")[1]
    assert "done before" not in tag(songs, "--restart", form="csv")[1]


def test_a_file_that_fails_leaves_the_others_and_is_tried_again(tag, songs):
    (songs / "broken.wav").write_bytes(b"no audio")
    for _ in range(2):
        code, said = tag(songs)
        assert code == 1
        assert "broken.wav" in said
    assert results(tag.out) == ["a.wav.tags.json", "b.flac.tags.json"]


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_is_not_ours_is_never_replaced(tag, songs, form):
    tag(songs, form=form)
    suffix = {"json": "json", "text": "txt"}[form]
    kept = tag.out / f"a.wav.tags.{suffix}"
    kept.write_text("my own words")
    code, said = tag(songs, "--restart", form=form)
    assert code != 0
    assert "move it elsewhere" in said
    assert kept.read_text() == "my own words"


def test_equal_names_are_refused_and_not_mixed_up(tag, songs, tmp_path, audio):
    (tmp_path / "more").mkdir()
    soundfile.write(tmp_path / "more" / "a.wav", audio[:16000], 16000)
    code, said = tag(songs, tmp_path / "more")
    assert code == 2
    assert "Several files are called a.wav" in said


def test_transcriptions_and_tags_may_share_a_folder(tag, songs, tiny_bundle, capsys):
    transcribe = ["transcribe", str(songs), "-m", str(tiny_bundle), "-o", f"{tag.out}/"]
    assert main(transcribe) == 0
    assert tag(songs)[0] == 0
    capsys.readouterr()
    assert main(transcribe) == 0
    assert "2 files done before" in capsys.readouterr().err
    assert "2 of 2 files done before" in tag(songs)[1]


def test_restart_needs_a_folder(songs, tiny_bundle, capsys):
    assert main(["tag", str(songs), "-m", str(tiny_bundle), "--restart"]) == 2
    assert "name one with -o" in capsys.readouterr().err
