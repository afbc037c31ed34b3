from __future__ import annotations

import io
import math
import os
import sys
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.audio.sources import load_audio, open_audio, open_blocks
from mt3_runtime.errors import (
    AudioError,
    AudioNotFoundError,
    AudioWarning,
    MissingDependencyError,
    OptionError,
)
from mt3_runtime.imports import extras


@pytest.fixture(autouse=True)
def _no_unexpected_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def tone(seconds=1.0, rate=16000, amplitude=0.5, hz=440.0):
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(
        np.float32
    )


def encode(samples, rate, container="WAV", subtype="FLOAT"):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, subtype=subtype, format=container)
    return buffer.getvalue()


def one_shot(mono, rate, target=16000):
    """What librosa.load does with a mono signal."""
    if rate == target:
        return mono
    out = soxr.resample(mono, rate, target, quality="HQ")
    return np.pad(out, (0, math.ceil(len(mono) * (target / rate)) - len(out)))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("container", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 1 / 128),
        ("WAV", "PCM_16", 1 / 2**15),
        ("WAV", "PCM_24", 1 / 2**23),
        ("WAV", "PCM_32", 1e-7),
        ("WAV", "FLOAT", 0.0),
        ("WAV", "DOUBLE", 0.0),
        ("FLAC", "PCM_16", 1 / 2**15),
        ("FLAC", "PCM_24", 1 / 2**23),
        ("AIFF", "PCM_16", 1 / 2**15),
        ("OGG", "VORBIS", 0.03),
        ("MP3", "MPEG_LAYER_III", 0.03),
    ],
)
def test_every_format_gives_the_samples_back(tmp_path, container, subtype, tolerance):
    path = tmp_path / "tone"
    path.write_bytes(encode(tone(), 16000, container, subtype))
    with open_audio(path) as stream:
        assert (stream.name, stream.source_rate, stream.duration) == (str(path), 16000, 1.0)
        samples = np.concatenate(list(stream))
    assert samples.dtype == np.float32
    assert np.abs(samples - tone())[500:-500].max() <= tolerance
    assert len(samples) == 16000


@pytest.mark.parametrize(("rate", "channels"), [(96000, 6), (44100, 2), (48000, 1), (8000, 3)])
def test_file_is_the_resampled_mean_of_its_channels(rate, channels):
    rng = np.random.default_rng(1)
    frames = rng.uniform(-1, 1, (rate * 7 // 2, channels)).astype(np.float32)
    expected = one_shot(frames.mean(axis=1), rate)
    assert np.array_equal(load_audio(io.BytesIO(encode(frames, rate))), expected)


def test_amplitude_is_neither_normalised_nor_clipped():
    loud, quiet = tone(rate=44100, amplitude=3.0), tone(rate=44100, amplitude=1e-4)
    assert np.abs(load_audio(io.BytesIO(encode(loud, 44100)))).max() == pytest.approx(3.0, rel=1e-3)
    assert np.abs(load_audio(quiet, sr=44100)).max() == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_one_sample(rate):
    assert len(load_audio(io.BytesIO(encode(np.ones(1, np.float32), rate)))) == 1


def test_silence_stays_silence():
    assert not load_audio(io.BytesIO(encode(np.zeros(50000), 44100, "FLAC", "PCM_16"))).any()


def test_sources_of_one_file_agree(tmp_path):
    data = encode(tone(rate=22050), 22050)
    path = tmp_path / "tone.wav"
    path.write_bytes(data)

    class Pipe:  # neither seek nor name
        read = io.BytesIO(data).read

    rewound_not = io.BytesIO(data)
    rewound_not.seek(0, io.SEEK_END)
    expected = load_audio(path)
    for source in (str(path), io.BytesIO(data), rewound_not, Pipe()):
        assert np.array_equal(load_audio(source), expected)
    assert not rewound_not.closed


@pytest.mark.skipif(os.name != "posix", reason="named pipes are a POSIX thing")
def test_named_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(encode(tone(), 16000),))
    writer.start()
    assert np.array_equal(load_audio(path), tone())
    writer.join()


def test_stream_closes_what_it_opened(tmp_path, monkeypatch):
    path = tmp_path / "tone.wav"
    path.write_bytes(encode(tone(7), 16000))
    text = tmp_path / "text"
    text.write_text("words")
    opened = []
    real_open = Path.open
    monkeypatch.setattr(Path, "open", lambda *a: opened.append(real_open(*a)) or opened[-1])
    with open_audio(path) as stream:
        next(stream)
        assert not opened[0].closed
    assert opened[0].closed
    assert list(stream) == []
    list(open_audio(path))
    assert opened[1].closed
    with pytest.raises(OptionError):
        open_audio(path, sr=8000)
    assert opened[2].closed
    with pytest.raises(AudioError):
        open_audio(text)
    assert opened[3].closed


def test_rate_of_a_file():
    data = encode(tone(), 16000)
    assert len(load_audio(io.BytesIO(data), sr=16000)) == 16000
    assert len(load_audio(io.BytesIO(data), target_rate=8000)) == 8000
    with pytest.raises(OptionError, match=r"sr=44100 contradicts .* its own rate, 16000 Hz"):
        open_audio(io.BytesIO(data), sr=44100)
    with pytest.raises(AudioError, match="states a sample rate of 7 Hz"):
        open_audio(io.BytesIO(encode(tone(), 7)))


def test_paths_that_are_no_file(tmp_path):
    with pytest.raises(AudioNotFoundError, match=r"There is no file at .*nothing\.wav"):
        open_audio(tmp_path / "nothing.wav")
    with pytest.raises(AudioNotFoundError, match="is a folder"):
        open_audio(str(tmp_path))
    with pytest.raises(AudioError, match="cannot be opened"):
        open_audio("nul\0byte")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.wav", b"", "is empty"),
        ("text.wav", b"These are words.\n" * 100, "is not audio"),
        ("text.raw", b"These are words.\n" * 100, "is not audio"),
        ("head.wav", encode(tone(), 16000)[:30], "is not audio"),
        ("zero.wav", encode(np.zeros(0), 16000), "holds no audio"),
        ("head.flac", encode(tone(), 16000, "FLAC", "PCM_16")[:200], "holds no audio"),
        ("tag.mp3", b"ID3\x03\0\0\0\0\0\x10" + bytes(16), "is not audio"),
    ],
)
def test_files_without_audio(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AudioError, match=f"{name} {message}"):
        load_audio(path)


def test_text_file_object(tmp_path):
    with pytest.raises(AudioError, match="text mode"):
        open_audio(io.StringIO("words"))


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("AIFF", "PCM_16"), ("AU", "PCM_16")],
)
def test_cut_file_gives_what_is_left_and_says_so(tmp_path, container, subtype):
    whole = np.column_stack([tone(10), tone(10, hz=1000)])
    data = encode(whole, 16000, container, subtype)
    path = tmp_path / "cut.wav"
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.warns(AudioWarning, match=r"cut\.wav ends early: 6\.00 s of 10\.00 s could"):
        samples = load_audio(path)
    assert len(samples) == pytest.approx(96000, abs=100)
    assert np.abs(samples - whole.mean(axis=1)[: len(samples)]).max() < 1e-4


def test_cut_flac_gives_the_frames_before_the_cut():
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 160000)
    data = encode(noise, 16000, "FLAC", "PCM_16")
    with pytest.warns(AudioWarning, match=r"ends early: \d\.\d\d s of 10\.00 s"):
        samples = load_audio(io.BytesIO(data[: len(data) * 6 // 10]))
    assert 96000 - 8192 <= len(samples) <= 96000  # at most two FLAC frames less than the bytes hold
    assert np.abs(samples - noise[: len(samples)]).max() <= 2**-15


def mp3(samples, rate=44100):
    return encode(samples, rate, "MP3", "MPEG_LAYER_III")


def without_length_header(data):
    """Drop the first frame of an MPEG-1 layer III file, which counts the others."""
    kbits = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)[data[2] >> 4]
    rate = (44100, 48000, 32000)[data[2] >> 2 & 3]
    assert b"Xing" in data[:200]
    return data[144000 * kbits // rate + (data[2] >> 1 & 1) :]


def swelling_noise(seconds=30):
    """Quiet first, so that a bit rate guessed from the first frames is far too high or low."""
    rng = np.random.default_rng(0)
    loud = np.repeat(np.arange(seconds) % 2 * 0.2, 44100)
    return tone(seconds, 44100, 0.2) + (loud * rng.standard_normal(len(loud))).astype(np.float32)


def test_cut_mp3():
    data = mp3(swelling_noise())
    with pytest.warns(AudioWarning, match=r"ends early: 1\d\.\d\d s of 30\.00 s"):
        samples = load_audio(io.BytesIO(data[: len(data) // 2]))
    assert 10 < len(samples) / 16000 < 20


def test_mp3_without_length_header_is_read_to_its_end():
    data = mp3(swelling_noise())
    bare = without_length_header(data)
    guessed = soundfile.SoundFile(io.BytesIO(bare)).frames / 44100
    assert abs(guessed - 30) > 1  # what libsndfile would deliver
    with open_audio(io.BytesIO(bare)) as stream:
        samples = np.concatenate(list(stream))
    assert 30 <= len(samples) / 16000 < 30.1
    assert stream.duration == pytest.approx(len(samples) / 16000, abs=1e-3)
    tagged = b"ID3\x03\0\0\0\x01\0\0" + bytes(16384) + bare + b"TAG" + bytes(125)
    assert np.array_equal(load_audio(io.BytesIO(tagged)), samples)


def test_mp3_without_length_header_and_what_is_behind_it():
    bare = without_length_header(mp3(swelling_noise()))
    whole = load_audio(io.BytesIO(bare))
    assert np.array_equal(load_audio(io.BytesIO(bare + bytes(60000))), whole)
    junk = np.random.default_rng(0).bytes(60000)
    with pytest.warns(AudioWarning, match=r"60000 bytes .* neither audio nor a tag: 30\.04 s of"):
        assert np.array_equal(load_audio(io.BytesIO(bare + junk)), whole)


def test_tag_on_an_mp3_with_length_header_is_skipped():
    data = mp3(tone(2, 44100))
    tagged = b"ID3\x03\0\0\0\x01\0\0" + bytes(16384) + data
    with open_audio(io.BytesIO(tagged)) as stream:
        assert stream.duration == 2.0
        assert np.array_equal(np.concatenate(list(stream)), load_audio(io.BytesIO(data)))


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", b"\0\0\xff\x7f"])
def test_wav_written_to_a_pipe_has_no_length_and_is_not_cut(size):
    data = bytearray(encode(tone(), 16000, "WAV", "PCM_16"))
    data[4:8] = data[40:44] = size
    assert len(load_audio(io.BytesIO(data))) == 16000


def test_an_hour_is_read_in_the_memory_of_a_block(tmp_path):
    path = tmp_path / "hour.flac"
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16") as file:
        for _ in range(60):
            file.write(np.zeros(60 * 8000, np.int16))
    tracemalloc.start()
    with open_audio(path) as stream:
        sizes = [len(block) for block in stream]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) == 3600 * 16000
    assert max(sizes) <= 65536
    assert peak < 2e6


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.uint8, [0, 64, 128, 192]),
        (np.int8, [-128, -64, 0, 64]),
        (np.uint16, [0, 16384, 32768, 49152]),
        (np.int16, [-32768, -16384, 0, 16384]),
        (np.int32, [-(2**31), -(2**30), 0, 2**30]),
        (np.uint32, [0, 2**30, 2**31, 3 * 2**30]),
        (np.float16, [-1, -0.5, 0, 0.5]),
        (np.float32, [-1, -0.5, 0, 0.5]),
        (np.float64, [-1, -0.5, 0, 0.5]),
        (">f8", [-1, -0.5, 0, 0.5]),
        (">i2", [-32768, -16384, 0, 16384]),
    ],
)
def test_number_types(dtype, values):
    samples = load_audio(np.array(values, dtype))
    assert samples.dtype == np.float32
    assert samples.tolist() == [-1, -0.5, 0, 0.5]


def test_array_has_16_khz_unless_told_otherwise():
    with open_audio(tone(2)) as stream:
        assert (stream.name, stream.source_rate, stream.duration) == ("array", 16000, 2.0)
    assert np.array_equal(load_audio(tone(2)), tone(2))
    assert np.array_equal(load_audio(tone().tolist()), tone())
    assert len(load_audio(tone(2), sr=np.float32(32000.0))) == 16000
    fractional = load_audio(tone(2), sr=22050.5)
    assert len(fractional) == math.ceil(32000 * (16000 / 22050.5))


def test_result_does_not_share_memory_with_the_array():
    samples = np.zeros(100, np.float32)
    load_audio(samples)[:] = 1
    assert not samples.any()


def test_channel_axis():
    stereo = np.column_stack([tone(), tone(hz=660)])
    expected = stereo.mean(axis=1)
    assert np.array_equal(load_audio(stereo), expected)
    assert np.array_equal(load_audio(stereo.T), expected)
    assert np.array_equal(load_audio(stereo[:, :1]), stereo[:, 0])
    assert len(load_audio(np.zeros((2, 8)))) == 2
    assert len(load_audio(np.zeros((2, 9)))) == 9


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 100, 2)), "shape"),
        (np.zeros(()), "shape"),
        (np.zeros((256, 512)), "shape"),
        (np.zeros((10, 0)), "shape"),
        (np.zeros(0), "no samples"),
        (np.zeros(9, bool), "type bool"),
        (np.zeros(9, complex), "type complex128"),
        (np.array([None, 1.0]), "type object"),
        (np.array(["a"]), "type <U1"),
        (np.zeros(9, np.int64), "no known full scale"),
        ([[1.0], [1.0, 2.0]], "cannot be read as an array"),
        (b"RIFF", r"io\.BytesIO"),
    ],
)
def test_arrays_that_are_not_audio(array, message):
    with pytest.raises(AudioError, match=message):
        open_audio(array)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_no_number_are_located(bad):
    samples = tone(10).astype(np.float64)
    samples[152000] = bad
    with pytest.raises(AudioError, match=r"array holds a NaN, infinite or too large .* 9\.500 s"):
        load_audio(samples)
    with pytest.raises(AudioError, match=r"at 9\.500 s"):
        load_audio(io.BytesIO(encode(samples, 16000)))


@pytest.mark.parametrize(
    "rate", [0, -1, math.nan, math.inf, 44.1, 1e9, "44100", True, None, 1j, [16000]]
)
def test_rates_that_are_none(rate):
    with pytest.raises(OptionError, match=r"target_rate=.* is not a sample rate"):
        open_audio(tone(), target_rate=rate)
    with pytest.raises(OptionError, match=r"sr=.* is not a sample rate"):
        open_blocks([tone()], sr=rate)
    if rate is not None:
        with pytest.raises(OptionError, match=r"sr=.* is not a sample rate"):
            open_audio(tone(), sr=rate)


def test_target_rate_is_a_whole_number():
    with pytest.raises(OptionError, match="whole number"):
        open_audio(tone(), target_rate=16000.5)


# ---------------------------------------------------------------- streams


@settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000, 44100.5]),
    channels=st.integers(1, 3),
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
def test_blocks_give_the_bits_of_one_shot(rate, channels, sizes, seed):
    frames = np.random.default_rng(seed).uniform(-1, 1, (sum(sizes) + 1, channels))
    frames = frames.astype(np.float32)
    blocks = np.split(frames, np.cumsum(sizes))
    with open_blocks(blocks, sr=rate) as stream:
        assert (stream.name, stream.source_rate, stream.duration) == ("stream", rate, None)
        out = np.concatenate(list(stream))
    assert np.array_equal(out, one_shot(frames.mean(axis=1), rate))
    assert np.array_equal(load_audio(frames[:, 0], sr=rate), one_shot(frames[:, 0].copy(), rate))


def test_stream_is_pulled_only_as_needed():
    pulled = []

    def source():
        for index in range(1000):
            pulled.append(index)
            yield tone(1)

    stream = open_blocks(source(), sr=16000)
    assert pulled == []
    next(stream)
    assert pulled == [0]


def test_a_long_block_is_passed_on_in_pieces():
    sizes = [len(block) for block in open_blocks([tone(60, 48000)], sr=48000)]
    assert sum(sizes) == 60 * 16000
    assert max(sizes) <= 65536


def test_stream_errors():
    with pytest.raises(AudioError, match="ended without a single sample"):
        list(open_blocks([np.zeros(0)], sr=16000))
    with pytest.raises(AudioError, match="2 channels, the blocks before it had 1"):
        list(open_blocks([np.zeros(9), np.zeros((9, 2))], sr=16000))
    with pytest.raises(AudioError, match=r"stream holds a NaN.* at 1\.000 s"):
        list(open_blocks([tone(1), [np.nan]], sr=16000))


# ---------------------------------------------------------------- optional packages


@pytest.mark.parametrize("error", [ImportError("gone"), OSError("no libsndfile")])
def test_missing_packages_are_named_when_needed(monkeypatch, error):
    def refuse(name):
        raise error

    monkeypatch.setattr(extras.importlib, "import_module", refuse)
    assert np.array_equal(load_audio(tone()), tone())
    with pytest.raises(MissingDependencyError, match=r"soxr, .*extra \[cpu\]: pip install"):
        open_audio(tone(), sr=44100)
    with pytest.raises(MissingDependencyError, match=r"soundfile, .*extra \[cpu\]"):
        open_audio(io.BytesIO(encode(tone(), 16000)))


def test_packages_are_not_imported_for_arrays(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    monkeypatch.setitem(sys.modules, "soxr", None)
    assert len(load_audio(tone())) == 16000
