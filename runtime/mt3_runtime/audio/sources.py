"""Opens audio files, file objects, arrays and streams as mono float32 blocks at a model's rate.

Contract: :func:`open_audio` (a file, a file object, an array) and :func:`open_blocks` (a live
stream) return an :class:`AudioStream`, an iterator over blocks of at most about three seconds, so
an hour of audio needs the memory of one block; :func:`load_audio` is their sum.  The three steps
are those of the original models: decode, mean over channels, resample.  No step normalises or
clips: the networks were trained on the recorded level.

soundfile and soxr are imported when a file, or another rate, first needs them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from numbers import Real
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias, TypeGuard, cast

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.resampling import resampler
from mt3_runtime.audio.sound_file import SoundReader, block_frames, mix_down, open_sound
from mt3_runtime.errors import AudioError, OptionError

DEFAULT_RATE = 16000
"""Sample rate of every published model of the family [Hz]; assumed for arrays without ``sr``."""

MIN_RATE, MAX_RATE = 100.0, 1e7
"""Accepted source rates [Hz]; the lower bound catches rates given in kHz (44.1)."""

MAX_CHANNELS = 64
"""Files have at most this many channels, as has the channel axis of a 2-D array."""

LOUDEST = 1e30
"""Larger amplitudes are no sound; their spectrum would overflow float32 (2048 samples times 256
bins of them are just below its end, 3.4e38)."""

Samples: TypeAlias = npt.NDArray[np.float32]
FileSource: TypeAlias = str | os.PathLike[str] | BinaryIO
AudioSource: TypeAlias = FileSource | npt.ArrayLike


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
        name: str,
        *,
        source_rate: float,
        target_rate: int,
        duration: float | None,
        reader: SoundReader | None = None,
    ) -> None:
        self.name = name
        self.source_rate = source_rate
        self.target_rate = target_rate
        self.duration = duration
        self._reader = reader
        resample = resampler(source_rate, target_rate)
        self._blocks: Iterator[Samples] = resample(_checked(blocks, name, source_rate))

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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


def open_audio(
    source: AudioSource, *, sr: float | None = None, target_rate: int = DEFAULT_RATE
) -> AudioStream:
    """Open a file, a binary file object or an array as a stream of mono blocks.

    Args:
        source: A path; a binary file object, seekable or not; or anything ``np.asarray`` takes:
            [samples], or [samples, channels] as soundfile returns it.  [channels, samples] is
            recognised where its second axis is longer than 64, which no channel axis is.
            Integers of 8 to 32 bits are scaled by their full scale (int16 by 2**15; unsigned ones
            are centred on half of it first); floats are taken as they are.
        sr: Sample rate of an array [Hz], 16000 if None.  A file states its own rate; giving a
            different one is an error.
        target_rate: Sample rate wanted [Hz].

    Raises:
        AudioNotFoundError: The path does not exist or is a folder.
        AudioError: Not audio: undecodable or empty file, array of wrong shape or type or without
            samples.  While iterating also: NaN or infinite values.
        OptionError: ``sr`` or ``target_rate`` is not a rate, or contradicts the file.
        MissingDependencyError: soundfile or soxr is needed and not installed.
    """
    target_rate = _valid_target(target_rate)
    if _is_file(source):
        return _open_file(source, sr, target_rate)
    rate = DEFAULT_RATE if sr is None else _valid_rate(sr)
    frames = _as_frames(source)
    if len(frames) == 0:
        raise AudioError("The array holds no samples; expected at least one.")
    return AudioStream(
        _array_blocks(frames, rate),
        "array",
        source_rate=rate,
        target_rate=target_rate,
        duration=len(frames) / rate,
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
        AudioError: While iterating: a block is not audio, the channel count changes, a value is
            NaN or infinite, or there was no sample at all.
        MissingDependencyError: soxr is needed and not installed.
    """
    rate = _valid_rate(sr)
    return AudioStream(
        _stream_blocks(blocks, rate),
        "stream",
        source_rate=rate,
        target_rate=_valid_target(target_rate),
        duration=None,
    )


def load_audio(
    source: AudioSource, *, sr: float | None = None, target_rate: int = DEFAULT_RATE
) -> Samples:
    """Read everything :func:`open_audio` would stream: mono float32 [n] at ``target_rate``."""
    with open_audio(source, sr=sr, target_rate=target_rate) as stream:
        return np.concatenate(list(stream))


def _is_file(source: object) -> TypeGuard[FileSource]:
    return isinstance(source, str | os.PathLike) or hasattr(source, "read")


def _open_file(source: FileSource, sr: float | None, target: int) -> AudioStream:
    wanted = None if sr is None else _valid_rate(sr)
    reader = open_sound(source)
    try:
        _check_header(reader, wanted)
        return AudioStream(
            reader.blocks(),
            reader.name,
            source_rate=reader.rate,
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


def _valid_rate(rate: object, argument: str = "sr") -> float:
    if isinstance(rate, Real) and not isinstance(rate, bool):
        hertz = cast("float", rate)
        if MIN_RATE <= hertz <= MAX_RATE:  # false for NaN
            return int(hertz) if float(hertz).is_integer() else float(hertz)
    raise OptionError(
        f"{argument}={rate!r} is not a sample rate; expected a number of Hz "
        f"from {MIN_RATE:g} to {MAX_RATE:g}, such as 44100."
    )


def _valid_target(rate: object) -> int:
    valid = _valid_rate(rate, "target_rate")
    if not isinstance(valid, int):
        raise OptionError(f"target_rate={rate!r} is not a whole number of Hz.")
    return valid


def _as_frames(source: object) -> npt.NDArray[Any]:
    """Check shape and type of an array; return it as [samples, channels], values untouched."""
    if isinstance(source, bytes | bytearray | memoryview):
        raise AudioError("Raw bytes are neither a path nor samples; wrap a file in io.BytesIO.")
    try:
        array = np.asarray(source)
    except (ValueError, TypeError, RuntimeError) as error:
        raise AudioError(f"{type(source).__name__} cannot be read as an array: {error}") from error
    if array.dtype.kind not in "iuf":
        raise AudioError(
            f"Samples have the type {array.dtype}; expected integers or real floating-point values."
        )
    if array.dtype.kind in "iu" and array.dtype.itemsize > 4:
        raise AudioError(
            f"Samples of type {array.dtype} have no known full scale; expected integers of 8 to 32 "
            "bits, or floats. Convert them first, for example with array.astype(numpy.int16)."
        )
    if array.ndim == 1:
        return array[:, np.newaxis]
    if array.ndim == 2 and array.shape[1] > MAX_CHANNELS:
        array = array.T
    if array.ndim != 2 or not 1 <= array.shape[1] <= MAX_CHANNELS:
        raise AudioError(
            f"An array of shape {array.shape} is not audio; expected [samples] or "
            f"[samples, channels] with 1 to {MAX_CHANNELS} channels."
        )
    return array


def _array_blocks(frames: npt.NDArray[Any], rate: float) -> Iterator[Samples]:
    """Convert [samples, channels] of any number type to mono float32, a block at a time."""
    step = block_frames(rate)
    for start in range(0, len(frames), step):
        with np.errstate(over="ignore"):  # overflow becomes inf, which is reported with its time
            mono = mix_down(_as_float32(frames[start : start + step]))
        yield mono


def _as_float32(block: npt.NDArray[Any]) -> Samples:
    """Floats as they are; integers to [-1, 1) by their full scale."""
    if block.dtype.kind == "f":
        return block.astype(np.float32, copy=False)
    half_scale = 2.0 ** (8 * block.dtype.itemsize - 1)
    wide = block.astype(np.float64)  # holds 32-bit integers exactly, as float32 would not
    if block.dtype.kind == "u":
        wide -= half_scale
    return (wide / half_scale).astype(np.float32)


def _stream_blocks(blocks: Iterable[npt.ArrayLike], rate: float) -> Iterator[Samples]:
    channels: int | None = None
    for block in blocks:
        frames = _as_frames(block)
        if channels is not None and frames.shape[1] != channels:
            raise AudioError(
                f"A block has {frames.shape[1]} channels, the blocks before it had {channels}; "
                "expected the same number throughout."
            )
        channels = frames.shape[1]
        yield from _array_blocks(frames, rate)


def _checked(blocks: Iterable[Samples], name: str, rate: float) -> Iterator[Samples]:
    """Pass blocks on; raise at the first value that is no number, or if there was none."""
    count = 0
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
