"""Augments audio: rooms, equalisation, saturation, level and noise of real recordings.

Contract: `draw` draws a `Colour`, a few numbers that say what happens; `Augmenter` does it to a
window of audio.  Noise and room responses come from tables that are made from a fixed seed.

In this order: a room (sparse early reflections, then a diffuse tail that dies sooner in the
treble), equalisation (tilt, two bands, band limits), level, soft saturation as of a mastered mix,
and noise.  Onsets stay where they are: the direct sound always comes first.

A window is given with `PREROLL` samples of what was played before, so that the room already rings
when it begins.  The convolution may then wrap around, as it spoils only what is cut off.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import OptionError
from mt3_synthesis.rendering import SAMPLE_RATE, Samples

PREROLL = 8000
"""Samples ahead of a window, and length of a room's response (0.5 s)."""

ROOMS, NOISES = 48, 1 << 18
"""Number of room responses; samples of noise."""

EARLY_SECONDS = (0.002, 0.04)
"""When the early reflections of a room arrive."""

EARLY_COUNT = 12
"""Early reflections of a room."""

SPLIT_HZ = 1500.0
"""Below, a room's tail has one decay time; above, another."""

DECAY_NEPERS = 6.908
"""ln 1000: a reverberation time is that of a decay by 60 dB."""

QUIET_PEAK = 0.05
"""Windows whose peak is lower are not made louder than if it were this."""

_SEED = 0x6D7433
"""Of the tables; they never change, so that equal seeds of a data set mean equal audio."""


class Colour(NamedTuple):
    """What is done to one window.

    Attributes:
        room: Number of the room response, 0..`ROOMS` - 1.
        early: Amplitude of the early reflections; the direct sound has 1.
        tail: Amplitude of the diffuse tail (root of its energy before it decays).
        decay_low: Reverberation time below `SPLIT_HZ`, in seconds.
        decay_high: The same above.
        tilt: dB per octave, around 1 kHz.
        hz_1: Centre of a band.
        db_1: Its gain.
        hz_2: Centre of another band.
        db_2: Its gain.
        octaves: Width of both.
        low_cut: Hz below which it gets quieter (12 dB per octave).
        high_cut: Hz above which it gets quieter (24 dB per octave).
        level: Peak, in dB of full scale.
        drive: Saturation; 0 for none.
        noise: RMS of the noise, in dB of full scale.
        pink: Share of pink noise in it, 0..1.
        offset: Where the noise is taken from, in samples.
    """

    room: float
    early: float
    tail: float
    decay_low: float
    decay_high: float
    tilt: float
    hz_1: float
    db_1: float
    hz_2: float
    db_2: float
    octaves: float
    low_cut: float
    high_cut: float
    level: float
    drive: float
    noise: float
    pink: float
    offset: float


@dataclass(frozen=True)
class AugmentConfig:
    """How much is done, and how often.

    Attributes:
        room: Probability of a room.
        equaliser: Probability of tilt and bands.
        band_limits: Probability of each band limit.
        saturation: Probability of saturation.
        noise: Probability of noticeable noise; there is always some.
        level: Lowest and highest peak in dB of full scale.
    """

    room: float = 0.6
    equaliser: float = 0.8
    band_limits: float = 0.15
    saturation: float = 0.25
    noise: float = 0.5
    level: tuple[float, float] = (-24.0, -0.5)

    def __post_init__(self) -> None:
        for name in ("room", "equaliser", "band_limits", "saturation", "noise"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise OptionError(f"{name} is {getattr(self, name)}; expected a probability 0..1")
        if not self.level[0] <= self.level[1] <= 0.0:
            raise OptionError(f"level is {self.level} dB; expected an ascending pair up to 0")


def draw(config: AugmentConfig, rng: np.random.Generator) -> Colour:
    """Draw what is done to a window."""
    u = rng.random(24)

    def between(index: int, low: float, high: float) -> float:
        return low + (high - low) * float(u[index])

    room = u[0] < config.room
    equaliser = u[1] < config.equaliser
    slow = between(2, 0.1, 1.2)
    return Colour(
        room=int(u[3] * ROOMS),
        early=between(4, 0.0, 0.5) if room else 0.0,
        tail=10.0 ** (between(5, -24.0, -2.0) / 20.0) if room else 0.0,
        decay_low=slow,
        decay_high=slow * between(6, 0.3, 0.9),
        tilt=between(7, -2.0, 1.5) if equaliser else 0.0,
        hz_1=80.0 * 2.0 ** between(8, 0.0, 4.0),
        db_1=between(9, -8.0, 8.0) if equaliser else 0.0,
        hz_2=800.0 * 2.0 ** between(10, 0.0, 3.2),
        db_2=between(11, -8.0, 8.0) if equaliser else 0.0,
        octaves=between(12, 0.4, 1.5),
        low_cut=between(13, 40.0, 160.0) if u[14] < config.band_limits else 10.0,
        high_cut=between(15, 3000.0, 7500.0) if u[16] < config.band_limits else 12000.0,
        level=between(17, *config.level),
        drive=between(18, 0.5, 3.0) if u[19] < config.saturation else 0.0,
        noise=between(20, -75.0, -42.0) if u[21] < config.noise else -90.0,
        pink=between(22, 0.0, 1.0),
        offset=int(u[23] * NOISES),
    )


class Tables(NamedTuple):
    """Fixed tables; all float32.

    Attributes:
        early: Early reflections [`ROOMS`, `PREROLL`]; each room's energy is 1.
        low: Diffuse noise below `SPLIT_HZ` [`ROOMS`, `PREROLL`]; with ``high``, energy 1 a second.
        high: The rest of it, the same shape.
        white: Noise of RMS 1 [`NOISES`].
        pink: Noise of RMS 1 whose power falls by 3 dB per octave [`NOISES`].
    """

    early: Samples
    low: Samples
    high: Samples
    white: Samples
    pink: Samples


@functools.cache
def tables() -> Tables:
    """The tables, made on first use."""
    rng = np.random.default_rng(_SEED)
    early = np.zeros((ROOMS, PREROLL))
    for response in early:
        low, high = EARLY_SECONDS
        at = low + (high - low) * np.sort(rng.random(EARLY_COUNT))
        gains = rng.standard_normal(EARLY_COUNT) * np.exp(-3.0 * at / high)
        response[np.rint(at * SAMPLE_RATE).astype(int)] = gains
    early /= np.sqrt(np.sum(early**2, axis=1, keepdims=True))
    diffuse = rng.standard_normal((ROOMS, PREROLL)) / np.sqrt(SAMPLE_RATE)
    # It sets in between the first reflections, and never stops abruptly.
    time = np.arange(PREROLL) / SAMPLE_RATE
    diffuse *= np.clip((time - 0.004) / 0.02, 0.0, 1.0) * np.clip((0.5 - time) / 0.1, 0.0, 1.0)
    spectrum = np.fft.rfft(diffuse)
    share = 1.0 / (1.0 + (np.fft.rfftfreq(PREROLL, 1.0 / SAMPLE_RATE) / SPLIT_HZ) ** 4)
    low_band = np.fft.irfft(spectrum * share, PREROLL)
    white = rng.standard_normal(NOISES)
    slope = 1.0 / np.sqrt(np.maximum(np.fft.rfftfreq(NOISES, 1.0 / SAMPLE_RATE), 30.0))
    pink = np.fft.irfft(np.fft.rfft(rng.standard_normal(NOISES)) * slope, NOISES)
    pink /= np.sqrt(np.mean(pink**2))
    return Tables(
        *(
            np.asarray(table, np.float32)
            for table in (early, low_band, diffuse - low_band, white, pink)
        )
    )


def fft_length(samples: int) -> int:
    """Length of the transform for a window with its preroll: the next with factors 2, 3 and 5."""
    wanted = samples + PREROLL
    best = 1 << (wanted - 1).bit_length()
    threes = 1
    while threes < best:
        fives = threes
        while fives < best:
            twos = fives << max(0, -(-wanted // fives) - 1).bit_length()
            best = min(best, twos)
            fives *= 5
        threes *= 3
    return best


class Augmenter:
    """Does to windows what colours say.

    Args:
        samples: Length of the windows, without preroll.
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._length = fft_length(samples)
        self._hertz = np.maximum(np.fft.rfftfreq(self._length, 1.0 / SAMPLE_RATE), 20.0)
        self._octaves = np.log2(self._hertz / 1000.0)
        self._time = np.arange(PREROLL, dtype=np.float32) / np.float32(SAMPLE_RATE)

    def __call__(self, mix: Samples, colour: Colour) -> Samples:
        """Colour one window.

        Args:
            mix: float32 [`PREROLL` + samples].
            colour: What to do.

        Returns:
            float32 [samples], within full scale.
        """
        table = tables()
        spectrum = np.fft.rfft(mix, self._length) * self._gain(colour)
        if colour.early or colour.tail:
            spectrum *= np.fft.rfft(self._response(colour), self._length)
        heard = np.fft.irfft(spectrum, self._length)[PREROLL : PREROLL + self._samples]
        heard = heard / max(float(np.abs(heard).max()), QUIET_PEAK)
        if colour.drive:
            heard = np.tanh(colour.drive * heard) / np.tanh(colour.drive)
        at = (int(colour.offset) + np.arange(self._samples)) % NOISES
        noise = colour.pink * table.pink[at] + (1.0 - colour.pink) * table.white[at]
        heard = amplitude(colour.level) * heard + amplitude(colour.noise) * noise
        return np.asarray(np.clip(heard, -1.0, 1.0), np.float32)

    def _gain(self, colour: Colour) -> npt.NDArray[np.float32]:
        """Of the equaliser, by frequency."""
        decibels = colour.tilt * np.clip(self._octaves, -4.0, 3.0)
        for hertz, gain in ((colour.hz_1, colour.db_1), (colour.hz_2, colour.db_2)):
            distance = (self._octaves - np.log2(hertz / 1000.0)) / colour.octaves
            decibels += gain * np.exp(-(distance**2))
        limits = 1.0 + (colour.low_cut / self._hertz) ** 2
        limits *= 1.0 + (self._hertz / colour.high_cut) ** 4
        return np.asarray(10.0 ** (decibels / 20.0) / limits, np.float32)

    def _response(self, colour: Colour) -> Samples:
        """Of the room: float32 [`PREROLL`]."""
        table, room = tables(), int(colour.room)
        low = table.low[room] * np.exp(self._time * np.float32(-DECAY_NEPERS / colour.decay_low))
        high = table.high[room] * np.exp(self._time * np.float32(-DECAY_NEPERS / colour.decay_high))
        # A tail that decays by e^-2kt has the energy 1 / 2k.
        tail = colour.tail * np.sqrt(2.0 * DECAY_NEPERS / colour.decay_low)
        response = colour.early * table.early[room] + np.float32(tail) * (low + high)
        response[0] += 1.0
        return np.asarray(response, np.float32)


def amplitude(decibels: float) -> float:
    """The factor that is so many decibels."""
    return float(10.0 ** (decibels / 20.0))
