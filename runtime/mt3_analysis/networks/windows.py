"""Cuts a stream of samples into the windows that a network hears, in bounded memory.

Contract: every sample is in a window, but for a tail too short to make a feature of; the last
window is as long as there is audio.  A window that only repeats the one before it is not made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mt3_runtime.bundles.classifier import WindowSpec

Floats = npt.NDArray[np.float32]

SILENT_PEAK = 10.0 ** (-70 / 20)
"""Full scale is 1.  A window without a sample beyond it is silent: networks guess at those, and
features of silence are far from anything they were taught."""


@dataclass(frozen=True, eq=False)
class Window:
    """A piece of a recording.

    Attributes:
        start: First sample.
        samples: Mono float32 [n].
    """

    start: int
    samples: Floats

    @property
    def silent(self) -> bool:
        """Whether nothing is to be heard in it."""
        return float(np.abs(self.samples).max(initial=0.0)) < SILENT_PEAK


def cut_windows(blocks: Iterable[Floats], spec: WindowSpec) -> Iterator[Window]:
    """Cuts blocks of samples into windows.

    Args:
        blocks: Mono float32 [n] each, of any length.
        spec: Length and distance of the windows.
    """
    held, start, heard = np.zeros(0, np.float32), 0, 0
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) >= spec.samples:
            yield Window(start, held[: spec.samples].copy())
            heard = start + spec.samples
            held, start = held[spec.hop :], start + spec.hop
    fresh = start + len(held) - heard  # samples that no window has had
    if len(held) >= spec.shortest and fresh > 0:
        yield Window(start, held)
