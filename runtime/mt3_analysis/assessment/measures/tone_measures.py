"""Measures of tone, as far as keys and pedals make it: register, density, resonance, colour."""

from __future__ import annotations

import numpy as np

from mt3_analysis.assessment.measures.measured_take import Group, Observed, Take, means, summary
from mt3_analysis.assessment.performance import Floats

TONE = Group()


@TONE.measure("semitones")
def register_mean(take: Take) -> Observed:
    """Mean MIDI pitch."""
    return summary(take.performance.pitch.astype(np.float64), np.mean)


@TONE.measure("semitones")
def register_spread(take: Take) -> Observed:
    """Standard deviation of the MIDI pitches."""
    return summary(take.performance.pitch.astype(np.float64), np.std)


@TONE.measure("semitones")
def melody_register(take: Take) -> Observed:
    """Mean MIDI pitch of the highest notes of chords."""
    return summary(take.performance.pitch[take.top].astype(np.float64), np.mean)


@TONE.measure("notes")
def chord_size(take: Take) -> Observed:
    """Mean number of notes of a chord."""
    return summary(np.bincount(take.chord).astype(np.float64), np.mean)


@TONE.measure("notes")
def sounding_keys(take: Take) -> Observed:
    """Mean number of keys that are held at a time, over all time."""
    held, span = np.nansum(take.length_s), take.performance.duration_s
    return Observed(float(held) / span if span else np.nan, len(take.performance))


@TONE.measure("notes", "pedal")
def resonance(take: Take) -> Observed:
    """Mean number of notes that sound on by the pedal alone when another chord begins."""
    performance, curve = take.performance, take.performance.sustain
    if curve is None or not len(performance):
        return Observed(np.nan, 0)
    presses = curve.presses(float(performance.offset_s.max()))
    place = np.searchsorted(presses[:, 0], performance.offset_s, side="right") - 1
    ends = presses[np.maximum(place, 0), 1] if len(presses) else performance.offset_s
    until = np.where((place >= 0) & (ends > performance.offset_s), ends, performance.offset_s)
    counted = np.searchsorted(take.chord_s, until) - np.searchsorted(
        take.chord_s, performance.offset_s
    )
    return Observed(float(counted.sum()) / max(len(take.chord_s), 1), len(take.chord_s))


@TONE.measure("velocity", "velocity")
def treble_velocity(take: Take) -> Observed:
    """Mean velocity from C5 (MIDI pitch 72) upwards, less that of all notes."""
    return _part(take, take.performance.pitch >= 72)


@TONE.measure("velocity", "velocity")
def low_velocity(take: Take) -> Observed:
    """Mean velocity below C3 (MIDI pitch 48), less that of all notes."""
    return _part(take, take.performance.pitch < 48)


@TONE.measure("velocity", "velocity")
def colour_variety(take: Take) -> Observed:
    """Standard deviation of how much louder the upper half of 16 notes is than the lower."""
    loud, pitch = take.performance.velocity.astype(np.float64), take.performance.pitch
    blocks = len(loud) // 16
    if not blocks:
        return Observed(np.nan, 0)
    shaped, heights = loud[: 16 * blocks].reshape(-1, 16), pitch[: 16 * blocks].reshape(-1, 16)
    order = np.argsort(heights, axis=1, kind="stable")
    ordered = np.take_along_axis(shaped, order, axis=1)
    return summary(ordered[:, 8:].mean(1) - ordered[:, :8].mean(1), np.std)


@TONE.measure("1", "velocity")
def force_with_length(take: Take) -> Observed:
    """Correlation of velocity with the logarithm of the time a key is held."""
    length, loud = take.length_s, take.performance.velocity.astype(np.float64)
    there = np.isfinite(length)
    varies = there.sum() > 2 and np.std(loud[there]) > 0 and np.std(length[there]) > 0
    value = np.corrcoef(loud[there], np.log2(length[there]))[0, 1] if varies else np.nan
    return Observed(float(value), int(there.sum()))


@TONE.measure("velocity", "velocity")
def hardest_tenth(take: Take) -> Observed:
    """Mean velocity of the loudest tenth of the chords, less the median of all chords."""
    chords = np.sort(means(take.chord, take.performance.velocity.astype(np.float64)))
    last = max(len(chords) // 10, 1)
    value = chords[-last:].mean() - np.median(chords) if len(chords) else np.nan
    return Observed(float(value), len(chords))


@TONE.measure("1")
def low_share(take: Take) -> Observed:
    """Share of notes below C3 (MIDI pitch 48)."""
    return summary((take.performance.pitch < 48).astype(np.float64), np.mean)


@TONE.measure("1")
def treble_share(take: Take) -> Observed:
    """Share of notes from C5 (MIDI pitch 72) upwards."""
    return summary((take.performance.pitch >= 72).astype(np.float64), np.mean)


def _part(take: Take, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Observed:
    loud: Floats = take.performance.velocity.astype(np.float64)
    return Observed(
        float(loud[chosen].mean() - loud.mean()) if chosen.any() else np.nan, int(chosen.sum())
    )
