"""The filter of stems: silence, damage, noise, and labels that disagree with the sound."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_runtime.errors import OptionError
from mt3_runtime.files.formats import render
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.stems import Role
from mt3_synthesis.mixer import perform
from mt3_synthesis.mixer import render as mix
from mt3_synthesis.music import MusicConfig, compose
from mt3_training.datasets import index_filter
from mt3_training.datasets.filter_rules import Verdict, examine, flatness, loudest
from mt3_training.datasets.index_builder import IndexOptions, build_index
from mt3_training.datasets.index_entry import IndexEntry, read_index, read_metadata
from mt3_training.datasets.index_filter import FilterReport, filter_indices
from tests import needs
from tests.synthesis.sounds import tiny_palette

RATE = 16_000
SECONDS = 20.0
KINDS = {
    "piano": MusicConfig.solo(0),
    "bass": MusicConfig.line(33),
    "strings": MusicConfig.solo(48),
    "drums": MusicConfig.drums_only(),
}


def made_up(kind: str, seed: int) -> tuple[np.ndarray, list[Note]]:
    """A stem of made-up music with its notes."""
    samples = round(SECONDS * RATE)
    piece = compose(KINDS[kind], seed, seconds=SECONDS)
    voices, notes = perform(piece, tiny_palette(), np.random.default_rng(seed), samples=samples)
    sound = mix(voices, tiny_palette(), samples=samples)
    return sound * np.float32(0.5 / np.abs(sound).max()), notes


def entry(folder: Path, sound: np.ndarray, notes: list[Note], **changes) -> IndexEntry:
    soundfile.write(folder / "a.wav", sound, RATE, subtype="FLOAT")
    (folder / "a.mid").write_bytes(render(notes, "midi"))
    drums = any(note.is_drum for note in notes)
    made = IndexEntry(
        id="Song-a",
        track="Song",
        stem_id="a",
        audio=folder / "a.wav",
        labels=folder / "a.mid",
        program=128 if drums else 0,
        stem="drums" if drums else "piano",
        role=Role.PERCUSSIVE if drums else Role.HARMONIC,
        is_drum=drums,
        seconds=len(sound) / RATE,
        onsets=len(notes),
        digest="",
        split="train",
        keys=tuple(sorted({note.pitch for note in notes if note.is_drum})),
    )
    return replace(made, **changes)


def shifted(notes: list[Note], seconds: float) -> list[Note]:
    return [replace(n, onset=n.onset + seconds, offset=n.offset + seconds) for n in notes]


@pytest.mark.parametrize("kind", KINDS)
def test_made_up_stems_are_kept(tmp_path, kind):
    for seed in range(6):
        sound, notes = made_up(kind, seed)
        if notes:
            assert examine(entry(tmp_path, sound, notes)).reason == ""


@pytest.mark.parametrize("kind", ["piano", "bass", "strings"])
def test_labels_that_are_half_a_second_late_are_caught(tmp_path, kind):
    for seed in range(5):  # the sixth has too many notes to tell
        sound, notes = made_up(kind, seed)
        verdict = examine(entry(tmp_path, sound, shifted(notes, 0.5)))
        assert verdict.reason == "labels disagree with the sound"
        assert "%" in verdict.detail


def test_labels_of_other_music_and_noise_are_caught(tmp_path):
    sound, notes = made_up("piano", 1)
    _, others = made_up("piano", 2)
    assert examine(entry(tmp_path, sound, others)).reason == "labels disagree with the sound"
    noise = np.random.default_rng(0).standard_normal(len(sound)).astype(np.float32) * 0.1
    assert examine(entry(tmp_path, noise, notes)).reason == "noise"
    assert flatness(noise) > 0.95
    assert flatness(sound) < 0.3
    pink = np.convolve(noise, np.ones(8, np.float32) / 8, "same")
    assert examine(entry(tmp_path, pink, notes)).reason == "labels disagree with the sound"


def test_a_part_that_plays_a_moment_is_no_silent_one(tmp_path):
    sound, notes = made_up("piano", 3)
    sound = sound / np.sqrt(np.mean(sound[: 5 * RATE] ** 2))  # 0 dB
    long = np.zeros(240 * RATE, np.float32)
    few = [note for note in notes if note.onset < 4.5]
    for decibels, reason in ((-25, ""), (-45, ""), (-55, "silent"), (-90, "silent")):
        played = long.copy()
        played[: 5 * RATE] = sound[: 5 * RATE] * np.float32(10 ** (decibels / 20))
        assert examine(entry(tmp_path, played, few)).reason == reason, decibels
        assert examine(entry(tmp_path, played, few), silence=-100.0).reason == ""
    assert examine(entry(tmp_path, long, few)).reason == "silent"
    assert loudest(np.full(100, 0.01), 5.0) == pytest.approx(-20.0)


def test_files_that_teach_nothing(tmp_path):
    sound, notes = made_up("piano", 4)
    kept = entry(tmp_path, sound, notes)
    assert examine(entry(tmp_path, sound[: RATE // 2], notes)).reason == "too short"
    assert (
        examine(entry(tmp_path, sound, shifted(notes, 100.0))).reason == "no notes within the audio"
    )
    assert examine(entry(tmp_path, sound, [])).reason == "no notes"
    drums = entry(tmp_path, sound, notes, is_drum=True, keys=(1,))
    assert examine(drums).reason == "no notes"
    kept = entry(tmp_path, sound, notes)
    data = kept.audio.read_bytes()
    kept.audio.write_bytes(data[: len(data) // 2])
    assert examine(kept).reason == "audio is damaged"
    kept.audio.write_bytes(b"")
    assert examine(kept).reason == "audio cannot be read"
    kept.labels.write_bytes(b"MThd")
    assert examine(kept).reason == "labels cannot be read"


def test_notes_behind_the_audio_do_not_count(tmp_path):
    sound, notes = made_up("piano", 5)
    late = shifted(notes, 300.0)
    assert examine(entry(tmp_path, sound, [*notes, *late])) == examine(
        entry(tmp_path, sound, notes)
    )


# --- indices -------------------------------------------------------------------------------------


def data_set(folder: Path, songs: int = 2) -> Path:
    for number in range(songs):
        for name, kind in (("piano", "piano"), ("bass", "bass")):
            sound, notes = made_up(kind, number)
            song = folder / f"Song {number}"
            song.mkdir(parents=True, exist_ok=True)
            if (number, name) == (0, "bass"):
                sound = np.zeros_like(sound)
            soundfile.write(song / f"{name}.wav", sound, RATE)
            (song / f"{name}.mid").write_bytes(render(notes, "midi"))
    build_index(folder, folder, IndexOptions("folders"), print)
    return folder


def test_indices_are_filtered_with_reasons(tmp_path):
    folder = data_set(tmp_path)
    reports = filter_indices(folder, ("bass", "piano", "guitar"), print)
    assert reports["bass"] == FilterReport(1, {"silent": 1})
    assert reports["piano"] == FilterReport(2, {})
    assert reports["guitar"] == FilterReport(0, {})
    (kept,) = read_index(folder / "filtered_dataset_bass.json")
    assert kept == next(e for e in read_index(folder / "dataset_bass.json") if e.id == kept.id)
    about = read_metadata(folder / "filtered_dataset_bass.json")
    assert about["source"] == "dataset_bass.json"
    assert len(about["source_digest"]) == 64
    assert about["filter_programs"] == [*range(32, 40)]
    assert (about["num_tracks"], about["left_out"]) == (1, {"silent": 1})
    assert "Song 0,bass,bass: silent," in (folder / "filtered_out.csv").read_text()


def test_a_second_run_judges_what_has_changed(tmp_path, monkeypatch):
    folder = data_set(tmp_path)
    judged: list[str] = []

    def counted(item, *, silence):
        judged.append(item.id)
        if len(judged) == 3:
            raise KeyboardInterrupt
        return Verdict()

    monkeypatch.setattr(index_filter, "examine", counted)
    with pytest.raises(KeyboardInterrupt):
        filter_indices(folder, ("bass", "piano"), print)
    before = (folder / "filtered_dataset_bass.json").read_bytes()
    filter_indices(folder, ("bass", "piano"), print)
    assert judged == ["Song 0-bass", "Song 1-bass", "Song 0-piano", "Song 0-piano", "Song 1-piano"]
    assert (folder / "filtered_dataset_bass.json").read_bytes() == before
    filter_indices(folder, ("piano",), print, silence=-50.0)
    assert judged[5:] == ["Song 0-piano", "Song 1-piano"]


def test_files_that_moved_are_one_error(tmp_path):
    folder = data_set(tmp_path)
    (folder / "Song 1").rename(folder / "Song one")
    with pytest.raises(OptionError, match="2 files of the index are not where it says"):
        filter_indices(folder, ("bass",), print)
    assert not (folder / "filtered_dataset_bass.json").exists()
    document = json.loads((folder / "dataset_bass.json").read_text())
    document["version"] = 9
    (folder / "dataset_bass.json").write_text(json.dumps(document))
    with pytest.raises(OptionError, match="version 9"):
        filter_indices(folder, ("bass",), print)


@pytest.mark.parametrize("layout", ["babyslakh_16k", "slakh2100_flac_redux"])
def test_of_a_real_song_cut_to_two_seconds_one_stem_sounds(tmp_path, layout):
    root = needs.shared_folder() / "datasets" / "slakh_sample" / layout
    build_index(root, tmp_path, IndexOptions("slakh"), print)
    stems = ("bass", "drums", "guitar", "high_percs", "other", "piano", "vocals")
    reports = filter_indices(tmp_path, stems, print)
    assert sum(report.kept for report in reports.values()) == 1
    (kept,) = read_index(tmp_path / "filtered_dataset_guitar.json")
    assert kept.id == "Track00001-S00"
    assert {reason for r in reports.values() for reason in r.left_out} <= {
        "silent",
        "no notes within the audio",
    }
