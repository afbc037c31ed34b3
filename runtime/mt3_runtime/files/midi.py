"""Reads and writes standard MIDI files: tracks, channels, program changes, percussion.

Contract: every note survives.  What is written and read back has the same pitches, velocities,
programs and drum flags, and times within half a tick (0.104 ms at the default tempo).  Three rules
make that true:

* Ticks are rounded from absolute times, once; deltas are differences of ticks.  Rounding deltas
  instead, as some writers do, adds up to tens of milliseconds within half a minute.
* Every note is heard with its program: 15 channels are shared in time (`channels`), and
  further ports (*MIDI port* messages) are used for notes beyond 15 sounding channels only.
* No melodic channel of a port ever sounds one pitch twice at a time, because its note-offs could
  not be told apart.  Overlapping notes of equal pitch and program go to further tracks and
  channels, called layers here.

Notes are in seconds, so the tempo decides only where ticks fall.  No bars, metre or beats are
written: the transcription does not know them.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

import mido

from mt3_runtime.arguments.argument_checks import as_number, refused
from mt3_runtime.errors import MidiWarning, OptionError
from mt3_runtime.files.channels import DRUM_CHANNEL, Track, assign_channels
from mt3_runtime.files.midi_reader import PEDALS
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


class PedalChange(NamedTuple):
    """A movement of a pedal.

    Attributes:
        time: [s].
        channel: 0..15.
        control: 64 sustain, 66 sostenuto, 67 soft.
        value: 0 (up) to 127.
    """

    time: float
    channel: int
    control: int
    value: int


_Key = tuple[int, int, int, int]  # track, port, channel, pitch
_ORDER = attrgetter("onset", "offset", "pitch", "velocity", "program", "is_drum")


def to_midi(notes: Iterable[Note], *, tempo: float = 120.0) -> mido.MidiFile:
    """Write notes as a type 1 MIDI file: a tempo track, then one track per program and layer.

    Warns (`MidiWarning`) where more notes sound at once than 15 channels can hold.

    Args:
        notes: In any order; the file does not depend on it.
        tempo: Quarters per minute, 20..400.  Changes the ticks, not the times.

    Returns:
        The file; equal notes give equal bytes.  Velocities are clamped to 1..127, notes last at
        least one tick.

    Raises:
        OptionError: A note is not valid (see `check_notes`), the tempo is out of range, a time
            lies beyond what a MIDI file can express (more than a day), or more notes sound at once
            than it can hold.
    """
    quarter_us, resolution, tracks = _plan(notes, tempo)
    if message := _port_message(tracks, resolution * 1e6 / quarter_us):
        warnings.warn(message, MidiWarning, stacklevel=2)
    midi = mido.MidiFile(type=1, ticks_per_beat=resolution)
    head = midi.add_track(name="mt3-runtime")
    head.append(mido.MetaMessage("set_tempo", tempo=quarter_us))
    several_ports = any(track.port for track in tracks)
    for planned in tracks:
        track = midi.add_track()
        if several_ports:
            track.append(mido.MetaMessage("midi_port", port=planned.port))
        _fill(track, planned)
    for track in midi.tracks:
        track.append(mido.MetaMessage("end_of_track"))
    return midi


def port_warning(notes: Iterable[Note]) -> str | None:
    """What `to_midi` warns of: notes on further ports, which most players ignore; None for none.

    Notes that cannot be written are `to_midi`'s to refuse.
    """
    with suppress(OptionError):
        quarter_us, resolution, tracks = _plan(notes, 120.0)
        return _port_message(tracks, resolution * 1e6 / quarter_us)
    return None


def _plan(notes: Iterable[Note], tempo: float) -> tuple[int, int, list[Track]]:
    """Microseconds per quarter, ticks per quarter, and the tracks of a file."""
    ordered = sorted(check_notes(notes), key=_ORDER)
    expected = f"{MIN_TEMPO:g}..{MAX_TEMPO:g} bpm"
    if not MIN_TEMPO <= as_number("tempo", tempo, expected) <= MAX_TEMPO:
        raise refused("tempo", tempo, expected)
    # The file stores whole microseconds per quarter, so ticks must follow the rounded value:
    # at 130 bpm the difference would be 3.6 ms per hour.
    quarter_us = round(60e6 / tempo)
    end = max((note.offset for note in ordered), default=0.0)
    resolution = _resolution(quarter_us, end)
    return quarter_us, resolution, assign_channels(ordered, resolution * 1e6 / quarter_us)


def _port_message(tracks: Sequence[Track], ticks_per_second: float) -> str | None:
    spans = [span for track in tracks if track.port for span in track.spans]
    if not spans:
        return None
    first = min(span.start for span in spans) / ticks_per_second
    return (
        f"more than 15 instruments, or overlapping notes of equal pitch, sound at once from "
        f"{first:.2f} s on: notes on further MIDI ports, which most players ignore and may end "
        f"wrongly: {len(spans)}. Allow fewer instruments, or write stems"
    )


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


def _fill(track: mido.MidiTrack, planned: Track) -> None:
    name = instrument_name(planned.program, is_drum=planned.is_drum)
    layer = f" ({planned.layer + 1})" if planned.layer else ""
    track.append(mido.MetaMessage("track_name", name=name + layer))
    # At equal ticks: offs (0), program changes (1), ons (2), each by pitch.
    events = sorted(
        chain(
            ((span.end, 0, span.pitch, 0, span.channel) for span in planned.spans),
            ((tick, 1, 0, 0, channel) for tick, channel in planned.changes),
            ((span.start, 2, span.pitch, span.velocity, span.channel) for span in planned.spans),
        )
    )
    now = 0
    for tick, kind, pitch, velocity, channel in events:
        what = {"program": planned.program} if kind == 1 else {"note": pitch, "velocity": velocity}
        track.append(
            mido.Message(
                ("note_off", "program_change", "note_on")[kind],
                skip_checks=True,  # all values are in range by now; checking costs half the time
                channel=channel,
                time=tick - now,
                **what,
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
    _check_kind(midi)
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


def pedals_from_midi(midi: mido.MidiFile) -> list[PedalChange]:
    """Read the pedal movements of a MIDI file: control changes 64, 66 and 67, by time.

    Args:
        midi: As `mt3_runtime.files.midi_reader.read_midi` gives it, of type 0 or 1.

    Raises:
        OptionError: Type 2 (independent patterns without a common time), or no time division.
    """
    _check_kind(midi)
    tracks = [_with_ticks(track) for track in midi.tracks]
    seconds = _clock(midi.ticks_per_beat, tracks)
    found = [
        (tick, PedalChange(seconds(tick), message.channel, message.control, message.value))
        for track in tracks
        for tick, _, message in track
        if message.type == "control_change" and message.control in PEDALS
    ]
    found.sort(key=lambda item: item[0])  # stable: of one tick the last one holds
    return [change for _, change in found]


def _check_kind(midi: object) -> None:
    if not isinstance(midi, mido.MidiFile):
        raise refused("midi", midi, "a mido.MidiFile; a path is for load_notes")
    if midi.type == 2:
        raise OptionError("a MIDI file of type 2 holds independent patterns; expected type 0 or 1")


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
