"""Opens bundles and checks the digests of their files: all one model needs, in a folder or a zip.

``docs/bundle-format.md`` specifies it byte by byte.  In short: ``bundle.json`` describes features,
segments, vocabulary, decoding and note rules as data, and lists the graph files with their SHA-256.
Loading never executes anything from a bundle, and trusts nothing in it: file names are plain names,
digests are checked before a byte reaches a parser, graphs that refer to other files are refused,
and every graph carries the export id of the manifest, so that files of two exports cannot be mixed.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

from mt3_runtime.arguments.argument_checks import as_path
from mt3_runtime.bundles.container import Extent, open_container
from mt3_runtime.bundles.manifest import DecodingSpec, GraphFile, Manifest, ModelSpec, Role
from mt3_runtime.bundles.onnx_scan import scan
from mt3_runtime.bundles.weights_in_place import referring
from mt3_runtime.errors import BundleError, BundleNotFoundError

__all__ = ["Bundle", "DecodingSpec", "GraphFile", "Manifest", "ModelSpec", "Role"]

MANIFEST = "bundle.json"
EXPORT_ID_KEY = "mt3.export_id"
MAX_TOKENS_KEY = "mt3.max_tokens"
#: A manifest is a few kilobytes; anything larger is not one.
MAX_MANIFEST_BYTES = 1 << 20


class InPlace(NamedTuple):
    """A graph without its weights, which refers to files in a folder."""

    model: bytes
    folder: str


class Bundle:
    """An opened bundle: its manifest, and its graph files once verified.

    Attributes:
        path: Folder or zip file.
        manifest: What ``bundle.json`` says.
    """

    def __init__(self, path: str | Path) -> None:
        """Reads and checks the manifest; graph files are checked when asked for.

        Raises:
            BundleNotFoundError: ``path`` does not exist.
            BundleError: It is not a bundle, or its manifest is damaged.
        """
        self.path = as_path("path", path)
        if not _exists(self.path):
            raise BundleNotFoundError(
                f"There is no bundle at {self.path}. Make one with: "
                f"mt3 export CHECKPOINT --variant magenta_mt3 -o {self.path}"
            )
        self._files = open_container(self.path)
        self._found: dict[str, Extent] = {}
        self.manifest = Manifest.from_json(self._read_manifest(), str(self.path / MANIFEST))

    @property
    def profiles(self) -> list[str]:
        """Profiles that have both graphs, in the manifest's order."""
        roles: dict[str, set[str]] = {}
        for graph in self.manifest.graphs:
            roles.setdefault(graph.profile, set()).add(graph.role)
        return [profile for profile, found in roles.items() if found == {"encoder", "decoder"}]

    def graph(self, role: Role, profile: str) -> GraphFile:
        """Looks up a graph.

        Raises:
            BundleError: This bundle was exported without that profile.
        """
        for graph in self.manifest.graphs:
            if (graph.role, graph.profile) == (role, profile):
                return graph
        have = ", ".join(self.profiles) or "none"
        raise BundleError(
            f"{self.path} holds no {role} of profile {profile!r} (it has: {have}). Make it with: "
            f"mt3 export {quoted(self.path)} --profiles {','.join([*self.profiles, profile])}"
        )

    def verified(self, graph: GraphFile) -> str | bytes:
        """Checks a graph file and returns what a session can be made of.

        Returns:
            The file's path for a folder (so that it need not be copied), its bytes for a zip.  Who
            has read a path asks `check_unchanged` whether it was the file that was checked.

        Raises:
            BundleError: The file is missing, is no regular file, has another size or digest than
                the manifest says, refers to other files, or belongs to another export.
        """
        extent, data = self._checked(graph)
        path = str(extent.path)
        return path if not self._files.packed and _is_text(path) else bytes(data)

    def data(self, graph: GraphFile) -> bytes:
        """The bytes of a graph file, checked as in `verified`."""
        return bytes(self._checked(graph)[1])

    def check_unchanged(self, graph: GraphFile) -> None:
        """Checks that a graph file is still the one that was verified.

        Raises:
            BundleError: It was changed or replaced since.
        """
        if graph.file in self._found:
            self._found[graph.file].check_unchanged()

    def in_place(self, graph: GraphFile) -> InPlace | None:
        """A verified graph whose fp16 weights are read where they lie in the bundle.

        None where there is nothing to gain: only weights that are stored as fp16 and computed with
        in fp32 are read once and never again.

        Raises:
            BundleError: As in `verified`.
        """
        precision = self.manifest.precision
        if precision.weights != "fp16" or not precision.exact:
            return None
        extent, data = self._checked(graph)
        folder, name = str(extent.path.parent.resolve()), extent.path.name
        if not _is_text(folder + name):
            return None
        return InPlace(referring(data, name, extent.offset), folder)

    def _checked(self, graph: GraphFile) -> tuple[Extent, memoryview]:
        """Where a graph file lies, and its content, checked."""
        extent = self._files.find(graph.file)
        if extent.size != graph.size or graph.size == 0:
            raise self._damaged(graph, f"{extent.size} bytes instead of {graph.size}")
        data = extent.map()
        self._check(graph, data)
        self._found[graph.file] = extent
        return extent, data

    def _check(self, graph: GraphFile, data: memoryview) -> None:
        if hashlib.sha256(data).hexdigest() != graph.sha256:
            raise self._damaged(graph, "its SHA-256 differs")
        try:
            summary = scan(data)
        except BundleError as error:
            raise BundleError(f"{graph.file} in {self.path} is refused: {error}") from error
        if summary.external_data:
            raise BundleError(
                f"{graph.file} in {self.path} refers to other files; that is refused."
            )
        found = summary.metadata.get(EXPORT_ID_KEY)
        if found != self.manifest.export_id:
            raise BundleError(
                f"{graph.file} in {self.path} belongs to another export ({found or 'unmarked'}, "
                f"the bundle is {self.manifest.export_id}). Export the model again as a whole."
            )
        positions = summary.metadata.get(MAX_TOKENS_KEY, "")
        limit = self.manifest.decoding.max_tokens
        if graph.role == "decoder" and not (positions.isdecimal() and int(positions) >= limit):
            raise BundleError(
                f"{graph.file} in {self.path} has positions for {positions or 'no'} tokens; the "
                f"manifest allows {limit}. Export the model again."
            )

    def _damaged(self, graph: GraphFile, what: str) -> BundleError:
        return BundleError(
            f"{graph.file} in {self.path} is not the file that was exported: {what}. "
            "Copy the bundle again from its source, or export it again."
        )

    def _read_manifest(self) -> bytes:
        try:
            extent = self._files.find(MANIFEST)
        except BundleError as error:
            raise BundleError(
                f"{self.path} is not a bundle: {error} Give the folder or the .mt3 file that "
                "mt3 export wrote."
            ) from error
        if extent.size > MAX_MANIFEST_BYTES:
            raise BundleError(
                f"{MANIFEST} of {self.path} is larger than {MAX_MANIFEST_BYTES} bytes; it is no "
                "manifest."
            )
        return extent.read()


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True  # opening it says why not
    return True


def _is_text(path: str) -> bool:
    """Whether a path can be handed to ONNX Runtime, which takes UTF-8 only."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def quoted(path: Path) -> str:
    """A path as one types it into a shell."""
    text = str(path)
    return shlex.quote(text) if os.name == "posix" else subprocess.list2cmdline([text])
