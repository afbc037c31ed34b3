"""Separated songs: files, models, and one result of all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_runtime.cli import ExitCode, main
from mt3_runtime.errors import BundleNotFoundError, OptionError
from mt3_runtime.files.formats import load_notes
from mt3_runtime.leakage.leakage_report import LeakageReport
from mt3_runtime.notes.base import SegmentReport
from mt3_runtime.notes.instruments import Lineup
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.stems import HIGH_KEYS, STEMS, stem_named
from mt3_runtime.per_stem import StemFile, StemModel, merge, model_for, stem_files
from mt3_runtime.transcription import Transcription

EVERYTHING = Lineup()


def files(*names: str) -> dict[str, StemFile]:
    return {file.path.name: file for file in stem_files([Path(name) for name in names])}


def test_files_have_the_instruments_of_their_stems():
    found = files("bass.wav", "drums.wav", "high_percs.wav")
    for stem in ("bass", "drums", "high_percs"):
        assert found[f"{stem}.wav"].lineup == stem_named(stem).lineup


def test_drums_have_the_whole_kit_if_nobody_else_has():
    assert files("drums.wav", "bass.wav")["drums.wav"].lineup.drum_keys == set(range(128))
    assert files("hats.wav", "bass.wav")["hats.wav"].lineup.drum_keys == HIGH_KEYS


def test_other_is_what_the_others_leave():
    found = files("vocals.wav", "drums.wav", "bass.wav", "other.wav")
    lineups = [file.lineup for file in found.values()]
    assert not found["other.wav"].lineup.drum_keys
    for index, one in enumerate(lineups):
        for other in lineups[index + 1 :]:
            assert not one.programs & other.programs
    whole = lineups[0] | lineups[1] | lineups[2] | lineups[3]
    assert whole == EVERYTHING
    assert files("other.wav")["other.wav"].lineup == EVERYTHING
    assert found["other.wav"].lineup.programs >= stem_named("guitar").lineup.programs


# --- which model ---------------------------------------------------------------------------------


@pytest.fixture
def model(tiny_bundle, tmp_path):
    """Makes bundles that say they are for a stem, and may have but one program."""

    def make(name: str, stem: str, *, piano_only: bool = False) -> StemModel:
        path = tmp_path / "bundles" / name
        shutil.copytree(tiny_bundle, path)
        document = json.loads((path / "bundle.json").read_text())
        document["stem"] = stem
        if piano_only:
            document["notes"]["flat_programs"] = True
        (path / "bundle.json").write_text(json.dumps(document))
        return StemModel.at(path)

    return make


def test_the_order_of_models(model):
    bass, piano, strings = (
        model("for_bass", "bass"),
        model("for_piano", "piano"),
        model("for_strings", "strings_ensemble"),
    )
    general = model("general", "other")
    found = files("bass.wav", "guitar.wav", "vocals.wav", "other.wav", "drums.wav", "strings.wav")
    models = [general, strings, piano, bass]
    chosen = {name: model_for(file, models, None) for name, file in found.items()}
    assert chosen == {
        "bass.wav": bass,
        "guitar.wav": piano,  # harmonic as well, and ahead of the strings
        "vocals.wav": bass,  # melodic
        "other.wav": piano,
        "drums.wav": general,
        "strings.wav": strings,
    }
    named = model("named", "other")
    assert model_for(found["drums.wav"], models, named) is named
    assert model_for(found["bass.wav"], models, named) is bass


def test_a_model_that_does_not_know_the_instruments_is_passed_over(model):
    piano, general = model("for_piano", "piano", piano_only=True), model("general", "other")
    found = files("piano.wav", "guitar.wav")
    assert model_for(found["piano.wav"], [piano, general], None) is piano
    assert model_for(found["guitar.wav"], [piano, general], None) is general
    with pytest.raises(OptionError, match="for_piano has no notes for the stem guitar"):
        model_for(found["guitar.wav"], [], piano)


def test_models_that_are_missing_or_too_many(model):
    bass = files("bass.wav")["bass.wav"]
    with pytest.raises(
        BundleNotFoundError, match="bass.wav: the stem bass needs a model, and none"
    ):
        model_for(bass, [model("for_drums", "drums")], None)
    two = [model("one", "bass"), model("two", "bass")]
    with pytest.raises(OptionError, match="several would do: .*one, .*two"):
        model_for(bass, two, model("general", "other"))


# --- one result ----------------------------------------------------------------------------------


def result(name: str, *notes: Note, seconds: float = 1.0, **more) -> Transcription:
    return Transcription(notes, (SegmentReport(0, 0.0, 3),), seconds, name, name * 8, **more)


def test_merging():
    low, high, hit = Note(1, 2, 40, 1, 33), Note(0, 1, 60, 1, 0), Note(0, 1, 36, 1, is_drum=True)
    report = LeakageReport("auto", notes=2)
    one = result("a", low, hit, seconds=2.0, removed_notes=1, audio_warning="cut", leakage=report)
    other = result("b", high, removed_notes=2, leakage=LeakageReport("auto", notes=1))
    whole = merge([one, other])
    assert whole.notes == (high, hit, low)
    assert whole.segments == one.segments + other.segments
    assert (whole.duration, whole.model, whole.removed_notes) == (2.0, "a + b", 3)
    assert whole.audio_warning == "cut"
    assert (whole.leakage.filter, whole.leakage.notes) == ("auto", 3)
    assert (
        whole.token_digest == merge([one, other]).token_digest != merge([other, one]).token_digest
    )
    assert merge([one, result("a")]).model == "a"


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def song(tmp_path, audio, tiny_bundle, monkeypatch):
    """A folder of stems, and two installed models: a general one, and one for drums."""
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MT3_MODEL", raising=False)
    for name, stem in (("general", "other"), ("for_drums", "drums")):
        path = tmp_path / "cache" / "bundles" / name
        shutil.copytree(tiny_bundle, path)
        document = json.loads((path / "bundle.json").read_text())
        (path / "bundle.json").write_text(json.dumps(document | {"stem": stem, "name": name}))
    folder = tmp_path / "song"
    folder.mkdir()
    for name in ("song bass.wav", "song drums.wav"):
        soundfile.write(folder / name, audio[: 4 * 16000], 16000, subtype="FLOAT")
    return folder


def test_a_folder_of_stems_becomes_one_file(song, capsys):
    assert main(["transcribe", str(song), "--per-stem", "-f", "json"]) == ExitCode.OK
    document = json.loads(song.with_suffix(".json").read_text())
    assert document["model"] == "general + for_drums"
    assert document["duration"] == 4.0
    assert len(document["segments"]) == 4
    assert all(note["is_drum"] or 32 <= note["program"] < 40 for note in document["notes"])
    assert any(note["is_drum"] for note in document["notes"])
    said = capsys.readouterr().err
    assert "general: bass\n" in said
    assert "for_drums: drums\n" in said


def test_the_model_of_the_command_line_is_for_the_rest(song, tiny_bundle, capsys):
    arguments = ["transcribe", str(song), "--per-stem", "-m", str(tiny_bundle), "-o", "-", "-f"]
    assert main([*arguments, "json"]) == ExitCode.OK
    shown = capsys.readouterr()
    assert json.loads(shown.out)["model"] == "tiny + for_drums"
    assert "tiny: bass\n" in shown.err


def test_per_stem_and_split(song, tmp_path):
    out = tmp_path / "out"
    arguments = ["transcribe", str(song), "--per-stem", "--split", "stems", "-q"]
    assert main([*arguments, "-o", f"{out}/"]) == ExitCode.OK
    names = {path.name for path in out.iterdir()}
    assert names
    assert names <= {f"song.{stem.name}.mid" for stem in STEMS}
    assert all(note.is_drum for note in load_notes(out / "song.drums.mid"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--instruments", "bass"], "leave --instruments and --exclude out"),
        (["--exclude", "bass"], "leave --instruments and --exclude out"),
        (["-o", "song bass.wav", "-f", "midi"], "song bass.wav"),
    ],
)
def test_what_has_no_place_here(song, more, message, capsys, monkeypatch):
    monkeypatch.chdir(song)
    assert main(["transcribe", str(song), "--per-stem", *more]) != ExitCode.OK
    assert message in capsys.readouterr().err
    assert soundfile.info(song / "song bass.wav").duration == 4.0


def test_unknown_stems_are_refused_before_anything_is_done(song, capsys):
    (song / "song kazoo.wav").write_bytes((song / "song bass.wav").read_bytes())
    assert main(["transcribe", str(song), "--per-stem"]) == ExitCode.USAGE
    assert "song kazoo.wav: the file's name names no stem" in capsys.readouterr().err
    assert not song.with_suffix(".mid").exists()


def test_several_files_need_a_name_for_the_result(song, tmp_path, capsys):
    names = sorted(map(str, song.iterdir()))
    assert main(["transcribe", *names, "--per-stem"]) == ExitCode.USAGE
    assert "Name the result of several stems with -o" in capsys.readouterr().err
    assert main(["transcribe", *names, "--per-stem", "-q", "-o", str(tmp_path / "a.mid")]) == 0
    assert load_notes(tmp_path / "a.mid")


def test_a_stem_that_cannot_be_read_ends_it(song, capsys):
    (song / "song piano.wav").write_bytes(b"no audio")
    assert main(["transcribe", str(song), "--per-stem", "-q"]) == ExitCode.FAILED
    assert "song piano.wav" in capsys.readouterr().err
    assert not song.with_suffix(".mid").exists()


def test_a_damaged_bundle_is_left_out(song, tmp_path, capsys):
    (tmp_path / "cache" / "bundles" / "for_drums" / "bundle.json").write_text("{}")
    assert main(["transcribe", str(song), "--per-stem"]) == ExitCode.OK
    said = capsys.readouterr().err
    assert "for_drums is left out" in said
    assert "general: bass, drums\n" in said


def test_splitting_a_song(song, audio, tmp_path, capsys):
    """Stems without notes get no file; the names are taken all the same."""
    source = tmp_path / "tune.wav"
    soundfile.write(source, np.concatenate([audio, audio]), 16000, subtype="FLOAT")
    arguments = ["transcribe", str(source), "--split", "stems", "-f", "csv,midi"]
    cached = str(tmp_path / "cache" / "bundles" / "general")
    assert main([*arguments, "-m", cached]) == ExitCode.OK
    written = sorted(path.name for path in tmp_path.glob("tune.*.*"))
    assert "tune.drums.csv" in written
    assert "tune.drums.mid" in written
    assert "tune.vocals.mid" not in written
    assert all(f"{tmp_path / name}" in capsys.readouterr().err for name in written[:1])
    assert main([*arguments, "-m", cached]) == ExitCode.USAGE
    assert "exists; pass --overwrite" in capsys.readouterr().err
    assert main([*arguments, "-m", cached, "-o", str(tmp_path / "x.mid")]) == ExitCode.USAGE
    assert "do not fit into the one file" in capsys.readouterr().err
