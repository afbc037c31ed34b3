"""From the probabilities of tokens to the probability that a note is right."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt3_runtime.errors import BundleError, OptionError
from mt3_runtime.notes.assemblers import Finisher
from mt3_runtime.notes.confidence import Calibration, Weights, logit
from mt3_runtime.notes.note import Note, Probabilities

PITCHED = Weights(bias=-1.0, onset=0.5, pitch=2.0, program=0.25, offset=-0.5)
DRUMS = Weights(bias=0.5, onset=0.0, pitch=1.0, program=0.0, offset=0.0)
CALIBRATION = Calibration(PITCHED, DRUMS)
NOTE = Note(0.0, 1.0, 60, 100, probabilities=Probabilities(0.9, 0.8, 0.7, 0.6))
CHANCES = st.none() | st.floats(0, 1)


def test_the_formula():
    z = -1.0 + 0.5 * math.log(9) + 2.0 * math.log(4) + 0.25 * math.log(7 / 3) - 0.5 * math.log(1.5)
    assert CALIBRATION.confidence(NOTE) == pytest.approx(1 / (1 + math.exp(-z)), abs=1e-12)


def test_tokens_that_a_note_does_not_have_do_not_count():
    drum = replace(NOTE, is_drum=True, probabilities=Probabilities(None, 0.8))
    z = 0.5 + math.log(4)
    assert CALIBRATION.confidence(drum) == pytest.approx(1 / (1 + math.exp(-z)), abs=1e-12)
    assert CALIBRATION.confidence(replace(NOTE, probabilities=Probabilities())) == 1.0


@given(CHANCES, st.floats(0, 1), CHANCES, CHANCES)
def test_it_is_a_probability_whatever_the_tokens(onset, pitch, program, offset):
    note = replace(NOTE, probabilities=Probabilities(onset, pitch, program, offset))
    for weights in (PITCHED, DRUMS, Weights(1e3, -1e3, 1e3, 1e3, -1e3)):
        assert 0.0 <= Calibration(weights, weights).confidence(note) <= 1.0


@given(st.floats(0, 1), st.floats(0, 1))
def test_surer_tokens_make_surer_notes(one, other):
    low, high = sorted((one, other))
    assert DRUMS.confidence(Probabilities(pitch=low)) <= DRUMS.confidence(Probabilities(pitch=high))


def test_certainty_is_not_infinite():
    assert logit(0.5) == 0.0
    assert logit(1.0) == logit(0.999) == pytest.approx(math.log(999))
    assert logit(0.0) == logit(0.001) == pytest.approx(-math.log(999))


def test_as_json_and_back():
    assert Calibration.from_dict(CALIBRATION.to_dict()) == CALIBRATION


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drums": None}, "drums: expected an object"),
        ({"strings": {}}, "unknown keys"),
        ({"pitched": PITCHED.__class__(0, 0, 0, 0, 0).__dict__ | {"bias": "x"}}, "bias is 'x'"),
        ({"pitched": PITCHED.__dict__ | {"onset": math.nan}}, "onset is nan"),
        ({"pitched": PITCHED.__dict__ | {"pitch": 1e9}}, "pitch is 1000000000.0"),
    ],
)
def test_what_is_no_calibration_is_refused(change, message):
    with pytest.raises(BundleError) as caught:
        Calibration.from_dict(CALIBRATION.to_dict() | change)
    assert message in str(caught.value)


class Said:
    """An assembler that says the same notes for every segment, and one at the end."""

    def __init__(self, *notes: Note) -> None:
        self._notes = list(notes)

    def add_channels(self, channels, start, next_start):
        return list(self._notes), (channels, start, next_start)

    def finish(self):
        return self._notes[:1]


def test_finishing_a_note():
    drum = replace(NOTE, is_drum=True)
    finisher = Finisher(Said(NOTE, drum, replace(NOTE, program=5)), CALIBRATION, {0: 4})
    notes, report = finisher.add_channels(["tokens"], 1.0, 2.0)
    assert report == (["tokens"], 1.0, 2.0)
    assert [(note.is_drum, note.program) for note in notes] == [(False, 4), (True, 0), (False, 5)]
    expected = [CALIBRATION.confidence(note) for note in (NOTE, drum, NOTE)]
    assert [note.confidence for note in notes] == expected
    assert finisher.finish() == notes[:1]


def test_finishing_changes_nothing_unless_asked():
    notes = [NOTE, replace(NOTE, confidence=0.0)]
    finisher = Finisher(Said(*notes), None, {})
    assert finisher.add_channels([], 0.0, None)[0] == notes
    assert finisher.finish() == notes[:1]


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan, "0.5", None])
def test_thresholds_outside_0_to_1_are_refused(threshold, tiny_model):
    with pytest.raises(OptionError, match="expected a number from 0 to 1"):
        tiny_model.transcribe_notes(np.zeros(100, np.float32), min_confidence=threshold)
