"""Made-up pieces for tests: a score, and a performance of it."""

from __future__ import annotations

import numpy as np

from mt3_analysis.assessment.performance import Performance
from mt3_analysis.assessment.score import Score, make_score


def piece(seed=0, chords=160, notes=3) -> Score:
    """Chords of a few notes on half-quarters, with a melody that moves."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(chords):
        top = 72 + int(rng.integers(-7, 8))
        below = rng.choice(np.arange(36, 64), int(rng.integers(0, notes)), replace=False)
        rows += [(0.5 * index, 0.5, pitch) for pitch in [top, *below.tolist()]]
    return make_score(*np.array(rows, float).T, name="piece")


def played(score: Score, seed=1, quarter_s=0.5, jitter_s=0.008, velocities=True, pedals=True):
    """A performance of a score: a slow wave of tempo, and onsets that are a little off."""
    rng = np.random.default_rng(seed)
    wave = 0.08 * np.sin(score.onset_q / 6.0)
    on = (score.onset_q + wave) * quarter_s + 0.5 + rng.normal(0, jitter_s, len(score))
    off = on + score.length_q * quarter_s * rng.uniform(0.8, 1.1, len(score))
    loud = 60 + 12 * np.sin(score.onset_q / 5) + rng.normal(0, 5, len(score))
    loud += 10 * (score.pitch > 64)
    moves = [(0.5 + k + d, v) for k in range(int(on.max())) for d, v in ((0.1, 100), (0.9, 0))]
    return Performance.from_arrays(
        on,
        off,
        pitch=score.pitch,
        velocity=np.clip(loud, 1, 127).round() if velocities else None,
        pedals={64: moves} if pedals else None,
        name="take.mid",
    )
