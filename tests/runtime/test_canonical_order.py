"""Models whose labels have one order say what labels could say, in that order and nothing else."""

from __future__ import annotations

import json
import shutil
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.decoding.search import Greedy, T5XBeam
from mt3_runtime.decoding.token_masks import constraint_for
from mt3_runtime.loading import load_model
from mt3_runtime.notes.instruments import Lineup
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.note_rules import NoteRules
from mt3_runtime.notes.vocabulary import EOS, Event, EventKind, Vocabulary
from mt3_training.examples.tokens import LabelRules, Tokenizer
from mt3_training.shipping.small_model import DEFAULT
from tests.scripted import decode_table
from tests.tables import SPEC, random_tables, saying, wishing

VOCABULARY = DEFAULT.vocabulary
SECONDS = 2.048


def run(tables, *, rules=DEFAULT.notes, vocabulary=VOCABULARY, lineup=None, search=Greedy, **how):
    """Decodes tables as the segments of a recording that starts every second."""
    constrain = constraint_for(vocabulary, rules, lineup, orderly=True, seconds=SECONDS)
    spec = SPEC if tables[0].shape[0] == SPEC.max_tokens else _limited(tables[0].shape[0])
    return decode_table(tables, partial(search, constrain=constrain), spec, **how)


def _limited(tokens: int):
    return type(SPEC)(SPEC.start_id, SPEC.eos_id, tokens, SPEC.beam_alpha)


NOTES = st.lists(
    st.builds(
        lambda onset, length, pitch, program, is_drum, velocity: Note(
            onset / 100,
            (onset + length) / 100,
            pitch,
            velocity,
            0 if is_drum else program,
            is_drum=is_drum,
        ),
        st.integers(0, 600),
        st.integers(1, 400),
        st.sampled_from([0, 36, 60, 61, 127]),
        st.sampled_from([0, 1, 33, 40, 127]),
        st.booleans(),
        st.sampled_from([1, 127]),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=120)
@given(
    NOTES,
    st.sampled_from(["class", "full"]),
    st.sampled_from([1, 5]),
    st.sampled_from(
        [
            (VOCABULARY, DEFAULT.notes),
            (Vocabulary.ismir2021(), NoteRules.ismir2021()),
        ]
    ),
)
def test_labels_are_never_changed(notes, programs, offset_steps, model):
    """The tokens of any music, segment by segment, as the training writes them."""
    vocabulary, rules = model
    tokenizer = Tokenizer(vocabulary, rules, rules=LabelRules(programs, offset_steps))
    labels = tokenizer.labels(notes)
    wanted = [tokenizer.encode(labels, 100 * i, 100 * i + 100).tokens for i in range(10)]
    tables = saying(vocabulary, wanted)
    found = run(tables, rules=rules, vocabulary=vocabulary, slots=4)
    assert [list(sequence.tokens) for sequence in found] == wanted


def keys_of(tokens) -> list[tuple[int, int, int, int, int]]:
    """Every note-off and onset as (time, onset, drum, program, pitch); checks the state tokens."""
    events = VOCABULARY.decode(tokens)
    tie = next((i for i, e in enumerate(events) if e and e.kind is EventKind.TIE), len(events))
    now, program, velocity, keys = 0, None, None, []
    previous = None
    for index, event in enumerate(events):
        if event is None or event.kind is EventKind.TIE:
            previous = None
            continue
        if event.kind is EventKind.SHIFT:
            assert event.value > now
            assert previous not in (EventKind.SHIFT, EventKind.PROGRAM, EventKind.VELOCITY)
            now = event.value
        elif event.kind is EventKind.PROGRAM:
            assert event.value != program
            assert previous not in (EventKind.PROGRAM, EventKind.VELOCITY)
            program = event.value
        elif event.kind is EventKind.VELOCITY:
            assert event.value != velocity
            assert previous is not EventKind.VELOCITY
            velocity = event.value
        elif index < tie:
            keys.append((-1, 0, 0, program, event.value))
        elif event.kind is EventKind.DRUM:
            keys.append((now, velocity > 0, 1, 0, event.value))
        else:
            keys.append((now, velocity > 0, 0, program, event.value))
        previous = event.kind
    return keys


@settings(deadline=None, max_examples=120)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([Greedy, T5XBeam]),
    st.sampled_from([None, Lineup(frozenset({0, 33})), Lineup(frozenset({40}), frozenset({36}))]),
)
def test_whatever_is_wished_for_comes_in_order(seed, search, lineup):
    tables = random_tables(seed, VOCABULARY, kinds=3.0)
    for sequence in run(tables, search=search, lineup=lineup):
        keys = keys_of(sequence.tokens)
        assert all(a < b for a, b in pairwise(keys))


def test_much_of_that_is_wished_for():
    """Or the property above would say little."""
    found = [s.tokens for seed in range(8) for s in run(random_tables(seed, VOCABULARY, kinds=3.0))]
    assert sum(len(keys_of(tokens)) for tokens in found) > 200
    assert {event.kind for tokens in found for event in VOCABULARY.decode(tokens) if event} == {
        *EventKind
    }


def test_a_model_that_repeats_itself_gets_to_the_end():
    """One that would say the same chord for ever, and never the end, says it once a step."""
    token = lambda kind, value: VOCABULARY.encode(Event(kind, value))  # noqa: E731
    wishes = {
        token(EventKind.TIE, 0): -1.0,
        token(EventKind.PROGRAM, 0): -2.0,
        token(EventKind.VELOCITY, 1): -3.0,
        token(EventKind.PITCH, 60): -4.0,
        token(EventKind.PITCH, 64): -4.1,
        **{token(EventKind.SHIFT, step): -4.2 for step in range(1, 1001)},
    }
    table = wishing(VOCABULARY, *[wishes] * SPEC.max_tokens)
    (plain,) = decode_table([table], Greedy, SPEC)
    assert plain.truncated
    (orderly,) = run([table])
    keys = keys_of(orderly.tokens)
    assert [key[4] for key in keys[:4]] == [60, 64, 60, 64]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("slots", [1, 5])
def test_order_does_not_depend_on_the_batch(slots):
    tables = random_tables(9, VOCABULARY, count=16, kinds=3.0)
    together = run(tables, slots=16)
    assert [list(s.tokens) for s in run(tables, slots=slots)] == [list(s.tokens) for s in together]


@pytest.mark.parametrize("orderly", [False, True])
def test_the_bundle_decides(tiny_bundle, tmp_path, orderly):
    """No option is needed, and models that do not ask for it say what they like."""
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    document = json.loads((bundle / "bundle.json").read_text())
    document["decoding"]["orderly"] = orderly
    (bundle / "bundle.json").write_text(json.dumps(document))
    with load_model(bundle, device="cpu") as model:
        audio = np.random.default_rng(0).normal(0, 0.1, 4 * 32768).astype(np.float32)
        said = model.forward(model.preprocess(audio, 16000))
    lawful = []
    for sequence in said:
        try:
            keys = keys_of(sequence.tokens)
        except AssertionError:
            lawful.append(False)
        else:
            lawful.append(all(a < b for a, b in pairwise(keys)))
    assert all(lawful) == orderly
    assert sum(len(sequence.tokens) for sequence in said) > 10


def test_the_default_model_asks_for_it():
    assert DEFAULT.decoding.orderly
    assert DEFAULT.decoding.eos_id == EOS
