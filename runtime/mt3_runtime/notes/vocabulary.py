"""Token vocabulary: the event that each token id stands for (shift, pitch, program, tie, ...).

A network emits *model ids*.  Three of them are special (padding, end of sequence, unknown), the
rest are laid out in consecutive ranges, one per kind of event.  The layout differs between the
families of models (order of the ranges, number of velocity bins, longest time shift), so it is
data: a `Vocabulary` is a small table that a bundle carries, and nothing outside this module knows
an offset.

Every id decodes, to an `Event` or to ``None``; decoding never raises, whatever a network emits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import BundleError, OptionError
from mt3_runtime.schema import Between, read_fields

PAD = 0
"""Padding, and the token every decoder starts with."""
EOS = 1
"""End of sequence."""
UNK = 2
"""Unknown; no published model is trained to emit it."""

STEPS_PER_SECOND = 100
"""Time shifts are counted in steps of 10 ms in every published vocabulary."""

MAX_STEPS = 10_000
"""Most time shift steps per second in a bundle: 0.1 ms, finer than a MIDI file's ticks."""

MAX_SIZE = 1 << 20
"""Largest width accepted from a bundle, so that a hostile one cannot exhaust the memory."""

TokenIds = Sequence[int] | npt.NDArray[np.integer[Any]]


class EventKind(StrEnum):
    """What a token says."""

    SHIFT = "shift"
    PITCH = "pitch"
    VELOCITY = "velocity"
    TIE = "tie"
    PROGRAM = "program"
    DRUM = "drum"


MAX_VALUE: Mapping[EventKind, int] = {
    EventKind.PITCH: 127,
    EventKind.PROGRAM: 127,
    EventKind.DRUM: 127,
    EventKind.VELOCITY: 127,
    EventKind.TIE: 0,
}
"""Largest value that MIDI can express, per kind; shifts are bounded by the vocabulary alone."""


class Event(NamedTuple):
    """One decoded token; the value is in steps, or a MIDI pitch, program or drum key, or a bin."""

    kind: EventKind
    value: int


@dataclass(frozen=True)
class EventRange:
    """Values ``min_value..max_value`` of one kind, at consecutive model ids from ``first_id``."""

    kind: EventKind
    first_id: int
    min_value: int
    max_value: int

    @property
    def ids(self) -> range:
        """Model ids of this range."""
        return range(self.first_id, self.first_id + self.max_value - self.min_value + 1)


@dataclass(frozen=True)
class Vocabulary:
    """The table between model ids and events.

    Attributes:
        size: Width of the network's output (ids ``0..size-1``), unused ids included.
        ranges: One `EventRange` per kind, disjoint, free of the special ids.
        steps_per_second: Time shift steps per second.
        pad: Id of the padding token, which is also the start token.
        eos: Id of the end-of-sequence token.
        unk: Id of the unknown token.

    Raises:
        BundleError: The table contradicts itself.
    """

    size: int
    ranges: tuple[EventRange, ...]
    steps_per_second: Annotated[int, Between(1, MAX_STEPS)] = STEPS_PER_SECOND
    pad: int = PAD
    eos: int = EOS
    unk: int = UNK
    _events: list[Event | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_SIZE or self.steps_per_second < 1:
            raise BundleError(
                f"vocabulary: size {self.size} (expected 1..{MAX_SIZE}) or steps_per_second "
                f"{self.steps_per_second} (at least 1); the bundle is damaged, export it again"
            )
        specials = {self.pad, self.eos, self.unk}
        if len(specials) != 3 or min(specials) < 0 or max(specials) >= self.size:
            raise BundleError(
                f"vocabulary: pad, eos and unk ({self.pad}, {self.eos}, {self.unk}) must be three "
                f"different ids below {self.size}; the bundle is damaged, export it again"
            )
        events: list[Event | None] = [None] * self.size
        for event_range in self.ranges:
            self._check_range(event_range, events, specials)
            values = range(event_range.min_value, event_range.max_value + 1)
            ids = event_range.ids
            events[ids.start : ids.stop] = [Event(event_range.kind, value) for value in values]
        if len({event_range.kind for event_range in self.ranges}) != len(self.ranges):
            raise BundleError("vocabulary: one kind has two ranges; expected one range per kind")
        object.__setattr__(self, "_events", events)

    def _check_range(
        self, event_range: EventRange, events: list[Event | None], specials: set[int]
    ) -> None:
        kind, ids = event_range.kind, event_range.ids
        highest = MAX_VALUE.get(kind, event_range.max_value)
        if not 0 <= event_range.min_value <= event_range.max_value <= highest:
            raise BundleError(
                f"vocabulary: {kind} values {event_range.min_value}..{event_range.max_value} are "
                f"not an ascending range within 0..{highest}"
            )
        if ids.start < 0 or ids.stop > self.size:
            raise BundleError(
                f"vocabulary: {kind} ids {ids.start}..{ids.stop - 1} leave 0..{self.size - 1}"
            )
        if any(events[ids.start : ids.stop]) or any(i in ids for i in specials):
            raise BundleError(
                f"vocabulary: {kind} ids {ids.start}..{ids.stop - 1} overlap another range or a "
                "special id"
            )

    def decode(self, ids: TokenIds) -> list[Event | None]:
        """Events of model ids ``[n]``; ``None`` for special, unused, negative and too large ids."""
        events, size = self._events, self.size
        return [events[i] if 0 <= i < size else None for i in np.asarray(ids, np.int64).tolist()]

    def encode(self, event: Event) -> int:
        """Model id of an event.

        Raises:
            OptionError: This vocabulary has no such event.
        """
        kind, value = event
        for event_range in self.ranges:
            if event_range.kind == kind:
                if event_range.min_value <= value <= event_range.max_value:
                    return event_range.first_id + value - event_range.min_value
                raise OptionError(
                    f"no token for {kind} {value}: this vocabulary has {kind} values "
                    f"{event_range.min_value}..{event_range.max_value}"
                )
        raise OptionError(f"no token for {kind} {value}: this vocabulary has no {kind} tokens")

    def id_range(self, kind: EventKind) -> range:
        """Model ids of a kind; empty if the vocabulary does not have it."""
        return next((r.ids for r in self.ranges if r.kind == kind), range(0))

    def to_dict(self) -> dict[str, Any]:
        """The table as plain JSON types; `from_dict` is the inverse."""
        return {
            "size": self.size,
            "steps_per_second": self.steps_per_second,
            "pad": self.pad,
            "eos": self.eos,
            "unk": self.unk,
            "ranges": [{**asdict(r), "kind": r.kind.value} for r in self.ranges],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Vocabulary:
        """Read what `to_dict` wrote.

        Raises:
            BundleError: A key is missing or unknown, a value has the wrong type, or the table
                contradicts itself.
        """
        return read_fields(cls, data, "vocabulary")

    @classmethod
    def mt3(cls) -> Vocabulary:
        """Magenta's ``mt3``: one velocity bin (on or off); 1388 events, network width 12 x 128."""
        return _consecutive(longest_shift=1000, velocity_bins=1, size=1536)

    @classmethod
    def ismir2021(cls) -> Vocabulary:
        """Magenta's ``ismir2021`` (piano): 127 velocity bins; 1514 events, width 13 x 128."""
        return _consecutive(longest_shift=1000, velocity_bins=127, size=1664)

    @classmethod
    def yourmt3(cls) -> Vocabulary:
        """YourMT3: shifts no longer than a segment of 2.048 s; 593 events, and no spare width."""
        return _consecutive(longest_shift=205, velocity_bins=1, size=596)


def _consecutive(*, longest_shift: int, velocity_bins: int, size: int) -> Vocabulary:
    """The layout of all published models: ranges in this order, right after the special ids.

    Magenta's longest shift is 10 s, although its longest segment has 4.096 s.
    """
    last_values = {
        EventKind.SHIFT: longest_shift,
        EventKind.PITCH: 127,
        EventKind.VELOCITY: velocity_bins,
        EventKind.TIE: 0,
        EventKind.PROGRAM: 127,
        EventKind.DRUM: 127,
    }
    ranges = []
    next_id = UNK + 1
    for kind, last_value in last_values.items():
        ranges.append(EventRange(kind, next_id, 0, last_value))
        next_id += last_value + 1
    return Vocabulary(size=size, ranges=tuple(ranges))
