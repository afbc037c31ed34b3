"""Rows of a lane on a GPU: how many there may be while segments wait, and the memory they take.

A step reads all weights once, whatever the rows: on a large GPU hundreds of rows cost little more
than one.  A lane begins with few, as most work is a recording or two, and gets more of them while
it is full and segments wait, as far as there is memory.  What a row takes follows from the model's
shapes alone (`lane_bytes`), and all of it must be free beforehand, so that caches which grow in the
middle of a recording find their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mt3_runtime.bundles.manifest import ModelSpec

#: Rows of a lane, before the K - 1 more that a model with K channels gets.  Four times as many each
#: time: what was allocated for fewer is kept for other lanes, and comes to a third of the last.
WIDTHS = (32, 128, 512)

#: Part of the free memory that a lane's buffers may take.  The rest is for what no shape says:
#: intermediate results of its steps, recorded graphs, and other programs.
SHARE = 0.8

#: Bytes per row of what the host sends and receives in a step: a token id (8), a position (4), two
#: best ids (16) with their log-probabilities (8), and an id that nobody reads (8).
STEP_BYTES = 44


def lane_bytes(
    spec: ModelSpec,
    rows: int,
    capacities: Sequence[int],
    *,
    cross_element: int,
    cache_element: int,
    buffers: int = 1,
) -> int:
    """Bytes of device memory that the rows of a lane take when all its caches are there.

    Args:
        spec: Sizes of the model.
        rows: R.
        capacities: Lengths L of the caches; each is kept once it was needed.
        cross_element: Bytes of an element of the cross keys and values.
        cache_element: Bytes of an element of the caches.
        buffers: How many a cache takes.

    Returns:
        R x (2 N H D ((T + M) x cross_element + sum(L) x cache_element x buffers) + V + 44), with N
        layers, H heads of width D, T + M rows of the cross-attention, and V tokens in a mask.
    """
    column = 2 * spec.layers * spec.heads * spec.head_dim
    cross = column * spec.cross_rows * cross_element
    cache = column * sum(capacities) * cache_element * buffers
    return rows * (cross + cache + spec.vocab_size + STEP_BYTES)


def lane_widths(most: int, channels: int = 1) -> tuple[int, ...]:
    """The numbers of rows that a lane of ``most`` rows has memory for, one after the other."""
    fewer = (width - 1 + channels for width in WIDTHS)
    return (*(width for width in fewer if width < most), most)


def has_room(needed: int, free: int | None) -> bool:
    """Whether so many bytes may be taken; not where nobody knows what is free."""
    return free is not None and needed <= SHARE * free
