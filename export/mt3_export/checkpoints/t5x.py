"""Reads T5X checkpoints (Magenta's format) without JAX, flax or TensorStore.

A T5X checkpoint is a folder with one MessagePack file, ``checkpoint``, and one zarr folder per
large tensor.  The file is the index: a nested map ``optimizer / target / <module> / <parameter>``
whose leaves are inline arrays (MessagePack extensions 1 array, 2 complex, 3 scalar, or chunk maps
for very large ones) or TensorStore specs that name a folder.  Which leaf lies where differs between
writers (the public ``mt3`` keeps its 42 norm scales inline and 147 matrices in folders), so this
reader always starts from the index and never from a directory listing.  Optimiser state is ignored.

Nothing is trusted: paths stay in the folder, the index may hold only so many containers, and
`zarr_array` bounds every chunk.  `open_t5x` reads the index only; tensors are read one by one.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from mt3_export.checkpoints.stored_arrays import brief, checked_shape, stored_dtype, to_float32
from mt3_export.checkpoints.zarr_array import ZarrArray, inside, open_zarr
from mt3_export.weights import FloatArray, StoredTensor
from mt3_runtime.errors import CheckpointError

INDEX_NAME = "checkpoint"

#: MT3 with everything inline, in fp32, has 184 MB; the public index has 0.9 MB.
MAX_INDEX_BYTES = 2**28

#: One inline value.  T5X writes larger arrays in chunks of this size, into folders.
MAX_VALUE_BYTES = 2**26

#: Parameters in the tree; the published models have 189.
MAX_TENSORS = 1024

#: Entries of all maps and lists together; the public index has about 3,000.
MAX_INDEX_ENTRIES = 200_000

#: Length of one list.  MessagePack lists are allocated before they are filled, and a thousand may
#: be open at once; real ones are shapes.
MAX_LIST = 4096

#: Module nesting; the public tree is four deep below ``target``.
MAX_DEPTH = 16

#: MessagePack extension types of flax's serialisation.
EXT_ARRAY, EXT_COMPLEX, EXT_SCALAR = 1, 2, 3

_CHUNKED = "__msgpack_chunked_array__"
_KEY = re.compile(r"[A-Za-z0-9_]{1,64}")
_STEP_FOLDER = re.compile(r"checkpoint_(\d+)")


@dataclass(frozen=True, eq=False)
class InlineTensor:
    """A tensor inside the index.

    Attributes:
        shape: Shape of the tensor.
        dtype: Name of the stored dtype.
        parts: Raw C-order bytes; more than one for flax's chunk maps.
    """

    shape: tuple[int, ...]
    dtype: str
    parts: tuple[bytes, ...]

    def read(self) -> FloatArray:
        """Decode to float32."""
        words = stored_dtype(self.dtype, INDEX_NAME)
        values = [to_float32(np.frombuffer(part, words), self.dtype) for part in self.parts]
        joined = values[0] if len(values) == 1 else np.concatenate(values)
        return joined.reshape(self.shape)


@dataclass(frozen=True)
class T5XCheckpoint:
    """An opened checkpoint: every parameter is known, none is read.

    Attributes:
        folder: The folder that holds the index.
        tensors: Stored tensors by dotted name, without the leading ``target.``.
        files: Every file the parameters come from, the index first.
    """

    folder: Path
    tensors: Mapping[str, StoredTensor]
    files: tuple[Path, ...]


def find_t5x(path: Path) -> Path | None:
    """Return the folder that holds the index: ``path``, or its only ``checkpoint_<step>``.

    Raises:
        CheckpointError: There are several step folders, so that a choice is needed.
    """
    if (path / INDEX_NAME).is_file():
        return path
    steps = [
        entry
        for entry in sorted(path.iterdir())
        if _STEP_FOLDER.fullmatch(entry.name) and (entry / INDEX_NAME).is_file()
    ]
    if len(steps) > 1:
        names = ", ".join(entry.name for entry in steps[:8])
        raise CheckpointError(f"{path} holds several checkpoints ({names}); name one of them")
    return steps[0] if steps else None


def open_t5x(folder: Path) -> T5XCheckpoint:
    """Read the index of a checkpoint folder and check where every parameter lies.

    Raises:
        CheckpointError: The index is unreadable, hostile or not of a T5X model.
    """
    tree = _read_index(inside(folder, INDEX_NAME))
    holder = tree.get("optimizer", tree)  # version 0 has no wrapper
    target = holder.get("target") if isinstance(holder, dict) else None
    if not isinstance(target, dict):
        raise CheckpointError(
            f"{folder / INDEX_NAME} has no parameters under optimizer/target; "
            f"found {', '.join(map(brief, list(tree)[:4])) or 'nothing'} at the top"
        )
    tensors: dict[str, StoredTensor] = {}
    _collect(target, "", tensors, folder.resolve(), 0)
    files = [folder.resolve() / INDEX_NAME]
    for tensor in tensors.values():
        files.extend(tensor.files if isinstance(tensor, ZarrArray) else ())
    return T5XCheckpoint(folder, tensors, tuple(files))


def _read_index(path: Path) -> dict[str, Any]:
    """Unpack the MessagePack index; extension payloads stay packed."""
    entries = 0

    def count(container: Any) -> Any:
        nonlocal entries
        entries += len(container) + 1
        if entries > MAX_INDEX_ENTRIES:
            raise CheckpointError(f"{path}: over {MAX_INDEX_ENTRIES:,} entries in the index")
        return container

    with path.open("rb") as file:
        size = path.stat().st_size
        if not 0 < size <= MAX_INDEX_BYTES:
            raise CheckpointError(f"{path}: {size:,} bytes is not the size of a checkpoint index")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            try:
                tree = msgpack.unpackb(
                    view,
                    object_hook=count,
                    list_hook=count,
                    max_map_len=MAX_INDEX_ENTRIES,
                    max_array_len=MAX_LIST,
                    max_bin_len=MAX_VALUE_BYTES,
                    max_ext_len=MAX_VALUE_BYTES,
                    max_str_len=2**16,
                )
            except CheckpointError:
                raise
            except (msgpack.exceptions.UnpackException, ValueError, RecursionError) as error:
                raise CheckpointError(
                    f"{path} is not a T5X index: expected one MessagePack map "
                    f"({type(error).__name__}: {error!s:.120})"
                ) from error
    if not isinstance(tree, dict):
        raise CheckpointError(
            f"{path} is not a T5X index: expected a MessagePack map, found {type(tree).__name__}"
        )
    return tree


def _collect(
    node: dict[Any, Any], prefix: str, tensors: dict[str, StoredTensor], folder: Path, depth: int
) -> None:
    """Walk the parameter tree; every leaf becomes a stored tensor."""
    if depth > MAX_DEPTH:
        raise CheckpointError(f"the parameter tree is over {MAX_DEPTH} levels deep at {prefix:.80}")
    for key, value in node.items():
        if len(tensors) >= MAX_TENSORS:
            raise CheckpointError(f"the parameter tree has over {MAX_TENSORS:,} parameters")
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise CheckpointError(
                f"the parameter tree has an entry {brief(key)} under {prefix or 'target'!r:.80}; "
                "expected a module or parameter name"
            )
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, msgpack.ExtType):
            tensors[name] = _inline(value, name)
        elif not isinstance(value, dict):
            raise CheckpointError(
                f"{name} is a {type(value).__name__} in the index; expected an array or a folder"
            )
        elif "driver" in value or "kvstore" in value:
            tensors[name] = _in_folder(value, name, folder)
        elif _CHUNKED in value:
            tensors[name] = _chunked(value, name)
        else:
            _collect(value, name, tensors, folder, depth + 1)


def _inline(leaf: msgpack.ExtType, name: str) -> InlineTensor:
    """Decode the header of an inline array: packed ``(shape, dtype name, raw bytes)``."""
    if leaf.code not in (EXT_ARRAY, EXT_SCALAR):
        what = "a complex number" if leaf.code == EXT_COMPLEX else f"MessagePack type {leaf.code}"
        raise CheckpointError(f"{name} is {what} in the index; expected an array of floats")
    try:
        shape, dtype, raw = msgpack.unpackb(
            leaf.data, max_array_len=16, max_map_len=0, max_ext_len=0, max_str_len=64
        )
    except (msgpack.exceptions.UnpackException, ValueError, TypeError) as error:
        raise CheckpointError(f"{name}: damaged inline array ({error!s:.120})") from error
    words = stored_dtype(dtype, name)
    sizes = checked_shape(shape, name)
    if not isinstance(raw, bytes) or len(raw) != words.itemsize * math.prod(sizes):
        stored = len(raw) if isinstance(raw, bytes) else 0
        raise CheckpointError(f"{name}: {stored:,} bytes do not fill {dtype} of shape {sizes}")
    return InlineTensor(sizes, dtype, (raw,))


def _chunked(leaf: dict[Any, Any], name: str) -> InlineTensor:
    """Join flax's chunk map: flat pieces of one array, keyed "0", "1", ..."""

    def listed(key: str) -> list[Any]:
        part = leaf.get(key)
        if not isinstance(part, dict) or set(part) != {str(i) for i in range(len(part))}:
            raise CheckpointError(f"{name}: damaged chunk map, {key!r} is not numbered 0, 1, ...")
        return [part[str(i)] for i in range(len(part))]

    chunks = listed("chunks")
    shape = checked_shape(listed("shape"), name)
    pieces = [_inline(chunk, name) for chunk in chunks if isinstance(chunk, msgpack.ExtType)]
    held = sum(math.prod(piece.shape) for piece in pieces)
    if len(pieces) != len(chunks) or held != math.prod(shape):
        raise CheckpointError(f"{name}: {held:,} values in chunks do not fill shape {shape}")
    if len({piece.dtype for piece in pieces}) != 1:
        raise CheckpointError(f"{name}: chunks of different dtypes")
    return InlineTensor(shape, pieces[0].dtype, tuple(piece.parts[0] for piece in pieces))


def _in_folder(spec: dict[Any, Any], name: str, folder: Path) -> ZarrArray:
    """Resolve a TensorStore spec to its array folder, and check that both agree."""
    store = spec.get("kvstore")
    store = store if isinstance(store, dict) else {}
    driver, location = store.get("driver"), spec.get("path", store.get("path"))
    if spec.get("driver") != "zarr" or driver not in ("file", "gfile", "gcs"):
        raise CheckpointError(
            f"{name}: stored through {brief(spec.get('driver'))} on {brief(driver)}; "
            "expected zarr on file, gfile or gcs"
        )
    if not isinstance(location, str):
        raise CheckpointError(f"{name}: its entry in the index names no folder")
    array = open_zarr(inside(folder, location.removesuffix("/")))
    metadata = spec.get("metadata")
    for key in ("shape", "chunks"):
        stated = metadata.get(key) if isinstance(metadata, dict) else None
        if stated is not None and stated != list(getattr(array, key)):
            raise CheckpointError(
                f"{name}: the index says {key} {brief(stated)}, "
                f"the folder {list(getattr(array, key))}"
            )
    transform = spec.get("transform")
    if transform is not None and not _whole(transform, array.shape):
        raise CheckpointError(f"{name}: the index selects a part of its folder; refused")
    return array


def _whole(transform: object, shape: tuple[int, ...]) -> bool:
    """Whether a TensorStore index transform is the identity over the whole array."""
    if not isinstance(transform, dict) or "output" in transform:
        return False
    ends = transform.get("input_exclusive_max")
    starts = transform.get("input_inclusive_min", [0] * len(shape))
    if not isinstance(ends, list):
        return False
    # An implicit (resizable) bound is written as a list of one.
    bounds = [end[0] if isinstance(end, list) and len(end) == 1 else end for end in ends]
    return starts == [0] * len(shape) and bounds == list(shape)
