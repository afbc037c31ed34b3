"""Drums, or hi-hats and cymbals: by the sound of made-up and of real recordings."""

from __future__ import annotations

import numpy as np
import pytest
import soxr

from mt3_runtime.audio.sources import load_audio
from mt3_runtime.files.formats import render
from mt3_runtime.notes.note import Note
from mt3_training.datasets.drum_sound import (
    LEAST_ONSETS,
    RATE,
    SURELY_LOW,
    DrumSound,
    judge,
    loudest_blocks,
    low_energy,
)
from mt3_training.datasets.found_stem import FoundStem
from mt3_training.datasets.index_builder import IndexOptions, build_index
from mt3_training.datasets.stem_facts import read_facts
from tests import needs
from tests.training.test_stem_index import entries, write_notes


def hits(kind: str, *, count: int = 20, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """Hits of a drum, half a second apart: a falling tone, noise behind a tone, or bright noise."""
    rng = np.random.default_rng(seed)
    sound = np.zeros((count + 1) * rate // 2, np.float32)
    time = np.arange(rate // 4) / rate
    for number in range(count):
        pitch = rng.uniform(50, 90) if kind == "kick" else rng.uniform(150, 220)
        tone = np.sin(2 * np.pi * (pitch * time + 20 * (1 - np.exp(-time * 30)) / 30))
        noise = rng.standard_normal(len(time))
        bright = np.diff(np.diff(np.diff(noise, prepend=0), prepend=0), prepend=0)
        hit = {"kick": tone, "snare": 0.8 * tone + 0.2 * noise, "hat": bright}[kind]
        start = number * rate // 2
        hit = hit * np.exp(-time * (60 if kind == "hat" else 15))
        sound[start : start + len(time)] += (0.2 * hit).astype(np.float32)
    return sound


@pytest.mark.parametrize(("kind", "high"), [("kick", False), ("snare", False), ("hat", True)])
def test_made_up_drums(kind, high):
    for seed in range(5):
        found = judge(hits(kind, seed=seed))
        assert found.high == high
        assert not found.unsure
        assert found.low_db is not None


@pytest.mark.parametrize("kind", ["kick", "snare", "hat"])
def test_level_rate_and_offset_mean_nothing(kind):
    sound = hits(kind)
    expected = low_energy(sound)
    for gain in (0.05, 3.0):
        assert low_energy(gain * sound) == pytest.approx(expected, abs=0.5)
    for rate in (22_050, 44_100, 48_000):
        there = soxr.resample(soxr.resample(sound, RATE, rate), rate, RATE)
        assert low_energy(there.astype(np.float32)) == pytest.approx(expected, abs=0.5)
    for offset in (0.01, -0.05):
        assert low_energy(sound + np.float32(offset)) == pytest.approx(expected, abs=0.5)


def test_a_mixture_between_the_two_is_unsure_and_a_drum():
    kick, hat = hits("kick"), hits("hat", seed=1)
    found = set()
    for gain in np.geomspace(0.05, 20, 60):
        heard = judge((kick + np.float32(gain) * hat).astype(np.float32))
        assert heard.low_db is not None
        assert heard.unsure == (2.0 <= heard.low_db <= SURELY_LOW)
        assert not (heard.unsure and heard.high)
        found.add((heard.high, heard.unsure))
    assert found == {(False, False), (False, True), (True, False)}


@pytest.mark.parametrize("decibels", [-20, -30, -40])
def test_hi_hats_as_quiet_as_in_a_mix_are_told(decibels):
    assert judge(hits("hat") * np.float32(10 ** (decibels / 20))).high


@pytest.mark.parametrize(
    "sound",
    [
        np.zeros(5 * RATE, np.float32),
        np.zeros(3, np.float32),
        hits("hat", count=LEAST_ONSETS - 1),
        hits("hat") * 1e-3,  # inaudible
    ],
)
def test_of_little_sound_nothing_is_concluded(sound):
    assert judge(sound) == DrumSound(high=False, low_db=None, unsure=True)


def test_the_loudest_half_minute_counts():
    quiet, loud = hits("hat", count=80) * 0.05, hits("kick", count=70)
    for sound in (np.concatenate([quiet, loud, quiet]), np.concatenate([loud, quiet, quiet])):
        assert not judge(sound).high
        blocks = np.array_split(sound, 57)
        assert np.array_equal(loudest_blocks(iter(blocks)), loudest_blocks([sound]))


@pytest.mark.parametrize("name", ["drums_rock", "drums_reggae", "drums_80s"])
def test_real_kits_are_drums_with_three_decibels_to_spare(name):
    found = judge(load_audio(needs.shared_folder() / "audio" / f"{name}.flac"))
    assert (found.high, found.unsure) == (False, False)
    assert found.low_db >= SURELY_LOW + 3.0


def test_keys_come_first_then_names_then_sound(tmp_path):
    import soundfile
    import yaml

    song = tmp_path / "data" / "Song"
    kinds = {"S00": "hat", "S01": "kick", "S02": "hat"}
    for name, kind in kinds.items():
        (song / "stems").mkdir(parents=True, exist_ok=True)
        soundfile.write(song / "stems" / f"{name}.wav", hits(kind), RATE)
    write_notes(song / "MIDI" / "S00.mid", [60] * 20)  # on no percussion channel
    write_notes(song / "MIDI" / "S01.mid", [60] * 20)
    write_notes(song / "MIDI" / "S02.mid", [36] * 20, drums=True)
    stems = {name: {"program_num": 128, "is_drum": True, "plugin_name": "k"} for name in kinds}
    (song / "metadata.yaml").write_text(yaml.safe_dump({"stems": stems}))
    report = build_index(song, tmp_path / "made", IndexOptions("slakh"), print)
    assert report.unsure == 0
    whole = entries(tmp_path / "made")
    assert [entry.stem for entry in whole.values()] == ["high_percs", "drums", "drums"]
    assert [entry.low_db is None for entry in whole.values()] == [False, False, True]
    assert set(entries(tmp_path / "made", "high_percs")) == {"Song-S00"}
    # By name, whatever it sounds like.
    folder = tmp_path / "folder" / "Song"
    folder.mkdir(parents=True)
    soundfile.write(folder / "cymbals.wav", hits("kick"), RATE)
    write_notes(folder / "cymbals.mid", [60] * 20)
    build_index(tmp_path / "folder", tmp_path / "named", IndexOptions("folders"), print)
    assert [entry.stem for entry in entries(tmp_path / "named").values()] == ["high_percs"]


def test_too_little_sound_is_marked_in_the_index(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", hits("hat", count=2), RATE)
    (tmp_path / "a.mid").write_bytes(render([Note(0.1, 0.2, 60, 90)], "midi"))
    found = FoundStem("Song", "a", tmp_path / "a.wav", tmp_path / "a.mid", is_drum=True)
    facts = read_facts(found)
    assert (facts.high, facts.low_db, facts.unsure) == (False, None, True)
