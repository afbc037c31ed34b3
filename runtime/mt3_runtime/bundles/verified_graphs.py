"""Verifies the graph files of a bundle by size and digest before a byte reaches a parser.

Contract: what every kind of bundle shares.  A file that leaves here has the size and the SHA-256
that the manifest says, refers to no other file, and carries the export id of the manifest.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple, Protocol

from mt3_runtime.arguments.argument_checks import as_path
from mt3_runtime.bundles.container import Extent, open_container
from mt3_runtime.bundles.onnx_scan import OnnxSummary, scan
from mt3_runtime.bundles.precision import Precision
from mt3_runtime.bundles.weights_in_place import referring
from mt3_runtime.errors import BundleError, BundleNotFoundError

MANIFEST = "bundle.json"
EXPORT_ID_KEY = "mt3.export_id"
#: A manifest is a few kilobytes; anything larger is not one.
MAX_MANIFEST_BYTES = 1 << 20


class InPlace(NamedTuple):
    """A graph without its weights, which refers to files in a folder."""

    model: bytes
    folder: str


class StoredGraph(Protocol):
    """What a manifest says of a graph file: its plain name, digest and size in bytes."""

    @property
    def file(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def size(self) -> int: ...


class AnyManifest(Protocol):
    """What the manifest of every kind of bundle says."""

    @property
    def export_id(self) -> str: ...
    @property
    def precision(self) -> Precision: ...


class GraphFiles:
    """The files of a bundle, whatever its kind.

    Attributes:
        path: Folder or zip file.
        manifest: Set by what reads it; graphs are checked against it.
    """

    manifest: AnyManifest

    def __init__(self, path: str | Path) -> None:
        """Opens the container.

        Raises:
            BundleNotFoundError: ``path`` does not exist.
            BundleError: It is no bundle.
        """
        self.path = as_path("path", path)
        if not _exists(self.path):
            raise BundleNotFoundError(
                f"There is no bundle at {self.path}. Make one with: "
                f"mt3 export CHECKPOINT --variant magenta_mt3 -o {self.path}"
            )
        self._files = open_container(self.path)
        self._found: dict[str, Extent] = {}

    def verified(self, graph: StoredGraph) -> str | bytes:
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

    def data(self, graph: StoredGraph) -> bytes:
        """The bytes of a graph file, checked as in `verified`."""
        return bytes(self._checked(graph)[1])

    def check_unchanged(self, graph: StoredGraph) -> None:
        """Checks that a graph file is still the one that was verified.

        Raises:
            BundleError: It was changed or replaced since.
        """
        if graph.file in self._found:
            self._found[graph.file].check_unchanged()

    def in_place(self, graph: StoredGraph) -> InPlace | None:
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

    def _checked(self, graph: StoredGraph) -> tuple[Extent, memoryview]:
        """Where a graph file lies, and its content, checked."""
        extent = self._files.find(graph.file)
        if extent.size != graph.size or graph.size == 0:
            raise self._damaged(graph, f"{extent.size} bytes instead of {graph.size}")
        data = extent.map()
        self._check(graph, data)
        self._found[graph.file] = extent
        return extent, data

    def _check(self, graph: StoredGraph, data: memoryview) -> None:
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
        self._check_summary(graph, summary)

    def _check_summary(self, graph: StoredGraph, summary: OnnxSummary) -> None:
        """Checks what only one kind of bundle promises of a graph; raises `BundleError`."""

    def _damaged(self, graph: StoredGraph, what: str) -> BundleError:
        return BundleError(
            f"{graph.file} in {self.path} is not the file that was exported: {what}. "
            "Copy the bundle again from its source, or export it again."
        )

    def read_manifest(self) -> bytes:
        """The bytes of ``bundle.json``; raises `BundleError` if there is none."""
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
