"""Writing whole folders: all of a folder or nothing, and never over anything else.

Contract: a folder is filled under another name beside its place and moved there in one step.  What
was there before is moved aside, looked at once more, and deleted file by file only when the new one
is in place.  If that fails it is moved back; the only copy is never in a folder that is cleared
away.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mt3_runtime.errors import OutputError
from mt3_runtime.filesystem.ownership import delete

#: Returns the files of a folder that may be deleted, all of them; raises for any other folder.
Check = Callable[[Path], list[Path]]

_NEW, _OLD = "new", "old"


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """Yields an empty temporary folder on the file system of ``target``; clears it away.

    The folder above it is for this alone, too.

    Raises:
        OutputError: It, or what is done inside the block, cannot be written.
    """
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".mt3-", suffix=".part", dir=target.parent))
        folder = temporary / _NEW  # mkdtemp's own is for its owner only
        folder.mkdir()
        yield folder
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}. Choose another place, or free "
            "some space."
        ) from error
    finally:
        if temporary is not None:
            _clear(temporary)


def _clear(temporary: Path) -> None:
    """Deletes a temporary folder, but for what `move_folder` could not move back."""
    for path in temporary.iterdir():
        if path.name == _OLD:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
    with suppress(OSError):
        temporary.rmdir()


def move_folder(folder: Path, target: Path, *, replaceable: Check) -> None:
    """Moves a folder that `folder_beside` yielded to its place.

    Raises:
        OutputError: What is there is not replaceable, or cannot be moved.
        OSError: The folder cannot be moved; what was there is back in its place.
    """
    if not os.path.lexists(target):
        folder.rename(target)
        return
    aside = folder.with_name(_OLD)
    target.rename(aside)
    try:
        files = replaceable(aside)
        folder.rename(target)
    except BaseException as error:
        _put_back(aside, target, error)
        raise
    delete(files)
    aside.rmdir()


def _put_back(aside: Path, target: Path, why: BaseException) -> None:
    try:
        aside.rename(target)
    except OSError as error:
        raise OutputError(
            f"{target} could not be replaced ({why}), nor moved back ({error.strerror}). It is "
            f"whole, but is now {aside}; move it back yourself."
        ) from why
