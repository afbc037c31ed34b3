"""Types of decoding: segments, token sequences, results, and the interface of logit masks.

These are the types that search, logit masks, scheduler and the batching loop share.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mt3_runtime.backends.base import FloatArray

BoolArray = npt.NDArray[np.bool_]
TokenArray = npt.NDArray[np.integer[Any]]
Rows = slice | npt.NDArray[np.intp]
"""Some rows of a lane: the first ones, or any, by their slots in ascending order."""


class Sequence(NamedTuple):
    """What was decoded from one segment, or from one channel of it.

    Attributes:
        tokens: int32 [n], without the start token, and without what a line-up leaves out; ends with
            end-of-sequence unless ``truncated``.
        log_probs: float32 [n], natural logarithm of each token's probability over all tokens.
        truncated: The token limit was reached before end-of-sequence.
    """

    tokens: npt.NDArray[np.int32]
    log_probs: FloatArray
    truncated: bool


@dataclass(frozen=True)
class Span:
    """Where a segment lies.

    Attributes:
        index: Position in the recording, counted from 0 without gaps.
        start: Start time in seconds.
        next_start: Start time of the following segment; None for the last one.
    """

    index: int
    start: float
    next_start: float | None

    @property
    def seconds(self) -> float:
        """Until the next segment starts; 0 of the last one."""
        return 0.0 if self.next_start is None else self.next_start - self.start


@dataclass(frozen=True)
class Job:
    """One segment to decode; ``features`` makes its [frames, bins], once, on a worker thread."""

    span: Span
    features: Callable[[], FloatArray]


Jobs = Generator[Job, None, None]


@dataclass(frozen=True)
class Decoded:
    """A segment's tokens; its audio is no longer held.

    Attributes:
        recording: Number of its recording, from 0.
        span: Where it lies.
        sequences: What was decoded, one sequence per channel.
    """

    recording: int
    span: Span
    sequences: tuple[Sequence, ...]


@dataclass(frozen=True)
class Ended:
    """All segments of a recording have come out.

    Attributes:
        recording: Its number.
        segments: How many there were.
        error: What reading it raised, if it could not be read to its end.
    """

    recording: int
    segments: int
    error: Exception | None = None


class Constraint(Protocol):
    """Decides which tokens each slot of a lane may take next."""

    def start(self, allowed: BoolArray, slot: int, span: Span) -> None:
        """Sets a slot's row for the first token of a segment.

        Args:
            allowed: `Lane.allowed`, bool [slots, V].
            slot: Which row.
            span: Where the segment lies.
        """

    def move(self, source: int, target: int) -> None:
        """Copies a slot's state; its row of ``allowed`` was copied by `Lane.move`."""

    def advance(self, allowed: BoolArray, tokens: TokenArray, rows: Rows | None = None) -> None:
        """Renews rows of ``allowed``, given the token that each of them took.

        Args:
            allowed: As in `start`.
            tokens: One per row.
            rows: Which ones; None for the first ones.
        """
