"""Measures of the pedals: how much, how deep, how often, and when with respect to the notes."""

from __future__ import annotations

import numpy as np

from mt3_analysis.assessment.measures.measured_take import Group, Observed, Take, quantile, summary
from mt3_analysis.assessment.performance import Floats, PedalCurve

PEDAL = Group()

SOFT = 67
"""Controller of the soft pedal."""

_FRAME_S = 0.02  # of the curve that shares of time are counted on


def _sustain(take: Take) -> PedalCurve:
    curve = take.performance.sustain
    return PedalCurve(np.zeros(0), np.zeros(0, np.int64)) if curve is None else curve


def _presses(take: Take) -> Floats:
    end = float(take.performance.offset_s.max()) if len(take.performance) else 0.0
    return _sustain(take).presses(end)


def _values(take: Take) -> Floats:
    """Value of the pedal over time, 0..127, a frame [f]."""
    curve = _sustain(take)
    if not len(take.performance) or not len(curve.time_s):
        return np.zeros(0)
    frames = np.arange(take.performance.onset_s[0], take.performance.offset_s.max(), _FRAME_S)
    place = np.searchsorted(curve.time_s, frames, side="right") - 1
    return np.where(place >= 0, curve.value[np.maximum(place, 0)], 0).astype(np.float64)


@PEDAL.measure("1", "pedal")
def pedal_share(take: Take) -> Observed:
    """Share of the time for which the pedal is down."""
    return summary((_values(take) >= 64).astype(np.float64), np.mean)


@PEDAL.measure("1", "pedal")
def pedal_depth(take: Take) -> Observed:
    """Mean depth of the pedal, 0 up to 1 down, over all time."""
    return summary(_values(take) / 127.0, np.mean)


@PEDAL.measure("1", "pedal")
def half_pedal_share(take: Take) -> Observed:
    """Share of the time for which the pedal is neither up nor down: values 16 to 110."""
    values = _values(take)
    return summary(((values >= 16) & (values <= 110)).astype(np.float64), np.mean)


@PEDAL.measure("1/min", "pedal", fewest=2)
def pedal_rate(take: Take) -> Observed:
    """How often per minute the pedal is pressed."""
    presses, span = len(_presses(take)), take.performance.duration_s
    return Observed(60.0 * presses / span if span else np.nan, presses)


@PEDAL.measure("s", "pedal", fewest=2)
def press_median(take: Take) -> Observed:
    """Median time for which the pedal stays down."""
    return summary(np.diff(_presses(take), axis=1).ravel(), np.median)


@PEDAL.measure("s", "pedal", fewest=2)
def press_long(take: Take) -> Observed:
    """Time for which the pedal stays down that one press in ten exceeds."""
    return quantile(np.diff(_presses(take), axis=1).ravel(), 0.9)


@PEDAL.measure("s", "pedal", fewest=2)
def up_median(take: Take) -> Observed:
    """Median time from lifting the pedal to pressing it again."""
    presses = _presses(take)
    return summary(presses[1:, 0] - presses[:-1, 1], np.median)


@PEDAL.measure("ms", "pedal", fewest=2)
def press_lag(take: Take) -> Observed:
    """Median time from the last chord to pressing the pedal."""
    times = _presses(take)[:, 0]
    place = np.searchsorted(take.chord_s, times, side="right") - 1
    return summary(1000 * (times - take.chord_s[np.maximum(place, 0)])[place >= 0], np.median)


@PEDAL.measure("ms", "pedal", fewest=2)
def lift_lag(take: Take) -> Observed:
    """Median time from the nearest chord to lifting the pedal; negative if it is lifted before."""
    times = _presses(take)[:, 1]
    if not len(take.chord_s):
        return Observed(np.nan, 0)
    middle = (take.chord_s[1:] + take.chord_s[:-1]) / 2
    return summary(1000 * (times - take.chord_s[np.searchsorted(middle, times)]), np.median)


@PEDAL.measure("chords", "pedal", fewest=2)
def chords_a_press(take: Take) -> Observed:
    """Mean number of chords that begin while the pedal is held once."""
    presses = _presses(take)
    inside = np.diff(np.searchsorted(take.chord_s, presses), axis=1).ravel()
    return summary(inside.astype(np.float64), np.mean)


@PEDAL.measure("pitch classes", "pedal", fewest=2)
def pedal_blur(take: Take) -> Observed:
    """Mean number of pitch classes that sound together when the pedal is lifted.

    All that was struck since it was pressed, and what was held then.
    """
    on, off, pitch = take.performance.onset_s, take.performance.offset_s, take.performance.pitch
    counts = [
        len(np.unique(pitch[np.flatnonzero((on < lifted) & (off > pressed))] % 12))
        for pressed, lifted in _presses(take)[:2000]
    ]
    return summary(np.array(counts, np.float64), np.mean)


@PEDAL.measure("1/s", "pedal", fewest=2)
def pedal_restlessness(take: Take) -> Observed:
    """Whole movements of the pedal per second: sum of its differences over 127, by time."""
    curve, span = _sustain(take), take.performance.duration_s
    moved = float(np.abs(np.diff(curve.value)).sum()) / 127.0
    return Observed(moved / span if span else np.nan, len(curve.value))


@PEDAL.measure("1", "pedal")
def pedal_at_onsets(take: Take) -> Observed:
    """Share of notes that begin while the pedal is down."""
    return summary(_sustain(take).is_down(take.performance.onset_s).astype(np.float64), np.mean)


@PEDAL.measure("1", "pedal")
def full_pedal_share(take: Take) -> Observed:
    """Share of the time for which the pedal is quite down: values above 110."""
    return summary((_values(take) > 110).astype(np.float64), np.mean)


@PEDAL.measure("1", "pedal")
def depth_spread(take: Take) -> Observed:
    """Standard deviation of the depth of the pedal, 0 up to 1 down, over all time."""
    return summary(_values(take) / 127.0, np.std)


@PEDAL.measure("1", "pedal", fewest=1)
def soft_pedal_share(take: Take) -> Observed:
    """Share of notes that begin while the soft pedal is down; 0 where it never moves."""
    curve, onset = take.performance.pedals.get(SOFT), take.performance.onset_s
    down = np.zeros(len(onset)) if curve is None else curve.is_down(onset).astype(np.float64)
    return summary(down, np.mean)
