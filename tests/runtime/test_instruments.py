"""Names of instruments, and the line-ups that they make."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt3_runtime.errors import OptionError
from mt3_runtime.notes.instruments import (
    ALIASES,
    DRUM_NAMES,
    FAMILIES,
    PROGRAM_NAMES,
    Lineup,
    choose,
    instrument_name,
    named,
)
from tests import needs

EVERY_KEY = frozenset(range(128))


def programs(instruments) -> list[int]:
    return sorted(named(instruments).programs)


def test_instrument_names():
    assert len(PROGRAM_NAMES) == len(set(PROGRAM_NAMES)) == 128
    # The first program of each of the 16 families, and the last of all.
    assert [PROGRAM_NAMES[p] for p in (*range(0, 128, 8), 127)] == [
        "Acoustic Grand Piano",
        "Celesta",
        "Drawbar Organ",
        "Acoustic Guitar (nylon)",
        "Acoustic Bass",
        "Violin",
        "String Ensemble 1",
        "Trumpet",
        "Soprano Sax",
        "Piccolo",
        "Lead 1 (square)",
        "Pad 1 (new age)",
        "FX 1 (rain)",
        "Sitar",
        "Tinkle Bell",
        "Guitar Fret Noise",
        "Gunshot",
    ]
    assert instrument_name(40, is_drum=True) == "Drums"


def test_instrument_names_agree_with_pretty_midi():
    pretty_midi = needs.package("pretty_midi")

    def letters(name):
        return "".join(filter(str.isalnum, name.lower()))

    theirs = [pretty_midi.program_to_instrument_name(p) for p in range(128)]
    assert list(map(letters, PROGRAM_NAMES)) == list(map(letters, theirs))


def test_every_name_of_general_midi_means_its_program():
    for program, name in enumerate(PROGRAM_NAMES):
        for spelling in (name, name.upper(), name.replace("(", "").replace(" ", "_"), program):
            assert programs([spelling]) == [program]
        assert programs(str(program)) == [program]


def test_every_family_means_its_eight_programs():
    assert len(FAMILIES) == 16
    for index, family in enumerate(FAMILIES):
        assert programs(family.lower()) == list(range(8 * index, 8 * index + 8))


def test_other_names_hide_none_of_general_midi():
    own = {name.lower() for name in (*PROGRAM_NAMES, *FAMILIES)}
    assert not own & {*ALIASES, *DRUM_NAMES}
    for name, expected in ALIASES.items():
        assert programs(name) == list(expected)
        assert all(0 <= program < 128 for program in expected)


def test_plurals():
    assert programs("Violins, basses,pianos") == [*range(8), *range(32, 41)]
    assert programs("voices") == programs("Vocals") == programs("voice")


@pytest.mark.parametrize("name", [*DRUM_NAMES, "Drum Kits", "DRUMS"])
def test_drums_are_all_keys_and_no_program(name):
    assert named(name) == Lineup(frozenset(), EVERY_KEY)


@given(st.lists(st.sampled_from([*PROGRAM_NAMES, *FAMILIES, *ALIASES, "drums", 0, 77, "127"])))
def test_a_list_is_the_union_of_its_items(items):
    found = named(items)
    assert found.programs == frozenset().union(*(named([item]).programs for item in items))
    assert named(",".join(map(str, items))) == found


def test_choosing():
    assert choose(None) is None
    assert choose(["drums", "bass"]) == Lineup(frozenset(range(32, 40)), EVERY_KEY)
    assert choose(None, "drums") == Lineup(drum_keys=frozenset())
    assert choose("guitar", ["Distortion Guitar", 29]).programs == {24, 25, 26, 27, 28, 31}
    assert choose(33).programs == {33}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("vioiln", "did you mean violin"),
        ("elctric guitar", "did you mean electric guitar"),
        ("oberheim synth", "did you mean synth"),
        ("zzz", "expected drums, a family (piano, chromatic percussion"),
        ("", "No instrument is left"),
        ([], "No instrument is left"),
        ([""], "Unknown instrument ''"),
        ([128], "Program 128 does not exist: General MIDI programs are counted from 0"),
        (-1, "Program -1 does not exist"),
        ([True], "a name or a program number, got True"),
        ([1.0], "got 1.0"),
    ],
)
def test_what_is_not_known_is_refused(wrong, message):
    with pytest.raises(OptionError) as caught:
        choose(wrong)
    assert message in str(caught.value)


def test_everything_excluded_is_refused():
    with pytest.raises(OptionError, match="No instrument is left"):
        choose("violin", "strings")
