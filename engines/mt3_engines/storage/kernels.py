"""Runtime caches: kernels that TensorRT for RTX finished for one GPU, kept beside the engine.

An engine for several kinds of GPUs is finished on the user's GPU, kernel by kernel, when it is used
first.  What that made is kept as `NAME.GPU.kernels`, so that the next start is fast.  It is of use,
never needed: a file that is damaged, of another GPU or of another version is passed over and made
again, and one that cannot be written is done without.

A file is a line with our format and the SHA-256 of what follows: TensorRT sees only what it wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path

from mt3_engines.storage.keys import EngineTarget
from mt3_runtime.errors import OptionError, OutputError
from mt3_runtime.filesystem.atomic import make_folder, write_atomic
from mt3_runtime.filesystem.ownership import is_irregular, is_regular
from mt3_runtime.models.cache import cache_dir

log = logging.getLogger("mt3_engines")

KERNELS = ".kernels"
_FORMAT = b"mt3-runtime.kernels 1 "
#: Format, 64 hexadecimal digits, end of line.
_HEAD = len(_FORMAT) + 65
#: The largest file that is read; kernels of one engine are some MiB.
_MOST = 1 << 30


def kernels_path(engine: Path, place: EngineTarget) -> Path:
    """Where the kernels of an engine for one kind of GPU are kept: beside it, if one may write."""
    folder = engine.parent
    if not os.access(folder, os.W_OK):  # that of an image, say
        with contextlib.suppress(OptionError):  # there is no cache folder either
            folder = cache_dir() / "engines"
    gpu = hashlib.sha256(f"{place.gpu} {place.capability} {place.tensorrt}".encode()).hexdigest()
    return folder / f"{engine.stem}.{gpu[:8]}{KERNELS}"


def engine_stem(path: Path) -> str:
    """Name without ending of the engine that kernels belong to."""
    return path.name.removesuffix(KERNELS).rpartition(".")[0]


def is_kernels(path: Path) -> bool:
    """Whether a file is one of ours."""
    if not is_regular(path):
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(_FORMAT)) == _FORMAT
    except OSError:
        return False


def read_kernels(path: Path) -> bytes | None:
    """What was kept; None if there is nothing, or nothing that can be trusted."""
    if not is_kernels(path):
        return None
    try:
        if path.stat().st_size > _MOST:
            return None
        whole = path.read_bytes()
    except OSError as error:
        log.warning("%s cannot be read (%s); its kernels are made again", path, error.strerror)
        return None
    head, kernels = whole[:_HEAD], whole[_HEAD:]
    if head != _head(kernels):
        log.warning("%s is damaged; its kernels are made again", path)
        return None
    return kernels


def keep_kernels(path: Path, kernels: bytes) -> None:
    """Writes a file, whole or not at all; says so where that fails, as nothing depends on it."""
    if is_irregular(path) or (is_regular(path) and not is_kernels(path)):
        log.warning("%s is not of mt3-runtime, so kernels are not kept there", path)
        return
    try:
        make_folder(path.parent)
        write_atomic(path, _head(kernels) + kernels)
    except OutputError as error:
        log.warning("kernels are not kept, and the next start is as slow: %s", error)


def _head(kernels: bytes) -> bytes:
    return _FORMAT + hashlib.sha256(kernels).hexdigest().encode() + b"\n"
