"""Files made to do harm: each limit is one error, and the next recording is read."""

from __future__ import annotations

import io
import os
import struct
import threading

import numpy as np
import pytest
import soundfile

from mt3_runtime.audio.accepted_formats import SAFE_FORMATS
from mt3_runtime.audio.log_mel import FeatureConfig
from mt3_runtime.audio.segments import SegmentConfig
from mt3_runtime.audio.sources import load_audio, open_audio
from mt3_runtime.errors import AudioError, OptionError
from mt3_runtime.reading import ReaderLimits, ReaderPool, ReadingPlan
from tests import needs
from tests.sounds import FORMATS, sound, tune

posix = pytest.mark.skipif(os.name == "nt", reason="the system enforces no such limit")


def encoded(samples, rate, container, subtype):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def bomb(tmp_path_factory):
    """Two hours of nothing in a few hundred kilobytes."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.flac"
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(120):
            file.write(np.zeros(8000 * 60, np.int16))
    assert path.stat().st_size < 1 << 20
    return path


def read(pool, source, plan=ReadingPlan()):  # noqa: B008  it is frozen
    """Seconds of a recording."""
    return sum(part.samples for part in pool.open(source, plan)) / plan.rate


def decoded(data, formats):
    with open_audio(io.BytesIO(data), formats=formats) as stream:
        return np.concatenate(list(stream))


def check(source, match, plan=ReadingPlan(), **limits):  # noqa: B008
    """The limit is an error, and the pool goes on."""
    with ReaderPool(1, limits=ReaderLimits(**limits)) as pool:
        with pytest.raises(AudioError, match=match):
            read(pool, source, plan)
        assert read(pool, io.BytesIO(sound("wav", 1.0))) == pytest.approx(1.0)


def test_length_as_stated(bomb):
    check(bomb, r"bomb\.flac is longer than 60 s, .*audio_seconds", audio_seconds=60.0)


def test_length_whatever_is_stated(tmp_path):
    """An MP3 that counts fewer frames than it has."""
    data = bytearray(sound("mp3", 20.0))
    at = data.index(b"Xing") if b"Xing" in data else data.index(b"Info")
    data[at + 8 : at + 12] = struct.pack(">I", 40)
    (tmp_path / "x.mp3").write_bytes(data)
    check(tmp_path / "x.mp3", "longer than 5 s", audio_seconds=5.0)


@posix
def test_processor_time(bomb):
    check(
        bomb,
        r"bomb\.flac took more than 1 s of processor time .*cpu_seconds",
        ReadingPlan(16000, SegmentConfig(), FeatureConfig(), salience=True),
        cpu_seconds=1.0,
        cpu_seconds_per_minute=0.001,
    )


@posix
def test_memory():
    """64 channels at 10 MHz: a block of them is 128 MiB."""
    header = struct.pack("<HHIIHH", 1, 64, 10**7, 10**7 * 128, 128, 16)
    data = b"fmt " + struct.pack("<I", 16) + header
    data += b"data" + struct.pack("<I", 128 << 12) + bytes(128 << 12)
    wav = b"RIFF" + struct.pack("<I", 4 + len(data)) + b"WAVE" + data
    check(io.BytesIO(wav), "needs more than 48 MiB of memory", memory_bytes=48 << 20)


def test_bytes_of_a_file(tmp_path):
    path = tmp_path / "x.wav"
    path.write_bytes(sound("wav", 3.0))
    for source in (path, io.BytesIO(path.read_bytes())):
        check(source, r"larger than 0\.19.* MiB.*file_bytes", file_bytes=200_000)


@posix
def test_a_pipe_that_nobody_writes_to(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    check(path, r"Nothing more of .*pipe could be read within 0\.5 s", wait_seconds=0.5)


@posix
def test_the_wait_counts_while_somebody_waits(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with ReaderPool(1, limits=ReaderLimits(wait_seconds=60.0)) as pool:
        reading = pool.open(path)
        queued = pool.open(io.BytesIO(sound("wav", 1.0)))
        writer = threading.Thread(target=path.write_bytes, args=(sound("flac", 1.0),))
        writer.start()
        assert sum(part.samples for part in queued) == 16000
        assert sum(part.samples for part in reading) == 16000
        writer.join()


def test_a_wav_that_claims_four_gigabytes():
    data = bytearray(sound("wav", 1.0))
    at = data.index(b"data")
    for claim in (0xFFFFFF00, 0x7FFFFFF0):
        data[4:8] = data[at + 4 : at + 8] = struct.pack("<I", claim)
        with ReaderPool(1, limits=ReaderLimits.untrusted()) as pool:
            assert read(pool, io.BytesIO(bytes(data))) == pytest.approx(1.0)


OLD = [
    ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("WAV", "GSM610"), ("W64", "IMA_ADPCM"),
    ("AIFF", "IMA_ADPCM"), ("CAF", "ALAC_16"), ("IRCAM", "PCM_16"), ("PAF", "PCM_16"),
    ("SVX", "PCM_16"), ("NIST", "PCM_16"), ("VOC", "PCM_16"), ("SDS", "PCM_16"),
    ("AVR", "PCM_16"), ("XI", "DPCM_16"), ("AU", "PCM_16"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::mt3_runtime.errors.AudioWarning")
@pytest.mark.parametrize(("container", "subtype"), OLD)
def test_formats_that_strangers_may_not_send(container, subtype):
    if subtype not in soundfile.available_subtypes(container):
        needs.missing("encoders", f"{container} with {subtype}")
    data = encoded(tune(1.0, 8000)[:, 0], 8000, container, subtype)
    for before in (b"", sound("flac", 1.0)):  # nor behind a sound that they may send
        try:
            alone = decoded(before, SAFE_FORMATS) if before else np.empty(0)
            found = decoded(before + data, SAFE_FORMATS)
        except AudioError as error:
            message = str(error)
        else:
            message = "are accepted here" if np.array_equal(found, alone) else "decoded"
        assert "are accepted here" in message


NEW = [
    *[value for kind, value in FORMATS.items() if kind != "au"],
    ("WAV", "FLOAT"), ("WAV", "PCM_24"), ("WAV", "ULAW"), ("WAV", "ALAW"), ("WAVEX", "PCM_24"),
    ("AIFF", "FLOAT"), ("AIFF", "ALAW"), ("CAF", "FLOAT"), ("RF64", "FLOAT"), ("W64", "PCM_24"),
    ("FLAC", "PCM_24"),
]  # fmt: skip


@pytest.mark.parametrize(("container", "subtype"), NEW)
def test_formats_that_strangers_may_send(container, subtype):
    data = encoded(tune(1.0, 48000)[:, 0], 48000, container, subtype)
    same = decoded(data, SAFE_FORMATS)
    assert np.array_equal(same, load_audio(io.BytesIO(data)))


def test_containers_are_not_for_strangers(tmp_path):
    path = tmp_path / "x.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom\0\0\0\0" + bytes(64))
    with ReaderPool(1, limits=ReaderLimits.untrusted()) as pool:
        with pytest.raises(AudioError, match=r"MP4; only AIFF, .* are accepted here"):
            read(pool, path)
        with pytest.raises(AudioError, match="is a PDF document; only"):
            read(pool, io.BytesIO(b"%PDF-1.7" + bytes(100)))


@pytest.mark.parametrize(
    "limits",
    [
        {"memory_bytes": 0},
        {"cpu_seconds": float("nan")},
        {"wait_seconds": -1},
        {"open_files": True},
        {"audio_seconds": "60"},
    ],
)
def test_limits_that_are_none(limits):
    with pytest.raises(OptionError, match=f"{next(iter(limits))}=.*no limit"):
        ReaderLimits(**limits)


@pytest.mark.parametrize("limits", [{"formats": "WAV"}, {"formats": [3]}, {"containers": "no"}])
def test_formats_that_are_none(limits):
    with pytest.raises(OptionError, match=f"{next(iter(limits))} is|of formats is"):
        ReaderLimits(**limits)


@pytest.mark.parametrize(
    "limits", [ReaderLimits(formats=frozenset()), ReaderLimits(), ReaderLimits.untrusted()]
)
def test_limits_travel(limits):
    assert ReaderLimits.from_dict(limits.to_dict()) == limits
