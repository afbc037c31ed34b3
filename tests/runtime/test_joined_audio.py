"""Files that hold several sounds one behind the other: all of them are read."""

from __future__ import annotations

import io
import itertools
import warnings

import numpy as np
import pytest

from mt3_runtime.audio.sources import load_audio, open_audio
from mt3_runtime.errors import AudioWarning
from tests.sounds import FORMATS, ID3V1, ape, id3, junk, patched, read, sound, uncounted


@pytest.fixture(autouse=True)
def _no_unexpected_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("times", [2, 3])
def test_a_file_joined_with_itself(kind, times):
    data = sound(kind, rate=48000)
    joined = read(data * times)
    alone = read(data)
    assert len(joined) == pytest.approx(times * len(alone), abs=times)
    # Resampling runs over the joint; away from it the samples are those of the file.
    for start in (k * len(alone) for k in range(times)):
        middle = slice(start + 2000, start + len(alone) - 2000)
        assert np.abs(joined[middle] - alone[2000:-2000]).max() < 1e-5


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.permutations(["mp3", "vorbis", "wav", "au"], 2))
)
def test_files_of_two_kinds(first, second):
    joined = read(sound(first, 2.0) + sound(second, 1.0))
    assert len(joined) / 16000 == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize("kind", ["mp3", "vorbis", "flac", "wav", "caf"])
@pytest.mark.parametrize(("rate", "channels"), [(48000, 1), (32000, 2), (44100, 2), (22050, 1)])
def test_parts_of_other_rates_and_channels(kind, rate, channels):
    joined = read(sound(kind, 2.0) + sound(kind, 1.0, rate, channels) + sound(kind, 1.0))
    assert len(joined) / 16000 == pytest.approx(4.0, abs=0.01)
    assert np.sqrt(np.mean(joined[34000:46000] ** 2)) > 0.2  # the middle part is there, not silence


def test_the_rate_is_that_of_the_first_sound():
    with open_audio(io.BytesIO(sound("flac", 1.0, 22050) + sound("flac", 1.0, 48000))) as stream:
        assert stream.source_rate == 22050
        assert sum(map(len, stream)) == 32000


@pytest.mark.parametrize("between", [b"", ID3V1, id3(3000), ape(900), bytes(5000), ID3V1 + id3(99)])
@pytest.mark.parametrize("kind", ["mp3", "vorbis", "flac", "wav"])
def test_tags_between_parts_are_no_audio_and_no_damage(kind, between):
    data = sound(kind, 2.0)
    assert np.array_equal(read(data + between + data), read(data + data))


@pytest.mark.parametrize("counted", [(True, False), (False, True), (False, False)])
def test_mp3_with_and_without_a_count_of_its_frames(counted):
    one = sound("mp3", 2.0)
    parts = [one if count else uncounted(one) for count in counted]
    joined = read(b"".join(parts))
    assert len(joined) / 16000 == pytest.approx(4.0, abs=0.12)  # encoder delays stay in


def test_a_cut_first_part_is_reported_and_the_second_is_whole():
    one = sound("mp3", 4.0)
    with pytest.warns(AudioWarning, match=r"part 1 of 2 ends early: [12]\.\d\d s of 4\.00 s"):
        joined = load_audio(io.BytesIO(one[: len(one) // 2] + one))
    alone = read(one)
    assert np.abs(joined[-len(alone) + 2000 :] - alone[2000:]).max() < 0.05
    page = sound("vorbis", 4.0)
    with pytest.warns(
        AudioWarning, match=r"part 1 of 2 .* bytes .* neither audio .* [56]\.\d\d s were"
    ):
        joined = load_audio(io.BytesIO(page[: len(page) // 2] + page))
    assert 5 * 16000 < len(joined) < 7 * 16000
    assert np.sqrt(np.mean(joined[-62000:] ** 2)) == pytest.approx(0.28, abs=0.02)


def test_what_cannot_be_decoded_is_reported_with_both_figures():
    one = sound("vorbis", 2.0)
    broken = patched(one, one.index(b"\x01vorbis") + 11, b"\xff\xff\xff\xff\xff")
    with pytest.warns(
        AudioWarning, match=rf"holds {len(one)} bytes from byte {len(one)} on .* 4\.00 s"
    ):
        assert len(load_audio(io.BytesIO(one + broken + one))) == 64000
    with pytest.warns(AudioWarning, match=r"50000 bytes .* neither audio nor a tag: 2\.00 s of"):
        load_audio(io.BytesIO(one + junk(50000)))


def test_many_parts_are_read_one_at_a_time():
    one = sound("vorbis", 0.25, 16000)
    with open_audio(io.BytesIO(one * 100)) as stream:
        assert stream.duration is None
        assert sum(map(len, stream)) == 25 * 16000
