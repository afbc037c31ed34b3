"""Measures of dynamics: velocities, by voice, over time, and in leaps."""

from __future__ import annotations

import numpy as np

from mt3_analysis.assessment.measures.measured_take import (
    Group,
    Observed,
    Take,
    means,
    quantile,
    running_mean,
    running_median,
    summary,
)
from mt3_analysis.assessment.performance import Floats

DYNAMICS = Group()


def _velocity(take: Take) -> Floats:
    return take.performance.velocity.astype(np.float64)


@DYNAMICS.measure("velocity", "velocity")
def velocity_mean(take: Take) -> Observed:
    """Mean velocity of the notes."""
    return summary(_velocity(take), np.mean)


@DYNAMICS.measure("velocity", "velocity")
def velocity_spread(take: Take) -> Observed:
    """Standard deviation of the velocities."""
    return summary(_velocity(take), np.std)


@DYNAMICS.measure("velocity", "velocity")
def velocity_soft(take: Take) -> Observed:
    """Velocity that one note in ten falls below."""
    return quantile(_velocity(take), 0.1)


@DYNAMICS.measure("velocity", "velocity")
def velocity_loud(take: Take) -> Observed:
    """Velocity that one note in ten exceeds."""
    return quantile(_velocity(take), 0.9)


@DYNAMICS.measure("velocity", "velocity")
def melody_velocity(take: Take) -> Observed:
    """How much louder the highest note of a chord is than the mean of its others."""
    return _against_others(take, take.top)


@DYNAMICS.measure("velocity", "velocity")
def bass_velocity(take: Take) -> Observed:
    """How much louder the lowest note of a chord is than the mean of its others."""
    starts = np.flatnonzero(np.diff(take.chord, prepend=-1))
    order = np.lexsort((take.performance.pitch, take.chord))
    return _against_others(take, order[starts] if len(starts) else starts)


@DYNAMICS.measure("velocity", "velocity")
def chord_velocity_spread(take: Take) -> Observed:
    """Root mean square distance of the notes of a chord from its mean velocity."""
    loud, chord = _velocity(take), take.chord
    apart = loud - means(chord, loud)[chord]
    several = np.bincount(chord)[chord] > 1
    return summary(apart[several] ** 2, lambda kept: np.sqrt(np.mean(kept)))


@DYNAMICS.measure("velocity", "velocity")
def velocity_step(take: Take) -> Observed:
    """Mean difference of the velocities of neighbouring highest notes."""
    return summary(np.abs(np.diff(_velocity(take)[take.top])), np.mean)


@DYNAMICS.measure("velocity", "velocity")
def velocity_contour(take: Take) -> Observed:
    """Standard deviation of the mean velocity over 17 chords: long rises and falls."""
    chords = means(take.chord, _velocity(take))
    return summary(running_mean(chords, 8), np.std)


@DYNAMICS.measure("1", "velocity")
def velocity_jumps(take: Take) -> Observed:
    """Share of notes more than 20 louder or softer than is usual around them (17 notes)."""
    loud = _velocity(take)
    return summary((np.abs(loud - running_median(loud, 8)) > 20).astype(np.float64), np.mean)


@DYNAMICS.measure("velocity/octave", "velocity")
def velocity_slope(take: Take) -> Observed:
    """By how much velocity rises with pitch, an octave: slope of the line of least squares."""
    loud, octaves = _velocity(take), take.performance.pitch / 12.0
    spread = float(np.var(octaves)) if len(octaves) else 0.0
    covariance = np.mean((loud - loud.mean()) * (octaves - octaves.mean())) if spread else np.nan
    return Observed(float(covariance) / spread if spread else np.nan, len(loud))


@DYNAMICS.measure("1", "velocity")
def loudness_with_density(take: Take) -> Observed:
    """Correlation of the velocity of chords with how quickly they follow each other."""
    chords = means(take.chord, _velocity(take))[1:]
    quick = -np.log2(np.maximum(take.gap_s, 1e-3))
    varies = len(chords) > 2 and np.std(chords) > 0 and np.std(quick) > 0
    value = np.corrcoef(chords, quick)[0, 1] if varies else np.nan
    return Observed(float(value), len(chords))


@DYNAMICS.measure("velocity", "velocity")
def melody_loudness(take: Take) -> Observed:
    """Mean velocity of the highest notes of chords."""
    return summary(_velocity(take)[take.top], np.mean)


@DYNAMICS.measure("velocity", "velocity")
def accompaniment_loudness(take: Take) -> Observed:
    """Mean velocity of the other notes of chords."""
    return summary(np.delete(_velocity(take), take.top), np.mean)


@DYNAMICS.measure("velocity", "velocity")
def contour_range(take: Take) -> Observed:
    """Distance of the softest and the loudest mean velocity over 9 chords."""
    chords = means(take.chord, _velocity(take))
    return summary(running_mean(chords, 4), np.ptp)


@DYNAMICS.measure("1", "velocity")
def loudness_trend(take: Take) -> Observed:
    """Correlation of velocity with time: whether it grows louder."""
    loud, onset = _velocity(take), take.performance.onset_s
    varies = len(loud) > 2 and np.std(loud) > 0 and np.std(onset) > 0
    return Observed(float(np.corrcoef(loud, onset)[0, 1]) if varies else np.nan, len(loud))


def _against_others(take: Take, chosen: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Observed:
    loud = _velocity(take)
    counts = np.bincount(take.chord, minlength=len(chosen))
    others = (np.bincount(take.chord, loud) - loud[chosen]) / (counts - 1)
    return summary((loud[chosen] - others)[counts > 1], np.mean)
