"""The rules of the default filter, one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt3_runtime.leakage import drum_evidence
from mt3_runtime.leakage.drum_evidence import (
    DUPLICATE,
    RINGING,
    SILENT,
    UNCERTAIN,
    UNHEARD,
    UNWANTED,
    DrumContext,
    Drums,
    Heard,
    Verdict,
    join,
    together,
)
from mt3_runtime.leakage.harmonics import Harmonics
from mt3_runtime.leakage.leakage_report import Stretch
from mt3_runtime.leakage.salience import CLOSED_HAT, KICK, OnsetEvidence
from mt3_runtime.notes.note import Note

FREQUENCIES = 128


def heard(
    onset: float,
    pitch: int,
    *,
    clear: bool,
    length: float = 0.1,
    sound: int | None = None,
    harmonic: float = 0.2,
) -> Heard:
    """A note; notes of one sound sound alike, by default those of a pitch."""
    evidence = OnsetEvidence(1.5 if clear else 0.4, 20.0, KICK)
    tones = np.zeros(FREQUENCIES, np.float16)
    tones[pitch if sound is None else sound] = 1.0
    return Heard(Note(onset, onset + length, pitch, 100, 33), evidence, tones, harmonic)


def replaced(one: Heard, **values) -> Heard:
    return one._replace(**values)


def verdicts(notes, drums=(9.9,), *, tonal: float = 0.02, whole: float = 1.0) -> list[str]:
    """The reasons for notes that have everything in their context."""
    scene = DrumContext(sorted(notes, key=lambda one: one.note), sorted(drums))
    return [scene.judge(one, 0.0, 10.0, tonal_share=tonal, whole=whole).reason for one in notes]


UNCLEAR = [heard(k * 0.5, 60 + k, clear=False) for k in range(6)]
MELODY = [heard(k * 0.5, 60 + k, clear=True) for k in range(4)]


def test_unheard_notes_without_a_melody_are_none():
    assert verdicts(UNCLEAR) == [UNHEARD] * 6


def test_where_there_are_no_drums_nothing_is_one():
    assert verdicts(UNCLEAR, []) == [""] * 6
    assert verdicts(UNCLEAR, [10.1]) == [""] * 6  # those elsewhere say nothing about here
    again = [heard(k * 0.5, 70, clear=True) for k in range(9)]
    assert verdicts(again, []) == [""] * 9


def test_where_there_is_melody_everything_stays():
    assert verdicts([*UNCLEAR, *MELODY]) == [""] * 10
    assert set(verdicts([*UNCLEAR, *MELODY[:3]])) == {RINGING, UNHEARD}


def test_one_pitch_is_no_melody_however_often_it_is_clear():
    again = [heard(k * 0.5, 60, clear=True) for k in range(9)]
    assert UNHEARD in verdicts([*UNCLEAR, *again])


@pytest.mark.parametrize(
    ("tonal", "drums", "acts"),
    [
        (0.11, 1, True),
        (0.13, 1, False),  # one of seven notes is less than 15 %
        (0.13, 2, True),
        (0.24, 2, True),
        (0.26, 99, False),
    ],
)
def test_tonal_sound_stays(tonal, drums, acts):
    found = verdicts(UNCLEAR, [0.1 * k for k in range(drums)], tonal=tonal)
    assert found == [UNHEARD if acts else ""] * 6


def test_a_clear_pitch_stays_and_takes_its_unclear_notes_along():
    notes = [heard(k, 50, clear=k < 1) for k in range(3)]
    assert verdicts(notes) == [""] * 3
    assert verdicts([*notes, heard(4, 50, clear=False)]) == [UNHEARD] * 4


def test_a_ringing_drum_is_a_drum_unless_it_is_low():
    assert verdicts([heard(k, 70, clear=True) for k in range(3)]) == [RINGING] * 3
    assert verdicts([heard(k, 70 + k % 2, clear=True) for k in range(3)]) == [RINGING] * 3
    assert verdicts([heard(k, 70, clear=True) for k in range(2)]) == [""] * 2
    assert verdicts([heard(k, 40, clear=True) for k in range(3)]) == [""] * 3
    three = [heard(k, 70 + 3 * (k % 3), clear=True) for k in range(9)]
    assert verdicts(three) == [RINGING] * 9
    assert verdicts([*three, heard(9, 90, clear=True)]) == [""] * 10


def test_at_the_beginning_less_is_a_melody():
    assert verdicts([*UNCLEAR, *MELODY[:2]], whole=0.4) == [""] * 8


def test_pitches_that_sound_alike_are_one_tone():
    snare = [heard(k, 60 + k, clear=True, sound=0) for k in range(6)]
    assert verdicts(snare) == [RINGING] * 6
    three = [heard(k, 70 + k, clear=True) for k in range(3)]
    assert verdicts([*snare, *three]) == [""] * 9
    chord = [replaced(one, harmonic=0.41) for one in snare]
    assert verdicts(chord) == [""] * 6
    half = [*chord[:3], *snare[3:]]  # each must be a pitch of its own
    assert set(verdicts(half)) == {RINGING, ""}


def test_what_is_not_harmonic_is_no_tone():
    rings = [heard(k, 60 + 3 * k, clear=True, harmonic=-0.01) for k in range(8)]
    assert verdicts(rings) == [""] * 8  # each comes once
    assert verdicts([*rings, *rings, *rings]) == [RINGING] * 24
    mixed = [heard(k, 60, clear=True, harmonic=h) for k, h in enumerate((-0.3, 0.1, 0.1))]
    assert set(verdicts([*rings, *rings, *rings, *mixed])) == {RINGING}


def test_a_few_harmonic_pitches_stay():
    stab = [heard(k, pitch, clear=False, harmonic=0.41) for k in range(4) for pitch in (60, 64)]
    assert verdicts(stab) == [""] * 8
    assert verdicts([replaced(one, harmonic=0.39) for one in stab]) == [UNHEARD] * 8
    uneven = [replaced(one, harmonic=0.2 + 0.5 * (one.note.onset < 2)) for one in stab]
    assert verdicts(uneven) == [""] * 8


def test_one_harmonic_alone_says_nothing():
    for pitch, reason in ((90, ""), (91, RINGING)):
        bell = [heard(k, pitch, clear=True, harmonic=0.9) for k in range(4)]
        assert verdicts(bell) == [reason] * 4


def test_a_bass_stays_though_it_sounds_like_the_kick_it_is_played_with():
    bass = [heard(k, pitch, clear=True, sound=0) for k, pitch in enumerate((40, 52, 40, 47, 45))]
    assert verdicts(bass) == [""] * 5


def test_what_begins_together_is_explained_together():
    harmonics = Harmonics(7.8125, 384)
    tones = np.zeros(384, np.float16)
    tones[[33, 67, 50, 100]] = 0.5  # C4 and G4, two harmonics each
    found = [
        (Note(onset, 2.0, pitch, 100), OnsetEvidence(1.5, 20.0, KICK), tones)
        for onset, pitch in ((1.0, 60), (1.03, 67), (1.5, 60))
    ]
    first, second, third = together(found[::-1], harmonics)
    assert [one.note for one in (first, second, third)] == [note for note, *_ in found]
    assert first.harmonic == second.harmonic == harmonics.share(tones, [60, 67])
    assert third.harmonic == harmonics.share(tones, [60])
    assert first.harmonic > third.harmonic


def test_only_the_context_counts():
    far = [heard(20.0 + k, 60 + k, clear=True) for k in range(5)]
    near = heard(5.0, 60, clear=False)
    scene = DrumContext([near, *far], [5.0, 21.0])
    assert scene.judge(near, 0.0, 10.0, tonal_share=0.0) == Verdict(
        UNHEARD, Stretch(5.0, 5.0, 0, 0.5, 0.0)
    )
    assert scene.judge(near, 0.0, 30.0, tonal_share=0.0) == Verdict()


def test_programs_play_no_part():
    notes = [*UNCLEAR, *(heard(k, 70, clear=True) for k in range(3))]
    other = [h._replace(note=replace(h.note, program=8)) for h in notes]
    assert verdicts(notes) == verdicts(other)


def few(reason: str, drum_share: float = 0.4) -> Verdict:
    """A verdict on a note among so many drums."""
    return Verdict(reason, Stretch(1.0, 1.0, 0, drum_share, 0.0))


def drums(onsets=(), keys=range(128)) -> Drums:
    return Drums(onsets, keys=keys, duration=0.01)


def test_a_hit_takes_the_place_of_a_note():
    found = heard(1.0, 70, clear=False, length=0.6)
    change = drums([0.5, 1.2]).replace(found, few(UNHEARD))
    assert change.note == found.note
    assert change.reason == UNHEARD
    assert change.became == Note(1.0, 1.01, KICK, 100, 0, is_drum=True)


def test_no_hit_is_doubled_or_made_up():
    found = heard(1.0, 70, clear=False)
    for onset in (0.951, 1.0, 1.049):
        assert drums([onset]).replace(found, few(UNHEARD)) == (
            found.note,
            None,
            UNHEARD + DUPLICATE,
        )
    quiet = found._replace(evidence=OnsetEvidence(0.0, 4.9, KICK))
    assert drums([0.9]).replace(quiet, few(RINGING)) == (found.note, None, RINGING + SILENT)
    assert drums([], keys=(38, 42)).replace(found, few(UNHEARD)).reason == UNHEARD + UNWANTED
    assert drums([], keys=(KICK,)).replace(found, few(UNHEARD)).became is not None


@pytest.mark.parametrize("key", [KICK, CLOSED_HAT])
def test_among_many_drums_only_kicks_are_put_in(key):
    found = heard(1.0, 70, clear=False)._replace(evidence=OnsetEvidence(0.0, 20.0, key))
    for share, reason in ((0.49, UNHEARD), (0.5, UNHEARD if key == KICK else UNHEARD + UNCERTAIN)):
        change = drums([0.5]).replace(found, few(UNHEARD, share))
        assert change.reason == reason
        assert (change.became is None) == (reason != UNHEARD)


def test_hits_that_were_put_in_count_as_well():
    hits = drums()
    assert hits.replace(heard(1.0, 70, clear=False), few(UNHEARD)).became is not None
    assert hits.replace(heard(1.04, 71, clear=False), few(UNHEARD)).became is None
    assert hits.replace(heard(1.06, 72, clear=False), few(UNHEARD)).became is not None


def test_stretches_whose_contexts_touch_are_one():
    ends = [(0.0, 0.0), (3.0, 3.0), (13.0, 13.0), (23.1, 23.1)]
    stretches = [Stretch(*pair, k, 0.1 * k, 0.01) for k, pair in enumerate(ends)]
    assert join(stretches) == (Stretch(0.0, 13.0, 2, 0.2, 0.01), stretches[3])
    assert join([]) == ()


def test_the_context_is_as_long_while_running():
    assert drum_evidence.LOOK_BACK_SECONDS == 2 * drum_evidence.CONTEXT_SECONDS


NOTES = st.lists(
    st.builds(
        lambda onset, pitch, clear, length: heard(onset, pitch, clear=clear, length=length),
        st.floats(0, 10),
        st.integers(21, 108),
        st.booleans(),
        st.floats(0.01, 1),
    ),
    max_size=30,
)


@given(NOTES, st.floats(0, 1), st.integers(1, 3))
def test_clear_pitches_never_hurt(notes, tonal, added):
    """More melody behind a note never makes a drum of one that stayed before."""
    before = verdicts(notes, tonal=tonal)
    more = [heard(10.0, pitch, clear=True) for pitch in range(111, 111 + added)]
    for old, new in zip(before, verdicts([*notes, *more], tonal=tonal), strict=False):
        assert old or not new


@given(NOTES, st.floats(0, 0.5), st.floats(0, 0.5))
def test_tonal_sound_never_hurts(notes, tonal, more):
    pairs = zip(verdicts(notes, tonal=tonal), verdicts(notes, tonal=tonal + more), strict=True)
    assert all(old or not new for old, new in pairs)


def test_a_hat_is_a_hat():
    found = heard(1.0, 70, clear=False)._replace(evidence=OnsetEvidence(0.0, 9.0, CLOSED_HAT))
    became = drums().replace(found, few(UNHEARD)).became
    assert became is not None
    assert became.pitch == CLOSED_HAT
