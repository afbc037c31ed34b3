"""Reads and writes standard MIDI files: tracks, channels, program changes, percussion.

Contract: every note survives.  What is written and read back has the same pitches, velocities,
programs and drum flags, and times within half a tick (0.104 ms at the default tempo).  Three rules
make that true:

* Ticks are rounded from absolute times, once; deltas are differences of ticks.  Rounding deltas
  instead, as some writers do, adds up to tens of milliseconds within half a minute.
* No channel of a port ever carries two programs.  A port has 15 melodic channels and one for drums;
  more programs than that go to the next port (a *MIDI port* message opens such a track).
* No channel ever sounds one pitch twice at a time, because its note-offs could not be told apart.
  Overlapping notes of equal pitch and program go to further channels, called layers here.

Notes are in seconds, so the tempo decides only where ticks fall.  No bars, metre or beats are
written: the transcription does not know them.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import attrgetter

import mido

from mt3_runtime.errors import OptionError
from mt3_runtime.notes.instruments import instrument_name
from mt3_runtime.notes.note import Note, check_notes

RESOLUTION = 2400
"""Ticks per quarter.  At 120 bpm 10 ms (one model step) are exactly 48 ticks; divisible by 480."""

MAX_TICK = 10_000_000 - 1
"""Last tick to use if possible: pretty_midi, the most used reader, refuses longer files."""

MAX_DELTA = 2**28 - 1
"""Largest number of ticks that one delta time of a MIDI file can hold."""

MIN_TEMPO, MAX_TEMPO = 20.0, 400.0
"""Range of tempi, in quarters per minute, for which the time error is kept below `MAX_ERROR`."""

MAX_ERROR = 0.0005
"""Largest rounding error of a time, in seconds, at any tempo and length."""

DEFAULT_TEMPO_US = 500_000
"""Microseconds per quarter where a file does not say (120 bpm, by the MIDI standard)."""

DRUM_CHANNEL = 9
MELODIC_CHANNELS = tuple(channel for channel in range(16) if channel != DRUM_CHANNEL)

_Span = tuple[int, int, int, int]  # onset tick, offset tick, pitch, velocity
_TrackKey = tuple[int, bool, int]  # layer, is_drum, program
_Key = tuple[int, int, int, int]  # track, port, channel, pitch
_ORDER = attrgetter("onset", "offset", "pitch", "velocity", "program", "is_drum")


def to_midi(notes: Iterable[Note], *, tempo: float = 120.0) -> mido.MidiFile:
    """Write notes as a type 1 MIDI file: a tempo track, then one track per program and layer.

    Args:
        notes: In any order; the file does not depend on it.
        tempo: Quarters per minute, 20..400.  Changes the ticks, not the times.

    Returns:
        The file; equal notes give equal bytes.  Velocities are clamped to 1..127, notes last at
        least one tick.

    Raises:
        OptionError: A note is not valid (see `check_notes`), the tempo is out of range, or a time
            lies beyond what a MIDI file can express (more than a day).
    """
    ordered = sorted(notes, key=_ORDER)
    check_notes(ordered)
    if not MIN_TEMPO <= tempo <= MAX_TEMPO:
        raise OptionError(f"tempo is {tempo}, expected {MIN_TEMPO:g}..{MAX_TEMPO:g} bpm")
    # The file stores whole microseconds per quarter, so ticks must follow the rounded value:
    # at 130 bpm the difference would be 3.6 ms per hour.
    quarter_us = round(60e6 / tempo)
    end = max((note.offset for note in ordered), default=0.0)
    resolution = _resolution(quarter_us, end)
    ticks_per_second = resolution * 1e6 / quarter_us

    midi = mido.MidiFile(type=1, ticks_per_beat=resolution)
    head = midi.add_track(name="mt3-runtime")
    head.append(mido.MetaMessage("set_tempo", tempo=quarter_us))
    tracks = sorted(_layers(ordered, ticks_per_second).items())
    channels = _assign_channels([key for key, _ in tracks])
    several_ports = any(port for port, _ in channels)
    for (key, spans), (port, channel) in zip(tracks, channels, strict=True):
        track = midi.add_track()
        if several_ports:
            track.append(mido.MetaMessage("midi_port", port=port))
        _fill(track, key, spans, channel)
    for track in midi.tracks:
        track.append(mido.MetaMessage("end_of_track"))
    return midi


def _resolution(quarter_us: int, end: float) -> int:
    """Ticks per quarter: `RESOLUTION`, doubled for very slow tempi, halved for very long files.

    Finer than `MAX_ERROR` demands in any case; below `MAX_TICK` where both can be had.
    """
    fine_enough = [
        candidate
        for candidate in (RESOLUTION, RESOLUTION // 2, RESOLUTION // 4, RESOLUTION // 8)
        if quarter_us / candidate / 2 <= MAX_ERROR * 1e6
    ] or [2 * RESOLUTION]
    ticks = {candidate: end * 1e6 / quarter_us * candidate for candidate in fine_enough}
    shortest = ticks[fine_enough[-1]]
    if shortest > MAX_DELTA - 1:
        raise OptionError(
            f"a note ends at {end} s, later than a MIDI file can express; expected seconds"
        )
    return next((c for c in fine_enough if ticks[c] < MAX_TICK), fine_enough[-1])


def _layers(
    ordered: Sequence[Note], ticks_per_second: float
) -> defaultdict[_TrackKey, list[_Span]]:
    """Distribute notes, sorted by onset, over tracks in which equal pitches never overlap."""
    tracks: defaultdict[_TrackKey, list[_Span]] = defaultdict(list)
    # Per program and pitch: layers by the tick at which they end, and layers free again by number.
    sounding: defaultdict[tuple[int, bool, int], list[tuple[int, int]]] = defaultdict(list)
    free: defaultdict[tuple[int, bool, int], list[int]] = defaultdict(list)
    for note in ordered:
        start = round(note.onset * ticks_per_second)
        end = max(round(note.offset * ticks_per_second), start + 1)
        voice = (note.program, note.is_drum, note.pitch)
        ends, gaps = sounding[voice], free[voice]
        while ends and ends[0][0] <= start:
            heapq.heappush(gaps, heapq.heappop(ends)[1])
        layer = heapq.heappop(gaps) if gaps else len(ends)
        heapq.heappush(ends, (end, layer))
        velocity = min(max(note.velocity, 1), 127)
        tracks[layer, note.is_drum, note.program].append((start, end, note.pitch, velocity))
    return tracks


def _assign_channels(keys: Sequence[_TrackKey]) -> list[tuple[int, int]]:
    """Port and channel of each track; drums always on channel 9, the others never."""
    drums = melodic = 0
    result = []
    for _, is_drum, _ in keys:
        if is_drum:
            result.append((drums, DRUM_CHANNEL))
            drums += 1
        else:
            port, index = divmod(melodic, len(MELODIC_CHANNELS))
            result.append((port, MELODIC_CHANNELS[index]))
            melodic += 1
    if max(drums - 1, (melodic - 1) // len(MELODIC_CHANNELS)) > 255:
        raise OptionError(
            f"{len(keys)} programs and overlapping layers need more than the 256 ports of a MIDI "
            "file; write json, jsonl or csv, or remove duplicate notes"
        )
    return result


def _fill(track: mido.MidiTrack, key: _TrackKey, spans: Sequence[_Span], channel: int) -> None:
    layer, is_drum, program = key
    name = instrument_name(program, is_drum=is_drum) + (f" ({layer + 1})" if layer else "")
    track.append(mido.MetaMessage("track_name", name=name))
    track.append(mido.Message("program_change", channel=channel, program=program))
    # At equal ticks: offs (0) before ons (1), then by pitch.
    events = sorted(
        chain(
            ((start, 1, pitch, velocity) for start, _, pitch, velocity in spans),
            ((end, 0, pitch, 0) for _, end, pitch, _ in spans),
        )
    )
    now = 0
    for tick, is_on, pitch, velocity in events:
        track.append(
            mido.Message(
                "note_on" if is_on else "note_off",
                skip_checks=True,  # all values are in range by now; checking costs half the time
                channel=channel,
                note=pitch,
                velocity=velocity,
                time=tick - now,
            )
        )
        now = tick


def from_midi(midi: mido.MidiFile) -> list[Note]:
    """Read the notes of a MIDI file, also of files that other programs wrote.

    Tempo changes, ports and program changes are honoured; channel 9 of every port is drums; a
    note-on with velocity 0 is a note-off; overlapping equal pitches of a channel end in the order
    in which they began; notes that never end do so with their track.  A program change in the
    note's own track takes precedence over one elsewhere on the same port and channel.

    Args:
        midi: Type 0 or 1, with any time division.

    Returns:
        The notes, sorted by onset; confidences are 1.0.

    Raises:
        OptionError: Type 2 (independent patterns without a common time), or no time division.
    """
    if midi.type == 2:
        raise OptionError("a MIDI file of type 2 holds independent patterns; expected type 0 or 1")
    tracks = [_with_ticks(track) for track in midi.tracks]
    seconds = _clock(midi.ticks_per_beat, tracks)
    merged = [(tick, i, port, m) for i, track in enumerate(tracks) for tick, port, m in track]
    merged.sort(key=lambda item: item[0])  # stable: the order within a track stays
    programs: dict[tuple[int, int], int] = {}  # by port and channel
    own_programs: dict[tuple[int, int, int], int] = {}  # by track, port and channel
    sounding: defaultdict[_Key, deque[tuple[int, int, int]]] = defaultdict(deque)
    notes: list[Note] = []

    def close(key: _Key, tick: int) -> None:
        onset, velocity, program = sounding[key].popleft()
        times = seconds(onset), seconds(tick)
        notes.append(Note(*times, key[3], velocity, program, is_drum=key[2] == DRUM_CHANNEL))

    for tick, index, port, message in merged:
        if message.type == "program_change":
            programs[port, message.channel] = message.program
            own_programs[index, port, message.channel] = message.program
        elif message.type in ("note_on", "note_off"):
            channel = message.channel
            key = (index, port, channel, message.note)
            if message.type == "note_on" and message.velocity > 0:
                anywhere = programs.get((port, channel), 0)
                program = own_programs.get((index, port, channel), anywhere)
                sounding[key].append((tick, message.velocity, program))
            elif sounding[key]:
                close(key, tick)
    for key, unfinished in sounding.items():
        while unfinished:
            close(key, tracks[key[0]][-1][0])
    return sorted(notes)


def _with_ticks(track: mido.MidiTrack) -> list[tuple[int, int, mido.Message]]:
    """Absolute tick and port of every message of a track."""
    tick = port = 0
    result = []
    for message in track:
        tick += message.time
        if message.type == "midi_port":
            port = message.port
        result.append((tick, port, message))
    return result


def _clock(
    division: int, tracks: Sequence[Sequence[tuple[int, int, mido.Message]]]
) -> Callable[[int], float]:
    """The function from absolute ticks to seconds, from the tempo changes of all tracks."""
    if division == 0:
        raise OptionError("the MIDI file has no time division (0 ticks per quarter)")
    if division < 0:  # SMPTE: minus the frames per second (29 means 29.97), then ticks per frame
        frames, ticks = -(division >> 8), division & 0xFF
        rate = (30000 / 1001 if frames == 29 else frames) * max(ticks, 1)
        return lambda tick: tick / rate
    changes = sorted(
        (tick, message.tempo)
        for track in tracks
        for tick, _, message in track
        if message.type == "set_tempo"
    )
    starts, origins, tempi = [0], [0], [DEFAULT_TEMPO_US]
    for tick, tempo in changes:
        # Sums stay whole (microseconds times ticks per quarter), so nothing drifts.
        origins.append(origins[-1] + (tick - starts[-1]) * tempi[-1])
        starts.append(tick)
        tempi.append(tempo)

    def seconds(tick: int) -> float:
        index = bisect_right(starts, tick) - 1
        return (origins[index] + (tick - starts[index]) * tempi[index]) / (1e6 * division)

    return seconds
