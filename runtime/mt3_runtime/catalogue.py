"""The models this project knows, and where they live on this machine.

`catalogue.json` lists published checkpoints: where, how large, which digest, which licence as
stated.  A digest that nobody has verified is null, never guessed, and such a file is downloaded on
request only.  Checkpoints are what exporters read; the runtime itself loads bundles.  Both live in
one cache folder:

    <cache>/checkpoints/<name>/...      as published, fetched by `download_model`
    <cache>/bundles/<name>[.mt3]        made by `mt3 export`, found by `find_model`

One model, `default`, comes with the package as a bundle (`mt3_runtime.shipped`).

Nothing here imports NumPy or ONNX Runtime: listing models must not cost a second.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mt3_runtime.download import fetch, is_right
from mt3_runtime.errors import BundleNotFoundError, CheckpointError, DownloadError, OptionError
from mt3_runtime.shipped import DEFAULT, listing, shipped_models

#: Folder for checkpoints and bundles, in place of the platform's cache folder.
CACHE_VARIABLE = "MT3_CACHE"
#: Model used where none is named: a name or a path.
MODEL_VARIABLE = "MT3_MODEL"
#: Base URL that replaces the published ones: files come from <mirror>/<name>/<path>.
MIRROR_VARIABLE = "MT3_MIRROR"
#: Set to 1, nothing is downloaded.
OFFLINE_VARIABLE = "MT3_OFFLINE"

#: A bundle that is one file carries this suffix, as a folder it carries this file.
BUNDLE_SUFFIX = ".mt3"
BUNDLE_FILE = "bundle.json"


@dataclass(frozen=True)
class ModelFile:
    """One file of a published checkpoint.

    Attributes:
        path: Where it goes below the checkpoint's folder, with forward slashes.
        url: Where it is published, pinned to a revision where the host has revisions.
        size: Length in bytes; None if unknown.
        sha256: Lower-case hex digest; None if nobody has verified one.
    """

    path: str
    url: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class ModelInfo:
    """One published checkpoint.

    Attributes:
        name: What users type.
        aliases: Other names for it.
        family: Checkpoints of one family share their reader and their graphs.
        summary: What it is, in one line.
        exporter: The exporter's name for this variant.
        supported: Whether this version can export it.
        licence: As its authors state it.
        licence_note: Doubts about that statement.
        source: The page or bucket of its authors.
        revision: What the addresses are pinned to; None where the host has no revisions, as in a
            bucket: then the digests alone pin it.
        digests: Where the digests come from.
        note: What else a user must know; may be empty.
        files: What to download; empty if the catalogue does not know the files.
        shipped: Whether it is part of the package, as a bundle: then the files are the bundle's,
            and there is nothing to download or to export.
    """

    name: str
    aliases: tuple[str, ...]
    family: str
    summary: str
    exporter: str
    supported: bool
    licence: str
    licence_note: str
    source: str
    revision: str | None
    digests: str
    note: str
    files: tuple[ModelFile, ...]
    shipped: bool = False

    @property
    def size(self) -> int | None:
        """Bytes of all files together; None if one of them is unknown."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if sizes and len(sizes) == len(self.files) else None

    @property
    def verified(self) -> bool:
        """Whether the digest of every file is known."""
        return bool(self.files) and all(file.sha256 for file in self.files)


@functools.cache
def list_models() -> tuple[ModelInfo, ...]:
    """Every model of the catalogue, installed or not; what is shipped only where it is there."""
    rows, there = _data("catalogue.json")["models"], shipped_models()
    return tuple(_model(row) for row in rows if not row.get("shipped") or row["name"] in there)


def get_model_info(name: str) -> ModelInfo:
    """The catalogue's entry for a name or an alias.

    Raises:
        OptionError: The catalogue does not know the name.
    """
    for model in list_models():
        if name == model.name or name in model.aliases:
            return model
    known = ", ".join(model.name for model in list_models())
    raise OptionError(f"There is no model {name!r} in the catalogue; it lists {known}.")


def cache_dir() -> Path:
    """The folder for checkpoints and bundles; it need not exist yet.

    Raises:
        OptionError: The user has no home folder, as in some containers, and names no other one.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return _expanded(chosen)
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        base = Path(local) if local else _home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = _home() / "Library" / "Caches"
    else:
        chosen = os.environ.get("XDG_CACHE_HOME")
        base = Path(chosen) if chosen else _home() / ".cache"
    return base / "mt3-runtime"


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
    aliases = {alias: model.name for model in list_models() for alias in model.aliases}
    return installed.get(name) or installed.get(aliases.get(name, ""))


def resolve_model(model: str | os.PathLike[str] | None = None) -> Path:
    """The bundle a user means.

    Args:
        model: A path, or the name of an installed bundle (an installed name wins over a file of
            that name here; write ``./name`` for the file).  None stands for ``MT3_MODEL``, else
            for the only installed bundle, else for `mt3_runtime.shipped`'s.

    Raises:
        BundleNotFoundError: There is no such bundle; the message says how to get one.
        OptionError: The model is given by name, and the cache folder cannot be looked into.
    """
    wanted = model if model is not None else os.environ.get(MODEL_VARIABLE) or None
    if wanted is None:
        return _only_installed()
    name = os.fspath(wanted)
    if _looks_like_path(name):  # needs no cache folder
        path = _expanded(name)
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


def download_model(
    name: str,
    *,
    allow_unverified: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Fetches a checkpoint into the cache folder; files that are there and right are kept.

    Args:
        name: Name or alias of the catalogue.
        allow_unverified: Also fetch files whose digest the catalogue does not know.
        progress: Called with (bytes done, bytes in all or None) of the whole model.

    Returns:
        The checkpoint's folder.

    Raises:
        OptionError: The catalogue does not know the name, or the model comes with the package.
        DownloadError: Files or digests are unknown, ``MT3_OFFLINE`` forbids it, the transfer
            failed, or what arrived is not what the catalogue promises.
    """
    model = get_model_info(name)
    _check_not_shipped(model)
    if not model.files:
        raise DownloadError(f"The files of {model.name} cannot be fetched from here. {model.note}")
    if not (model.verified or allow_unverified):
        raise DownloadError(
            f"The catalogue has no digest for some files of {model.name}, so nothing proves what "
            "arrives. Pass --allow-unverified (allow_unverified=True) if you trust the source."
        )
    folder = cache_dir() / "checkpoints" / model.name
    mirror = os.environ.get(MIRROR_VARIABLE)
    offline = os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0")
    done = 0
    for file in model.files:
        before = done

        def report(received: int, *, before: int = before) -> None:
            if progress is not None:
                progress(before + received, model.size)

        url = f"{mirror.rstrip('/')}/{model.name}/{quote(file.path)}" if mirror else file.url
        target = folder / file.path
        done += fetch(
            url,
            target,
            size=file.size,
            sha256=file.sha256,
            offline=offline,
            progress=report,
        )
    return folder


def pulled_checkpoint(name: str) -> Path:
    """The checkpoint that `download_model` fetched, verified again before anything reads it.

    Args:
        name: Name or alias of the catalogue.

    Returns:
        The file of a checkpoint that is one file, the folder of any other.

    Raises:
        OptionError: The catalogue does not know the name, or the model comes with the package.
        CheckpointError: It has not been fetched, or not wholly, or a file has changed since.
    """
    model = get_model_info(name)
    _check_not_shipped(model)
    folder = cache_dir() / "checkpoints" / model.name
    pull = f"mt3 models pull {model.name}"
    if not folder.is_dir():
        raise CheckpointError(
            f"The checkpoint of {model.name} is not on this machine. Fetch it with: {pull}"
        )
    for file in model.files:
        path = folder / file.path
        if not path.is_file():
            raise CheckpointError(f"{path} is missing. Fetch the rest with: {pull}")
        if not is_right(path, size=file.size, sha256=file.sha256):
            raise CheckpointError(
                f"{path} is not the file the catalogue describes. Fetch it again with: {pull}"
            )
    return folder / model.files[0].path if len(model.files) == 1 else folder


def remove_model(name: str) -> int:
    """Deletes the checkpoint and the bundle stored under a name; returns the bytes freed."""
    aliases = {alias: model.name for model in list_models() for alias in model.aliases}
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


def _data(name: str) -> dict[str, Any]:
    text = resources.files("mt3_runtime").joinpath(name).read_text(encoding="utf-8")
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def _model(row: dict[str, Any]) -> ModelInfo:
    row = dict(row)
    base = row.pop("base_url", "")
    listed, named = row.pop("files_from", None), row.pop("files_named_in", None)
    if row.get("shipped"):
        files = json.loads(listing(row["name"]).read_text(encoding="utf-8"))["files"]
    else:
        files = _data(f"data/{listed or named}")["files"] if listed or named else row.pop("files")
    if named:  # equal names, other content
        files = [{"path": file["path"], "size": None, "sha256": None} for file in files]
    row["aliases"] = tuple(row["aliases"])
    row["files"] = tuple(
        ModelFile(
            path=file["path"],
            url=file.get("url") or base + quote(file["path"]),
            size=file["size"],
            sha256=file["sha256"],
        )
        for file in files
    )
    return ModelInfo(**row)


def _is_bundle(path: Path) -> bool:
    return path.suffix == BUNDLE_SUFFIX if path.is_file() else (path / BUNDLE_FILE).is_file()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # no permission to look, a name that is too long
        raise BundleNotFoundError(f"{path} cannot be looked at: {error.strerror}.") from error


def _expanded(name: str) -> Path:
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


def _check_not_shipped(model: ModelInfo) -> None:
    if model.shipped:
        raise OptionError(
            f"The model {model.name} comes with this package as a bundle: there is nothing to "
            f"fetch and nothing to export. Use it with --model {model.name}."
        )


def _not_installed(name: str) -> str:
    try:
        model = get_model_info(name)
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
