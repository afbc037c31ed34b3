"""Matching, F1 figures, metrics and when they apply, intervals."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mir_eval.transcription import precision_recall_f1_overlap
from mir_eval.util import midi_to_hz

from mt3_evaluation import scoring
from mt3_evaluation.bootstrap import interval
from mt3_evaluation.labels import Labels
from mt3_evaluation.metrics import METRICS, found_by_family, measure
from mt3_evaluation.scoring import (
    Score,
    before,
    by_pitch,
    instrument,
    match,
    score_drums,
    score_instruments,
    score_notes,
)
from mt3_runtime.errors import MissingDependencyError
from mt3_runtime.notes.note import Note

pytestmark = pytest.mark.filterwarnings("ignore:.* notes are empty")  # mir_eval, asked for nothing


def note(onset, pitch=60, program=0, *, length=0.5):
    return Note(onset, onset + length, pitch, 100, program)


def drum(onset, key=36, program=0):
    return Note(onset, onset, key, 100, program, is_drum=True)


# Few pitches, few programs and times on a grid, so that matches are common and often contested.
STEPS = st.integers(0, 60).map(lambda step: step / 40)
NOTES = st.builds(
    lambda onset, length, pitch, program, is_drum: Note(
        onset, onset + length, pitch, 100, program, is_drum
    ),
    STEPS,
    st.sampled_from((0.0, 0.01, 0.1, 0.12, 0.4)),
    st.integers(35, 39),
    st.sampled_from((0, 1, 8, 40)),
    st.booleans(),
)
PIECES = st.lists(NOTES, max_size=30)


# --- matching ------------------------------------------------------------------------------------


def test_the_scorer():
    """Five labels; one note each that is right, late, too late, an octave off, and too short."""
    labels = [note(float(i), 60 + i) for i in range(5)]
    notes = [
        labels[0],
        dataclasses.replace(labels[1], onset=1.04, program=40),
        dataclasses.replace(labels[2], onset=2.06),
        dataclasses.replace(labels[3], pitch=75),
        dataclasses.replace(labels[4], offset=4.2),
        drum(0.0),
    ]
    assert score_notes(labels, notes) == Score(3, 5, 5)
    assert score_notes(labels, notes, offsets=True) == Score(2, 5, 5)
    drums = [drum(float(i), key) for i, key in enumerate((36, 37, 44, 39))]
    folded = [dataclasses.replace(n, pitch=p) for n, p in zip(drums, (35, 40, 42, 38), strict=True)]
    assert score_drums(folded, [*drums, *labels]) == Score(3, 4, 4)


def test_figures_of_a_score():
    score = Score(1, 2, 3) + Score(2, 2, 5)
    assert score == Score(3, 4, 8)
    assert (score.precision, score.recall, score.f1) == (0.375, 0.75, 0.5)
    assert str(score) == "P R F1 0.375 0.750 0.500 (4 labels, 8 notes)"


def test_nothing_has_no_score():
    assert str(Score(0, 0, 0)) == "P R F1 - - - (0 labels, 0 notes)"
    assert Score(0, 3, 0).f1 == Score(0, 0, 3).f1 == 0.0


def test_fifty_milliseconds_still_count():
    assert match([note(1.0)], [note(1.05)], by_pitch) == [(0, 0)]
    assert match([note(1.0)], [note(1.0502)], by_pitch) == []


def test_the_largest_matching_is_found():
    """Taking the nearest partner first would leave one note over."""
    assert match([note(1.0), note(1.04)], [note(1.03), note(1.08)], by_pitch) == [(0, 0), (1, 1)]


@given(PIECES, PIECES, st.booleans())
def test_pitched_notes_as_mir_eval_scores_them(labels, notes, offsets):
    found = score_notes(labels, notes, offsets=offsets)
    sides = [[n for n in side if not n.is_drum] for side in (labels, notes)]
    assert (found.precision or 0, found.recall or 0) == pytest.approx(theirs(*sides, offsets))


@given(PIECES, PIECES, st.sampled_from(("flat", "class", "full")))
def test_instruments_as_mt3_scores_them(labels, notes, granularity):
    """Precisions of all tracks, weighted by their notes; recalls, by their labels."""
    found = score_instruments(labels, notes, granularity=granularity)
    right = recalled = 0.0
    for track in {instrument(n, granularity) for n in (*labels, *notes)}:
        sides = [[n for n in s if instrument(n, granularity) == track] for s in (labels, notes)]
        precision, recall = theirs(*sides, track >= 0)
        right += precision * len(sides[1])
        recalled += recall * len(sides[0])
    assert (found.precision or 0) == pytest.approx(right / max(len(notes), 1))
    assert (found.recall or 0) == pytest.approx(recalled / max(len(labels), 1))


def theirs(labels, notes, offsets):
    """Precision and recall of mir_eval's own function, over all pitches at once."""
    arrays = []
    for side in (labels, notes):
        spans = [(n.onset, max(n.offset, n.onset + scoring.SHORTEST)) for n in side]
        arrays.append(np.array(spans, float).reshape(-1, 2))
        arrays.append(midi_to_hz(np.array([n.pitch for n in side], float)))
    return precision_recall_f1_overlap(*arrays, offset_ratio=0.2 if offsets else None)[:2]


@given(PIECES, PIECES)
def test_matching_in_portions_finds_as_much(labels, notes):
    whole = match(labels, notes, by_pitch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "PORTION", 1)
        parts = match(labels, notes, by_pitch)
    assert len(parts) == len(whole)
    for side in zip(*parts, strict=True):
        assert len(set(side)) == len(side)


def test_long_recordings_need_little_memory():
    """20,000 hits of one drum: a single table of distances would have 3 GB."""
    hits = [drum(0.2 * i) for i in range(20_000)]
    assert len(match(hits, hits, by_pitch)) == 20_000


def test_drum_kits_are_one_instrument():
    labels = [drum(0.0, 38, program=0)]
    assert score_instruments(labels, [drum(0.0, 38, program=25)], granularity="full").f1 == 1.0
    other_key = [drum(0.0, 40)]
    assert score_instruments(labels, other_key, granularity="flat").f1 == 0.0
    assert score_instruments(labels, other_key, granularity="flat", drum_keys=False).f1 == 1.0


def test_before():
    assert before([note(0.0), note(1.0), note(1.5)], 1.0) == [note(0.0)]


def test_without_mir_eval(monkeypatch):
    monkeypatch.setitem(sys.modules, "mir_eval.transcription", None)
    with pytest.raises(MissingDependencyError, match=r"extra \[calibration\]: pip install"):
        match([], [], by_pitch)


# --- metrics -------------------------------------------------------------------------------------


def values(labels, notes):
    return {name: found.value for name, found in measure(labels, notes).items()}


def test_a_piece_of_which_all_is_known():
    """Piano and bass; the second bass note is on a guitar, and a flute plays along."""
    labels = Labels((note(0, 60, 0), note(1, 62, 0), note(2, 40, 33), note(3, 41, 33), drum(0, 38)))
    notes = [
        note(0, 60, 1),  # right class, other program
        note(1, 62, 0, length=0.2),  # too short
        note(2, 40, 33),
        note(3, 41, 24),
        note(3, 90, 73),
        drum(0, 40),  # right class, other key
    ]
    assert values(labels, notes) == pytest.approx(
        {
            "onset": 2 * 4 / 9,
            "offset": 2 * 3 / 9,
            "drums": 1.0,
            "flat": 2 * 3 / 11,
            "class": 2 * 2 / 11,
            "full": 2 * 1 / 11,
            "leaked": 2 / 6,
            "phi": 5 / 3,
            "right": 3 / 4,
        }
    )


def test_only_drums_are_known():
    labels = Labels((drum(0, 38),), pitched=False, programs=False, drum_keys=False)
    assert values(labels, [drum(0, 40), note(0), note(1)]) == {"drums": 1.0}


def test_only_pitched_notes_are_known():
    labels = Labels((note(0, program=40),), drums=False, drum_keys=False)
    found = values(labels, [note(0, program=41), drum(0)])
    assert found.pop("full") == 0.0
    assert found.pop("leaked") == 0.0
    assert set(found.values()) == {1.0}
    assert set(found) == {"onset", "offset", "flat", "class", "phi", "right"}


def test_programs_are_not_known():
    labels = Labels((note(0),), drums=False, programs=False, drum_keys=False)
    assert values(labels, [note(0, program=70)]) == {"onset": 1.0, "offset": 1.0, "flat": 1.0}


def test_nothing_was_found():
    labels = Labels((note(0), drum(0)))
    zeros = dict.fromkeys(("onset", "offset", "drums", "flat", "class", "full", "phi"), 0.0)
    assert values(labels, []) == zeros


def test_a_recording_of_silence():
    assert values(Labels(()), []) == {}
    assert values(Labels(()), [note(0)]) == {"leaked": 1.0}


def test_leaks_onto_drums_count_only_if_drums_are_known():
    piano = (note(0),)
    notes = [note(0), drum(0), drum(1)]
    assert values(Labels(piano), notes)["leaked"] == pytest.approx(2 / 3)
    assert values(Labels(piano, drums=False), notes)["leaked"] == 0.0


def test_equal_notes_of_two_instruments_are_not_confused():
    """Whichever the matching takes, both are on the right instrument."""
    both = [note(0, program=0), note(0, program=40)]
    assert values(Labels(tuple(both)), both[::-1])["right"] == 1.0


def test_labels_of_a_family_are_counted_as_found_and_as_found_on_it():
    labels = [note(0.0, 60, 1), note(1.0, 62, 2), note(2.0, 40, 33), drum(0.0)]
    notes = [note(0.0, 60, 5), note(1.0, 62, 48), note(2.0, 41, 33), drum(0.0)]
    found = found_by_family(Labels(tuple(labels)), notes)
    assert {family: counts.tolist() for family, counts in found.items()} == {
        0: [2, 2, 1],
        4: [1, 0, 0],
    }


@given(PIECES, PIECES)
def test_windows_add_up(labels, notes):
    for name, found in measure(Labels(tuple(labels)), notes).items():
        assert name in METRICS
        assert 0 <= found.value <= (len(notes) if name == "phi" else 1)
        if found.score is not None:
            assert found.value == pytest.approx(found.score.f1)
            assert found.total.tolist() == [
                2 * found.score.matched,
                found.score.labels + found.score.notes,
            ]


def test_absurd_times_need_no_memory():
    assert values(Labels((note(1e12),)), [note(1e12)])["onset"] == 1.0


# --- intervals -----------------------------------------------------------------------------------


def windows(*pairs):
    return np.array(pairs).reshape(-1, 2)


def test_intervals_hold_the_value_and_shrink_with_more_windows():
    chance = np.random.default_rng(1)
    widths = []
    for count in (10, 40, 160):
        units = np.stack([chance.integers(0, 11, count), np.full(count, 10)], axis=1)
        low, high = interval([units])
        assert low < units[:, 0].sum() / units[:, 1].sum() < high
        widths.append(high - low)
    assert widths[0] > 1.5 * widths[1] > 2.25 * widths[2]


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(("recordings", "spread"), [(1, 0.0), (3, 0.0), (12, 0.1)])
def test_intervals_hold_the_truth_as_often_as_they_say(recordings, spread, mean):
    """Never less often than 19 times out of 20, by more than chance and the few draws explain."""
    chance = np.random.default_rng(2)
    inside = 0
    for _ in range(200):
        truths = np.clip(chance.normal(0.7, spread, recordings), 0, 1)
        units = [np.stack([chance.binomial(20, p, 30), np.full(30, 20)], axis=1) for p in truths]
        low, high = interval(units, mean=mean, resamples=300)
        inside += low <= 0.7 <= high
    assert inside / 200 >= 0.9


def test_two_recordings_are_not_taken_for_the_world():
    """Recordings alone would say 0.5 to 0.7, the two values themselves."""
    chance = np.random.default_rng(3)
    units = [np.stack([chance.binomial(20, p, 30), np.full(30, 20)], axis=1) for p in (0.5, 0.7)]
    values = sorted(item[:, 0].sum() / item[:, 1].sum() for item in units)
    for mean in (False, True):
        low, high = interval(units, mean=mean)
        assert low < values[0]
        assert high > values[1]


def test_intervals_can_be_repeated():
    units = [windows((1, 2), (3, 4), (0, 5), (2, 2)), windows((1, 3), (2, 3))]
    assert interval(units) == interval(units, seed=0)
    assert interval(units) != interval(units, seed=1)


def test_pooled_and_mean_weigh_differently():
    units = [windows(*[(9, 10)] * 50), windows(*[(1, 10)] * 2)]
    low, high = interval(units)
    assert (low, high) == (0.1, 0.9)
    assert interval(units, mean=True) == (0.1, 0.9)
    many = [*units, *units, *units]
    assert interval(many)[0] > interval(many, mean=True)[0]


def test_equal_windows_leave_no_doubt():
    assert interval([windows(*[(1, 2)] * 5)]) == (0.5, 0.5)


def test_figures_of_whole_recordings():
    assert interval([windows((3, 2)), windows((1, 1)), windows((1, 1))])[0] == 1.0


@pytest.mark.parametrize("units", [[], [windows((3, 4))], [windows((3, 4), (0, 0))]])
def test_one_window_says_nothing_about_others(units):
    assert interval(units) is None


def test_draws_without_denominator_are_left_out():
    for mean in (False, True):
        units = windows(*[(0, 0)] * 8, (1, 2), (1, 2))
        assert interval([units], mean=mean) == (0.5, 0.5)
