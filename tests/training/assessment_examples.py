"""Small made-up examples of assessing networks, whose labels lie in frames and notes."""

from __future__ import annotations

import numpy as np

from mt3_training.assessing.assessor_examples import Entry, Example, Examples, is_judged

DIMENSIONS = ("timing", "pedal")
FRAME_SECONDS = 0.05


def piece_names(judged, count):
    """Names of pieces of one part."""
    names = (f"piece {number}" for number in range(1000))
    return [name for name in names if is_judged(name) == judged][:count]


def make_example(name, piece, seed, width=8):
    """Half of a frame's numbers say how good the pedal is, pitches how good the timing."""
    chance = np.random.default_rng(seed)
    first, second = chance.random(2)
    frames = chance.normal(1.0, 0.3, (int(chance.integers(20, 40)), width))
    frames[:, : width // 2] += 4 * first - 3
    onsets = np.sort(chance.uniform(0, len(frames) * FRAME_SECONDS, int(chance.integers(5, 12))))
    pitches = np.clip(30 + 60 * second + chance.normal(0, 3, len(onsets)), 21, 108).round()
    notes = np.stack([onsets, onsets + 0.2, pitches, np.full(len(onsets), 64.0)], axis=1)
    entry = Entry(name, piece, f"c{seed % 2}", (100 * second, 100 * first))
    about = chance.normal(0, 1, 6)
    return Example(entry, frames.astype(np.float32), notes, about)


def make_set(pieces=5, takes=4):
    """As many pieces of each part, with takes."""
    names = [*piece_names(judged=False, count=pieces), *piece_names(judged=True, count=pieces)]
    items = [
        make_example(f"{p}-{t}", piece, 100 * p + t)
        for p, piece in enumerate(names)
        for t in range(takes)
    ]
    return Examples(DIMENSIONS, FRAME_SECONDS, tuple(items))
