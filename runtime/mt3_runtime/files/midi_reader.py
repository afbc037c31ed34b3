"""Reading MIDI files of any origin: bytes -> `mido.MidiFile`.

Contract: no note is lost without a word, and no time is shifted.  What is not as the standard wants
it but can be understood is read: chunks of other kinds, a RIFF wrapper (RMID), wrong counts of
tracks and wrong lengths of chunks, tracks without an end, bytes behind them, meta messages of any
length.  Where notes may be missing a warning says so; everything else is one error.

Of the messages only those that say something about notes come back: notes, program changes, pedals,
ports, tempi, and the end of a track.  mido's own reader is not used, as it refuses most of the
above, reads no more tracks than the header counts, and takes no time for meta messages that it does
not know, so that all notes behind one come too early.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator

import mido

from mt3_runtime.arguments.argument_checks import as_bytes
from mt3_runtime.errors import MidiWarning, OptionError

HEADER, TRACK = b"MThd", b"MTrk"

PREFIX = 512
"""Bytes before the header that are passed over; MacBinary puts 128 there."""

MAX_DELTA_BYTES = 5
"""Longest variable-length number that is taken for one; the standard has 4."""

_DATA_BYTES = {
    **dict.fromkeys(range(0x80, 0xC0), 2),
    **dict.fromkeys(range(0xC0, 0xE0), 1),
    **dict.fromkeys(range(0xE0, 0xF0), 2),
    0xF1: 1,
    0xF2: 2,
    0xF3: 1,
    0xF6: 0,
    **dict.fromkeys((0xF8, 0xFA, 0xFB, 0xFC, 0xFE), 0),
}
"""Data bytes behind a status byte; from 0xF1 on such as have no place in a file, but occur."""

SUSTAIN, SOSTENUTO, SOFT = 64, 66, 67
PEDALS = (SUSTAIN, SOSTENUTO, SOFT)
"""Controllers of the pedals of a piano; other control changes are passed over."""

_SYSEX, _META = (0xF0, 0xF7), 0xFF
_PORT, _END, _TEMPO = 0x21, 0x2F, 0x51


class _BreakOffError(Exception):
    """There is no whole MIDI message at a position; the text says what there is."""


def read_midi(data: bytes) -> mido.MidiFile:
    """Read a MIDI file.

    Warns (`MidiWarning`) where the file may hold other notes than can be read.

    Args:
        data: The whole file.

    Returns:
        The file; times of messages are ticks since the one before.

    Raises:
        OptionError: It is no MIDI file, of type 2, cut off, or damaged where notes could be.
    """
    data = _unwrapped(as_bytes("data", data))
    place = data.find(HEADER, 0, PREFIX + len(HEADER))
    if HEADER.startswith(data) or 0 <= place > len(data) - 14:
        raise OptionError("not a readable MIDI file: it ends too early, within the header")
    if place < 0:
        raise OptionError("not a readable MIDI file: MThd not found, with which one begins")
    size, kind, count, division = struct.unpack_from(">LHHh", data, place + 4)
    if kind == 2:
        raise OptionError("a MIDI file of type 2 holds independent patterns; expected type 0 or 1")
    if kind > 2:
        raise OptionError(f"a MIDI file of the unknown type {kind}; expected type 0 or 1")
    midi = mido.MidiFile(type=kind, ticks_per_beat=division)
    for messages in _tracks(data, place + 8 + max(size, 6)):
        midi.tracks.append(messages)
    found = len(midi.tracks)
    if count and not found:
        raise OptionError(f"not a readable MIDI file: it ends too early, before its {count} tracks")
    if found < count:
        _warn(
            f"the MIDI file holds {found} tracks, but its header counts {count}: if it was cut "
            "off, notes are missing"
        )
    return midi


def _warn(message: str) -> None:
    warnings.warn(message, MidiWarning, stacklevel=4)


def _unwrapped(data: bytes) -> bytes:
    """The MIDI file inside a RIFF file of the form RMID; other data as they are."""
    if not data.startswith(b"RIFF"):
        return data
    if data[8:12] != b"RMID":
        form = data[8:12].decode("latin-1")
        raise OptionError(
            f"not a readable MIDI file: MThd not found, but a RIFF file of the form {form!r}"
        )
    place = 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if data.startswith(b"data", place):
            return data[place + 8 :]  # however long: the chunks inside say where they end
        place += 8 + size + size % 2
    raise OptionError("not a readable MIDI file: the RIFF file has no chunk of data")


def _tracks(data: bytes, place: int) -> Iterator[mido.MidiTrack]:
    """All tracks from a position on, whatever lies between them."""
    number = 0
    while 0 <= place < len(data):
        if data.startswith(TRACK, place):
            number += 1
            reader = _TrackReader(data, place)
            try:
                yield reader.read()
            except _BreakOffError as error:
                raise OptionError(
                    f"not a readable MIDI file: in track {number}, at byte {reader.place}, {error}"
                ) from error
            place = reader.place
        elif _is_chunk(data, place):
            place = _chunk_end(data, place)
        else:  # padding, or bytes that mean nothing
            place = data.find(TRACK, place + 1)


def _chunk_end(data: bytes, place: int) -> int:
    return place + 8 + int.from_bytes(data[place + 4 : place + 8], "big")


def _is_chunk(data: bytes, place: int) -> bool:
    """Whether a track, a whole chunk of another kind, or the end of the file is at a position."""
    if place == len(data) or data.startswith(TRACK, place):
        return True
    name, end = data[place : place + 4], _chunk_end(data, place)
    return place + 8 <= end <= len(data) and all(32 <= byte < 127 for byte in name)


class _TrackReader:
    """Reads one track.

    Args:
        data: The whole file.
        place: Where the track's header begins; while reading, the next byte.
    """

    def __init__(self, data: bytes, place: int) -> None:
        self.place = place + 8
        self._data = data
        self._end = _chunk_end(data, place)
        #: A length is believed if it leads to something.
        self._limit = self._end if _is_chunk(data, self._end) else len(data)
        self._messages = mido.MidiTrack()
        self._elapsed = 0
        self._status: int | None = None

    def read(self) -> mido.MidiTrack:
        """Read to the end of the track: where a message says so, or else its length.

        Raises:
            _BreakOffError: The track ends within a message, or there is none where one should be.
        """
        start, sure, ended = self.place, None, False
        while not self._is_over(ended=ended):
            if ended or self.place == self._end > start:
                # What comes before the next track may still be messages, or anything else.
                sure = self.place, len(self._messages), self._elapsed, ended
                if self._limit != self._end:
                    following = self._data.find(TRACK, self.place)
                    self._limit = len(self._data) if following < 0 else following
            try:
                ended = self._message()
            except _BreakOffError:
                if sure is None:
                    raise
                self.place, count, self._elapsed, was_ended = sure
                del self._messages[count:]
                if not was_ended:
                    _warn("bytes behind a track of a MIDI file are no messages; they are not read")
                break
        if self._elapsed:  # notes that were not ended last until here
            self._add(mido.MetaMessage, "end_of_track")
        return self._messages

    def _is_over(self, *, ended: bool) -> bool:
        if self.place == self._limit:
            return ended or self._end <= self._limit
        next_track = self._data.startswith(TRACK, self.place)
        if ended:
            return next_track or self.place >= self._end
        return next_track and self.place > self._end

    def _message(self) -> bool:
        """Read a message; returns whether it ends the track."""
        self._elapsed += self._number()
        status = self._byte()
        if status < 0x80:
            if self._status is None:
                raise _BreakOffError("there is data without a status byte")
            status, self.place = self._status, self.place - 1
        if status == _META:
            kind = self._byte()
            return self._meta(kind, self._bytes(self._number()))
        if status in _SYSEX:
            self._exclusive(self.place)
        elif status not in _DATA_BYTES:
            raise _BreakOffError(f"there is the undefined status byte 0x{status:02X}")
        else:
            # Data have seven bits; what has eight is taken for the largest value.
            data = [min(byte, 127) for byte in self._bytes(_DATA_BYTES[status])]
            if status < 0xF0:
                self._status = status  # which system messages leave as it is
                self._channel_message(status >> 4, status & 15, data)
        return False

    def _exclusive(self, start: int) -> None:
        """Pass over a system exclusive message; some writers leave its length out."""
        reason = None
        try:
            content = self._bytes(self._number())
            if content.isascii() or content.endswith(b"\xf7"):
                return
        except _BreakOffError as error:
            reason = error
        end = self._data.find(b"\xf7", start, self._limit)
        if end >= 0 and self._data[start:end].isascii():
            self.place = end + 1
        elif reason:
            raise reason

    def _channel_message(self, kind: int, channel: int, data: list[int]) -> None:
        if kind in (8, 9):
            name = "note_on" if kind == 9 else "note_off"
            self._add(mido.Message, name, channel=channel, note=data[0], velocity=data[1])
        elif kind == 11 and data[0] in PEDALS:
            values = {"control": data[0], "value": data[1]}
            self._add(mido.Message, "control_change", channel=channel, **values)
        elif kind == 12:
            self._add(mido.Message, "program_change", channel=channel, program=data[0])

    def _meta(self, kind: int, data: bytes) -> bool:
        if kind == _PORT:
            self._add(mido.MetaMessage, "midi_port", port=data[0] if data else 0)
        elif kind == _TEMPO:
            tempo = int.from_bytes(data[:3], "big")
            if len(data) < 3 or not tempo:
                _warn(f"a tempo of a MIDI file is not valid ({data.hex()}): times may be wrong")
            else:
                self._add(mido.MetaMessage, "set_tempo", tempo=tempo)
        elif kind == _END:
            self._add(mido.MetaMessage, "end_of_track")
        return kind == _END

    def _add(self, kind: type[mido.Message | mido.MetaMessage], name: str, **values: int) -> None:
        message = kind(name, skip_checks=True, time=self._elapsed, **values)
        self._messages.append(message)
        self._elapsed = 0

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        end = self.place + count
        if end > self._limit:
            raise _BreakOffError("it ends too early")
        found, self.place = self._data[self.place : end], end
        return found

    def _number(self) -> int:
        """A number of variable length."""
        value = 0
        for _ in range(MAX_DELTA_BYTES):
            byte = self._byte()
            value = value << 7 | byte & 127
            if byte < 0x80:
                return value
        raise _BreakOffError(f"there is a number of more than {MAX_DELTA_BYTES} bytes")
