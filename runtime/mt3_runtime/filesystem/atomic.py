"""Writes files atomically, so that nobody ever sees half a file.

`write_atomic` writes a temporary file next to the target, flushes it to the disk and renames it.
Whatever goes wrong (full disk, interruption, two programs with one target), the target is either
the old file or a whole new one, and nothing is left beside it.  `check_output` finds foreseeable
obstacles before any work is done.  ``-`` means standard output.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from mt3_runtime.errors import OutputError

STDOUT = "-"
"""The path that means standard output."""

PathLike = str | os.PathLike[str]

#: Names of temporary files; they begin with the number of the process that writes them.
_TEMPORARY = re.compile(r"\.mt3-([0-9]+)-[0-9a-f]{16}\.part")


def check_output(
    path: PathLike, inputs: Iterable[object] = (), *, bundles: Iterable[PathLike] = ()
) -> None:
    """Check that a result can be written, before the work that makes it.

    Args:
        path: Where the result will go; ``-`` always passes.
        inputs: What will be read; paths among them must not be the output itself, under any name.
        bundles: Models, which must not be the output, nor hold it.

    Raises:
        OutputError: The output is a folder, one of the inputs or inside a bundle, its folder does
            not exist, or there is no permission to write.
    """
    if str(path) == STDOUT:
        return
    target = real_path(path)
    if is_folder(target):
        raise OutputError(f"cannot write {path}: it is a folder; name a file, such as song.mid")
    for item in inputs:
        if isinstance(item, str | os.PathLike) and _same_file(target, os.fspath(item)):
            raise OutputError(f"cannot write {path}: it is also an input; choose another name")
    for bundle in bundles:
        if target.is_relative_to(real_path(bundle)):
            raise OutputError(f"cannot write {path}: that is a part of the model {bundle}")
    if not _is_there(target.parent, path) or not is_folder(target.parent):
        raise OutputError(
            f"cannot write {path}: there is no folder {target.parent}; create it first"
        )
    # An existing file is replaced, for which its folder must be writable; a file that its owner
    # made read-only is respected all the same.  Devices and pipes are written in place.
    if _is_there(target, path) and not os.access(target, os.W_OK):
        raise OutputError(f"cannot write {path}: the file is read-only")
    if not _is_special(target) and not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: no permission to write in {target.parent}")


def is_folder(path: PathLike) -> bool:
    """Whether there is a folder; `Path.is_dir` raises for names that are too long or forbidden."""
    return os.path.isdir(path)  # noqa: PTH112


def exists(path: PathLike) -> bool:
    """Whether there is anything; `Path.exists` raises for names that are too long or forbidden."""
    return os.path.exists(path)  # noqa: PTH110


def make_folder(path: PathLike) -> None:
    """Makes a folder and those above it, unless they are there.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path}: {_reason(error)}") from error


def real_path(path: PathLike) -> Path:
    """The file behind all links; it need not exist.

    Raises:
        OutputError: There can be no such file (the current folder is gone, a NUL in the name).
    """
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {os.fspath(path)!r}: {_reason(error)}") from error


def write_output(path: PathLike, data: bytes) -> None:
    """Write to a file (`write_atomic`), or to standard output (`write_stream`) if path is ``-``.

    Raises:
        OutputError: It did not work; see there.
    """
    if str(path) != STDOUT:
        write_atomic(path, data)
        return
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:
        raise OutputError("cannot write binary data: this program has no standard output")
    sys.stdout.flush()  # text that is already on its way goes first
    write_stream(stream, data)


def write_stream(stream: BinaryIO | int, data: bytes) -> None:
    """Write all data to an open binary stream or file descriptor, and flush; leaves it open.

    Raises:
        OutputError: The other end was closed, or the disk is full.
    """
    try:
        if isinstance(stream, int):
            _write_all(partial(os.write, stream), data)
        else:
            _write_all(stream.write, data)
            stream.flush()
    except BrokenPipeError as error:
        raise OutputError("cannot write: the reader closed the pipe") from error
    except (OSError, ValueError) as error:  # ValueError: the stream is closed
        raise OutputError(f"cannot write to the stream: {_reason(error)}") from error


def write_atomic(path: PathLike, data: bytes) -> None:
    """Create or replace a file in one step.

    A link is followed and stays a link.  A new file gets the usual permissions (the umask decides),
    a replaced one keeps its own.  Devices and pipes are written in place.

    Raises:
        OutputError: It did not work; an existing file is unharmed and nothing is left behind.
    """
    write_atomic_parts(path, (data,))


def write_atomic_parts(path: PathLike, parts: Iterable[bytes]) -> None:
    """Create or replace a file in one step, as `write_atomic` does, from parts made on the way.

    They never lie in memory together; what their iterator raises is raised here.

    Raises:
        OutputError: It did not work; an existing file is unharmed and nothing is left behind.
    """
    target = real_path(path)
    try:
        if _is_special(path):
            with Path(path).open("wb", buffering=0) as device:
                for data in parts:
                    _write_all(device.write, data)
        elif is_folder(target):
            raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file, such as song.mid")
        else:
            _replace(target, parts)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {_reason(error)}") from error


def write_new(path: PathLike, data: bytes) -> None:
    """Create a file; one that is there stays, and must have the same content.

    Raises:
        OutputError: Another file is there, or it did not work.
    """
    target = Path(path)
    if not os.path.lexists(target):
        write_atomic(target, data)
        return
    try:
        same = target.is_file() and target.read_bytes() == data
    except OSError as error:
        raise OutputError(f"cannot read {path}: {_reason(error)}") from error
    if not same:
        raise OutputError(f"{path} is there, and is not what would be written; it is not replaced.")


def remove_temporary(folder: PathLike, processes: Collection[int]) -> None:
    """Removes the temporary files of processes that were killed while they wrote.

    Args:
        folder: In which they wrote.
        processes: Their numbers; all of them must be dead.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            found = _TEMPORARY.fullmatch(entry.name)
            if found and int(found[1]) in processes and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    Path(entry.path).unlink()


def _replace(target: Path, parts: Iterable[bytes]) -> None:
    # Random, so unique to this process and thread; short and independent of the target's name,
    # which may be as long as the file system allows.
    temporary = target.with_name(f".mt3-{os.getpid()}-{secrets.token_hex(8)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        try:
            for data in parts:
                _write_all(partial(os.write, descriptor), data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with suppress(OSError):  # there is no old file, or the file system has no permissions
            temporary.chmod(target.stat().st_mode & 0o777)
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _write_all(write: Callable[[memoryview], int | None], data: bytes) -> None:
    """Call ``write`` until everything is written; unbuffered targets may take less at a time."""
    rest = memoryview(data)
    while rest:
        written = write(rest)
        if written is None:
            raise BlockingIOError(errno.EAGAIN, "the stream is non-blocking and full")
        rest = rest[written:]


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last over a power cut, where the system can do that."""
    with suppress(OSError):  # Windows and some network folders cannot; the file is whole anyway
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_there(place: Path, path: PathLike) -> bool:
    """Whether something is at ``place``; a reason not even to look is one not to write ``path``."""
    try:
        place.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # no permission to look, a name that is too long
        raise OutputError(f"cannot write {path}: {_reason(error)}") from error
    return True


def _is_special(path: PathLike) -> bool:
    """Whether this is a device, pipe or socket: something that must not be replaced by a file."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _same_file(target: Path, other: str) -> bool:
    try:
        return target.samefile(other)
    except OSError:
        return str(target) == os.path.realpath(other)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
