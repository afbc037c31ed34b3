"""How other programs read a MIDI file: each as a function from its path to notes.

What players hear is `ignoring_ports`; the others are libraries that people load transcriptions
with.  All of them state the notes as `Note`, with drums as programs of their kits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import mido

from mt3_runtime.files.midi import from_midi
from mt3_runtime.notes.note import Note
from tests import needs


def ignoring_ports(path: Path) -> list[Note]:
    """As fluidsynth and most players: 16 channels, and a note-off ends all notes of its key."""
    now, programs, notes = 0.0, {}, []
    sounding: defaultdict[tuple[int, int], list[Note]] = defaultdict(list)
    for message in mido.MidiFile(path):  # mido merges the tracks and turns ticks into seconds
        now += message.time
        if message.type == "program_change":
            programs[message.channel] = message.program
        elif message.type in ("note_on", "note_off"):
            channel, pitch = message.channel, message.note
            program = programs.get(channel, 0)
            if message.type == "note_on" and message.velocity:
                note = Note(now, now, pitch, message.velocity, program, channel == 9)
                sounding[channel, pitch].append(note)
            else:
                ended = sounding.pop((channel, pitch), [])
                notes += [_lasting(note, now) for note in ended]
    assert not any(sounding.values())
    return notes


def _lasting(note: Note, end: float) -> Note:
    return Note(note.onset, end, note.pitch, note.velocity, note.program, note.is_drum)


def by_mido(path: Path) -> list[Note]:
    """Track by track: a program holds for a channel of its own track only."""
    midi, notes = mido.MidiFile(path), []
    for track in midi.tracks:
        alone = mido.MidiFile(ticks_per_beat=midi.ticks_per_beat)
        alone.tracks = [midi.tracks[0], track]
        notes += from_midi(alone)
    return notes


def by_pretty_midi(path: Path) -> list[Note]:
    pretty_midi = needs.package("pretty_midi")
    return [
        Note(n.start, n.end, n.pitch, n.velocity, part.program, part.is_drum)
        for part in pretty_midi.PrettyMIDI(str(path)).instruments
        for n in part.notes
    ]


def by_miditoolkit(path: Path) -> list[Note]:
    miditoolkit = needs.package("miditoolkit")
    midi = miditoolkit.MidiFile(str(path))
    seconds = midi.get_tick_to_time_mapping()
    return [
        Note(seconds[n.start], seconds[n.end], n.pitch, n.velocity, part.program, part.is_drum)
        for part in midi.instruments
        for n in part.notes
    ]


def by_symusic(path: Path) -> list[Note]:
    symusic = needs.package("symusic")
    return [
        Note(n.start, n.end, n.pitch, n.velocity, part.program, part.is_drum)
        for part in symusic.Score(str(path), ttype="second").tracks
        for n in part.notes
    ]


def by_partitura(path: Path) -> list[Note]:
    partitura = needs.package("partitura", "midi-readers")
    notes = []
    for part in partitura.load_performance_midi(str(path)):
        changes = sorted(part.programs, key=lambda change: change["time"])
        for n in part.notes:
            places = (n["track"], n["channel"])
            # Of one tick, the changes come first.
            held = [
                c["program"]
                for c in changes
                if (c["track"], c["channel"]) == places and c["time"] <= n["note_on"] + 1e-9
            ]
            sound = (n["midi_pitch"], n["velocity"], held[-1], n["channel"] == 9)
            notes.append(Note(n["note_on"], n["note_off"], *sound))
    return notes


def by_music21(path: Path) -> list[Note]:
    music21 = needs.package("music21", "midi-readers")
    reader = music21.midi.MidiFile()
    reader.open(str(path))
    reader.read()
    reader.close()
    rate, notes = reader.ticksPerQuarterNote * 2, []  # our files have 120 quarters per minute
    for track in reader.tracks:
        now, programs, sounding = 0, {}, defaultdict(list)
        for event in track.events:
            if event.isDeltaTime():
                now += event.time
            elif event.type == music21.midi.ChannelVoiceMessages.PROGRAM_CHANGE:
                programs[event.channel] = event.data
            elif event.isNoteOn():
                sounding[event.channel, event.pitch].append((now, event.velocity))
            elif event.isNoteOff():
                start, velocity = sounding[event.channel, event.pitch].pop(0)
                sound = (event.pitch, velocity, programs[event.channel], event.channel == 10)
                notes.append(Note(start / rate, now / rate, *sound))
    return notes


READERS: dict[str, Callable[[Path], list[Note]]] = {
    "mido": by_mido,
    "pretty_midi": by_pretty_midi,
    "miditoolkit": by_miditoolkit,
    "symusic": by_symusic,
    "partitura": by_partitura,
    "music21": by_music21,
}
