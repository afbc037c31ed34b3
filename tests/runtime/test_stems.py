"""Stems divide the notes, and file names tell stems."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt3_runtime.errors import OptionError
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.stems import HIGH_KEYS, STEMS, Role, split, stem_named, stem_of, stems_of
from mt3_runtime.transcription import Transcription

NOTES = st.lists(
    st.builds(
        lambda pitch, program, is_drum: Note(
            0.0, 1.0, pitch, 100, 0 if is_drum else program, is_drum=is_drum
        ),
        st.integers(0, 127),
        st.integers(0, 127),
        st.booleans(),
    )
)


def test_every_program_and_key_belongs_to_one_stem():
    assert sorted(p for stem in STEMS for p in stem.lineup.programs) == list(range(128))
    assert sorted(k for stem in STEMS for k in stem.lineup.drum_keys) == list(range(128))
    assert {stem.role for stem in STEMS} == set(Role)
    for stem in STEMS:
        assert bool(stem.lineup.drum_keys) == (stem.role is Role.PERCUSSIVE)


@given(NOTES)
def test_splitting_loses_nothing_and_keeps_the_order(notes):
    found = split(notes)
    assert list(found) == [stem.name for stem in STEMS if stem.name in found]
    assert sorted(note for some in found.values() for note in some) == sorted(notes)
    for name, some in found.items():
        assert list(some) == [note for note in notes if stem_of(note).name == name]


@pytest.mark.parametrize(
    ("note", "name"),
    [
        (Note(0, 1, 40, 1, 33), "bass"),
        (Note(0, 1, 60, 1, 4), "piano"),
        (Note(0, 1, 60, 1, 81), "synth_lead"),
        (Note(0, 1, 60, 1, 99), "synth_pad_fx"),
        (Note(0, 1, 60, 1, 30), "guitar"),
        (Note(0, 1, 60, 1, 40), "strings_ensemble"),
        (Note(0, 1, 60, 1, 53), "vocals"),
        (Note(0, 1, 60, 1, 56), "other"),
        (Note(0, 1, 36, 1, 0, is_drum=True), "drums"),
        (Note(0, 1, 42, 1, 0, is_drum=True), "high_percs"),
        (Note(0, 1, 42, 1, 36), "bass"),
    ],
)
def test_where_notes_belong(note, name):
    assert stem_of(note).name == name


def test_high_percussion_is_hi_hats_and_cymbals():
    """The keys that the drum classes of the evaluation call so."""
    from mt3_evaluation.scoring import DRUM_KEYS

    assert {*DRUM_KEYS["HH"], *DRUM_KEYS["CY"]} == HIGH_KEYS


def test_a_result_by_stems():
    notes = (Note(0, 1, 40, 1, 33), Note(0, 1, 42, 1, is_drum=True), Note(1, 2, 40, 1, 33))
    result = Transcription(notes, (), 2.0, "tiny", "")
    assert result.stems() == {"bass": (notes[0], notes[2]), "high_percs": (notes[1],)}


def told(*names: str) -> list[str]:
    return [stem.name for stem in stems_of([Path("folder") / name for name in names])]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("bass.wav", "bass"),
        ("01 Bass.flac", "bass"),
        ("bass_guitar.wav", "bass"),
        ("Lead Guitar (2).wav", "guitar"),
        ("synth-lead.wav", "synth_lead"),
        ("SynthPad.wav", None),
        ("my song - hi-hats.wav", "high_percs"),
        ("high_percs.wav", "high_percs"),
        ("backing vocals.mp3", "vocals"),
        ("no_stem_at_all.wav", None),
        ("piano and bass.wav", None),
    ],
)
def test_stems_in_file_names(name, stem):
    if stem is None:
        with pytest.raises(OptionError, match="names (no stem|several stems)"):
            told(name)
    else:
        assert told(name) == [stem]


@pytest.mark.parametrize("stem", [stem.name for stem in STEMS])
def test_the_names_themselves(stem):
    assert told(f"{stem}.wav") == [stem]
    assert stem_named(stem).name == stem


def test_what_all_names_share_is_the_title():
    names = ["Piano Man - bass (live).wav", "Piano Man - piano (live).wav"]
    assert told(*names) == ["bass", "piano"]
    assert told("piano.wav", "piano.flac") == ["piano", "piano"]
    assert told("drums.wav", "drums room.wav") == ["drums", "drums"]
    assert told("guitar 1.wav", "guitar 2.wav", "bass.wav") == ["guitar", "guitar", "bass"]
    with pytest.raises(OptionError, match="several stems"):
        told("Piano Man - bass.wav")


def test_unknown_stems_are_refused_with_what_there_is():
    with pytest.raises(OptionError, match="Unknown stem 'basses'; expected one of bass, piano,"):
        stem_named("basses")
