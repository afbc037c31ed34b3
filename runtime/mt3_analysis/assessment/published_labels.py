"""The sixteen labelling functions of a published study, exact and not validated.

Contract: each maps one or two statistics of a performance, piece by piece linearly, to 0..100, as
published.  They are here so that the study can be repeated; nothing of `mt3 assess` uses them.
`docs/assessment.md` has the table of what each answers to: one of nine follows the fault it is
named after.  Statistics of audio come from librosa in the study; here they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mt3_analysis.assessment.performance import SUSTAIN, Performance

VALIDATED = False
"""None of them was ever compared with what listeners say."""


class Step(NamedTuple):
    """A piece of a function: ``base + slope * (x - at)`` below a limit.

    Attributes:
        below: Where the piece ends.
        base: Score at ``at``.
        at: Value of the statistic.
        slope: Score by unit of the statistic.
    """

    below: float
    base: float
    at: float = 0.0
    slope: float = 0.0


@dataclass(frozen=True)
class AudioStatistics:
    """What librosa (its defaults, 24 kHz) says of a recording.

    Attributes:
        centroid_hz: Mean of ``feature.spectral_centroid``.
        contrast_db: Mean of ``feature.spectral_contrast``.
        onset_mean: Mean of ``onset.onset_strength``.
        onset_deviation: Its standard deviation.
        loudness_variation: Standard deviation over mean of ``feature.rms`` (frames of 2048, hops of
            512), smoothed over 20 frames.
        onset_periodicity: Largest autocorrelation of ``onset.onset_strength``, from lag 1 to a
            quarter of its length.
    """

    centroid_hz: float
    contrast_db: float
    onset_mean: float
    onset_deviation: float
    loudness_variation: float
    onset_periodicity: float


@dataclass(frozen=True, eq=False)
class LabelInput:
    """What the functions look at.

    Attributes:
        performance: Notes and pedal.
        tempi: The tempo events of its file [1/min], of which a performance has one.
        audio: Statistics of a recording of it, if there is one.
    """

    performance: Performance
    tempi: Sequence[float] = (120.0,)
    audio: AudioStatistics | None = None

    @property
    def end_s(self) -> float:
        """When the last note or movement of the pedal ends [s]."""
        ends = [float(curve.time_s[-1]) for curve in self.performance.pedals.values()]
        notes = [float(self.performance.offset_s.max())] if len(self.performance) else []
        return max([*ends, *notes], default=0.0)


Label = Callable[[LabelInput], float | None]
_END = math.inf


def stepped(x: float, steps: Sequence[Step], low: float, high: float) -> float:
    """The score of a statistic, clipped to a range."""
    for below, base, at, slope in steps:
        if x < below:
            return float(np.clip(base + slope * (x - at), low, high))
    raise AssertionError(x)  # the last piece has no end


def note_count_complexity(given: LabelInput) -> float | None:
    """Note accuracy, by notes per second: the denser, the lower."""
    if not given.end_s:
        return None
    density = len(given.performance) / given.end_s
    steps = (
        Step(1, 95), Step(5, 90, 1, -5), Step(10, 70, 5, -4), Step(15, 50, 10, -3), Step(_END, 35),
    )  # fmt: skip
    return stepped(density, steps, 0, 100)


def pitch_range_complexity(given: LabelInput) -> float | None:
    """Note accuracy, by the distance of the lowest and the highest note: the wider, the lower."""
    pitch = given.performance.pitch
    if not len(pitch):
        return None
    steps = (Step(24, 95), Step(48, 85, 24, -0.5), Step(_END, 73, 48, -0.3))
    return stepped(float(np.ptp(pitch)), steps, 50, 100)


def timing_variance(given: LabelInput) -> float | None:
    """Rhythm, by the mean distance [ms] of onsets from multiples of the median gap of onsets."""
    onset = given.performance.onset_s
    grid = float(np.median(np.diff(onset))) if len(onset) >= 10 else 0.0
    if not grid:
        return None
    off = 1000 * float(np.abs(onset - np.round(onset / grid) * grid).mean())
    steps = (
        Step(10, 95, 10, -0.5),
        Step(30, 80, 30, -0.75),
        Step(50, 60, 50, -1),
        Step(_END, 60, 50, -0.5),
    )
    return stepped(off, steps, 40, 100)


def tempo_stability(given: LabelInput) -> float | None:
    """Rhythm, by standard deviation over mean of tempo events; one event is 95."""
    tempi = np.asarray(given.tempi, np.float64)
    if len(tempi) < 2:
        return 95.0
    steps = (
        Step(0.05, 95),
        Step(0.15, 85, 0.05, -100),
        Step(0.3, 75, 0.15, -50),
        Step(_END, 67.5, 0.3, -25),
    )
    return stepped(float(tempi.std() / tempi.mean()), steps, 50, 100)


def spectral_centroid(given: LabelInput) -> float | None:
    """Tone, by the mean centroid of the spectrum [Hz]: best between 1,000 and 2,000."""
    if given.audio is None:
        return None
    hertz = given.audio.centroid_hz
    score = 60.0
    if 1000 <= hertz <= 2000:
        score = 90 + (1500 - abs(hertz - 1500)) / 50
    elif 500 <= hertz < 1000:
        score = 70 + (hertz - 500) / 25
    elif 2000 < hertz <= 3000:
        score = 70 + (3000 - hertz) / 50
    return float(np.clip(score, 50, 100))


def inharmonicity(given: LabelInput) -> float | None:
    """Tone, by the mean contrast of the spectrum [dB]."""
    if given.audio is None:
        return None
    contrast = given.audio.contrast_db
    score = 65 + 2 * (contrast - 15)
    if contrast > 25:
        score = 85 + 0.5 * (contrast - 25)
    elif contrast > 20:
        score = 75 + 2 * (contrast - 20)
    return float(np.clip(score, 60, 95))


def velocity_range(given: LabelInput) -> float | None:
    """Dynamics, by range and standard deviation of velocities."""
    loud = given.performance.velocity
    if not len(loud):
        return None
    span, deviation = float(np.ptp(loud)), float(np.std(loud))
    score = 50 + 0.33 * span
    if span > 70 and deviation > 20:
        score = 90 + 0.2 * (span - 70)
    elif span > 50 and deviation > 15:
        score = 75 + 0.75 * (span - 50)
    elif span > 30:
        score = 60 + 0.75 * (span - 30)
    return float(np.clip(score, 50, 100))


def velocity_smoothing(given: LabelInput) -> float | None:
    """Dynamics, by the mean difference of velocities of neighbouring notes (by onset, pitch)."""
    loud = given.performance.velocity
    if len(loud) < 10:
        return None
    steps = (
        Step(8, 90, 8, -1), Step(15, 75, 15, -2.14), Step(25, 60, 25, -1.5), Step(_END, 50),
    )  # fmt: skip
    return stepped(float(np.abs(np.diff(loud)).mean()), steps, 50, 100)


def note_duration_variance(given: LabelInput) -> float | None:
    """Articulation, by standard deviation over mean of lengths: best between 0.3 and 0.7."""
    length = given.performance.offset_s - given.performance.onset_s
    if not len(length) or not length.mean():
        return None
    return _best(float(length.std() / length.mean()), (0.2, 0.3, 0.7, 1.0), (20, 150, 50), 55)


def attack_transients(given: LabelInput) -> float | None:
    """Articulation, by mean and deviation of onset strength."""
    if given.audio is None:
        return None
    mean, deviation = given.audio.onset_mean, given.audio.onset_deviation
    return float(np.clip(min(10 * mean, 50) + min(5 * deviation, 50), 50, 100))


def pedal_coherence(given: LabelInput) -> float | None:
    """Pedal, by changes between up and down per minute: best between 10 and 30."""
    curve = given.performance.pedals.get(SUSTAIN)
    if curve is None or len(curve.time_s) < 2:
        return 70.0
    if not given.end_s:
        return None
    states = np.concatenate(([False], curve.value > 63))
    rate = 60 * int((states[1:] != states[:-1]).sum()) / given.end_s
    return _best(rate, (5, 10, 30, 50), (0.5, 3, 0.75), 55)


def pedal_timing(given: LabelInput) -> float | None:
    """Pedal, by the mean distance [ms] of all pedal events from the nearest onset."""
    curve, onset = given.performance.pedals.get(SUSTAIN), given.performance.onset_s
    if curve is None or len(curve.time_s) < 2 or len(onset) < 10:
        return 75.0
    place = np.clip(np.searchsorted(onset, curve.time_s), 1, len(onset) - 1)
    near = np.minimum(np.abs(onset[place] - curve.time_s), np.abs(onset[place - 1] - curve.time_s))
    steps = (
        Step(30, 90, 30, -0.33),
        Step(100, 75, 100, -0.21),
        Step(200, 60, 200, -0.15),
        Step(_END, 55),
    )
    return stepped(1000 * float(near.mean()), steps, 50, 100)


def phrasing_coherence(given: LabelInput) -> float | None:
    """Expression, by turns of the mean velocity of ten notes, in a hundred notes."""
    loud = given.performance.velocity.astype(np.float64)
    if len(loud) < 20:
        return None
    width = min(10, len(loud) // 4)
    trend = np.convolve(loud, np.ones(width) / width, mode="valid")
    turns = int((np.diff(np.sign(np.diff(trend))) != 0).sum())
    density = 100 * turns / len(trend)
    score = 60.0
    if 5 <= density <= 15:
        score = 85 + (10 - abs(density - 10))
    elif 3 <= density < 5:
        score = 70 + 7.5 * (density - 3)
    elif 15 < density <= 25:
        score = 70 - 1.5 * (density - 15)
    return float(np.clip(score, 55, 95))


def dynamic_contour(given: LabelInput) -> float | None:
    """Expression, by variation of the smoothed loudness: best between 0.3 and 0.6."""
    if given.audio is None:
        return None
    score = _best(given.audio.loudness_variation, (0.2, 0.3, 0.6, 0.8), (30, 150, 50), 60)
    return float(np.clip(score, 55, 95))


def combined_quality(given: LabelInput) -> float | None:
    """Interpretation, as the mean of scores of tempo events, velocity range and contrast."""
    if given.audio is None:
        return None
    parts = [min(90.0, 60 + given.audio.contrast_db)]
    tempi = np.asarray(given.tempi, np.float64)
    if len(tempi) >= 2:
        parts.append(90.0 if tempi.std() / tempi.mean() < 0.1 else 70.0)
    if len(given.performance):
        parts.append(min(90.0, 50 + 0.5 * float(np.ptp(given.performance.velocity))))
    return float(np.clip(np.mean(parts), 60, 95))


def temporal_coherence(given: LabelInput) -> float | None:
    """Interpretation, by the largest autocorrelation of onset strength."""
    if given.audio is None:
        return None
    strength = given.audio.onset_periodicity
    score = 60 + 0.3 * strength
    if strength > 100:
        score = 90.0
    elif strength > 50:
        score = 75 + 0.3 * (strength - 50)
    return float(np.clip(score, 60, 95))


PUBLISHED: Mapping[str, tuple[Label, Label]] = {
    "note_accuracy": (note_count_complexity, pitch_range_complexity),
    "rhythmic_stability": (timing_variance, tempo_stability),
    "articulation_clarity": (note_duration_variance, attack_transients),
    "pedal_technique": (pedal_coherence, pedal_timing),
    "tone_quality": (spectral_centroid, inharmonicity),
    "dynamic_range": (velocity_range, velocity_smoothing),
    "musical_expression": (phrasing_coherence, dynamic_contour),
    "overall_interpretation": (combined_quality, temporal_coherence),
}
"""The functions by the dimension that they are to label."""


def published_labels(given: LabelInput) -> dict[str, float | None]:
    """All sixteen scores 0..100 by name; None where one cannot be computed."""
    return {label.__name__: label(given) for pair in PUBLISHED.values() for label in pair}


def _best(
    x: float,
    ends: tuple[float, float, float, float],
    slopes: tuple[float, float, float],
    otherwise: float,
) -> float:
    """The shape of several functions: 85 and more in the middle, lines on either side.

    Args:
        x: The statistic.
        ends: Of the line below, of the middle, of the line above.
        slopes: In the middle from its centre, of the line below, of the line above.
        otherwise: Score outside.
    """
    lowest, low, high, highest = ends
    score = otherwise
    if low <= x <= high:
        centre = (low + high) / 2
        score = 85 + (centre - abs(x - centre)) * slopes[0]
    elif lowest <= x < low:
        score = 70 + (x - lowest) * slopes[1]
    elif high < x <= highest:
        score = 70 - (x - high) * slopes[2]
    return float(np.clip(score, 50, 95))
