"""Index files of stems: what is written is read back, as a stream, and damage is one error."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from mt3_runtime.errors import OptionError, OutputError
from mt3_runtime.notes.stems import Role
from mt3_training.datasets.index_entry import (
    IndexEntry,
    read_index,
    read_metadata,
    require_files,
    write_index,
)


def entry(folder: Path, number: int = 0, **changes) -> IndexEntry:
    made = IndexEntry(
        id=f"Song {number:05d}-S00",
        track=f"Song {number:05d}",
        stem_id="S00",
        audio=folder / "Ärger, 2" / "S00.flac",
        labels=folder / "Ärger, 2" / "S00.mid",
        program=33,
        stem="bass",
        role=Role.MELODIC,
        is_drum=False,
        seconds=12.5,
        onsets=number,
        digest="00ff",
        split="train",
        metadata={"plugin_name": "None", "is_drum": False, "role": "melodic"},
    )
    return replace(made, **changes)


@pytest.mark.parametrize("inside", ["", "made/here"])
def test_what_is_written_is_read_back(tmp_path, inside):
    place = tmp_path / inside / "dataset.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    kit = {"program": 128, "stem": "drums", "role": Role.PERCUSSIVE, "is_drum": True}
    kit |= {"keys": (36, 38), "low_db": 3.25, "unsure": True, "licence": "CC0", "split": "test"}
    kit |= {"metadata": {"role": "percussive", "is_drum": True}}
    entries = [entry(tmp_path), entry(tmp_path, 1, **kit)]
    assert write_index(place, entries, {"dataset": "tiny"}) == 2
    assert list(read_index(place)) == entries
    assert read_metadata(place) == {"dataset": "tiny", "num_tracks": 2}
    foreign = entry(tmp_path, audio=tmp_path / "\udcff.wav")  # a name that is not UTF-8
    write_index(place, [foreign], {})
    assert list(read_index(place)) == [foreign]
    write_index(place, entries, {})
    first = json.loads(place.read_text("utf-8"))["tracks"]["Song 00000-S00"]
    assert not Path(first["wav_path"]).is_absolute()
    assert {"wav_path", "midi_path", "program", "track", "stem_id", "metadata"} <= set(first)


def test_white_space_and_order_of_members_mean_nothing(tmp_path):
    place = tmp_path / "dataset.json"
    entries = [entry(tmp_path, number) for number in range(300)]
    write_index(place, entries, {"dataset": "tiny"})
    document = json.loads(place.read_text("utf-8"))
    for indent in (None, 7):
        place.write_text(json.dumps(document, indent=indent), "utf-8")
        assert list(read_index(place)) == entries


def test_an_index_can_be_empty(tmp_path):
    place = tmp_path / "dataset.json"
    assert write_index(place, [], {}) == 0
    assert list(read_index(place)) == []
    assert json.loads(place.read_text()) == {
        "format": "mt3-runtime.stems",
        "version": 1,
        "tracks": {},
        "metadata": {"num_tracks": 0},
    }


def test_50000_entries_take_no_more_memory_than_500(tmp_path):
    def peak(number: int) -> int:
        tracemalloc.start()
        write_index(place, (entry(tmp_path, n) for n in range(number)), {})
        assert sum(1 for _ in read_index(place)) == number
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return taken

    place = tmp_path / "dataset.json"
    names = 50_000 * 150  # bytes: that no name occurs twice has to be known
    assert peak(50_000) < peak(500) + names


def test_two_entries_of_one_name_are_refused_and_the_old_index_stays(tmp_path):
    place = tmp_path / "dataset.json"
    write_index(place, [entry(tmp_path)], {})
    before = place.read_bytes()
    with pytest.raises(OptionError, match="two stems are called 'Song 00000-S00'"):
        write_index(place, [entry(tmp_path), entry(tmp_path)], {})
    assert place.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]
    with pytest.raises(OutputError, match="it is a folder"):
        write_index(tmp_path, [], {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a whole JSON file"),
        ("[]", "not a whole JSON file"),
        ("{}", "not an index of stems"),
        ('{"tracks": {}, "format": "mt3-runtime.stems", "version": 1}', "not an index of stems"),
        ('{"format": "mt3-runtime.stems", "version": 2, "tracks": {}}', "of version 2"),
        ('{"format": "mt3-runtime.stems", "version": 1, "tracks": []}', "not a whole JSON file"),
        ('{"format": "mt3-runtime.stems", "version": 1, "tracks": {"a": 1}}', "entry 'a' is None"),
        ('{"format": "mt3-runtime.stems", "version": 1, "tracks": {', "not a whole JSON file"),
        ('{"format": "mt3-runtime.stems", "version": 1} x', "not a whole JSON file"),
        ('{"format": ' + "[" * 100_000, "not a whole JSON file"),
        ("{1: 2}", "not a whole JSON file"),
    ],
)
def test_damaged_and_foreign_files_are_one_error(tmp_path, text, says):
    place = tmp_path / "dataset.json"
    place.write_text(text)
    with pytest.raises(OptionError, match=says):
        list(read_index(place))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("program", "30"),
        ("program", True),
        ("stem", "tuba"),
        ("role", "loud"),
        ("split", "practice"),
        ("keys", [36, 128]),
        ("keys", ["36"]),
        ("wav_path", None),
        ("unsure", 0),
        ("low_db", "3"),
        ("metadata", []),
    ],
)
def test_a_damaged_entry_is_named(tmp_path, key, value):
    place = tmp_path / "dataset.json"
    write_index(place, [entry(tmp_path)], {})
    document = json.loads(place.read_text("utf-8"))
    document["tracks"]["Song 00000-S00"][key] = value
    place.write_text(json.dumps(document))
    with pytest.raises(OptionError, match=f"{key} of the entry 'Song 00000-S00'"):
        list(read_index(place))


def test_files_that_moved_are_counted_and_the_first_are_named(tmp_path):
    place = tmp_path / "dataset.json"
    there = tmp_path / "there"
    there.mkdir()
    (there / "a.wav").touch()
    (there / "a.mid").touch()
    files = {"audio": there / "a.wav", "labels": there / "a.mid"}
    write_index(place, [entry(tmp_path, **files)], {})
    assert require_files(place) == 1
    gone = [entry(tmp_path, number, audio=there / f"{number}.wav") for number in range(9)]
    write_index(place, gone, {})
    with pytest.raises(OptionError, match=r"18 files .*0\.wav.*and 13 more"):
        require_files(place)


def test_an_index_that_is_not_there_names_the_command(tmp_path):
    with pytest.raises(OptionError, match="mt3 calibrate index"):
        list(read_index(tmp_path / "dataset.json"))
