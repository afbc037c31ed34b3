"""Reads safetensors files: eight bytes of length, a JSON header, raw little-endian values.

Nothing the header declares is believed: every tensor must lie inside the file, have exactly the
bytes of its shape, and share none with another.  Values stay in the file until `read`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mt3_export.checkpoints.stored_arrays import brief, checked_shape, stored_dtype, to_float32
from mt3_export.weights import FloatArray
from mt3_runtime.errors import CheckpointError

#: Bytes of a header; that of the largest supported network has 40,000.
MAX_HEADER = 1 << 24

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True)
class SafeTensor:
    """Where a tensor lies in a file.

    Attributes:
        path: The file.
        dtype: As `mt3_export.checkpoints.stored_arrays` calls it.
        shape: Length of each axis.
        offset: First byte.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def read(self) -> FloatArray:
        """Copies the values out as float32; raises `CheckpointError` if the file has shrunk."""
        words, count = stored_dtype(self.dtype, str(self.path)), math.prod(self.shape)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            raw = file.read(count * words.itemsize)
        if len(raw) != count * words.itemsize:
            raise CheckpointError(f"{self.path} changed while it was read")
        return to_float32(np.frombuffer(raw, words).reshape(self.shape), self.dtype)


def read_safetensors(path: Path) -> dict[str, SafeTensor]:
    """The floating-point tensors of a file by name; others (buffers of counts) are left out.

    Raises:
        CheckpointError: It is no such file, is damaged, or contradicts itself.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
            raise CheckpointError(
                f"{path} is no safetensors file: a header of {length:,} bytes in {size:,}"
            )
        header = file.read(length)
    entries = _header(header, path)
    begin, end = 8 + length, size
    found, taken = {}, []
    for name, entry in entries.items():
        dtype, shape, first, last = _entry(entry, f"{path}: tensor {brief(name)}", end - begin)
        taken.append((first, last, name))
        if dtype in _DTYPES:
            stored = _DTYPES[dtype]
            checked_shape(shape, f"{path}: tensor {brief(name)}")
            if last - first != math.prod(shape) * stored_dtype(stored, name).itemsize:
                raise CheckpointError(
                    f"{path}: tensor {brief(name)} of shape {brief(shape)} has {last - first} bytes"
                )
            found[name] = SafeTensor(path, stored, shape, begin + first)
    taken.sort()
    for (_, last, one), (first, _, other) in pairwise(taken):
        if first < last:
            raise CheckpointError(f"{path}: tensors {brief(one)} and {brief(other)} overlap")
    return found


def _header(data: bytes, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no safetensors file ({error!s:.80})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is no safetensors file: its header is no object")
    header.pop("__metadata__", None)
    return header


def _entry(entry: object, where: str, room: int) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, first and last byte of an entry that makes sense."""
    if isinstance(entry, dict):
        dtype, shape = entry.get("dtype"), entry.get("shape")
        offsets = entry.get("data_offsets")
        sizes = isinstance(shape, list) and all(type(n) is int for n in shape)
        if isinstance(offsets, list) and len(offsets) == 2 and sizes and isinstance(dtype, str):
            first, last = offsets
            if type(first) is int and type(last) is int and 0 <= first <= last <= room:
                return dtype, tuple(shape or ()), first, last
    raise CheckpointError(f"{where} does not lie in the file as its header says")
