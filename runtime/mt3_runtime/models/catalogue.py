"""Catalogue of published models, and their checkpoints on this machine.

`catalogue.json` lists published checkpoints: where, how large, which digest, which licence as
stated.  A digest that nobody has verified is null, never guessed, and such a file is downloaded on
request only.  A file may have ``mirrors``, further addresses under the same digest; a model's
``mirrors`` are further base addresses of all its files.  Checkpoints are what exporters read, and
lie in the cache folder as published:

    <cache>/checkpoints/<name>/...

The runtime loads bundles (`mt3_runtime.models.installed`).  One model, `default`, comes with the
package as such (`mt3_runtime.models.shipped`).

Nothing here imports NumPy or ONNX Runtime: listing models must not cost a second.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from mt3_runtime.errors import CheckpointError, DownloadError, OptionError
from mt3_runtime.models.cache import cache_dir, contents
from mt3_runtime.models.download import MOST, fetch, is_right
from mt3_runtime.models.shipped import listing, shipped_models

#: Base URL that replaces the published ones: files come from <mirror>/<name>/<path>.
MIRROR_VARIABLE = "MT3_MIRROR"
#: Set to 1, nothing is downloaded.
OFFLINE_VARIABLE = "MT3_OFFLINE"


ModelKind = Literal["transcription", "tagger", "genre"]


@dataclass(frozen=True)
class ModelFile:
    """One file of a published checkpoint.

    Attributes:
        path: Where it goes below the checkpoint's folder, with forward slashes.
        url: Where it is published, pinned to a revision where the host has revisions.
        size: Length in bytes; None if unknown.
        sha256: Lower-case hex digest; None if nobody has verified one.
        mirrors: Further addresses of the same file, tried in this order if the first one fails.
    """

    path: str
    url: str
    size: int | None
    sha256: str | None
    mirrors: tuple[str, ...] = ()


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
        kind: ``transcription``, or ``tagger`` or ``genre`` for what hears without writing notes.
        trained_on: What a classifier was taught with, and what is doubtful about that; may be
            empty.
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
    kind: ModelKind = "transcription"
    trained_on: str = ""
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
        if isinstance(name, str) and name in (model.name, *model.aliases):
            return model
    known = ", ".join(model.name for model in list_models())
    raise OptionError(f"There is no model {name!r} in the catalogue; it lists {known}.")


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
            failed at every address, what arrived is not what the catalogue promises, or another
            file is in the way.
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
    folder = _checkpoint_folder(model)
    mirror = os.environ.get(MIRROR_VARIABLE)
    offline = os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0")
    done = unknown = 0
    for file in model.files:
        before = done

        def report(received: int, *, before: int = before) -> None:
            if progress is not None:
                progress(before + received, model.size)

        url = f"{mirror.rstrip('/')}/{model.name}/{quote(file.path)}" if mirror else file.url
        length = fetch(
            url,
            folder / file.path,
            size=file.size,
            sha256=file.sha256,
            mirrors=() if mirror else file.mirrors,
            most=max(0, MOST - unknown),  # of all files of unknown size together
            offline=offline,
            progress=report,
        )
        done += length
        unknown += length if file.size is None else 0
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
    folder = _checkpoint_folder(model)
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
                f"{path} is not the file the catalogue describes. Move it elsewhere or delete it, "
                f"and fetch it again with: {pull}"
            )
    return folder / model.files[0].path if len(model.files) == 1 else folder


def _checkpoint_folder(model: ModelInfo) -> Path:
    """Where a checkpoint is kept; it need not be there.

    Raises:
        OptionError: The cache folder is unknown or cannot be looked into.
    """
    folder = cache_dir() / "checkpoints" / model.name
    contents(folder)
    return folder


def _data(name: str) -> dict[str, Any]:
    text = resources.files("mt3_runtime").joinpath(name).read_text(encoding="utf-8")
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def _model(row: dict[str, Any]) -> ModelInfo:
    row = dict(row)
    base, bases = row.pop("base_url", ""), row.pop("mirrors", ())
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
            mirrors=tuple(
                file.get("mirrors") or (mirror + quote(file["path"]) for mirror in bases)
            ),
        )
        for file in files
    )
    return ModelInfo(**row)


def _check_not_shipped(model: ModelInfo) -> None:
    if model.shipped:
        raise OptionError(
            f"The model {model.name} comes with this package as a bundle: there is nothing to "
            f"fetch and nothing to export. Use it with --model {model.name}."
        )
