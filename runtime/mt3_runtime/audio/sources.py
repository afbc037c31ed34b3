"""Opens audio files, file objects, arrays and streams as mono float32 blocks at a model's rate.

Contract: :func:`open_audio` (a file, a file object, an array) and :func:`open_blocks` (a live
stream) return an :class:`AudioStream`, an iterator over blocks of at most about three seconds, so
an hour of audio needs the memory of one block; :func:`load_audio` is their sum.  The three steps
are those of the original models: decode, mean over channels, resample.  No step normalises or
clips: the networks were trained on the recorded level.  What of that level makes notes doubtful is
said by :attr:`AudioStream.level_warnings`.

soundfile and soxr are imported when a file, or another rate, first needs them.
"""

from __future__ import annotations

import inspect
import os
import stat
import warnings
from collections.abc import AsyncIterable, Callable, Collection, Iterable, Iterator
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeAlias, TypeGuard, cast

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.levels import USUAL_CHANNELS, LevelMeter
from mt3_runtime.audio.resampling import resampler
from mt3_runtime.audio.samples import MAX_CHANNELS, FrameReader, as_float32
from mt3_runtime.audio.sound_file import SoundReader, block_frames, open_sound
from mt3_runtime.errors import AudioError, AudioWarning, OptionError

DEFAULT_RATE = 16000
"""Sample rate of every published model of the family [Hz]; assumed for arrays without ``sr``."""

MIN_RATE, MAX_RATE = 1000.0, 1e7
"""Accepted source rates [Hz]; the lower bound catches rates given in kHz (44.1 to 384)."""

LOUDEST = 1e30
"""Larger amplitudes are no sound; their spectrum would overflow float32 (2048 samples times 256
bins of them are just below its end, 3.4e38)."""

Samples: TypeAlias = npt.NDArray[np.float32]
FileSource: TypeAlias = str | os.PathLike[str] | BinaryIO
AudioSource: TypeAlias = "FileSource | npt.ArrayLike | AudioStream"


class AudioStream:
    """Iterator over mono float32 blocks [n], n <= about three seconds at the target rate.

    Use it as a context manager, or exhaust it, so that the file is closed.

    Attributes:
        name: Path, name of the file object, or "array" or "stream"; for messages.
        source_rate: Sample rate of the source [Hz].
        target_rate: Sample rate of the blocks [Hz].
        duration: Length of the source [s], None where it is not known beforehand.
    """

    def __init__(
        self,
        blocks: Iterator[Samples],
        levels: LevelMeter,
        *,
        target_rate: int,
        duration: float | None,
        reader: SoundReader | None = None,
    ) -> None:
        self.name = levels.name
        self.source_rate = levels.rate
        self.target_rate = target_rate
        self.duration = duration
        self._levels = levels
        self._reader = reader
        resample = resampler(self.source_rate, target_rate)
        self._blocks: Iterator[Samples] = resample(_checked(blocks, levels))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Samples:
        try:
            return next(self._blocks)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stream and close the file behind it, if there is one; may be called twice."""
        self._blocks = iter(())
        if self._reader is not None:
            self._reader.close()

    @property
    def warning(self) -> str | None:
        """What of the audio could not be read, known once the rest was; None if nothing."""
        return self._reader.warning if self._reader else None

    @property
    def level_warnings(self) -> tuple[str, ...]:
        """What of the level of the audio so far makes notes doubtful, see `LevelMeter`."""
        return tuple(self._levels.sentences())

    def with_warnings(self) -> Iterator[Samples]:
        """Yield the blocks, and give `level_warnings` as `AudioWarning`.

        That of samples without scale comes with the first of them, as live input has no end.
        """
        loud = ""
        for block in self:
            if not loud and (loud := self._levels.too_loud()):
                warnings.warn(loud, AudioWarning, stacklevel=2)
            yield block
        for sentence in self.level_warnings:
            if not loud or sentence != self._levels.too_loud():
                warnings.warn(sentence, AudioWarning, stacklevel=2)


def open_audio(
    source: AudioSource,
    *,
    sr: float | None = None,
    target_rate: int = DEFAULT_RATE,
    containers: bool = True,
    formats: Collection[str] | None = None,
) -> AudioStream:
    """Open a file, a binary file object or an array as a stream of mono blocks.

    Args:
        source: A path; a binary file object, seekable or not; or anything ``np.asarray`` takes:
            [samples], or [samples, channels] as soundfile returns it.  [channels, samples] is
            recognised where there are 8 channels at most, and more samples than 8.  Integers of 8
            to 32 bits are scaled by their full scale (int16 by 2**15; unsigned ones are centred on
            half of it first); floats are taken as they are.  An :class:`AudioStream` of this target
            rate is returned as it is.
        sr: Sample rate of an array [Hz], 16000 if None.  A file states its own rate; giving a
            different one is an error.
        target_rate: Sample rate wanted [Hz].
        containers: Read files that libsndfile does not know (MP4, WebM, WMA, ...) through PyAV, if
            it is installed.  False keeps the bytes of strangers away from it.
        formats: Of files, those that may be decoded, see `mt3_runtime.audio.accepted_formats`; None
            for all.

    Raises:
        AudioNotFoundError: The path does not exist or is a folder.
        AudioError: Not audio: undecodable or empty file, array of wrong shape or type or without
            samples, blocks where one recording is expected.  While iterating also: NaN or infinite
            values.
        OptionError: ``sr`` or ``target_rate`` is not a rate, or contradicts the file.
        MissingDependencyError: soundfile or soxr is needed and not installed.
    """
    target_rate = _valid_target(target_rate)
    if isinstance(source, AudioStream):
        return _opened(source, sr, target_rate)
    if is_file(source):
        check_readable(source)
        opened = partial(open_sound, source, containers=containers, formats=formats)
        return _open_file(opened, sr, target_rate)
    levels = LevelMeter("array", DEFAULT_RATE if sr is None else valid_rate(sr))
    reader = FrameReader()
    frames = reader.read(source)
    levels.remark = reader.remark
    if len(frames) == 0:
        raise AudioError("The array holds no samples; expected at least one.")
    return AudioStream(
        _array_blocks(frames, levels),
        levels,
        target_rate=target_rate,
        duration=len(frames) / levels.rate,
    )


def open_blocks(
    blocks: Iterable[npt.ArrayLike], *, sr: float, target_rate: int = DEFAULT_RATE
) -> AudioStream:
    """Turn an iterable of array blocks (a microphone, a decoder, a socket) into a stream.

    Args:
        blocks: Arrays as in :func:`open_audio`, of any length including none, all with the same
            number of channels.  They are pulled one at a time, only when needed.
        sr: Their sample rate [Hz].
        target_rate: Sample rate wanted [Hz].

    Raises:
        OptionError: ``sr`` or ``target_rate`` is not a rate.
        AudioError: A single recording was given.  While iterating: a block is not audio, the
            channel count changes, a value is NaN or infinite, or there was no sample at all.
        MissingDependencyError: soxr is needed and not installed.
    """
    levels = LevelMeter("stream", valid_rate(sr))
    target_rate = _valid_target(target_rate)
    _check_blocks(blocks)
    return AudioStream(
        _stream_blocks(blocks, levels), levels, target_rate=target_rate, duration=None
    )


def may_block(source: AudioSource) -> bool:
    """Whether reading a source may wait for somebody who writes: a pipe, a socket, a terminal."""
    try:
        if isinstance(source, str | os.PathLike):
            mode = Path(source).stat().st_mode
            return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
        if hasattr(source, "read"):
            return not (hasattr(source, "seekable") and source.seekable())
    except (OSError, ValueError):  # opening it says what is wrong
        pass
    return False


def load_audio(
    source: AudioSource,
    *,
    sr: float | None = None,
    target_rate: int = DEFAULT_RATE,
    containers: bool = True,
) -> Samples:
    """Read everything :func:`open_audio` would stream: mono float32 [n] at ``target_rate``."""
    opened = open_audio(source, sr=sr, target_rate=target_rate, containers=containers)
    with opened as stream:
        return np.concatenate(list(stream))


def is_recording(source: object) -> bool:
    """Whether this is one recording, and not several, or blocks of one.

    Of an array of numbers the axes tell: iterating would give samples, or frames of few channels.
    """
    if is_file(source) or isinstance(source, bytes):
        return True
    kind = getattr(getattr(source, "dtype", None), "kind", "f")  # PyTorch's have none
    shape: tuple[int, ...] = getattr(source, "shape", (0, 0, 0))
    few = len(shape) == 2 and shape[1] <= USUAL_CHANNELS
    return kind in "iuf" and (len(shape) < 2 or few)


def is_file(source: object) -> TypeGuard[FileSource]:
    """Whether this is a path or a file object, or something with another kind of ``read``."""
    return isinstance(source, str | os.PathLike) or hasattr(source, "read")


def check_readable(source: FileSource) -> None:
    """Refuse objects with another kind of ``read`` than files have."""
    if isinstance(source, str | os.PathLike):
        return
    kind = type(source).__name__
    try:
        data: object = source.read(0)
    except TypeError as error:
        raise AudioError(
            f"read() of a {kind} takes no number of bytes; expected a binary file object. Pass "
            "io.BytesIO(...) of the bytes that it gives."
        ) from error
    except (OSError, ValueError):
        return  # the reader says so, with the name
    if inspect.isawaitable(data):
        if inspect.iscoroutine(data):
            data.close()
        remedy = "its .file" if hasattr(source, "file") else "io.BytesIO(await ....read())"
        raise AudioError(
            f"read() of a {kind} is asynchronous; expected a binary file object. Pass {remedy}."
        )
    if not isinstance(data, bytes | str):  # text has its own message
        decoded = hasattr(source, "samplerate")
        remedy = "its .read(), with its .samplerate as sr, or its path" if decoded else "its path"
        raise AudioError(
            f"read() of a {kind} gives {type(data).__name__} and not bytes; expected a binary file "
            f"object. Pass {remedy}."
        )


def _check_blocks(blocks: object) -> None:
    """Refuse a single recording in place of blocks."""
    kind = type(blocks).__name__
    if isinstance(blocks, AsyncIterable):
        raise AudioError(
            f"A {kind} is asynchronous; expected an iterable of sample blocks. Hand them over "
            "through a queue.Queue, with a generator that yields what queue.get() gives."
        )
    if is_recording(blocks) or not isinstance(blocks, Iterable):
        raise AudioError(
            f"A {kind} is no sequence of sample blocks; for a single recording leave live=True "
            "out, or cut it into blocks."
        )


def _opened(stream: AudioStream, sr: float | None, target: int) -> AudioStream:
    if stream.target_rate != target or sr not in (None, stream.source_rate):
        raise OptionError(
            f"{stream.name} was opened with {stream.source_rate:g} Hz to be resampled to "
            f"{stream.target_rate} Hz; expected a target_rate of {target} Hz, and sr left out."
        )
    return stream


def _open_file(opened: Callable[[], SoundReader], sr: float | None, target: int) -> AudioStream:
    wanted = None if sr is None else valid_rate(sr)
    reader = opened()
    try:
        _check_header(reader, wanted)
        levels = LevelMeter(reader.name, reader.rate)
        return AudioStream(
            reader.blocks(levels.mix),
            levels,
            target_rate=target,
            duration=reader.duration,
            reader=reader,
        )
    except BaseException:
        reader.close()
        raise


def _check_header(reader: SoundReader, wanted: float | None) -> None:
    if wanted is not None and wanted != reader.rate:
        raise OptionError(
            f"sr={wanted} contradicts {reader.name}, which states its own rate, {reader.rate} Hz. "
            "Leave sr out for files; target_rate is what the result is resampled to."
        )
    if reader.channels > MAX_CHANNELS:
        raise AudioError(
            f"{reader.name} states {reader.channels} channels; expected at most {MAX_CHANNELS}. "
            "Its header is probably damaged."
        )
    if not MIN_RATE <= reader.rate <= MAX_RATE:
        raise AudioError(
            f"{reader.name} states a sample rate of {reader.rate} Hz; expected "
            f"{MIN_RATE:g} to {MAX_RATE:g} Hz. Its header is probably damaged."
        )


def valid_rate(rate: object, argument: str = "sr") -> float:
    """The sample rate in Hz; raises `OptionError` if it is none."""
    hint = ""
    if isinstance(rate, Real) and not isinstance(rate, bool):
        hertz = cast("float", rate)
        if MIN_RATE <= hertz <= MAX_RATE:  # false for NaN
            return int(hertz) if float(hertz).is_integer() else float(hertz)
        if 1.0 <= hertz < MIN_RATE:
            hint = f" If it is in kHz, pass {hertz * 1000:g}."
    raise OptionError(
        f"{argument}={rate!r} is not a sample rate; expected a number of Hz "
        f"from {MIN_RATE:g} to {MAX_RATE:g}, such as 44100.{hint}"
    )


def _valid_target(rate: object) -> int:
    valid = valid_rate(rate, "target_rate")
    if not isinstance(valid, int):
        raise OptionError(f"target_rate={rate!r} is not a whole number of Hz.")
    return valid


def _array_blocks(frames: npt.NDArray[Any], levels: LevelMeter) -> Iterator[Samples]:
    """Convert [samples, channels] of any number type to mono float32, a block at a time."""
    step = block_frames(levels.rate)
    levels.array_type = frames.dtype
    for start in range(0, len(frames), step):
        with np.errstate(over="ignore"):  # overflow becomes inf, which is reported with its time
            mono = levels.mix(as_float32(frames[start : start + step]))
        yield mono


def _stream_blocks(blocks: Iterable[npt.ArrayLike], levels: LevelMeter) -> Iterator[Samples]:
    reader = FrameReader()
    for block in blocks:
        frames = reader.read(block)
        levels.remark = reader.remark
        yield from _array_blocks(frames, levels)


def _checked(blocks: Iterable[Samples], levels: LevelMeter) -> Iterator[Samples]:
    """Pass blocks on; raise at the first value that is no number, or if there was none."""
    name, rate, count = levels.name, levels.rate, 0
    for block in blocks:
        sound = np.abs(block) <= LOUDEST  # false for NaN
        if not sound.all():
            at = (count + int(np.argmin(sound))) / rate
            raise AudioError(
                f"{name} holds a NaN, infinite or too large value at {at:.3f} s; "
                "expected finite samples. Repair it, for example with numpy.nan_to_num."
            )
        count += len(block)
        yield block
    if count == 0:
        raise AudioError(f"{name} ended without a single sample; expected at least one.")
