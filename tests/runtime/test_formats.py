"""Every format can be read back; damaged files are refused with a reason."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import mido
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.errors import OptionError
from mt3_runtime.files.formats import (
    CSV_FIELDS,
    FORMATS,
    PARSERS,
    format_from_suffix,
    load_notes,
    note_to_json_line,
    parse_csv,
    parse_json,
    parse_jsonl,
    parse_midi,
    render,
)
from mt3_runtime.notes.base import SegmentReport
from mt3_runtime.notes.note import Note, Probabilities

NOTES = [
    Note(0.0, 0.51, 60, 100, confidence=0.75),
    Note(
        0.1,
        2.24,
        40,
        127,
        program=33,
        confidence=1 / 3,
        probabilities=Probabilities(0.9999999, 1 / 3, 1.0, None),
    ),
    Note(0.5, 0.51, 36, 127, is_drum=True),
]


def rounded(note: Note) -> Note:
    """As a note is after a text file."""
    known = [None if p is None else round(p, 6) for p in note.probabilities]
    return dataclasses.replace(
        note,
        onset=round(note.onset, 6),
        offset=round(note.offset, 6),
        confidence=round(note.confidence, 6),
        probabilities=Probabilities(*known),
    )


ROUNDED = [rounded(note) for note in NOTES]
UNKNOWN = dict.fromkeys(("onset", "pitch", "program", "offset"))
RESULT = SimpleNamespace(
    notes=NOTES,
    segments=(SegmentReport(0, 0.0, 31), SegmentReport(1, 2.04, 8, truncated=True)),
    duration=4.0000004,
    model="tiny",
)

ANY_NOTES = st.lists(
    st.builds(
        lambda onset, length, *values: Note(onset, onset + length, *values),
        st.floats(0, 1e5),
        st.floats(0, 100),
        st.integers(0, 127),
        st.integers(1, 127),
        st.integers(0, 127),
        st.booleans(),
        st.floats(0, 1),
        st.builds(Probabilities, *[st.none() | st.floats(0, 1)] * 4),
    ),
    max_size=20,
)


def test_json():
    document = json.loads(render(RESULT, "json"))
    assert document == {
        "format": "mt3-runtime.notes",
        "version": 1,
        "model": "tiny",
        "duration": 4.0,
        "token_digest": None,
        "notes": [
            {
                "onset": 0.0,
                "offset": 0.51,
                "pitch": 60,
                "velocity": 100,
                "program": 0,
                "instrument": "Acoustic Grand Piano",
                "is_drum": False,
                "confidence": 0.75,
                "probabilities": UNKNOWN,
            },
            {
                "onset": 0.1,
                "offset": 2.24,
                "pitch": 40,
                "velocity": 127,
                "program": 33,
                "instrument": "Electric Bass (finger)",
                "is_drum": False,
                "confidence": 0.333333,
                "probabilities": {"onset": 1.0, "pitch": 0.333333, "program": 1.0, "offset": None},
            },
            {
                "onset": 0.5,
                "offset": 0.51,
                "pitch": 36,
                "velocity": 127,
                "program": 0,
                "instrument": "Drums",
                "is_drum": True,
                "confidence": 1.0,
                "probabilities": UNKNOWN,
            },
        ],
        "segments": [
            {
                "index": index,
                "start": start,
                "token_count": count,
                "truncated": truncated,
                "missing_tie": False,
                "invalid_events": 0,
                "dropped_events": 0,
                "discarded_tokens": 0,
                "notes": 0,
            }
            for index, start, count, truncated in [(0, 0.0, 31, False), (1, 2.04, 8, True)]
        ],
        "leakage": None,
        "smoothing": None,
        "warnings": None,
    }


def test_json_of_bare_notes():
    document = json.loads(render([], "json"))
    assert document == {
        "format": "mt3-runtime.notes",
        "version": 1,
        "model": None,
        "duration": None,
        "token_digest": None,
        "notes": [],
        "segments": [],
        "leakage": None,
        "smoothing": None,
        "warnings": None,
    }


def test_jsonl_lines_can_be_written_one_by_one():
    assert render(RESULT, "jsonl").decode() == "".join(
        note_to_json_line(note) + "\n" for note in NOTES
    )
    assert json.loads(note_to_json_line(NOTES[2]))["instrument"] == "Drums"


def test_csv():
    assert render(RESULT, "csv").decode() == (
        "onset,offset,pitch,velocity,program,is_drum,confidence,"
        "onset_probability,pitch_probability,program_probability,offset_probability\n"
        "0.0,0.51,60,100,0,0,0.75,,,,\n"
        "0.1,2.24,40,127,33,0,0.333333,1.0,0.333333,1.0,\n"
        "0.5,0.51,36,127,0,1,1.0,,,,\n"
    )
    table = list(csv.DictReader(io.StringIO(render(RESULT, "csv").decode())))
    assert tuple(table[0]) == CSV_FIELDS


def test_midi():
    midi = mido.MidiFile(file=io.BytesIO(render(RESULT, "midi", tempo=90.0)))
    assert [m.tempo for m in midi.tracks[0] if m.type == "set_tempo"] == [666_667]
    assert [track.name for track in midi.tracks[1:]] == [
        "Acoustic Grand Piano",
        "Electric Bass (finger)",
        "Drums",
    ]


@settings(max_examples=80, deadline=None)
@given(notes=ANY_NOTES)
def test_round_trip_of_the_text_formats(notes):
    for name in ("json", "jsonl", "csv"):
        found = PARSERS[name](render(notes, name))
        assert list(map(dataclasses.astuple, found)) == [
            dataclasses.astuple(rounded(note)) for note in notes
        ]


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip_through_a_file(name, tmp_path):
    suffix = {"midi": "mid"}.get(name, name)
    path = tmp_path / f"song.{suffix.upper()}"
    path.write_bytes(render(RESULT, name))
    expected = ROUNDED
    if name == "midi":
        expected = sorted(dataclasses.replace(note, confidence=1.0) for note in NOTES)
    assert load_notes(path) == expected
    assert load_notes(str(path), name) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_equal_notes_give_equal_bytes(name):
    assert render(RESULT, name) == render(RESULT, name)
    assert render(list(NOTES), name)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("change", [{"onset": math.nan}, {"offset": math.inf}, {"pitch": 200}])
def test_invalid_notes_are_never_written(name, change):
    with pytest.raises(OptionError, match="note 0"):
        render([dataclasses.replace(NOTES[0], **change)], name)


def test_infinity_and_nan_are_never_written():
    for duration in (math.nan, math.inf):
        with pytest.raises(OptionError, match="infinity or NaN"):
            render(SimpleNamespace(notes=[], duration=duration), "json")
    with pytest.raises(OptionError, match="confidence nan"):
        note_to_json_line(dataclasses.replace(NOTES[0], confidence=math.nan))


def test_negative_zero_is_zero():
    assert b"-0.0" not in render([Note(-0.0, -0.0, 60, 100)], "csv")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a.mid", "midi"),
        ("a.MIDI", "midi"),
        (Path("b/c.json"), "json"),
        ("a.jsonl", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.notes.csv", "csv"),
    ],
)
def test_format_from_suffix(path, name):
    assert format_from_suffix(path) == name


@pytest.mark.parametrize("path", ["song", "song.wav", ".mid", "-"])
def test_unknown_suffixes_name_the_known_ones(path):
    with pytest.raises(OptionError, match=r"\.mid, \.midi, \.json"):
        format_from_suffix(path)


def test_unknown_formats_name_the_known_ones():
    with pytest.raises(OptionError, match="midi, json, jsonl, csv"):
        render([], "xml")
    with pytest.raises(OptionError, match="midi, json, jsonl, csv"):
        load_notes("song.mid", "xml")


# --- reading ------------------------------------------------------------------------------------


def test_label_files_without_velocity():
    assert parse_csv("\ufeffonset,offset,pitch,program\r\n0.0456,0.1211,78,40\r\n".encode()) == [
        Note(0.0456, 0.1211, 78, 100, 40)
    ]


@pytest.mark.parametrize("name", ["piano_bach", "violin_solo"])
def test_real_label_files(name, shared):
    path = shared / "audio" / f"{name}.notes.csv"
    lines = path.read_text().splitlines()
    notes = load_notes(path)
    assert len(notes) == len(lines) - 1 > 100
    assert [f"{note.onset:.3f}" for note in notes] == [
        f"{float(line.split(',')[0]):.3f}" for line in lines[1:]
    ]


TABLE = "onset;offset;pitch;program\n0,0456;0,1211;78;40\n;;;\n1,5;2;60;\n"
#: What it says; the second note leaves its program out.
TOLD = [Note(0.0456, 0.1211, 78, 100, 40), Note(1.5, 2.0, 60, 100)]


@pytest.mark.parametrize(
    "text",
    [
        TABLE,
        TABLE.replace(";", "\t"),
        TABLE.replace(",", "."),
        TABLE.replace(",", ".").replace(";", ","),
        TABLE.replace(";", "\t").replace(",", "."),
        TABLE.replace("\n", "\r\n"),
        TABLE.replace("\n", "\r"),
        TABLE.rstrip("\n"),
        "\n" + TABLE.replace("\n", "\n\n"),
        "sep=;\n" + TABLE,
        '"sep=;"\r\n' + TABLE,
        TABLE.upper(),
        TABLE.replace("onset;offset", '" onset";"offset "'),
        TABLE.replace("0,0456", '"0,0456"').replace("1,5", "+1,5E0"),
        TABLE.replace("\n", ";\n"),
        TABLE.replace("program\n", "program;comment\n").replace("40\n", "40;a, b and c\n"),
    ],
)
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_tables_of_spreadsheets(text, encoding):
    assert parse_csv(text.encode(encoding)) == TOLD
    assert parse_csv(text) == TOLD
    assert parse_csv("\ufeff" + text) == TOLD


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_in_other_encodings(encoding):
    for name in ("json", "jsonl"):
        assert PARSERS[name](render(RESULT, name).decode().encode(encoding)) == ROUNDED


@pytest.mark.parametrize(("text", "is_drum"), [("True", True), ("false", False), ("1.0", True)])
def test_csv_of_spreadsheets(text, is_drum):
    (note,) = parse_csv(f"pitch,is_drum,onset,offset,comment\n36.0,{text},0,1,ok\n")
    assert note == Note(0.0, 1.0, 36, 100, 0, is_drum)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onset,class\n0.02,KD\n", "line 1: the column 'offset' is missing"),
        ("onset,offset,pitch\n0,1,c4\n", "line 2: pitch is 'c4', expected a number"),
        ("onset,offset,pitch\n0,1,60.5\n", "pitch is 60.5, expected a whole number"),
        ("onset,offset,pitch\n0,1,nan\n", "expected a whole number"),
        ("onset,offset,pitch\n0,1,inf\n", "expected a whole number"),
        ("onset,offset,pitch\n0,1\n", "line 2: pitch is None"),
        ("onset,offset,pitch\n0,1,60,7\n", "line 2 has 4 cells, and the header 3"),
        ("onset,offset,pitch\n0,5,1,0,60\n", "decimal commas, separate them by semicolons"),
        ("onset,offset,pitch\n0,1,128\n", "line 2: pitch is 128.0, expected a whole number of 0"),
        ("onset,offset,pitch,velocity\n0,1,60,-1\n", "velocity is -1.0, .* of 0..127"),
        ("onset,offset,pitch,velocity\n0,1,60,1e308\n", "line 2: velocity is 1e.308"),
        ("onset,offset,pitch,is_drum\n0,1,60,36\n", r"is_drum is 36.0, .* of 0\.\.1"),
        ("onset,offset,pitch,confidence\n0,1,60,2\n", "confidence 2.0; expected 0..1"),
        ("onset,offset,pitch\n0,1e10,60\n", "spans 0.0..10000000000.0 s"),
        ("onset,offset,pitch\nnan,1,60\n", "spans nan..1.0 s"),
        ("onset,offset,pitch\n-1,1,60\n", "spans -1.0..1.0 s"),
        ("0.5,1.0,60\n", "line 1: the column 'onset' is missing; expected a header such as"),
        ("0.5,1.0,60\n0.5,1.0,60\n1.5,2.0,60\n", "line 1: the column 'onset' is missing"),
        ("hello\n", "line 1: the column 'onset' is missing"),
        ("hello", "line 1: the column 'onset' is missing"),
        ("", "line 1: the column 'onset' is missing"),
        ("\n\n  \n", "line 1: the column 'onset' is missing"),
        ("onset;offset;key\n0,5;1;60\n", "line 1: the column 'pitch' is missing"),
        ("onset\tpitch\n0,5\t60\n", "line 1: the column 'offset' is missing"),
        ("onset,offset,pitch,onset\n0,1,60,2\n", "the column 'onset' occurs twice"),
        ("onset;offset;pitch\n0,5;1.000,5;60\n", "line 2: offset is '1.000,5', expected a number"),
        ('onset,offset,pitch\n"0,5",1,60\n', "line 2: onset is '0,5', expected a number"),
        ("\n\nonset,offset,pitch\n\n0,x,60\n", "line 5: offset is 'x'"),
        ("sep=;\nonset;offset;pitch\n0;x;60\n", "line 3: offset is 'x'"),
        ("onset,offset,pitch\n2,1,60\n", "note 0 spans 2.0..1.0"),
        ('onset,offset,pitch\n0,1,"60"x\n', "line 2: ',' expected"),
        (b"\xff\xfe", "expected UTF-8 text"),
    ],
)
def test_damaged_csv(text, message):
    with pytest.raises(OptionError, match=message):
        parse_csv(text)


def _document(**change):
    document = {"format": "mt3-runtime.notes", "version": 1, "notes": []}
    return json.dumps({**document, **change})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "expected a json object with format"),
        ('{"format": "something else"}', "expected a json object with format"),
        (_document(version=2), "install a newer mt3-runtime"),
        (_document(notes=None), "expected a list of notes"),
        (_document(notes=[7]), "note 0: expected a note object, got int"),
        (_document(notes=[{}]), "note 0: onset is None"),
        (_document(notes=[{"onset": "0"}]), "note 0: onset is '0', expected a number"),
        (_document(notes=[{"onset": 10**400}]), "note 0: onset is too large"),
        (_document(notes=[{"onset": math.inf, "offset": 1, "pitch": 60}]), "spans inf"),
    ],
)
def test_damaged_json(text, message):
    with pytest.raises(OptionError, match=message):
        parse_json(text)


def test_jsonl_skips_empty_lines_and_names_bad_ones():
    line = note_to_json_line(NOTES[0])
    assert parse_jsonl(f"\n{line}\r\n\n{line}") == [ROUNDED[0]] * 2
    with pytest.raises(OptionError, match="line 2 is not valid JSON"):
        parse_jsonl(line + "\n{\n")
    with pytest.raises(OptionError, match="line 1: expected a note object"):
        parse_jsonl("3\n")


@pytest.mark.filterwarnings("ignore::mt3_runtime.errors.MidiWarning")
def test_damaged_midi_files_never_raise_anything_else():
    whole = render([Note(i / 10, i / 10 + 1, 60 + i % 3, 9, i % 20) for i in range(40)], "midi")
    rng = random.Random(0)
    refused = 0
    for case in range(1500):
        data = bytearray(whole if case % 2 else whole[: rng.randrange(len(whole))])
        for _ in range(rng.randrange(1, 8)):
            if data:
                value = rng.choice([0, 255, 0x51, 0x58, 0x59, 0xF0, rng.randrange(256)])
                data[rng.randrange(len(data))] = value
        try:
            parse_midi(bytes(data))
        except OptionError:
            refused += 1
    assert 500 < refused < 1500


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable MIDI file: it ends too early"),
        (b"RIFF0000WAVE", "MThd not found"),
        (b"MThd\0\0\0\6\0\2\0\0\1\xe0", "type 2"),
    ],
)
def test_other_files_are_not_midi(data, message):
    with pytest.raises(OptionError, match=message):
        parse_midi(data)


def test_load_errors_name_the_file(tmp_path):
    with pytest.raises(OptionError, match=r"cannot read '.*none\.mid': No such file"):
        load_notes(tmp_path / "none.mid")
    path = tmp_path / "bad.json"
    path.write_text("{")
    with pytest.raises(OptionError, match=r"bad\.json': the file is not valid JSON"):
        load_notes(path)
