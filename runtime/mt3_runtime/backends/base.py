"""The interface of backends and decoding lanes.

A `Backend` holds the two loaded graphs of a bundle.  A `Lane` is one worker's private set of slots
over it: encoded channels of segments, caches and the tokens in flight, wherever the backend keeps
them.  Only token ids and log-probabilities are promised to be host arrays.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int64]


class Lane(Protocol):
    """A row of slots that decode in lock-step, each at its own position.

    Slots ``0 .. rows-1`` are in use; the arrays below are written in place and never replaced.

    Attributes:
        slots: Number of slots, at least ``channels``.
        channels: K, slots that one segment fills.
        room: Slots there is memory for; `widen` makes them more.
        token_ids: int64 [slots, 1], the token each slot reads next; `step` overwrites it with the
            best allowed token, and a search may overwrite that again.
        positions: int32 [slots], tokens generated so far.
        allowed: bool [slots, V], tokens the choice may fall on.
        top_ids: int64 [slots, 2], the two best allowed tokens of the last step, best first.
        top_log_probs: float32 [slots, 2], their log-probabilities over all tokens.
    """

    slots: int
    channels: int
    room: int
    token_ids: IdArray
    positions: npt.NDArray[np.int32]
    allowed: npt.NDArray[np.bool_]
    top_ids: IdArray
    top_log_probs: FloatArray

    def load(self, slot: int, features: FloatArray, previous_ids: IdArray | None = None) -> None:
        """Encodes a segment and resets the slots it fills to the start token.

        Args:
            slot: Its channels go into slots ``slot .. slot + channels - 1``.
            features: [frames, bins].
            previous_ids: [memory_tokens], what a model with memory reads; None for others.
        """

    def step(self, rows: int) -> None:
        """Decodes one token in slots ``0 .. rows-1`` and advances their positions."""

    def move(self, source: int, target: int) -> None:
        """Copies a running slot over a finished one."""

    def widen(self) -> bool:
        """Raises `room`, up to ``slots``; False if the device has no memory for more."""


class Backend(Protocol):
    """Two loaded graphs that several lanes share.

    Attributes:
        description: One line that says what runs where, for people.
        workers: How many lanes pay off at once on this device.
        slots: How many slots per lane pay off, with room for one more segment beside them.
    """

    description: str
    workers: int
    slots: int

    def lane(self, slots: int, *, alone: bool = False) -> Lane:
        """Makes a lane; lanes may be used from different threads at once.

        Args:
            slots: Number of slots there may be; it begins with memory for some of them.
            alone: No other lane will run beside it, so it may use the whole device.
        """

    def warmup(self) -> None:
        """Prepares what a run of silence would not reach, such as steps of many rows."""

    def close(self) -> None:
        """Frees what the backend holds; using it afterwards is an error."""
