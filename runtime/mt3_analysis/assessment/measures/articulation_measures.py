"""Measures of articulation: how long keys are held, and how they join."""

from __future__ import annotations

import numpy as np

from mt3_analysis.assessment.measures.measured_take import (
    Group,
    Observed,
    Take,
    quantile,
    summary,
)
from mt3_analysis.assessment.performance import Floats

ARTICULATION = Group()


def _ratio(take: Take) -> Floats:
    """How long each key is held, in units of the time to the next chord, log2 [n]."""
    return np.log2(np.maximum(take.length_s, 1e-3) / np.maximum(take.next_s, 1e-2))


@ARTICULATION.measure("s")
def length_median(take: Take) -> Observed:
    """Median time a key is held."""
    return summary(take.length_s, np.median)


@ARTICULATION.measure("s")
def length_short(take: Take) -> Observed:
    """Time a key is held that one note in ten falls below."""
    return quantile(take.length_s, 0.1)


@ARTICULATION.measure("s")
def length_long(take: Take) -> Observed:
    """Time a key is held that one note in ten exceeds."""
    return quantile(take.length_s, 0.9)


@ARTICULATION.measure("octaves")
def length_spread(take: Take) -> Observed:
    """Standard deviation of the binary logarithm of the times keys are held."""
    return summary(np.log2(take.length_s), np.std)


@ARTICULATION.measure("octaves")
def key_overlap(take: Take) -> Observed:
    """Median of log2(time a key is held / time to the next chord): 0 joins, above overlaps."""
    return summary(_ratio(take), np.median)


@ARTICULATION.measure("octaves")
def overlap_spread(take: Take) -> Observed:
    """Standard deviation of log2(time a key is held / time to the next chord)."""
    return summary(_ratio(take), np.std)


@ARTICULATION.measure("1")
def legato_share(take: Take) -> Observed:
    """Share of notes that are held until the next chord, or longer."""
    ratio = _ratio(take)
    return summary(np.where(np.isfinite(ratio), ratio >= 0.0, np.nan), np.mean)


@ARTICULATION.measure("1")
def staccato_share(take: Take) -> Observed:
    """Share of notes that are held for less than half the time to the next chord."""
    ratio = _ratio(take)
    return summary(np.where(np.isfinite(ratio), ratio < -1.0, np.nan), np.mean)


@ARTICULATION.measure("ms")
def melody_overlap(take: Take) -> Observed:
    """Median time by which a highest note outlasts the beginning of the next one."""
    return summary(_melody_overlap(take), np.median)


@ARTICULATION.measure("ms")
def melody_overlap_spread(take: Take) -> Observed:
    """Half the distance of the quartiles of the times by which highest notes overlap."""
    quartiles = lambda kept: np.subtract(*np.quantile(kept, (0.75, 0.25))) / 2  # noqa: E731
    return summary(_melody_overlap(take), quartiles)


@ARTICULATION.measure("s")
def melody_length(take: Take) -> Observed:
    """Median time the highest note of a chord is held."""
    return summary(take.length_s[take.top], np.median)


@ARTICULATION.measure("s")
def accompaniment_length(take: Take) -> Observed:
    """Median time the other notes of chords are held."""
    return summary(np.delete(take.length_s, take.top), np.median)


@ARTICULATION.measure("octaves")
def melody_key_overlap(take: Take) -> Observed:
    """Median of log2(time held / time to the next chord) of the highest notes."""
    return summary(_ratio(take)[take.top], np.median)


@ARTICULATION.measure("octaves")
def accompaniment_key_overlap(take: Take) -> Observed:
    """Median of log2(time held / time to the next chord) of the other notes."""
    return summary(np.delete(_ratio(take), take.top), np.median)


@ARTICULATION.measure("octaves", "score")
def held_as_written(take: Take) -> Observed:
    """Median of log2(time a key is held / written length at the tempo around it)."""
    return summary(_as_written(take), np.median)


@ARTICULATION.measure("octaves", "score")
def held_as_written_spread(take: Take) -> Observed:
    """Standard deviation of log2(time a key is held / written length at the tempo around it)."""
    return summary(_as_written(take), np.std)


def _melody_overlap(take: Take) -> Floats:
    onset, offset = take.performance.onset_s[take.top], take.performance.offset_s[take.top]
    moved = np.diff(take.performance.pitch[take.top]) != 0
    overlap = 1000 * (offset[:-1] - onset[1:])[moved] if len(onset) else onset
    return np.clip(overlap, -2000.0, 2000.0)


def _as_written(take: Take) -> Floats:
    if take.alignment is None or not len(take.pace[0]):
        return np.zeros(0)
    written, played = take.alignment.matched.T
    score = take.alignment.score
    position, onset, _, _ = take.beats
    end = np.interp(score.onset_q[written] + score.length_q[written], position, onset)
    due = end - np.interp(score.onset_q[written], position, onset)
    there = (score.length_q[written] > 0) & (due > 0.02)
    held: Floats = np.maximum(take.length_s[played][there], 1e-3)
    return np.asarray(np.log2(held / due[there]))
