"""Writes a quantised model as a bundle: stamped, checked, described."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mt3_export.bundle_writer import save_graph
from mt3_quantisation.forms.recipes import Graphs
from mt3_quantisation.forms.step_graphs import stamp
from mt3_runtime.bundles.bundle import EXPORT_ID_KEY, MANIFEST
from mt3_runtime.bundles.manifest import Manifest
from mt3_runtime.bundles.precision import Precision


def write_graphs(
    source: Manifest, graphs: Graphs, folder: Path, *, precision: Precision
) -> Manifest:
    """Writes graphs and their manifest into an empty folder.

    The export id follows from that of the source and from the graphs, so they cannot be mixed with
    those of any other bundle.

    Args:
        source: Manifest of the bundle that the graphs were made from.
        graphs: By role and profile.
        folder: Where to.
        precision: What numbers are in the graphs.

    Returns:
        What was written.
    """
    identity = hashlib.sha256(f"{source.export_id}\n{precision}\n".encode())
    for key, model in sorted(graphs.items(), key=lambda item: item[0]):
        identity.update(f"{key}\n".encode() + model.SerializeToString(deterministic=True))
    export_id = identity.hexdigest()[:32]
    files = []
    forms = {(graph.role, graph.profile): graph for graph in source.graphs}
    for (role, profile), model in graphs.items():
        stamp(model, EXPORT_ID_KEY, export_id)
        form = forms[role, profile]
        files.append(
            save_graph(
                model,
                folder,
                role=role,
                profile=profile,
                cache=form.cache,
                # What reads int8 caches reads keys and values alike (docs/graph-contract.md).
                cross_key_transposed=form.cross_key_transposed and precision.cross_cache != "int8",
            )
        )
    manifest = replace(source, export_id=export_id, precision=precision, graphs=tuple(files))
    (folder / MANIFEST).write_bytes(manifest.to_json())
    return manifest


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes further files of a bundle."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
