"""MIDI files play the same everywhere: also where ports are ignored, and by whichever reader."""

from __future__ import annotations

import hashlib
import io
import subprocess
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import mido
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.commands.jobs import Job, Result
from mt3_runtime.commands.results import tell_warnings, write
from mt3_runtime.errors import MidiWarning, OptionError
from mt3_runtime.files.channels import assign_channels
from mt3_runtime.files.midi import from_midi, port_warning, to_midi
from mt3_runtime.notes.note import Note
from mt3_runtime.transcription import Transcription
from tests import needs
from tests.runtime.midi_readers import READERS, ignoring_ports

TICK = 1 / 4800
"""Seconds per tick at the default tempo."""

NEARLY = 1.51 * TICK
"""A rounding of half a tick, and the one tick that a note may end early."""


def saved(notes: list[Note], path: Path) -> Path:
    """A file that is known to need no further ports."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        midi = to_midi(notes)
    assert not ports(midi)
    midi.save(path)
    return path


def ports(midi: mido.MidiFile) -> set[int]:
    return {m.port for track in midi.tracks for m in track if m.type == "midi_port"}


def kind(note: Note) -> tuple[int, int, int, bool]:
    return note.pitch, note.velocity, note.program, note.is_drum


def assert_heard(found: list[Note], expected: list[Note], *, tolerance: float = NEARLY) -> None:
    """The same notes; times may be rounded."""
    assert Counter(map(kind, found)) == Counter(map(kind, expected))
    for side in (lambda note: note.onset, lambda note: note.offset):
        times = [sorted((kind(note), side(note)) for note in notes) for notes in (found, expected)]
        errors = [abs(a[1] - b[1]) for a, b in zip(*times, strict=True)]
        assert max(errors, default=0.0) <= tolerance


def in_a_row(programs: list[int], *, length: float = 0.4, gap: float = 0.0) -> list[Note]:
    """One note of each program after the other, from half a second on."""
    step = length + gap
    return [
        Note(0.5 + i * step, 0.5 + i * step + length, 60, 70, p) for i, p in enumerate(programs)
    ]


def chords(*orders: list[int], pitch: int = 60) -> list[Note]:
    """One note of every program of an order at once; the orders one after the other, gapless."""
    return [
        Note(0.5 + i, 1.5 + i, pitch, 70, program)
        for i, programs in enumerate(orders)
        for program in programs
    ]


LOW, HIGH = list(range(15)), list(range(113, 128))

PIECES = {
    "a held piano, then fifteen others": [
        Note(0.5, 5.5, 48, 110, 0),
        *in_a_row([8 * i for i in range(1, 15)] + [123], length=0.1, gap=6.0),
    ],
    "all programs, falling and without a gap": in_a_row(list(range(127, -1, -1))),
    "all programs twice, half of the time over each other": [
        Note(0.3 * i, 0.3 * i + 2.0, 60 + i % 7, 80, 37 * i % 128) for i in range(256)
    ],
    "fifteen programs hand over to fifteen others at one tick": chords(HIGH, LOW, HIGH, LOW),
    "the same with other pitches": chords(HIGH, LOW, HIGH) + chords(HIGH, LOW, HIGH, pitch=64),
    "a melody over a bass that never rests": [
        Note(0.0, 60.0, 36, 90, 33),
        *in_a_row([p for p in range(128) if p != 33] * 2, length=0.2),
    ],
    "three layers of every program": [
        Note(i + j * 0.1, i + 0.9, 60, 50 + j, 7 * i) for i in range(12) for j in range(3)
    ],
    "seventeen layers, never more than two at once": [
        Note(0.2 + i * 0.5, 0.9 + i * 0.5, 60, 70, i % 9) for i in range(40)
    ],
    "drum kits in turns, over sixteen programs": in_a_row(list(range(16)), length=0.1)
    + [Note(0.55 + 0.1 * i, 0.58 + 0.1 * i, 36, 90, 8 * (i % 5), is_drum=True) for i in range(20)],
}


@pytest.mark.parametrize("name", PIECES)
def test_players_that_ignore_ports_hear_every_note_with_its_program(name, tmp_path):
    path = saved(PIECES[name], tmp_path / "song.mid")
    assert_heard(ignoring_ports(path), PIECES[name])
    assert_heard(from_midi(mido.MidiFile(path)), PIECES[name])


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("reader", READERS)
def test_readers_get_every_note_with_its_program(name, reader, tmp_path):
    path = saved(PIECES[name], tmp_path / "song.mid")
    assert_heard(READERS[reader](path), PIECES[name])


@pytest.mark.parametrize("reader", READERS)
def test_readers_get_every_note_of_more_programs_than_channels(reader, tmp_path):
    notes = [Note(0.1 * i, 0.1 * i + 1, 60 + i % 3, 9, p) for i in range(12) for p in range(40)]
    with pytest.warns(MidiWarning):
        to_midi(notes).save(tmp_path / "song.mid")
    assert_heard(READERS[reader](tmp_path / "song.mid"), notes)


def at_once(notes: list[Note]) -> int:
    """Largest number of melodic tracks (programs and layers) that sound at once, in ticks."""
    tracks = [t for t in assign_channels(sorted(notes), 1 / TICK) if not t.is_drum]
    spans: defaultdict[tuple[int, int], list] = defaultdict(list)
    for track in tracks:
        spans[track.program, track.layer] += track.spans
    edges: Counter[tuple[int, int]] = Counter()
    for members in spans.values():
        ends = -1
        for span in sorted(members, key=lambda span: span.start):
            if span.start > ends:
                edges[span.start, 1] += 1
                edges[ends, 0] -= ends >= 0
            ends = max(ends, span.end)
        edges[ends, 0] -= 1
    most = now = 0
    for _, change in sorted(edges.items()):
        now += change
        most = max(most, now)
    return most


NOTES = st.builds(
    lambda start, length, pitch, program, is_drum: Note(
        start / 20, (start + length) / 20, pitch, 64, program, is_drum
    ),
    st.integers(1, 200),
    st.integers(1, 12),
    st.sampled_from([60, 61, 64]) | st.integers(0, 127),
    st.integers(0, 127),
    st.sampled_from([False] * 7 + [True]),
)


@settings(max_examples=150, deadline=None)
@given(notes=st.lists(NOTES, min_size=16, max_size=200))
def test_any_notes_are_heard_where_ports_are_ignored(notes, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "song.mid"
    if at_once(notes) <= 15:
        assert port_warning(notes) is None
        saved(notes, path)
        melodic = [note for note in notes if not note.is_drum]
        assert_heard([n for n in ignoring_ports(path) if not n.is_drum], melodic)
    else:
        with pytest.warns(MidiWarning):
            to_midi(notes).save(path)
    # Which program a note begins with is right in any case; who ends it is the ports' business.
    heard = ignoring_ports(path)
    assert Counter(map(kind, heard)) == Counter(map(kind, notes))
    assert_heard(from_midi(mido.MidiFile(path)), notes)


def test_a_track_keeps_its_channel_until_another_needs_it(tmp_path):
    notes = in_a_row([5, 6, 5, 7, 5, 6, *range(10, 22)], gap=0.1)
    tracks = assign_channels(notes, 1 / TICK)
    assert len(tracks) == 15
    assert all(len({span.channel for span in track.spans}) == 1 for track in tracks)
    # One program more: the channel that has been silent for longest is 7's, as 5 and 6 came back.
    more = [*notes, Note(20.0, 21.0, 60, 70, 22)]
    by_program = {track.program: track for track in assign_channels(more, 1 / TICK)}
    assert by_program[22].spans[0].channel == by_program[7].spans[0].channel
    assert by_program[22].changes[-1] == (20 * 4800, by_program[22].spans[0].channel)
    assert_heard(ignoring_ports(saved(more, tmp_path / "a.mid")), more)


def test_a_channel_that_just_fell_silent_is_left_to_ring():
    """Releases last long; so of a long piece, no channel is taken within seconds of its end."""
    notes = in_a_row([i * 5 % 128 for i in range(300)], length=0.2)
    ends: dict[int, tuple[int, int]] = {}
    spans = sorted(
        (span.start, span.end, span.channel, track.program)
        for track in assign_channels(notes, 1 / TICK)
        for span in track.spans
    )
    for start, end, channel, program in spans:
        before, owner = ends.get(channel, (start - 4800 * 60, program))
        assert owner == program or start - before >= 14 * 0.2 * 4800 - 1
        ends[channel] = end, program


def test_tracks_begin_with_a_name_and_a_program():
    for notes in PIECES.values():
        for track in to_midi(notes).tracks[1:]:
            assert [message.type for message in track[:2]] == ["track_name", "program_change"]
            assert len({m.program for m in track if m.type == "program_change"}) == 1


def test_up_to_fifteen_tracks_files_are_what_they_were():
    """SHA-256 of files that were written when every program had a channel to itself."""
    digest = hashlib.sha256()
    for case in range(40):
        kinds = [(case * i * 11 % 15 * 8, i % 4 == 3) for i in range(3 * case)]
        notes = [
            Note(i / 10, i / 10 + i % 5 / 10, 40 + i % 6, 1 + i % 127, 0 if drum else program, drum)
            for i, (program, drum) in enumerate(kinds)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            buffer = io.BytesIO()
            to_midi(notes, tempo=100.0 + case).save(file=buffer)
        digest.update(buffer.getvalue())
    assert digest.hexdigest() == "d11251d5a9687214e10a16249048abf960ba7a8422e6ff5ffb6b01174749c629"


# --- too many at once ----------------------------------------------------------------------------


def test_only_what_finds_no_channel_goes_to_a_further_port():
    notes = [Note(1.0, 2.0, 60, 100, program) for program in range(17)]
    notes += [Note(3.0, 4.0, 60, 100, program) for program in (15, 16)]
    with pytest.warns(MidiWarning, match=r"from 1\.00 s on: .*: 2\. "):
        midi = to_midi(notes)
    assert ports(midi) == {0, 1}
    tracks = assign_channels(sorted(notes), 1 / TICK)
    assert [(t.program, t.port) for t in tracks if t.port] == [(15, 1), (16, 1)]
    assert all(len(track.spans) == 1 for track in tracks if track.port)
    assert from_midi(midi) == sorted(notes)


def test_a_crowded_moment_does_not_spoil_the_rest(tmp_path):
    """A player that ignores ports has every later note with its program again."""
    notes = [Note(1.0, 1.1, 60, 100, program) for program in range(128)]
    later = [Note(2.0 + i / 10, 2.05 + i / 10, 50, 100, i * 3 % 128) for i in range(200)]
    with pytest.warns(MidiWarning):
        to_midi(notes + later).save(tmp_path / "song.mid")
    heard = ignoring_ports(tmp_path / "song.mid")
    assert_heard([note for note in heard if note.pitch == 50], later)
    assert_heard(from_midi(mido.MidiFile(tmp_path / "song.mid")), notes + later)


@pytest.mark.parametrize("overlapping", [16, 40])
def test_transcriptions_warn_of_further_ports(overlapping):
    notes = tuple(Note(1.0, 2.0, 60, 100, 0) for _ in range(overlapping))
    result = Transcription(notes, (), 2.0, "model", "")
    (warning,) = result.warnings
    assert "most players ignore" in warning
    assert f": {overlapping - 15}. " in warning
    assert Transcription(notes[:15], (), 2.0, "model", "").warnings == []


def test_the_command_line_warns_of_the_files_that_it_writes(tmp_path, capsys):
    """Once, with the name; not of formats without channels, nor of stems with few instruments."""
    notes = tuple(Note(1.0, 2.0, 60, 100, program) for program in range(0, 128, 6))
    result = Transcription(notes, (), 2.0, "model", "", audio_warning="it is cut")
    midi, csv = (Result(name, str(tmp_path / f"song.{name}")) for name in ("midi", "csv"))
    stem = Result("midi", str(tmp_path / "song.bass.mid"), stem="bass")
    for some, said in (((midi, csv), 1), ((csv,), 0), ((stem,), 0)):
        write(result, Job(Path("song.wav"), some))
        tell_warnings(result, Path("song.wav"))
        lines = capsys.readouterr().err.splitlines()
        about_ports = [line for line in lines if "ports" in line]
        assert len(about_ports) == said
        assert all(line.startswith("mt3: warning: song.wav: more than 15") for line in about_ports)
        others = [line for line in lines if "ports" not in line]
        assert others == ["mt3: warning: song.wav: it is cut"]


def test_transcriptions_that_cannot_be_written_have_no_warning_about_ports():
    assert Transcription((Note(0.0, 1e308, 60, 100),), (), 2.0, "model", "").warnings == []


def test_more_than_a_midi_file_can_hold():
    with pytest.raises(OptionError, match="256 ports"):
        to_midi([Note(0, 1, 36, 100)] * (256 * 15 + 1))
    with pytest.raises(OptionError, match="65535 tracks"):
        to_midi([Note(0, 1, 36, 100, is_drum=True)] * 65_535)


# --- to the ear ----------------------------------------------------------------------------------


def soundfont() -> Path:
    pretty_midi = needs.package("pretty_midi")
    return Path(pretty_midi.__file__).parent / "TimGM6mb.sf2"


def rendered(player: str, path: Path) -> np.ndarray:
    """What a player makes of a file, without effects that mix the channels: float64 [n, 2]."""
    soundfile = needs.package("soundfile")
    wave, program = path.with_suffix(".wav"), needs.tool(player)
    if player == "fluidsynth":
        options = ["-niq", "-R0", "-C0", "-g0.1", "-r22050", "-F", str(wave), str(soundfont())]
    else:
        config = path.with_suffix(".cfg")
        config.write_text(f"soundfont {soundfont()}\n")
        off = ["-EFreverb=d", "-EFchorus=d", "-EFdelay=d", "-EFns=0", "--preserve-silence"]
        options = ["-c", str(config), "-Ow", "-s22050", "-A20", *off, "-o", str(wave)]
    subprocess.run([program, *options, str(path)], check=True, capture_output=True, timeout=300)
    return soundfile.read(wave, dtype="float64")[0]


@pytest.mark.parametrize(
    ("player", "name"),
    [
        ("fluidsynth", "a held piano, then fifteen others"),
        ("fluidsynth", "seventeen layers, never more than two at once"),
        ("timidity", "seventeen layers, never more than two at once"),
    ],
)
def test_a_piece_sounds_as_its_programs_do_one_by_one(player, name, tmp_path):
    """Without the changes of program, fluidsynth's correlation is 0.32; now 0.999."""
    notes = PIECES[name]
    whole = rendered(player, saved(notes, tmp_path / "whole.mid"))
    parts = [
        rendered(player, saved([n for n in notes if n.program == p], tmp_path / f"{p}.mid"))
        for p in sorted({note.program for note in notes})
    ]
    length = max(map(len, [whole, *parts]))
    sides = [np.pad(side, ((0, length - len(side)), (0, 0))) for side in (whole, *parts)]
    total = np.sum(sides[1:], axis=0)
    likeness = np.sum(sides[0] * total) / np.sqrt(np.sum(sides[0] ** 2) * np.sum(total**2))
    assert likeness > 0.99
