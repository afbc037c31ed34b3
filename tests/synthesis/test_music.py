"""Made-up pieces: always the same, playable, and as asked for."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.errors import OptionError
from mt3_synthesis import parts
from mt3_synthesis.music import (
    CLOSEST_ONSETS,
    MusicConfig,
    Part,
    Piece,
    compose,
    one_at_a_time,
)
from tests.synthesis.sounds import drum, note

KINDS = {
    "band": MusicConfig.band(),
    "piano": MusicConfig.piano(),
    "line": MusicConfig.line(),
    "solo": MusicConfig.solo(),
    "drums": MusicConfig.drums_only(),
    "duo": MusicConfig.piano_and_drums(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_pieces_and_others_do_not(kind):
    one, same, other = (compose(KINDS[kind], seed, seconds=6.0) for seed in (7, 7, 8))
    assert one == same
    assert one != other


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 2**62),
    seconds=st.floats(0.2, 12.0),
)
def test_every_piece_can_be_played(kind, seed, seconds):
    piece = compose(KINDS[kind], seed, seconds=seconds)
    assert piece.seconds == seconds
    for part in piece.parts:
        assert part.notes
        assert (part.role == parts.DRUMS) == part.is_drum
        low, high = (0, 127) if part.is_drum else parts.range_of(part.program)
        last = {}
        for one in part.notes:
            assert 0.0 <= one.onset < seconds
            assert one.offset > one.onset
            assert low <= one.pitch <= high
            assert 1 <= one.velocity <= 127
            assert (one.program, one.is_drum) == (part.program, part.is_drum)
            before = last.get(one.pitch)
            if before is not None:
                assert one.onset >= before.onset + CLOSEST_ONSETS
                assert one.onset >= before.offset
            last[one.pitch] = one
    assert piece.notes == sorted(note for part in piece.parts for note in part.notes)


@pytest.mark.parametrize(
    ("kind", "programs"),
    [("piano", {0, 1, 2}), ("duo", {0}), ("line", set(parts.LEADS)), ("drums", {0})],
)
def test_kinds_of_music_have_their_instruments(kind, programs):
    pieces = [compose(KINDS[kind], seed, seconds=4.0) for seed in range(40)]
    assert {note.program for piece in pieces for note in piece.notes} <= programs


def test_a_line_is_one_voice_or_two_in_parallel():
    for seed in range(30):
        for part in compose(MusicConfig.line(), seed, seconds=6.0).parts:
            for moment in (n.onset + 0.01 for n in part.notes):
                sounding = [n for n in part.notes if n.onset <= moment < n.offset - 0.05]
                assert len(sounding) <= 4  # two voices, each with a little overlap


def test_bands_vary_in_size_and_use_all_roles():
    pieces = [compose(MusicConfig.band(), seed, seconds=8.0) for seed in range(80)]
    assert {len(piece.parts) for piece in pieces} >= {1, 2, 3, 4, 5}
    roles = {part.role for piece in pieces for part in piece.parts}
    assert roles == {"keys", "lead", "bass", "pad", "chaos", "drums"}
    for piece in pieces:
        assert sum(part.role == "bass" for part in piece.parts) <= 1


def test_chaos_keeps_the_notes_from_following_a_scale():
    piece = compose(MusicConfig((0, 0), drums=0.0, chaos=1.0), 3, seconds=60.0)
    assert [part.role for part in piece.parts] == ["chaos"]
    assert len({note.pitch % 12 for note in piece.notes}) == 12


def test_chaos_may_join_the_last_part():
    config = MusicConfig((1, 1), drums=0.0, chaos=1.0)
    sizes = {len(compose(config, seed, seconds=20.0).parts) for seed in range(20)}
    assert sizes == {1, 2}


def test_programs_are_taken_from_those_that_suit_the_role():
    config = MusicConfig((3, 3), programs=(0, 33, 40))
    for seed in range(20):
        for part in compose(config, seed, seconds=6.0).parts:
            if part.role == "bass":
                assert part.program == 33


def test_steady_pieces_have_no_rubato():
    config = MusicConfig((0, 0), drums=1.0, chaos=0.0)
    for seed in range(20):
        onsets = [n.onset for n in compose(config, seed, seconds=10.0).notes]
        gaps = {round(b - a, 2) for a, b in itertools.pairwise(onsets)}
        assert min(gaps) >= 0.0


def test_a_key_that_is_struck_again_ends_before():
    notes = [note(0.0, 2.0, 60), note(1.0, 1.5, 60), note(1.01, 3.0, 60), note(0.5, 2.0, 61)]
    kept = one_at_a_time([*notes, note(-0.1, 1.0, 62), note(5.0, 6.0, 62)], 5.0)
    assert kept == (note(0.0, 1.0, 60), note(0.5, 2.0, 61), note(1.0, 1.5, 60))


def test_a_piece_lists_the_notes_of_all_parts_by_onset():
    part = Part("keys", 0, is_drum=False, notes=(note(0.5, 1.0, 60),))
    hits = Part("drums", 0, is_drum=True, notes=(drum(0.1, 36), drum(0.7, 38)))
    assert [n.onset for n in Piece(1.0, (part, hits)).notes] == [0.1, 0.5, 0.7]


def test_pitches_are_folded_into_the_range_by_octaves():
    for pitch in range(128):
        folded = parts.folded(pitch, 40, 60)
        assert 40 <= folded <= 60
        assert (folded - pitch) % 12 == 0
        assert folded == pitch or not 40 <= pitch <= 60


@pytest.mark.parametrize(
    "wrong",
    [
        {"parts": (3, 2)},
        {"parts": (-1, 2)},
        {"parts": (0, 99)},
        {"layers": (0, 1)},
        {"drums": 1.1},
        {"chaos": -0.1},
        {"rests": 2.0},
        {"programs": ()},
        {"programs": (128,)},
    ],
)
def test_impossible_music_is_refused(wrong):
    with pytest.raises(OptionError, match="expected"):
        MusicConfig(**wrong)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_lengths_are_refused(seconds):
    with pytest.raises(OptionError, match="positive length"):
        compose(MusicConfig(), 0, seconds=seconds)


def test_music_can_be_limited_to_the_instruments_there_are():
    band = MusicConfig.band()
    assert band.limited_to(range(128), drums=True) == band
    assert set(band.limited_to([0, 33, 99], drums=True).programs) == {0, 33}
    assert band.limited_to([0], drums=False).drums == 0.0
    assert MusicConfig.solo(40).limited_to([41, 0], drums=True).programs == (41,)
    assert MusicConfig.solo(40).limited_to([0], drums=True).programs == (0,)
    assert band.limited_to([], drums=True) == MusicConfig((0, 0), chaos=0.0)
    with pytest.raises(OptionError, match="no sounds"):
        MusicConfig.piano().limited_to([], drums=True)
