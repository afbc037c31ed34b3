"""Measures of accuracy: wrong, missing and extra notes of a score; without one, what stands out."""

from __future__ import annotations

import numpy as np

from mt3_analysis.assessment.measures.measured_take import Group, Observed, Take, summary

ACCURACY = Group()

_AROUND = 24  # notes on either side among which a pitch is rare


@ACCURACY.measure("1", "score")
def matched_notes(take: Take) -> Observed:
    """Share of the written notes that were played."""
    return _share(take, "matched")


@ACCURACY.measure("1", "score")
def wrong_notes(take: Take) -> Observed:
    """Share of the written notes instead of which another pitch was played."""
    return _share(take, "wrong")


@ACCURACY.measure("1", "score")
def missing_notes(take: Take) -> Observed:
    """Share of the written notes that were not played."""
    return _share(take, "missing")


@ACCURACY.measure("1", "score")
def extra_notes(take: Take) -> Observed:
    """Played notes that are not written, as a share of the written ones."""
    return _share(take, "extra")


@ACCURACY.measure("1")
def rare_pitches(take: Take) -> Observed:
    """Share of notes whose pitch class is alone among the 48 notes around them."""
    classes = take.performance.pitch % 12
    if len(classes) < 2 * _AROUND:
        return Observed(np.nan, 0)
    present = (classes[:, None] == np.arange(12)).astype(np.float64)
    total = np.concatenate((np.zeros((1, 12)), np.cumsum(present, axis=0)))
    index = np.arange(len(classes))
    low, high = np.maximum(index - _AROUND, 0), np.minimum(index + _AROUND + 1, len(classes))
    alone = (total[high] - total[low])[index, classes] == 1.0
    return summary(alone.astype(np.float64), np.mean)


@ACCURACY.measure("1")
def neighbour_keys(take: Take) -> Observed:
    """Share of notes that begin within 50 ms of a longer one on the next key: slips of a finger."""
    onset, pitch, length = take.performance.onset_s, take.performance.pitch, take.length_s
    slipped = np.zeros(len(onset), bool)
    for shift in range(1, min(9, len(onset))):
        near = onset[shift:] - onset[:-shift] < 0.05
        beside = near & (np.abs(pitch[shift:] - pitch[:-shift]) == 1)
        slipped[:-shift] |= beside & (length[:-shift] < length[shift:])
        slipped[shift:] |= beside & (length[shift:] <= length[:-shift])
    return summary(slipped.astype(np.float64), np.mean)


@ACCURACY.measure("1")
def tiny_notes(take: Take) -> Observed:
    """Share of notes that are held for less than 40 ms."""
    length = take.length_s
    return summary(np.where(np.isfinite(length), length < 0.04, np.nan), np.mean)


def _share(take: Take, what: str) -> Observed:
    if take.alignment is None:
        return Observed(np.nan, 0)
    written = take.alignment.written
    return Observed(len(getattr(take.alignment, what)) / max(written, 1), written)
