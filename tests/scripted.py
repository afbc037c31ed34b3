"""A backend that plays back tables of log-probabilities, to test searching and batching alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import numpy.typing as npt

from mt3_runtime.bundles.bundle import DecodingSpec
from mt3_runtime.decoding.batching import decode
from mt3_runtime.decoding.search import Greedy
from mt3_runtime.decoding.types import Decoded, Ended, Job, Jobs, Sequence, Span

Table = npt.NDArray[np.float32]


class ScriptedLane:
    """Looks up each row's next log-probabilities by (table, step, previous token).

    Channel ``c`` of a segment plays table ``features[0, c]``; a memory moves it on by the sum of
    its ids.
    """

    def __init__(self, tables: list[Table], slots: int, channels: int, seen: list[int]) -> None:
        self._tables, self.slots, self.channels, self._seen = tables, slots, channels, seen
        self.room = slots
        self._playing = np.zeros(slots, np.int64)
        self.token_ids = np.zeros((slots, 1), np.int64)
        self.positions = np.zeros(slots, np.int32)
        self.allowed = np.ones((slots, tables[0].shape[-1]), np.bool_)
        self.top_ids = np.zeros((slots, 2), np.int64)
        self.top_log_probs = np.zeros((slots, 2), np.float32)

    def load(
        self,
        slot: int,
        features: npt.NDArray[np.float32],
        previous_ids: npt.NDArray[np.int64] | None = None,
    ) -> None:
        filled = slice(slot, slot + self.channels)
        moved = 0 if previous_ids is None else int(previous_ids.sum())
        self._playing[filled] = (features[0].astype(np.int64) + moved) % len(self._tables)
        self.token_ids[filled] = 0
        self.positions[filled] = 0

    def step(self, rows: int) -> None:
        self._seen.append(rows)
        for row in range(rows):
            table = self._tables[self._playing[row]]
            log_probs = table[self.positions[row], self.token_ids[row, 0]]
            masked = np.where(self.allowed[row], log_probs, -np.inf)
            best = np.argsort(-masked, kind="stable")[:2]
            self.top_ids[row] = best
            self.top_log_probs[row] = log_probs[best]
            self.token_ids[row] = best[0]
        self.positions[:rows] += 1

    def widen(self) -> bool:
        return False

    def move(self, source: int, target: int) -> None:
        for state in (self._playing, self.token_ids, self.positions, self.allowed):
            state[target] = state[source]


class ScriptedBackend:
    """Makes such lanes.

    Attributes:
        rows: Rows of every step of all lanes.
    """

    description = "scripted"

    def __init__(
        self, tables: list[Table], *, workers: int = 1, slots: int = 8, channels: int = 1
    ) -> None:
        self._tables, self.workers, self.slots = tables, workers, slots + channels - 1
        self._channels, self.rows = channels, list[int]()

    def lane(self, slots: int, *, alone: bool = False) -> ScriptedLane:
        return ScriptedLane(self._tables, slots, self._channels, self.rows)

    def warmup(self) -> None:
        """Nothing to prepare."""

    def close(self) -> None:
        """Nothing to free."""


def table_jobs(tables: int, channels: int = 1) -> Jobs:
    """A recording that plays each table once, ``channels`` of them per segment."""
    for index in range(tables // channels):
        played = range(index * channels, (index + 1) * channels)
        features = np.array([played], np.float32)
        yield Job(Span(index, float(index), float(index + 1)), partial(np.asarray, features))


def segments(results: Iterable[Decoded | Ended]) -> list[Decoded]:
    """The segments of a run that was to succeed."""
    found = list(results)
    for item in found:
        assert isinstance(item, Decoded) or item.error is None
    return [item for item in found if isinstance(item, Decoded)]


def decode_table(
    tables: list[Table],
    search: Callable[..., Greedy],
    spec: DecodingSpec,
    *,
    slots: int = 8,
    workers: int = 1,
    channels: int = 1,
) -> list[Sequence]:
    """Decodes all tables and returns their sequences in order."""
    backend = ScriptedBackend(tables, workers=workers, slots=slots, channels=channels)
    run = decode(backend, [table_jobs(len(tables), channels)], partial(search, spec=spec))
    return [sequence for item in segments(run) for sequence in item.sequences]
