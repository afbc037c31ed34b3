"""Labels as tokens: what `NoteAssembler` makes of them are the labels again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.audio.segments import SegmentConfig
from mt3_runtime.errors import OptionError
from mt3_runtime.notes.magenta_assembler import NoteAssembler
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.note_rules import NoteRules
from mt3_runtime.notes.vocabulary import EventKind, EventRange, Vocabulary
from mt3_synthesis.music import MusicConfig, compose
from mt3_training.examples.tokens import NO_STEP, LabelRules, Tokenizer
from tests.synthesis.sounds import drum, note

SEGMENTS = SegmentConfig()


def borders(count: int) -> list[int]:
    """First steps of segments, as the runtime cuts them, and of the one behind."""
    return [round(SEGMENTS.start(index) * 100) for index in range(count + 1)]


def assembled(tokenizer: Tokenizer, notes: list[Note], count: int) -> list[Note]:
    """Encodes notes in ``count`` segments and reads them back; nothing may be invalid."""
    labels = tokenizer.labels(notes)
    assembler = NoteAssembler(tokenizer.vocabulary, tokenizer.note_rules)
    steps, found = borders(count), []
    for index in range(count):
        tokens, _ = tokenizer.encode(labels, steps[index], steps[index + 1])
        closed, report = assembler.add(
            tokens, None, SEGMENTS.start(index), SEGMENTS.start(index + 1)
        )
        assert report.invalid_events == report.dropped_events == 0
        assert not report.missing_tie
        assert tokens[-1] == tokenizer.vocabulary.eos
        found += closed
    return sorted(found + assembler.finish(), key=key)


def key(one: Note) -> tuple[int, bool, int, int]:
    return round(one.onset * 100), one.is_drum, one.program, one.pitch


def words(tokenizer: Tokenizer, tokens: list[int]) -> str:
    events = tokenizer.vocabulary.decode(tokens)
    return " ".join("end" if e is None else f"{e.kind.value}{e.value}" for e in events)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    programs=st.sampled_from(["class", "full"]),
    offset_steps=st.sampled_from([1, 5]),
)
def test_tokens_of_several_segments_assemble_to_the_notes(seed, programs, offset_steps):
    rules = LabelRules(programs=programs, offset_steps=offset_steps)
    tokenizer = Tokenizer(rules=rules)
    notes = compose(MusicConfig.band(), seed, seconds=9.0).notes
    last = borders(5)[-1]
    labels = [label for label in tokenizer.labels(notes) if label.onset < last]
    found = assembled(tokenizer, notes, 5)
    assert [key(one) for one in found] == [
        (n.onset, n.is_drum, n.program, n.pitch) for n in sorted(labels)
    ]
    for one, label in zip(found, sorted(labels), strict=True):
        if not one.is_drum and label.offset < last:
            assert round(one.offset * 100) == label.offset
        assert abs(one.onset - label.onset / 100) < 1e-9


def test_labels_lie_on_the_grid_within_half_a_step():
    notes = compose(MusicConfig.solo(0, chaos=0.0), 5, seconds=9.0).notes
    labels = {(n.pitch, n.onset): n for n in Tokenizer().labels(notes)}
    for one in notes:
        label = labels[one.pitch, round(one.onset * 100)]
        assert abs(label.offset / 100 - max(one.offset, one.onset + 0.01)) <= 0.0101


def test_the_order_of_events_and_the_states():
    tokenizer = Tokenizer(rules=LabelRules("full"))
    notes = [
        note(0.1, 0.5, 64, program=3),
        note(0.1, 0.5, 60, program=3),
        note(0.1, 0.7, 62, program=1),
        note(0.5, 0.9, 60, program=3),
        drum(0.1, 36),
        drum(0.5, 38),
    ]
    tokens, steps = tokenizer.encode(tokenizer.labels(notes), 0, 204)
    assert words(tokenizer, tokens) == (
        "tie0 shift10 program1 velocity1 pitch62 program3 pitch60 pitch64 drum36 "
        "shift50 velocity0 pitch60 pitch64 velocity1 pitch60 drum38 "
        "shift70 program1 velocity0 pitch62 shift90 program3 pitch60 end"
    )
    assert steps == [NO_STEP] + [10] * 8 + [50] * 7 + [70] * 4 + [90] * 3 + [NO_STEP]


def test_held_notes_open_the_next_segment():
    tokenizer = Tokenizer(rules=LabelRules("full"))
    notes = [
        note(0.1, 3.0, 64, program=3),
        note(0.2, 2.04, 60, program=3),
        note(0.2, 2.03, 61, program=3),
        note(2.04, 2.3, 50),
        note(1.0, 9.0, 40, program=33),
    ]
    tokens, steps = tokenizer.encode(tokenizer.labels(notes), 204, 409)
    assert words(tokenizer, tokens) == (
        "program3 pitch60 pitch64 program33 pitch40 tie0 "
        "program3 velocity0 pitch60 program0 velocity1 pitch50 "
        "shift26 velocity0 pitch50 shift96 program3 pitch64 end"
    )
    assert steps == [NO_STEP] * 6 + [0] * 6 + [26] * 3 + [96] * 3 + [NO_STEP]


def test_silence_is_a_tie_and_an_end():
    assert words(Tokenizer(), Tokenizer().encode([], 0, 204).tokens) == "tie0 end"


def test_classes_share_keys():
    tokenizer = Tokenizer()
    notes = [
        note(0.0, 1.0, 60, program=41),
        note(0.5, 0.8, 60, program=43),  # ends the first, lasts until both are over
        note(0.51, 2.0, 60, program=42),  # no onset of its own to the ear
        note(3.0, 4.0, 60, program=47),
    ]
    labels = tokenizer.labels(notes)
    assert [(n.onset, n.offset, n.program) for n in labels] == [
        (0, 50, 40),
        (50, 200, 40),
        (300, 400, 40),
    ]


def test_drums_of_one_key_stay_apart():
    labels = Tokenizer().labels([drum(0.0, 36), drum(0.04, 36), drum(0.041, 36), drum(0.041, 38)])
    assert [(n.onset, n.pitch) for n in labels] == [(0, 36), (4, 36), (4, 38)]


def test_offsets_on_a_coarse_grid_never_reach_behind_the_next_onset():
    tokenizer = Tokenizer(rules=LabelRules(offset_steps=5))
    labels = tokenizer.labels([note(0.0, 0.021, 60), note(0.1, 0.129, 61), note(0.13, 0.2, 61)])
    assert [(n.onset, n.offset) for n in labels] == [(0, 1), (10, 13), (13, 20)]


def test_a_vocabulary_with_velocities_and_without_ties_and_programs():
    tokenizer = Tokenizer(Vocabulary.ismir2021(), NoteRules.ismir2021())
    notes = [note(0.1, 3.0, 64, velocity=93), note(0.5, 0.9, 60, program=40, velocity=1)]
    labels = tokenizer.labels(notes)
    first = tokenizer.encode(labels, 0, 204).tokens
    assert words(tokenizer, first) == (
        "shift10 velocity93 pitch64 shift50 velocity1 pitch60 shift90 velocity0 pitch60 end"
    )
    second = tokenizer.encode(labels, 204, 409).tokens
    assert words(tokenizer, second) == "shift96 velocity0 pitch64 end"
    found = assembled(tokenizer, notes, 2)
    assert [(n.onset, n.velocity) for n in found] == [(0.1, 93), (0.5, 1)]


@pytest.mark.parametrize("wrong", [{"programs": "exact"}, {"offset_steps": 0}])
def test_unknown_rules_are_refused(wrong):
    with pytest.raises(OptionError, match="expected one of"):
        LabelRules(**wrong)


def test_a_vocabulary_whose_values_do_not_begin_at_zero_is_refused():
    ranges = tuple(
        EventRange(r.kind, r.first_id + 3, 3, r.max_value) if r.kind is EventKind.PITCH else r
        for r in Vocabulary.mt3().ranges
    )
    with pytest.raises(OptionError, match="no token for pitch 0"):
        Tokenizer(Vocabulary(size=1536, ranges=ranges))
