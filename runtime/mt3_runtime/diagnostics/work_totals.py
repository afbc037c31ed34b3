"""Counts what a decoding loop has done since it was made: steps, rows, tokens, seconds by stage.

Contract: counters only grow, and belong to the loop of a loaded model, not to who uses it.  Threads
may share a `WorkCounter`; the seconds of stages are those of their threads, which overlap.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

Stage = Literal["read", "features", "encode", "step", "finish"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""Reading audio and resampling; spectrograms; encoder; one token of every row; notes."""


@dataclass(frozen=True)
class WorkTotals:
    """What was done so far.

    Attributes:
        steps: Of decoders; each decodes one token in some rows.
        step_rows: Rows of all steps; by ``steps``, the slots in use.
        tokens: In finished segments, with what ends them.
        begun: Recordings and live inputs of which a segment was taken.
        waited: Seconds from their admission to that, of all together.
        seconds: By stage, as in `STAGES`.  Waiting for a live input is not part of reading.
    """

    steps: int = 0
    step_rows: int = 0
    tokens: int = 0
    begun: int = 0
    waited: float = 0.0
    seconds: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


class WorkCounter:
    """See the module docstring."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps = self._rows = self._tokens = self._begun = 0
        self._waited = 0.0
        self._seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)

    def add_step(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        with self._lock:
            self._steps += 1
            self._rows += rows
            self._seconds["step"] += seconds

    def add_tokens(self, count: int) -> None:
        """A segment is done, of so many tokens."""
        with self._lock:
            self._tokens += count

    def add_begun(self, waited: float) -> None:
        """The first segment of a recording was taken, so many seconds after its admission."""
        with self._lock:
            self._begun += 1
            self._waited += waited

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Adds the seconds that something takes."""
        begin = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - begin
            with self._lock:
                self._seconds[name] += seconds

    def totals(self) -> WorkTotals:
        """What was done so far."""
        with self._lock:
            return WorkTotals(
                self._steps, self._rows, self._tokens, self._begun, self._waited,
                dict(self._seconds),
            )  # fmt: skip
