"""Sound files as bytes, for tests of reading: whole, without a count of frames, with tags."""

from __future__ import annotations

import io
import struct
from functools import cache

import numpy as np
import pytest
import soundfile

from mt3_runtime.audio.sources import open_audio

RATE = 44100
FORMATS = {
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "flac": ("FLAC", "PCM_16"),
    "wav": ("WAV", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
}


def tune(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """A sweep in some noise, so that compressed files have frames of many lengths."""
    time = np.arange(round(seconds * rate)) / rate
    sweep = 0.4 * np.sin(2 * np.pi * (200 + 100 * time) * time)
    noise = np.random.default_rng(3).standard_normal(len(time)) * 0.05 * np.sin(time * 3) ** 2
    mono = (sweep + noise).astype(np.float32)
    return np.stack([mono] * channels, axis=1)


@cache
def sound(kind: str, seconds: float = 3.0, rate: int = RATE, channels: int = 1) -> bytes:
    """A tune of some seconds as a file."""
    container, subtype = FORMATS[kind]
    rate = 48000 if kind == "opus" else rate
    buffer = io.BytesIO()
    soundfile.write(buffer, tune(seconds, rate, channels), rate, format=container, subtype=subtype)
    return buffer.getvalue()


def uncounted(mp3: bytes) -> bytes:
    """An MP3 without its first frame, which counts the others."""
    assert b"Xing" in mp3[:200] or b"Info" in mp3[:200]
    return mp3[frame_lengths(mp3)[0] :]


def frame_lengths(mp3: bytes) -> list[int]:
    """Lengths of the frames of layer III, MPEG 1 (44.1 kHz and more), from the beginning on."""
    kbits = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    lengths, at = [], 0
    while at + 4 <= len(mp3) and mp3[at] == 0xFF:
        rate = (44100, 48000, 32000)[mp3[at + 2] >> 2 & 3]
        lengths.append(144000 * kbits[mp3[at + 2] >> 4] // rate + (mp3[at + 2] >> 1 & 1))
        at += lengths[-1]
    return lengths


def id3(size: int, footer: bool = False) -> bytes:
    """An ID3v2 tag with ``size`` bytes of content that are no zeros."""
    digits = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    head = (b"\4\0\x10" if footer else b"\3\0\0") + digits
    return b"ID3" + head + b"\x55" * size + (b"3DI" + head if footer else b"")


def ape(size: int) -> bytes:
    """An APE tag with header and footer."""
    numbers = struct.pack("<III", 2000, size + 32, 1)
    header = b"APETAGEX" + numbers + struct.pack("<I", 0xA0000000) + bytes(8)
    return (
        header + b"\x55" * size + b"APETAGEX" + numbers + struct.pack("<I", 0x80000000) + bytes(8)
    )


def lyrics(size: int) -> bytes:
    """A Lyrics3 tag, version 2."""
    text = b"LYRICSBEGIN" + b"l" * size
    return text + b"%06d" % len(text) + b"LYRICS200"


ID3V1 = b"TAG" + b"title".ljust(125)


def junk(size: int, seed: int = 0) -> bytes:
    """Random bytes."""
    return np.random.default_rng(seed).bytes(size)


def patched(data: bytes, at: int, value: bytes) -> bytes:
    """The data with some bytes replaced."""
    return data[:at] + value + data[at + len(value) :]


def read(data: bytes) -> np.ndarray:
    """All samples at 16 kHz, float32 [n]; a stated duration must be theirs."""
    with open_audio(io.BytesIO(data)) as stream:
        samples = np.concatenate(list(stream))
    if stream.duration is not None:
        assert stream.duration == pytest.approx(len(samples) / 16000, abs=0.01)
    return samples
