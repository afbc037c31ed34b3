"""Shapes that engines are built for: numbers of rows, lengths of the cache.

TensorRT compiles for shapes that are known.  The decoder is therefore built for some numbers of
rows ("slots"), one optimisation profile each, and for some capacities of the cache, one engine
each: the layer that writes into a cache in place wants its length fixed.  At run time the smallest
that fits is used; a row that outgrows its capacity moves all rows into the next one.

All functions are pure.  Letters as in ``docs/graph-contract.md``: R rows, H heads, D head width,
L capacity, T + M rows of the cross-attention, K channels, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

from mt3_runtime.backends.ort_gpu.lane_widths import WIDTHS
from mt3_runtime.bundles.bundle import Manifest
from mt3_runtime.errors import OptionError

#: Rows of the decoder.  A step reads all weights (45 MB in fp16) once, so rows are nearly free
#: until their caches cost as much: 3 MiB each for the cross keys and values alone.  A lane begins
#: with the first of the numbers that `mt3_runtime.backends.ort_gpu.lane_widths` has as well.
SLOTS = (1, 8, *WIDTHS)

#: Columns of the cache.  Real segments have 41 to 64 tokens in the middle, seldom more than 200.
CAPACITIES = (128, 384)

#: Segments that are encoded at once.  One alone leaves most of a large GPU idle; a song begins with
#: as many as there are rows, and goes on with one or two at a time.
SEGMENTS = (1, 4)

#: More than this is a slip of the pen.
_MOST_SLOTS, _MOST_BUCKETS = 1024, 8

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapePlan:
    """What engines of one bundle are built for.

    Attributes:
        slots: Numbers of rows, ascending; the last one has room for a whole segment of a model
            with several channels beside the rows that pay off.
        capacities: Lengths of the cache, ascending; the last one is the model's longest sequence.
        segments: Numbers of segments that are encoded at once, ascending; the first one is 1.
    """

    slots: tuple[int, ...]
    capacities: tuple[int, ...]
    segments: tuple[int, ...] = SEGMENTS

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of rows that a lane has memory for, one after the other, ascending."""
        return tuple(rows for rows in self.slots if rows >= min(WIDTHS[0], self.slots[-1]))

    def rows(self, needed: int) -> int:
        """The smallest number of rows that holds ``needed``."""
        return smallest(self.slots, needed)

    def capacity(self, needed: int) -> int:
        """The smallest capacity that holds ``needed`` columns."""
        return smallest(self.capacities, needed)


def make_plan(
    manifest: Manifest,
    slots: tuple[int, ...] = SLOTS,
    capacities: tuple[int, ...] = CAPACITIES,
    segments: tuple[int, ...] = SEGMENTS,
) -> ShapePlan:
    """Fits wishes to a model.

    Args:
        manifest: The model's.
        slots: Wanted numbers of rows.  The largest gets K - 1 more, so that it is never short of
            rows while a segment waits for K free ones.
        capacities: Wanted lengths of the cache.  What exceeds the longest sequence is cut to it,
            and it is added if it is not there: every segment must fit.
        segments: Wanted numbers of segments that are encoded at once; 1 is added.

    Raises:
        OptionError: There are none or too many of them, or they are not positive numbers.
    """
    longest, channels = manifest.decoding.max_tokens, manifest.model.channels
    rows = sorted(set(_checked("slots", slots, _MOST_SLOTS)))
    rows[-1] += channels - 1
    wanted = _checked("capacities", capacities, 1 << 20)
    columns = sorted({min(length, longest) for length in wanted} | {longest})
    together = sorted({1, *_checked("segments", segments, _MOST_SLOTS)})
    return ShapePlan(tuple(rows), tuple(columns), tuple(together))


def _checked(what: str, values: tuple[int, ...], most: int) -> tuple[int, ...]:
    sound = all(type(value) is int and 1 <= value <= most for value in values)
    if not sound or not 1 <= len(values) <= _MOST_BUCKETS:
        raise OptionError(
            f"{what} must be 1 to {_MOST_BUCKETS} numbers from 1 to {most}, such as 1,8,32; "
            f"got {','.join(map(str, values)) or 'none'}."
        )
    return values


def parse_numbers(text: str, what: str) -> tuple[int, ...]:
    """Reads ``1,8,32``.

    Raises:
        OptionError: It is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) <= 9 for part in parts):
        raise OptionError(f"{what} takes numbers such as 1,8,32, got {text!r}.")
    return tuple(int(part) for part in parts)


def smallest(buckets: tuple[int, ...], needed: int) -> int:
    """The smallest bucket that holds ``needed``; ``buckets`` ascend.

    Raises:
        OptionError: None does.
    """
    at = bisect_left(buckets, needed)
    if at == len(buckets):
        raise OptionError(f"{needed} is more than the engines were built for ({buckets[-1]}).")
    return buckets[at]


def encoder_shapes(manifest: Manifest, segments: int = 1) -> dict[str, Shape]:
    """Shapes of all inputs and outputs of the encoder for so many segments."""
    features, model, decoding = manifest.features, manifest.model, manifest.decoding
    shapes: dict[str, Shape] = {"features": (segments, features.frames, features.bins)}
    if model.memory:
        shapes["previous_ids"] = (segments, decoding.memory_tokens)
    return shapes | cross_shapes(manifest, segments * model.channels)


def cross_shapes(manifest: Manifest, rows: int) -> dict[str, Shape]:
    """Shapes of the cross keys and values of ``rows`` rows: each (R, H, T + M, D)."""
    model = manifest.model
    shape = (rows, model.heads, model.cross_rows, model.head_dim)
    return {f"cross_{part}_{i}": shape for i in range(model.layers) for part in ("key", "value")}


def cache_shapes(manifest: Manifest, rows: int, capacity: int) -> dict[str, Shape]:
    """Shapes of the past keys and values: each (R, H, L, D)."""
    model = manifest.model
    shape = (rows, model.heads, capacity, model.head_dim)
    return {f"past_{part}_{i}": shape for i in range(model.layers) for part in ("key", "value")}


def decoder_shapes(manifest: Manifest, rows: int, capacity: int) -> dict[str, Shape]:
    """Shapes of all inputs and outputs of a step."""
    cache = cache_shapes(manifest, rows, capacity)
    return {
        "token_ids": (rows, 1),
        "positions": (rows,),
        "allowed": (rows, manifest.model.vocab_size),
        **cross_shapes(manifest, rows),
        **cache,
        "next_ids": (rows, 1),
        "top_ids": (rows, 2),
        "top_log_probs": (rows, 2),
        **{name.replace("past", "present", 1): shape for name, shape in cache.items()},
    }


def buckets_are_ascending(buckets: tuple[int, ...]) -> bool:
    """Whether numbers are positive and each is larger than the one before."""
    return bool(buckets) and buckets[0] > 0 and all(a < b for a, b in pairwise(buckets))
