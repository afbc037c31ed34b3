"""Assignment of MIDI tracks, channels, ports and program changes to notes.

Contract: every note is heard with its program, also where *MIDI port* messages are ignored, which
most players do.

* A track holds one program, or drums, and no two overlapping notes of equal pitch: those go to
  further tracks, called layers.
* Up to 15 melodic tracks have a channel each, and one program change, at their beginning.
* More of them share the 15 channels.  A track keeps its channel while it sounds.  One that needs a
  channel gets the one that has been silent for longest, so that the release of what sounded there
  is over, and a program change comes directly before its note.
* Only notes that find all 15 channels sounding go to further ports.
* All drums are on channel 9 (10 if counted from one): layers as well, since drums ring out whenever
  their note-offs come, and kits, with program changes between them.

Where notes and program changes fall on one tick, players take tracks in the order of the file; so
do all decisions here.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from mt3_runtime.errors import OptionError
from mt3_runtime.notes.note import Note

DRUM_CHANNEL = 9
MELODIC_CHANNELS = tuple(channel for channel in range(16) if channel != DRUM_CHANNEL)

MAX_PORTS = 256
"""Ports that a *MIDI port* message, of one byte, can tell apart."""

MAX_TRACKS = 65_535 - 1
"""Tracks that the header of a MIDI file can count, less the one for the tempo."""


@dataclass(slots=True)
class Span:
    """A note in ticks; ``channel`` is where it sounds."""

    start: int
    end: int
    pitch: int
    velocity: int
    channel: int = DRUM_CHANNEL


@dataclass(slots=True)
class Track:
    """Notes of one program that go to one track of a file.

    Attributes:
        layer: How many tracks of this program come before, for notes that overlap at equal pitch.
        is_drum: Whether these are drums.
        program: General MIDI program.
        port: 0, or that of notes beyond fifteen channels.
        spans: The notes, ordered by onset; none overlaps another of equal pitch.
        changes: Tick and channel of each program change, in order of time; the first is at tick 0.
    """

    layer: int
    is_drum: bool
    program: int
    port: int = 0
    spans: list[Span] = field(default_factory=list)
    changes: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class _Channel:
    """What sounds, or sounded last, on a channel.

    Attributes:
        number: 0..15.
        track: Number of the track that it belongs to; None at first.
        until: Tick at which it falls silent.
        last: By pitch, the last note and the number of its track.
    """

    number: int
    track: int | None = None
    until: int = -1
    last: dict[int, tuple[Span, int]] = field(default_factory=dict)

    def accepts(self, span: Span, track: int) -> bool:
        """Whether the last note of equal pitch ends before this one begins, for every player."""
        if span.pitch not in self.last:
            return True
        before, its_track = self.last[span.pitch]
        return (before.end, its_track) <= (span.start, track)

    def make_room(self, span: Span) -> bool:
        """End the last note of equal pitch a tick early, if it lasts more than one."""
        before, _ = self.last[span.pitch]
        if before.end - before.start == 1:
            return False
        before.end -= 1
        return True

    def take(self, span: Span, track: int) -> None:
        """Put a note on this channel."""
        span.channel = self.number
        self.track, self.until = track, max(self.until, span.end)
        self.last[span.pitch] = span, track


def assign_channels(ordered: Sequence[Note], ticks_per_second: float) -> list[Track]:
    """Distribute notes over tracks, channels and ports.

    Args:
        ordered: Valid notes (see `check_notes`), ordered by onset.
        ticks_per_second: Ticks of the file per second.

    Returns:
        The tracks in the order of the file.  Times are rounded to ticks; a note lasts one at least.
        Where all 15 channels change hands at one tick, a note may end a tick early so that its
        note-off does not end its successor.

    Raises:
        OptionError: More notes sound at once than the ports or tracks of a file can hold.
    """
    tracks = _layers(ordered, ticks_per_second)
    melodic = [track for track in tracks if not track.is_drum]
    if len(melodic) <= len(MELODIC_CHANNELS):
        for track, channel in zip(melodic, MELODIC_CHANNELS, strict=False):
            for span in track.spans:
                span.channel = channel
    else:
        tracks += _further_ports(melodic, _share_channels(melodic))
        tracks = [track for track in tracks if track.spans]
    if len(tracks) > MAX_TRACKS or any(track.port >= MAX_PORTS for track in tracks):
        raise OptionError(
            f"{len(tracks)} tracks of programs and overlapping layers need more than the "
            f"{MAX_PORTS} ports or {MAX_TRACKS + 1} tracks of a MIDI file; write json, jsonl or "
            "csv, or remove duplicate notes"
        )
    _place_changes(tracks)
    return tracks


def _layers(ordered: Sequence[Note], ticks_per_second: float) -> list[Track]:
    """Tracks in which equal pitches never overlap."""
    tracks: dict[tuple[int, bool, int], Track] = {}
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
        key = (layer, note.is_drum, note.program)
        if key not in tracks:
            tracks[key] = Track(*key)
        velocity = min(max(note.velocity, 1), 127)
        tracks[key].spans.append(Span(start, end, note.pitch, velocity))
    return [tracks[key] for key in sorted(tracks)]


def _share_channels(tracks: Sequence[Track]) -> dict[int, list[Span]]:
    """Give notes the channels of one port; those for which there is none, by number of track."""
    channels = [_Channel(number) for number in MELODIC_CHANNELS]
    rest: defaultdict[int, list[Span]] = defaultdict(list)
    for _, group in groupby(_in_order(tracks), key=lambda item: item[0]):
        # Tracks that have a channel go first, so that no other takes it from them.
        having = {channel.track for channel in channels}
        for _, track, span in sorted(group, key=lambda item: item[1] not in having):
            channel = _find_channel(channels, span, track)
            if channel is None:
                rest[track].append(span)
            else:
                channel.take(span, track)
    for track, spans in rest.items():
        moved = set(map(id, spans))
        tracks[track].spans = [span for span in tracks[track].spans if id(span) not in moved]
    return rest


def _find_channel(channels: Sequence[_Channel], span: Span, track: int) -> _Channel | None:
    """The track's own channel, or the one that has been silent for longest."""
    own = next((channel for channel in channels if channel.track == track), None)
    if own and (own.accepts(span, track) or own.make_room(span)):
        return own
    silent = [channel for channel in channels if channel.until <= span.start]
    if free := [channel for channel in silent if channel.accepts(span, track)]:
        return min(free, key=lambda channel: channel.until)
    # Each ends this pitch at this tick in a later track, so behind the new note-on.
    return next((channel for channel in silent if channel.make_room(span)), None)


def _further_ports(tracks: Sequence[Track], rest: dict[int, list[Span]]) -> list[Track]:
    """Tracks for notes that found no channel, each with a channel of its own."""
    result = []
    for place, number in enumerate(sorted(rest)):
        port, index = divmod(place, len(MELODIC_CHANNELS))
        for span in rest[number]:
            span.channel = MELODIC_CHANNELS[index]
        track = tracks[number]
        result.append(Track(track.layer, track.is_drum, track.program, port + 1, rest[number]))
    return result


def _place_changes(tracks: Sequence[Track]) -> None:
    """Set the program at the start of each track, and before notes that would have another.

    Three listeners must be right: one that ignores ports, one that honours them, and one that goes
    by tracks.
    """
    programs: dict[tuple[str, int, int], int] = {}
    for tick, number, span in _in_order(tracks, heads=True):
        track, channel = tracks[number], span.channel
        heard = (("all", 0, channel), ("port", track.port, channel), ("track", number, channel))
        if not track.changes or any(programs.get(key) != track.program for key in heard):
            track.changes.append((tick, channel))
            programs.update(dict.fromkeys(heard, track.program))


def _in_order(tracks: Sequence[Track], *, heads: bool = False) -> Iterator[tuple[int, int, Span]]:
    """Onset, number of track and note, as a player meets them; ``heads``: first notes at 0 too."""
    events = []
    for number, track in enumerate(tracks):
        if heads:
            events.append((0, number, track.spans[0]))
        events += [(span.start, number, span) for span in track.spans]
    return iter(sorted(events, key=lambda event: event[:2]))
