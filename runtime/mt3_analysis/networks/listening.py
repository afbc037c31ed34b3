"""A recording that is listened to several times, at the rates that networks want.

Contract: a `Listen` gives the same recording as often as it is asked, as blocks of mono float32
samples at a rate in Hz.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.sources import load_audio, open_audio

if TYPE_CHECKING:
    from mt3_runtime.audio.sources import AudioSource

Floats = npt.NDArray[np.float32]


class Listen(Protocol):
    """Opens a recording at a rate."""

    def __call__(self, rate: int) -> AbstractContextManager[Iterable[Floats]]:
        """Opens it; blocks of mono float32 samples [n] at ``rate`` Hz come out."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """A file, or samples.

    Attributes:
        audio: A path or samples.
        sr: Sample rate of samples in Hz.
    """

    audio: AudioSource
    sr: float | None

    @property
    def source(self) -> tuple[AudioSource, float | None]:
        """What `mt3_runtime.model.Model` takes."""
        return self.audio, self.sr

    def __call__(self, rate: int) -> AbstractContextManager[Iterable[Floats]]:
        """As `Listen`; raises `AudioError`."""
        return open_audio(self.audio, sr=self.sr, target_rate=rate)


def listening(audio: AudioSource, sr: float | None = None) -> Recorded:
    """Makes a recording one that can be listened to again: a path as it is, else its samples.

    Args:
        audio: A path, a binary file object or an array.
        sr: Sample rate of an array [Hz].

    Raises:
        AudioError: It cannot be read.
    """
    if isinstance(audio, str | os.PathLike):
        return Recorded(audio, sr)
    return Recorded(load_audio(audio, sr=sr), None)


def samples_of(samples: Callable[[int], Floats]) -> Listen:
    """A `Listen` of what gives all samples at a rate."""
    return lambda rate: nullcontext([samples(rate)])
