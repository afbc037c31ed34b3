"""The interface of note assemblers: tokens of consecutive segments in, notes and reports out.

Contract: an `Assembler` is handed the segments of one recording in order of time.  Notes that end
in a segment come back at once, and nothing is lost silently: a `SegmentReport` counts the tokens
that could not be used, and why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import OptionError
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.vocabulary import TokenIds


class ChannelTokens(NamedTuple):
    """What was decoded for one channel of a segment.

    Attributes:
        tokens: Model ids ``[n]`` without the start token.
        probabilities: Probability of each token ``[n]``, or None.
        truncated: Decoding stopped at the token limit, not at an end-of-sequence token.
    """

    tokens: TokenIds
    probabilities: Sequence[float] | npt.NDArray[np.floating[Any]] | None = None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """What became of the tokens of one segment, of all its channels together.

    Attributes:
        index: Position of the segment, from 0.
        start: Its start in seconds.
        token_count: Tokens ahead of the end-of-sequence token.
        truncated: The token limit was reached before an end-of-sequence token.
        missing_tie: The model has ties, but this segment (or a channel of it) never closed its tie
            section: its first pitch tokens counted as tie declarations, and notes held over its
            start were not ended.
        invalid_events: Tokens without meaning where they stood; they were skipped.
        dropped_events: Tokens behind a time shift that led past the start of the next segment.
        discarded_tokens: Tokens discarded to imitate a quirk of the original implementation.
        notes: Notes that begin in this segment.
    """

    index: int
    start: float
    token_count: int
    truncated: bool = False
    missing_tie: bool = False
    invalid_events: int = 0
    dropped_events: int = 0
    discarded_tokens: int = 0
    notes: int = 0


class Assembler(Protocol):
    """The state machine over the segments of one recording."""

    def add_channels(
        self, channels: Sequence[ChannelTokens], start: float, next_start: float | None
    ) -> tuple[list[Note], SegmentReport]:
        """Take the next segment.

        Args:
            channels: What was decoded, in the order of the model's channels.
            start: Start of the segment in seconds, on the time grid of the model.
            next_start: Start of the next segment, None for the last one.

        Returns:
            The notes that are settled now, in the order of their ends, and the report.

        Raises:
            OptionError: Segments are out of order, or an argument contradicts another.
        """

    def sounding(self) -> list[Note]:
        """The notes that have begun and are not settled; their ends mean nothing yet."""

    def finish(self) -> list[Note]:
        """End the recording; returns the notes that were not settled."""


def both(first: float | None, second: float | None) -> float | None:
    """Chance of two tokens together; one that is None does not count."""
    if first is None or second is None:
        return second if first is None else first
    return first * second


def paired(
    tokens: TokenIds, probabilities: Sequence[float] | npt.NDArray[np.floating[Any]] | None
) -> tuple[npt.NDArray[np.int64], list[float | None]]:
    """Tokens ``[n]`` and their probabilities, None where these are not known.

    Raises:
        OptionError: The two differ in length.
    """
    ids = np.asarray(tokens, np.int64)
    chances: list[float | None] = [None] * len(ids)
    if probabilities is not None:
        chances = np.asarray(probabilities).tolist()
    if len(chances) != len(ids):
        raise OptionError(
            f"{len(ids)} tokens came with {len(chances)} probabilities; expected one per token"
        )
    return ids, chances


def check_order(index: int, last_start: float, start: float, next_start: float | None) -> None:
    """Check that a segment lies behind its predecessor and ahead of its successor.

    Raises:
        OptionError: It does not.
    """
    end = math.inf if next_start is None else next_start
    if not (0 <= last_start <= start <= end and math.isfinite(start)):
        raise OptionError(
            f"segment {index} spans {start}..{next_start} s after one that started at "
            f"{last_start} s; hand segments over in order of time"
        )
