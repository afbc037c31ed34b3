"""Read arrays as audio frames: which axis is which, what full scale is, and what is no audio.

Contract: a `FrameReader` takes what users hand over as samples and returns [n, channels] with the
values untouched, or says what it was given and what to pass instead; `as_float32` scales them.
NumPy makes an array of almost anything, so what it would make of consecutive blocks, of a pair of
samples and rate, or of a generator is looked at before.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Awaitable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.levels import USUAL_CHANNELS
from mt3_runtime.errors import AudioError

MAX_CHANNELS = 64
"""Files have at most this many channels, as has the channel axis of a 2-D array."""

_BLOCKS = (
    "Join consecutive blocks with numpy.concatenate, or pass them to Model.stream with live=True."
)


class FrameReader:
    """Reads one recording: a single array, or blocks that all have its layout.

    Attributes:
        remark: How the array was understood, where that is a guess a user should know of.
    """

    def __init__(self) -> None:
        self.remark = ""
        self._channels: int | None = None
        self._axis: int | None = None  # of the channels, once a block has told it

    def read(self, source: object) -> npt.NDArray[Any]:
        """Check shape and type of samples; return them as [n, channels], values untouched.

        Args:
            source: An array, or something NumPy makes one of: [n], [n, channels], or [channels, n]
                where that has 8 channels at most, and more samples.

        Raises:
            AudioError: It is no audio, or nothing tells how it is meant, or it has another number
                of channels than the block before.
        """
        array = _array(source)
        if array.ndim == 1:
            frames = array[:, np.newaxis]
        else:
            frames = array.T if self._channel_axis(array, source) == 0 else array
        channels = frames.shape[1]
        if self._channels not in (None, channels):
            raise AudioError(
                f"A block has {channels} channels, the blocks before it had {self._channels}; "
                "expected the same number throughout."
            )
        self._channels = channels
        return frames

    def _channel_axis(self, array: npt.NDArray[Any], source: object) -> int:
        if self._axis is not None and array.shape[self._axis] == self._channels:
            return self._axis  # a last block may be as short as it likes
        rows, columns = array.shape
        separate = isinstance(source, Sequence)  # a list of arrays, not one array
        if rows <= USUAL_CHANNELS < columns:
            self._axis = 0
            if separate and rows > 1:
                self.remark = (
                    f"A {type(source).__name__} of {rows} sequences was taken for the channels of "
                    f"one recording, as numpy.stack(..., axis=1) makes it. {_BLOCKS}"
                )
            return 0
        if columns == 0 or columns > (USUAL_CHANNELS if separate else MAX_CHANNELS):
            what = f"A {type(source).__name__} of {rows} sequences" if separate else "An array"
            raise AudioError(
                f"{what} of shape {array.shape} is not one recording; expected [samples] or "
                f"[samples, channels]. {_BLOCKS} If they are {rows} channels, transpose the array."
            )
        if rows > USUAL_CHANNELS:
            self._axis = 1
        return 1


def as_float32(block: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Floats as they are; integers to [-1, 1) by their full scale."""
    if block.dtype.kind == "f":
        return block.astype(np.float32, copy=False)
    half_scale = 2.0 ** (8 * block.dtype.itemsize - 1)
    wide = block.astype(np.float64)  # holds 32-bit integers exactly, as float32 would not
    if block.dtype.kind == "u":
        wide -= half_scale
    return (wide / half_scale).astype(np.float32)


def _array(source: object) -> npt.NDArray[Any]:
    """An array of one or two axes and a type whose full scale is known."""
    if reason := _no_samples(source):
        raise AudioError(reason)
    try:
        array = np.asarray(source)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).rstrip(".")
        raise AudioError(
            f"{type(source).__name__} cannot be read as an array: {reason}. {_BLOCKS}"
        ) from error
    if array.dtype.kind == "O" and not isinstance(source, np.ndarray | Sequence):
        raise AudioError(
            f"A {type(source).__name__} is not audio; expected a path, a binary file object, or an "
            "array of samples."
        )
    if array.dtype.kind not in "iuf":
        raise AudioError(
            f"Samples have the type {array.dtype}; expected integers or real floating-point values."
        )
    if array.dtype.kind in "iu" and array.dtype.itemsize > 4:
        raise AudioError(
            f"Samples of type {array.dtype} have no known full scale; expected integers of 8 to 32 "
            "bits, or floats. Convert them first, for example with array.astype(numpy.int16)."
        )
    if array.ndim not in (1, 2):
        hint = {
            0: "One number is no block: for a single recording leave live=True out.",
            3: f"For a batch, pass its recordings one by one. {_BLOCKS}",
        }.get(array.ndim, "")
        raise AudioError(
            f"An array of shape {array.shape} is not audio; expected [samples] or "
            f"[samples, channels] with 1 to {MAX_CHANNELS} channels. {hint}".rstrip()
        )
    return array


def _no_samples(source: object) -> str:
    """What an object is instead of samples, and what to pass; empty if it may be an array."""
    kind = type(source).__name__
    told: tuple[tuple[tuple[type, ...], str], ...] = (
        (
            (bytes, bytearray, memoryview),
            "Raw bytes are neither a path nor samples; wrap a file in io.BytesIO.",
        ),
        (
            (AsyncIterable, Awaitable),
            f"A {kind} is asynchronous; await it, and pass the samples that it gives.",
        ),
        (
            (Iterator,),
            f"A {kind} is no single recording; pass blocks to Model.stream, or join them first.",
        ),
        ((Mapping,), f"A {kind} object is not audio; pass its samples, and their rate as sr."),
    )
    for kinds, sentence in told:
        if isinstance(source, kinds):
            return sentence
    if not isinstance(source, Sequence) or not len(source):
        return ""
    if isinstance(source[0], str | os.PathLike) or hasattr(source[0], "read"):
        return f"A {kind} of files is no single recording; pass it to Model.transcribe_many."
    if len(source) == 2 and {isinstance(item, Real) for item in source} == {True, False}:
        return (
            f"A {kind} of samples and a number was given; pass the samples alone, and their rate "
            "as sr, such as transcribe(samples, sr=44100)."
        )
    return ""
