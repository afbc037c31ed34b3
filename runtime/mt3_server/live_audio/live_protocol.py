"""The protocol of live inputs: what a client may send when, and what that means.

Contract: first a text message ``{"type": "start", "rate": ..., "channels": ..., "format": ...}``
with options; then, once ``ready`` was sent, binary messages: whole frames of PCM, or a file that a
browser records, cut anywhere; at last ``{"type": "end"}``.  Anything else, or in another order, is
a `ProtocolError`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.recorder_files.opus_packets import OPUS_RATE
from mt3_runtime.audio.recorder_files.opus_stream import CONTAINERS
from mt3_runtime.errors import MT3Error, OptionError
from mt3_server.api.transcribe_query import live_options

SAMPLE_FORMATS: dict[str, np.dtype[Any]] = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
"""Samples of 16 bits, and floats of which 1.0 is full scale, as an AudioWorklet has them."""

RECORDED = tuple(CONTAINERS)
"""What the MediaRecorder of a browser makes, with Opus."""

MOST_MESSAGE = 1 << 20
"""Bytes of a message: five seconds of stereo at 48 kHz in 16 bits."""

LEAST_RATE, MOST_RATE, MOST_CHANNELS = 4_000, 192_000, 8

_COMPRESSED = (b"\x1aE\xdf\xa3", b"OggS", b"fLaC", b"ID3", b"RIFF")


class ProtocolError(MT3Error, ValueError):
    """A client of a live input sent what does not fit."""


@dataclass(frozen=True)
class LiveStart:
    """What a client says first.

    Attributes:
        rate: Of the samples, in Hz; of what is `RECORDED`, to which it is decoded.
        channels: Interleaved; of what is `RECORDED` the file states them.
        format: One of `SAMPLE_FORMATS`, or of `RECORDED`.
        model: Name of a model of the service; None for its first.
        token: If one is asked for and was not in a header.
        options: Of `mt3_runtime.request.LiveOptions`.
    """

    rate: int
    channels: int = 1
    format: str = "s16le"
    model: str | None = None
    token: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, message: dict[str, Any]) -> LiveStart:
        """Understands a first message.

        Raises:
            ProtocolError: It is none.
            OptionError: A value is out of range.
        """
        if message.get("bytes") is not None:
            raise ProtocolError(
                'Audio came before the start. Send {"type": "start", "rate": 48000} first, '
                "and wait for `ready`."
            )
        given = parsed(message)
        if given.pop("type", None) != "start":
            raise ProtocolError('The first message is {"type": "start", "rate": 48000, ...}.')
        sample_format = given.pop("format", "s16le")
        model, token = given.pop("model", None), given.pop("token", None)
        if not isinstance(sample_format, str) or sample_format not in (*SAMPLE_FORMATS, *RECORDED):
            raise OptionError(
                f"format is one of {', '.join(SAMPLE_FORMATS)} (PCM), {', '.join(RECORDED)} (Opus, "
                "of a MediaRecorder)."
            )
        rate, channels = _layout(given, sample_format)
        for name, value in (("model", model), ("token", token)):
            if not (value is None or isinstance(value, str)):
                raise OptionError(f"{name} is text.")
        return cls(rate, channels, sample_format, model, token, live_options(given))

    def samples(self, data: bytes) -> npt.NDArray[np.float32]:
        """The frames of a binary message, float32 [n, channels].

        Raises:
            ProtocolError: They are not whole, or no PCM.
        """
        kind = SAMPLE_FORMATS[self.format]
        if data.startswith(_COMPRESSED):
            raise ProtocolError(
                "This is a file, not PCM. Name its format in the start where it is one of "
                f"{', '.join(RECORDED)}, or send the whole file to POST /v1/transcriptions."
            )
        size = kind.itemsize * self.channels
        if len(data) % size:
            raise ProtocolError(
                f"A message has {len(data)} bytes; expected whole frames of {size} bytes "
                f"({self.channels} x {self.format})."
            )
        flat = np.frombuffer(data, kind)
        samples = flat / np.float32(32768) if kind.kind == "i" else flat
        return np.asarray(samples, np.float32).reshape(-1, self.channels)


def parsed(message: dict[str, Any]) -> dict[str, Any]:
    """The JSON object of a text message.

    Raises:
        ProtocolError: It is none.
    """
    try:
        found = json.loads(message.get("text") or "")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ProtocolError("A text message is a JSON object.")
    return found


def is_end(message: dict[str, Any]) -> bool:
    """Whether a text message behind the start says that no more will come.

    Raises:
        ProtocolError: It says anything else.
    """
    if message.get("text") is None:
        return False
    kind = parsed(message).get("type")
    if kind != "end":
        raise ProtocolError(
            f"{str(kind)[:40]!r} is no message that may come here; expected audio, or "
            '{"type": "end"}.'
        )
    return True


def _layout(given: dict[str, Any], sample_format: str) -> tuple[int, int]:
    """Takes rate and channels from what is given."""
    if sample_format in RECORDED:
        if given.keys() & {"rate", "channels"}:
            raise OptionError(
                f"A {sample_format} file states its rate and channels; leave them out."
            )
        return OPUS_RATE, 0
    rate, channels = given.pop("rate", None), given.pop("channels", 1)
    if not _whole(rate, LEAST_RATE, MOST_RATE):
        raise OptionError(f"rate is the sample rate in Hz, {LEAST_RATE} to {MOST_RATE}.")
    if not _whole(channels, 1, MOST_CHANNELS):
        raise OptionError(f"channels is a whole number from 1 to {MOST_CHANNELS}.")
    return rate, channels


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
