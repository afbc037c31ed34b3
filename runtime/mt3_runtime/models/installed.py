"""Finds bundles by name: `<cache>/bundles/<name>[.mt3]`, or in the package.

Contract: `resolve_model` is what every command and `load_model` go through, so a name means the
same bundle everywhere.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mt3_runtime.errors import BundleNotFoundError, OptionError
from mt3_runtime.models import catalogue
from mt3_runtime.models.cache import CACHE_VARIABLE, cache_dir, expanded
from mt3_runtime.models.shipped import DEFAULT, shipped_models

#: Model used where none is named: a name or a path.
MODEL_VARIABLE = "MT3_MODEL"

#: A bundle that is one file carries this suffix, as a folder it carries this file.
BUNDLE_SUFFIX = ".mt3"
BUNDLE_FILE = "bundle.json"


def installed_models() -> dict[str, Path]:
    """The bundles in the cache folder, by name.

    Raises:
        OptionError: The cache folder cannot be looked into.
    """
    folder = cache_dir() / "bundles"
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        found = [path for path in paths if _is_bundle(path)]
    except OSError as error:
        raise OptionError(
            f"The cache folder {folder} cannot be read ({error.strerror}). Set {CACHE_VARIABLE} to "
            "a folder of yours, or give the path of a bundle as the model, such as ./name."
        ) from error
    return {path.name.removesuffix(BUNDLE_SUFFIX): path for path in found}


def find_model(name: str) -> Path | None:
    """The installed or shipped bundle of this name or alias, or None."""
    installed = shipped_models() | installed_models()
    aliases = {alias: model.name for model in catalogue.list_models() for alias in model.aliases}
    return installed.get(name) or installed.get(aliases.get(name, ""))


def resolve_model(model: str | os.PathLike[str] | None = None) -> Path:
    """The bundle a user means.

    Args:
        model: A path, or the name of an installed bundle (an installed name wins over a file of
            that name here; write ``./name`` for the file).  None stands for ``MT3_MODEL``, else
            for the only installed bundle, else for `mt3_runtime.models.shipped`'s.

    Raises:
        BundleNotFoundError: There is no such bundle; the message says how to get one.
        OptionError: The model is given by name, and the cache folder cannot be looked into.
    """
    wanted = model if model is not None else os.environ.get(MODEL_VARIABLE) or None
    if wanted is None:
        return _only_installed()
    name = os.fspath(wanted)
    if _looks_like_path(name):  # needs no cache folder
        path = expanded(name)
        if not _exists(path):
            raise BundleNotFoundError(
                f"There is no bundle at {name}. Make one with: mt3 export CHECKPOINT -o {name}"
            )
        return path.absolute()  # "name" alone, as Path leaves of "./name", would be a name again
    found = find_model(name)
    if found is None and name and _exists(Path(name)):
        return Path(name).absolute()
    if found is None:
        raise BundleNotFoundError(_not_installed(name))
    return found


def remove_model(name: str) -> int:
    """Deletes the checkpoint and the bundle stored under a name; returns the bytes freed."""
    aliases = {alias: model.name for model in catalogue.list_models() for alias in model.aliases}
    names = (name, aliases.get(name, name))
    freed = 0
    for kind in ("checkpoints", "bundles"):
        folder = cache_dir() / kind
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.removesuffix(BUNDLE_SUFFIX) in names:
                freed += _remove(path)
    return freed


def _remove(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        freed = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        shutil.rmtree(path)
        return freed
    freed = path.lstat().st_size
    path.unlink()
    return freed


def _is_bundle(path: Path) -> bool:
    return path.suffix == BUNDLE_SUFFIX if path.is_file() else (path / BUNDLE_FILE).is_file()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # no permission to look, a name that is too long
        raise BundleNotFoundError(f"{path} cannot be looked at: {error.strerror}.") from error


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "~")) or os.sep in name or "/" in name or name.endswith(BUNDLE_SUFFIX)
    )


def _only_installed() -> Path:
    installed = installed_models()
    if len(installed) == 1:
        return next(iter(installed.values()))
    if installed:
        raise BundleNotFoundError(
            f"Several models are installed ({', '.join(installed)}). Choose one with --model NAME "
            f"or with the environment variable {MODEL_VARIABLE}."
        )
    if DEFAULT in shipped_models():
        return shipped_models()[DEFAULT]
    raise BundleNotFoundError(
        f"No model is named and none is installed in {cache_dir() / 'bundles'}. Make one with "
        "`mt3 models pull magenta_mt3` and `mt3 export magenta_mt3`, or name a bundle with "
        f"--model PATH or the environment variable {MODEL_VARIABLE}."
    )


def _not_installed(name: str) -> str:
    try:
        model = catalogue.get_model_info(name)
    except OptionError:
        installed = ", ".join(installed_models()) or "none"
        return (
            f"There is no bundle and no installed model {name!r} (installed: {installed}). "
            "`mt3 models` lists what is known."
        )
    if not model.supported:
        return f"The model {model.name} is known, but this version cannot export it yet."
    return (
        f"The model {model.name} is not installed. Make it with `mt3 models pull {model.name}` "
        f"and `mt3 export {model.name}`."
    )
