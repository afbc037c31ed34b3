"""Written music: archives, and excerpts that stay within what can be played."""

from __future__ import annotations

import struct

import pytest

from mt3_runtime.errors import MissingDependencyError, OptionError
from mt3_runtime.files.formats import parse_midi, render
from mt3_synthesis import corpora, parts
from mt3_synthesis.corpora import as_piece, excerpt, freedoom, wad_lumps
from mt3_synthesis.music import Piece
from tests import needs
from tests.synthesis.sounds import drum, note


def song(shift=0):
    """Melody, bass and drums; 20 s, beginning at 3 s."""
    notes = []
    for count in range(80):
        start = 3.0 + count / 4
        notes.append(note(start, start + 0.2, 60 + shift + count % 12, program=40))
        notes.append(note(start, start + 0.2, 36 + count % 5, program=33))
        notes.append(drum(start, 36 + 2 * (count % 2)))
    return notes


def wad(*lumps: bytes, kind: bytes = b"IWAD") -> bytes:
    body, entries = b"", b""
    for index, lump in enumerate(lumps):
        entries += struct.pack("<ii8s", 12 + len(body), len(lump), f"L{index}".encode())
        body += lump
    return struct.pack("<4sii", kind, len(lumps), 12 + len(body)) + body + entries


def test_the_lumps_of_an_archive():
    assert list(wad_lumps(wad(b"one", b"", b"three"))) == [b"one", b"", b"three"]
    assert list(wad_lumps(wad(kind=b"PWAD"))) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"ZIP" + bytes(20),
        wad(b"one")[:-3],
        struct.pack("<4sii", b"IWAD", -1, 0),
        struct.pack("<4sii", b"IWAD", 1 << 30, 12),
        struct.pack("<4sii", b"IWAD", 1, -99),
        struct.pack("<4siiii8s", b"IWAD", 1, 12, 5, 1000, b"x"),
        struct.pack("<4siiii8s", b"IWAD", 1, 12, -5, 1, b"x"),
    ],
)
def test_damaged_archives_are_refused(data):
    with pytest.raises(OptionError):
        list(wad_lumps(data))


def test_the_music_of_archives_is_read_once(tmp_path):
    one, other = render(song(), "midi"), render(song(3), "midi")
    few = render([note(0.0, 1.0, 60)], "midi")
    (tmp_path / "1.wad").write_bytes(wad(b"MUS\x1a", one, few))
    (tmp_path / "2.wad").write_bytes(wad(one, other))
    pieces = freedoom([tmp_path / "1.wad", tmp_path / "2.wad"])
    assert len(pieces) == 2
    assert [(p.program, p.is_drum) for p in pieces[0].parts] == [
        (33, False),
        (40, False),
        (0, True),
    ]
    assert pieces[0].seconds == pytest.approx(20.75, abs=0.001)
    assert pieces[0].notes[0].onset == pytest.approx(0.0, abs=0.001)


def test_an_absent_corpus_says_how_to_install_it(tmp_path):
    with pytest.raises(MissingDependencyError, match="apt-get install freedoom"):
        freedoom([tmp_path / "none.wad"])


def test_the_real_corpus():
    if not all(path.is_file() for path in corpora.FREEDOOM):
        needs.missing("freedoom", f"there is no {corpora.FREEDOOM[0]}")
    lumps = [lump for path in corpora.FREEDOOM for lump in wad_lumps(path.read_bytes())]
    tracks = {lump for lump in lumps if lump.startswith(corpora.MIDI_MAGIC)}
    assert len(tracks) > 60
    pieces = [as_piece(parse_midi(track)) for track in sorted(tracks, key=len)[30:34]]
    assert all(piece.seconds > 30 for piece in pieces)
    assert any(part.is_drum for piece in pieces for part in piece.parts)


def test_nothing_is_a_piece_without_parts():
    assert as_piece([]) == Piece(1.0, ())


def test_excerpts_are_cut_transposed_and_reinstrumented():
    piece = as_piece(song())
    assert excerpt(piece, 5, seconds=4.0) == excerpt(piece, 5, seconds=4.0)
    programs, lengths, pitches = set(), set(), set()
    for seed in range(60):
        cut = excerpt(piece, seed, seconds=4.0)
        assert cut.seconds == 4.0
        assert len(cut.parts) == 3
        for part in cut.parts:
            low, high = (0, 127) if part.is_drum else parts.range_of(part.program)
            assert all(0.0 <= n.onset < 4.0 and low <= n.pitch <= high for n in part.notes)
            assert all(n.program == part.program for n in part.notes)
            if part.is_drum:
                assert {n.pitch for n in part.notes} <= {36, 38}
                lengths.add(len(part.notes))
            else:
                programs.add(part.program)
                pitches |= {n.pitch for n in part.notes}
    assert {33, 40} < programs
    assert len(lengths) > 4  # other tempi: 12.8 to 20 hits in 4 s
    assert len(pitches) > 25


def test_low_parts_get_low_instruments():
    low = as_piece([note(k, k + 0.5, 40, program=33) for k in range(40)])
    programs = {excerpt(low, seed, seconds=9.0).parts[0].program for seed in range(40)}
    assert programs <= set(parts.PROGRAMS["bass"])
    assert len(programs) > 4


def test_only_allowed_instruments_are_given_out():
    piece = as_piece(song())
    for seed in range(40):
        cut = excerpt(piece, seed, seconds=3.0, programs=(0, 73))
        assert {part.program for part in cut.parts} <= {0, 73}


def test_parts_may_be_left_out_but_not_the_drums():
    cut = excerpt(as_piece(song()), 1, seconds=3.0, parts_kept=1)
    assert [part.is_drum for part in cut.parts] == [False, True]


def test_short_songs_are_not_repeated():
    cut = excerpt(as_piece(song()), 1, seconds=60.0)
    assert max(n.onset for n in cut.notes) < 27.0


@pytest.mark.parametrize("seconds", [0.0, float("inf")])
def test_impossible_lengths_are_refused(seconds):
    with pytest.raises(OptionError, match="positive length"):
        excerpt(as_piece(song()), 1, seconds=seconds)
