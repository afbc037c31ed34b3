"""What users take for samples: read as they meant it, or told what to pass instead."""

from __future__ import annotations

import asyncio
import io
from array import array
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_runtime.audio.samples import FrameReader
from mt3_runtime.audio.sources import load_audio, open_audio, open_blocks
from mt3_runtime.errors import AudioError, OptionError

RNG = np.random.default_rng(3)
SONG = RNG.uniform(-0.5, 0.5, 16000)


def shape(*sizes):
    return RNG.uniform(-0.5, 0.5, sizes)


# --- axes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "frames"),
    [
        ((9,), (9, 1)),
        ((1000, 2), (1000, 2)),
        ((2, 1000), (1000, 2)),
        ((8, 9), (9, 8)),
        ((2, 32), (32, 2)),
        ((2, 2), (2, 2)),
        ((3, 8), (3, 8)),
        ((100, 64), (100, 64)),
        ((0, 2), (0, 2)),
        ((1, 700), (700, 1)),
    ],
)
def test_the_axis_of_the_channels(sizes, frames):
    assert FrameReader().read(shape(*sizes)).shape == frames


@pytest.mark.parametrize("transposed", [False, True])
def test_a_short_last_block_is_read_as_those_before(transposed):
    """Of 2 x 2 samples alone nothing tells which axis is which."""
    frames = shape(1202, 2)
    blocks = [block.T if transposed else block for block in (frames[:1200], frames[1200:])]
    blocks.append(shape(2, 0) if transposed else shape(0, 2))
    samples = np.concatenate(list(open_blocks(blocks, sr=16000)))
    assert np.array_equal(samples, load_audio(frames))
    wide = shape(1203, 16)  # three frames of sixteen channels are no sixteen samples of three
    samples = np.concatenate(list(open_blocks([wide[:1200], wide[1200:]], sr=16000)))
    assert np.array_equal(samples, load_audio(wide))


@pytest.mark.parametrize(
    "source",
    [
        [SONG[at : at + 800] for at in range(0, 16000, 800)],
        tuple(SONG[at : at + 1600] for at in range(0, 16000, 1600)),
        deque(SONG[at : at + 1600] for at in range(0, 16000, 1600)),
        [SONG[at : at + 32].tolist() for at in range(0, 16000, 32)],
        np.reshape(SONG, (16, 1000)),
        np.reshape(SONG, (160, 100)),
        [SONG[:800], SONG[800:1000]],
        [SONG[:800].tolist(), SONG[800:1000].tolist()],
        [shape(800, 2), shape(800, 2)],
        [shape(800, 2), shape(40, 2)],
    ],
)
def test_blocks_are_no_channels(source):
    with pytest.raises(AudioError, match=r"numpy\.concatenate.*live=True"):
        open_audio(source, sr=16000)


@pytest.mark.parametrize("source", [[SONG, SONG], (SONG.tolist(), SONG.tolist()), [SONG] * 8])
def test_a_list_of_few_is_read_as_channels_and_this_is_said(source):
    with open_audio(source) as stream:
        assert np.allclose(np.concatenate(list(stream)), SONG, atol=1e-6)
        (sentence,) = stream.level_warnings
    assert f"of {len(source)} sequences was taken for the channels of one recording" in sentence


@pytest.mark.parametrize(
    "source", [SONG.tolist(), array("f", SONG), [[x, x] for x in SONG], np.stack([SONG, SONG])]
)
def test_lists_of_samples_and_frames_are_read(source):
    with open_audio(source) as stream:
        assert np.allclose(np.concatenate(list(stream)), SONG, atol=1e-6)
        assert stream.level_warnings == ()


# --- other things --------------------------------------------------------------------------------


async def _blocks():
    yield SONG


async def _samples():
    return SONG


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ((SONG, 44100), "rate as sr"),
        ((44100, SONG), "rate as sr"),
        ([SONG.tolist(), 22050.0], "rate as sr"),
        ((SONG, np.int64(8000)), "rate as sr"),
        ({"array": SONG, "sampling_rate": 16000}, "A dict object is not audio"),
        ((block for block in [SONG]), "A generator is no single recording"),
        (map(np.asarray, [SONG]), "A map is no single recording"),
        (["a.wav", "b.wav"], r"pass it to Model\.transcribe_many"),
        ((Path("a.wav"),), r"pass it to Model\.transcribe_many"),
        ([io.BytesIO()], r"pass it to Model\.transcribe_many"),
        (_blocks(), "is asynchronous"),
        (None, "A NoneType is not audio"),
        (object(), "A object is not audio"),
        ({1.0, 2.0}, "A set is not audio"),
        (shape(2, 500, 2), "batch"),
    ],
)
def test_what_is_no_recording_is_named(source, words):
    with pytest.raises(AudioError, match=words):
        open_audio(source)


def test_a_coroutine_is_to_be_awaited():
    forgotten = _samples()
    with pytest.raises(AudioError, match="A coroutine is asynchronous; await it"):
        open_audio(forgotten)
    forgotten.close()


@pytest.mark.parametrize(
    "source",
    [
        SONG,
        shape(500, 2),
        "song.wav",
        Path("song.wav"),
        io.BytesIO(b"RIFF"),
        b"RIFF",
        7,
        _blocks(),
    ],
)
def test_one_recording_is_no_sequence_of_blocks(source):
    with pytest.raises(AudioError, match=r"leave live=True|queue\.Queue"):
        open_blocks(source, sr=16000)


def test_numbers_are_no_blocks():
    with pytest.raises(AudioError, match="One number is no block"):
        list(open_blocks(SONG.tolist(), sr=16000))


# --- file objects --------------------------------------------------------------------------------


class Upload:
    """As web frameworks hand it over."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    async def read(self, size: int = -1) -> bytes:
        return self.file.read(size)


class Future:
    """Asynchronous, and no coroutine."""

    def read(self, size: int = -1) -> asyncio.Future:
        return asyncio.Future(loop=asyncio.new_event_loop())


class Whole:
    def read(self) -> bytes:
        return b"RIFF"


class Lines:
    def read(self, size: int = -1) -> list[bytes]:
        return [b"RIFF"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Upload(b"RIFF"), r"asynchronous; .* Pass its \.file"),
        (Future(), r"asynchronous; .* io\.BytesIO\(await"),
        (Whole(), r"takes no number of bytes; .* io\.BytesIO"),
        (Lines(), "gives list and not bytes"),
        (io.StringIO("RIFF"), "text mode"),
    ],
)
@pytest.mark.filterwarnings("error")  # a coroutine nobody awaited is one
def test_file_objects_of_another_kind(source, words):
    with pytest.raises(AudioError, match=words):
        open_audio(source)


def test_a_sound_file_object_is_told_apart(tmp_path):
    path = tmp_path / "song.wav"
    soundfile.write(path, SONG, 16000, "FLOAT")
    upload = Upload(path.read_bytes())
    with (
        soundfile.SoundFile(path) as sound,
        pytest.raises(AudioError, match=r"its \.read\(\), with its \.samplerate as sr"),
    ):
        open_audio(sound)
    assert np.array_equal(load_audio(upload.file), load_audio(path))


# --- rates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "hertz"), [(44.1, "44100"), (192, "192000"), (8, "8000"), (22.05, "22050")]
)
def test_rates_in_khz(rate, hertz):
    with pytest.raises(OptionError, match=rf"If it is in kHz, pass {hertz}\."):
        open_audio(SONG, sr=rate)
    with pytest.raises(OptionError, match=rf"If it is in kHz, pass {hertz}\."):
        open_blocks([SONG], sr=rate)
