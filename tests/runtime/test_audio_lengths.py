"""Lengths that were never filled in, placeholders, tags and tails: read whole, and no false
alarm."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pytest
import soundfile

from mt3_runtime.audio.sources import load_audio, open_audio
from mt3_runtime.errors import AudioError, AudioWarning
from tests.sounds import (
    ID3V1,
    RATE,
    ape,
    frame_lengths,
    id3,
    junk,
    lyrics,
    patched,
    read,
    sound,
    tune,
    uncounted,
)


@pytest.fixture(autouse=True)
def _no_unexpected_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def stating(kind: str, length: int, data: bytes | None = None) -> bytes:
    """A file whose header states some length of its samples."""
    data = sound(kind) if data is None else data
    mark, order = {
        "wav": (b"data", "<I"),
        "aiff": (b"SSND", ">I"),
        "au": (b".snd\0\0\0\x18", ">I"),
        "w64": (b"data\xf3\xac\xd3\x11\x8c\xd1\0\xc0O\x8e\xdb\x8a", "<Q"),
        "caf": (b"data", ">Q"),
        "rf64": (b"ds64\x1c\0\0\0", "<Q"),  # behind the length of the file
    }[kind]
    at = data.index(mark) + len(mark) + (8 if kind == "rf64" else 0)
    return patched(data, at, struct.pack(order, length))


PLACEHOLDERS = [
    ("wav", [0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFF000, 0xFFFFFFDB, 0x7FFFFFD8]),
    ("aiff", [0, 0xFFFFFFFF, 0x7F000008, 0x7FFFFFFF, 0x80000008]),
    ("au", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFFFE8, 0x80000000]),
    ("w64", [2**64 - 1, 2**63 - 1, 2**62]),
    ("caf", [2**64 - 1, 2**63 - 1]),
    ("rf64", [0, 2**64 - 1, 2**63 - 1]),
]


@pytest.mark.parametrize(
    ("kind", "length"), [(kind, length) for kind, lengths in PLACEHOLDERS for length in lengths]
)
def test_a_placeholder_is_no_length(kind, length):
    assert np.array_equal(read(stating(kind, length)), read(sound(kind)))


@pytest.mark.parametrize("kind", ["wav", "au", "w64", "caf"])
def test_a_recording_that_was_never_closed_is_read_whole_and_reported(kind):
    with pytest.warns(
        AudioWarning, match=r"states no length.* all 3\.00 s up to its end were read\.$"
    ):
        assert np.array_equal(read(stating(kind, 0)), read(sound(kind)))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "FLOAT"])
@pytest.mark.parametrize(
    "chunks", [[(b"JUNK", 28), (b"FLLR", 4044)], [(b"LIST", 27), (b"bext", 602)]]
)
def test_chunks_in_front_of_a_length_of_zero(subtype, chunks):
    buffer = io.BytesIO()
    soundfile.write(buffer, tune(2, channels=2), RATE, format="WAV", subtype=subtype)
    data, more = buffer.getvalue(), b""
    for name, size in chunks:
        more += name + struct.pack("<I", size) + bytes(size + size % 2)
    unclosed = stating("wav", 0, data[:12] + more + data[12:])
    with pytest.warns(AudioWarning, match="states no length"):
        assert np.array_equal(read(patched(unclosed, 4, bytes(4))), read(data))


def test_a_file_without_samples_stays_one():
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(0), RATE, format="WAV", subtype="PCM_16")
    comment = b"LIST" + struct.pack("<I", 5000) + b"INFO" + bytes(4996)
    for data in (buffer.getvalue(), buffer.getvalue() + comment):
        with pytest.raises(AudioError, match="holds no audio"):
            load_audio(io.BytesIO(data))


@pytest.mark.parametrize("kind", ["wav", "aiff", "au"])
def test_samples_behind_the_stated_length_are_reported(kind):
    extra = 8 if kind == "aiff" else 0
    stated = RATE * 2 + extra  # one second
    with pytest.warns(AudioWarning, match=r"holds \d+ bytes from byte \d+ on .*: 1\.00 s of"):
        assert len(load_audio(io.BytesIO(stating(kind, stated)))) == 16000


@pytest.mark.parametrize("kind", ["wav", "rf64", "w64", "caf", "aiff", "au"])
def test_a_cut_file_is_reported_with_both_figures(kind):
    data = sound(kind)
    with pytest.warns(AudioWarning, match=r"ends early: 1\.[45]\d s of 3\.00 s could be read"):
        load_audio(io.BytesIO(data[: len(data) // 2]))


def test_bw64():
    assert np.array_equal(read(b"BW64" + sound("rf64")[4:]), read(sound("wav")))


def test_a_wav_of_more_than_four_gigabytes(tmp_path):
    path = tmp_path / "long.wav"
    data = stating("wav", 0xFFFFFFFF)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(5 << 30)  # a hole, no space on the disk
    with open_audio(path) as stream:
        assert stream.duration == pytest.approx((5 * 2**30 - 44) / 2 / RATE, abs=1)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("tail", [b"", ID3V1, ape(5000), bytes(20000)])
def test_flac_without_a_number_of_samples(subtype, tail):
    buffer = io.BytesIO()
    soundfile.write(buffer, tune(3, channels=2), RATE, format="FLAC", subtype=subtype)
    data = buffer.getvalue()
    streamed = patched(data, 21, bytes([data[21] & 0xF0]) + bytes(4))
    assert np.array_equal(read(streamed + tail), read(data))
    assert np.array_equal(read(data + tail), read(data))
    with pytest.warns(AudioWarning, match=r"holds 90000 bytes .*: 3\.00 s of"):
        assert np.array_equal(load_audio(io.BytesIO(streamed + junk(90000))), read(data))


@pytest.mark.parametrize(
    "kind", ["wav", "aiff", "au", "w64", "caf", "flac", "vorbis", "opus", "mp3"]
)
@pytest.mark.parametrize("tag", [id3(100), id3(300_000), id3(50, footer=True), ape(2000)])
def test_tags_in_front(kind, tag):
    assert np.array_equal(read(tag + sound(kind)), read(sound(kind)))


TAILS = [
    ID3V1, ape(100_000), ape(900) + ID3V1, lyrics(5000), lyrics(900) + ape(700) + ID3V1,
    bytes(60_000), bytes(999) + ID3V1, id3(3000), b"TAG+" + bytes(223) + ID3V1,
]  # fmt: skip


@pytest.mark.parametrize("tail", TAILS)
def test_tags_and_zeros_behind_an_mp3(tail):
    for data in (sound("mp3"), uncounted(sound("mp3"))):
        assert np.array_equal(read(data + tail), read(data))


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("kind", ["vorbis", "wav"])
def test_tags_and_zeros_behind_other_files(kind, tail):
    assert np.array_equal(read(sound(kind) + tail), read(sound(kind)))


# ---------------------------------------------------------------- MP3s that begin anywhere


def pieces_of_stderr(capfd) -> str:
    return capfd.readouterr().err


@pytest.mark.parametrize("cut", [1, 3, 200, 417, 1000, 5000, 9999])
@pytest.mark.parametrize("counted", [True, False])
def test_an_mp3_that_begins_in_the_middle(cut, counted, capfd):
    whole = sound("mp3", 4.0) if counted else uncounted(sound("mp3", 4.0))
    lengths = frame_lengths(whole)
    left = sum(np.cumsum(lengths) - lengths >= cut)  # frames that begin behind the cut
    samples = read(whole[cut:])
    assert len(samples) / 16000 == pytest.approx(left * 1152 / RATE, abs=0.001)
    assert np.sqrt(np.mean(samples[4000:-4000] ** 2)) == pytest.approx(0.28, abs=0.02)
    assert pieces_of_stderr(capfd) == ""


@pytest.mark.parametrize(
    "front",
    [
        bytes(1), bytes(16), bytes(4096), bytes(200_000), id3(100) + bytes(16),
        id3(100) + bytes(20_000), ape(300) + bytes(70_000), ID3V1, junk(300),
    ],
)  # fmt: skip
def test_padding_in_front_of_an_mp3(front, capfd):
    assert np.array_equal(read(front + sound("mp3")), read(sound("mp3")))
    assert pieces_of_stderr(capfd) == ""


def test_junk_in_front_of_an_mp3_is_reported_and_too_much_of_it_refused():
    with pytest.warns(AudioWarning, match=r"holds 30000 bytes from byte 0 on .*: 3\.00 s of"):
        assert np.array_equal(
            load_audio(io.BytesIO(junk(30_000) + sound("mp3"))), read(sound("mp3"))
        )
    with pytest.raises(AudioError, match="is not audio"):
        load_audio(io.BytesIO(junk(90_000) + sound("mp3")))


@pytest.mark.parametrize("between", [junk(20_000), bytes(3000), ID3V1, id3(700)])
def test_an_mp3_with_something_in_the_middle(between, capfd):
    data = uncounted(sound("mp3", 4.0))
    middle = int(np.cumsum(frame_lengths(data))[len(frame_lengths(data)) // 2])
    spliced = data[:middle] + between + data[middle:]
    if between == junk(20_000):
        with pytest.warns(AudioWarning, match=r"20000 bytes between its frames are neither"):
            samples = load_audio(io.BytesIO(spliced))
    else:
        samples = read(spliced)
    assert len(samples) == len(read(data))
    assert pieces_of_stderr(capfd) == ""


def test_a_count_that_was_not_kept_up_to_date():
    data = sound("mp3", 4.0)
    at = data.index(b"Xing") + 8
    stale = patched(data, at, (40).to_bytes(4, "big"))
    samples = read(stale)
    assert 4.0 <= len(samples) / 16000 < 4.1  # the encoder's padding stays in
    assert np.array_equal(samples[:60000], read(data)[:60000])


def test_another_count_frame_is_passed_over():
    data = uncounted(sound("mp3"))
    length = frame_lengths(sound("mp3"))[0]
    vbri = bytearray(sound("mp3")[:4] + bytes(length - 4))
    vbri[36:54] = b"VBRI\0\1\0\0\0\0" + len(data).to_bytes(4, "big") + (7).to_bytes(4, "big")
    assert np.array_equal(read(bytes(vbri) + data), read(data))


@pytest.mark.parametrize("tag", [0x55, 0x50])
def test_mpeg_audio_in_wav(tag):
    data = uncounted(sound("mp3"))
    format_chunk = struct.pack("<HHIIHH", tag, 1, RATE, 16000, 1, 0) + bytes(14)
    body = b"WAVEfmt " + struct.pack("<I", len(format_chunk)) + format_chunk
    body += b"data" + struct.pack("<I", len(data)) + data
    assert np.array_equal(read(b"RIFF" + struct.pack("<I", len(body)) + body), read(data))


@pytest.mark.parametrize("rate", [44100, 32000])
@pytest.mark.parametrize("seconds", [2.0, 10.0])
def test_an_ordinary_mp3_gives_the_bits_of_libsndfile(rate, seconds):
    data = sound("mp3", seconds, rate)
    expected = []
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        while len(block := file.read(3 * rate, "float32")):
            expected.append(block)
    samples = load_audio(io.BytesIO(data), target_rate=rate)
    assert np.array_equal(samples, np.concatenate(expected))


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100])
@pytest.mark.parametrize("counted", [True, False])
def test_nothing_is_said_on_standard_error(rate, counted, capfd):
    data = sound("mp3", 10.0, rate)
    if not counted:
        data = data[200:]
    for source in (data, data + data, data[: len(data) // 2] + bytes(300) + data):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioWarning)
            load_audio(io.BytesIO(source))
    assert pieces_of_stderr(capfd) == ""


# ---------------------------------------------------------------- Ogg


def ogg_flac(flac: bytes, page: int = 4000, old: bool = False) -> bytes:
    """Ogg pages around a FLAC file; its frames cut into pages anywhere."""
    info, frames = flac[4:42], flac[42:]
    while not info[0] & 0x80:  # skip further metadata
        size = 4 + int.from_bytes(frames[1:4], "big")
        info, frames = bytes([frames[0] & 0x80]) + info[1:], frames[size:]
    comment = b"\x84\0\0\x08" + bytes(8)
    first = b"fLaC\0" + info[1:] if old else b"\x7fFLAC\1\0\0\1fLaC\0" + info[1:]
    bodies = [first, comment]
    bodies += [frames[at : at + page] for at in range(0, len(frames), page)]
    pages = []
    for number, body in enumerate(bodies):
        flags = (2 if number == 0 else 0) | (4 if number == len(bodies) - 1 else 0)
        lacing = bytes([255] * (len(body) // 255) + [len(body) % 255])
        head = b"OggS\0" + bytes([flags]) + struct.pack("<QII", number, 77, number)
        pages.append(head + bytes(4) + bytes([len(lacing)]) + lacing + body)
    return b"".join(pages)


@pytest.mark.parametrize("page", [500, 4000, 60_000])
@pytest.mark.parametrize("old", [True, False])
def test_ogg_flac(page, old):
    data = ogg_flac(sound("flac"), page, old)
    assert np.array_equal(read(data), read(sound("flac")))
    assert np.array_equal(read(id3(300) + data + ogg_flac(sound("flac", 1.0))), read(
        sound("flac") + sound("flac", 1.0)
    ))  # fmt: skip


def test_ogg_flac_that_states_no_length_and_one_that_is_cut():
    flac = sound("flac")
    streamed = patched(flac, 21, bytes([flac[21] & 0xF0]) + bytes(4))
    assert np.array_equal(read(ogg_flac(streamed)), read(flac))
    data = ogg_flac(flac)
    with pytest.warns(AudioWarning, match=r"ends early: 1\.\d\d s of 3\.00 s"):
        load_audio(io.BytesIO(data[: len(data) // 2]))


def test_a_page_that_is_no_audio_stream_is_passed_over():
    head = b"OggS\0\2" + struct.pack("<QII", 0, 99, 0) + bytes(4) + b"\1\x08" + b"fishead\0"
    vorbis = sound("vorbis")
    assert np.array_equal(read(head + vorbis), read(vorbis))


def test_a_vorbis_file_without_its_end_is_reported():
    data = sound("vorbis")
    with pytest.warns(AudioWarning, match=r"no end mark, so it is probably cut: \d\.\d\d s could"):
        load_audio(io.BytesIO(data[: len(data) // 2]))
