"""Files as recorders of browsers write them: WebM and Ogg with Opus, of sound of our own."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

from mt3_runtime.audio.recorder_files.ogg_packets import OggPackets
from mt3_runtime.audio.recorder_files.opus_packets import OPUS_RATE
from mt3_runtime.audio.recorder_files.opus_stream import OpusStream

CHROMIUM = Path(__file__).with_name("runtime") / "recorded.webm"
"""Four seconds of a scale, as Chromium's MediaRecorder wrote them (tests/server/record.mjs)."""

UNKNOWN = b"\x01" + b"\xff" * 7
"""A length that is not stated."""


def ogg_opus(seconds: float = 3.0, channels: int = 2) -> bytes:
    """An Ogg file of two tones."""
    at = np.arange(int(seconds * OPUS_RATE)) / OPUS_RATE
    tones = [0.3 * np.sin(2 * np.pi * (440 + 110 * n) * at) for n in range(channels)]
    held = io.BytesIO()
    soundfile.write(held, np.stack(tones, 1), OPUS_RATE, format="OGG", subtype="OPUS")
    return held.getvalue()


def packets_of(ogg: bytes) -> tuple[bytes, list[bytes]]:
    """OpusHead and packets of an Ogg file."""
    reader = OggPackets("the file")
    packets = [*reader.feed(ogg)]
    assert reader.head
    return reader.head, packets


def element(kind: int, content: bytes, size: bytes | None = None) -> bytes:
    """An element of EBML; its length in eight bytes, if no other way is given."""
    stated = (len(content) | 1 << 56).to_bytes(8) if size is None else size
    return kind.to_bytes((kind.bit_length() + 7) // 8) + stated + content


def track(head: bytes, number: int = 1, codec: bytes = b"A_OPUS", kind: int = 2) -> bytes:
    return element(
        0xAE,
        element(0xD7, bytes([number])) + element(0x83, bytes([kind])) + element(0x86, codec)
        + element(0x63A2, head),
    )  # fmt: skip


def block(packet: bytes, number: int = 1, flags: int = 0x80, kind: int = 0xA3) -> bytes:
    return element(kind, bytes([0x80 | number]) + struct.pack(">hB", 0, flags) + packet)


def webm(tracks: bytes, blocks: Iterable[bytes]) -> bytes:
    """A file as it is recorded: segment and cluster without length."""
    head = element(0x1A45DFA3, element(0x4282, b"webm")) + element(0x18538067, b"", UNKNOWN)
    return (
        head + element(0x1549A966, b"") + element(0x1654AE6B, tracks)
        + element(0x1F43B675, b"", UNKNOWN) + element(0xE7, b"\0") + b"".join(blocks)
    )  # fmt: skip


def webm_opus(ogg: bytes) -> bytes:
    """The packets of an Ogg file as WebM."""
    head, packets = packets_of(ogg)
    return webm(track(head), map(block, packets))


def decoded(container: str, data: bytes, cuts: Iterable[int] = ()) -> np.ndarray:
    """What can be heard of a file that comes in pieces, [n, channels]."""
    stream, blocks, at = OpusStream(container, "the file"), [], 0
    for cut in (*sorted(cuts), len(data)):
        stream.feed(data[at:cut])
        at = max(at, cut)
        while len(found := stream.decode()):
            blocks.append(found)
    return np.concatenate(blocks) if blocks else np.zeros((0, 1), np.float32)
