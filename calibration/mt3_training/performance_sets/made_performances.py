"""Makes up piano pieces and plays them, from a seed: a score and a performance that is not spoiled.

Contract: equal seeds give equal pieces.  They have what playing has that is no mistake: tempi that
bend with phrases and slow down at the end, a slow drift, chords that are not quite together or are
rolled, a melody that leads and is louder, keys that overlap, a pedal that changes with the harmony.
So what is measured on them is the level from which spoiling begins.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from mt3_analysis.assessment.performance import Performance
from mt3_analysis.assessment.score import Score, make_score

QUARTERS = 128
"""Length of a piece; about 400 notes, from which on shares of notes are steady."""

_SCALE = np.array([0, 2, 4, 5, 7, 9, 11])
_RHYTHMS = ((1.0,), (0.5, 0.5), (0.75, 0.25), (0.25,) * 4, (1 / 3,) * 3, (2.0,))
_RHYTHM_ODDS = (0.3, 0.3, 0.1, 0.1, 0.1, 0.1)

Generator = np.random.Generator


def make_piece(seed: int, quarters: int = QUARTERS) -> Score:
    """Makes up a piece: a melody over chords, broken chords or octaves, in a key that changes."""
    rng = np.random.default_rng([seed, 1])
    rows: list[tuple[float, float, int]] = []
    key, degree, now = int(rng.integers(-5, 7)), int(rng.integers(7, 14)), 0.0
    while now < quarters:
        for length in _RHYTHMS[rng.choice(len(_RHYTHMS), p=_RHYTHM_ODDS)]:
            degree = int(np.clip(degree + rng.choice((-4, -2, -1, 1, 2, 4)), 5, 16))
            rows.append((now, length, 60 + key + _pitch(degree)))
            if rng.random() < 0.25:
                rows.append((now, length, 60 + key + _pitch(degree - 2)))
            now += length
    for bar in range(0, quarters, 4):
        if bar and bar % 32 == 0:
            key = int(np.clip(key + rng.choice((-5, -2, 2, 5)), -7, 7))
        root = int(rng.choice((0, 3, 4, 5)))
        rows += _accompaniment(rng, float(bar), 36 + key, root)
    columns = np.array(sorted(set(rows)), np.float64).T
    kept = np.unique(columns[[0, 2]], axis=1, return_index=True)[1]  # a key once at a time
    return make_score(*columns[:, kept], name=f"piece-{seed}")


def play(score: Score, seed: int) -> Performance:
    """Plays a piece as somebody does who makes no mistakes."""
    rng = np.random.default_rng([seed, 2])
    chord = score.chord_of()
    position = score.onset_q[np.flatnonzero(np.diff(chord, prepend=-1))]
    at = _times(rng, position)
    spread = rng.uniform(0.004, 0.012)
    top = _top(score, chord)
    onset = at[chord] + rng.normal(0.0, spread, len(score))
    onset[top] -= rng.uniform(0.0, 0.02)
    onset += _rolls(rng, score, chord)
    ends = np.interp(score.onset_q + score.length_q, position, at)
    late = score.onset_q + score.length_q > position[-1]
    ends[late] = at[-1] + (score.onset_q + score.length_q)[late] - position[-1]
    held = np.exp(rng.normal(np.log(rng.uniform(0.75, 1.05)), 0.15, len(score)))
    onset += 0.5 - onset.min()
    offset = onset + np.maximum((ends - at[chord]) * held, 0.04)
    loud = rng.uniform(50, 75) + _wave(rng, position, 24.0, rng.uniform(5, 12))[chord]
    loud += rng.normal(0.0, 4.0, len(score))
    loud[top] += rng.uniform(6, 14)
    velocity = np.clip(np.round(loud), 10, 120)
    return Performance.from_arrays(
        onset, offset, pitch=score.pitch, velocity=velocity, pedals={64: _pedal(rng, score, at)},
        name=f"take-{seed}",
    )  # fmt: skip


def _pitch(degree: int) -> int:
    return int(12 * (degree // 7 - 1) + _SCALE[degree % 7])


def _accompaniment(
    rng: Generator, bar: float, low: int, root: int
) -> list[tuple[float, float, int]]:
    triad = [low + 12 + _pitch(root + 7 + step) - 12 for step in (0, 2, 4)]
    form = rng.integers(0, 4)
    if form == 0:
        return [(bar + 2 * half, 2.0, pitch) for half in (0, 1) for pitch in triad]
    if form == 1:
        order = (0, 2, 1, 2) * 2
        return [(bar + 0.5 * i, 0.5, triad[step]) for i, step in enumerate(order)]
    if form == 2:
        bass = [(bar, 4.0, triad[0] - 12)]
        return bass + [(bar + beat, 1.0, pitch) for beat in (1, 2, 3) for pitch in triad]
    return [(bar + beat, 1.0, triad[0] - 12 * low_one) for beat in range(4) for low_one in (0, 1)]


def _times(rng: Generator, position: np.ndarray) -> np.ndarray:
    """Seconds of each chord: phrases, a drift, a slow end, and a hand that is not a clock."""
    tempo = np.log(rng.uniform(60.0, 132.0) / 60.0)
    tempo = tempo + _wave(rng, position, float(rng.choice((8, 16))), rng.uniform(0.02, 0.2))
    tempo += _wave(rng, position, rng.uniform(30, 60), rng.uniform(0.01, 0.05))
    last = np.clip((position - position[-1] + 4.0) / 4.0, 0.0, 1.0)
    tempo -= rng.uniform(0.1, 0.5) * last
    steps = np.diff(position) / np.exp((tempo[1:] + tempo[:-1]) / 2)
    at = np.concatenate(([0.0], np.cumsum(steps)))
    off = rng.normal(0.0, rng.uniform(0.003, 0.030), len(at))  # the widest: agogic accents
    return np.maximum.accumulate(at + off)


def _wave(rng: Generator, position: np.ndarray, period: float, size: float) -> np.ndarray:
    phase = rng.uniform(0, 2 * np.pi)
    return np.asarray(size * np.sin(2 * np.pi * position / period + phase))


def _top(score: Score, chord: np.ndarray) -> np.ndarray:
    order = np.lexsort((-score.pitch, chord))
    return np.asarray(order[np.flatnonzero(np.diff(chord[order], prepend=-1))])


def _rolls(rng: Generator, score: Score, chord: np.ndarray) -> np.ndarray:
    """Delays of notes of rolled chords, from the lowest upwards, [s]."""
    rolled = rng.random(int(chord[-1]) + 1) < rng.uniform(0.0, 0.03)
    starts = np.flatnonzero(np.diff(chord, prepend=-1))
    rank = np.arange(len(score)) - starts[chord]
    return np.asarray(np.where(rolled[chord], 0.05 * rank, 0.0))


def _pedal(rng: Generator, score: Score, at: np.ndarray) -> list[tuple[float, int]]:
    position = score.onset_q[np.flatnonzero(np.diff(score.chord_of(), prepend=-1))]
    changes = np.interp(np.arange(0.0, position[-1], 2.0), position, at) + 0.5
    lag, depth = rng.uniform(0.05, 0.15), int(rng.integers(80, 128))
    moves: list[tuple[float, int]] = []
    for here, following in pairwise(changes):
        moves += [(float(here + lag), depth), (float(following - 0.02), 0)]
    return moves
