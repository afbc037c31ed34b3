"""YourMT3's rules: the published example, each rule alone, and what must hold for any stream."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.errors import BundleError, OptionError
from mt3_runtime.notes.assemblers import assembler_for
from mt3_runtime.notes.base import ChannelTokens
from mt3_runtime.notes.magenta_assembler import NoteAssembler
from mt3_runtime.notes.note_rules import YOURMT3_CHANNELS, NoteRules
from mt3_runtime.notes.vocabulary import EOS, PAD, UNK, Event, EventKind, Vocabulary
from mt3_runtime.notes.yourmt3_assembler import ChannelAssembler

VOCABULARY = Vocabulary.yourmt3()
SINGLE = NoteRules.yourmt3()
MULTI = NoteRules.yourmt3(channels=YOURMT3_CHANNELS)


def start_of(index):
    return 32767 * index / 16000


def ids(*words):
    """Token ids of words such as "tie", "shift 10", "program 33", "on", "off", "EOS"."""
    special = {"EOS": EOS, "PAD": PAD, "UNK": UNK}
    short = {"on": "velocity 1", "off": "velocity 0", "tie": "tie 0"}
    found = []
    for word in words:
        if word in special:
            found.append(special[word])
        else:
            kind, value = short.get(word, word).split()
            found.append(VOCABULARY.encode(Event(EventKind(kind), int(value))))
    return found


def run(segments, *, rules=SINGLE, quirks=False, probabilities=None, assembler=None):
    """All notes and reports of a recording; a segment is its tokens, or a list of channels."""
    assembler = assembler or assembler_for(VOCABULARY, rules, upstream_quirks=quirks)
    notes, reports = [], []
    for index, segment in enumerate(segments):
        channels = segment if segment and isinstance(segment[0], list) else [segment]
        spoken = [
            ChannelTokens(tokens, None if probabilities is None else probabilities[index])
            for tokens in channels
        ]
        following = start_of(index + 1) if index + 1 < len(segments) else None
        settled, report = assembler.add_channels(spoken, start_of(index), following)
        notes += settled
        reports.append(report)
    return sorted(notes + assembler.finish()), reports


def rows(notes):
    return [(n.onset, n.offset, n.pitch, n.program, n.is_drum) for n in notes]


def silent(**spoken):
    """A segment of the multi-channel model: channels by number (``c4=...``), the others silent."""
    return [spoken.get(f"c{i}", ids("tie", "EOS")) for i in range(13)]


GOLDEN = [
    ids("tie", "shift 10", "program 33", "on", "pitch 40", "shift 50", "drum 36", "EOS"),
    ids(
        *("program 33", "pitch 40", "tie", "shift 20", "off", "pitch 40"),
        *("shift 30", "on", "pitch 41", "EOS"),
    ),
    ids("tie", "EOS"),
    ids("shift 5", "program 0", "on", "pitch 60", "EOS"),
    ids("tie", "shift 7", "off", "pitch 60", "program 0", "on", "pitch 61", "EOS"),
]
"""Published, with the result below: five segments, run through the original code."""


def test_published_example():
    notes, reports = run(GOLDEN, quirks=True)
    assert rows(notes) == [
        (0.10, 2.25, 40, 33, False),
        (0.50, 0.51, 36, 0, True),
        (2.35, 4.095875, 41, 33, False),  # ended at the exact start of the third segment
        (8.26, 8.27, 61, 0, False),
    ]
    assert {note.velocity for note in notes} == {100}
    assert [report.missing_tie for report in reports] == [False, False, False, True, False]
    assert [report.discarded_tokens for report in reports] == [0, 0, 0, 4, 0]
    assert [report.invalid_events for report in reports] == [0, 0, 0, 0, 1]  # pitch 60: no program
    assert [report.token_count for report in reports] == [7, 9, 1, 4, 7]
    assert [report.notes for report in reports] == [2, 1, 0, 0, 1]


def test_what_the_original_loses_is_kept():
    notes, reports = run(GOLDEN)
    # The note of the fourth segment is there; the next one, which opens with a bare tie, ends it.
    assert rows(notes)[3:] == [
        (6.19, start_of(4), 60, 0, False),
        (8.26, 8.27, 61, 0, False),
    ]
    assert reports[3].missing_tie
    assert not any(report.discarded_tokens for report in reports)


def test_a_segment_without_tie_token_does_not_end_held_notes():
    notes, _ = run(
        [
            ids("tie", "program 0", "on", "pitch 60", "pitch 64", "EOS"),
            ids("program 0", "pitch 60", "shift 100", "off", "pitch 60", "EOS"),
            ids("program 0", "pitch 64", "tie", "shift 50", "off", "pitch 64", "EOS"),
        ]
    )
    assert rows(notes) == [(0.0, 3.05, 60, 0, False), (0.0, 4.60, 64, 0, False)]


def test_a_segment_without_tie_token_may_begin_with_notes():
    notes, reports = run([ids("program 33", "on", "pitch 40", "EOS")])
    assert rows(notes) == [(0.0, 0.01, 40, 33, False)]
    assert reports[0].missing_tie
    assert reports[0].invalid_events == 0
    assert rows(run([ids("drum 36", "EOS")])[0]) == [(0.0, 0.01, 36, 0, True)]


LONG = [
    ids("tie", "shift 1", "program 0", "on", "pitch 60", "EOS"),
    *[ids("program 0", "pitch 60", "tie", "EOS")] * 5,
]


def test_a_note_of_more_than_ten_seconds():
    ended = [*LONG, ids("program 0", "pitch 60", "tie", "shift 2", "off", "pitch 60", "EOS")]
    assert rows(run(ended)[0]) == [(0.01, 12.31, 60, 0, False)]
    assert rows(run(ended, quirks=True)[0]) == [(0.01, 0.02, 60, 0, False)]


def test_a_note_at_the_end_of_the_recording():
    assert rows(run(LONG)[0]) == [(0.01, start_of(5), 60, 0, False)]
    assert rows(run(LONG, quirks=True)[0]) == [(0.01, 0.02, 60, 0, False)]
    later = [*LONG, ids("program 0", "pitch 60", "tie", "shift 9", "drum 36", "EOS")]
    assert rows(run(later)[0])[0] == (0.01, 12.38, 60, 0, False)


def test_shifts_are_offsets_from_the_segment():
    tokens = ids("tie", "shift 20", "shift 30", "drum 35", "shift 10", "drum 36", "shift 0", "EOS")
    notes, reports = run([tokens])
    assert [(note.onset, note.pitch) for note in notes] == [(0.1, 36), (0.3, 35)]
    assert reports[0].invalid_events == 1


def test_start_times_are_rounded_to_even_steps():
    assert start_of(1) * 100 == pytest.approx(204.79375)
    notes, _ = run([ids("tie", "EOS"), ids("tie", "drum 36", "shift 1", "drum 36", "EOS")])
    assert [note.onset for note in notes] == [2.05, 2.06]


def test_note_offs_come_first_within_an_instant():
    tokens = ids(
        *("tie", "program 0", "shift 5", "on", "pitch 60"),
        *("shift 9", "on", "pitch 60", "off", "pitch 60", "shift 12", "off", "pitch 60", "EOS"),
    )
    assert rows(run([tokens])[0]) == [(0.05, 0.09, 60, 0, False), (0.09, 0.12, 60, 0, False)]


def test_a_pitch_that_begins_twice_in_an_instant_is_one_note():
    tokens = ids(
        *("tie", "program 0", "on", "pitch 60", "pitch 60", "drum 36", "drum 36"),
        *("shift 7", "off", "pitch 60", "EOS"),
    )
    notes, reports = run([tokens])
    assert rows(notes) == [(0.0, 0.01, 36, 0, True), (0.0, 0.07, 60, 0, False)]
    assert reports[0].notes == 2


@pytest.mark.parametrize(
    ("tokens", "invalid"),
    [
        (("tie", "on", "pitch 60", "EOS"), 1),  # no program
        (("tie", "program 0", "pitch 60", "EOS"), 1),  # no velocity
        (("tie", "program 0", "off", "pitch 60", "EOS"), 1),  # not sounding
        (("pitch 60", "tie", "EOS"), 1),  # tied without program
        (("on", "drum 36", "PAD", "UNK", "tie", "EOS"), 4),  # nothing of a tie section
        (("tie", "tie", "PAD", "UNK", "shift 0", "EOS"), 4),
    ],
)
def test_invalid_events_are_counted(tokens, invalid):
    notes, reports = run([ids(*tokens)])
    assert not notes
    assert reports[0].invalid_events == invalid
    assert reports[0].token_count == len(tokens) - 1


def test_the_tie_section_reads_over_an_early_end():
    tokens = ids("EOS", "program 5", "pitch 50", "tie", "shift 3", "on", "pitch 60", "EOS")
    notes, reports = run([tokens])
    assert rows(notes) == [(0.03, 0.04, 60, 5, False)]
    assert reports[0].token_count == 7
    assert run([[*tokens, PAD, PAD]])[0] == notes


def test_the_last_shift_leads_behind_the_start_of_the_next_segment():
    """Step 205 is 2.05 s, the next segment starts at 2.0479 s: its note-off comes too early."""
    segments = [
        ids("tie", "program 0", "shift 205", "on", "pitch 60", "EOS"),
        ids("tie", "shift 2", "program 0", "on", "pitch 60", "EOS"),
        ids("program 0", "pitch 60", "tie", "shift 1", "off", "pitch 60", "EOS"),
    ]
    expected = [(2.05, 2.07, 60, 0, False), (2.07, 4.11, 60, 0, False)]
    assert rows(run(segments)[0]) == rows(run(segments, quirks=True)[0]) == expected


def test_singing_voices_get_a_program_of_general_midi():
    tokens = ids("tie", "on", "program 100", "pitch 60", "program 101", "pitch 60", "EOS")
    assert [note.program for note in run([tokens])[0]] == [52, 53]


def test_channels_are_joined_by_themselves():
    segments = [
        silent(
            c0=ids("tie", "shift 10", "program 0", "on", "pitch 60", "EOS"),
            c4=ids("tie", "shift 10", "program 33", "on", "pitch 40", "EOS"),
            c12=ids("tie", "shift 10", "on", "drum 36", "EOS"),
        ),
        silent(
            c0=ids("program 0", "pitch 60", "tie", "shift 10", "off", "pitch 60", "EOS"),
            c4=ids("shift 9", "EOS"),
        ),
    ]
    notes, reports = run(segments, rules=MULTI, quirks=True)
    assert rows(notes) == [
        (0.1, 0.11, 36, 0, True),
        (0.1, start_of(1), 40, 33, False),
        (0.1, 2.15, 60, 0, False),
    ]
    assert [report.missing_tie for report in reports] == [False, True]
    assert [report.token_count for report in reports] == [5 + 5 + 4 + 10, 6 + 1 + 11]
    # Without tie token, nothing says that the bass ends.
    assert rows(run(segments, rules=MULTI)[0])[1:] == [
        (0.1, 2.15, 40, 33, False),
        (0.1, 2.15, 60, 0, False),
    ]


def test_a_note_is_cut_where_another_channel_begins_it_again():
    first = ids("tie", "shift 10", "program 0", "on", "pitch 60", "shift 90", "off", "pitch 60")
    second = ids("tie", "shift 50", "program 0", "on", "pitch 60", "shift 70", "off", "pitch 60")
    notes, _ = run([silent(c0=first, c3=second)], rules=MULTI)
    assert rows(notes) == [(0.1, 0.5, 60, 0, False), (0.5, 0.7, 60, 0, False)]


def test_of_notes_that_begin_together_the_longest_stays():
    first = ids("tie", "program 0", "on", "pitch 60", "EOS")
    second = ids("tie", "program 0", "on", "pitch 60", "shift 70", "off", "pitch 60", "EOS")
    held = ids("program 0", "pitch 60", "tie", "shift 20", "off", "pitch 60", "EOS")
    segments = [silent(c0=first, c3=second), silent(c0=held)]
    for quirks in (False, True):
        notes, reports = run(segments, rules=MULTI, quirks=quirks)
        assert rows(notes) == [(0.0, 2.25, 60, 0, False)]
    assert reports[0].notes == 2  # counted before they are joined


def test_notes_come_as_soon_as_nothing_can_change_them():
    assembler = assembler_for(VOCABULARY, SINGLE)
    add = [
        assembler.add_channels([ChannelTokens(tokens)], start_of(i), start_of(i + 1))[0]
        for i, tokens in enumerate(GOLDEN)
    ]
    assert [len(notes) for notes in add] == [1, 1, 1, 0, 1]  # the last note is still open
    assert len(assembler.finish()) == 1
    assert assembler.finish() == []


def test_probabilities_of_a_notes_tokens():
    segments = [
        ids("program 7", "tie", "on", "pitch 60", "shift 5", "drum 36", "pitch 61", "EOS"),
        ids("program 7", "pitch 60", "tie", "shift 4", "shift 5", "off", "pitch 60", "EOS"),
    ]
    chances = [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [0.9, 0.9, 0.9, 0.9, 0.8, 0.9, 0.5, 0.9]]
    notes, _ = run(segments, probabilities=chances)
    found = {note.pitch: note for note in notes}
    assert found[60].probabilities == (None, 0.4, 0.1, 0.8 * 0.5)  # at the start: no shift
    assert found[36].probabilities == (0.5, 0.6, None, None)
    assert found[61].probabilities == (0.5, 0.7, 0.1, None)  # ended by not being held
    assert {pitch: note.confidence for pitch, note in found.items()} == {60: 0.4, 36: 0.6, 61: 0.7}
    assert {note.confidence for note in run(segments)[0]} == {1.0}


def test_a_note_that_is_cut_was_not_ended_by_its_note_off():
    first = ids("tie", "program 0", "on", "pitch 60", "shift 90", "off", "pitch 60", "EOS")
    second = ids("tie", "program 0", "shift 50", "on", "pitch 60", "shift 70", "off", "pitch 60")
    chances = [0.5] * 8
    notes, _ = run([silent(c0=first, c3=second)], rules=MULTI)
    assert rows(notes) == [(0.0, 0.5, 60, 0, False), (0.5, 0.7, 60, 0, False)]
    assembler = assembler_for(VOCABULARY, MULTI)
    spoken = [ChannelTokens(tokens) for tokens in silent()]
    spoken[0], spoken[3] = ChannelTokens(first, chances), ChannelTokens(second, chances)
    cut, whole = assembler.add_channels(spoken, 0.0, None)[0]
    assert cut.probabilities == (None, 0.5, 0.5, None)
    assert whole.probabilities == (0.5, 0.5, 0.5, 0.25)


def test_truncation_is_reported():
    assembler = assembler_for(VOCABULARY, MULTI)
    spoken = [ChannelTokens(ids("tie"), truncated=i == 3) for i in range(13)]
    assert assembler.add_channels(spoken, 0.0, None)[1].truncated


def test_arguments_that_do_not_fit():
    assembler = assembler_for(VOCABULARY, MULTI)
    with pytest.raises(OptionError, match="has 1 channels; the model has 13"):
        assembler.add_channels([ChannelTokens([])], 0.0, None)
    with pytest.raises(OptionError, match="order of time"):
        assembler.add_channels(silent(), 2.0, 1.0)
    with pytest.raises(OptionError, match="one per token"):
        assembler_for(VOCABULARY, SINGLE).add_channels([ChannelTokens([1, 2], [0.5])], 0.0, None)
    with pytest.raises(BundleError, match="on and off"):
        ChannelAssembler(Vocabulary.ismir2021(), SINGLE)


def test_the_rules_choose_the_assembler():
    assert isinstance(assembler_for(Vocabulary.mt3(), NoteRules.mt3()), NoteAssembler)
    assembler = assembler_for(Vocabulary.mt3(), NoteRules.mt3())
    tokens = [1134, 13, 1133, 1064, EOS]  # tie, 0.1 s, on, pitch 60
    notes, report = assembler.add_channels([ChannelTokens(tokens)], 0.0, None)
    assert not notes
    assert report.notes == 1
    assert [note.pitch for note in assembler.finish()] == [60]


TOKENS = st.lists(
    st.sampled_from(
        ids(
            "tie",
            "EOS",
            "PAD",
            "UNK",
            "on",
            "off",
            "program 0",
            "program 1",
            "pitch 60",
            "pitch 61",
        )
        + ids("drum 36", "shift 0", "shift 1", "shift 2", "shift 100", "shift 204", "shift 205")
    )
    | st.integers(-1, 600),
    max_size=25,
)


def rules_for(recording):
    return NoteRules.yourmt3(channels=YOURMT3_CHANNELS[: len(recording[0])] if recording else ())


def recordings(channels):
    return st.lists(st.lists(TOKENS, min_size=channels, max_size=channels), max_size=7)


@settings(max_examples=150, deadline=None)
@given(recordings(1) | recordings(2), st.booleans())
def test_whatever_a_network_says(recording, quirks):
    rules = rules_for(recording)
    notes, reports = run(recording, rules=rules, quirks=quirks)
    for note in notes:
        assert 0 <= note.onset < note.offset < math.inf
        assert note.offset - note.onset >= 0.01 - 1e-9 or note.is_drum
    by_key = {}
    for note in notes:
        by_key.setdefault((note.pitch, note.program, note.is_drum), []).append(note)
    for same in by_key.values():
        for first, second in pairwise(same):
            assert first.onset < second.onset
            # Lengthening to the minimum comes last of all, so a note may reach into the next.
            assert first.offset <= max(second.onset, first.onset + 0.01)
    assert sum(report.notes for report in reports) >= len(notes)
    assert [report.index for report in reports] == list(range(len(recording)))


@settings(max_examples=100, deadline=None)
@given(recordings(1) | recordings(2))
def test_no_note_is_lost(recording):
    """Every note of the original is there, and every onset whose program and velocity are known."""
    rules = rules_for(recording)
    kept, _ = run(recording, rules=rules)
    original, _ = run(recording, rules=rules, quirks=True)

    def begun(notes):
        return {(n.onset, n.pitch, n.program, n.is_drum) for n in notes}

    assert begun(original) <= begun(kept)


@settings(max_examples=100, deadline=None)
@given(recordings(1) | recordings(2))
def test_results_do_not_depend_on_when_they_are_asked_for(recording):
    """Notes handed out early are those that would come at the end."""
    rules = rules_for(recording)
    early, _ = run(recording, rules=rules)
    late, _ = run(recording, assembler=AtTheEnd(VOCABULARY, rules))
    assert early == late


class AtTheEnd(ChannelAssembler):
    """Hands nothing out before the last segment."""

    def _settled(self, horizon):
        return super()._settled(horizon) if horizon == math.inf else []
