"""Measures of timing: how fast, how even, how together; with a score, the tempo."""

from __future__ import annotations

import numpy as np

from mt3_analysis.assessment.measures.measured_take import (
    Group,
    Observed,
    Take,
    quantile,
    running_mean,
    running_median,
    summary,
)

TIMING = Group()

HESITATION = 1.6
"""A gap is a hesitation if it is so many times what is usual on either side ..."""

HESITATION_S = 0.15
"""... and so many seconds longer: below, nobody hears one."""


@TIMING.measure("1/s")
def notes_per_second(take: Take) -> Observed:
    """Notes per second from the first onset to the last one."""
    onset = take.performance.onset_s
    span = float(onset[-1] - onset[0]) if len(onset) > 1 else 0.0
    return Observed(len(onset) / span if span else np.nan, len(onset))


@TIMING.measure("s")
def gap_median(take: Take) -> Observed:
    """Median time from a chord to the next."""
    return summary(take.gap_s, np.median)


@TIMING.measure("s")
def gap_short(take: Take) -> Observed:
    """Time from a chord to the next that one gap in ten falls below."""
    return quantile(take.gap_s, 0.1)


@TIMING.measure("s")
def gap_long(take: Take) -> Observed:
    """Time from a chord to the next that one gap in ten exceeds."""
    return quantile(take.gap_s, 0.9)


@TIMING.measure("octaves")
def gap_spread(take: Take) -> Observed:
    """Standard deviation of the binary logarithm of the times from chord to chord."""
    return summary(np.log2(take.gap_s), np.std)


@TIMING.measure("octaves", "timing")
def gap_change(take: Take) -> Observed:
    """Mean difference, in binary logarithms, of neighbouring times from chord to chord."""
    return summary(np.abs(np.diff(np.log2(take.gap_s))), np.mean)


@TIMING.measure("1", "timing")
def gap_unevenness(take: Take) -> Observed:
    """How uneven even notes are: median distance of gaps from the mean of their neighbours.

    As a share of their length; counted where three gaps in a row are meant to be equal: within
    30 % of their middle one.
    """
    gaps = take.gap_s
    if len(gaps) < 3:
        return Observed(np.nan, 0)
    before, here, after = gaps[:-2], gaps[1:-1], gaps[2:]
    middle = np.median(np.stack((before, here, after)), axis=0)
    even = (np.abs(np.stack((before, here, after)) / middle - 1.0) < 0.3).all(0)
    return summary(np.abs(here - (before + after) / 2)[even] / middle[even], np.median)


@TIMING.measure("ms", "timing")
def chord_asynchrony(take: Take) -> Observed:
    """Root mean square distance of the notes of a chord from their mean onset."""
    chord = take.chord
    several = np.bincount(chord)[chord] > 1 if len(chord) else np.zeros(0, bool)
    apart = (take.performance.onset_s - take.chord_s[chord])[several]
    return Observed(1000 * float(np.sqrt(np.mean(apart**2))) if len(apart) else np.nan, len(apart))


@TIMING.measure("ms", "timing")
def chord_spread(take: Take) -> Observed:
    """Time from the first to the last note of a chord that one chord in ten exceeds."""
    starts = np.flatnonzero(np.diff(take.chord, prepend=-1))
    if not len(starts):
        return Observed(np.nan, 0)
    onset = take.performance.onset_s
    ends = np.append(starts[1:], len(onset)) - 1
    several = ends > starts
    return quantile(1000 * (onset[ends] - onset[starts])[several], 0.9)


@TIMING.measure("1")
def chord_share(take: Take) -> Observed:
    """Share of notes that begin together with others."""
    several = np.bincount(take.chord)[take.chord] > 1 if len(take.chord) else np.zeros(0)
    return summary(several.astype(np.float64), np.mean)


@TIMING.measure("ms", "timing")
def melody_lead(take: Take) -> Observed:
    """How much earlier the highest note of a chord begins than the mean of its others."""
    onset, top = take.performance.onset_s, take.top
    counts = np.bincount(take.chord, minlength=len(top))
    others = (take.chord_s * counts - onset[top]) / (counts - 1)
    return summary(1000 * (others - onset[top])[counts > 1], np.mean)


@TIMING.measure("1/s")
def chords_per_second(take: Take) -> Observed:
    """Chords per second from the first to the last one."""
    span = float(take.gap_s.sum())
    return Observed(len(take.chord_s) / span if span else np.nan, len(take.chord_s))


@TIMING.measure("octaves")
def closing_gaps(take: Take) -> Observed:
    """log2 of the median of the last eight gaps over that of all: whether it ends slower."""
    gaps = take.gap_s
    value = np.log2(np.median(gaps[-8:]) / np.median(gaps)) if len(gaps) else np.nan
    return Observed(float(value), len(gaps))


@TIMING.measure("octaves", "score", "timing")
def tempo_range(take: Take) -> Observed:
    """Distance, in octaves, of the tempi that one gap in ten falls below and exceeds."""
    return summary(np.log2(take.pace[0]), lambda kept: np.ptp(np.quantile(kept, (0.1, 0.9))))


@TIMING.measure("octaves", "score", "timing")
def tempo_trend(take: Take) -> Observed:
    """log2 of the median tempo of the second half over that of the first one."""
    pace = take.pace[0]
    half = len(pace) // 2
    value = np.log2(np.median(pace[:half]) / np.median(pace[half:])) if half else np.nan
    return Observed(float(value), len(pace))


@TIMING.measure("1/min", "score")
def tempo_median(take: Take) -> Observed:
    """Median tempo, in quarters per minute, between chords of the score."""
    return summary(60.0 / take.pace[0], np.median)


@TIMING.measure("octaves", "score", "timing")
def tempo_spread(take: Take) -> Observed:
    """Standard deviation of the binary logarithm of the tempo around each chord (17 chords)."""
    return summary(np.log2(take.pace[1]), np.std)


@TIMING.measure("octaves", "score", "timing")
def tempo_roughness(take: Take) -> Observed:
    """Median difference, in binary logarithms, of the tempi of neighbouring chords."""
    return summary(np.abs(np.diff(np.log2(take.pace[0]))), np.median)


@TIMING.measure("octaves", "score", "timing")
def tempo_waves(take: Take) -> Observed:
    """Standard deviation, in octaves, of the tempo over 9 chords from that over 65 chords."""
    slow = np.log2(take.pace[0])
    return summary(running_median(slow, 4) - running_mean(slow, 32), np.std)


@TIMING.measure("ms", "score", "timing")
def score_asynchrony(take: Take) -> Observed:
    """Root mean square distance of the notes of a written chord from their mean onset.

    Notes that are more than 0.15 s off are rolled chords, and not counted.
    """
    _, _, counts, off = take.beats
    several = np.repeat(counts, counts) > 1
    near = off[several & (np.abs(off) < 0.15)] if len(off) else off
    return Observed(1000 * float(np.sqrt(np.mean(near**2))) if len(near) else np.nan, len(near))


@TIMING.measure("ms", "score", "timing")
def onset_deviation(take: Take) -> Observed:
    """Median distance of chords from where both their neighbours let one expect them."""
    position, onset, _, _ = take.beats
    if len(position) < 3:
        return Observed(np.nan, 0)
    share = (position[1:-1] - position[:-2]) / np.maximum(position[2:] - position[:-2], 1e-9)
    due = onset[:-2] + share * (onset[2:] - onset[:-2])
    return summary(1000 * np.abs(onset[1:-1] - due), np.median)


@TIMING.measure("1/100", "score", "timing")
def hesitations(take: Take) -> Observed:
    """Stops in a hundred chords: gaps 1.6 times, and 0.15 s, longer than usual around them."""
    return summary(100.0 * (_lost_s(take) > 0.0), np.mean)


@TIMING.measure("1", "score", "timing")
def hesitation_time(take: Take) -> Observed:
    """Share of the time that is lost by hesitations, beyond the usual length of their gaps."""
    lost, (pace, _, quarters) = _lost_s(take), take.pace
    whole = float((pace * quarters).sum())
    return Observed(float(lost.sum()) / whole if whole else np.nan, len(lost))


@TIMING.measure("1", "score", "timing")
def final_slowing(take: Take) -> Observed:
    """Tempo of the last twentieth, at least 8 chords, as a share of the median tempo."""
    pace = take.pace[0]
    last = max(len(pace) // 20, 8)
    return summary(np.median(pace) / pace[-last:] if len(pace) else pace, np.median)


def _lost_s(take: Take) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Seconds that each gap is longer than usual, [g]; 0 where it is no hesitation.

    Usual is the larger of the medians of the four gaps before and behind: who slows down does not
    hesitate, nor does who ends.
    """
    pace, _, quarters = take.pace
    if not len(pace):
        return pace
    padded = np.concatenate((np.full(4, pace[0]), pace, np.full(4, np.inf)))
    fours = np.median(np.lib.stride_tricks.sliding_window_view(padded, 4), axis=1)
    usual = np.maximum(fours[: len(pace)], fours[5 : 5 + len(pace)])
    excess = (pace - usual) * quarters
    return np.where((pace > HESITATION * usual) & (excess > HESITATION_S), excess, 0.0)
