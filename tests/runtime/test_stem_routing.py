"""Which instruments a file of a separated song gets, and songs of Slakh as separated songs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import yaml

from mt3_runtime.cli import ExitCode, main
from mt3_runtime.errors import OptionError
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.stems import STEMS, stem_named
from mt3_runtime.per_stem import StemModel, stem_files
from mt3_runtime.stem_routing.lineup_choice import EVIDENCE, LineupChoice, relabelled, route
from mt3_runtime.stem_routing.slakh_folder import slakh_files
from mt3_runtime.transcription import Transcription

EXACT, FAMILY, RELABEL = LineupChoice


@pytest.fixture
def model(tiny_bundle, tmp_path):
    def make(stem: str) -> StemModel:
        path = tmp_path / "bundles" / f"for_{stem}"
        shutil.copytree(tiny_bundle, path)
        document = json.loads((path / "bundle.json").read_text())
        (path / "bundle.json").write_text(json.dumps(document | {"stem": stem}))
        return StemModel.at(path)

    return make


def file(name: str):
    (found,) = stem_files([Path(name)])
    return found


@pytest.mark.parametrize("stem", [stem for stem in STEMS if stem.program is not None])
def test_the_program_of_a_stem_is_its_own(stem):
    assert stem.program in stem.lineup.programs


def test_exact_is_the_stem(model):
    found = route(file("bass.wav"), model("other"), EXACT)
    assert found.lineup == stem_named("bass").lineup
    assert (found.choice, found.program) == (EXACT, None)
    assert found.why == "the model is made for anything; exact: as asked for"


def test_families_are_whole(model):
    general = model("other")
    vocals = route(file("vocals.wav"), general, FAMILY).lineup
    assert vocals.programs == {*range(48, 56), *range(80, 88)}
    assert not vocals.drum_keys
    hats = route(file("hats.wav"), general, FAMILY).lineup
    assert hats.drum_keys == set(range(128))
    assert not hats.programs


def test_relabelling_takes_all_pitched_instruments(model):
    found = route(file("bass.wav"), model("other"), RELABEL)
    assert found.lineup.programs == set(range(128))
    assert not found.lineup.drum_keys
    assert found.program == stem_named("bass").program


@pytest.mark.parametrize("name", ["drums.wav", "hats.wav", "other.wav"])
def test_stems_without_a_program_are_never_relabelled(model, name):
    found = route(file(name), model("other"), RELABEL)
    assert (found.choice, found.program) == (EXACT, None)
    assert found.lineup == file(name).lineup
    assert found.why.endswith("no one program stands for the stem")


def test_the_default_goes_by_evidence_and_a_model_of_the_stem_is_exact(model):
    general, lead = model("other"), model("synth_lead")
    assert route(file("bass.wav"), general, None).choice is EXACT
    found = route(file("pad.wav"), general, None)
    assert found.choice is EVIDENCE["synth_pad_fx"] is RELABEL
    assert "measured" in found.why
    own = route(file("lead.wav"), lead, None)
    assert own.choice is EXACT
    assert own.why == "the model is made for synth_lead; exact: the model is made for it"
    assert route(file("lead.wav"), lead, RELABEL).choice is RELABEL
    alike = route(file("bass.wav"), lead, None)
    assert alike.why.startswith("the model is made for synth_lead, which is melodic, too")


def test_relabelled_notes():
    notes = (
        Note(0.0, 1.0, 60, 90, 4, confidence=0.4),
        Note(0.02, 2.0, 60, 80, 90, confidence=0.9),  # the same note under two instruments
        Note(0.5, 0.6, 60, 90, 4),
        Note(0.5, 0.6, 64, 90, 7),
        Note(0.5, 0.6, 38, 90, is_drum=True),
    )
    result = Transcription(notes, (), 2.0, "m", "d")
    found = relabelled(result, 89).notes
    assert [(n.onset, n.offset, n.pitch, n.program, n.is_drum) for n in found] == [
        (0.0, 2.0, 60, 89, False),
        (0.5, 0.6, 60, 89, False),
        (0.5, 0.6, 64, 89, False),
        (0.5, 0.6, 38, 0, True),
    ]
    assert found[0].confidence == 0.9
    assert relabelled(result, None) is result


# --- songs of Slakh ------------------------------------------------------------------------------


SONG = {
    "S00": {"program_num": 33, "is_drum": False, "plugin_name": "b.nkm"},
    "S01": {"program_num": 128, "is_drum": True, "plugin_name": "k.nkm"},
    "S02": {"program_num": 17, "is_drum": False, "plugin_name": "o.nkm"},
    "S03": {"program_num": 100, "is_drum": False, "plugin_name": "None"},
}


@pytest.fixture
def song(tmp_path, audio):
    folder = tmp_path / "Track00001"
    (folder / "stems").mkdir(parents=True)
    for name in ("S00", "S01", "S02"):
        soundfile.write(folder / "stems" / f"{name}.wav", audio[: 2 * 16000], 16000)
    soundfile.write(folder / "mix.flac", audio[: 2 * 16000], 16000)
    (folder / "metadata.yaml").write_text(yaml.safe_dump({"stems": SONG}))
    return folder


@pytest.mark.parametrize("inside", ["", "stems"])
def test_a_song_of_slakh_is_understood(song, inside):
    said: list[str] = []
    found = slakh_files([str(song / inside)], said.append)
    assert [item.path.name for item in found] == ["S00.wav", "S01.wav", "S02.wav"]
    assert [item.stem.name for item in found] == ["bass", "drums", "other"]
    assert [item.program for item in found] == [33, None, 17]
    assert found[1].lineup.drum_keys == set(range(128))
    assert not found[2].lineup.programs & set(range(32, 40))
    assert said == ["Track00001: S03 never rendered, as metadata.yaml says"]


def test_wav_is_taken_before_flac(song):
    shutil.copy(song / "mix.flac", song / "stems" / "S00.flac")
    found = slakh_files([str(song)], print)
    assert [item.path.name for item in found] == ["S00.wav", "S01.wav", "S02.wav"]


def test_other_folders_are_none(song, tmp_path):
    assert slakh_files([str(tmp_path)], print) is None
    assert slakh_files([str(song / "mix.flac")], print) is None
    assert slakh_files([str(song), str(song)], print) is None
    assert slakh_files([], print) is None
    (song / "other").mkdir()
    assert slakh_files([str(song / "other")], print) is None


def test_songs_that_do_not_fit_their_metadata(song):
    soundfile.write(song / "stems" / "S07.wav", [0.0] * 100, 16000)
    with pytest.raises(OptionError, match=r"S07.wav of .*not named in its metadata.yaml"):
        slakh_files([str(song)], print)
    (song / "stems" / "S07.wav").unlink()
    (song / "stems" / "S01.wav").unlink()
    with pytest.raises(OptionError, match="S01 of .*missing, by its metadata.yaml"):
        slakh_files([str(song)], print)
    stems = {"S00": SONG["S00"], "S02": {**SONG["S02"], "program_num": "17"}}
    (song / "metadata.yaml").write_text(yaml.safe_dump({"stems": stems}))
    with pytest.raises(OptionError, match="of the stem S02, program_num is '17'"):
        slakh_files([str(song)], print)
    (song / "metadata.yaml").write_text("- a\n")
    with pytest.raises(OptionError, match="names no stems"):
        slakh_files([str(song)], print)


def test_a_song_of_slakh_is_transcribed_and_says_by_what(song, tiny_bundle, capsys, monkeypatch):
    monkeypatch.setenv("MT3_CACHE", str(song.parent / "cache"))
    arguments = ["transcribe", str(song), "--per-stem", "-m", str(tiny_bundle), "-f", "json"]
    assert main(arguments) == ExitCode.OK
    assert "S03 never rendered" in capsys.readouterr().err
    document = json.loads(song.with_suffix(".json").read_text())
    files = document["stem_files"]
    assert [Path(item["file"]).name for item in files] == ["S00.wav", "S01.wav", "S02.wav"]
    assert [item["stem"] for item in files] == ["bass", "drums", "other"]
    assert {item["model"] for item in files} == {str(tiny_bundle)}
    assert {item["made_for"] for item in files} == {"other"}
    assert all(item["why"] for item in files)
    assert [item["lineup"] for item in files] == ["exact"] * 3
    relabel = [*arguments, "--lineup", "relabel", "-o", "-", "-q"]
    assert main(relabel) == ExitCode.OK
    document = json.loads(capsys.readouterr().out)
    assert [item["program"] for item in document["stem_files"]] == [33, None, 17]
    pitched = {note["program"] for note in document["notes"] if not note["is_drum"]}
    assert pitched <= {33, 17}


def test_line_ups_are_of_stems_only(song, capsys):
    assert main(["transcribe", str(song / "mix.flac"), "--lineup", "exact"]) == ExitCode.USAGE
    assert "--lineup is about a separated song" in capsys.readouterr().err
