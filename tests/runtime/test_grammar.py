"""The grammar lets nothing pass that cannot be used, and everything that can."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.audio.segments import SegmentConfig
from mt3_runtime.decoding.search import Greedy, T5XBeam
from mt3_runtime.decoding.token_masks import constraint_for
from mt3_runtime.decoding.types import Sequence, Span
from mt3_runtime.notes.assemblers import assembler_for
from mt3_runtime.notes.base import ChannelTokens
from mt3_runtime.notes.instruments import Lineup, choose
from mt3_runtime.notes.magenta_assembler import NoteAssembler
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.note_rules import NoteRules
from mt3_runtime.notes.vocabulary import UNK, Event, EventKind, Vocabulary
from mt3_training.examples.tokens import LabelRules, Tokenizer
from tests.scripted import decode_table
from tests.tables import SPEC, random_tables, saying, wishing

MT3 = Vocabulary.mt3()
MAGENTA, PIANO = NoteRules.mt3(), NoteRules.ismir2021()
MODELS = [
    (MT3, MAGENTA),
    (Vocabulary.ismir2021(), PIANO),
    (Vocabulary.yourmt3(), NoteRules.yourmt3()),
]
SEGMENTS = SegmentConfig()
SECONDS = SEGMENTS.samples / SEGMENTS.sample_rate


def token(kind: str, value: int = 0) -> int:
    return MT3.encode(Event(EventKind(kind), value))


def run(tables, *, rules=MAGENTA, vocabulary=MT3, lineup=None, search=Greedy, **how):
    """Decodes tables as the segments of a recording that starts every second."""
    constrain = constraint_for(vocabulary, rules, lineup, grammar=True, seconds=SECONDS)
    spec = replace(SPEC, max_tokens=tables[0].shape[0])
    return decode_table(tables, partial(search, constrain=constrain), spec, **how)


def alone(sequence: Sequence, index: int, rules: NoteRules, vocabulary: Vocabulary):
    """The report of one segment after one that left all its declarations sounding.

    The earlier segment ends with another program and with note-offs, which must not matter.
    """
    assembler = assembler_for(vocabulary, rules)

    def add(tokens, start: float):
        return assembler.add_channels([ChannelTokens(tokens)], start, start + 1.0)[1]

    if index == 0:
        return add(sequence.tokens, 0.0)
    keys: dict[tuple[int, int], None] = {}
    program = rules.initial_program
    for event in vocabulary.decode(sequence.tokens):
        if event is None or event.kind is EventKind.TIE:
            break
        if event.kind is EventKind.PROGRAM:
            program = event.value
        elif event.kind is EventKind.PITCH:
            keys[program, event.value] = None
    if not rules.ties:
        keys = dict.fromkeys((rules.initial_program, pitch) for pitch in range(128))
    before = [Event(EventKind.TIE, 0)] * rules.ties + [Event(EventKind.VELOCITY, 1)]
    for program, pitch in keys:
        if not rules.flat_programs:
            before.append(Event(EventKind.PROGRAM, program))
        before.append(Event(EventKind.PITCH, pitch))
    before += [Event(EventKind.PROGRAM, 77), Event(EventKind.VELOCITY, 0)]
    add([vocabulary.encode(event) for event in before], 0.0)
    return add(sequence.tokens, 1.0)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([Greedy, T5XBeam]),
    st.sampled_from(MODELS),
    st.sampled_from([None, Lineup(frozenset({0, 33})), Lineup(frozenset({40}), frozenset({36}))]),
)
def test_nothing_that_is_said_is_invalid(seed, search, model, lineup):
    vocabulary, rules = model
    if lineup is not None and rules.flat_programs:
        lineup = lineup | Lineup(frozenset({0}), frozenset())
    tables = random_tables(seed, vocabulary, kinds=np.random.default_rng(seed).choice([0.0, 3.0]))
    sequences = run(tables, rules=rules, vocabulary=vocabulary, lineup=lineup, search=search)
    for index, sequence in enumerate(sequences):
        report = alone(sequence, index, rules, vocabulary)
        assert report.invalid_events == report.dropped_events == 0
        assert sequence.truncated or not report.missing_tie


@pytest.mark.parametrize("seed", range(4))
def test_without_grammar_much_is_invalid(seed):
    """Or the property above would say little."""
    tables = random_tables(seed, MT3, count=12)
    sequences = decode_table(tables, Greedy, SPEC)
    assert sum(alone(s, i, MAGENTA, MT3).invalid_events for i, s in enumerate(sequences)) > 10


NOTES = st.lists(
    st.builds(
        lambda onset, length, pitch, program, is_drum: Note(
            onset / 100,
            (onset + length) / 100,
            pitch,
            127,
            0 if is_drum else program,
            is_drum=is_drum,
        ),
        st.integers(0, 600),
        st.integers(1, 400),
        st.sampled_from([36, 60, 61]),
        st.sampled_from([0, 33, 40]),
        st.booleans(),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(NOTES, st.sampled_from(MODELS))
def test_what_a_model_was_trained_to_say_is_not_changed(notes, model):
    """The tokens of any music, segment by segment, as the training writes them."""
    vocabulary, rules = model
    tokenizer = Tokenizer(vocabulary, rules, rules=LabelRules(programs="full"))
    labels = tokenizer.labels(notes)
    wanted = [tokenizer.encode(labels, 100 * i, 100 * i + 100).tokens for i in range(10)]
    tables = saying(vocabulary, wanted)
    found = run(tables, rules=rules, vocabulary=vocabulary, slots=4)
    assert [list(sequence.tokens) for sequence in found] == wanted


def said(*wishes: int, at: int = 0, model=MODELS[0], lineup=None) -> list[int]:
    """What comes of wishes, each of which gives way to the end if it is forbidden."""
    vocabulary, rules = model
    tables = [wishing(vocabulary, *({wish: 0.0} for wish in wishes))] * (at + 2)
    found = run(tables, rules=rules, vocabulary=vocabulary, lineup=lineup)
    return found[at].tokens.tolist()


TIE, ON, OFF, EOS = token("tie"), token("velocity", 1), token("velocity", 0), 1
BASS, DRUM, SHIFT = token("program", 33), token("drum", 36), partial(token, "shift")
LOW, HIGH = token("pitch", 40), token("pitch", 60)


@pytest.mark.parametrize(
    ("wishes", "forbidden"),
    [
        ([TIE, TIE], 1),
        ([TIE, BASS, ON, LOW, TIE], 4),
        ([TIE, SHIFT(100)], None),
        ([TIE, SHIFT(101)], 1),
        ([TIE, SHIFT(60), SHIFT(41)], 2),
        ([TIE, SHIFT(60), SHIFT(40)], None),
        ([TIE, ON, SHIFT(50), DRUM, SHIFT(49)], 4),
        ([TIE, ON, SHIFT(50), DRUM, SHIFT(50), DRUM], None),
        ([TIE, BASS, OFF, LOW], 3),
        ([TIE, BASS, ON, LOW, OFF, LOW], None),
        ([TIE, BASS, ON, LOW, OFF, LOW, LOW], 6),
        ([TIE, BASS, ON, LOW, OFF, HIGH], 5),
        ([BASS, LOW, TIE, SHIFT(3), OFF, LOW], None),
        ([TIE, OFF, DRUM], 2),
        ([TIE, BASS, LOW], 2),
        ([TIE, ON, LOW], 2),
        ([TIE, DRUM], 1),
        ([TIE, UNK], 1),
        ([TIE, 0], 1),
        ([TIE, MT3.size - 1], 1),
        ([BASS, LOW, LOW, TIE], 2),
        ([BASS, SHIFT(3)], 1),
        ([BASS, ON], 1),
        ([EOS], 0),
    ],
)
def test_the_rules_one_by_one(wishes, forbidden):
    """In the second segment of a recording; segments last a second."""
    found = said(*wishes, at=1)
    if forbidden is None:
        assert found == [*wishes, EOS]
    else:
        assert found[:forbidden] == wishes[:forbidden]
        assert found[forbidden] != wishes[forbidden]


@pytest.mark.parametrize(
    ("text", "forbidden"),
    [
        ("tie shift:100 shift:100", None),
        ("tie shift:60 shift:50", 2),  # shifts do not add up: this one leads back
        ("tie shift:0", 1),
        ("tie shift:205", None),
        ("tie drum:36 shift:3 drum:38", None),  # whatever the velocity
        ("tie program:33 velocity:1 pitch:40 pitch:40 velocity:0 pitch:40 pitch:40", None),
        ("tie program:33 velocity:1 pitch:40 velocity:0 pitch:40 pitch:40", 6),
        ("program:33 pitch:40 tie velocity:0 pitch:40 pitch:40", 5),
        ("tie velocity:1 pitch:40", 2),  # no program is known, also in the first segment
    ],
)
@pytest.mark.parametrize("at", [0, 1])
def test_the_rules_of_yourmt3(text, forbidden, at):
    vocabulary, rules = MODELS[2]
    words = [word.split(":") for word in text.replace("tie", "tie:0").split()]
    wishes = [vocabulary.encode(Event(EventKind(kind), int(value))) for kind, value in words]
    found = said(*wishes, at=at, model=(vocabulary, rules))
    if at == 0 and text.startswith("program"):
        forbidden = 1  # nothing can be held over into the first segment
    if forbidden is None:
        assert found == [*wishes, EOS]
    else:
        assert found[:forbidden] == wishes[:forbidden]
        assert found[forbidden] != wishes[forbidden]


def test_the_first_segment_knows_its_state():
    """Nothing sounds yet; program and velocity are the initial ones."""
    assert said(TIE, LOW, DRUM) == [TIE, LOW, DRUM, EOS]
    assert said(BASS, LOW)[1] != LOW
    assert said(TIE, LOW, lineup=choose("bass, drums"))[1] != LOW


def allowed_behind_the_tie(span: Span) -> np.ndarray:
    """Mask [V] once a segment has closed its tie section."""
    constrain = constraint_for(MT3, MAGENTA, None, grammar=True, seconds=SECONDS)
    assert constrain is not None
    constraint = constrain(1)
    allowed = np.ones((1, MT3.size), np.bool_)
    constraint.start(allowed, 0, span)
    constraint.advance(allowed, np.array([TIE]))
    return allowed[0]


def test_the_last_segment_ends_with_itself():
    """No next segment bounds it, so its own length does: 2.048 s are 205 steps."""
    allowed = allowed_behind_the_tie(Span(3, 6.14, None))
    assert [allowed[SHIFT(steps)] for steps in (0, 204, 205, 206, 1000)] == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("index", [0, 1, 14, 15, 16, 29, 30, 1000])
def test_shifts_end_where_the_next_segment_starts(index):
    """Exactly where the note rules draw the line, rounding errors included."""
    start, next_start = SEGMENTS.start(index), SEGMENTS.start(index + 1)
    allowed = allowed_behind_the_tie(Span(index, start, next_start))
    for steps in range(198, 210):
        assembler = NoteAssembler(MT3, MAGENTA)
        dropped = assembler.add([TIE, SHIFT(steps), DRUM], None, start, next_start)[
            1
        ].dropped_events
        assert allowed[SHIFT(steps)] == (dropped == 0)


@pytest.mark.parametrize("slots", [1, 5])
def test_rules_do_not_depend_on_the_batch(slots):
    tables = random_tables(9, MT3, count=16, kinds=3.0)
    together = run(tables, slots=16)
    found = run(tables, slots=slots)
    assert [list(s.tokens) for s in found] == [list(s.tokens) for s in together]
