"""Spoils performances: one kind of fault at a time, at a level from 0 (none) to 1 (the worst).

Contract: a kind is a function of a performance, a level and a random generator; level 0 changes
nothing, and the same generator spoils the same notes at every level, more of them or by more.  How
many notes are hit is exact, not left to chance.  The labels of a set are the levels of their own
kinds, never a quality: what is worse, a wrong note or a hasty one, is not for a program to say.
`HARMLESS` holds what players do on purpose; nothing that judges may punish it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from mt3_analysis.assessment.measures.measured_take import Take, means
from mt3_analysis.assessment.performance import SUSTAIN, Floats, Integers, PedalCurve, Performance

Generator = np.random.Generator
Degrade = Callable[[Performance, float, Generator], Performance]

SHARE = 0.10
"""Share of notes that are wrong, missing, or have an extra one beside them at level 1."""

JITTER_S = 0.060
"""Standard deviation of the onsets of chords at level 1; one beyond the worst of published sets."""

ASYNCHRONY_S = 0.045
"""Standard deviation of each note on its own at level 1."""

DRIFT_OCTAVES = 0.5
"""Standard deviation of the tempo at level 1, over some seconds."""

STOPS, STOP_S = 0.06, 1.2
"""Share of chords before which one stops at level 1, and for how long."""


def jitter(take: Performance, level: float, rng: Generator) -> Performance:
    """Moves each chord on its own; its notes stay together."""
    chord = Take(take).chord
    off = rng.normal(0.0, 1.0, int(chord[-1]) + 1) if len(chord) else np.zeros(0)
    return _moved(take, take.onset_s + level * JITTER_S * off[chord])


def asynchrony(take: Performance, level: float, rng: Generator) -> Performance:
    """Moves each note on its own."""
    return _moved(take, take.onset_s + level * ASYNCHRONY_S * rng.normal(0.0, 1.0, len(take)))


def drift(take: Performance, level: float, rng: Generator) -> Performance:
    """Lets the tempo wander: waves of two to ten seconds, nobody's phrasing."""
    time = np.arange(0.0, take.offset_s.max() + 1.0, 0.1)
    wander = sum(
        np.sin(2 * np.pi * time / rng.uniform(2.0, 10.0) + rng.uniform(0, 2 * np.pi))
        for _ in range(4)
    )
    return _warped(take, time, np.exp2(level * DRIFT_OCTAVES * wander / np.sqrt(2.0)))


def hesitation(take: Performance, level: float, rng: Generator) -> Performance:
    """Stops before chords, more often and longer."""
    chords = Take(take).chord_s
    order = rng.permutation(np.arange(1, len(chords)))
    hit = np.sort(order[: round(level * STOPS * len(chords))])
    if not len(hit):
        return take
    length = STOP_S * (0.4 + 0.6 * level) * rng.uniform(0.75, 1.25, len(chords))
    before = chords[hit] - 0.02
    delay = np.concatenate(([0.0], np.cumsum(length[hit])))
    return _delayed(take, lambda at: at + delay[np.searchsorted(before, at, side="right")])


def wrong(take: Performance, level: float, rng: Generator) -> Performance:
    """Strikes another key, up to three semitones away, instead of the right one."""
    hit, shift = _hit(take, level, rng), rng.choice((-3, -2, -1, 1, 2, 3), len(take))
    pitch = take.pitch.copy()
    pitch[hit] = np.clip(pitch[hit] + shift[hit], 21, 108)
    return _rebuilt(take, take.onset_s, take.offset_s, pitch, take.velocity)


def missing(take: Performance, level: float, rng: Generator) -> Performance:
    """Leaves notes out."""
    kept = np.setdiff1d(np.arange(len(take)), _hit(take, level, rng))
    times, keys = (take.onset_s[kept], take.offset_s[kept]), (take.pitch[kept], take.velocity[kept])
    return _rebuilt(take, *times, *keys)


def extra(take: Performance, level: float, rng: Generator) -> Performance:
    """Strikes a neighbouring key as well, softer and shorter."""
    hit, side = _hit(take, level, rng), rng.choice((-2, -1, 1, 2), len(take))
    late = rng.uniform(-0.02, 0.05, len(take))
    onset = np.maximum(take.onset_s[hit] + late[hit], 0.0)
    return _rebuilt(
        take,
        np.concatenate((take.onset_s, onset)),
        np.concatenate((take.offset_s, onset + 0.12)),
        np.concatenate((take.pitch, np.clip(take.pitch[hit] + side[hit], 21, 108))),
        np.concatenate((take.velocity, np.maximum(take.velocity[hit] * 2 // 3, 1))),
    )


def compression(take: Performance, level: float, rng: Generator) -> Performance:
    """Pulls velocities towards their mean, up to nine tenths of the way."""
    del rng
    loud = take.velocity.astype(np.float64)
    return _louder(take, loud + 0.9 * level * (loud.mean() - loud))


def velocity_jumps(take: Performance, level: float, rng: Generator) -> Performance:
    """Strikes single notes far too hard or too softly: up to a fifth of them."""
    order, size = rng.permutation(len(take)), rng.uniform(25.0, 45.0, len(take))
    sign = rng.choice((-1.0, 1.0), len(take))
    loud = take.velocity.astype(np.float64)
    hit = order[: round(level * 0.2 * len(take))]
    loud[hit] += (sign * size)[hit]
    return _louder(take, loud)


def voicing(take: Performance, level: float, rng: Generator) -> Performance:
    """Makes the notes of a chord equally loud."""
    del rng
    chord, loud = Take(take).chord, take.velocity.astype(np.float64)
    return _louder(take, loud + level * (means(chord, loud)[chord] - loud))


def legato(take: Performance, level: float, rng: Generator) -> Performance:
    """Lifts keys too early, after a third of their time at the worst."""
    del rng
    length = (take.offset_s - take.onset_s) * (1.0 - 0.67 * level)
    return replace(take, offset_s=take.onset_s + length)


def pedal_late(take: Performance, level: float, rng: Generator) -> Performance:
    """Moves the pedal up to 0.3 s behind the notes."""
    del rng
    return _pedalled(take, lambda curve: PedalCurve(curve.time_s + 0.3 * level, curve.value))


def pedal_held(take: Performance, level: float, rng: Generator) -> Performance:
    """Does not lift the pedal, up to four times in five."""

    def held(curve: PedalCurve) -> PedalCurve:
        down = curve.value >= 64
        lifts = np.flatnonzero(down[:-1] & ~down[1:]) + 1
        hit = rng.permutation(lifts)[: round(0.8 * level * len(lifts))]
        value = curve.value.copy()
        for lift in hit:
            until = lift + int(np.argmax(down[lift:])) if down[lift:].any() else len(value)
            value[lift:until] = value[lift - 1]
        return PedalCurve(curve.time_s, value)

    return _pedalled(take, held)


def pedal_chatter(take: Performance, level: float, rng: Generator) -> Performance:
    """Lifts and presses the pedal without need, up to three times a second."""

    def restless(curve: PedalCurve) -> PedalCurve:
        end = float(take.offset_s.max())
        every = rng.permutation(np.arange(0.2, max(end, 0.3), 1 / 3))
        at = np.sort(every[: round(level * len(every))])
        at = at[curve.is_down(at)]
        time = np.concatenate((curve.time_s, at, at + 0.06))
        value = np.concatenate((curve.value, np.zeros(len(at)), np.full(len(at), 100)))
        order = np.argsort(time, kind="stable")
        return PedalCurve(time[order], value[order].astype(np.int64))

    return _pedalled(take, restless)


def rubato(take: Performance, level: float, rng: Generator) -> Performance:
    """Bends the tempo with phrases of eight to sixteen seconds, as players do."""
    time = np.arange(0.0, take.offset_s.max() + 1.0, 0.1)
    period, phase = rng.uniform(8.0, 16.0), rng.uniform(0, 2 * np.pi)
    return _warped(take, time, np.exp2(0.25 * level * np.sin(2 * np.pi * time / period + phase)))


def ritardando(take: Performance, level: float, rng: Generator) -> Performance:
    """Slows down over the last six seconds, to half the tempo."""
    del rng
    time = np.arange(0.0, take.offset_s.max() + 1.0, 0.1)
    last = np.clip((time - take.onset_s.max() + 6.0) / 6.0, 0.0, 1.0)
    return _warped(take, time, 1.0 + level * last)


KINDS: Mapping[str, Degrade] = {
    each.__name__: each
    for each in (
        jitter, asynchrony, drift, hesitation, wrong, missing, extra, compression, velocity_jumps,
        voicing, legato, pedal_late, pedal_held, pedal_chatter,
    )
}  # fmt: skip
"""What spoils a performance, by name."""

HARMLESS: Mapping[str, Degrade] = {each.__name__: each for each in (rubato, ritardando)}
"""What does not."""


def degraded(take: Performance, kind: str, level: float, *, seed: int) -> Performance:
    """Spoils a performance; the seed and the kind decide which notes are hit."""
    known = {**KINDS, **HARMLESS}
    generator = np.random.default_rng([seed, sorted(known).index(kind)])
    made = known[kind](take, level, generator) if level > 0.0 else take
    return replace(made, name=f"{take.name}--{kind}-{level:.2f}")


def _hit(take: Performance, level: float, rng: Generator) -> np.ndarray:
    return np.asarray(rng.permutation(len(take))[: round(level * SHARE * len(take))])


def _pedals(take: Performance) -> dict[int, list[tuple[float, int]]]:
    return {
        control: list(zip(curve.time_s.tolist(), curve.value.tolist(), strict=True))
        for control, curve in take.pedals.items()
    }


def _rebuilt(
    take: Performance, onset: Floats, offset: Floats, pitch: Integers, velocity: Integers
) -> Performance:
    known = velocity if "velocity" in take.known else None
    made = Performance.from_arrays(
        onset, offset, pitch=pitch, velocity=known, pedals=_pedals(take), name=take.name
    )
    return replace(made, remarks=take.remarks)


def _moved(take: Performance, onset: Floats) -> Performance:
    onset = np.maximum(onset, 0.0)
    offset = np.maximum(take.offset_s, onset + 0.02)
    return _rebuilt(take, onset, offset, take.pitch, take.velocity)


def _delayed(take: Performance, when: Callable[[Floats], Floats]) -> Performance:
    """The same with all times mapped by a rising function."""
    onset, offset = when(take.onset_s), when(take.offset_s)
    curves = {c: PedalCurve(when(v.time_s), v.value) for c, v in take.pedals.items()}
    return replace(take, onset_s=onset, offset_s=offset, pedals=curves, on_grid=False)


def _warped(take: Performance, time: Floats, pace: Floats) -> Performance:
    """The same with time running at another pace, as long as before; what is longer is slower."""
    there = np.concatenate(([0.0], np.cumsum((pace[1:] + pace[:-1]) / 2 * np.diff(time))))
    return _delayed(take, lambda at: np.asarray(np.interp(at, time, there)))


def _louder(take: Performance, loud: Floats) -> Performance:
    return replace(take, velocity=np.clip(np.round(loud), 1, 127).astype(np.int64))


def _pedalled(take: Performance, change: Callable[[PedalCurve], PedalCurve]) -> Performance:
    if SUSTAIN not in take.pedals:
        return take
    return replace(take, pedals={**take.pedals, SUSTAIN: change(take.pedals[SUSTAIN])})
