"""Every note survives a MIDI file, in our reader and in pretty_midi."""

from __future__ import annotations

import dataclasses
import io
import math
import random
import sys
from collections import Counter

import mido
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.errors import MidiWarning, OptionError
from mt3_runtime.files.midi import (
    MAX_ERROR,
    MAX_TEMPO,
    MAX_TICK,
    MIN_TEMPO,
    from_midi,
    to_midi,
)
from mt3_runtime.notes.instruments import PROGRAM_NAMES
from mt3_runtime.notes.note import Note
from tests import needs


def through_bytes(midi):
    buffer = io.BytesIO()
    midi.save(file=buffer)
    return mido.MidiFile(file=io.BytesIO(buffer.getvalue()))


def as_bytes(midi):
    buffer = io.BytesIO()
    midi.save(file=buffer)
    return buffer.getvalue()


def names(note):
    return (note.pitch, note.velocity, note.program, note.is_drum)


def assert_same_notes(got, expected, *, tolerance):
    """Equal multisets of notes, and within each kind of note equal times."""
    assert Counter(map(names, got)) == Counter(map(names, expected))

    def order(note):
        return (names(note), note.onset, note.offset)

    kinds = {}
    for note in expected:
        kinds.setdefault(names(note), []).append(note)
    for kind, wanted in kinds.items():
        found = [note for note in got if names(note) == kind]
        for attribute in ("onset", "offset"):
            a = sorted(getattr(note, attribute) for note in found)
            b = sorted(getattr(note, attribute) for note in wanted)
            assert a == pytest.approx(b, abs=tolerance, rel=0)


def channels_of(midi):
    """Port, channels and program of each note track; asserts what holds for all of them."""
    result = []
    for track in midi.tracks[1:]:
        ports = [m.port for m in track if m.type == "midi_port"]
        changes = [m for m in track if m.type == "program_change"]
        channels = {m.channel for m in track if not m.is_meta}
        (program,) = {m.program for m in changes}
        assert len(ports) <= 1
        assert {m.channel for m in changes} == channels
        assert [m.type for m in track].index("program_change") == len(ports) + 1
        result.append((ports[0] if ports else 0, channels, program))
    return result


NOTES = st.builds(
    lambda onset, length, pitch, velocity, program, is_drum: Note(
        onset, onset + length, pitch, velocity, program, is_drum
    ),
    st.floats(0, 20),
    st.floats(0.001, 5) | st.just(0.01),
    st.integers(58, 63) | st.integers(0, 127),
    st.integers(1, 127),
    st.integers(0, 39) | st.just(0),
    st.booleans(),
)


@pytest.mark.filterwarnings("ignore::mt3_runtime.errors.MidiWarning")
@settings(max_examples=80, deadline=None)
@given(
    notes=st.lists(NOTES, max_size=80),
    copies=st.integers(0, 20),
    tempo=st.just(120.0) | st.floats(MIN_TEMPO, MAX_TEMPO),
)
def test_round_trip(notes, copies, tempo):
    notes = notes + notes[:copies]  # exact duplicates survive as well
    midi = through_bytes(to_midi(notes, tempo=tempo))
    assert_same_notes(from_midi(midi), notes, tolerance=0.0006)
    assert all(
        {channel == 9 for channel in channels} == {track.name.startswith("Drums")}
        for (_, channels, _), track in zip(channels_of(midi), midi.tracks[1:], strict=True)
    )
    assert all(message.time >= 0 for track in midi.tracks for message in track)


@pytest.mark.filterwarnings("ignore::mt3_runtime.errors.MidiWarning")
def test_forty_programs_and_drums_with_overlaps():
    notes = [
        Note(0.1 * i, 0.1 * i + 1.0, 60 + i % 3, 1 + i % 127, program, is_drum)
        for i in range(12)
        for program, is_drum in [*((p, False) for p in range(40)), (0, True), (16, True)]
    ]
    midi = through_bytes(to_midi(notes))
    assert_same_notes(from_midi(midi), notes, tolerance=0.000105)
    assert max(port for port, _, _ in channels_of(midi)) > 1
    assert all(track[0].type == "midi_port" for track in midi.tracks[1:])


@pytest.mark.parametrize("tempo", [20.0, 20.8, 21.0, 41.7, 60.0, 119.9, 120.0, 130.0, 333.3, 400.0])
def test_times_are_exact_at_every_tempo_and_do_not_drift(tempo):
    notes = [Note(t + 0.0123, t + 0.0456, 60, 100) for t in range(0, 4000, 7)]
    read = from_midi(through_bytes(to_midi(notes, tempo=tempo)))
    errors = [
        abs(getattr(a, name) - getattr(b, name))
        for a, b in zip(read, notes, strict=True)
        for name in ("onset", "offset")
    ]
    assert max(errors) <= MAX_ERROR


def test_default_resolution_holds_the_time_grid_of_the_models_exactly():
    midi = to_midi([Note(i / 100, (i + 1) / 100, 60, 100) for i in range(500)])
    assert midi.ticks_per_beat == 2400
    assert [m.time for m in midi.tracks[1] if m.type == "note_off"] == [48] * 500
    assert [m.tempo for m in midi.tracks[0] if m.type == "set_tempo"] == [500_000]


@pytest.mark.parametrize(
    ("minutes", "resolution"), [(34, 2400), (60, 1200), (120, 600), (600, 600)]
)
def test_long_files_trade_resolution_for_ticks_that_readers_accept(minutes, resolution):
    end = minutes * 60.0
    note = Note(end - 1.00013, end, 60, 100)
    midi = to_midi([note])
    assert midi.ticks_per_beat == resolution
    ticks = sum(message.time for message in midi.tracks[1])
    assert ticks <= MAX_TICK or resolution == 600
    assert_same_notes(from_midi(midi), [note], tolerance=MAX_ERROR)


def test_layout_of_a_small_file():
    notes = [
        Note(0.5, 1.0, 60, 90, program=33),
        Note(0.0, 0.5, 60, 200, program=33),
        Note(0.0, 2.0, 64, 0, program=0),
        Note(0.25, 0.25, 36, 100, is_drum=True),
    ]
    midi = to_midi(notes)
    assert midi.type == 1
    listing = [[str(message) for message in track] for track in midi.tracks]
    assert listing == [
        [
            "MetaMessage('track_name', name='mt3-runtime', time=0)",
            "MetaMessage('set_tempo', tempo=500000, time=0)",
            "MetaMessage('end_of_track', time=0)",
        ],
        [
            "MetaMessage('track_name', name='Acoustic Grand Piano', time=0)",
            "program_change channel=0 program=0 time=0",
            "note_on channel=0 note=64 velocity=1 time=0",
            "note_off channel=0 note=64 velocity=0 time=9600",
            "MetaMessage('end_of_track', time=0)",
        ],
        [
            "MetaMessage('track_name', name='Electric Bass (finger)', time=0)",
            "program_change channel=1 program=33 time=0",
            "note_on channel=1 note=60 velocity=127 time=0",
            "note_off channel=1 note=60 velocity=0 time=2400",
            "note_on channel=1 note=60 velocity=90 time=0",
            "note_off channel=1 note=60 velocity=0 time=2400",
            "MetaMessage('end_of_track', time=0)",
        ],
        [
            "MetaMessage('track_name', name='Drums', time=0)",
            "program_change channel=9 program=0 time=0",
            "note_on channel=9 note=36 velocity=100 time=1200",
            "note_off channel=9 note=36 velocity=0 time=1",
            "MetaMessage('end_of_track', time=0)",
        ],
    ]


def test_overlapping_equal_pitches_get_layers_and_layers_are_reused():
    notes = [Note(0, 2, 60, 100), Note(1, 4, 60, 90), Note(2, 3, 60, 80), Note(2.5, 3, 61, 70)]
    midi = to_midi(notes)
    assert [track.name for track in midi.tracks[1:]] == [
        "Acoustic Grand Piano",
        "Acoustic Grand Piano (2)",
    ]
    assert channels_of(midi) == [(0, {0}, 0), (0, {1}, 0)]
    assert from_midi(midi) == sorted(notes)


def test_equal_drum_keys_at_one_time_go_to_further_tracks_of_the_drum_channel():
    notes = [Note(1, 1.01, 36, 100, is_drum=True)] * 3
    midi = to_midi(notes)
    assert channels_of(midi) == [(0, {9}, 0)] * 3
    assert [track.name for track in midi.tracks[1:]] == ["Drums", "Drums (2)", "Drums (3)"]
    assert from_midi(midi) == notes


@pytest.mark.filterwarnings("ignore::mt3_runtime.errors.MidiWarning")
def test_sixteen_programs_at_once_need_a_second_port():
    notes = [Note(0, 1, 60, 100, program=p) for p in range(16)]
    assert {port for port, _, _ in channels_of(to_midi(notes[:15]))} == {0}
    assert not any(m.type == "midi_port" for t in to_midi(notes[:15]).tracks for m in t)
    assert channels_of(to_midi(notes))[-1] == (1, {0}, 15)


def test_no_notes():
    midi = through_bytes(to_midi([]))
    assert len(midi.tracks) == 1
    assert from_midi(midi) == []


@settings(max_examples=30, deadline=None)
@given(notes=st.lists(NOTES, max_size=30), seed=st.integers())
def test_the_order_of_the_notes_does_not_matter(notes, seed):
    shuffled = random.Random(seed).sample(notes, len(notes))
    assert as_bytes(to_midi(shuffled)) == as_bytes(to_midi(notes))


def steps(work):
    """Number of byte codes that a call runs: its work, however busy the machine is."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.filterwarnings("ignore::mt3_runtime.errors.MidiWarning")
@pytest.mark.parametrize("programs", [5, 40, 128])
@pytest.mark.parametrize("pitches", [128, 1])
@pytest.mark.parametrize("density", [2, 40, 1000])
def test_work_grows_no_faster_than_the_number_of_notes(programs, pitches, density):
    """Four times the notes at equal density; a loop within the loop would be 16 times the work."""
    rng = random.Random(0)

    def work(count):
        starts = [rng.random() * count / density for _ in range(count)]
        notes = [
            Note(t, t + 0.1, rng.randrange(pitches), 100, rng.randrange(programs)) for t in starts
        ]
        return steps(lambda: to_midi(notes))

    work(100)  # what is made once
    assert work(2000) < 4 * 1.3 * work(500)


@pytest.mark.parametrize("programs", [1, 40])
def test_work_of_notes_that_all_sound_at_once(programs):
    def work(count):
        return steps(lambda: to_midi([Note(1, 2, 60, 100, i % programs) for i in range(count)]))

    with pytest.warns(MidiWarning):
        assert work(3200) < 4 * 1.3 * work(800)


@pytest.mark.parametrize("tempo", [0.0, -120.0, 19.9, 400.1, math.nan, math.inf])
def test_tempo_out_of_range(tempo):
    with pytest.raises(OptionError, match=r"expected 20\.\.400 bpm"):
        to_midi([], tempo=tempo)


@pytest.mark.parametrize(
    "change", [{"pitch": 128}, {"program": -1}, {"onset": -1.0}, {"offset": math.inf}]
)
def test_invalid_notes_are_refused(change):
    with pytest.raises(OptionError, match="note 0"):
        to_midi([dataclasses.replace(Note(0.0, 1.0, 60, 100), **change)])


def test_times_beyond_a_midi_file_are_refused():
    day = 24 * 3600.0
    to_midi([Note(day, day + 1, 60, 100)], tempo=MAX_TEMPO)
    to_midi([Note(day, day + 1, 60, 100)], tempo=MIN_TEMPO)
    with pytest.raises(OptionError, match="later than a MIDI file can express"):
        to_midi([Note(1e7, 1e7 + 1, 60, 100)])


# --- other programs' readers and writers --------------------------------------------------------


def read_by_pretty_midi(data):
    pretty_midi = needs.package("pretty_midi")
    read = pretty_midi.PrettyMIDI(io.BytesIO(data))
    return read, [
        Note(n.start, n.end, n.pitch, n.velocity, instrument.program, instrument.is_drum)
        for instrument in read.instruments
        for n in instrument.notes
    ]


@settings(max_examples=25, deadline=None)
@given(notes=st.lists(NOTES, min_size=1, max_size=60), copies=st.integers(0, 10))
def test_pretty_midi_reads_the_same_notes(notes, copies):
    notes = notes + notes[:copies]
    _, read = read_by_pretty_midi(as_bytes(to_midi(notes)))
    assert_same_notes(read, notes, tolerance=0.00032)  # a note of no length gets one tick


@pytest.mark.filterwarnings("ignore::mt3_runtime.errors.MidiWarning")
def test_pretty_midi_reads_many_ports_and_names():
    notes = [Note(0.0, 1.0, 60, 100, program=p) for p in range(40)] + [
        Note(0.5, 0.51, 36, 100, is_drum=True)
    ] * 2
    midi, read = read_by_pretty_midi(as_bytes(to_midi(notes)))
    assert_same_notes(read, notes, tolerance=1e-9)
    assert [i.name for i in midi.instruments if not i.is_drum] == list(PROGRAM_NAMES[:40])


def test_pretty_midi_reads_an_hour():
    notes = [Note(t, t + 0.5, 60, 100) for t in range(0, 3600, 9)]
    _, read = read_by_pretty_midi(as_bytes(to_midi(notes)))
    assert_same_notes(read, notes, tolerance=MAX_ERROR)


def test_files_of_pretty_midi_with_shared_channels_keep_their_programs():
    pretty_midi = needs.package("pretty_midi")
    written = pretty_midi.PrettyMIDI(resolution=220, initial_tempo=97.0)
    notes = [Note(p * 0.1, p * 0.1 + 0.3, 60, 100, program=p) for p in range(30)]
    for note in notes:
        instrument = pretty_midi.Instrument(program=note.program)
        instrument.notes.append(pretty_midi.Note(100, 60, note.onset, note.offset))
        written.instruments.append(instrument)
    buffer = io.BytesIO()
    written.write(buffer)
    read = from_midi(mido.MidiFile(file=io.BytesIO(buffer.getvalue())))
    assert_same_notes(read, notes, tolerance=0.002)


def foreign(*tracks, division=480, kind=1):
    midi = mido.MidiFile(type=kind, ticks_per_beat=division)
    for messages in tracks:
        midi.tracks.append(mido.MidiTrack(messages))
    return midi


def on(note, delta=0, velocity=64, channel=0):
    return mido.Message("note_on", note=note, velocity=velocity, time=delta, channel=channel)


def off(note, delta=0, channel=0):
    return mido.Message("note_off", note=note, time=delta, channel=channel)


def meta(name, delta=0, **values):
    return mido.MetaMessage(name, time=delta, **values)


def program(number, delta=0, channel=0):
    return mido.Message("program_change", program=number, time=delta, channel=channel)


def test_tempo_changes_in_any_track():
    midi = foreign(
        [meta("set_tempo", tempo=1_000_000), meta("set_tempo", 960, tempo=250_000)],
        [on(60), off(60, 480), on(61, 240), off(61, 480), meta("set_tempo", 240, tempo=500_000)],
        [on(62, 1440), off(62, 480)],
    )
    assert [(n.onset, n.offset, n.pitch) for n in from_midi(midi)] == [
        (0.0, 1.0, 60),
        (1.5, 2.125, 61),
        (2.25, 2.75, 62),
    ]


def test_note_on_with_velocity_zero_ends_a_note_and_stray_ends_are_ignored():
    midi = foreign([off(60), on(60), on(60, 480, velocity=0), on(60, 1, velocity=0)], kind=0)
    assert from_midi(midi) == [Note(0.0, 0.5, 60, 64)]


def test_overlapping_notes_of_one_channel_end_in_order():
    midi = foreign([on(60), on(60, 480, velocity=9), off(60, 480), off(60, 480)])
    assert from_midi(midi) == [Note(0.0, 1.0, 60, 64), Note(0.5, 1.5, 60, 9)]


def test_unfinished_notes_end_with_their_track():
    midi = foreign(
        [on(60), on(60, 480), on(61, 0), meta("end_of_track", 480)], [on(50), off(50, 9600)]
    )
    assert {(n.pitch, n.onset, n.offset) for n in from_midi(midi)} == {
        (60, 0.0, 1.0),
        (60, 0.5, 1.0),
        (61, 0.5, 1.0),
        (50, 0.0, 10.0),
    }


def test_programs_follow_channels_ports_and_time():
    midi = foreign(
        [program(5), program(6, channel=1), program(7, channel=9)],  # a setup track
        [on(60), off(60, 10), on(61, channel=1), off(61, 10, channel=1)],
        [program(20), on(62, 5), off(62, 10), program(21), on(63), off(63, 10)],
        [meta("midi_port", port=1), on(64, 40), off(64, 10), on(35, channel=9)],
        [on(36, 50, channel=9), off(36, 10, channel=9)],
    )
    assert {(n.pitch, n.program, n.is_drum) for n in from_midi(midi)} == {
        (60, 5, False),
        (61, 6, False),
        (62, 20, False),
        (63, 21, False),
        (64, 0, False),
        (35, 0, True),
        (36, 7, True),
    }


@pytest.mark.parametrize(("frames", "rate"), [(25, 25 * 40), (29, 30000 / 1001 * 40)])
def test_time_code_divisions(frames, rate):
    midi = foreign([on(60, 1000), off(60, 500)], division=-frames * 256 + 40)
    (note,) = from_midi(midi)
    assert (note.onset, note.offset) == pytest.approx((1000 / rate, 1500 / rate))


def test_files_without_a_common_clock_are_refused():
    with pytest.raises(OptionError, match="type 2"):
        from_midi(foreign([], kind=2))
    with pytest.raises(OptionError, match="no time division"):
        from_midi(foreign([], division=0))
