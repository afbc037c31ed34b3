"""Measure the level of audio while it is mixed down, and say what of it makes notes doubtful.

Contract: `LevelMeter.mix` takes frames [n, channels] and returns their mean, mono [n]; what it
remembers of them are a few numbers, so it serves streams of any length.  `LevelMeter.sentences`
says what a transcription will suffer from: samples that were never scaled to -1..1, silence,
channels that cancel each other, a level far below that of any recording.  Nothing is corrected:
networks were trained on the recorded level.  All of it is the same for every way in which the audio
is cut into blocks.

Amplitudes are in units of full scale.  Silence and quietness are judged by half the range from the
smallest to the largest sample, so that a constant offset is no sound.  Three seconds of stereo cost
half a millisecond, a tenth of their decoding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.sound_file import block_frames, mix_down

LOUDEST_PLAUSIBLE = 8.0
"""Peak, 18 dB over full scale.  Mixing in floats exceeds full scale a few times, by two bits at
most; what exceeds it by three was not scaled at all."""

INTEGERS_FROM = 2.0
"""Peak from which samples that are all whole numbers count as unscaled integers: silence, and a
square wave at full scale, consist of whole numbers as well."""

DITHER = 2.0**-14
"""Peak: two steps of 16-bit audio, the most that triangular dither makes of digital silence."""

QUIETEST_PLAUSIBLE = 2.0**-8
"""Peak, 48 dB below full scale.  Of 16 bits 8 are in use, and quantisation noise is as near as in
8-bit audio.  For comparison, the *mean* level of broadcasts is -23 dB (EBU R 128)."""

CANCELLED = 0.01
"""Energy of the channels' mean, as a share of what it would be if they were unrelated (that of a
channel, divided by their number).  Below, 20 dB of the sound are lost."""

CANCELLED_SHARE = 0.1
"""Of a recording; less counts if it fills a whole window."""

USUAL_CHANNELS = 8
"""Most channels of common layouts (7.1).  A longer axis of an array is more often something else:
consecutive blocks, or a batch of recordings."""

_INTEGERS = (
    # smallest and largest sample; what they look like; what to do
    (-(2.0**7), 2.0**7 - 1, "8- or 16-bit integers", "divide by their full scale, 128 or 32768"),
    (0.0, 2.0**8 - 1, "unsigned 8-bit integers", "subtract 128, then divide by 128"),
    (-(2.0**15), 2.0**15 - 1, "16-bit integers", "divide by 32768"),
    (0.0, 2.0**16 - 1, "unsigned 16-bit integers", "subtract 32768, then divide by 32768"),
    (-(2.0**23), 2.0**23 - 1, "24-bit integers", "divide by 8388608"),
    (-(2.0**31), 2.0**31, "32-bit integers", "divide by 2147483648"),  # float32 rounds the last
)


class LevelMeter:
    """Mixes the frames of one recording, from its beginning to its end, and measures them.

    Attributes:
        name: Of the recording, for messages.
        rate: Sample rate of the frames [Hz].
        array_type: Of the samples before they were scaled to floats; None if they are from a file,
            which states its channels and scale.
        remark: What else is to be said about it.
    """

    def __init__(self, name: str, rate: float) -> None:
        self.name, self.rate = name, rate
        self.array_type: np.dtype[Any] | None = None
        self.remark = ""
        self._window = block_frames(rate)
        self._whole = True  # all samples are whole numbers
        self._frames = self._cancelled = 0
        # Of the mean, and behind it of the channels:
        self._low, self._high = np.empty(0), np.empty(0)
        self._sums, self._squares = np.empty(0), np.empty(0)  # over the current window
        self._exact = np.empty(0)  # scratch of several channels, kept: new memory costs more
        self._filled = 0  # frames in the current window

    def mix(self, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Mean over channels: float32 [n, channels] to a fresh float32 [n]."""
        mono = mix_down(frames)
        rows = [mono, *frames.T] if frames.shape[1] > 1 else [mono]
        self._lay_out(frames.shape[1])
        start = 0
        with np.errstate(all="ignore"):  # infinity and NaN are refused by who reads the mean
            while start < len(mono):
                stop = min(len(mono), start + self._window - self._filled)
                self._measure([row[start:stop] for row in rows], frames[start:stop])
                start = stop
        return mono

    def sentences(self) -> list[str]:
        """What makes a transcription of the audio so far doubtful; empty if nothing does."""
        if not self._frames:
            return []
        found = [self.remark, self._many_channels(), self.too_loud()]
        mean, *channels = (self._high - self._low) / 2
        loudest = max(channels)
        lost = self._cancelled + (self._filled if self._cancels() else 0)
        if mean < math.sqrt(CANCELLED) * loudest / len(channels):
            lost = self._frames  # single clicks, too short for an energy
        if loudest <= DITHER:
            found.append(self._silent(loudest))
        elif lost >= min(self._window, CANCELLED_SHARE * self._frames):
            found.append(self._cancelling(lost))
        elif mean <= QUIETEST_PLAUSIBLE:
            found.append(self._quiet(mean))
        return [sentence for sentence in found if sentence]

    def too_loud(self) -> str:
        """What to say of samples that were not scaled to -1..1; empty if they were."""
        if not self._frames:
            return ""
        low, high = float(self._low.min()), float(self._high.max())
        peak = max(-low, high)
        if self._whole and peak >= INTEGERS_FROM:
            fitting = [row[2:] for row in _INTEGERS if row[0] <= low and high <= row[1]]
            kind, remedy = fitting[0] if fitting else ("integers", "divide by their full scale")
            advice = f"They look like {kind} cast to float: {remedy}."
        elif peak > LOUDEST_PLAUSIBLE:
            advice = "Divide by their full scale (32768 if they were 16-bit integers)."
        else:
            return ""
        return (
            f"{self.name} has samples of up to {peak:.6g} where -1 to 1 is expected, so notes are "
            f"probably made up. {advice}"
        )

    def _silent(self, swing: float) -> str:
        if swing == 0.0:
            value = self._high[0]
            return (
                f"{self.name} holds no sound: every sample is {value:g}. There is nothing to "
                "transcribe; check what was recorded, or that the right channel was chosen."
            )
        return (
            f"{self.name} is as good as silent: its peak is {_decibels(swing)}, no more than the "
            f"dither of 16-bit audio. {self._too_small()}"
        )

    def _quiet(self, swing: float) -> str:
        return (
            f"{self.name} is very quiet: its peak is {_decibels(swing)}, and nothing is normalised "
            f"here, so notes may be missing or made up. {self._too_small()}"
        )

    def _too_small(self) -> str:
        kind = self.array_type
        if kind is not None and kind.kind in "iu":
            full = 2 ** (8 * kind.itemsize - 1)
            return (
                f"Samples of type {kind} are divided by {full}; convert values of fewer bits to "
                "the type of their size first."
            )
        return "Raise the level, and make sure that samples were scaled once only."

    def _cancelling(self, frames: int) -> str:
        return (
            f"The channels of {self.name} cancel each other in {frames / self.rate:.1f} of "
            f"{self._frames / self.rate:.1f} s: their mean, which is transcribed, has lost 20 dB "
            "or more there. Invert one of them, or pass a single channel."
        )

    def _many_channels(self) -> str:
        channels = len(self._low) - 1
        if self.array_type is None or channels <= USUAL_CHANNELS:
            return ""
        return (
            f"{self.name} was taken for {channels} channels, whose mean is transcribed. If they "
            "are consecutive blocks, join them with numpy.concatenate."
        )

    def _measure(
        self, rows: list[npt.NDArray[np.float32]], frames: npt.NDArray[np.float32]
    ) -> None:
        """Takes frames of one window: as [n] of the mean and each channel, and [n, channels]."""
        if self._whole:
            self._whole = bool((np.rint(frames) == frames).all())
        for place, row in enumerate(rows):
            exact: npt.NDArray[Any] = row
            if len(rows) > 1:
                exact = self._exact[: len(row)]
                exact[...] = row  # contiguous, too: five times as fast
                self._sums[place] += exact.sum()
                self._squares[place] += np.einsum("n,n->", exact, exact)
            self._low[place] = min(self._low[place], exact.min())
            self._high[place] = max(self._high[place], exact.max())
        if len(rows) == 1:  # the mean is the channel
            self._low[1], self._high[1] = (min(self._low[:2]), max(self._high[:2]))
        self._frames += len(frames)
        self._filled += len(frames)
        if self._filled == self._window:
            self._begin_window()

    def _lay_out(self, channels: int) -> None:
        """Makes room for so many channels; those of joined files differ."""
        if channels + 1 == len(self._sums):
            return
        self._begin_window()
        more = max(0, channels + 1 - len(self._low))
        self._low = np.append(self._low, np.full(more, math.inf))
        self._high = np.append(self._high, np.full(more, -math.inf))
        self._sums, self._squares = np.zeros((2, channels + 1))
        if channels > 1 and not len(self._exact):
            self._exact = np.empty(self._window)

    def _begin_window(self) -> None:
        self._cancelled += self._filled if self._cancels() else 0
        self._filled = 0
        self._sums[:] = self._squares[:] = 0.0

    def _cancels(self) -> bool:
        """Whether the channels cancel each other in the current window."""
        channels = len(self._sums) - 1
        if channels < 2 or not self._filled:
            return False
        mean, *energies = self._squares - self._sums**2 / self._filled  # without constant offsets
        each = sum(energies) / channels
        audible = self._filled * QUIETEST_PLAUSIBLE**2 / 2  # of a sine with that peak
        return bool(each > audible and mean < CANCELLED * each / channels)


def _decibels(amplitude: float) -> str:
    return f"{-20 * math.log10(amplitude):.0f} dB below full scale"
