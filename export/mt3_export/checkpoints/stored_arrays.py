"""Checks for arrays of untrusted checkpoints: names, shapes, float dtypes.

The formats differ, the rules do not: a weight is a floating-point array of a believable shape, and
a value found in a file may be quoted in an error only in a bounded form.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_export.weights import MAX_PARAMETERS, FloatArray
from mt3_runtime.errors import CheckpointError

MAX_RANK = 8

#: Name of a floating-point dtype -> dtype of the stored words.  NumPy type strings (zarr) and the
#: names of flax and torch; integers, objects and strings are no weights.  bfloat16 is the upper
#: half of a float32 and unknown to NumPy, so it travels as uint16.
FLOAT_DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype("<u2"),
    "<f2": np.dtype("<f2"),
    "float16": np.dtype("<f2"),
    "<f4": np.dtype("<f4"),
    "float32": np.dtype("<f4"),
    "<f8": np.dtype("<f8"),
    "float64": np.dtype("<f8"),
}


def stored_dtype(name: object, where: str) -> np.dtype[Any]:
    """Look up the stored words of a dtype name; raises `CheckpointError` if it is no float."""
    if isinstance(name, str) and name in FLOAT_DTYPES:
        return FLOAT_DTYPES[name]
    raise CheckpointError(
        f"{where}: dtype {brief(name)} cannot hold weights; expected one of "
        f"{', '.join(FLOAT_DTYPES)}"
    )


def to_float32(words: npt.NDArray[Any], dtype: str) -> FloatArray:
    """Convert stored words of ``dtype`` to float32; float32 input is returned as it is.

    Float64 values beyond the range of float32 become infinite, which `weights.validate` reports.
    """
    if dtype == "bfloat16":
        return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore"):
        return words.astype(np.float32, copy=False)


def brief(value: object) -> str:
    """A short text for a value found in a file, safe to build however large or deep it is."""
    if isinstance(value, list | tuple) and len(value) <= MAX_RANK:
        return "[" + ", ".join(brief(v) if type(v) is int else "..." for v in value) + "]"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge integer"
    if value is None or isinstance(value, str | int | float):
        text = repr(value[:80] if isinstance(value, str) else value)
        return text if len(text) <= 80 else text[:77] + "..."
    return f"a {type(value).__name__}"


def checked_shape(value: object, where: str) -> tuple[int, ...]:
    """Return ``value`` as a shape, if it is a short sequence of positive sane integers."""
    if (
        isinstance(value, list | tuple)
        and len(value) <= MAX_RANK
        and all(type(size) is int and 0 < size <= MAX_PARAMETERS for size in value)
        and math.prod(value) <= MAX_PARAMETERS
    ):
        return tuple(value)
    raise CheckpointError(
        f"{where}: {brief(value)} is not the shape of a weight; expected at most {MAX_RANK} "
        f"positive sizes with a product up to {MAX_PARAMETERS:,}"
    )
