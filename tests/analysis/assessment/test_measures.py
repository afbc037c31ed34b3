"""Every measure says what its definition says, on takes small enough to reckon by hand."""

from itertools import pairwise

import numpy as np
import pytest

from mt3_analysis.assessment.alignment import align
from mt3_analysis.assessment.measures.all_measures import GROUPS, MEASURES, measure_take
from mt3_analysis.assessment.measures.measured_take import Take
from mt3_analysis.assessment.performance import Performance
from mt3_training.performance_sets.degradation import KINDS, degraded
from mt3_training.performance_sets.made_performances import make_piece, play
from tests.analysis.assessment.pieces import piece, played


def steady(notes=40, gap=0.5, length=0.4, *, pitch=60, velocity=None, pedals=None, spread=0.0):
    """Single notes at equal distances, or with one more, `spread` seconds later, to each."""
    on = gap * np.arange(notes)
    heights = np.full(notes, pitch) + np.arange(notes) % 2
    if spread:
        on, heights = np.concatenate((on, on + spread)), np.concatenate((heights, heights - 12))
    return Performance.from_arrays(on, on + length, pitch=heights, velocity=velocity, pedals=pedals)


def value(name, take, score=None):
    performance = Take(take, None if score is None else align(take, score))
    return MEASURES[name].of(performance)


def test_every_measure_has_unit_definition_and_group():
    assert sum(map(len, GROUPS.values())) == len(MEASURES) >= 60
    for name, measure in MEASURES.items():
        assert measure.unit
        assert measure.definition.endswith((".", "them.")), name
        assert len(measure.definition) > 15


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("notes_per_second", 40 / 19.5),
        ("gap_median", 0.5),
        ("gap_short", 0.5),
        ("gap_long", 0.5),
        ("gap_spread", 0.0),
        ("chord_share", 0.0),
        ("length_median", 0.4),
        ("length_short", 0.4),
        ("length_long", 0.4),
        ("length_spread", 0.0),
        ("key_overlap", np.log2(0.8)),
        ("overlap_spread", 0.0),
        ("legato_share", 0.0),
        ("staccato_share", 0.0),
        ("melody_overlap", -100.0),
        ("melody_overlap_spread", 0.0),
        ("rare_pitches", None),
        ("neighbour_keys", 0.0),
        ("tiny_notes", 0.0),
        ("register_mean", 60.5),
        ("register_spread", 0.5),
        ("melody_register", 60.5),
        ("chord_size", 1.0),
        ("sounding_keys", 16.0 / 19.9),
    ],
)
def test_steady_notes(name, expected):
    found = value(name, steady())
    assert found.value == (None if expected is None else pytest.approx(expected, abs=1e-9))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chord_asynchrony", 10.0),
        ("chord_spread", 20.0),
        ("chord_share", 1.0),
        ("melody_lead", 20.0),
        ("chord_size", 2.0),
    ],
)
def test_pairs_of_notes_20_ms_apart(name, expected):
    rng = np.random.default_rng(1)
    take = steady(spread=0.02)
    late = Performance.from_arrays(
        take.onset_s + np.repeat(rng.uniform(0, 0.1, 40), 2), take.offset_s + 0.1, pitch=take.pitch
    )
    assert value(name, late).value == pytest.approx(expected, abs=1e-6)


def test_velocities_by_voice():
    loud = np.repeat([80, 60], 40)  # upper notes, then lower ones
    take = steady(spread=0.01, velocity=loud)
    expected = {
        "velocity_mean": 70.0,
        "velocity_spread": 10.0,
        "velocity_soft": 60.0,
        "velocity_loud": 80.0,
        "melody_velocity": 20.0,
        "bass_velocity": -20.0,
        "chord_velocity_spread": 10.0,
        "velocity_step": 0.0,
        "velocity_contour": 0.0,
        "velocity_jumps": 0.0,
        "hardest_tenth": 0.0,
    }
    for name, number in expected.items():
        assert value(name, take).value == pytest.approx(number, abs=1e-9), name
    assert value("velocity_slope", take).value == pytest.approx(20.0, rel=0.02)
    assert "5 observations" in value("colour_variety", take).reason  # of 16 notes each


def test_pedal_by_the_second():
    moves = [(t + d, v) for t in range(20) for d, v in ((0.1, 127), (0.9, 0))]
    take = steady(pedals={64: moves})
    expected = {
        "pedal_share": 0.8,
        "pedal_depth": 0.8,
        "half_pedal_share": 0.0,
        "pedal_rate": 60 * 20 / 19.9,
        "press_median": 0.8,
        "press_long": 0.8,
        "up_median": 0.2,
        "press_lag": 100.0,
        "lift_lag": -100.0,
        "chords_a_press": 1.0,
        "pedal_blur": 2.0,
        "soft_pedal_share": 0.0,
    }
    for name, number in expected.items():
        assert value(name, take).value == pytest.approx(number, rel=0.02, abs=1e-6), name
    assert value("resonance", take).value == pytest.approx(0.5, abs=0.06)


def test_tempo_against_a_score():
    score = piece(2)
    take = played(score, jitter_s=0.0)
    assert value("tempo_median", take, score).value == pytest.approx(120, rel=0.02)
    assert value("score_asynchrony", take, score).value == pytest.approx(0.0, abs=1e-6)
    assert value("onset_deviation", take, score).value < 1.0
    assert value("hesitation_time", take, score).value == 0.0
    assert value("final_slowing", take, score).value == pytest.approx(1.0, abs=0.05)
    assert value("matched_notes", take, score).value == 1.0
    assert abs(value("held_as_written", take, score).value) < 0.3
    stopped = take.onset_s + 1.0 * (take.onset_s > 20.0)
    late = Performance.from_arrays(stopped, stopped + 0.3, pitch=take.pitch)
    assert value("hesitations", late, score).value == pytest.approx(100 / 159, rel=0.1)
    assert value("hesitation_time", late, score).value == pytest.approx(1 / 41, rel=0.1)


def test_what_is_missing_is_said():
    bare = Performance.from_arrays(0.5 * np.arange(40), 0.5 * np.arange(40) + 0.4, pitch=[60] * 40)
    found = measure_take(Take(bare))
    assert "velocities" in found["velocity_mean"].reason
    assert "pedal" in found["pedal_share"].reason
    assert "score" in found["wrong_notes"].reason
    assert "grid" in found["chord_asynchrony"].reason
    assert "observations" in found["chord_asynchrony"].reason or bare.on_grid
    few = Performance.from_arrays([0.0, 1.0], [0.5, 1.5], pitch=[60, 62])
    assert "2 observations" in measure_take(Take(few))["length_median"].reason


def test_nothing_breaks_on_next_to_nothing():
    for count in (1, 2, 3):
        on = np.arange(count) * 1.0
        take = Performance.from_arrays(
            on, on, pitch=[60] * count, velocity=[60 + i for i in range(count)]
        )
        assert all(m.value is None for m in measure_take(Take(take)).values())


OWN = {
    "jitter": "onset_deviation",
    "asynchrony": "score_asynchrony",
    "drift": "tempo_waves",
    "hesitation": "hesitation_time",
    "wrong": "wrong_notes",
    "missing": "missing_notes",
    "extra": "extra_notes",
    "compression": "velocity_spread",
    "velocity_jumps": "velocity_jumps",
    "voicing": "chord_velocity_spread",
    "legato": "key_overlap",
    "pedal_held": "pedal_blur",
    "pedal_chatter": "pedal_rate",
}
FALLING = {"compression", "voicing", "legato"}


@pytest.mark.parametrize("kind", OWN)
def test_a_measure_answers_to_its_own_degradation_in_order(kind):
    right = total = 0
    for seed in range(2):
        score = make_piece(seed)
        take = play(score, seed)
        values = []
        for level in (0.0, 0.4, 1.0):
            found = value(OWN[kind], degraded(take, kind, level, seed=seed), score)
            values.append(-found.value if kind in FALLING else found.value)
        right += sum(b > a for a, b in pairwise(values))
        total += 2
    assert right == total


def test_a_late_pedal_is_told_by_its_distance_to_the_notes():
    moves = [(t + d, v) for t in range(40) for d, v in ((0.1, 127), (1.0, 0))]
    take = steady(gap=1.0, pedals={64: moves})
    for level in (0.0, 0.5, 1.0):
        late = degraded(take, "pedal_late", level, seed=1)
        assert value("lift_lag", late).value == pytest.approx(300 * level, abs=1e-6)
    assert set(OWN) == set(KINDS) - {"pedal_late"}
