"""MIDI files of any origin: all their notes, or one error."""

from __future__ import annotations

import io
import random
import struct
import warnings

import mido
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.errors import MidiWarning, OptionError
from mt3_runtime.files.formats import load_notes, parse_midi, render
from mt3_runtime.files.midi import from_midi
from mt3_runtime.files.midi_reader import read_midi
from mt3_runtime.notes.note import Note

END = b"\x00\xff\x2f\x00"
#: A quarter of C4 on channel 0, and of E4 on channel 1: half a second each.
C4 = b"\x00\x90\x3c\x40\x83\x60\x80\x3c\x00"
E4 = b"\x00\x91\x40\x40\x83\x60\x81\x40\x00"
BOTH = [Note(0.0, 0.5, 60, 64), Note(0.0, 0.5, 64, 64)]
LATE_C4 = [Note(0.0, 0.5, 64, 64), Note(0.5, 1.0, 60, 64)]


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    return name + struct.pack(">L", len(content) if size is None else size) + content


def head(kind: int = 1, count: int = 2, division: int = 480, more: bytes = b"") -> bytes:
    return chunk(b"MThd", struct.pack(">HHH", kind, count, division) + more)


def song(
    first: bytes = C4 + END,
    second: bytes = E4 + END,
    *,
    sizes: tuple[int | None, int | None] = (None, None),
    between: bytes = b"",
    behind: bytes = b"",
    **header: int | bytes,
) -> bytes:
    """A file of two tracks."""
    tracks = [chunk(b"MTrk", track, n) for track, n in zip((first, second), sizes, strict=True)]
    return head(**header) + tracks[0] + between + tracks[1] + behind


def riff(content: bytes, *before: bytes, size: int | None = None) -> bytes:
    def little(name: bytes, data: bytes, size: int | None = None) -> bytes:
        length = len(data) if size is None else size
        return name + struct.pack("<L", length) + data + b"\0" * (len(data) % 2)

    inside = b"RMID" + b"".join(little(b"LIST", b) for b in before) + little(b"data", content, size)
    return little(b"RIFF", inside)


WHOLE = {
    "as it should be": song(),
    "a chunk of another kind": song(between=chunk(b"XFIH", b"0123456789")),
    "one that holds the name of a track": song(between=chunk(b"XFKM", b"..MTrk\0\0\0\4....")),
    "two before the tracks": head() + chunk(b"ABCD", b"") + song(between=b"")[14:],
    "one behind the tracks": song(behind=chunk(b"XFKM", b"MTrk")),
    "one track counted": song(count=1),
    "no track counted": song(count=0),
    "type 0 with two tracks": song(kind=0),
    "a longer header": song(more=b"\0\0"),
    "a key of 8 sharps": song(b"\x00\xff\x59\x02\x08\x00" + C4 + END),
    "a key of 12 flats, mode 7": song(b"\x00\xff\x59\x02\xf4\x07" + C4 + END),
    "a key of no bytes": song(b"\x00\xff\x59\x00" + C4 + END),
    "a metre of one byte": song(b"\x00\xff\x58\x01\x04" + C4 + END),
    "a metre of 2 ** 255ths": song(b"\x00\xff\x58\x04\x04\xff\x18\x08" + C4 + END),
    "a time code of two bytes": song(b"\x00\xff\x54\x02\xe0\x00" + C4 + END),
    "a channel prefix of no bytes": song(b"\x00\xff\x20\x00" + C4 + END),
    "a port of no bytes": song(b"\x00\xff\x21\x00" + C4 + END),
    "a tempo of four bytes": song(b"\x00\xff\x51\x04\x07\xa1\x20\x00" + C4 + END),
    "an end of one byte": song(C4 + b"\x00\xff\x2f\x01\x00"),
    "no end of the tracks": song(C4, E4),
    "bytes behind the end of a track": song(C4 + END + b"\xf4\xf5\xff", E4 + END + b"\0\0\0"),
    "text behind the file": song(behind=b"and so on, and so on"),
    "bytes behind the file": song(behind=bytes(range(256))),
    "an odd byte between the tracks": song(between=b"\0"),
    "text between the tracks": song(between=b"--- second track ---"),
    "a MacBinary header": b"\0" * 128 + song(),
    "lengths of zero": song(sizes=(0, 0)),
    "lengths without end": song(sizes=(0xFFFFFFFF, 0xFFFFFFFF)),
    "a length that is too large": song(sizes=(len(C4) + 7, None)),
    "a length that is too large by a track": song(sizes=(len(C4 + E4) + 16, None)),
    "a length that is too small": song(sizes=(len(C4) - 2, None)),
    "a length that ends between messages": song(sizes=(4, 4)),
    "lengths of zero and no ends": song(C4, E4, sizes=(0, 0)),
    "an RMID": riff(song()),
    "an RMID with something before": riff(song(), b"INFO odd"),
    "an RMID of the wrong length": riff(song(), size=5),
    "an unterminated exclusive message": song(b"\x00\xf0\x03\x01\x02\x03" + C4 + END),
    "an exclusive message in parts": song(b"\x00\xf0\x02\x01\x02\x00\xf7\x02\x03\xf7" + C4 + END),
    "an exclusive message of eight bits": song(b"\x00\xf0\x03\xff\x80\xf7" + C4 + END),
    "one without a length, to the end of which it would not last": song(
        b"\x00\xf0\x7e\x7f\x09\x01\xf7" + C4 + END
    ),
    "one without a length, which would take a note along": song(
        b"\x00\xf0\x07\x10\x4c\x00\xf7" + C4 + END
    ),
    "two in one": song(b"\x00\xf0\x05\x01\xf7\xf0\x02\xf7" + C4 + END),
    "an empty exclusive message": song(b"\x00\xf0\x00" + C4 + END),
    "a clock message": song(b"\x00\xf8" + C4 + END),
    "a song position": song(b"\x00\xf2\x01\x01" + C4 + END),
    "running status": song(b"\x00\x90\x3c\x40\x83\x60\x3c\x00" + END),
    "running status behind text": song(b"\x00\x90\x3c\x40\x00\xff\x01\x01a\x83\x60\x3c\x00" + END),
    "running status behind an exclusive message": song(
        b"\x00\x90\x3c\x40\x00\xf0\x02\x01\xf7\x83\x60\x3c\x00" + END
    ),
    "a number with zeros in front": song(b"\x80\x80\x00\x90\x3c\x40\x83\x60\x80\x3c\x00" + END),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_can_be_understood_is_read(name, tmp_path):
    path = tmp_path / "song.mid"
    path.write_bytes(WHOLE[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_notes(path) == BOTH


@pytest.mark.parametrize("kind", [0x08, 0x0A, 0x20, 0x4B, 0x54, 0x59, 0x60, 0x7E])
def test_meta_messages_take_their_time(kind):
    """Known or not, of whatever length: what comes after them comes later."""
    for content in (b"", b"\x00", b"123456"):
        message = b"\x83\x60\xff" + bytes((kind, len(content))) + content
        assert parse_midi(song(message + C4 + END)) == LATE_C4


@pytest.mark.parametrize("message", [b"\xf0\x01\xf7", b"\xb0\x07\x64", b"\xe3\x00\x40", b"\xf8"])
def test_messages_without_notes_take_their_time(message):
    assert parse_midi(song(b"\x83\x60" + message + C4 + END)) == LATE_C4


def test_notes_behind_the_end_of_their_track_are_read():
    assert parse_midi(song(END + b"\x83\x60" + C4[1:])) == LATE_C4


@pytest.mark.parametrize("last", [END[1:], b"\xff\x01\x00", b"\xb0\x07\x64", b"\xff\x7f\x01a"])
def test_notes_that_never_end_last_as_long_as_their_track(last):
    assert parse_midi(song(b"\x00\x90\x3c\x40\x83\x60" + last)) == BOTH


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (song(count=3), "holds 2 tracks, but its header counts 3"),
        (head() + chunk(b"MTrk", C4 + END), "holds 1 tracks, but its header counts 2"),
        (song(b"\x00\xff\x51\x00" + C4 + END), r"tempo of a MIDI file is not valid \(\)"),
        (song(b"\x00\xff\x51\x02\x07\xa1" + C4 + END), r"tempo .* is not valid \(07a1\)"),
        (song(b"\x00\xff\x51\x03\x00\x00\x00" + C4 + END), r"tempo .* is not valid \(000000\)"),
        (song(C4, between=b"\x01\xf5\x00"), "bytes behind a track"),
    ],
)
def test_what_may_be_missing_is_said(data, message):
    with pytest.warns(MidiWarning, match=message):
        notes = parse_midi(data)
    assert set(BOTH) >= set(notes) >= {BOTH[0]}
    assert len(notes) == data.count(b"MTrk")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends too early, within the header"),
        (b"MTh", "ends too early, within the header"),
        (b"\0" * 5000 + song(), "MThd not found"),
        (b"PK\3\4 and so on", "MThd not found"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "a RIFF file of the form 'WAVE'"),
        (b"RIFF\x24\0\0\0RMIDLIST\4\0\0\0abcd", "no chunk of data"),
        (riff(b"hello"), "MThd not found"),
        (song()[:12], "within the header"),
        (head(), "before its 2 tracks"),
        (head() + chunk(b"XFIH", b"0123456789"), "before its 2 tracks"),
        (song(kind=2), "type 2"),
        (song(kind=3), "unknown type 3"),
        (song(division=0), "no time division"),
        (song()[:-1], r"in track 2, at byte \d+, it ends too early"),
        (song()[:-4], r"in track 2, at byte \d+, it ends too early"),
        (song()[:-9], r"in track 2, at byte \d+, it ends too early"),
        (song(b"\x00\x3c\x40" + C4 + END), "in track 1, .*without a status byte"),
        (song(second=b"\x00\xf4" + E4 + END), "in track 2, .*undefined status byte 0xF4"),
        (song(b"\x00\xf0\x7e\x7f\x09\x01" + C4 + END), "in track 1, .*ends too early"),
        (song(b"\x00\xff\x01\x20short" + C4 + END), "in track 1, .*ends too early"),
        (song(b"\xff\xff\xff\xff\xff\x7f" + C4[1:] + END), "number of more than 5 bytes"),
        (song(C4 + b"\x00\xfd" + C4 + END, sizes=(0, None)), "undefined status byte 0xFD"),
    ],
)
def test_what_cannot_be_read_is_one_error(data, message):
    with pytest.raises(OptionError, match=message):
        parse_midi(data)


NOTES = st.lists(
    st.builds(
        lambda start, length, pitch, program, drum: Note(
            start / 10, (start + length) / 10, pitch, 64, program, drum
        ),
        st.integers(0, 50),
        st.integers(1, 20),
        st.integers(0, 127),
        st.integers(0, 20),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


@pytest.mark.filterwarnings("ignore::mt3_runtime.errors.MidiWarning")
@settings(max_examples=100, deadline=None)
@given(notes=NOTES, data=st.data())
def test_notes_do_not_depend_on_what_is_around_the_tracks(notes, data):
    written = render(notes, "midi")
    tracks = written.split(b"MTrk")[1:]  # no message of these files holds that name
    other = st.sampled_from([b"", b"\0", b"\0\0\0", chunk(b"ABCD", b"12345"), b"\xff\xfe no chunk"])
    pieces = []
    for track in tracks:
        content = track[4:]
        size = data.draw(st.sampled_from([None, 0, len(content) + 1, 0x7FFFFFFF]))
        pieces.append(chunk(b"MTrk", content, size) + data.draw(other))
    count = data.draw(st.integers(0, len(tracks)))
    changed = head(1, count, 2400) + b"".join(pieces)
    if data.draw(st.booleans()):
        changed = riff(changed)
    assert parse_midi(changed) == parse_midi(written)


@pytest.mark.filterwarnings("ignore::mt3_runtime.errors.MidiWarning")
def test_damaged_files_give_no_fewer_notes_than_mido_finds():
    """Where mido reads a damaged file, as the standard has it, so do we, and nothing else fails."""
    rng, read = random.Random(0), 0
    whole = [render([Note(i / 10, i / 10 + 1, 60 + i % 3, 9, i % 20) for i in range(30)], "midi")]
    for _ in range(3000):
        data = bytearray(rng.choice([*whole, *WHOLE.values()]))
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(len(data) + 1)
            junk = bytes(rng.choice([0, 0x2F, 0x51, 0xF0, 0xFF]) for _ in range(rng.randrange(3)))
            data[place : place + rng.randrange(3)] = junk
        try:
            found = parse_midi(bytes(data))
        except OptionError:
            continue
        try:
            theirs = from_midi(mido.MidiFile(file=io.BytesIO(data), clip=True))
        except (OSError, EOFError, ValueError, LookupError, mido.KeySignatureError, OptionError):
            continue
        read += 1
        assert len(found) >= len(theirs)
    assert read > 100


def test_only_messages_about_notes_are_kept():
    found = read_midi(song(b"\x00\xff\x01\x01a\x00\xb0\x07\x64\x00\xc0\x05" + C4 + END))
    assert [message.type for message in found.tracks[0]] == [
        "program_change",
        "note_on",
        "note_off",
        "end_of_track",
    ]
