"""Reads PyTorch checkpoint files without PyTorch and without executing anything.

``torch.save`` writes a zip: ``<root>/data.pkl`` describes the objects, ``<root>/data/<key>`` holds
the raw little-endian values of each storage, uncompressed.  The description is read by
`inert_pickle`, where only ordered dicts, tensors, parameters and storages mean something.  Tensors
stay in the file until `TorchTensor.read`, through one memory map, so the optimiser moments that
make up two thirds of a training checkpoint are never touched.

Nothing the file declares is believed: a storage must have exactly the size of its zip entry, and a
view must lie inside its storage and may not be larger.  `zip_store` guards the container.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from mt3_export.checkpoints.inert_pickle import MAX_PICKLE_BYTES, Inert, read_pickle
from mt3_export.checkpoints.lookalikes import names_lookalike
from mt3_export.checkpoints.stored_arrays import MAX_RANK, brief, stored_dtype, to_float32
from mt3_export.checkpoints.zip_store import StoredZip
from mt3_export.weights import MAX_PARAMETERS, FloatArray
from mt3_runtime.errors import CheckpointError

#: The dtype of each typed storage that torch.save names.
_STORAGES = {
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.DoubleStorage": "float64",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}

_KEY = re.compile(r"[A-Za-z0-9_]{1,64}")


@dataclass(frozen=True)
class Storage:
    """One flat block of values in the archive: dtype name, entry key and declared length."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True, eq=False)
class TorchTensor:
    """A view into a storage; values are read by `read`.

    Attributes:
        archive: The open archive.
        storage: Where the values lie.
        offset: Index of the first value.
        shape: Length of each axis.
        stride: Step of each axis in values, never negative.
    """

    archive: TorchArchive
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> FloatArray:
        """Copy the values out as a contiguous float32 array.

        Raises:
            CheckpointError: The storage is missing, damaged, of another size or not of floats.
        """
        words = stored_dtype(self.storage.dtype, f"storage {self.storage.key}")
        with self.archive.storage_bytes(self.storage, words.itemsize) as raw:
            flat = np.frombuffer(raw, words)[self.offset :]
            view = np.lib.stride_tricks.as_strided(
                flat, self.shape, [words.itemsize * step for step in self.stride], writeable=False
            )
            # A copy, so that no array keeps the memory map alive.
            values = np.array(view, order="C", copy=True)
            del flat, view
        return to_float32(values, self.storage.dtype)


class TorchArchive:
    """An opened ``torch.save`` file; a context manager that closes the memory map.

    Args:
        path: The file.

    Attributes:
        content: The saved object as plain data: dicts, lists, `TorchTensor`, `Inert`, ...

    Raises:
        CheckpointError: The file is no torch zip archive, is damaged or is hostile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = StoredZip(path)
        try:
            self._root = self._find_root()
            self.content = self._unpickle()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def state_dict(self) -> dict[str, TorchTensor]:
        """Return the named tensors: the file's own map, or the one under ``state_dict``.

        A prefix ``model.`` that all keys share (Lightning) is removed.

        Raises:
            CheckpointError: There is no map of names to tensors.
        """
        found = self.content
        if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
            found = found["state_dict"]
        if not isinstance(found, dict) or not found:
            raise CheckpointError(
                f"{self.path} holds {_kind(found)}; expected a state dict, or a training "
                "checkpoint with one under 'state_dict'"
            )
        strays = [key for key, value in found.items() if not isinstance(value, TorchTensor)]
        names = [key for key in found if isinstance(key, str)]
        if strays or len(names) != len(found):
            key = strays[0] if strays else next(k for k in found if not isinstance(k, str))
            raise CheckpointError(
                f"{self.path} is no state dict: entry {brief(key)} is {_kind(found[key])}, "
                "expected a tensor"
            )
        prefixed = all(name.startswith("model.") for name in names)
        return {name.removeprefix("model.") if prefixed else name: found[name] for name in names}

    def storage_bytes(self, storage: Storage, item_size: int) -> memoryview:
        """Return the raw bytes of a storage as a view of the file, checked against its entry."""
        name = f"{self._root}data/{storage.key}"
        if self._zip.size(name) != storage.count * item_size:
            raise CheckpointError(
                f"{self.path}: storage {storage.key} declares {storage.count:,} values of "
                f"{storage.dtype}, its entry has {self._zip.size(name):,} bytes"
            )
        return self._zip.view(name)

    def _find_root(self) -> str:
        names = self._zip.names
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) == 1 and roots[0].count("/") == 1:
            if f"{roots[0]}constants.pkl" not in names:
                return roots[0]
            kind = "a TorchScript archive"
        else:
            kind = names_lookalike(names) or "a zip file of something else"
        raise CheckpointError(
            f"{self.path} is {kind}; expected a state dict or training checkpoint of torch.save"
        )

    def _unpickle(self) -> Any:
        order = f"{self._root}byteorder"
        if order in self._zip.names:
            with self._zip.view(order) as view:
                little = bytes(view[:8]).strip() == b"little"
            if not little:
                raise CheckpointError(
                    f"{self.path} was saved on a big-endian machine; save it again on another"
                )
        name = f"{self._root}data.pkl"
        if self._zip.size(name) > MAX_PICKLE_BYTES:
            raise CheckpointError(f"{self.path}: {name} is over {MAX_PICKLE_BYTES:,} bytes")
        with self._zip.view(name) as view:
            stream = bytes(view)
        return read_pickle(
            stream,
            {
                "collections.OrderedDict": _ordered_dict,
                "torch._utils._rebuild_tensor_v2": self._rebuild_tensor,
                "torch._utils._rebuild_parameter": lambda arguments: arguments[0],
            },
            persistent=_storage,
        )

    def _rebuild_tensor(self, arguments: tuple[Any, ...]) -> object:
        """``_rebuild_tensor_v2(storage, offset, size, stride, ...)`` as a bounded view."""
        storage, offset, shape, stride = arguments[:4]
        if isinstance(storage, Inert):
            return storage
        known = isinstance(storage, Storage) and isinstance(shape, tuple)
        if not known or not isinstance(stride, tuple) or not len(shape) == len(stride) <= MAX_RANK:
            raise CheckpointError(f"{self.path}: a tensor is described in an unknown way")
        sane = all(type(n) is int and 0 <= n <= MAX_PARAMETERS for n in (offset, *shape, *stride))
        count = math.prod(shape) if sane else -1
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True) if sane)
        # A view larger than its storage would repeat values: weights never do, bombs would.
        if not 0 <= count <= storage.count or (count > 0 and last >= storage.count):
            raise CheckpointError(f"{self.path}: a tensor view does not fit storage {storage.key}")
        return TorchTensor(self, storage, offset, shape, stride)


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """``OrderedDict()``; entries follow as separate instructions."""
    if arguments:
        raise CheckpointError("an ordered dict with arguments, as Python 2 wrote; save it again")
    return {}


def _storage(identity: object) -> object:
    """Resolve ``("storage", type, key, location, count)``; unknown types stay inert."""
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        raise CheckpointError("the pickle refers to something that is not a storage")
    _, kind, key, _, count = identity
    if not isinstance(kind, Inert):
        raise CheckpointError("the pickle refers to a storage without a type")
    if kind.name not in _STORAGES:
        return kind
    if not isinstance(key, str) or not _KEY.fullmatch(key) or type(count) is not int or count < 0:
        raise CheckpointError(f"the pickle refers to a storage {brief(key)} of {brief(count)}")
    return Storage(_STORAGES[kind.name], key, count)


def _kind(value: object) -> str:
    if isinstance(value, Inert):
        return f"a {value.name[:80]}"
    if isinstance(value, dict):
        return f"a map of {', '.join(map(brief, list(value)[:6])) or 'nothing'}"
    return "a tensor" if isinstance(value, TorchTensor) else f"a {type(value).__name__}"
