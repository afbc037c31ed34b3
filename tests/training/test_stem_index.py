"""Data sets into indices: three layouts, the drums of kits, splits by notes, and bad input."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from mt3_runtime import cli
from mt3_runtime.commands import calibrate_command
from mt3_runtime.errors import MissingDependencyError, OptionError
from mt3_runtime.files.formats import render
from mt3_runtime.files.slakh_song import MOST_BYTES, read_song
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.stems import HIGH_KEYS
from mt3_training import index_command
from mt3_training.datasets import index_builder, stem_facts
from mt3_training.datasets.facts_cache import FactsCache
from mt3_training.datasets.index_builder import IndexOptions, build_index, layout_of
from mt3_training.datasets.index_entry import read_index, read_metadata
from mt3_training.datasets.split_groups import SplitGroups
from mt3_training.datasets.stem_facts import own_notes
from tests import needs

RATE = 16_000


def write_audio(path: Path, seconds: float = 1.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).standard_normal(round(seconds * RATE))
    soundfile.write(path, (noise * 0.05).astype(np.float32), RATE)


def write_notes(path: Path, pitches, program: int = 0, *, drums: bool = False, start=0.1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = [
        Note(start + 0.1 * n, start + 0.1 * n + 0.08, pitch, 90, 0 if drums else program, drums)
        for n, pitch in enumerate(pitches)
    ]
    path.write_bytes(render(notes, "midi"))


KIT = (36, 42, 38, 46, 36, 51)
STEMS = {
    "S00": {"program_num": 30, "is_drum": False, "plugin_name": "a.nkm"},
    "S01": {"program_num": 128, "is_drum": True, "plugin_name": "kit.nkm"},
    "S02": {"program_num": 33, "is_drum": False, "plugin_name": "b.nkm"},
    "S03": {"program_num": 17, "is_drum": False, "plugin_name": "organ.nkm"},
    "S04": {"program_num": 103, "is_drum": False, "plugin_name": "None"},
}


def slakh_song(folder: Path, stems=STEMS, *, shift: float = 0.0) -> Path:
    """A song in Slakh's layout; stems without a plug-in have no files."""
    for number, (name, facts) in enumerate(stems.items()):
        if facts.get("plugin_name") == "None":
            continue
        drums = facts.get("is_drum") is True
        pitches = KIT if drums else (40 + number, 45, 50)
        write_audio(folder / "stems" / f"{name}.flac")
        program = facts.get("program_num", 0)
        program = program if type(program) is int and 0 <= program < 128 else 0
        place = folder / "MIDI" / f"{name}.mid"
        write_notes(place, pitches, program, drums=drums, start=0.1 + shift + 0.01 * number)
    (folder / "metadata.yaml").write_text(yaml.safe_dump({"UUID": "1a", "stems": dict(stems)}))
    return folder


def index(root: Path, output: Path | None = None, **options):
    options.setdefault("layout", layout_of(root))
    return build_index(root, output or root, IndexOptions(**options), lambda _: None)


def entries(folder: Path, stem: str | None = None):
    name = "dataset.json" if stem is None else f"dataset_{stem}.json"
    return {entry.id: entry for entry in read_index(folder / name)}


def left_out(folder: Path) -> list[str]:
    return (folder / "left_out.csv").read_text("utf-8").splitlines()[1:]


# --- Slakh ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "lost"),
    [
        ("babyslakh_16k", {"not rendered": 1, "no usable metadata.yaml": 1}),
        ("slakh2100_flac_redux", {"not rendered": 1}),
    ],
)
def test_a_real_song(tmp_path, layout, lost):
    root = needs.shared_folder() / "datasets" / "slakh_sample" / layout
    report = index(root, tmp_path)
    assert (report.entries, report.left_out) == (10, lost)
    named = read_song(next(root.rglob("metadata.yaml")))
    assert len(named) == 11
    whole = entries(tmp_path)
    # mirdata's ids
    assert list(whole) == [f"Track00001-S{n:02d}" for n in range(11) if n != 6]
    assert Counter(entry.stem for entry in whole.values()) == {
        "guitar": 3,
        "other": 3,
        **dict.fromkeys(("piano", "bass", "vocals", "drums"), 1),
    }
    assert {entry.split for entry in whole.values()} == {"train"}
    kit = [entries(tmp_path, stem)["Track00001-S01"] for stem in ("drums", "high_percs")]
    assert [part.onsets for part in kit] == [478, 598]
    assert [len(own_notes(part)) for part in kit] == [478, 598]
    assert all(part.program == 128 and part.is_drum for part in kit)
    assert not set(kit[0].keys) & HIGH_KEYS
    assert set(kit[1].keys) <= HIGH_KEYS
    # two stems of one song that match both survive
    assert set(entries(tmp_path, "guitar")) == {
        "Track00001-S00",
        "Track00001-S07",
        "Track00001-S08",
    }
    assert whole["Track00001-S00"].metadata["plugin_name"] == "elektrik_guitar.nkm"


def test_what_original_loaders_read(tmp_path):
    """They take the values of `tracks` in order, and five of their members."""
    slakh_song(tmp_path / "Track00001")
    index(tmp_path)
    document = json.loads((tmp_path / "dataset.json").read_text())
    assert isinstance(document["tracks"], dict)
    assert {"dataset", "num_tracks", "filter_instruments"} <= set(document["metadata"])
    for item in document["tracks"].values():
        assert (tmp_path / item["wav_path"]).is_file()
        assert (tmp_path / item["midi_path"]).is_file()
        assert item["track"] == "Track00001"
        assert item["stem_id"] in STEMS
        assert {"is_drum", "role"} <= set(item["metadata"])


def test_organs_are_keys_if_one_wants(tmp_path):
    slakh_song(tmp_path / "Track00001")
    index(tmp_path)
    assert "Track00001-S03" in entries(tmp_path, "other")
    index(tmp_path, organs_are_keys=True)
    assert entries(tmp_path, "piano")["Track00001-S03"].program == 17
    assert not entries(tmp_path, "other")


def test_folders_say_the_split_and_songs_of_one_name_get_their_paths(tmp_path):
    for number, split in enumerate(("train", "validation", "test", "omitted")):
        slakh_song(tmp_path / split / "Track00001", shift=number)
    index(tmp_path, stems=("bass",))
    found = {entry.track: entry.split for entry in entries(tmp_path).values()}
    assert found["train/Track00001"] == "train"
    assert found["validation/Track00001"] == "validation"
    assert found["test/Track00001"] == "test"
    assert len(entries(tmp_path, "bass")) == 4
    assert not (tmp_path / "dataset_piano.json").exists()


def test_songs_with_the_same_notes_share_a_split(tmp_path):
    for split, name in (("train", "A"), ("test", "B"), ("train", "C")):
        slakh_song(tmp_path / split / name, shift=float(name == "C"))
    index(tmp_path)
    found = {entry.track: entry.split for entry in entries(tmp_path).values()}
    assert found == {"A": "test", "B": "test", "C": "train"}


def test_splits_follow_notes_over_several_steps_and_not_the_order():
    songs = [("a", "01"), ("b", "01"), ("b", "02"), ("c", "02"), ("d", "ff" * 32), ("e", "")]
    for order in (songs, songs[::-1]):
        groups = SplitGroups()
        for song, digest in order:
            groups.add(song, digest * 8, "test" if song == "c" else None)
        found = {song: groups.split(song) for song, _ in songs}
        assert found == {"a": "test", "b": "test", "c": "test", "d": "train", "e": "train"}
    groups = SplitGroups()
    for number in range(1000):
        groups.add(str(number), f"{number * 4294967:08x}" + "0" * 56)
    share = sum(groups.split(str(n)) == "validation" for n in range(1000)) / 1000
    assert share == pytest.approx(0.1, abs=0.01)


def test_equal_data_give_equal_bytes(tmp_path, monkeypatch):
    for name in ("Track00002", "Track00001", "Übung, 1"):
        slakh_song(tmp_path / "data" / name)
    index(tmp_path / "data", tmp_path / "one")
    real = os.scandir

    class Backwards:
        def __init__(self, place="."):
            with real(place) as found:
                self._found = sorted(found, key=lambda entry: entry.name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def __iter__(self):
            return self

        def __next__(self):
            if not self._found:
                raise StopIteration
            return self._found.pop()

        close = __exit__

    monkeypatch.setattr(os, "scandir", Backwards)
    index(tmp_path / "data", tmp_path / "two")
    for path in (tmp_path / "one").glob("*.json"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_second_run_reads_what_has_changed(tmp_path, monkeypatch):
    slakh_song(tmp_path / "Track00001")
    read = []
    real = stem_facts.read_facts

    def counted(found):
        read.append(found.stem_id)
        if len(read) == 3 and not interrupted:
            raise KeyboardInterrupt
        return real(found)

    interrupted: list[int] = []
    monkeypatch.setattr(index_builder, "read_facts", counted)
    with pytest.raises(KeyboardInterrupt):
        index(tmp_path)
    assert not (tmp_path / "dataset.json").exists()
    interrupted.append(1)
    index(tmp_path)
    assert read == ["S00", "S01", "S02", "S02", "S03"]  # what was done is not done again
    write_notes(tmp_path / "Track00001" / "MIDI" / "S03.mid", (60, 62, 64, 65))
    report = index(tmp_path)
    assert read[5:] == ["S03"]
    assert report.entries == 4
    assert entries(tmp_path)["Track00001-S03"].onsets == 4


# --- bad metadata --------------------------------------------------------------------------------


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nstems: {S00: {program_num: *b}}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no stems"),
        ("- S00\n- S01\n", "names no stems"),
        ("stems: 3\n", "names no stems"),
        ("stems: []\n", "names no stems"),
        (BOMB, "aliases"),
        ("stems: " + "[" * 100_000, "nested"),
        ("stems: !!python/object/apply:os.system ['false']\n", "not YAML that is read"),
        ("!!python/name:os.system\n", "not YAML that is read"),
        ("stems: {S00: {when: 2001-99-99}}\n", "not YAML that is read"),
        ("stems: {S00: [\n", "not YAML that is read"),
        ("\x00\x01", "not YAML that is read"),
        ("# " + "x" * MOST_BYTES, "more than"),
    ],
)
def test_metadata_that_cannot_be_read_cost_one_song(tmp_path, text, says):
    slakh_song(tmp_path / "Good")
    song = slakh_song(tmp_path / "Bad")
    (song / "metadata.yaml").write_text(text)
    with pytest.raises(OptionError, match=says):
        read_song(song / "metadata.yaml")
    report = index(tmp_path, layout="slakh")
    assert report.left_out == {"no usable metadata.yaml": 1, "not rendered": 1}
    assert {entry.track for entry in entries(tmp_path).values()} == {"Good"}


@pytest.mark.parametrize("number", ["30", 300, -1, None, True, 30.0, [30], "missing"])
def test_a_program_that_is_none_costs_one_stem(tmp_path, number):
    facts = {"is_drum": False, "plugin_name": "a.nkm", "program_num": number}
    if number == "missing":
        del facts["program_num"]
    slakh_song(tmp_path / "Song", {**STEMS, "S00": facts})
    report = index(tmp_path)
    assert report.left_out["metadata.yaml makes no sense"] == 1
    assert report.entries == 3
    assert "program_num is " in left_out(tmp_path)[0]


@pytest.mark.parametrize("stems", [{"S00": None}, {"S00": "guitar"}, {0: {"program_num": 1}},
    {"../S00": {"program_num": 1}}, {"S00": {"program_num": 1, "is_drum": "no"}}])  # fmt: skip
def test_stems_that_make_no_sense_are_named(tmp_path, stems):
    song = slakh_song(tmp_path / "Song")
    (song / "metadata.yaml").write_text(yaml.safe_dump({"stems": stems}))
    (problem,) = read_song(song / "metadata.yaml")
    assert problem.problem
    report = index(tmp_path)
    assert report.entries == 0
    assert report.left_out["metadata.yaml makes no sense"] == 1


def test_drums_need_not_be_called_drums_twice(tmp_path):
    song = {"S00": {"program_num": 128, "plugin_name": "k"}, "S01": {"is_drum": True, "x": "."}}
    for name, facts in song.items():
        write_audio(tmp_path / "Song" / "stems" / f"{name}.wav")
        write_notes(tmp_path / "Song" / "MIDI" / f"{name}.mid", KIT, drums=True)
        del facts
    (tmp_path / "Song" / "metadata.yaml").write_text(yaml.safe_dump({"stems": song}))
    index(tmp_path)
    assert set(entries(tmp_path, "drums")) == {"Song-S00", "Song-S01"}


def test_values_of_metadata_become_values_of_json(tmp_path):
    text = "stems: {S00: {program_num: 1, a: .nan, b: 2020-01-01, c: {1: [x]}, d: !!set {y}}}"
    (tmp_path / "metadata.yaml").write_text(text)
    (stem,) = read_song(tmp_path / "metadata.yaml")
    assert json.loads(json.dumps(stem.metadata, allow_nan=False)) == {
        "program_num": 1,
        "a": "nan",
        "b": "2020-01-01",
        "c": {"1": ["x"]},
        "d": ["y"],
    }


def test_files_and_metadata_that_do_not_fit(tmp_path):
    song = slakh_song(tmp_path / "Song")
    (song / "stems" / "S00.flac").unlink()
    (song / "MIDI" / "S02.mid").unlink()
    write_audio(song / "stems" / "S09.flac")
    write_audio(song / "stems" / "S03.wav")
    report = index(tmp_path)
    assert report.left_out == {
        "no audio": 1,
        "no labels": 1,
        "not in metadata.yaml": 1,
        "not rendered": 1,
        "the same stem in another format": 1,
    }
    assert entries(tmp_path)["Song-S03"].audio.suffix == ".wav"


def test_without_pyyaml_nothing_is_left_out_but_one_error_is_raised(tmp_path, monkeypatch):
    slakh_song(tmp_path / "Song")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingDependencyError, match="needs yaml"):
        index(tmp_path, layout="slakh")
    assert not (tmp_path / "dataset.json").exists()


# --- bad audio and labels ------------------------------------------------------------------------


def midi(division: int = 480, kind: int = 0) -> bytes:
    return b"MThd" + bytes([0, 0, 0, 6, 0, kind, 0, 1]) + division.to_bytes(2, "big") + (
        b"MTrk\x00\x00\x00\x0c\x00\x90\x3c\x40\x60\x80\x3c\x40\x00\xff\x2f\x00"
    )  # fmt: skip


@pytest.mark.parametrize(
    "data", [b"", b"no MIDI at all", midi()[:20], midi(kind=2), midi(0)], ids=str
)
def test_labels_that_cannot_be_read_cost_one_stem(tmp_path, data):
    song = slakh_song(tmp_path / "Song")
    (song / "MIDI" / "S00.mid").write_bytes(data)
    report = index(tmp_path)
    assert report.left_out == {"labels cannot be read": 1, "not rendered": 1}
    assert report.entries == 3


def test_labels_of_type_0_are_read_and_those_too_large_are_not(tmp_path, monkeypatch):
    song = slakh_song(tmp_path / "Song")
    (song / "MIDI" / "S00.mid").write_bytes(midi())
    index(tmp_path)
    assert entries(tmp_path)["Song-S00"].onsets == 1
    monkeypatch.setattr(stem_facts, "MOST_LABEL_BYTES", 10)
    shutil.rmtree(tmp_path / "Song" / "MIDI")
    write_notes(song / "MIDI" / "S00.mid", (1, 2))
    assert index(tmp_path).left_out["labels cannot be read"] == 1


@pytest.mark.parametrize("data", [b"", b"RIFF", b"fLaC" + bytes(50)], ids=str)
def test_audio_that_cannot_be_read_costs_one_stem(tmp_path, data):
    song = slakh_song(tmp_path / "Song")
    (song / "stems" / "S00.flac").write_bytes(data)
    report = index(tmp_path)
    assert report.left_out == {"audio cannot be read": 1, "not rendered": 1}


def test_links_lead_nowhere(tmp_path):
    outside = tmp_path / "outside"
    write_audio(outside / "secret.flac")
    slakh_song(outside / "Elsewhere")
    song = slakh_song(tmp_path / "data" / "Song")
    (song / "stems" / "S00.flac").unlink()
    (song / "stems" / "S00.flac").symlink_to(outside / "secret.flac")
    (tmp_path / "data" / "Linked").symlink_to(outside / "Elsewhere")
    inside = song / "stems" / "S02.flac"
    inside.rename(song / "audio.flac")
    inside.symlink_to(song / "audio.flac")
    report = index(tmp_path / "data", tmp_path / "made")
    assert report.left_out == {
        "a link leads out of the data set": 1,
        "a link to a folder is not followed": 1,
        "not rendered": 1,
    }
    assert "Song-S02" in entries(tmp_path / "made")


def test_an_empty_folder_is_one_error(tmp_path):
    for layout in ("slakh", "folders", "pairs"):
        with pytest.raises(OptionError, match="There is no|there is no"):
            index(tmp_path, layout=layout)
    with pytest.raises(OptionError, match="is no folder"):
        index(tmp_path / "nothing", layout="slakh")


def test_a_damaged_cache_is_one_error_and_stays(tmp_path):
    slakh_song(tmp_path / "Song")
    (tmp_path / index_builder.CACHE).write_bytes(b"not SQLite, but somebody's" * 100)
    with pytest.raises(OSError, match="cannot be used .* -o"):
        index(tmp_path)
    assert (tmp_path / index_builder.CACHE).read_bytes().startswith(b"not SQLite")


def test_a_cache_knows_files_by_their_state(tmp_path):
    with FactsCache(tmp_path / "cache") as cache:
        assert cache.get("a", "1") is None
        cache.put("a", "1", {"x": [1]})
        assert cache.get("a", "1") == {"x": [1]}
    with FactsCache(tmp_path / "cache") as cache:
        assert cache.get("a", "1") == {"x": [1]}
        assert cache.get("a", "2") is None


# --- folders and pairs ---------------------------------------------------------------------------


def test_a_folder_per_song(tmp_path):
    song = tmp_path / "My song (live)"
    for name in ("My song - Bass", "My song - Hi-Hats", "My song - drums", "My song - thing"):
        write_audio(song / f"{name}.wav")
    write_audio(song / "My song - mix.wav")
    write_audio(song / "My song - vox.wav")
    write_notes(song / "My song - Bass.mid", (40, 41, 42), 0)
    write_notes(song / "My song - Hi-Hats.mid", (42, 46, 42), drums=True)
    write_notes(song / "My song - drums.mid", KIT, drums=True)
    write_notes(song / "My song - thing.mid", (60, 64), 25)
    report = index(tmp_path, licence="mine")
    assert report.left_out == {"a mix": 1, "no labels": 1}
    found = entries(tmp_path)
    stems = {entry.stem_id.partition(" - ")[2]: entry.stem for entry in found.values()}
    assert stems == {"Bass": "bass", "Hi-Hats": "high_percs", "drums": "drums", "thing": "guitar"}
    bass = found["My song (live)-My song - Bass"]
    assert (bass.program, bass.licence) == (33, "mine")  # a bass, whatever its MIDI file says
    assert len(entries(tmp_path, "high_percs")) == 2


def test_labels_as_tables(tmp_path):
    write_audio(tmp_path / "A" / "kit.flac")
    (tmp_path / "A" / "kit.drums.csv").write_text("onset,class\n0.5,KD\n1.0,HH\n1.2,CY\n")
    write_audio(tmp_path / "A" / "piano.flac")
    (tmp_path / "A" / "piano.notes.csv").write_text("onset,offset,pitch\n0.5,1.0,60\n")
    index(tmp_path)
    assert entries(tmp_path, "drums")["A-kit"].onsets == 1
    assert entries(tmp_path, "high_percs")["A-kit"].onsets == 2
    assert len(own_notes(entries(tmp_path, "high_percs")["A-kit"])) == 2
    assert len(own_notes(entries(tmp_path, "piano")["A-piano"])) == 1


def test_names_and_programs_that_say_nothing(tmp_path):
    for name in ("one", "two", "three"):
        write_audio(tmp_path / "A" / f"{name}.wav")
    notes = [Note(0.1, 0.2, 60, 90, 0), Note(0.3, 0.4, 60, 90, 33)]
    (tmp_path / "A" / "one.mid").write_bytes(render(notes, "midi"))
    (tmp_path / "A" / "two.mid").write_bytes(render([], "midi"))
    report = index(tmp_path)
    assert report.left_out == {"no labels": 1, "no notes": 1, "notes of several stems": 1}


def test_tables_of_pairs(tmp_path):
    write_audio(tmp_path / "drummer1" / "1.wav")
    write_notes(tmp_path / "drummer1" / "1.mid", KIT, drums=True)
    write_audio(tmp_path / "2004" / "piano, 1.wav")
    write_notes(tmp_path / "2004" / "piano, 1.mid", (60, 64, 67))
    write_audio(tmp_path.parent / "outside.wav")
    table = tmp_path / "info.csv"
    table.write_text(
        "drummer,midi_filename,audio_filename,duration,split\n"
        "d1,drummer1/1.mid,drummer1/1.wav,1.5,test\n"
        'x,"2004/piano, 1.mid","2004/piano, 1.wav",1.5,validation\n'
        "d1,drummer1/2.mid,,1.5,train\n"
        "d1,drummer1/1.mid,drummer1/3.wav,1.5,train\n"
        "d1,drummer1/1.mid,../outside.wav,1.5,train\n"
        "d1,drummer1/1.mid,drummer1/1.wav,1.5,train\n"
    )
    for root in (tmp_path, table):
        report = index(root, tmp_path / "made")
        assert report.left_out == {
            "a name leads out of the data set": 1,
            "named twice": 1,
            "no audio": 2,
        }
        found = entries(tmp_path / "made")
        assert {entry.stem: entry.split for entry in found.values()} == {
            "drums": "test",
            "piano": "validation",
        }
    assert found["drummer1/1-S00"].metadata["drummer"] == "d1"
    table.write_text("audio_filename,midi_filename\na,b,c\n")
    with pytest.raises(OptionError, match=r"info.csv, line 2"):
        index(table, tmp_path / "made")


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def calibrate(monkeypatch, capsys):
    """Runs the verbs, whether they are registered in this environment or not."""
    group = calibrate_command.VERB_GROUP
    names = {"index": "IndexVerb", "build-index": "IndexVerb"}
    names |= {"filter": "FilterVerb", "filter-index": "FilterVerb"}
    verbs = {
        name: cli.Listing(
            f"calibrate {name}", "", "", EntryPoint(name, f"{index_command.__name__}:{made}", group)
        )
        for name, made in names.items()
    }
    monkeypatch.setattr(calibrate_command, "verbs", lambda: verbs)

    def run(*words: object) -> tuple[int, str, str]:
        code = cli.main(["calibrate", *map(str, words)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_the_commands(tmp_path, calibrate):
    slakh_song(tmp_path / "Track00001")
    code, out, err = calibrate("index", tmp_path, "--stems", "bass,drums")
    assert (code, out) == (0, f"{tmp_path / 'dataset.json'}\n")
    assert "4 stems: bass 1, drums 1" in err
    assert "not rendered 1" in err
    assert read_metadata(tmp_path / "dataset_bass.json")["licence"] == ""
    code, _, err = calibrate("build-index", tmp_path, "--dataset", "babyslakh", "-q")
    assert (code, err) == (0, "")
    about = read_metadata(tmp_path / "dataset.json")
    assert (about["dataset"], about["licence"]) == ("babyslakh", "CC BY 4.0")
    code, out, err = calibrate("filter-index", tmp_path, "--stems", "bass")
    assert (code, out) == (0, f"{tmp_path / 'filtered_dataset_bass.json'}\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("index", "{}/nothing"), "does not exist"),
        (("index", "{}", "--stems", "tuba"), "Unknown stem 'tuba'"),
        (("index", "{}", "--stems", ","), "names none"),
        (("index", "{}", "--dataset", "slakh", "--as", "pairs"), "not allowed"),
        (("filter", "{}"), "mt3 calibrate index"),
        (("filter", "{}/nothing"), "is no folder"),
        (("filter", "{}", "--silence", "3"), "-120 to 0"),
    ],
)
def test_mistakes_are_one_line(tmp_path, calibrate, words, says):
    code, out, err = calibrate(*(word.format(tmp_path) for word in words))
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_a_folder_that_cannot_be_written_to_names_the_option(tmp_path, calibrate, monkeypatch):
    slakh_song(tmp_path / "Song")
    code, _, err = calibrate("index", tmp_path, "-o", "/proc/nothing")
    assert code != 0
    assert "/proc/nothing" in err
    monkeypatch.setattr(index_command.os, "access", lambda *_: False)
    code, out, err = calibrate("index", tmp_path)
    assert (code, out) == (1, "")
    assert "cannot be written to; name another folder with -o" in err
    assert not (tmp_path / "dataset.json").exists()
