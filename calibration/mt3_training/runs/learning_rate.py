"""Learning-rate schedule: progress, stages and rate of a training run.

Contract: *progress* is the share of the budget that is used up, 0 to 1; stages, learning rate and
the weights of the aids are functions of it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from mt3_training.runs.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """What a configuration asks for at each point of its run."""

    config: TrainConfig

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is used up after so many steps and seconds, 0..1."""
        if self.config.steps is not None:
            return min(step / self.config.steps, 1.0) if self.config.steps else 1.0
        hours = self.config.hours or math.inf
        return min(seconds / (3600.0 * hours), 1.0)

    def stage(self, progress: float) -> int:
        """Number of the stage at this point."""
        ends = list(itertools.accumulate(stage.share for stage in self.config.stages))
        return next(
            (i for i, end in enumerate(ends[:-1]) if progress < end / ends[-1]), len(ends) - 1
        )

    def rate_factor(self, step: int, progress: float) -> float:
        """By what the learning rate is multiplied: warm-up, then one, then down to zero."""
        warm = min(1.0, (step + 1) / max(self.config.warmup, 1))
        return warm * min(1.0, (1.0 - progress) / (1.0 - self.config.decay_from))

    def aid_factor(self, progress: float) -> float:
        """By what the weights of the aids are multiplied."""
        start, end = self.config.aids_fade
        if progress < start:
            return 1.0
        return max(0.0, (end - progress) / (end - start)) if end > start else 0.0

    def evaluations_due(self, progress: float) -> int:
        """How many evaluations there should have been; one more than asked for, at the start."""
        return 1 + math.floor(progress * self.config.evaluations + 1e-9)
