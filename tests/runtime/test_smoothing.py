"""Programs that slip for one segment."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt3_runtime.leakage.program_smoothing import SLIP, smooth
from mt3_runtime.notes.note import Note, Probabilities

STARTS = [2.0 * k for k in range(6)]
FLUTE, VIOLIN, BASS = 73, 40, 33


def bar(segment: int, program: int, *, pitch: int = 70, count: int = 4, sure: float = 0.5):
    """Notes of one segment, a step higher each."""
    return [
        Note(
            2.0 * segment + 0.4 * k,
            2.0 * segment + 0.4 * k + 0.3,
            pitch + k,
            100,
            program,
            probabilities=Probabilities(program=sure),
        )
        for k in range(count)
    ]


def piece(*programs: int | None) -> list[Note]:
    return [n for k, p in enumerate(programs) if p is not None for n in bar(k, p)]


def programs(notes: list[Note]) -> list[int]:
    """The program of each segment's first note."""
    return [
        next(n.program for n in notes if n.onset == start) for start in STARTS[: len(notes) // 4]
    ]


def test_a_slip_is_repaired_and_reported():
    notes = piece(FLUTE, FLUTE, VIOLIN, FLUTE, FLUTE)
    after, report = smooth(notes, STARTS)
    assert programs(after) == [FLUTE] * 5
    assert [replace(note, program=0) for note in after] == [replace(n, program=0) for n in notes]
    assert (report.filter, report.notes, report.moved, report.kept) == ("smooth", 20, 4, 16)
    assert report.summary() == "smoothing: 4 of 20 notes given another program"
    assert report.lines()[1] == f"4.00 s: program 40, pitch 70 -> program 73: {SLIP}"
    assert report.to_dict()["changes"][0]["became"] == {
        "pitch": 70,
        "program": FLUTE,
        "is_drum": False,
    }


@pytest.mark.parametrize(
    "notes",
    [
        piece(FLUTE, FLUTE, VIOLIN, VIOLIN, FLUTE, FLUTE),  # twice
        piece(VIOLIN, FLUTE, VIOLIN, FLUTE, FLUTE),  # again nearby
        piece(FLUTE, FLUTE, VIOLIN, None, FLUTE),  # a rest: who knows
        [*piece(FLUTE, FLUTE, VIOLIN, FLUTE, FLUTE), *bar(2, FLUTE)],  # both play
        piece(FLUTE, FLUTE, VIOLIN, BASS, BASS),  # a change, not a slip
        [*piece(FLUTE, FLUTE, None, FLUTE), *bar(2, VIOLIN, count=1)],  # a single note
        [*piece(FLUTE, FLUTE, None, FLUTE), *bar(2, VIOLIN, sure=0.95)],  # the model is sure
        [*piece(FLUTE, FLUTE, None, FLUTE), *bar(2, BASS, pitch=35)],  # another register
        [n for n in piece(FLUTE, FLUTE, VIOLIN, FLUTE) if n.onset not in (2.4, 2.8, 3.2)],
        [*piece(FLUTE, FLUTE, VIOLIN, FLUTE), *bar(1, 68), *bar(3, 68)],  # two are missing
        piece(VIOLIN, FLUTE, FLUTE),  # the first has but one neighbour
        [],
    ],
)
def test_what_may_be_meant_stays(notes):
    after, report = smooth(notes, STARTS)
    assert after == notes
    assert report.changes == ()
    assert report.lines() == [f"smoothing: {len(notes)} notes, none changed"]


def test_tied_notes_keep_their_program():
    notes = piece(FLUTE, FLUTE, VIOLIN, FLUTE, FLUTE)
    tied = [replace(n, offset=6.1) if n.onset == 5.2 else n for n in notes]
    assert smooth(tied, STARTS).notes == tied
    ending = [replace(n, offset=6.01) if n.onset == 5.2 else n for n in notes]
    assert smooth(ending, STARTS).report.moved == 4


def test_unknown_probabilities_do_not_protect():
    notes = [replace(n, probabilities=Probabilities()) for n in piece(FLUTE, VIOLIN, FLUTE)]
    assert smooth(notes, STARTS).report.moved == 4


def test_drums_play_no_part():
    drums = [replace(n, program=0, is_drum=True) for n in piece(0, 0, 0, 0, 0)]
    notes = [*piece(FLUTE, FLUTE, VIOLIN, FLUTE, FLUTE), *drums]
    after, report = smooth(notes, STARTS)
    assert report.moved == 4
    assert after[20:] == drums


@given(
    st.lists(
        st.builds(
            lambda onset, length, pitch, program, is_drum: Note(
                onset, onset + length, pitch, 100, 0 if is_drum else program, is_drum
            ),
            st.floats(0, 12),
            st.floats(0, 3),
            st.integers(40, 60),
            st.sampled_from([FLUTE, VIOLIN, BASS]),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_nothing_but_programs_changes(notes):
    after, report = smooth(notes, STARTS)
    assert [replace(note, program=0) for note in after] == [replace(n, program=0) for n in notes]
    assert report.notes == len(notes) == report.kept + report.moved
    assert report.removed == 0
    changed = [pair for pair in zip(notes, after, strict=True) if pair[0] != pair[1]]
    assert sorted(changed) == sorted((c.note, c.became) for c in report.changes)
    assert not any(note.is_drum for note, _ in changed)
