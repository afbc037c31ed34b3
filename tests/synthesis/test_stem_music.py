"""Music of single stems: every note belongs to its stem, and none of what others play does."""

from __future__ import annotations

from collections import Counter

import pytest

from mt3_runtime.errors import OptionError
from mt3_runtime.notes.stems import HIGH, HIGH_KEYS, STEMS, stem_named, stem_of
from mt3_synthesis.music import MusicConfig, compose
from mt3_synthesis.stem_music import TRAINED, backing, stem_keys, stem_recipe


def played(music: MusicConfig, count: int = 12, seconds: float = 12.0):
    return [n for seed in range(count) for n in compose(music, seed, seconds=seconds).notes]


@pytest.mark.parametrize("name", TRAINED)
def test_a_stem_plays_its_own_notes_alone(name):
    wanted = {name} if name != "drums" else {"drums", HIGH}
    for weight, music in stem_recipe(name):
        notes = played(music)
        assert weight > 0.0
        assert len(notes) > 50
        assert {stem_of(note).name for note in notes} <= wanted


@pytest.mark.parametrize("name", TRAINED)
def test_the_others_play_nothing_that_is_labelled(name):
    lineup = stem_keys(stem_named(name))
    notes = played(backing(name))
    assert len(notes) > 50
    for note in notes:
        assert note.pitch not in lineup.drum_keys if note.is_drum else True
        assert note.is_drum or note.program not in lineup.programs


def test_the_drums_are_a_whole_kit_and_cymbals_are_cymbals():
    ((_, kit),) = stem_recipe("drums")
    keys = {note.pitch for note in played(kit)}
    assert keys & HIGH_KEYS
    assert keys - HIGH_KEYS
    ((_, cymbals),) = stem_recipe(HIGH)
    assert {note.pitch for note in played(cymbals)} <= HIGH_KEYS
    # Kicks and snares are heard beside cymbals, and no hits beside a kit.
    assert any(note.is_drum for note in played(backing(HIGH)))
    assert not any(note.is_drum for note in played(backing("drums")))


def test_most_of_a_bass_is_one_voice():
    ((most, bass), *_) = stem_recipe("bass")
    assert most > 0.5
    for seed in range(8):
        (part,) = compose(bass, seed, seconds=8.0).parts
        assert part.role == "bass"


def test_every_program_of_a_stem_is_played():
    programs = Counter(
        note.program
        for _, music in stem_recipe("synth_pad_fx")
        for note in played(music, count=60, seconds=4.0)
    )
    assert set(programs) == set(stem_named("synth_pad_fx").lineup.programs)


def test_there_is_no_music_for_singers():
    assert "vocals" in {stem.name for stem in STEMS} - set(TRAINED)
    with pytest.raises(OptionError, match="vocals: no data.*--index"):
        stem_recipe("vocals")
    with pytest.raises(OptionError, match="Unknown stem"):
        stem_recipe("tuba")


@pytest.mark.parametrize(
    "changes", [{"roles": ()}, {"roles": ("drums",)}, {"drum_keys": ()}, {"drum_keys": (128,)}]
)
def test_impossible_players_are_refused(changes):
    with pytest.raises(OptionError, match="expected"):
        MusicConfig(**changes)
