"""What must not be said is not said, and what may be said is not changed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mt3_runtime.decoding.search import Greedy, T5XBeam
from mt3_runtime.decoding.token_masks import (
    UnwrittenTokens,
    Wanted,
    constraint_for,
    programs_for,
    stand_ins,
    unwritten_for,
)
from mt3_runtime.decoding.types import Sequence
from mt3_runtime.errors import OptionError
from mt3_runtime.notes.instruments import Lineup, choose
from mt3_runtime.notes.magenta_assembler import NoteAssembler
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.note_rules import NoteRules
from mt3_runtime.notes.vocabulary import EventKind, Vocabulary
from tests.scripted import decode_table
from tests.tables import SPEC, random_tables, wishing

MT3 = Vocabulary.mt3()
PIANO = Vocabulary.ismir2021()
EVERYTHING = Lineup()
RULES = NoteRules(ties=False)  # so that pitches in random tokens are notes and not declarations

LINEUPS = st.builds(
    Lineup,
    st.frozensets(st.sampled_from([0, 1, 33, 40, 90, 127])),
    st.one_of(st.just(frozenset()), st.just(frozenset(range(128))), st.just(frozenset({36, 42}))),
).filter(bool)


def run(
    tables, lineup, *, search=Greedy, vocabulary=MT3, rules=None, grammar=False, **how
) -> list[Sequence]:
    rules = rules or RULES
    constrain = constraint_for(vocabulary, rules, lineup, grammar=grammar, seconds=2.0)
    silence = unwritten_for(vocabulary, rules, lineup)
    made = partial(search, constrain=constrain, silence=silence)
    return decode_table(tables, made, SPEC, **how)


def notes_of(sequences, *, vocabulary=MT3, rules=None) -> list[Note]:
    assembler = NoteAssembler(vocabulary, rules or RULES)
    notes = []
    for index, sequence in enumerate(sequences):
        notes += assembler.add(sequence.tokens, None, 2.0 * index, 2.0 * index + 2.0)[0]
    return notes + assembler.finish()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), LINEUPS, st.sampled_from([Greedy, T5XBeam]))
def test_no_note_is_outside_the_lineup(seed, lineup, search):
    sequences = run(random_tables(seed, MT3), lineup, search=search)
    for note in notes_of(sequences):
        assert note.pitch in lineup.drum_keys if note.is_drum else note.program in lineup.programs


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([Greedy, T5XBeam]))
def test_everything_allowed_changes_nothing(seed, search):
    tables = random_tables(seed, MT3)
    free, masked = run(tables, None, search=search), run(tables, EVERYTHING, search=search)
    for one, other in zip(free, masked, strict=True):
        assert np.array_equal(one.tokens, other.tokens)
        assert np.array_equal(one.log_probs, other.log_probs)


def test_the_random_segments_say_something():
    """Or the two properties above would be empty."""
    notes = [note for seed in range(10) for note in notes_of(run(random_tables(seed, MT3), None))]
    assert sum(note.is_drum for note in notes) > 20
    assert len({note.program for note in notes if not note.is_drum}) > 10
    assert 0 in {note.program for note in notes if not note.is_drum}


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("workers", [1, 2])
def test_masks_do_not_depend_on_the_batch(slots, workers):
    tables = random_tables(5, MT3, count=12)
    lineup = Lineup(frozenset({33, 40}), frozenset({36}))
    expected = [list(s.tokens) for s in run(tables, lineup, slots=12)]
    found = run(tables, lineup, slots=slots, workers=workers)
    assert [list(s.tokens) for s in found] == expected


def test_pitches_wait_for_a_program_if_the_initial_one_is_forbidden():
    """The initial program is 0, a piano: without piano, no pitch may be under it."""
    pitch, other = MT3.id_range(EventKind.PITCH)[60], MT3.id_range(EventKind.PITCH)[62]
    tie, bass = MT3.id_range(EventKind.TIE)[0], MT3.id_range(EventKind.PROGRAM)[33]
    wishes = wishing(MT3, {tie: 0}, {pitch: 0, bass: -1}, {pitch: 0, bass: -1}, {other: 0})
    tokens = {
        name: run([wishes], choose(name))[0].tokens.tolist() for name in ("bass", "piano", "drums")
    }
    assert tokens["bass"] == [tie, bass, pitch, other, 1]
    assert tokens["piano"] == [tie, pitch, pitch, other, 1]
    assert tokens["drums"] == [tie, 1]
    notes = notes_of(run([wishes], choose("bass")))
    assert [note.program for note in notes] == [33, 33]


def test_probabilities_stay_those_of_the_model():
    """Over all tokens, also the forbidden ones."""
    violin, bass = (MT3.id_range(EventKind.PROGRAM)[p] for p in (40, 33))
    (found,) = run([wishing(MT3, {violin: -0.2, bass: -1.7})], choose("bass"))
    assert found.tokens[0] == bass
    assert found.log_probs[0] == np.float32(-1.7)


def test_models_without_programs_have_their_initial_one():
    rules = NoteRules.ismir2021()
    known = {"vocabulary": PIANO, "rules": rules}
    tables = random_tables(3, PIANO)
    assert any(
        not note.is_drum for note in notes_of(run(tables, choose("piano"), **known), **known)
    )
    drums = notes_of(run(tables, choose("drums"), **known), **known)
    assert drums
    assert all(note.is_drum for note in drums)
    with pytest.raises(OptionError, match="no notes for any of the instruments"):
        constraint_for(PIANO, rules, choose("violin"), seconds=2.0)


def test_programs_are_those_of_general_midi():
    """YourMT3 says 100 where General MIDI has 53, a voice."""
    vocabulary, rules = Vocabulary.yourmt3(), NoteRules.yourmt3()
    mask = Wanted.of(vocabulary, rules, choose("voice oohs")).sayable(vocabulary)
    said = [p for p, token in enumerate(vocabulary.id_range(EventKind.PROGRAM)) if mask[token]]
    assert said == [52, 53, 100]


GROUPED = replace(RULES, program_groups=((32, 33, 34), (40, 41), (0, 1)))


@pytest.mark.parametrize(
    ("asked", "said", "stand_in"),
    [
        (34, {32, 34}, {32: 34}),
        ([33, 34], {32, 33, 34}, {32: 33}),
        ("bass", set(range(32, 40)), {}),
        ([41, 50], {40, 41, 50}, {40: 41}),
        (1, {0, 1}, {0: 1}),
    ],
)
def test_programs_that_a_model_does_not_tell_apart(asked, said, stand_in):
    """It says the first of each group, which stands for what was asked for."""
    lineup = choose(asked)
    mask = Wanted.of(MT3, GROUPED, lineup).sayable(MT3)
    assert set(np.flatnonzero(mask[list(MT3.id_range(EventKind.PROGRAM))])) == said
    assert stand_ins(GROUPED, lineup) == stand_in
    assert mask[list(MT3.id_range(EventKind.PITCH))].all()


def test_stand_ins_are_of_general_midi():
    """Voice Oohs (53) may be said as YourMT3's choir (52) or as its singing voice (100)."""
    rules = NoteRules.yourmt3()
    assert programs_for(rules, choose(53)) == {52, 53, 100}
    assert stand_ins(rules, choose(53)) == {52: 53}


DRUMS, PITCHED = choose("drums"), choose(None, "drums")


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([DRUMS, PITCHED]),
    st.sampled_from([Greedy, T5XBeam]),
    st.sampled_from([RULES, NoteRules.mt3()]),
)
@example(39597451, PITCHED, T5XBeam, RULES)
def test_what_is_passed_over_in_silence_changes_nothing_else(seed, lineup, search, rules):
    """A kind of notes that is not wanted at all is left out of what the model says unhindered."""
    tables = random_tables(seed, MT3, kinds=3.0)
    how = {"search": search, "rules": rules, "grammar": True}
    free, masked = (run(tables, line_up, **how) for line_up in (None, lineup))
    wanted = [n for n in notes_of(free, rules=rules) if n.is_drum == (lineup is DRUMS)]
    # Notes that nothing ends last until the last event, which may be one that was left out.
    end = max((note.offset for note in wanted), default=0.0)
    for found, note in zip(notes_of(masked, rules=rules), wanted, strict=True):
        assert replace(found, offset=note.offset) == note
        assert found.offset == note.offset or found.offset < note.offset == end
    kinds = {event.kind for s in masked for event in MT3.decode(s.tokens) if event}
    if lineup is DRUMS:
        assert not kinds & {EventKind.PITCH, EventKind.PROGRAM}
    else:
        assert EventKind.DRUM not in kinds
    assert [s.truncated for s in masked] == [s.truncated for s in free]
    assert all(len(s.tokens) == len(s.log_probs) for s in masked)


def test_shifts_that_lead_to_silence_are_not_written():
    """Or they would add up with the next ones."""
    shift, pitch, drum, on = 10, 1064, 1299, 1133
    silent = np.zeros(MT3.size, np.bool_)
    silent[pitch] = True
    silence = UnwrittenTokens(silent, MT3.id_range(EventKind.SHIFT))
    for said, written in (
        ([shift, pitch, shift + 1, drum, 1], [shift + 1, drum, 1]),
        ([shift, drum, pitch, shift + 1, drum, 1], [shift, drum, shift + 1, drum, 1]),
        ([shift, on, pitch, shift + 1, drum, 1], [shift, on, shift + 1, drum, 1]),
        ([shift, shift, pitch, shift, shift, drum, 1], [shift, shift, drum, 1]),
        ([shift, shift, drum, 1], [shift, shift, drum, 1]),
        ([shift, pitch, pitch, 1], [shift, 1]),
        ([pitch, 1], [1]),
        ([], []),
    ):
        tokens = np.array(said, np.int64)
        assert tokens[silence.written(tokens)].tolist() == written


def test_nothing_is_silent_where_everything_is_wanted():
    for lineup in (None, EVERYTHING, choose("bass, drums"), Lineup(drum_keys=frozenset({36}))):
        assert unwritten_for(MT3, RULES, lineup) is None


def test_no_lineup_is_no_constraint():
    assert constraint_for(MT3, RULES, None, seconds=2.0) is None
