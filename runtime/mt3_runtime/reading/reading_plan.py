"""What is made of a recording while it is read: blocks or segments, features, salience frames.

Contract: a `ReadingPlan` says what is wanted, `read_parts` makes it of blocks of samples, one
`ReadPart` at a time and in order.  It is one function for this process and for a reader process, so
both give the same bits.  Where a segment's features and its salience are made in one place, they
share their spectra (`SalienceSpectra.shares`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.log_mel import FeatureConfig, FeatureExtractor
from mt3_runtime.audio.segments import Segment, SegmentConfig, cut
from mt3_runtime.audio.sources import DEFAULT_RATE
from mt3_runtime.errors import OptionError
from mt3_runtime.leakage.salience_frames import SalienceFrames, SalienceSpectra

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ReadingPlan:
    """What is wanted of a recording.

    Attributes:
        rate: Samples per second that it is resampled to.
        segments: How it is cut; None gives blocks of about three seconds.
        features: What is made of a segment; None gives its samples.
        salience: Whether salience frames come with every part.

    Raises:
        OptionError: Features of blocks are wanted, or rates differ.
    """

    rate: int = DEFAULT_RATE
    segments: SegmentConfig | None = None
    features: FeatureConfig | None = None
    salience: bool = False

    def __post_init__(self) -> None:
        if self.features is not None and self.segments is None:
            raise OptionError("Features are made of segments; say how to cut them (segments=).")
        for part in (self.segments, self.features):
            if part is not None and part.sample_rate != self.rate:
                raise OptionError(
                    f"A plan for {self.rate} Hz has segments or features for {part.sample_rate} Hz;"
                    " expected one rate."
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "rate": self.rate,
            "segments": self.segments.to_dict() if self.segments else None,
            "features": self.features.to_dict() if self.features else None,
            "salience": self.salience,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ReadingPlan:
        """Inverse of :meth:`to_dict`."""
        segments, features = data["segments"], data["features"]
        return cls(
            data["rate"],
            SegmentConfig.from_dict(segments) if segments else None,
            FeatureConfig.from_dict(features) if features else None,
            data["salience"],
        )


@dataclass(frozen=True, eq=False)
class ReadPart:
    """A block or a segment of a recording.

    Attributes:
        index: 0, 1, 2, ...
        last: Whether it is the last segment; always False of blocks, whose end is not known.
        samples: How many of the recording are in it, padding not counted.
        data: float32 [n] samples, those of a segment with its padding; or [frames, bins] features.
        salience: The frames that are complete with it; None if they are not wanted.
    """

    index: int
    last: bool
    samples: int
    data: FloatArray
    salience: SalienceFrames | None


def read_parts(blocks: Iterable[FloatArray], plan: ReadingPlan) -> Iterator[ReadPart]:
    """Makes parts of a recording from its blocks.

    Args:
        blocks: Mono float32 [n] at the plan's rate.
        plan: What is wanted.
    """
    spectra = SalienceSpectra(plan.rate) if plan.salience else None
    if plan.segments is None:
        for index, block in enumerate(blocks):
            heard = spectra.hear(block) if spectra else None
            yield ReadPart(index, last=False, samples=len(block), data=block, salience=heard)
        return
    counted = _Counted(blocks)
    for segment in cut(counted, plan.segments):
        last = segment.next_start is None
        before = segment.index * plan.segments.samples
        count = counted.total - before if last else plan.segments.samples
        data, salience = _made_of(segment, count, plan, spectra)
        yield ReadPart(segment.index, last, count, data, salience)


def _made_of(
    segment: Segment, count: int, plan: ReadingPlan, spectra: SalienceSpectra | None
) -> tuple[FloatArray, SalienceFrames | None]:
    """Data and salience frames of a segment that has ``count`` samples without its padding."""
    samples, features, segments = segment.samples, plan.features, plan.segments
    if features is None or segments is None:
        return samples, spectra.hear(samples[:count]) if spectra else None
    extract = extractor(features)
    if spectra is None:
        return extract(samples), None
    if not spectra.shares(features, segments.samples):
        return extract(samples), spectra.hear(samples[:count])
    grid = spectra.grid
    data, known = extract.with_spectra(samples, every=grid.hop // features.hop, used=grid.used)
    return data, spectra.hear(samples[:count], known)


@lru_cache(maxsize=16)
def extractor(config: FeatureConfig) -> FeatureExtractor:
    """One for all recordings: its filters take longer than some seconds of audio."""
    return FeatureExtractor(config)


class _Counted:
    """Passes blocks on and counts their samples."""

    def __init__(self, blocks: Iterable[FloatArray]) -> None:
        self._blocks = blocks
        self.total = 0

    def __iter__(self) -> Iterator[FloatArray]:
        for block in self._blocks:
            self.total += len(block)
            yield block
