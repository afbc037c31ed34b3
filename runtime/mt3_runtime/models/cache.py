"""Cache folder of checkpoints, bundles and engines."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from mt3_runtime.errors import OptionError

#: Folder for checkpoints and bundles, in place of the platform's cache folder.
CACHE_VARIABLE = "MT3_CACHE"

#: In the cache folder: bundles of taggers and genre classifiers.  Those that transcribe are in a
#: folder of their own, so that the only installed one is still the one that is meant.
CLASSIFIER_FOLDER = "classifiers"


def cache_dir() -> Path:
    """The folder for checkpoints and bundles; it need not exist yet.

    Raises:
        OptionError: The user has no home folder, as in some containers, and names no other one.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return expanded(chosen)
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        base = Path(local) if local else _home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = _home() / "Library" / "Caches"
    else:
        chosen = os.environ.get("XDG_CACHE_HOME")
        base = Path(chosen) if chosen else _home() / ".cache"
    return base / "mt3-runtime"


def contents(folder: Path) -> list[Path]:
    """What is in a folder of the cache, sorted; nothing where the folder is not there.

    Raises:
        OptionError: It cannot be looked into.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return []
        raise OptionError(
            f"The cache folder {folder} cannot be read ({error.strerror}). Set {CACHE_VARIABLE} to "
            "a folder of yours, or give the path of a bundle as the model, such as ./name."
        ) from error


def expanded(name: str) -> Path:
    """The path with the home folder in place of ``~``; as it is where there is none."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise OptionError(
            f"The home folder of this user is unknown, so models have no place; set "
            f"{CACHE_VARIABLE} to a folder for them, or give the path of a bundle as the model."
        ) from error
