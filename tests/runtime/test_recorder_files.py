"""Files of browsers' recorders, decoded while they grow: cut anywhere, damaged, or made to harm."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.audio.recorder_files.ogg_packets import BEGINS, ENDS, ogg_page
from mt3_runtime.audio.recorder_files.opus_packets import OPUS_RATE, opus_head, opus_samples
from mt3_runtime.audio.recorder_files.opus_stream import OpusStream
from mt3_runtime.audio.sources import load_audio
from mt3_runtime.errors import AudioError, AudioFormatError, OptionError
from mt3_runtime.reading import ReaderLimits, ReaderPool
from tests import needs
from tests.recorder_streams import (
    CHROMIUM,
    UNKNOWN,
    block,
    decoded,
    element,
    ogg_opus,
    packets_of,
    track,
    webm,
    webm_opus,
)

OGG = ogg_opus(1.0)
HEAD, PACKETS = packets_of(OGG)
WEBM = webm_opus(OGG)
RECORDED = CHROMIUM.read_bytes()
FILES = {"Ogg": ("ogg", OGG), "WebM": ("webm", WEBM), "Chromium": ("webm", RECORDED)}
TINY = b"\xe7\x30"
"""48 frames of 2.5 ms without any bytes: 120 ms of silence."""


def whole(ogg: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(ogg), dtype="float32", always_2d=True)[0]


@pytest.mark.parametrize("name", FILES)
def test_samples_do_not_depend_on_where_a_file_is_cut(name):
    container, data = FILES[name]
    expected = decoded(container, data)

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.integers(0, len(data)), max_size=30))
    def check(cuts):
        np.testing.assert_array_equal(decoded(container, data, cuts), expected)

    check()
    np.testing.assert_array_equal(decoded(container, data, range(len(data))), expected)


@pytest.mark.parametrize("channels", [1, 2])
def test_samples_are_those_of_libsndfile(channels):
    ogg = ogg_opus(2.5, channels)
    expected = whole(ogg)
    np.testing.assert_array_equal(decoded("ogg", ogg, range(0, len(ogg), 700)), expected)
    found = decoded("webm", webm_opus(ogg), range(0, len(ogg), 700))
    assert 0 <= len(found) - len(expected) < 5760  # WebM does not say where the last packet ends
    np.testing.assert_array_equal(found[: len(expected)], expected)


def test_chromium_s_recording_is_what_ffmpeg_makes_of_it():
    needs.package("av")
    found = decoded("webm", RECORDED)
    assert found.shape[0] == pytest.approx(3.96 * OPUS_RATE)
    expected = load_audio(CHROMIUM, target_rate=OPUS_RATE)
    mono = found.mean(axis=1)
    behind = len(expected) - len(mono)  # FFmpeg keeps what is skipped ahead, or not
    assert 0 <= behind <= 312
    assert np.abs(mono - expected[behind:]).max() < 1e-3


def test_samples_skipped_ahead_may_be_more_than_a_packet():
    head = HEAD[:10] + struct.pack("<H", 3840) + HEAD[12:]
    file = webm(track(head), map(block, PACKETS))
    early = 3840 - struct.unpack_from("<H", HEAD, 10)[0]
    np.testing.assert_array_equal(decoded("webm", file), decoded("webm", WEBM)[early:])


@pytest.mark.parametrize(
    "file",
    {
        "clusters of stated length": webm(track(HEAD), [])
        + b"".join(element(0x1F43B675, element(0xE7, b"\1") + block(each)) for each in PACKETS),
        "groups": webm(
            track(HEAD),
            (element(0xA0, block(p, kind=0xA1) + element(0x9B, b"\1")) for p in PACKETS),
        ),
        "a video beside": webm(
            track(b"", 1, b"V_VP8", 1) + track(HEAD, 2),
            (block(bytes(200_000)) + block(each, 2) for each in PACKETS),
        ),
        "indices and gaps": webm(
            track(HEAD),
            (element(0xEC, bytes(900)) + block(p) + element(0x1C53BB6B, b"x") for p in PACKETS),
        ),
        "a second sound": webm(
            track(HEAD) + track(HEAD, 2), (block(p) + block(TINY, 2) for p in PACKETS)
        ),
    }.values(),
)
def test_other_ways_to_write_webm(file):
    expected = decoded("webm", WEBM)
    np.testing.assert_array_equal(decoded("webm", file), expected)
    np.testing.assert_array_equal(decoded("webm", file, range(0, len(file), 97)), expected)


def test_a_header_alone_is_silence_so_far():
    assert len(decoded("webm", webm(track(HEAD), []))) == 0
    assert len(decoded("ogg", OGG[:300])) == 0
    assert len(decoded("webm", b"")) == 0


@pytest.mark.parametrize(
    ("container", "data", "words"),
    [
        ("webm", webm(track(b"", codec=b"A_VORBIS"), []), "WebM with A_VORBIS"),
        ("webm", webm(track(b"", codec=b"A_PCM/FLOAT/IEEE"), []), "A_PCM/FLOAT/IEEE"),
        ("webm", webm(track(b"", codec=b"V_VP9", kind=1), []), "no audio"),
        ("webm", webm(element(0xAE, track(HEAD)[9:] + element(0x6D80, b"x")), []), "A_OPUS"),
        ("webm", webm(b"", []), "no audio"),
        ("webm", OGG, "no WebM"),
        ("webm", b"\0\0\0\x20ftypisom" + bytes(90), "no WebM"),
        ("webm", b"RIFF" + bytes(50), "no WebM"),
        ("webm", element(0x18538067, b"", UNKNOWN), "no WebM"),
        ("ogg", WEBM, "no Ogg"),
        ("ogg", b"fLaC" + bytes(50), "no Ogg"),
        ("ogg", ogg_page(b"\x01vorbis" + bytes(23), 0, 0, BEGINS), "Ogg without Opus"),
    ],
)
def test_what_is_no_such_file_is_told(container, data, words):
    with pytest.raises(AudioFormatError, match="the file is") as refused:
        decoded(container, data)
    assert words in str(refused.value)


def test_vorbis_in_ogg_is_told():
    held = io.BytesIO()
    soundfile.write(held, np.zeros(9000), 48000, format="OGG", subtype="VORBIS")
    with pytest.raises(AudioFormatError, match="expected Opus"):
        decoded("ogg", held.getvalue())


OPEN = webm(track(HEAD), [])


@pytest.mark.parametrize(
    ("container", "data"),
    [
        ("webm", OPEN + b"\0" * 9),
        ("webm", OPEN + element(0x4444, b"x")),  # nothing of WebM
        ("webm", OPEN + element(0xEC, b"", UNKNOWN)),
        ("webm", OPEN + element(0xA3, b"", UNKNOWN)),
        ("webm", OPEN + element(0xA3, b"\x81")),
        ("webm", OPEN + element(0xA3, b"")),
        ("webm", OPEN + element(0xA3, b"\x00" * 12)),
        ("webm", OPEN + block(PACKETS[0], flags=0x86)),  # several packets in a block
        ("webm", OPEN + block(bytes(100_000))),
        ("webm", OPEN + block(b"")),
        ("webm", OPEN + block(b"\x03")),  # how many frames?
        ("webm", OPEN + block(b"\x03\x00")),  # none
        ("webm", OPEN + block(b"\xff\x31")),  # more than 120 ms
        ("webm", OPEN + WEBM),  # another one behind it
        ("webm", WEBM[:60] + bytes(9) + WEBM[60:]),
        ("webm", webm(element(0xAE, b"\x86\xff"), [])),
        ("webm", webm(bytes(70_000), [])),
        ("webm", webm(track(b"OpusHead"), [block(PACKETS[0])])),
        ("webm", webm(track(b"OpusHead\x01\x00" + bytes(9)), [block(PACKETS[0])])),
        ("webm", webm(track(HEAD[:8] + b"\xff" + HEAD[9:]), [block(PACKETS[0])])),
        ("ogg", OGG[:900] + b"x" + OGG[900:]),
        ("ogg", OGG[:900] + bytes([OGG[900] ^ 1]) + OGG[901:]),
        ("ogg", OGG + OGG),
        ("ogg", ogg_page(b"OpusHead", 0, 0, BEGINS) + ogg_page(b"", 0, 1) + ogg_page(b"\0", 9, 2)),
        ("ogg", ogg_page(HEAD, 0, 0, BEGINS) + ogg_page(b"", 0, 1) + ogg_page(b"", 9, 2)),
    ],
)
def test_damage_is_one_error(container, data):
    with pytest.raises(AudioError, match="the file is|the file was") as refused:
        decoded(container, data)
    assert str(refused.value).endswith((".", ")."))
    if container == "ogg" or data.startswith(OPEN):
        assert not isinstance(refused.value, AudioFormatError)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_comes_is_samples_or_one_error(data):
    container, file = data.draw(st.sampled_from([*FILES.values(), ("webm", b""), ("ogg", b"")]))
    mutated = bytearray(file[: data.draw(st.integers(0, min(len(file), 4000)))])
    for _ in range(data.draw(st.integers(0, 4)) if mutated else 0):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    mutated += data.draw(st.binary(max_size=60))
    try:
        found = decoded(container, bytes(mutated), data.draw(st.lists(st.integers(0, 4000))))
    except AudioError:
        return
    assert found.ndim == 2
    assert len(found) <= 48 * 120 * (len(mutated) // 2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8))
def test_packets_of_anything_last_as_long_as_they_say(packets):
    """What libsndfile makes of them is as long as was reckoned, or one error."""
    file = webm(track(HEAD), map(block, packets))
    skipped = opus_head(HEAD).skipped
    try:
        found = decoded("webm", file)
    except AudioError:
        return
    assert len(found) == max(0, sum(map(opus_samples, packets)) - skipped)


def test_hours_in_a_mebibyte_come_a_second_at_a_time():
    file = webm(track(HEAD), [block(TINY)] * 50_000)
    assert len(file) < 1 << 20
    stream = OpusStream("webm", "the file")
    tracemalloc.start()
    stream.feed(file)
    for _ in range(5):
        assert OPUS_RATE <= len(stream.decode()) + 312 <= OPUS_RATE + 5760
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_lengths_that_are_stated_take_no_memory():
    stream = OpusStream("webm", "the file")
    tracemalloc.start()
    stream.feed(OPEN + element(0xEC, b"", (1 << 56 | 1 << 50).to_bytes(8)))
    for _ in range(50):
        stream.feed(bytes(1 << 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    assert len(stream.decode()) == 0


def test_a_container_that_is_none_is_refused():
    with pytest.raises(OptionError, match="mp4"):
        OpusStream("mp4", "the file")


def test_the_last_page_says_where_the_sound_ends():
    pages = [ogg_page(HEAD, 0, 0, BEGINS), ogg_page(b"OpusTags", 0, 1)]
    pages += [ogg_page(each, 960 * (n + 1), n + 2) for n, each in enumerate(PACKETS[:3])]
    pages.append(ogg_page(PACKETS[3], 960 * 3 + 100, 5, ENDS))
    assert len(decoded("ogg", b"".join(pages))) == 960 * 3 + 100 - opus_head(HEAD).skipped


# --- in a reader process


@pytest.fixture
def pool():
    with ReaderPool(1) as made:
        yield made


def heard(reading, data: bytes, size: int) -> np.ndarray:
    blocks = [b for at in range(0, len(data), size) for b in reading.blocks(data[at : at + size])]
    return np.concatenate(blocks)


@pytest.mark.parametrize(("name", "size"), [("Ogg", 1000), ("WebM", 333), ("Chromium", 1 << 20)])
def test_a_process_gives_the_same_samples(pool, name, size):
    container, data = FILES[name]
    with pool.open_growing(container, "the file") as reading:
        np.testing.assert_array_equal(heard(reading, data, size), decoded(container, data))
    assert not pool.pids
    with pytest.raises(AudioError, match="closed"):
        next(reading.blocks(b"x"))


def test_errors_of_the_process_are_told_as_they_are(pool):
    with pytest.raises(OptionError, match="flac"):
        pool.open_growing("flac", "the file")
    with pool.open_growing("ogg", "the file") as reading:
        with pytest.raises(AudioFormatError, match="the file is no Ogg"):
            next(reading.blocks(WEBM))
        with pytest.raises(AudioError):
            next(reading.blocks(OGG))
    assert not pool.pids


def test_a_length_is_bounded():
    file = webm(track(HEAD), [block(TINY)] * 5_000)
    limits = ReaderLimits(audio_seconds=10.0)
    with (
        ReaderPool(1, limits=limits) as few,
        few.open_growing("webm", "the file") as reading,
        pytest.raises(AudioError, match="longer than 10 s"),
    ):
        heard(reading, file, len(file))


def test_processor_time_is_bounded():
    """A second of sound takes some milliseconds; there is no end to it."""
    more = b"".join(map(block, PACKETS))
    limits = ReaderLimits(cpu_seconds=1.0, cpu_seconds_per_minute=1e-6)
    with ReaderPool(1, limits=limits) as few, few.open_growing("webm", "the file") as reading:
        heard(reading, WEBM, len(WEBM))
        with pytest.raises(AudioError, match="processor time"):
            sum(len(each) for _ in range(5_000) for each in reading.blocks(more))


def test_a_process_that_is_killed_takes_nobody_along(pool):
    import os
    import signal

    with pool.open_growing("webm", "one") as one, pool.open_growing("ogg", "two") as two:
        assert len(pool.pids) == 2
        assert len(heard(one, WEBM[:4000], 4000))
        os.kill(one._process.pid, signal.SIGKILL)
        with pytest.raises(AudioError, match="one"):
            next(one.blocks(WEBM[4000:]))
        np.testing.assert_array_equal(heard(two, OGG, 5000), decoded("ogg", OGG))


def test_a_closed_pool_opens_nothing():
    pool = ReaderPool(1)
    reading = pool.open_growing("webm", "the file")
    pool.close()
    with pytest.raises(AudioError, match="was not read|ended"):
        next(reading.blocks(WEBM))
    reading.close()
    with pytest.raises(OptionError, match="closed"):
        pool.open_growing("webm", "the file")
