"""Tells drums from hi-hats and cymbals by the sound of a recording.

Contract: `low_energy` compares the energy of 40 to 300 Hz with that of 3 to 8 kHz, in decibels, in
the loudest half minute of a recording; `judge` makes a verdict of it.  Level and sample rate change
it by less than half a decibel, a constant offset by nothing.

The band begins at 40 Hz, as recordings with an offset have their energy below.  Measured on 840
made-up stems of five collections of samples, of which the thresholds knew none: balanced accuracy
0.99 at 2 dB and 0.98 at 5 dB; recordings of real kits lie at 6 dB or more, real hi-hats and
cymbals at 3.5 dB or less.  Centroids rank as well, but their threshold does not carry over to
other collections; whether a hit rings does not tell the two apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

RATE = 16_000
"""Of the samples [Hz]."""

WINDOW, HOP = 1024, 256
"""Samples of a frame (64 ms, so that 40 Hz is the third bin), and between frames."""

LOW, HIGH = (40.0, 300.0), (3000.0, 8000.0)
"""Bands that are compared [Hz]: heads of drums, and metal."""

SURELY_HIGH, SURELY_LOW = 2.0, 5.0
"""Below the first it is metal, above the second drums [dB]; see the module docstring."""

DYNAMIC = 40.0
"""Frames this much quieter than the loudest are not heard [dB]."""

AUDIBLE = -60.0
"""Level that the loudest frame must have [dB of full scale]: hi-hats keep theirs of the mix."""

LEAST_SECONDS, LEAST_ONSETS = 1.0, 8
"""With less that sounds, nothing is concluded."""

EXCERPT = 30.0
"""Seconds that are listened to at most, the loudest ones."""

_RISE = 6.0
"""Energy of a frame over that of 48 ms before, from which it begins a hit [dB]."""

_SILENCE = 1e-10


@dataclass(frozen=True)
class DrumSound:
    """What a recording of percussion sounds like.

    Attributes:
        high: Whether it is hi-hats and cymbals.
        low_db: Energy of `LOW` against `HIGH` [dB]; None where too little sounds.
        unsure: It is taken for drums for want of evidence: a label of a hi-hat too many costs less
            than kicks and snares that are none.
    """

    high: bool
    low_db: float | None
    unsure: bool


def judge(samples: Samples) -> DrumSound:
    """Whether percussion is drums, or hi-hats and cymbals.

    Args:
        samples: Mono [n] at `RATE`.
    """
    power = _power(_loudest(samples))
    if not _enough(power):
        return DrumSound(high=False, low_db=None, unsure=True)
    low = _low_db(power)
    return DrumSound(high=low < SURELY_HIGH, low_db=low, unsure=SURELY_HIGH <= low <= SURELY_LOW)


def low_energy(samples: Samples) -> float:
    """Energy of `LOW` against `HIGH` of mono samples [n] at `RATE`, in decibels."""
    return _low_db(_power(_loudest(samples)))


def loudest_blocks(blocks: Iterable[Samples]) -> Samples:
    """The loudest `EXCERPT` of a recording that comes in blocks [n], without keeping more than two.

    Energy is compared second by second.
    """
    length = round(EXCERPT * RATE)
    best, best_energy = np.zeros(0, np.float32), -1.0
    kept = np.zeros(0, np.float32)
    for block in blocks:
        kept = np.concatenate([kept, block])
        while len(kept) >= length:
            energy = _energy(kept[:length])
            if energy > best_energy:
                best, best_energy = kept[:length].copy(), energy
            kept = kept[RATE:]
    return kept if best_energy < 0 else best


def _loudest(samples: Samples) -> Samples:
    return loudest_blocks([samples])


def _energy(samples: Samples) -> float:
    centred = samples - samples.mean()
    return float(np.dot(centred, centred))


def _power(samples: Samples) -> npt.NDArray[np.float32]:
    """Power spectra [frames, bins] of Hann frames; a recording shorter than a frame is padded."""
    padded = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    # Power per sample: a sine at full scale has 1/2, whatever the window.
    scale = 2.0 / (WINDOW * float(np.square(window).sum()))
    return (np.square(np.abs(np.fft.rfft(frames * window))) * scale).astype(np.float32)


def _band(power: npt.NDArray[np.float32], band: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Energy of a band by frames [frames]."""
    bins = np.arange(power.shape[1]) * RATE / WINDOW
    chosen = (bins >= band[0]) & (bins <= band[1])
    found: npt.NDArray[np.float32] = power[:, chosen].sum(1)
    return found


def _levels(power: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Level of every frame without what is below `LOW` [dB of full scale]."""
    found: npt.NDArray[np.float32] = 10 * np.log10(_band(power, (LOW[0], RATE / 2)) + _SILENCE)
    return found


def _low_db(power: npt.NDArray[np.float32]) -> float:
    levels = _levels(power)
    heard = power[levels >= levels.max() - DYNAMIC]
    low, high = (float(_band(heard, band).sum()) for band in (LOW, HIGH))
    floor = 1e-6 * (low + high) + 1e-30  # below it there is rounding, which level would change
    return float(10 * np.log10((low + floor) / (high + floor)))


def _enough(power: npt.NDArray[np.float32]) -> bool:
    """Whether enough sounds to conclude something."""
    levels = _levels(power)
    heard = levels >= max(AUDIBLE, levels.max() - DYNAMIC)
    before = np.concatenate([np.full(3, -100.0, np.float32), levels[:-3]])
    rises = heard & (levels - before >= _RISE)
    hits = int((rises & ~np.concatenate([[False], rises[:-1]])).sum())
    return bool(heard.sum() * HOP / RATE >= LEAST_SECONDS and hits >= LEAST_ONSETS)
