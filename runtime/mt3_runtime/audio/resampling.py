"""Resample mono blocks with soxr, block by block and to the bits of a one-shot call.

Contract: :func:`resampler` returns the step from one rate to another.  The quality is soxr "HQ",
the default of librosa since 0.10.  As librosa does, the result is extended by one zero sample where
soxr rounds its length down, so that n samples become ceil(n * target / source).  soxr is imported
where two rates differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mt3_runtime.imports.extras import require

Samples: TypeAlias = npt.NDArray[np.float32]


def resampler(source: float, target: int) -> Callable[[Iterator[Samples]], Iterator[Samples]]:
    """Return the step from ``source`` to ``target`` Hz, from blocks [n] to blocks [m]."""
    if source == target:
        return lambda blocks: blocks
    soxr = require("soxr", f"Resampling {source:g} Hz to {target} Hz", "cpu")

    def resample(blocks: Iterator[Samples]) -> Iterator[Samples]:
        stream = soxr.ResampleStream(source, target, 1, "float32", quality="HQ")
        taken = given = 0
        for block in blocks:
            out = stream.resample_chunk(block)
            taken, given = taken + len(block), given + len(out)
            if len(out):
                yield out
        rest = stream.resample_chunk(np.empty(0, np.float32), last=True)
        wanted = math.ceil(taken * (float(target) / source))  # librosa's rounding, float64
        rest = np.pad(rest, (0, max(0, wanted - given - len(rest))))
        if len(rest):
            yield rest

    return resample
