"""Salience frames: what of a recording's spectra is kept to judge notes by, frame by frame.

Contract: `SalienceSpectra.hear` is given a recording's samples, block by block, and returns the
`SalienceFrames` that are complete; `mt3_runtime.leakage.salience` keeps them and answers.  The two
may live in different processes.  Nothing depends on how the audio came in blocks.

A second of audio costs a core 0.6 ms; 0.3 ms where spectra are handed over, because those of a
segment's features are the same (`SalienceSpectra.shares`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.filter_bank import hann_window
from mt3_runtime.audio.log_mel import CHUNK_FRAMES, FeatureConfig
from mt3_runtime.leakage.harmonics import HIGHEST_HZ as HIGHEST_TONE_HZ
from mt3_runtime.leakage.harmonics import surroundings
from mt3_runtime.leakage.partials import PitchClarity

WINDOW_SECONDS = 0.128
"""Of a frame, rounded to a power of two samples: 7.8 Hz, which tell semitones apart from C3 on."""

FRAMES_PER_WINDOW = 4
"""Frames begin every 32 ms."""

HIGHEST_HZ = 7000.0
"""Above, models at 16 kHz hear nothing."""

STANDS_OUT = 0.9
"""log10 of the prominence (18 dB) from which a frequency counts as part of a tone."""

BAND_EDGES_HZ = (0.0, 100.0, 200.0, 400.0, 1000.0, 3000.0, 5000.0, HIGHEST_HZ)

FLOOR = 1e-6
"""Added to amplitudes: silence stands out from nothing."""

MOST_FRAMES = 32
"""Worked on at a time: the scratch stays in the L2 cache, and is not given back to the system
between two of them (which, with 64, cost half as much again)."""


class SalienceFrames(NamedTuple):
    """What is kept of consecutive frames.

    Attributes:
        clarity: Of each pitch of a piano, float16 [k, pitches], see `PitchClarity`.
        power: float32 [k, bands], between `BAND_EDGES_HZ`.
        level: float16 [k, low frequencies], log10 of their amplitudes.
        tones: float64 [k], sum of the amplitudes that belong to tones.
        amplitudes: float64 [k], sum of all.
        samples: How many were heard so far, since the recording's beginning.
    """

    clarity: npt.NDArray[np.float16]
    power: npt.NDArray[np.float32]
    level: npt.NDArray[np.float16]
    tones: npt.NDArray[np.float64]
    amplitudes: npt.NDArray[np.float64]
    samples: int


class FrameGrid:
    """Where frames lie, and the frequencies of their spectra, at a sample rate.

    Args:
        rate: Samples per second.

    Attributes:
        size: Samples of a frame.
        hop: Samples from frame to frame.
        used: Number of frequencies that are heard.
        low: Number of those in which tones are looked for.
        bands: First frequency of each band, and the last one's end.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.size = 1 << round(math.log2(WINDOW_SECONDS * rate))
        self.hop = self.size // FRAMES_PER_WINDOW
        self.used = min(round(HIGHEST_HZ * self.size / rate), self.size // 2)
        self.low = min(round(HIGHEST_TONE_HZ * self.size / rate), self.used)
        edges = [round(hertz * self.size / rate) for hertz in BAND_EDGES_HZ]
        self.bands = [min(edge, self.used - 1) for edge in edges]


class SalienceSpectra:
    """Makes salience frames of one recording.

    Args:
        rate: Samples per second.
    """

    def __init__(self, rate: int) -> None:
        self.grid = FrameGrid(rate)
        self._window = hann_window(self.grid.size)
        self._clarity = PitchClarity(rate / self.grid.size, self.grid.used)
        self._rest = np.zeros(0, np.float32)
        self._samples = 0
        self._none = self._frames(np.zeros((0, self.grid.used), np.float32))

    def shares(self, features: FeatureConfig, segment: int) -> bool:
        """Whether spectra of features, of segments of so many samples, are those of frames here.

        Then that is one of so many as the quotient of the hops is.
        """
        grid = self.grid
        return (
            features.framing == "leading"
            and (features.sample_rate, features.fft_size) == (grid.rate, grid.size)
            and grid.hop % features.hop == 0
            and CHUNK_FRAMES % (grid.hop // features.hop) == 0
            and segment % grid.hop == 0
        )

    def hear(
        self,
        block: npt.NDArray[np.float32],
        spectra: npt.NDArray[np.float32] | None = None,
    ) -> SalienceFrames:
        """Takes the next samples and returns the frames that are complete with them.

        Args:
            block: float32 [n].
            spectra: Magnitudes float32 [m, used or more] of the frames that begin in the block, one
                every hop from its first sample on, as far as they are known; taken where the frames
                here begin with the block, too.
        """
        size, hop = self.grid.size, self.grid.hop
        samples = np.concatenate([self._rest, block])
        count = max(0, (len(samples) - size) // hop + 1)
        begun, off = divmod(len(self._rest), hop)
        self._samples += len(block)
        self._rest = samples[count * hop :].copy()
        if not count:
            return self._none._replace(samples=self._samples)
        known = samples[:0] if spectra is None or off else spectra[: max(0, count - begun)]
        frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
        step = -(-count // -(-count // MOST_FRAMES))  # evenly, as each has a fixed cost, too
        parts = []
        for start in range(0, count, step):
            first = begun - start if len(known) else 0
            amplitude = self._amplitude(frames[start : min(start + step, count)], known, first)
            parts.append(self._frames(amplitude))
        return _joined(parts, self._samples)

    def _amplitude(
        self, frames: npt.NDArray[np.float32], known: npt.NDArray[np.float32], first: int
    ) -> npt.NDArray[np.float32]:
        """Magnitudes [k, used] of frames [k, size], some of which are known, from row ``first``."""
        count, used = len(frames), self.grid.used
        low = min(max(first, 0), count)
        high = min(max(first + len(known), low), count)
        amplitude = np.empty((count, used), np.float32)
        amplitude[low:high] = known[low - first : high - first, :used] if high > low else 0.0
        for rows in (slice(0, low), slice(high, count)):
            if rows.start < rows.stop:
                spectrum = np.fft.rfft(frames[rows] * self._window)[:, :used]
                np.abs(spectrum, out=amplitude[rows])
        return amplitude

    def _frames(self, amplitude: npt.NDArray[np.float32]) -> SalienceFrames:
        """What is kept of magnitudes [k, used]."""
        grid = self.grid
        level = np.log10(amplitude + np.float32(FLOOR))
        around = surroundings(level)
        stands_out = level - around > STANDS_OUT
        return SalienceFrames(
            clarity=self._clarity(level, around),
            power=np.add.reduceat(amplitude**2, grid.bands[:-1], axis=1),
            level=level[:, : grid.low].astype(np.float16),
            tones=(amplitude * stands_out).sum(axis=1, dtype=np.float64),
            amplitudes=amplitude.sum(axis=1, dtype=np.float64),
            samples=0,
        )


def _joined(parts: Sequence[SalienceFrames], samples: int) -> SalienceFrames:
    """Consecutive frames as one."""
    return SalienceFrames(
        np.concatenate([part.clarity for part in parts]),
        np.concatenate([part.power for part in parts]),
        np.concatenate([part.level for part in parts]),
        np.concatenate([part.tones for part in parts]),
        np.concatenate([part.amplitudes for part in parts]),
        samples,
    )
