"""The id tables of the published vocabularies, and vocabularies from data."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt3_runtime.errors import BundleError, OptionError
from mt3_runtime.notes.vocabulary import EOS, PAD, UNK, Event, EventKind, EventRange, Vocabulary

# Kind -> first and last model id (codec id + 3).
MT3_IDS = {
    EventKind.SHIFT: (3, 1003),
    EventKind.PITCH: (1004, 1131),
    EventKind.VELOCITY: (1132, 1133),
    EventKind.TIE: (1134, 1134),
    EventKind.PROGRAM: (1135, 1262),
    EventKind.DRUM: (1263, 1390),
}
ISMIR2021_IDS = {
    EventKind.SHIFT: (3, 1003),
    EventKind.PITCH: (1004, 1131),
    EventKind.VELOCITY: (1132, 1259),
    EventKind.TIE: (1260, 1260),
    EventKind.PROGRAM: (1261, 1388),
    EventKind.DRUM: (1389, 1516),
}
YOURMT3_IDS = {
    EventKind.SHIFT: (3, 208),
    EventKind.PITCH: (209, 336),
    EventKind.VELOCITY: (337, 338),
    EventKind.TIE: (339, 339),
    EventKind.PROGRAM: (340, 467),
    EventKind.DRUM: (468, 595),
}


VOCABULARIES = [Vocabulary.mt3(), Vocabulary.ismir2021(), Vocabulary.yourmt3()]


@pytest.mark.parametrize(
    ("vocabulary", "table", "size"),
    [
        (Vocabulary.mt3(), MT3_IDS, 1536),
        (Vocabulary.ismir2021(), ISMIR2021_IDS, 1664),
        (Vocabulary.yourmt3(), YOURMT3_IDS, 596),
    ],
)
def test_published_tables(vocabulary, table, size):
    assert vocabulary.size == size
    for kind, (first, last) in table.items():
        assert vocabulary.id_range(kind) == range(first, last + 1)
        assert vocabulary.decode([first, last]) == [(kind, 0), (kind, last - first)]


def test_published_ids_of_yourmt3():
    kinds = (EventKind.SHIFT, EventKind.PITCH, EventKind.VELOCITY)
    kinds += (EventKind.TIE, EventKind.PROGRAM, EventKind.DRUM)
    values = (1, 0, 0, 0, 0, 0)
    events = [Event(kind, value) for kind, value in zip(kinds, values, strict=True)]
    vocabulary = Vocabulary.yourmt3()
    assert [vocabulary.encode(event) for event in events] == [4, 209, 337, 339, 340, 468]
    assert vocabulary.decode([595, 596]) == [(EventKind.DRUM, 127), None]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_every_event_decodes_to_itself(vocabulary):
    ids = [i for kind in EventKind for i in vocabulary.id_range(kind)]
    events = vocabulary.decode(np.array(ids, np.int32))
    assert [vocabulary.encode(event) for event in events if event] == ids
    valid = set(ids)
    assert all((vocabulary.decode([i])[0] is None) == (i not in valid) for i in range(1700))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@given(ids=st.lists(st.integers(-(2**40), 2**40), max_size=30))
def test_decoding_never_raises(vocabulary, ids):
    events = vocabulary.decode(ids)
    assert len(events) == len(ids)
    assert (
        vocabulary.decode([PAD, EOS, UNK, -1, vocabulary.size, vocabulary.size - 1 + 2**33])
        == [None] * 6
    )


@pytest.mark.parametrize(
    "event",
    [Event(EventKind.PITCH, 128), Event(EventKind.SHIFT, -1), Event(EventKind.SHIFT, 1001)],
)
def test_encoding_an_unknown_event_is_an_error(event):
    with pytest.raises(OptionError, match=f"no token for {event.kind}"):
        Vocabulary.mt3().encode(event)


def test_a_kind_may_be_missing():
    vocabulary = Vocabulary(size=300, ranges=(EventRange(EventKind.PITCH, 3, 21, 108),))
    assert list(vocabulary.id_range(EventKind.TIE)) == []
    assert vocabulary.decode([3]) == [(EventKind.PITCH, 21)]
    with pytest.raises(OptionError, match="has no tie tokens"):
        vocabulary.encode(Event(EventKind.TIE, 0))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_tables_travel_as_json(vocabulary):
    data = json.loads(json.dumps(vocabulary.to_dict()))
    again = Vocabulary.from_dict(data)
    assert again == vocabulary
    assert again.decode(range(vocabulary.size)) == vocabulary.decode(range(vocabulary.size))


def _set(key, value, index=None):
    def change(data):
        (data if index is None else data["ranges"][index])[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("size"), r"missing keys \['size'\]"),
        (_set("colour", 1), r"unknown keys \['colour'\]"),
        (_set("size", "1536"), "size is '1536', expected int"),
        (_set("size", True), "expected int"),
        (_set("size", 10**12), "expected 1.."),
        (_set("size", 100), "leave 0..99"),
        (_set("steps_per_second", 0), "steps_per_second"),
        (_set("eos", 0), "three different ids"),
        (_set("eos", 9999), "three different ids"),
        (_set("ranges", "shift"), "expected a list"),
        (_set("ranges", [3]), "expected an object, got int"),
        (_set("kind", "bend", 0), "kind is 'bend', expected one of shift, pitch"),
        (_set("kind", "tie", 2), "tie values 0..1"),
        (_set("kind", "shift", 1), "one kind has two ranges"),
        (_set("first_id", 2, 0), "overlap"),
        (_set("first_id", 4, 0), "overlap"),
        (_set("first_id", -1, 5), "leave 0..1535"),
        (_set("first_id", 1500, 5), "leave 0..1535"),
        (_set("max_value", 128, 1), "pitch values 0..128"),
        (_set("min_value", -1, 0), "shift values -1"),
        (_set("min_value", 5, 3), "tie values 5..0"),
        (_set("max_value", 1.5, 1), "expected int"),
        (lambda d: d["ranges"][0].pop("kind"), r"missing keys \['kind'\]"),
    ],
)
def test_damaged_tables_are_refused(change, message):
    data = copy.deepcopy(Vocabulary.mt3().to_dict())
    change(data)
    with pytest.raises(BundleError, match=message):
        Vocabulary.from_dict(data)
