"""Levels that make notes doubtful: told for every kind of source, and for nothing else."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.audio.levels import LevelMeter
from mt3_runtime.audio.sources import load_audio, open_audio, open_blocks
from mt3_runtime.errors import AudioWarning

RATE = 8000


def music(seconds=4.0, amplitude=0.5):
    """Two tones that swell, float64 [n]."""
    time = np.arange(round(seconds * RATE)) / RATE
    wave = np.sin(2 * np.pi * 220 * time) + 0.7 * np.sin(2 * np.pi * 331 * time)
    return amplitude * wave * (1 + np.sin(3 * time)) / 3.4


def told(source, sr=RATE):
    """What is said of an array or a file."""
    with open_audio(source, sr=sr) as stream:
        for _ in stream:
            pass
        return stream.level_warnings


def only(source, sr=RATE):
    (sentence,) = told(source, sr)
    return sentence


def encoded(frames, container="WAV", subtype="FLOAT"):
    buffer = io.BytesIO()
    soundfile.write(buffer, frames, RATE, subtype=subtype, format=container)
    buffer.seek(0)
    return buffer


# --- nothing to say ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frames",
    [
        music(),
        music(amplitude=0.01),  # 40 dB down
        music(amplitude=4.0),
        np.sign(music()),  # full scale, all whole numbers
        music() + 0.3,
        np.stack([music(), np.zeros(len(music()))], 1),
        np.stack([music(), -0.7 * music()], 1),
        np.stack([np.zeros(len(music()))] * 7 + [music()], 1),
        np.random.default_rng(0).normal(0, 0.1, (30000, 8)),  # unrelated channels
        (music() * 32767).astype(np.int16),
        (music() * 127 + 128).astype(np.uint8),
        (music() * (2**31 - 1)).astype(np.int32),
    ],
)
def test_of_ordinary_audio_nothing_is_said(frames):
    assert told(frames) == ()


# --- samples without scale -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.round(music() * 32767), "look like 16-bit integers cast to float: divide by 32768"),
        (np.round(music() * 20000).astype(np.float32), "16-bit integers"),
        (np.round(music() * 127), "8- or 16-bit integers"),
        (np.round(music() * 127 + 128), "unsigned 8-bit integers cast to float: subtract 128"),
        (np.round(music() * 3e4 + 32768), "unsigned 16-bit integers"),
        (np.round(music() * 2**23), "24-bit integers cast to float: divide by 8388608"),
        (np.round(music() * 2.0**31), "32-bit integers"),
        (np.round(music() * 2.0**40), "look like integers cast to float"),
        (np.round(music() * 10), "8- or 16-bit integers"),
        (music() * 32768, "Divide by their full scale (32768 if they were 16-bit integers)"),
        (music() * 30, "Divide by their full scale"),
        (np.stack([music() * 1e-3, np.round(music() * 32767)], 1), "Divide by their full scale"),
    ],
)
def test_samples_that_were_never_scaled(samples, words):
    for source, sr in ((samples, RATE), (encoded(samples), None)):
        sentence = only(source, sr)
        assert "where -1 to 1 is expected" in sentence
        assert words in sentence


def test_all_whole_numbers_means_all():
    samples = np.round(music() * 32767)
    samples[-1] = 0.5
    assert "look like" not in only(samples)


def test_live_input_is_told_with_the_first_block():
    """A stream may have no end to say it at."""
    blocks = iter([music() * 0.0, np.round(music() * 32767), music() * 32768])
    with open_blocks(blocks, sr=RATE, target_rate=RATE) as stream:
        run = stream.with_warnings()
        next(run)
        next(run)
        with pytest.warns(AudioWarning, match="16-bit integers cast to float"):
            next(run)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # once is enough
            for _ in run:
                pass
        assert "Divide by" in stream.level_warnings[0]  # in the end it is known better


# --- nothing to hear -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.zeros(9000), "holds no sound: every sample is 0."),
        (np.zeros((9000, 2)), "holds no sound: every sample is 0."),
        (np.full(9000, 0.25), "every sample is 0.25"),
        (np.full((9000, 3), -1.0), "every sample is -1"),
        (np.zeros(9000, np.int16), "every sample is 0."),
        (music() / 32768, "as good as silent"),
        (music() / 32768 + 0.5, "as good as silent"),  # an offset is no sound
        (np.round(music() * 2) / 32768, "dither of 16-bit"),
        ((music() * 32767).astype(np.int32), "type int32 are divided by 2147483648"),
        ((music() * 127).astype(np.int16), "type int16 are divided by 32768"),
        ((music() * 2**23).astype(np.int32), "very quiet"),
        (music(amplitude=1e-3), "very quiet: its peak is 6"),
        (np.stack([music(), -0.8 * music()], 1) * 0.05, "very quiet"),
    ],
)
def test_silence_and_what_is_close_to_it(frames, words):
    assert words in only(frames)


def test_a_quiet_recording_with_one_loud_moment_is_not_quiet():
    frames = music(amplitude=1e-3)
    frames[500:900] += music(amplitude=0.3)[500:900]
    assert told(frames) == ()


def test_files_are_told_to_be_quiet_by_their_name(tmp_path):
    path = tmp_path / "hum.flac"
    soundfile.write(path, music(amplitude=1e-3), RATE)
    with open_audio(path) as stream:
        assert stream.level_warnings == ()  # nothing was read
        list(stream)
        assert stream.level_warnings[0].startswith(f"{path} is very quiet")


# --- channels that cancel ------------------------------------------------------------------------


def half_inverted(channels=2):
    frames = np.stack([music(12)] * channels, 1)
    frames[len(frames) // 2 :, 1::2] *= -1
    return frames


@pytest.mark.parametrize(
    ("frames", "seconds"),
    [
        (np.stack([music(), -music()], 1), "4.0 of 4.0"),
        (np.stack([music(), -0.95 * music()], 1), "4.0 of 4.0"),
        (np.stack([music() + 0.2, 0.2 - music()], 1), "4.0 of 4.0"),  # the offset remains
        (np.stack([music(), -music(), music(), -music()], 1), "4.0 of 4.0"),
        (np.stack([music(), -music()], 1) + 1e-3 * music()[:, np.newaxis], "4.0 of 4.0"),
        (half_inverted(), "6.0 of 12.0"),
        (half_inverted(4), "6.0 of 12.0"),
        (np.stack([music(0.3), -music(0.3)], 1), "0.3 of 0.3"),
        (np.stack([music(), -music()], 1) * 1e-3, "4.0 of 4.0"),
        (np.eye(1, 8000, 99).T * [0.5, -0.5], "1.0 of 1.0"),  # a click
    ],
)
def test_channels_that_cancel_each_other(frames, seconds):
    for source, sr in ((frames, RATE), (encoded(frames), None), (frames.T, RATE)):
        assert f"cancel each other in {seconds} s" in only(source, sr)


def test_the_number_of_channels_may_change():
    """As in joined files: mono, inverted stereo, mono."""
    meter = LevelMeter("joined", RATE)
    mono, stereo = music(6)[:, np.newaxis], np.stack([music(6), -music(6)], 1)
    for frames in (mono, stereo, mono):
        for piece in np.split(frames.astype(np.float32), 7 * [0] + [5000, 20000]):
            meter.mix(piece)
    (sentence,) = meter.sentences()
    assert "cancel each other in 6.0 of 18.0 s" in sentence


# --- one way of saying it ------------------------------------------------------------------------


def test_many_channels_of_an_array_may_be_something_else(tmp_path):
    frames = np.random.default_rng(1).normal(0, 0.1, (4000, 16))
    assert "taken for 16 channels" in only(frames)
    path = tmp_path / "sixteen.wav"  # states that they are
    soundfile.write(path, frames, RATE)
    assert told(path, None) == ()


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["inverted", "half", "integers", "quiet", "plain"]),
    cuts=st.lists(st.integers(0, 12 * RATE), max_size=12),
)
def test_blocks_do_not_matter(kind, cuts):
    frames = {
        "inverted": np.stack([music(12), -music(12)], 1),
        "half": half_inverted(),
        "integers": np.round(np.stack([music(12)] * 2, 1) * 3e4),
        "quiet": np.stack([music(12)] * 2, 1) * 1e-3,
        "plain": np.stack([music(12)] * 2, 1),
    }[kind]
    with open_blocks(np.split(frames, sorted(cuts)), sr=RATE) as stream:
        list(stream)
        live = stream.level_warnings
    assert [text.replace("stream", "array") for text in live] == list(told(frames))


def test_reading_alone_gives_no_warnings_and_the_same_samples():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not load_audio(np.zeros(1000)).any()
        frames = np.stack([music(), -music()], 1).astype(np.float32)
        assert not load_audio(frames, sr=RATE, target_rate=RATE).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_an_error_and_no_level(bad):
    frames = np.stack([music(), music()], 1)
    frames[100, 0], frames[100, 1] = bad, -bad
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="NaN, infinite"):
        load_audio(frames)
