"""Opens bundles and checks the digests of their files: all one model needs, in a folder or a zip.

``docs/bundle-format.md`` specifies it byte by byte.  In short: ``bundle.json`` describes features,
segments, vocabulary, decoding and note rules as data, and lists the graph files with their SHA-256.
Loading never executes anything from a bundle, and trusts nothing in it: file names are plain names,
digests are checked before a byte reaches a parser, graphs that refer to other files are refused,
and every graph carries the export id of the manifest, so that files of two exports cannot be mixed.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from mt3_runtime.bundles.manifest import DecodingSpec, GraphFile, Manifest, ModelSpec, Role
from mt3_runtime.bundles.onnx_scan import OnnxSummary
from mt3_runtime.bundles.verified_graphs import (
    EXPORT_ID_KEY,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    GraphFiles,
    StoredGraph,
)
from mt3_runtime.errors import BundleError

__all__ = [
    "EXPORT_ID_KEY",
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "Bundle",
    "DecodingSpec",
    "GraphFile",
    "Manifest",
    "ModelSpec",
    "Role",
]

MAX_TOKENS_KEY = "mt3.max_tokens"


class Bundle(GraphFiles):
    """An opened bundle: its manifest, and its graph files once verified.

    Attributes:
        path: Folder or zip file.
        manifest: What ``bundle.json`` says.
    """

    manifest: Manifest

    def __init__(self, path: str | Path) -> None:
        """Reads and checks the manifest; graph files are checked when asked for.

        Raises:
            BundleNotFoundError: ``path`` does not exist.
            BundleError: It is not a bundle, or its manifest is damaged.
        """
        super().__init__(path)
        self.manifest = Manifest.from_json(self.read_manifest(), str(self.path / MANIFEST))

    @property
    def profiles(self) -> list[str]:
        """Profiles that have both graphs, in the manifest's order."""
        roles: dict[str, set[str]] = {}
        for graph in self.manifest.graphs:
            roles.setdefault(graph.profile, set()).add(graph.role)
        return [profile for profile, found in roles.items() if {"encoder", "decoder"} <= found]

    def graph(self, role: Role, profile: str) -> GraphFile:
        """Looks up a graph.

        Raises:
            BundleError: This bundle was exported without that profile.
        """
        for graph in self.manifest.graphs:
            if (graph.role, graph.profile) == (role, profile):
                return graph
        if not self.profiles and any(graph.role == "complete" for graph in self.manifest.graphs):
            raise BundleError(
                f"{self.path} holds one graph for programs without this runtime (docs/web.md); "
                "mt3 itself needs the model it was made of, exported without --single-file."
            )
        have = ", ".join(self.profiles) or "none"
        raise BundleError(
            f"{self.path} holds no {role} of profile {profile!r} (it has: {have}). Make it with: "
            f"mt3 export {quoted(self.path)} --profiles {','.join([*self.profiles, profile])}"
        )

    def _check_summary(self, graph: StoredGraph, summary: OnnxSummary) -> None:
        positions = summary.metadata.get(MAX_TOKENS_KEY, "")
        limit = self.manifest.decoding.max_tokens
        decoder = getattr(graph, "role", "") in ("decoder", "complete")
        if decoder and not (positions.isdecimal() and int(positions) >= limit):
            raise BundleError(
                f"{graph.file} in {self.path} has positions for {positions or 'no'} tokens; the "
                f"manifest allows {limit}. Export the model again."
            )


def quoted(path: Path) -> str:
    """A path as one types it into a shell."""
    text = str(path)
    return shlex.quote(text) if os.name == "posix" else subprocess.list2cmdline([text])
