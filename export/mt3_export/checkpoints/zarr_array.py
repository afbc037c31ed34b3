"""Reads a zarr v2 array folder of a T5X checkpoint with json and zlib alone.

T5X stores a large tensor as a folder: ``.zarray`` (JSON) says shape, chunk shape, dtype and
compressor; chunk ``i.j`` holds the C-order bytes of one block, at full chunk size even at the
edges.  The folder comes from a download, so nothing in it is trusted: a codec, filter or order this
reader does not know is refused, chunks may not leave the folder through links, no more bytes are
inflated than the chunk declares, and a missing chunk is an error, never zeros.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mt3_export.checkpoints.stored_arrays import (
    FLOAT_DTYPES,
    brief,
    checked_shape,
    stored_dtype,
    to_float32,
)
from mt3_export.weights import FloatArray
from mt3_runtime.errors import CheckpointError

MAX_CHUNKS = 2**16
MAX_METADATA_BYTES = 2**16

#: What a file name in a checkpoint may consist of; no slashes, no control characters.
_PLAIN = re.compile(r"[A-Za-z0-9_.=+-]+")

#: zlib window bits that accept a zlib or a gzip header.
_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS

#: Deflate never grows data by more than 5 bytes per 16 KiB block; headers and trailers on top.
_DEFLATE_SLACK = 1024


@dataclass(frozen=True)
class ZarrArray:
    """An array folder whose metadata has been checked; values are read by `read`.

    Attributes:
        folder: The array folder, links resolved.
        shape: Shape of the array.
        chunks: Shape of one chunk, same rank.
        dtype: Name of the stored dtype, a key of `FLOAT_DTYPES`.
        compressed: Whether chunks are gzip or zlib streams; else they are raw.
    """

    folder: Path
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    compressed: bool

    @property
    def files(self) -> tuple[Path, ...]:
        """The metadata file and every chunk file."""
        return (self.folder / ".zarray", *(self._chunk_path(index) for index in self._grid()))

    def read(self) -> FloatArray:
        """Read all chunks into one float32 array.

        Raises:
            CheckpointError: A chunk is missing, damaged, too long or a link out of the folder.
        """
        missing = [path.name for path in self.files if not path.is_file()]
        if missing:
            raise CheckpointError(
                f"{self.folder.name}: chunk {missing[0]} is missing"
                + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
                + "; the copy of the checkpoint is incomplete, fetch it again"
            )
        words = FLOAT_DTYPES[self.dtype]
        limit = words.itemsize * math.prod(self.chunks)
        result = np.empty(self.shape, np.float32)
        for index in self._grid():
            raw = np.frombuffer(self._chunk_bytes(index, limit), words)
            block = to_float32(raw, self.dtype).reshape(self.chunks)
            target = tuple(
                slice(i * step, min((i + 1) * step, size))
                for i, step, size in zip(index, self.chunks, self.shape, strict=True)
            )
            result[target] = block[tuple(slice(0, part.stop - part.start) for part in target)]
        return result

    def _grid(self) -> Iterator[tuple[int, ...]]:
        steps = zip(self.shape, self.chunks, strict=True)
        return itertools.product(*(range(math.ceil(size / step)) for size, step in steps))

    def _chunk_path(self, index: tuple[int, ...]) -> Path:
        return self.folder / (".".join(map(str, index)) or "0")

    def _chunk_bytes(self, index: tuple[int, ...], limit: int) -> bytes:
        path = self._chunk_path(index)
        where = f"{self.folder.name}/{path.name}"
        inside(self.folder, path.name)
        stored = path.stat().st_size
        if stored > limit + limit // 1000 + _DEFLATE_SLACK:
            raise CheckpointError(f"{where}: {stored:,} bytes stored for a {limit:,} byte chunk")
        raw = path.read_bytes()
        if self.compressed:
            inflater = zlib.decompressobj(_ZLIB_OR_GZIP)
            try:
                raw = inflater.decompress(raw, limit + 1)
            except zlib.error as error:
                raise CheckpointError(f"{where}: not a readable gzip stream ({error})") from error
            if len(raw) <= limit and (not inflater.eof or inflater.unused_data):
                raise CheckpointError(f"{where}: the gzip stream is cut off, or data follows it")
        if len(raw) != limit:
            size = f"more than {limit:,}" if len(raw) > limit else f"{len(raw):,}"
            raise CheckpointError(f"{where}: {size} bytes, expected exactly {limit:,}")
        return raw


def open_zarr(folder: Path) -> ZarrArray:
    """Read and check ``.zarray`` of an array folder.

    Raises:
        CheckpointError: The metadata is missing, unreadable or asks for something unknown.
    """
    where = f"{folder.name}/.zarray"
    path = inside(folder, ".zarray")
    if not path.is_file():
        raise CheckpointError(
            f"{where} is missing; the copy of the checkpoint is incomplete, fetch it again"
        )
    if path.stat().st_size > MAX_METADATA_BYTES:
        raise CheckpointError(f"{where}: over {MAX_METADATA_BYTES:,} bytes for one array")
    try:
        meta = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not readable as JSON ({error!s:.80})") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {type(meta).__name__}")
    _expect(meta, "zarr_format", (2,), where)
    _expect(meta, "order", ("C",), where)
    _expect(meta, "filters", (None, []), where)
    _expect(meta, "dimension_separator", (None, "."), where)
    compressor = meta.get("compressor")
    codec = compressor.get("id") if isinstance(compressor, dict) else compressor
    if codec not in (None, "gzip", "zlib"):
        raise CheckpointError(f"{where}: compressor {brief(codec)}; expected gzip, zlib or none")
    shape = checked_shape(meta.get("shape"), where)
    chunks = checked_shape(meta.get("chunks"), where)
    if len(shape) != len(chunks) or any(c > s for c, s in zip(chunks, shape, strict=True)):
        raise CheckpointError(f"{where}: chunks of {chunks} do not tile an array of {shape}")
    steps = zip(shape, chunks, strict=True)
    if math.prod(math.ceil(size / step) for size, step in steps) > MAX_CHUNKS:
        raise CheckpointError(f"{where}: chunks {chunks} cut {shape} into over {MAX_CHUNKS} files")
    dtype = meta.get("dtype")
    stored_dtype(dtype, where)
    return ZarrArray(folder, shape, chunks, str(dtype), compressed=codec is not None)


def inside(folder: Path, relative: str) -> Path:
    """Return ``folder / relative`` with links resolved, if it stays inside the folder.

    Raises:
        CheckpointError: The path is absolute, climbs out or is led out by a link.
    """
    refusal = CheckpointError(
        f"{brief(relative)} leads out of the checkpoint folder {folder.name}, or is no file name; "
        "refused"
    )
    parts = relative.split("/")
    if not all(0 < len(part) < 256 and part != ".." and _PLAIN.fullmatch(part) for part in parts):
        raise refusal
    try:
        resolved = folder.joinpath(*parts).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links, up to Python 3.12
        raise refusal from error
    if not resolved.is_relative_to(folder.resolve()):
        raise refusal
    return resolved


def _expect(meta: dict[str, Any], key: str, allowed: tuple[object, ...], where: str) -> None:
    if meta.get(key) not in allowed:
        raise CheckpointError(f"{where}: {key} is {brief(meta.get(key))}, expected {allowed[0]!r}")
