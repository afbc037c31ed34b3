"""Golden token streams of the original implementation, and what must hold for any stream."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.errors import BundleError, OptionError
from mt3_runtime.notes.base import SegmentReport
from mt3_runtime.notes.magenta_assembler import NoteAssembler
from mt3_runtime.notes.note import Note, Probabilities, check_notes
from mt3_runtime.notes.note_rules import TORCH_PORT_QUIRKS, YOURMT3_CHANNELS, NoteRules
from mt3_runtime.notes.vocabulary import EOS, PAD, UNK, Event, EventKind, EventRange, Vocabulary

MT3 = Vocabulary.mt3()
STARTS = [0.0, 2.04, 4.09]


def ids(*codec_ids):
    """Model ids of the original's codec ids, in which -2 stands for any id without meaning."""
    return [UNK if i == -2 else i + 3 for i in codec_ids]


GOLDEN = [
    ids(1131, 10, 1165, 1130, 1041, 50, 1130, 1296, 1132, 1061),
    ids(1165, 1041, 1132, 1062, 1131, 20, 1165, 1129, 1041, 25, 1130, 1132, 1061, -2, 230, 1065),
    ids(1131, 5, 1129, 1061),
]


def run(segments, starts, *, vocabulary=MT3, rules=None, probabilities=None, **options):
    """All notes and reports of a recording, segment by segment."""
    assembler = NoteAssembler(vocabulary, rules or NoteRules.mt3(), **options)
    notes, reports = [], []
    for index, tokens in enumerate(segments):
        next_start = starts[index + 1] if index + 1 < len(starts) else None
        chances = None if probabilities is None else probabilities[index]
        closed, report = assembler.add(tokens, chances, starts[index], next_start)
        notes += closed
        reports.append(report)
    return notes + assembler.finish(), reports


def rows(notes):
    return sorted((n.onset, n.offset, n.pitch, n.velocity, n.program, n.is_drum) for n in notes)


def assert_rows(notes, expected):
    assert len(notes) == len(expected)
    for got, wanted in zip(rows(notes), sorted(expected), strict=True):
        assert got[:2] == pytest.approx(wanted[:2], abs=1e-9)
        assert got[2:] == wanted[2:]


def total(reports, name):
    return sum(getattr(report, name) for report in reports)


@pytest.mark.parametrize("claimed", [33, 8])
def test_a_tied_note_keeps_its_program(claimed):
    """A segment that ties it under another program ends it; it never changes its instrument."""

    def say(kind, value=0):
        return MT3.encode(Event(kind, value))

    first = [say(EventKind.TIE), say(EventKind.SHIFT, 50), say(EventKind.PROGRAM, 33),
             say(EventKind.VELOCITY, 1), say(EventKind.PITCH, 40), MT3.eos]  # fmt: skip
    tie = [say(EventKind.PROGRAM, claimed), say(EventKind.PITCH, 40), say(EventKind.TIE)]
    end = [say(EventKind.SHIFT, 20), say(EventKind.PROGRAM, 33), say(EventKind.VELOCITY),
           say(EventKind.PITCH, 40), MT3.eos]  # fmt: skip
    notes, _ = run([first, [*tie, *end]], [0.0, 2.0])
    offset = 2.2 if claimed == 33 else 2.0
    assert_rows(notes, [(0.5, offset, 40, 127, 33, False)])


def test_golden_ties():
    notes, reports = run(GOLDEN, STARTS)
    assert_rows(
        notes,
        [
            (0.10, 2.24, 40, 127, 33, False),
            (0.50, 0.51, 36, 127, 0, True),
            (0.50, 2.04, 60, 127, 0, False),
            (2.29, 4.09, 60, 127, 0, False),
        ],
    )
    assert total(reports, "invalid_events") == 3
    assert total(reports, "dropped_events") == 2
    assert [report.notes for report in reports] == [3, 1, 0]
    assert reports[1] == SegmentReport(
        index=1, start=2.04, token_count=16, invalid_events=2, dropped_events=2, notes=1
    )


@pytest.mark.parametrize("invalid_id", [PAD, UNK, -5, 1391, 1535, 10**9])
def test_every_id_without_meaning_counts_alike(invalid_id):
    changed = [[invalid_id if i == UNK else i for i in segment] for segment in GOLDEN]
    assert run(changed, STARTS) == run(GOLDEN, STARTS)


def test_golden_missing_tie_in_the_middle():
    segments = [
        ids(1131, 10, 1132, 1130, 1061),
        ids(10, 1132, 1130, 1061, 20, 1130, 1063),
        ids(1131),
    ]
    notes, reports = run(segments, STARTS)
    assert_rows(notes, [(0.10, 4.09, 60, 127, 0, False)])
    assert total(reports, "invalid_events") == 1
    assert [report.missing_tie for report in reports] == [False, True, False]


def test_golden_velocities_without_ties():
    segments = [
        ids(10, 1193, 1061, 30, 1219, 1061, 1065, 400, 1129, 1065),
        ids(2, 1129, 1061, 3, 1130, 1073),
    ]
    notes, reports = run(
        segments, [0.0, 4.09], vocabulary=Vocabulary.ismir2021(), rules=NoteRules.ismir2021()
    )
    assert_rows(
        notes,
        [
            (0.10, 0.30, 60, 64, 0, False),
            (0.30, 4.11, 60, 90, 0, False),
            (0.30, 4.00, 64, 90, 0, False),
            (4.12, 4.13, 72, 1, 0, False),
        ],
    )
    names = ("invalid_events", "dropped_events", "missing_tie", "truncated", "discarded_tokens")
    assert [total(reports, name) for name in names] == [0] * 5


def test_notes_come_as_soon_as_they_end():
    assembler = NoteAssembler(MT3, NoteRules.mt3())
    first, _ = assembler.add(GOLDEN[0], None, 0.0, 2.04)
    assert [note.pitch for note in first] == [36]
    second, _ = assembler.add(GOLDEN[1], None, 2.04, 4.09)
    assert [note.pitch for note in second] == [60, 40]
    third, _ = assembler.add(GOLDEN[2], None, 4.09, None)
    assert [note.pitch for note in third] == [60]
    assert assembler.finish() == []


def test_shift_runs_state_absolute_times():
    # Two shifts in a row add up, also around an id without meaning; the next run starts anew.
    notes, _ = run([ids(1131, 10, -2, 20, 1132, 1130, 1061, 50, 1129, 1061)], [1.0])
    assert_rows(notes, [(1.30, 1.50, 60, 127, 0, False)])


def test_an_invalid_event_ends_the_run_of_shifts():
    notes, reports = run([ids(1131, 10, 1131, 20, 1130, 1061)], [0.0])
    assert_rows(notes, [(0.20, 0.21, 60, 127, 0, False)])
    assert reports[0].invalid_events == 1


def test_the_clock_does_not_run_backwards_and_an_invalid_event_advances_it():
    # The second tie at 0.50 is invalid, yet the pitch at 0.40 comes too late.
    notes, reports = run([ids(1131, 50, 1131, 40, 1061, 50, 1062)], [0.0])
    assert_rows(notes, [(0.50, 0.51, 61, 100, 0, False)])
    assert reports[0].invalid_events == 2


def test_initial_state_and_state_across_segments():
    notes, _ = run(
        [ids(1131, 10, 1061), ids(1131, 1165, 1130), ids(1131, 10, 1061)], [0.0, 1.0, 2.0]
    )
    assert_rows(notes, [(0.10, 1.0, 60, 100, 0, False), (2.10, 2.11, 60, 127, 33, False)])


def test_events_at_the_start_of_the_next_segment_still_count():
    notes, reports = run([ids(1131, 200, 1130, 1061, 1, 1062), ids(1131, 50)], [0.0, 2.0])
    assert_rows(notes, [(2.0, 2.01, 60, 127, 0, False)])
    assert reports[0].dropped_events == 0  # the last shift leads back to 0.01 s
    assert reports[0].invalid_events == 1


def test_a_new_onset_ends_the_old_note():
    notes, _ = run([ids(1131, 10, 1130, 1061, 30, 1061)], [0.0])
    assert_rows(notes, [(0.10, 0.30, 60, 127, 0, False), (0.30, 0.31, 60, 127, 0, False)])


def test_drums_sound_in_the_tie_section_unless_the_velocity_is_zero():
    notes, reports = run([ids(10, 1130, 1296, 1129, 1297)], [0.0])
    assert_rows(notes, [(0.10, 0.11, 36, 127, 0, True)])
    assert (reports[0].invalid_events, reports[0].missing_tie) == (1, True)


def test_flat_rules_read_over_programs():
    rules = dataclasses.replace(NoteRules.mt3(), flat_programs=True)
    notes, reports = run([ids(1131, 1165, 10, 1061, 20, 1132, 1129, 1061)], [0.0], rules=rules)
    assert_rows(notes, [(0.10, 0.20, 60, 100, 0, False)])
    assert reports[0].invalid_events == 0


def test_confidence_is_the_probability_of_the_pitch_or_drum_token():
    segment = ids(1131, 10, 1130, 1061, 1296, 40, 1129, 1061)
    chances = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], np.float32)
    notes, _ = run([segment], [0.0], probabilities=[chances])
    assert {n.pitch: round(n.confidence, 6) for n in notes} == {60: 0.6, 36: 0.5}
    assert all(note.confidence == 1.0 for note in run([segment], [0.0])[0])


def known(notes):
    """Probabilities of notes by pitch, rounded."""
    return {n.pitch: tuple(p and round(p, 6) for p in n.probabilities) for n in notes}


def test_notes_carry_the_probabilities_of_their_tokens():
    program, pitch, drum, on, off, tie = 1165, 1061, 1296, 1130, 1129, 1131
    segment = ids(tie, program, on, pitch, 10, 2, drum, pitch + 1, 40, off, pitch, pitch + 1)
    chances = [0.99, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1]
    notes, _ = run([segment], [0.0], probabilities=[chances])
    assert known(notes) == {
        60: (None, 0.7, 0.9, 0.0375),  # at the segment's start, no shift; off: 0.25 * 0.15
        61: (0.3, 0.3, 0.9, 0.025),  # two shifts in a row: 0.6 * 0.5
        36: (0.3, 0.4, None, None),  # drums have neither program nor end
    }
    assert set(known(run([segment], [0.0])[0]).values()) == {(None,) * 4}


def test_probabilities_across_segments():
    """A program stays in force, a shift does not; ties, new onsets and the end have no tokens."""
    tie, program, on, low, high = 1131, 1165, 1130, 1050, 1061
    segments = [ids(tie, program, on, 50, low, high), ids(low, tie, on, low + 1, 20, low)]
    chances = [[0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]]
    notes, _ = run(segments, [0.0, 2.04], probabilities=chances)
    assert [known([note]) for note in sorted(notes)] == [
        {60: (0.6, 0.4, 0.8, None)},
        {49: (0.6, 0.5, 0.8, None)},
        {50: (None, 0.6, 0.8, None)},
        {49: (0.5, 0.4, 0.8, None)},
    ]


def test_tokens_from_the_first_eos_on_are_ignored():
    ended = [*GOLDEN[0], EOS, *ids(1061), PAD, EOS]
    assert run([ended], [0.0]) == run([GOLDEN[0]], [0.0])
    assert run([ended], [0.0])[1][0].token_count == len(GOLDEN[0])


def test_an_eos_in_the_tokens_outweighs_the_flag():
    assembler = NoteAssembler(MT3, NoteRules.mt3())
    _, report = assembler.add([1134, EOS], [1.0, 1.0], 0.0, None, truncated=True)
    assert not report.truncated


@pytest.mark.parametrize("rules", [NoteRules.mt3(), NoteRules.mt3(quirks=TORCH_PORT_QUIRKS)])
def test_truncated_segments_keep_their_notes(rules):
    assembler = NoteAssembler(MT3, rules)
    tokens = ids(1131, 10, 1130, 1296, -2, 1297)
    notes, report = assembler.add(tokens, None, 0.0, None, truncated=True)
    assert [note.pitch for note in notes] == [36, 37]
    assert (report.truncated, report.invalid_events, report.discarded_tokens) == (True, 1, 0)


@pytest.mark.parametrize(
    ("quirks", "unk", "pitches", "discarded"),
    [
        (("empty_without_eos",), False, [], 5),
        (("empty_without_eos",), True, [], 6),
        (("unk_is_eos",), False, [36, 37], 0),
        (("unk_is_eos",), True, [36], 2),
        (TORCH_PORT_QUIRKS, True, [36], 2),
        ((), True, [36, 37], 0),
    ],
)
def test_quirks_of_the_torch_ports_on_request(quirks, unk, pitches, discarded):
    assembler = NoteAssembler(MT3, NoteRules.mt3(quirks=quirks), upstream_quirks=True)
    tokens = ids(1131, 10, 1130, 1296) + [UNK] * unk + ids(1297)
    notes, report = assembler.add(tokens, None, 0.0, None, truncated=True)
    assert [note.pitch for note in notes] == pitches
    assert (report.truncated, report.discarded_tokens) == (True, discarded)


def test_complete_segments_are_not_touched_by_the_quirks():
    rules = NoteRules.mt3(quirks=TORCH_PORT_QUIRKS)
    with_eos = [[*segment, EOS] for segment in GOLDEN]
    with_eos[1].remove(UNK)
    assert run(with_eos, STARTS, rules=rules, upstream_quirks=True) == run(with_eos, STARTS)


def test_an_empty_recording():
    assert run([], []) == ([], [])
    notes, reports = run([[], []], [0.0, 2.04])
    assert notes == []
    assert [report.missing_tie for report in reports] == [True, True]


@pytest.mark.parametrize(
    ("start", "next_start"),
    [(1.0, 2.0), (-1.0, None), (math.nan, None), (3.0, 2.9), (3.0, math.nan), (math.inf, None)],
)
def test_segments_out_of_order_are_refused(start, next_start):
    assembler = NoteAssembler(MT3, NoteRules.mt3())
    assembler.add([], None, 2.0, 3.0)
    with pytest.raises(OptionError, match="order of time"):
        assembler.add([], None, start, next_start)


def test_probabilities_must_fit_the_tokens():
    with pytest.raises(OptionError, match="2 tokens came with 3 probabilities"):
        NoteAssembler(MT3, NoteRules.mt3()).add([3, 4], [1.0, 1.0, 1.0], 0.0, None)


# --- any stream -------------------------------------------------------------------------------

ANY_ID = st.integers(-4, 1540)
LIVELY_ID = st.one_of(
    st.sampled_from([MT3.encode(Event(EventKind.TIE, 0)), PAD, UNK, 1500]),
    st.integers(0, 250).map(lambda v: MT3.encode(Event(EventKind.SHIFT, v))),
    st.integers(60, 62).map(lambda v: MT3.encode(Event(EventKind.PITCH, v))),
    st.integers(0, 1).map(lambda v: MT3.encode(Event(EventKind.VELOCITY, v))),
    st.integers(0, 1).map(lambda v: MT3.encode(Event(EventKind.PROGRAM, v))),
    st.integers(35, 37).map(lambda v: MT3.encode(Event(EventKind.DRUM, v))),
)
STREAMS = st.lists(
    st.one_of(st.lists(ANY_ID, max_size=40), st.lists(LIVELY_ID, max_size=60)), max_size=5
)


@settings(max_examples=150, deadline=None)
@given(streams=STREAMS, ties=st.booleans(), truncated=st.booleans(), quirks=st.booleans())
def test_any_stream_gives_valid_notes_and_a_full_account(streams, ties, truncated, quirks):
    rules = NoteRules(ties=ties, quirks=TORCH_PORT_QUIRKS)
    assembler = NoteAssembler(MT3, rules, upstream_quirks=quirks)
    notes, reports = [], []
    for index, tokens in enumerate(streams):
        start = index * 2.048
        after = start + 2.048 if index + 1 < len(streams) else None
        closed, report = assembler.add(tokens, None, start, after, truncated=truncated)
        notes += closed
        reports.append(report)
    notes += assembler.finish()

    check_notes(notes)
    assert all(n.offset - n.onset >= 0.01 - 1e-9 and n.velocity in (100, 127) for n in notes)
    assert sum(report.notes for report in reports) == len(notes)
    for tokens, report in zip(streams, reports, strict=True):
        count = tokens.index(EOS) if EOS in tokens else len(tokens)
        assert report.token_count == count
        unused = report.invalid_events + report.dropped_events + report.discarded_tokens
        assert report.notes + unused <= count


@settings(max_examples=100, deadline=None)
@given(streams=STREAMS, truncated=st.booleans(), quirks=st.booleans())
def test_no_onset_is_lost_without_being_counted(streams, truncated, quirks):
    # Without ties and note-offs every pitch and drum token is an onset.
    silencing = {*MT3.id_range(EventKind.VELOCITY)[:1], *MT3.id_range(EventKind.TIE)}
    rules = NoteRules(ties=False, quirks=TORCH_PORT_QUIRKS)
    assembler = NoteAssembler(MT3, rules, upstream_quirks=quirks)
    for index, stream in enumerate(streams):
        tokens = [i for i in stream if i not in silencing and i != EOS]
        events = MT3.decode(tokens)
        onsets = sum(e is not None and e.kind in (EventKind.PITCH, EventKind.DRUM) for e in events)
        _, report = assembler.add(
            tokens, None, index * 2.048, index * 2.048 + 2.048, truncated=truncated
        )
        unused = report.invalid_events + report.dropped_events + report.discarded_tokens
        assert onsets <= report.notes + unused
        if not unused:
            assert report.notes == onsets


@settings(max_examples=100, deadline=None)
@given(
    onsets=st.lists(st.tuples(st.integers(0, 204), st.integers(0, 127), st.booleans()), max_size=40)
)
def test_every_onset_inside_its_segment_yields_a_note(onsets):
    tokens = [MT3.encode(Event(EventKind.TIE, 0)), MT3.encode(Event(EventKind.VELOCITY, 1))]
    for steps, pitch, is_drum in sorted(onsets):
        kind = EventKind.DRUM if is_drum else EventKind.PITCH
        tokens += [MT3.encode(Event(EventKind.SHIFT, steps)), MT3.encode(Event(kind, pitch))]
    assembler = NoteAssembler(MT3, NoteRules.mt3())
    notes, report = assembler.add(tokens, None, 0.0, 2.048)
    notes += assembler.finish()
    assert report == SegmentReport(0, 0.0, len(tokens), notes=len(onsets))
    assert sorted((round(n.onset * 100), n.pitch, n.is_drum) for n in notes) == sorted(onsets)


@settings(max_examples=100, deadline=None)
@given(tokens=st.lists(LIVELY_ID, max_size=60), data=st.data())
def test_containers_and_dtypes_do_not_matter(tokens, data):
    dtype = data.draw(st.sampled_from([np.int16, np.int32, np.int64]))
    results = []
    for container in (tokens, tuple(tokens), np.array(tokens, dtype)):
        assembler = NoteAssembler(MT3, NoteRules.mt3())
        results.append((assembler.add(container, None, 0.0, None), assembler.finish()))
    assert results[0] == results[1] == results[2]
    notes = results[2][0][0] + results[2][1]
    assert all(type(note.pitch) is int and type(note.onset) is float for note in notes)


@settings(max_examples=100, deadline=None)
@given(streams=STREAMS, padding=st.integers(0, 5))
def test_padding_behind_the_end_changes_nothing(streams, padding):
    starts = [index * 2.048 for index in range(len(streams))]
    padded = [tokens + [EOS] + [PAD] * padding for tokens in streams]
    assert run(padded, starts) == run(streams, starts)


@settings(max_examples=100, deadline=None)
@given(
    onsets=st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 127)), max_size=40),
    cuts=st.sets(st.integers(1, 12), max_size=6),
)
def test_without_ties_cutting_into_segments_does_not_change_the_notes(onsets, cuts):
    rules = NoteRules(ties=False)
    starts = [0, *sorted(cut * 100 for cut in cuts)]
    segments, whole = [ids(1130) for _ in starts], ids(1130)
    for step, pitch in [*sorted(onsets), (1300, None)]:
        index = max(i for i, start in enumerate(starts) if start <= step)
        event = 1130 if pitch is None else 1001 + pitch  # a last event where open notes end
        for target, shift in ((segments[index], step - starts[index]), (whole, step)):
            target.extend(ids(shift // 2, shift - shift // 2, event))  # one reaches 10 s only
    single, _ = run([whole], [0.0], rules=rules)
    several, _ = run(segments, [start / 100 for start in starts], rules=rules)
    assert_rows(several, rows(single))


# --- rules ------------------------------------------------------------------------------------


def test_velocity_of_a_bin():
    assert [NoteRules.mt3().velocity(b) for b in (0, 1)] == [0, 127]
    assert [NoteRules.ismir2021().velocity(b) for b in range(128)] == list(range(128))
    assert NoteRules(velocity_bins=32).velocity(5) == 19  # 19.84


@pytest.mark.parametrize(
    "rules",
    [
        NoteRules.mt3(),
        NoteRules.mt3(quirks=TORCH_PORT_QUIRKS),
        NoteRules.ismir2021(),
        NoteRules.yourmt3(),
        NoteRules.yourmt3(channels=YOURMT3_CHANNELS),
    ],
)
def test_rules_travel_as_json(rules):
    assert NoteRules.from_dict(json.loads(json.dumps(rules.to_dict()))) == rules


def test_whole_seconds_may_be_integers():
    rules = NoteRules.from_dict({**NoteRules.mt3().to_dict(), "drum_duration": 1})
    assert type(rules.drum_duration) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ties": 1}, "notes: ties is 1, expected bool"),
        ({"velocity_bins": True}, "velocity_bins is True, expected int"),
        ({"velocity_bins": 0}, "velocity_bins is 0, expected 1..127"),
        ({"velocity_bins": 128}, "expected 1..127"),
        ({"minimum_duration": "0.01"}, "expected float"),
        ({"minimum_duration": -0.01}, "minimum_duration is -0.01"),
        ({"drum_duration": math.nan}, "drum_duration is nan"),
        ({"initial_program": 128}, "initial_program is 128"),
        ({"initial_velocity": -1}, "initial_velocity is -1"),
        ({"quirks": "unk_is_eos"}, "expected a list"),
        ({"quirks": ["sings"]}, "not known"),
        ({"quirks": [["nested"]]}, r"quirks\[0\] is .*, expected str"),
        ({"assembly": "marching_band"}, "install a newer mt3-runtime"),
        ({"colour": 1}, r"unknown keys \['colour'\]"),
        ({"quirks": ["empty_without_tie"]}, "not known"),  # another assembly's
        ({"general_midi": {"100": 53}}, "expected a list"),
        ({"general_midi": [100, 53]}, r"general_midi\[0\] is 100, expected a list"),
        ({"general_midi": [[100, 53, 1]]}, "expected a list of 2"),
        ({"general_midi": [[100, True]]}, r"\[0\]\[1\] is True, expected int"),
        ({"general_midi": [[100, 128]]}, r"programs in 0\.\.127"),
        ({"program_groups": [8]}, r"program_groups\[0\] is 8, expected a list"),
        ({"program_groups": [[8, 9.5]]}, r"\[0\]\[1\] is 9.5, expected int"),
        ({"program_groups": [[8, 128]]}, r"programs in 0\.\.127"),
        ({"program_groups": [[8, 9], [9, 10]]}, "none of them twice"),
        ({"program_groups": [[8], []]}, "one or more programs"),
        ({"channels": [5]}, "expected an object, got int"),
        ({"channels": [{"name": "a"}]}, r"missing keys \['drums', 'programs'\]"),
        ({"channels": [{"name": 1, "programs": [], "drums": True}]}, "expected str"),
        ({"channels": [{"name": "a", "programs": [1, 0], "drums": True}]}, "ascending"),
        ({"channels": [{"name": "a", "programs": [128], "drums": True}]}, "ascending"),
        ({"channels": [{"name": "a", "programs": [], "drums": True}] * 2}, "joins one channel"),
    ],
)
def test_damaged_rules_are_refused(change, message):
    with pytest.raises(BundleError, match=message):
        NoteRules.from_dict({**NoteRules.mt3().to_dict(), **change})


def test_the_thirteen_channels_of_yourmt3():
    names = [channel.name for channel in YOURMT3_CHANNELS]
    assert (len(names), names[0], names[11], names[12]) == (13, "Piano", "Singing Voice", "Drums")
    programs = [program for channel in YOURMT3_CHANNELS for program in channel.programs]
    assert programs == [*range(96), 100, 101]
    assert [channel.drums for channel in YOURMT3_CHANNELS] == [False] * 12 + [True]


def test_programs_that_mean_something_else_than_in_general_midi():
    rules = NoteRules(general_midi=((33, 40),))
    notes, _ = run(GOLDEN, STARTS, rules=rules)
    plain, _ = run(GOLDEN, STARTS)
    assert [n.program for n in plain] == [0, 0, 33, 0]
    assert [n.program for n in notes] == [0, 0, 40, 0]


def test_rules_with_a_missing_key_are_refused():
    data = NoteRules.mt3().to_dict()
    del data["ties"]
    with pytest.raises(BundleError, match=r"missing keys \['ties'\]"):
        NoteRules.from_dict(data)


def test_rules_and_vocabulary_must_fit():
    with pytest.raises(BundleError, match="128 velocity tokens for 1 bins"):
        NoteAssembler(Vocabulary.ismir2021(), NoteRules.mt3())
    tieless = Vocabulary(1536, tuple(r for r in MT3.ranges if r.kind is not EventKind.TIE))
    with pytest.raises(BundleError, match=r"no tokens for \['tie'\]"):
        NoteAssembler(tieless, NoteRules.mt3())
    NoteAssembler(tieless, NoteRules(ties=False))
    with pytest.raises(BundleError, match="'shift', 'pitch'"):
        NoteAssembler(
            Vocabulary(9, (EventRange(EventKind.VELOCITY, 3, 0, 1),)), NoteRules(ties=False)
        )


# --- notes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"onset": -0.1}, "note 1 spans -0.1"),
        ({"onset": math.nan}, "spans nan"),
        ({"offset": 0.5}, "spans 1.0..0.5"),
        ({"offset": math.inf}, "spans 1.0..inf"),
        ({"pitch": 128}, "pitch 128"),
        ({"pitch": -1}, "pitch -1"),
        ({"program": 128}, "program 128"),
        ({"confidence": math.nan}, "confidence nan"),
        ({"probabilities": Probabilities(pitch=math.nan)}, "pitch=nan"),
        ({"probabilities": Probabilities(offset=1.01)}, "offset=1.01"),
    ],
)
def test_notes_that_cannot_be_written_are_named(change, message):
    good = Note(1.0, 2.0, 60, 100)
    check_notes([good, dataclasses.replace(good, offset=1.0)])
    with pytest.raises(OptionError, match=message):
        check_notes([good, dataclasses.replace(good, **change)])
