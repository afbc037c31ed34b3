"""Judges the trained weights of a stem against those they began with, on held-out examples.

Contract: `judge` scores best and starting weights on the same examples, which chose neither, with
95 % intervals of both scores and of their difference.  The result is kept in the run's folder with
the step of the weights, and is not computed again for the same ones.

What is scored are onsets: of drum hits for stems of drums, of pitched notes for all others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_evaluation.bootstrap import interval, paired_interval
from mt3_evaluation.scoring import Score
from mt3_export.weights import PositionTable, Weights
from mt3_runtime.errors import CheckpointError
from mt3_runtime.filesystem.atomic import write_atomic
from mt3_runtime.notes.stems import Role, stem_named
from mt3_training.examples.batches import Sources, held_out
from mt3_training.runs.checkpointing import RunFolder
from mt3_training.shipping.small_model import scores_by_example

JUDGED = "judged.json"

ROUNDS = 4
"""Times the held-out examples of a run; fewer leave wide intervals."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A score or a difference of scores, with its 95 % interval.

    Attributes:
        value: None where there is nothing to score.
        low: Lower end; None where there is too little to draw from.
        high: Upper end.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        ends = "" if self.low is None else f" ({self.low:.3f} to {self.high:.3f})"
        return f"{self.value:.3f}{ends}"


NOTHING = Estimate()


@dataclass(frozen=True)
class Judgement:
    """How a stem's weights do.

    Attributes:
        step: Of the best weights.
        examples: How many judged.
        start: Onset F1 of the starting weights; nothing for fresh ones.
        best: Onset F1 of the best weights.
        gain: Best less start.
    """

    step: int
    examples: int
    start: Estimate
    best: Estimate
    gain: Estimate

    @property
    def is_better(self) -> bool:
        """Whether the interval of the gain lies above zero."""
        return self.gain.low is not None and self.gain.low > 0.0

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Judgement:
        """The inverse of `dataclasses.asdict`."""
        parts = {name: Estimate(**data[name]) for name in ("start", "best", "gain")}
        return cls(**{**data, **parts})


def judge(folder: RunFolder, sources: Sources, *, threads: int | None = None) -> Judgement:
    """Scores the best weights of a run, and those it began with.

    Args:
        folder: The run.
        sources: Where its examples come from.
        threads: Of the runtime.

    Raises:
        CheckpointError: There are no best weights yet, or the folder is damaged.
        MissingDependencyError: ONNX Runtime or mir_eval is not installed.
    """
    best = folder.best()
    if best is None:
        raise CheckpointError(f"{folder.path} has no judged weights yet; train on")
    known = read_judgement(folder)
    if known is not None and known.step == best.step:
        return known
    ours = _counts(folder, sources, _weights(folder, folder.best_weights()), threads)
    theirs = None
    if folder.config.start:
        theirs = _counts(folder, sources, _weights(folder, folder.start_weights()), threads)
    found = Judgement(
        best.step,
        len(ours),
        NOTHING if theirs is None else estimate(theirs),
        estimate(ours),
        NOTHING if theirs is None else difference(ours, theirs),
    )
    write_atomic(folder.path / JUDGED, json.dumps(asdict(found), indent=1).encode())
    return found


def read_judgement(folder: RunFolder) -> Judgement | None:
    """What `judge` found before; None if nothing, or nothing that can be read."""
    try:
        return Judgement.from_dict(json.loads((folder.path / JUDGED).read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return None  # computed anew


def estimate(counts: list[Counts]) -> Estimate:
    """F1 from numerators and denominators per window, of each recording [windows, 2]."""
    value = _f1(counts)
    low, high = interval(counts) or (None, None)
    return Estimate(value, low, high) if value is not None else NOTHING


def difference(ours: list[Counts], theirs: list[Counts]) -> Estimate:
    """Ours less theirs, on the same recordings."""
    one, other = _f1(ours), _f1(theirs)
    if one is None or other is None:
        return NOTHING
    low, high = paired_interval(ours, theirs) or (None, None)
    return Estimate(one - other, low, high)


def score_of(stem: str, onset: Score, drums: Score) -> Score:
    """The score that counts for a stem."""
    return drums if stem and stem_named(stem).role is Role.PERCUSSIVE else onset


def fraction(score: Score) -> tuple[int, int]:
    """Numerator and denominator of F1."""
    return 2 * score.matched, score.labels + score.notes


def _f1(counts: list[Counts]) -> float | None:
    top, bottom = (int(n) for n in sum((c.sum(axis=0) for c in counts), np.zeros(2, np.int64)))
    return top / bottom if bottom else None


def _weights(folder: RunFolder, tensors: Any) -> Weights:
    return Weights(folder.config.shape, tensors, PositionTable(255))


def _counts(
    folder: RunFolder, sources: Sources, weights: Weights, threads: int | None
) -> list[Counts]:
    """F1's parts of each example, in portions: one of 256 full segments takes 130 MB."""
    return list(_scored(folder, sources, weights, threads))


def _scored(
    folder: RunFolder, sources: Sources, weights: Weights, threads: int | None
) -> Iterator[Counts]:
    config = folder.config
    source = sources(len(config.stages) - 1, held_out=True)
    for number in range(1, 1 + ROUNDS):  # the first portion has chosen the best weights
        batch = held_out(source, config.held_out, skip=number * config.held_out)
        scores = scores_by_example(weights, batch, threads=threads, folder=Path(folder.path))
        for onset, drums in scores:
            yield np.array([fraction(score_of(config.stem, onset, drums))], np.int64)
