"""Examples from recordings: the right window, the right labels, the same on every run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_runtime.errors import AudioError, OptionError
from mt3_runtime.files.formats import render
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.stems import HIGH_KEYS, Role, stem_named
from mt3_synthesis.augment import PREROLL
from mt3_training.datasets.index_entry import IndexEntry, write_index
from mt3_training.examples.batches import Feed, Order, held_out
from mt3_training.examples.dataset import HOP, Bleed
from mt3_training.examples.recorded_examples import (
    RecordedSources,
    entry_notes,
    index_digest,
    other_stems,
    read_window,
    stems_of_split,
)
from mt3_training.examples.tokens import LabelRules
from mt3_training.runs.config import Stage, TrainConfig
from mt3_training.runs.role_policies import policies
from mt3_training.shipping.small_model import notes_of
from tests.synthesis.sounds import drum, hertz_of, note
from tests.training.synthetic import tiny

RATE, FRAMES = 44100, 100


def sung(notes: list[Note], seconds: float, rate: int = RATE) -> np.ndarray:
    """Sines where notes sound."""
    time = np.arange(round(seconds * rate)) / rate
    audio = np.zeros(len(time), np.float32)
    for one in notes:
        hertz = 440.0 * 2.0 ** ((one.pitch - 69) / 12)
        sounding = (time >= one.onset) & (time < one.offset)
        audio += np.where(sounding, 0.1 * np.sin(2 * np.pi * hertz * time), 0.0).astype(np.float32)
    return audio


def song(
    folder: Path,
    track: str,
    stem_id: str,
    stem: str,
    notes: list[Note],
    *,
    split: str = "train",
    rate: int = RATE,
    suffix: str = ".flac",
    seconds: float = 6.0,
) -> IndexEntry:
    """Writes a stem of a song, and returns its entry."""
    place = folder / "data" / track
    place.mkdir(parents=True, exist_ok=True)
    audio, labels = place / f"{stem_id}{suffix}", place / f"{stem_id}.mid"
    own = sung(notes, seconds, rate)
    soundfile.write(audio, np.stack([own, 0.5 * own], axis=1), rate)
    labels.write_bytes(render(notes, "midi"))
    lineup, is_drum = stem_named(stem).lineup, notes[0].is_drum
    return IndexEntry(
        id=f"{track}-{stem_id}",
        track=track,
        stem_id=stem_id,
        audio=audio,
        labels=labels,
        program=128 if is_drum else notes[0].program,
        stem=stem,
        role=stem_named(stem).role,
        is_drum=is_drum,
        seconds=seconds,
        onsets=len(notes),
        digest="00",
        split=split,
        keys=tuple(sorted(lineup.drum_keys)) if is_drum else (),
        licence="CC BY 4.0",
        metadata={"is_drum": is_drum},
    )


def bass(count: int = 10, pitch: int = 40) -> list[Note]:
    return [note(0.5 + 0.5 * i, 0.8 + 0.5 * i, pitch + i % 5, program=33) for i in range(count)]


@pytest.fixture
def data(tmp_path) -> Path:
    """Four songs of bass and piano; the last judges.  Returns the index of the basses."""
    entries = []
    for number, split in enumerate(("train", "train", "test", "validation")):
        track = f"Song {number} Ä"
        rate = (RATE, 16000, 22050, 48000)[number]
        piano = [replace(n, pitch=n.pitch + 30, program=0) for n in bass()]
        entries += [
            song(tmp_path, track, "S00", "bass", bass(), split=split, rate=rate),
            song(tmp_path, track, "S01", "piano", piano, split=split, rate=rate),
        ]
    about = {"dataset": "made-up songs"}
    write_index(tmp_path / "dataset.json", entries, about)
    own = [entry for entry in entries if entry.stem == "bass"]
    write_index(tmp_path / "dataset_bass.json", own, about)
    return tmp_path / "dataset_bass.json"


def config_of(index: Path, **changes) -> TrainConfig:
    values = {"stem": "bass", "index": index_digest(index), "max_tokens": 200, "held_out": 4}
    stages = (Stage("windows", FRAMES, 1.0, 4, "stem"),)
    return tiny(**{"stages": stages, **values, **changes})


def test_examples_are_windows_of_the_stem_with_its_notes(data):
    source = RecordedSources(config_of(data), data)(0, held_out=True)
    judged, found = 0, set()
    for index in range(30):
        drawn = source.draw(index)
        audio = source.audio(drawn)
        assert audio.shape == (FRAMES * HOP,)
        assert drawn.colour is None
        start, end = drawn.first * HOP / 16000, (drawn.first + FRAMES) * HOP / 16000
        assert start >= 0.0
        assert end <= 6.0 + 1e-6
        found.add(drawn.first)
        heard = notes_of(drawn.tokens, FRAMES * HOP / 16000)
        # Notes that begin within 20 ms of a window's ends may be in or out.
        wanted = [n for n in bass() if start + 0.02 <= n.onset < end - 0.02]
        inside = [n for n in heard if 0.03 <= n.onset < FRAMES * HOP / 16000 - 0.03]
        assert len(inside) <= len(wanted) <= len(heard)
        for label in wanted:
            own = min(heard, key=lambda n: abs(n.onset + start - label.onset))
            assert own.pitch == label.pitch
            assert own.onset + start == pytest.approx(label.onset, abs=0.021)
            at = round((label.onset + 0.05 - start) * 16000)
            if at + 3000 < len(audio):
                judged += 1
                hertz = 440.0 * 2.0 ** ((label.pitch - 69) / 12)
                assert hertz_of(audio[at : at + 3000]) == pytest.approx(hertz, rel=0.02)
    assert judged > 20
    assert len(found) > 20


def test_equal_numbers_give_equal_examples(data):
    config = config_of(data, policy=policies()["melodic"])
    open_source = RecordedSources(config, data)
    order = Order(config.seed, 0, 4, 2)

    def first(workers: int):
        feed = Feed(FirstSource(open_source), order, workers=workers)
        try:
            return [feed.take() for _ in range(6)]
        finally:
            feed.close()

    one, three = first(0), first(3)
    for left, right in zip(one, three, strict=True):
        for field in ("features", "tokens", "frames", "rolls"):
            assert np.array_equal(
                getattr(left, field), getattr(right, field), equal_nan=field == "frames"
            )
    assert not np.array_equal(one[0].tokens, one[1].tokens)


class FirstSource:
    """Opens the first stage; a class, as processes are sent it."""

    def __init__(self, sources: RecordedSources) -> None:
        self.sources = sources

    def __call__(self):
        return self.sources(0, held_out=False)


def test_splits_are_kept_apart(data):
    sources = RecordedSources(config_of(data), data)
    trained, judged = sources(0, held_out=False), sources(0, held_out=True)
    assert {stem.track for stem in trained._stems} == {"Song 0 Ä", "Song 1 Ä"}
    assert {stem.track for stem in judged._stems} == {"Song 3 Ä"}
    batch = held_out(judged, 4)
    assert batch.features.shape == (4, FRAMES, 512)
    assert batch.rolls.any()


def test_other_stems_of_the_song_bleed_in_and_are_no_labels(data):
    loud = replace(policies()["melodic"], bleed=Bleed(1.0, -20.0, -20.0))
    source = RecordedSources(config_of(data, policy=loud), data)(0, held_out=True)
    plain = RecordedSources(config_of(data), data)(0, held_out=True)
    heard = 0
    for index in range(12):
        one, other = source.draw(index), plain.draw(index)
        assert np.array_equal(one.tokens, other.tokens)
        assert [path.name for path in one.others] == ["S01.flac"]
        difference = source.audio(one) - plain.audio(other)
        heard += bool(np.sqrt(np.mean(difference**2)) > 1e-4)
    assert heard > 6
    found = other_stems(data.with_name("dataset.json"), stems_of_split(data, "train"))
    assert set(found) == {"Song 0 Ä", "Song 1 Ä"}
    assert other_stems(data.with_name("none.json"), stems_of_split(data, "train")) == {}


def test_the_data_set_is_credited(data):
    (row,) = RecordedSources(config_of(data), data).describe()
    assert (row["bank"], row["licence"], row["sha256"]) == (
        "made-up songs", "CC BY 4.0", index_digest(data),
    )  # fmt: skip


# --- labels --------------------------------------------------------------------------------------


def notes_in(tmp_path, entry: IndexEntry) -> list[Note]:
    write_index(tmp_path / "one.json", [entry], {})
    return entry_notes(stems_of_split(tmp_path / "one.json", entry.split)[0])


def test_keys_limit_the_labels_of_a_kit(tmp_path):
    hits = [drum(0.1 * i, key) for i, key in enumerate((36, 42, 38, 46, 49, 36))]
    kit = song(tmp_path, "a", "S00", "drums", hits)
    assert [n.pitch for n in notes_in(tmp_path, kit)] == [36, 38, 36]
    cymbals = replace(kit, stem="high_percs", keys=tuple(sorted(HIGH_KEYS)), role=Role.PERCUSSIVE)
    assert [n.pitch for n in notes_in(tmp_path, cymbals)] == [42, 46, 49]
    assert len(notes_in(tmp_path, replace(kit, keys=()))) == 6


def test_hits_on_another_channel_are_hits(tmp_path):
    """Some programs export a drum track like any other."""
    tones = [note(0.1 * i, 0.1 * i + 0.05, key) for i, key in enumerate((36, 42, 38))]
    kit = replace(
        song(tmp_path, "a", "S00", "piano", tones), stem="drums", is_drum=True, keys=(36, 38)
    )
    found = notes_in(tmp_path, kit)
    assert [(n.pitch, n.is_drum) for n in found] == [(36, True), (38, True)]


def test_labels_of_several_stems_are_told_apart(tmp_path):
    both = [*bass(4), *(replace(n, program=0, pitch=70) for n in bass(4))]
    entry = song(tmp_path, "a", "S00", "bass", both)
    assert {n.program for n in notes_in(tmp_path, entry)} == {33}
    # A file of one stem that calls it a piano: the entry knows better.
    alone = song(tmp_path, "b", "S00", "bass", [replace(n, program=0) for n in bass(4)])
    assert {n.program for n in notes_in(tmp_path, replace(alone, program=35))} == {35}


# --- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 96000])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_windows_are_where_they_are_in_the_whole(tmp_path, rate, suffix):
    path = song(tmp_path, "a", "S00", "bass", bass(), rate=rate, suffix=suffix).audio
    whole = read_window(path, 0, 6 * 16000)
    for start in (0, 4800, 33600, 89600):
        part = read_window(path, start, 4000)
        assert np.abs(part - whole[start : start + 4000]).max() < 2e-3
    assert hertz_of(whole[8800:11000]) == pytest.approx(82.4, rel=0.05)
    before = read_window(path, -PREROLL, PREROLL + 4000)
    assert np.abs(before[PREROLL:] - whole[:4000]).max() < 2e-3
    assert not read_window(path, 7 * 16000, 4000).any()


def test_what_became_shorter_or_broke_is_named(tmp_path, data):
    path = tmp_path / "data" / "Song 0 Ä" / "S00.flac"
    with pytest.raises(AudioError, match=r"lasts 6.00 s, and the index says 9.00 s; make"):
        read_window(path, 0, 100, seconds=9.0)
    whole = path.read_bytes()
    for bad in (b"", b"noise" * 100, whole[: len(whole) // 3]):
        path.write_bytes(bad)
        with pytest.raises(AudioError, match=r"S00.flac (cannot be read|ends early|lasts)"):
            read_window(path, 4 * 16000, 16000, seconds=6.0)
    path.unlink()
    with pytest.raises(OptionError, match=r"1 files of the index are not where .*S00.flac"):
        RecordedSources(config_of(data), data)(0, held_out=False)


def test_an_index_that_cannot_train_says_so(tmp_path, data):
    only = [song(tmp_path, "x", "S00", "bass", bass())]
    write_index(tmp_path / "dataset_piano.json", only, {})
    alone = tmp_path / "dataset_piano.json"
    with pytest.raises(OptionError, match="no recordings of the split 'validation'"):
        RecordedSources(config_of(alone), alone)(0, held_out=True)
    with pytest.raises(OptionError, match="cannot be read.*mt3 calibrate index"):
        index_digest(tmp_path / "none.json")
    damaged = tmp_path / "data" / "Song 1 Ä" / "S00.mid"
    damaged.write_bytes(b"RIFF")
    source = RecordedSources(config_of(data), data)(0, held_out=False)
    with pytest.raises(OptionError, match="S00.mid"):
        list(map(source.draw, range(20)))


def test_recordings_shorter_than_a_window_are_filled_up(tmp_path):
    entry = song(tmp_path, "a", "S00", "bass", bass(1), seconds=0.6)
    write_index(tmp_path / "dataset_bass.json", [replace(entry, split="validation")], {})
    index = tmp_path / "dataset_bass.json"
    source = RecordedSources(config_of(index), index)(0, held_out=True)
    drawn = source.draw(3)
    assert drawn.first == 0
    audio = source.audio(drawn)
    assert not audio[10000:].any()
    assert audio[:9600].any()
    assert LabelRules("class", 5) == source._tokenizer.rules
