"""The filters at work: on drums and melodies made up here, at the end and while running."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.leakage.leakage_filter import LeakageFilter, leakage_filter
from mt3_runtime.leakage.leakage_report import LeakageReport
from mt3_runtime.notes.note import Note
from tests.runtime.test_salience import RATE, Audio, hit, silence, tone

SEGMENT = 2.0  # seconds


def drum(onset: float, key: int) -> Note:
    return Note(onset, onset + 0.01, key, 100, 0, is_drum=True)


@functools.cache
def drum_loop(seconds: float = 12.0) -> Audio:
    """Every half second a hit, kick and hat in turn."""
    kick, hat = hit(0.5, low=35, high=90), hit(0.5, low=5000, high=8000)
    return np.concatenate([kick, hat] * round(seconds))


@functools.cache
def melody(seconds: float = 12.0) -> Audio:
    """Every half second another pitch of a scale."""
    pitches = [60, 62, 64, 65, 67, 69, 71, 72]
    return np.concatenate([tone(pitches[k % 8], 0.5, decay=3.0) for k in range(int(2 * seconds))])


#: What a model may make of the loop: the hats are there, the kicks came out as basses.
LEAKED = [
    note
    for k in range(12)
    for note in (Note(float(k), k + 0.1, 31 + k % 3, 100, 33), drum(k + 0.5, 42))
]
TRUE = [
    Note(k / 2, k / 2 + 0.4, [60, 62, 64, 65, 67, 69, 71, 72][k % 8], 100, 11) for k in range(24)
]


def run(leakage: LeakageFilter, audio: Audio, notes: list[Note], *, block: int = 8000):
    """Everything at the end."""
    segments = _segments(audio, notes)
    for _ in leakage.listen(audio[i : i + block] for i in range(0, len(audio), block)):
        pass
    for index, own in enumerate(segments):
        last = index + 1 == len(segments)
        leakage.add(own, None if last else (index + 1) * SEGMENT)
    return leakage.finish()


def stream(leakage: LeakageFilter, audio: Audio, notes: list[Note], *, ahead: int = 0):
    """Segment by segment, the audio some segments ahead."""
    segments, size = _segments(audio, notes), round(SEGMENT * RATE)
    blocks = iter([audio[i : i + size] for i in range(0, len(audio), size)])
    listening = leakage.listen(blocks)
    for _ in range(ahead):
        next(listening, None)
    found = []
    for index, own in enumerate(segments):
        last = index + 1 == len(segments)
        next(listening, None)
        if last:
            list(listening)
        found.append(leakage.live(own, None if last else (index + 1) * SEGMENT))
    return found


def _segments(audio: Audio, notes: list[Note]) -> list[list[Note]]:
    count = -(-len(audio) // round(SEGMENT * RATE))
    places = [min(int(note.offset / SEGMENT), count - 1) for note in notes]
    return [[n for n, p in zip(notes, places, strict=True) if p == k] for k in range(count)]


def flat(parts: list[list[Note]]) -> list[Note]:
    return [note for part in parts for note in part]


def auto(**options) -> LeakageFilter:
    return leakage_filter(True, rate=RATE, **options)


def test_leaked_kicks_become_kicks():
    notes, report = run(auto(), drum_loop(), LEAKED)
    assert all(note.is_drum for note in notes)
    assert Counter(note.pitch for note in notes) == {36: 12, 42: 12}
    assert [note.onset for note in notes] == [note.onset for note in LEAKED]
    assert (report.filter, report.kept, report.moved, report.removed) == ("auto", 12, 12, 0)
    (stretch,) = report.stretches
    assert (stretch.start, stretch.end) == (0.0, 11.0)
    assert stretch.pitches == 0
    assert stretch.tonal_share < 0.12


def test_a_drum_that_is_excluded_is_not_put_in():
    notes, report = run(auto(drum_keys=(38, 42)), drum_loop(), LEAKED)
    assert {note.pitch for note in notes} == {42}
    assert report.removed == 12


def test_doubled_hits_are_removed():
    doubled = [*LEAKED, *(drum(k + 0.03, 36) for k in range(12))]
    notes, report = run(auto(), drum_loop(), doubled)
    assert Counter(notes) == Counter(note for note in doubled if note.is_drum)
    assert report.removed == 12


def test_a_melody_stays():
    assert run(auto(), melody(), TRUE) == (TRUE, LeakageReport("auto", 24))


def test_a_melody_over_drums_stays():
    notes = sorted([*TRUE, *(note for note in LEAKED if note.is_drum)])
    mix = drum_loop() + melody()
    assert run(auto(), mix, notes).notes == notes


def test_drums_become_drums_where_the_band_is_silent():
    """Twelve seconds of drums, then twelve of melody."""
    audio = np.concatenate([drum_loop(), melody()])
    later = [replace(note, onset=note.onset + 12, offset=note.offset + 12) for note in TRUE]
    notes, report = run(auto(), audio, [*LEAKED, *later])
    melodic = [note for note in notes if not note.is_drum]
    assert [note for note in melodic if note.onset >= 12.0] == later
    assert all(note.onset > 6.0 for note in melodic)  # up to there nothing is heard of the melody
    assert report.moved >= 7
    (stretch,) = report.stretches
    assert stretch.end < 12.0


def test_silence_and_nothing():
    assert run(auto(), silence(3.0), []).notes == []
    assert run(auto(), np.zeros(0, np.float32), []).report == LeakageReport("auto", 0)


def test_no_filter_changes_nothing():
    leakage = leakage_filter(False, rate=RATE)
    assert run(leakage, drum_loop(), LEAKED) == (LEAKED, LeakageReport("none", 24))
    assert flat(stream(leakage_filter(False, rate=RATE), drum_loop(), LEAKED)) == LEAKED


def test_classic():
    notes, report = run(leakage_filter("classic", rate=RATE), drum_loop(), LEAKED)
    assert notes == [note for note in LEAKED if note.is_drum]
    assert report.filter == "classic"
    assert report.removed == 12


def test_classic_while_running_goes_by_ten_seconds():
    celesta = [Note(k / 2, k / 2 + 0.1, 60, 100, 8) for k in range(60)]
    drums = [drum(20 + k / 2, 42) for k in range(20)]
    found = stream(leakage_filter("classic", rate=RATE), silence(30.0), [*celesta, *drums])
    assert all(note.is_drum and note.pitch == 60 for part in found[:10] for note in part)
    assert all(note.pitch == 42 for part in found[12:] for note in part)


def test_blocks_and_read_ahead_do_not_matter():
    whole = run(auto(), drum_loop(), LEAKED)
    assert run(auto(), drum_loop(), LEAKED, block=777) == whole
    live = stream(auto(), drum_loop(), LEAKED)
    assert stream(auto(), drum_loop(), LEAKED, ahead=2) == live
    assert stream(auto(), drum_loop(), LEAKED, ahead=99) == live


def test_while_running_leaked_kicks_become_kicks():
    found = stream(auto(), drum_loop(), LEAKED)
    assert all(note.is_drum for part in found for note in part)
    assert Counter(note.pitch for part in found for note in part) == {36: 12, 42: 12}
    for part in found:
        assert [note.offset for note in part] == sorted(note.offset for note in part)


def test_while_running_a_melody_stays():
    assert flat(stream(auto(), melody(), TRUE)) == TRUE


def test_while_running_the_past_decides():
    """The drums are known as drums before the melody begins, and the melody at once as melody."""
    audio = np.concatenate([drum_loop(), melody()])
    later = [replace(note, onset=note.onset + 12, offset=note.offset + 12) for note in TRUE]
    found = flat(stream(auto(), audio, [*LEAKED, *later]))
    assert [note for note in found if not note.is_drum] == later


def test_notes_that_are_held_for_long_stay():
    audio = np.concatenate([drum_loop(40.0)])
    held = Note(0.5, 39.0, 45, 100, 48)
    assert held in run(auto(), audio, [held]).notes
    assert held in flat(stream(auto(), audio, [held]))


NOTES = st.lists(
    st.builds(
        lambda onset, length, pitch, program, is_drum: Note(
            onset, onset + length, pitch, 100, 0 if is_drum else program, is_drum
        ),
        st.floats(0, 11.9),
        st.floats(0.01, 2),
        st.integers(21, 108),
        st.sampled_from([0, 8, 33, 80]),
        st.booleans(),
    ),
    max_size=25,
    unique=True,
)


@settings(max_examples=40, deadline=None)
@given(NOTES, st.sampled_from([True, "classic", False]))
def test_every_note_is_accounted_for(notes, kind):
    kept, report = run(leakage_filter(kind, rate=RATE), drum_loop(), notes)
    handed = [note for part in _segments(drum_loop(), notes) for note in part]
    assert report.notes == len(notes) == report.kept + report.moved + report.removed
    became = {change.note: change.became for change in report.changes}
    assert len(became) == len(report.changes)
    assert not any(note.is_drum for note in became)
    expected = [became.get(note, note) for note in handed]
    assert kept == [note for note in expected if note is not None]  # no other order, nothing new
    for note, drum_note in became.items():
        if drum_note is not None:
            assert drum_note.is_drum
            assert (drum_note.onset, drum_note.program) == (note.onset, 0)
            assert drum_note.confidence == note.confidence
    onsets = [change.note.onset for change in report.changes]
    if kind is True:
        assert onsets == sorted(onsets)


@settings(max_examples=25, deadline=None)
@given(NOTES, st.sampled_from([True, "classic"]), st.integers(0, 7))
def test_while_running_nothing_is_made_up(notes, kind, ahead):
    found = stream(leakage_filter(kind, rate=RATE), drum_loop(), notes, ahead=ahead)
    for given_notes, kept in zip(_segments(drum_loop(), notes), found, strict=True):
        assert len(kept) <= len(given_notes)
        assert {n for n in given_notes if n.is_drum} <= set(kept) or kind == "classic"
        onsets = Counter(note.onset for note in given_notes)
        assert not Counter(note.onset for note in kept) - onsets


@pytest.mark.parametrize("kind", [True, "classic", False])
def test_filters_are_of_one_recording_only(kind):
    first = run(leakage_filter(kind, rate=RATE), drum_loop(), LEAKED)
    run(leakage_filter(kind, rate=RATE), melody(), TRUE)
    assert run(leakage_filter(kind, rate=RATE), drum_loop(), LEAKED) == first
