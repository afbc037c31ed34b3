"""A backend that plays back tables of log-probabilities, to test searching and batching alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import numpy.typing as npt

from mt3_runtime.bundle import DecodingSpec
from mt3_runtime.decoding import Job, Span, decode
from mt3_runtime.search import Greedy, Sequence

Table = npt.NDArray[np.float32]


class ScriptedLane:
    """Looks up each row's next log-probabilities by (table, step, previous token)."""

    def __init__(self, tables: list[Table], slots: int) -> None:
        self._tables, self.slots = tables, slots
        self._playing = np.zeros(slots, np.int64)
        self.token_ids = np.zeros((slots, 1), np.int64)
        self.positions = np.zeros(slots, np.int32)
        self.allowed = np.ones((slots, tables[0].shape[-1]), np.bool_)
        self.top_ids = np.zeros((slots, 2), np.int64)
        self.top_log_probs = np.zeros((slots, 2), np.float32)

    def load(self, slot: int, features: npt.NDArray[np.float32]) -> None:
        self._playing[slot] = int(features[0, 0])
        self.token_ids[slot] = 0
        self.positions[slot] = 0

    def step(self, rows: int) -> None:
        for row in range(rows):
            table = self._tables[self._playing[row]]
            log_probs = table[self.positions[row], self.token_ids[row, 0]]
            masked = np.where(self.allowed[row], log_probs, -np.inf)
            best = np.argsort(-masked, kind="stable")[:2]
            self.top_ids[row] = best
            self.top_log_probs[row] = log_probs[best]
            self.token_ids[row] = best[0]
        self.positions[:rows] += 1

    def move(self, source: int, target: int) -> None:
        for state in (self._playing, self.token_ids, self.positions, self.allowed):
            state[target] = state[source]


class ScriptedBackend:
    """Makes such lanes; ``features[0, 0]`` of a job is the number of its table."""

    description = "scripted"

    def __init__(self, tables: list[Table], *, workers: int = 1, slots: int = 8) -> None:
        self._tables, self.workers, self.slots = tables, workers, slots

    def lane(self, slots: int, *, alone: bool = False) -> ScriptedLane:
        return ScriptedLane(self._tables, slots)

    def close(self) -> None:
        """Nothing to free."""


def table_jobs(count: int) -> Iterable[Job]:
    """One job per table."""
    for index in range(count):
        features = np.full((1, 1), index, np.float32)
        yield Job(Span(index, float(index), float(index + 1)), partial(np.asarray, features))


def decode_table(
    tables: list[Table],
    search: Callable[..., Greedy],
    spec: DecodingSpec,
    *,
    slots: int = 8,
    workers: int = 1,
) -> list[Sequence]:
    """Decodes all tables and returns their sequences in order."""
    backend = ScriptedBackend(tables, workers=workers, slots=slots)
    jobs = table_jobs(len(tables))
    return [item.sequence for item in decode(backend, jobs, partial(search, spec=spec))]
