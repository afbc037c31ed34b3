"""Cuts a stream of samples into a model's segments and gives their start times.

Contract: :func:`cut` pulls blocks and yields a :class:`Segment` as soon as it is complete, holding
no more than the one it is filling.  The published models differ in two details, both data in
:class:`SegmentConfig`:

* ``padding="extra_hop"`` (Magenta and its ports): the audio is extended to a whole number of hops,
  by a whole extra hop if it already is one.  So the last segment is always one that was not filled
  by real samples alone, and it is as long as its hops: n samples become n // hop + 1 hops.
* ``padding="full"`` (YourMT3): the last segment is filled up with zeros; there is no extra one.

Start times on Magenta's grid are reduced by the float64 remainder of a division by 0.01, rounding
errors included: segment 15 starts at 30.71 s, not at 30.72 s.  Notes inherit these times, so the
remainder is taken literally rather than computed better.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import OptionError
from mt3_runtime.schema import Between, read_fields

_MAX_SIZE = 1 << 24
"""Bound of the configured sizes: they become allocations, and come from a file."""

PADDINGS = ("extra_hop", "full")
"""Ways to complete the end of the audio; see the module docstring."""


@dataclass(frozen=True)
class SegmentConfig:
    """How a model's audio is cut.

    Attributes:
        sample_rate: [Hz].
        samples: Length of a full segment; a multiple of ``hop`` with padding "extra_hop".
        hop: Samples between two frames.
        time_grid: Start times are reduced to multiples of this many seconds; None leaves them.
        padding: "extra_hop" or "full".
    """

    sample_rate: int = 16000
    samples: int = 32768
    hop: int = 128
    time_grid: Annotated[float | None, Between(1e-4, 1.0)] = 0.01
    padding: str = "extra_hop"

    def __post_init__(self) -> None:
        for name in ("sample_rate", "samples", "hop"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_SIZE:
                raise OptionError(
                    f"{name} of segments is {value!r}; expected an integer from 1 to {_MAX_SIZE}."
                )
        if self.padding not in PADDINGS:
            raise OptionError(
                f"padding is {self.padding!r}; expected one of {', '.join(PADDINGS)}."
            )
        if self.padding == "extra_hop" and self.samples % self.hop:
            raise OptionError(
                f"Segments of {self.samples} samples are no whole number of hops of {self.hop}; "
                'padding "extra_hop" needs that.'
            )
        grid = self.time_grid
        if grid is not None and (isinstance(grid, bool) or not isinstance(grid, int | float)):
            raise OptionError(f"time_grid is {grid!r}; expected seconds or None.")
        if grid is not None and not 0.0 < grid < float("inf"):
            raise OptionError(f"time_grid is {grid!r}; expected a positive number of seconds.")

    def start(self, index: int) -> float:
        """Start time of segment ``index`` [s], as the original computes it in float64."""
        seconds = index * self.samples / self.sample_rate
        return seconds if self.time_grid is None else seconds - seconds % self.time_grid

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SegmentConfig:
        """Inverse of :meth:`to_dict`; unknown or missing keys raise `BundleError`."""
        return read_fields(cls, data, "segments")

    @classmethod
    def yourmt3(cls, hop: int) -> SegmentConfig:
        """YourMT3: one sample less than Magenta, exact start times, silence to the end."""
        return cls(samples=32767, hop=hop, time_grid=None, padding="full")


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of audio that is transcribed on its own.

    Attributes:
        index: 0, 1, 2, ...
        start: Start time [s] on the model's grid.
        next_start: Start time of the next segment [s], None for the last.
        samples: Mono float32 [n]; shorter than a full segment only at the end, see ``padding``.
    """

    index: int
    start: float
    next_start: float | None
    samples: npt.NDArray[np.float32]


def cut(blocks: Iterable[npt.NDArray[np.float32]], config: SegmentConfig) -> Iterator[Segment]:
    """Cut mono float32 blocks of any length into consecutive segments without overlap.

    With padding "extra_hop" a segment is yielded with its last sample, as another always follows;
    with "full" it waits for one more sample, which tells that it is not the last.  No samples give
    no segments.
    """
    eager = config.padding == "extra_hop"
    index, filled = 0, 0
    buffer = np.empty(config.samples, np.float32)
    for block in blocks:
        rest = block
        while len(rest) or (eager and filled == config.samples):
            if filled == config.samples:
                yield _segment(index, buffer, config, last=False)
                index, filled, buffer = index + 1, 0, np.empty_like(buffer)
            piece = rest[: config.samples - filled]
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
            rest = rest[len(piece) :]
    if index == 0 and filled == 0:
        return
    length = (filled // config.hop + 1) * config.hop if eager else config.samples
    buffer[filled:] = 0.0
    yield _segment(index, buffer[:length], config, last=True)


def _segment(
    index: int, samples: npt.NDArray[np.float32], config: SegmentConfig, *, last: bool
) -> Segment:
    return Segment(index, config.start(index), None if last else config.start(index + 1), samples)
