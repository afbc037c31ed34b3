"""Decode containers and codecs that libsndfile does not know, with PyAV (FFmpeg).

Contract: :class:`ContainerDecoder` gives the first audio track of a file as blocks
float32 [n, channels], from its first sample to its last: encoder delay and edit lists are cut off
as FFmpeg does it.  Only the one demuxer that the file's first bytes call for is used, so that no
playlist or script is ever followed to other files.

PyAV is the optional package ``av``, imported here and nowhere else.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from types import ModuleType
from typing import Any

import numpy as np

from mt3_runtime.audio.containers.byte_source import Bytes, VirtualFile
from mt3_runtime.audio.containers.decoders import Frames, block_frames
from mt3_runtime.errors import AudioError

INSTALL = "pip install '.[formats]'"
"""From a checkout, as the project is not on PyPI."""

_TIMED = ("mov", "asf", "w64", "wav", "aiff", "dsf", "tta", "wv", "ape", "tak")
"""Demuxers that state a track's length; the others estimate it from the bit rate."""


def import_av() -> ModuleType | None:
    """PyAV, None if it, or the libraries below it, are not installed."""
    with suppress(ImportError, OSError):
        return importlib.import_module("av")
    return None


class ContainerDecoder:
    """The first audio track of a container; attributes as those of ``decoders.Decoder``.

    Args:
        data: The file.
        kind: What it is, for messages.
        demuxer: FFmpeg's name for what reads it.

    Raises:
        AudioError: PyAV is not installed, or the file cannot be decoded or has no audio track.
    """

    def __init__(self, data: Bytes, kind: str, demuxer: str) -> None:
        av = import_av()
        if av is None:
            raise AudioError(
                f"this is {kind}, which libsndfile does not read and FFmpeg does: in a checkout, "
                f"{INSTALL} installs what is needed"
            )
        self._file = VirtualFile(data)
        self._container: Any = None
        self._damaged = 0
        self._new_converter = av.AudioResampler
        self._converter: Any = None
        self._kind: tuple[object, ...] = ()
        self._first: tuple[int, Frames] | None
        self.trouble = ""
        try:
            with self._file.reporting():
                self._container = av.open(self._file, format=demuxer, metadata_errors="replace")
        except Exception as error:  # PyAV's, FFmpeg's, and IndexError of damaged files
            if isinstance(error, AudioError):
                raise
            raise AudioError(f"this is {kind} that FFmpeg cannot read: {_reason(error)}") from error
        self._open_track(kind, demuxer)

    def _open_track(self, kind: str, demuxer: str) -> None:
        """Decode the first frame: only it says the rate of AAC with spectral band replication."""
        tracks = self._container.streams.audio
        self._track = tracks[0] if tracks else None
        self._others = len(tracks) - 1
        # A track of an unknown codec has no context, and PyAV before 18 crashes if it decodes one.
        usable = self._track is not None and self._track.codec_context is not None
        self._decoded = self._frames() if usable else iter(())
        self._first = next(self._decoded, None)
        if self._first is None:
            self.close()
            raise AudioError(f"this is {kind} without an audio track that FFmpeg can decode")
        self.rate, self.channels = self._first[0], self._first[1].shape[1]
        seconds = self._stated_seconds(demuxer)
        self.frames = None if seconds is None else round(seconds * self.rate)

    def _stated_seconds(self, demuxer: str) -> float | None:
        track: Any = self._track
        if demuxer in _TIMED and track.duration and track.time_base:
            return float(track.duration * track.time_base)
        if demuxer != "matroska":
            return None
        if found := re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", track.metadata.get("DURATION", "")):
            return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
        alone = len(self._container.streams) == 1 and self._container.duration
        return self._container.duration / 1e6 if alone else None

    @property
    def remark(self) -> str:
        """What was passed over."""
        if self._damaged:
            return f"is damaged: {self._damaged} packets of it could not be decoded"
        if self._others:
            return f"holds {self._others + 1} audio tracks, of which only the first was read"
        return ""

    def blocks(self) -> Iterator[tuple[int, Frames]]:
        """Yield sample rate [Hz] and float32 [n, channels]."""
        waiting: list[Frames] = []
        rate, held = self.rate, 0
        for now, frames in chain(filter(None, [self._first]), self._decoded):
            if held and (now, frames.shape[1]) != (rate, waiting[0].shape[1]):
                yield rate, np.concatenate(waiting)
                waiting, held = [], 0
            rate, held = now, held + len(frames)
            waiting.append(frames)
            if held >= block_frames(rate):
                yield rate, np.concatenate(waiting)
                waiting, held = [], 0
        if held:
            yield rate, np.concatenate(waiting)

    def _frames(self) -> Iterator[tuple[int, Frames]]:
        """Yield rate and samples of every frame that can be decoded."""
        packets = self._container.demux(self._track)
        while True:
            try:
                with self._file.reporting():
                    packet = next(packets, None)
            except Exception as error:
                if isinstance(error, AudioError):
                    raise
                self.trouble = _reason(error)
                return
            if packet is None:
                return
            try:
                decoded = packet.decode()
            except Exception:  # noqa: BLE001  as above
                self._damaged += 1
                continue
            for frame in decoded:
                yield from self._interleaved(frame)

    def _interleaved(self, frame: Any) -> Iterator[tuple[int, Frames]]:
        """Yield the samples of one of FFmpeg's frames, whatever their format.

        FFmpeg interleaves them: PyAV's own arrays of planar samples read behind the end of memory
        where there are eight channels or more.
        """
        kind = (frame.format.name, frame.sample_rate, frame.layout.name, frame.layout.nb_channels)
        if kind != self._kind:
            self._kind, self._converter = kind, self._new_converter(format="flt")
        try:
            ready = self._converter.resample(frame)
        except Exception:  # noqa: BLE001  as above
            self._damaged += 1
            return
        for packed in ready:
            samples = packed.to_ndarray().reshape(-1, packed.layout.nb_channels)
            yield int(packed.sample_rate), samples

    def close(self) -> None:
        """Close the decoder."""
        if self._container is not None:
            self._container.close()


def _reason(error: Exception) -> str:
    """FFmpeg's own words, without the number and the name of the file."""
    return str(getattr(error, "strerror", None) or error)
