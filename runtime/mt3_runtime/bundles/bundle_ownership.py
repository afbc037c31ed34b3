"""Files that a bundle consists of: what may be deleted or replaced with it, and nothing else.

Contract: a folder or an archive is a bundle of ours if its manifest is one in every respect; its
files are the manifest, the graphs that the manifest names, and `EXTRAS`.  A folder that holds
anything else is refused by name, so that nobody's notes go with a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mt3_runtime.bundles.classifier import open_bundle
from mt3_runtime.bundles.container import Archive
from mt3_runtime.bundles.verified_graphs import MANIFEST
from mt3_runtime.errors import BundleError, OutputError
from mt3_runtime.filesystem.ownership import foreign_names, is_regular, listed

#: Files that no manifest names and `mt3 calibrate` writes, with the format each carries.
EXTRAS: Mapping[str, str] = {"ranges.json": "mt3-runtime.ranges"}

#: Bytes of such a file, at most.
_MOST = 1 << 23


def bundle_files(path: Path, *, unchanged: bool) -> list[Path]:
    """The files of a bundle; of an archive, the archive.

    Args:
        path: A folder, or a ``.mt3`` file; no link.
        unchanged: Refuse graphs that are not as the manifest describes them, too.

    Raises:
        OutputError: It is no bundle of ours, or holds anything else; the message names what.
    """
    if not path.is_dir() and not is_regular(path):
        raise OutputError(f"{path} is neither a folder nor a file.")
    holds = f"; it holds {listed(foreign_names(path, ()))}" if path.is_dir() else ""
    if path.is_dir() and not is_regular(path / MANIFEST):
        raise OutputError(f"{path} is no bundle{holds}.")
    try:
        bundle = open_bundle(path)
        graphs = bundle.manifest.graphs
        foreign, there = _contents(path, {MANIFEST, *(graph.file for graph in graphs)})
    except BundleError as error:
        raise OutputError(
            f"{path} is no bundle that this mt3-runtime could have written{holds}."
        ) from error
    if foreign:
        raise OutputError(
            f"{path} also holds {listed(foreign)}, which its {MANIFEST} does not name. Move that "
            "elsewhere first."
        )
    for graph in graphs if unchanged else ():
        try:
            if graph.file in there:
                bundle.verified(graph)
        except (BundleError, OSError) as error:
            raise OutputError(f"{graph.file} in {path} is not as it was exported.") from error
    return [path / name for name in sorted(there)] if path.is_dir() else [path]


def _contents(path: Path, names: set[str]) -> tuple[list[str], set[str]]:
    """What does not belong to a bundle, and what does and is there."""
    if not path.is_dir():
        archive = Archive(path)
        there = archive.names
        found = {name: archive.find(name) for name in EXTRAS if name in there}
        fitting = {name: extent for name, extent in found.items() if extent.size <= _MOST}
        names |= {name for name, extent in fitting.items() if _is_extra(name, extent.read())}
        outside = [] if archive.is_filled() else ["bytes outside its members"]
        return sorted(there - names) + outside, names & there
    for name in EXTRAS:
        extra = path / name
        if is_regular(extra) and extra.stat().st_size <= _MOST:
            names |= {name} if _is_extra(name, extra.read_bytes()) else set()
    return foreign_names(path, names), {name for name in names if is_regular(path / name)}


def _is_extra(name: str, data: bytes) -> bool:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("format") == EXTRAS[name]
