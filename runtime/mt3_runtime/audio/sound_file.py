"""Decodes sound files (WAV, FLAC, MP3, Ogg, ...) block by block through libsndfile.

Contract: :func:`open_sound` takes a path or a binary file object and returns a
:class:`SoundReader`, whose :meth:`~SoundReader.blocks` are mono float32 at the file's own rate,
about three seconds each, so memory does not grow with the length of the file.  Amplitudes are what
the file states: nothing is normalised or clipped.

A file is read whole, or an :class:`~mt3_runtime.errors.AudioWarning` says how much of it was read
and how much is left.  libsndfile alone does not do that: it ends with the first of several joined
files, at a length that was guessed or never filled in, and at bytes it does not know.  So the file
is looked through first (:mod:`mt3_runtime.audio.containers.sound_parts`), and each sound in it is
decoded on its own, without tags and with its true length.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Iterator
from itertools import groupby
from operator import itemgetter
from typing import BinaryIO

import numpy as np

from mt3_runtime.audio.accepted_formats import check_format
from mt3_runtime.audio.containers.audio_kinds import SHARED, describe
from mt3_runtime.audio.containers.av_container import INSTALL, ContainerDecoder, import_av
from mt3_runtime.audio.containers.byte_source import Bytes, FileBytes, Part, open_bytes
from mt3_runtime.audio.containers.decoders import Decoder, Frames, SndfileDecoder, block_frames
from mt3_runtime.audio.containers.sound_parts import Gap, sound_parts
from mt3_runtime.audio.resampling import resampler
from mt3_runtime.errors import AudioError, AudioWarning, MissingDependencyError

__all__ = ["SoundReader", "block_frames", "mix_down", "open_sound"]

_SHORTFALL_SECONDS = 0.1
"""Less than this is missing: two or three codec frames or a sloppy header, not a cut file."""

_MOST_TIMED = 64
"""Files of more parts do not state their length: each part has to be opened for it."""

_PLAUSIBLE_RATES = (100, 10**7)
"""Sample rates [Hz] of a part behind the first; others come of a damaged header."""


def mix_down(frames: Frames) -> Frames:
    """Mean over channels: float32 [n, channels] to a fresh float32 [n].

    Adds column by column, ten times faster than ``mean(axis=1)`` and, up to seven channels, equal
    to it bit by bit.
    """
    mono = frames[:, 0].copy()
    channels = frames.shape[1]
    for channel in range(1, channels):
        mono += frames[:, channel]
    if channels > 1:
        mono /= np.float32(channels)
    return mono


class SoundReader:
    """One open sound file.

    Attributes:
        name: Path or stream name for messages.
        rate: Sample rate of the file, that of its first sound if it holds several [Hz].
        channels: Number of channels of the first sound.
        duration: Length [s], or None where it is not known.
        warning: What of it could not be read, known once the rest was; None if nothing is missing.
    """

    def __init__(
        self,
        data: Bytes,
        name: str,
        *,
        containers: bool = True,
        formats: Collection[str] | None = None,
        owned: BinaryIO | None = None,
    ) -> None:
        if data.size == 0:
            raise AudioError(f"{name} is empty (0 bytes); expected an audio file.")
        self.name = name
        self.warning: str | None = None
        self._owned = owned
        self._containers = containers
        self._data = data
        self._parts: list[Part] = []
        self._gaps: list[tuple[Gap, str]] = []  # what is left out, and why
        for item in sound_parts(data):
            if isinstance(item, Part):
                if formats is not None:
                    check_format(item, name, formats)
                self._parts.append(item)
            else:
                self._gaps.append((item, "neither audio nor a tag"))
        self._remarks: list[str] = []
        self._lossless = True  # whether the remarks are of nothing that is missing
        self._seconds = 0.0
        self._decoder = self._open_first()
        self.rate, self.channels = self._decoder.rate, self._decoder.channels
        self.duration = self._total_seconds()

    def blocks(self, mix: Callable[[Frames], Frames] = mix_down) -> Iterator[Frames]:
        """Yield blocks until the file or its decodable part ends: mono float32, by ``mix``.

        Raises:
            AudioError: Nothing at all can be decoded, or the file cannot be read any more.
            MissingDependencyError: Joined sounds differ in rate, and soxr is not installed.
        """
        for rate, group in groupby(self._chunks(), itemgetter(0)):
            mono = (mix(frames) for _, frames in group)
            yield from resampler(rate, self.rate)(mono)
        self._report()

    def close(self) -> None:
        """Close the decoder, and the file if it was opened here."""
        self._decoder.close()
        if self._owned is not None:
            self._owned.close()

    def _open_first(self) -> Decoder:
        """Open the first part that can be decoded."""
        error: AudioError | None = None
        known = any(part.kind for part in self._parts)
        while self._parts:
            part = self._parts[0]
            try:
                return _open_decoder(part, containers=self._containers)
            except AudioError as failure:
                error = error or failure
                self._leave_out(self._parts.pop(0), failure)
        seems = "" if known else describe(self._data)
        reason = f"this is {seems}" if seems else error or "there are only tags in it"
        raise AudioError(
            f"{self.name} is not audio that can be decoded ({reason}); expected a complete WAV, "
            "FLAC, OGG, MP3 or AIFF file. Convert other formats first, for example with "
            "ffmpeg -i INPUT OUTPUT.wav"
        ) from error

    def _total_seconds(self) -> float | None:
        """Length of all parts [s], None if one states none."""
        if len(self._parts) > _MOST_TIMED:
            return None
        total = _seconds(self._parts[0], self._decoder)
        for part in self._parts[1:]:
            try:
                decoder = _open_decoder(part, containers=self._containers)
            except (AudioError, MissingDependencyError):
                continue
            seconds = _seconds(part, decoder)
            decoder.close()
            total = None if total is None or seconds is None else total + seconds
        return total

    def _chunks(self) -> Iterator[tuple[int, Frames]]:
        """Yield sample rate and frames [n, channels] of all parts."""
        low, high = _PLAUSIBLE_RATES
        for number, part in enumerate(self._parts):
            if number:
                self._decoder.close()
                try:
                    self._decoder = _open_decoder(part, containers=self._containers)
                except (AudioError, MissingDependencyError) as error:
                    self._leave_out(part, error)
                    continue
                if not low <= self._decoder.rate <= high:
                    self._leave_out(part, f"a sample rate of {self._decoder.rate} Hz")
                    continue
            seconds = 0.0
            for rate, frames in self._decoder.blocks():
                seconds += len(frames) / rate
                yield rate, frames
            self._seconds += seconds
            self._examine(number, seconds)

    def _leave_out(self, part: Part, why: object) -> None:
        self._gaps.append((Gap(part.start, part.end), f"not audio that can be decoded ({why})"))

    def _examine(self, number: int, got: float) -> None:
        """Note what is missing of a part of which ``got`` seconds were decoded."""
        part, decoder = self._parts[number], self._decoder
        declared = _seconds(part, decoder)
        if declared is not None:
            declared *= max(1.0, part.stated / part.present)
        rate = (part.end - part.start) / got if got else 0.0  # bytes per second
        text = ""
        if declared is not None and declared - got > _SHORTFALL_SECONDS:
            text = f"ends early: {got:.2f} s of {declared:.2f} s could be read"
        elif decoder.trouble and declared is None:  # else it came behind the last sample
            text = f"is damaged: decoding stopped after {got:.2f} s ({decoder.trouble})"
        elif decoder.remark:
            text = f"{decoder.remark}: {got:.2f} s could be read"
        elif part.cut and number == len(self._parts) - 1:
            text = f"has no end mark, so it is probably cut: {got:.2f} s could be read"
        elif part.lost > _SHORTFALL_SECONDS * rate:
            text = (
                f"is damaged: {got:.2f} s could be read, and {part.lost} bytes between its frames "
                "are neither audio nor a tag"
            )
        if text:
            self._lossless = False
        elif part.note and got:
            text = f"{part.note}; all {got:.2f} s up to its end were read"
        if text:
            several = len(self._parts) > 1
            self._remarks.append(
                f"in part {number + 1} of {len(self._parts)} {text}" * several or text
            )

    def _report(self) -> None:
        """Raise if nothing was decoded, warn if less was than the file holds."""
        if not self._seconds:
            trouble = self._decoder.trouble
            raise AudioError(
                f"{self.name} holds no audio that can be decoded"
                + (f" ({trouble})" if trouble else "")
                + "; expected at least one sample. Check that the file is complete."
            )
        read = sum(part.end - part.start for part in self._parts)
        least = _SHORTFALL_SECONDS * read / self._seconds
        for gap, why in self._gaps:
            if (size := gap.end - gap.start) > least:
                self._lossless = False
                self._remarks.append(
                    f"holds {size} bytes from byte {gap.start} on that are {why}: "
                    f"{self._seconds:.2f} s of the file could be read"
                )
        if not self._remarks:
            return
        if len(self._parts) > 1:
            self._remarks.append(f"{self._seconds:.2f} s were read in all")
        rest = "" if self._lossless else "; the rest is left out"
        self.warning = f"{self.name} {'; '.join(self._remarks)}{rest}."
        warnings.warn(self.warning, AudioWarning, stacklevel=2)


def open_sound(
    source: str | os.PathLike[str] | BinaryIO,
    *,
    containers: bool = True,
    formats: Collection[str] | None = None,
) -> SoundReader:
    """Open a sound file in any format libsndfile reads (WAV, FLAC, OGG, MP3, AIFF, ...).

    Other formats (MP4, WebM, WMA, ...) are read through PyAV where that is installed.

    Args:
        source: A path, or a binary file object.  A file object is read from its beginning
            whatever its position and is left open; one that cannot seek is read into memory first
            (the compressed bytes, not the samples).
        containers: Also what PyAV (FFmpeg) reads.  False keeps the bytes of strangers away from it.
        formats: Those that may be decoded, see `mt3_runtime.audio.accepted_formats`; None for all.

    Raises:
        AudioNotFoundError: The path does not exist or is a folder.
        AudioError: The file is empty, cannot be read, is a device, or is not audio.
        MissingDependencyError: soundfile is not installed.
    """
    name, handle, owned = open_bytes(source)
    try:
        data = FileBytes(handle, name)
        return SoundReader(data, name, containers=containers, formats=formats, owned=owned)
    except BaseException:
        if owned is not None:
            owned.close()
        raise


def _seconds(part: Part, decoder: Decoder) -> float | None:
    """Length of a part [s], as far as its bytes reach; None if that is not known."""
    frames = decoder.frames if part.frames is None else part.frames
    return None if frames is None else frames / decoder.rate


def _open_decoder(part: Part, *, containers: bool) -> Decoder:
    """Open what decodes a part of a file: libsndfile, else PyAV.

    Raises:
        AudioError: Nothing does.
        MissingDependencyError: soundfile is not installed.
    """
    if part.foreign and not containers:
        raise AudioError(f"this is {part.kind}, and only what libsndfile reads is accepted here")
    if part.foreign:
        return ContainerDecoder(part.view, part.kind, part.demuxer or SHARED[part.kind])
    try:
        return SndfileDecoder(part.view, forward=part.forward, claim=part.claim)
    except AudioError as error:
        demuxer = SHARED.get(part.kind)
        if not (containers and demuxer):
            raise
        if import_av() is None:
            raise AudioError(
                f"{error}; some codecs in {part.kind} files only FFmpeg reads: in a checkout, "
                f"{INSTALL} installs it"
            ) from error
        try:
            return ContainerDecoder(part.view, part.kind, demuxer)
        except AudioError:
            raise error from None
