"""The report of a filter, and mt3-infer's rules."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt3_runtime.errors import OptionError
from mt3_runtime.leakage.leakage_report import (
    Change,
    LeakageReport,
    Stretch,
    check_auto_filter,
    classic,
)
from mt3_runtime.notes.note import Note

DRUM, BASS, CELESTA, PIANO = (0, True), (33, False), (8, False), (0, False)


def band(**counts: int) -> list[Note]:
    """Notes one after another: band(drums=3, basses=1) and so on."""
    kinds = {"drums": DRUM, "basses": BASS, "chromatic": CELESTA, "pianos": PIANO}
    players = [kinds[name] for name, count in counts.items() for _ in range(count)]
    return [
        Note(float(i), i + 0.5, 40 + i % 30, 100, program, is_drum)
        for i, (program, is_drum) in enumerate(players)
    ]


def test_what_is_no_filter_is_refused():
    for value in (True, False, "classic"):
        check_auto_filter(value)
    for value in ("auto", "on", 1, 0, None, []):
        with pytest.raises(OptionError, match="expected True, False or"):
            check_auto_filter(value)


@pytest.mark.parametrize(
    ("notes", "action"),
    [
        ([], "nothing"),
        (band(drums=10, basses=5, pianos=10), "nothing"),  # exactly 20 % bass
        (band(drums=10, basses=6, pianos=9), "drums only"),
        (band(drums=1, basses=9), "drums only"),
        (band(basses=9, pianos=1), "nothing"),  # no drums
        (band(drums=5, chromatic=10, pianos=5), "nothing"),  # exactly 50 %
        (band(drums=5, chromatic=11, pianos=4), "drums only"),
        (band(drums=6, pianos=4), "nothing"),  # exactly 60 %
        (band(drums=7, pianos=4), "drums only"),
        (band(chromatic=7, pianos=3), "nothing"),  # exactly 70 %
        (band(chromatic=8, pianos=3), "remap"),
        (band(drums=1, chromatic=8, pianos=2), "drums only"),  # the rule before comes first
        (band(chromatic=8, basses=3), "remap"),  # basses, too
    ],
)
def test_classic_rules(notes, action):
    kept, report = classic(notes)
    if action == "nothing":
        assert kept == notes
        assert report == LeakageReport("classic", len(notes))
    elif action == "drums only":
        assert kept == [note for note in notes if note.is_drum]
        assert report.removed == len(notes) - len(kept)
    else:
        assert kept == [replace(note, program=0, is_drum=True) for note in notes]
        assert report.moved == len(notes)


def test_families_of_the_classic_rules_end_where_they_should():
    for program, acts in ((31, False), (32, True), (39, True), (40, False)):
        notes = [*band(drums=4), *(replace(n, program=program) for n in band(pianos=4))]
        assert bool(classic(notes).report.changes) is acts
    for program, acts in ((7, False), (8, True), (15, True), (16, False)):
        notes = [replace(note, program=program) for note in band(pianos=4)]
        assert bool(classic(notes).report.changes) is acts


NOTES = st.lists(
    st.builds(
        lambda onset, length, pitch, program, is_drum: Note(
            onset, onset + length, pitch, 100, 0 if is_drum else program, is_drum
        ),
        st.floats(0, 20),
        st.floats(0, 2),
        st.integers(21, 108),
        st.sampled_from([0, 8, 11, 33, 38, 80]),
        st.booleans(),
    ),
    max_size=40,
    unique=True,
)


@given(NOTES)
def test_the_report_accounts_for_every_note(notes):
    kept, report = classic(notes)
    assert report.notes == len(notes) == report.kept + report.moved + report.removed
    became = {change.note: change.became for change in report.changes}
    assert len(became) == len(report.changes)
    expected = [became.get(note, note) for note in notes]
    assert kept == [note for note in expected if note is not None]
    assert not any(change.note.is_drum for change in report.changes)


def test_a_report_in_words():
    note = Note(1.0, 1.2, 33, 100, 32)
    drum = Note(1.0, 1.01, 36, 100, 0, is_drum=True)
    report = LeakageReport(
        "auto",
        3,
        (Change(note, drum, "it is a kick"), Change(note, None, "it is a shadow")),
        (Stretch(0.5, 2.25, 1, 0.75, 0.034),),
    )
    assert report.summary() == ("leakage filter (auto): 1 of 3 notes removed, 1 moved to the drums")
    assert report.lines() == [
        report.summary(),
        "no melody from 0.50 to 2.25 s: 1 tones, 75% drums, 3% of the sound is tones",
        "1.00 s: program 32, pitch 33 -> drum 36: it is a kick",
        "1.00 s: program 32, pitch 33 -> removed: it is a shadow",
    ]
    document = report.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert [change["became"] for change in document["changes"]] == [
        {"pitch": 36, "program": 0, "is_drum": True},
        None,
    ]
    assert document["stretches"][0]["tonal_share"] == 0.034


def test_an_idle_filter_says_so_when_asked():
    report = LeakageReport("auto", 7)
    assert report.summary() == ""
    assert report.lines() == ["leakage filter (auto): 7 notes, none changed"]
