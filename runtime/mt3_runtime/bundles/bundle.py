"""Opens bundles: everything one model needs at run time, in a folder or an uncompressed zip.

``docs/bundle-format.md`` specifies it byte by byte.  In short: ``bundle.json`` describes features,
segments, vocabulary, decoding and note rules as data, and lists the graph files with their SHA-256.
Loading never executes anything from a bundle, and trusts nothing in it: file names are plain names,
digests are checked before a byte reaches a parser, graphs that refer to other files are refused,
and every graph carries the export id of the manifest, so that files of two exports cannot be mixed.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

from mt3_runtime.bundles.integrity import scan
from mt3_runtime.bundles.manifest import DecodingSpec, GraphFile, Manifest, ModelSpec, Role
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
        self.path = Path(path)
        if not self.path.exists():
            raise BundleNotFoundError(
                f"There is no bundle at {self.path}. Make one with: "
                f"mt3 export CHECKPOINT --variant magenta_mt3 -o {self.path}"
            )
        self._zip = None if self.path.is_dir() else _open_zip(self.path)
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
            f"{self.path} holds no {role} of profile {profile!r} (it has: {have}). Add it with: "
            f"mt3 export CHECKPOINT --variant {self.manifest.variant} --profiles "
            f"{','.join([*self.profiles, profile])} -o {self.path}"
        )

    def verified(self, graph: GraphFile) -> str | bytes:
        """Checks a graph file and returns what a session can be made of.

        Returns:
            The file's path for a folder (so that it need not be copied), its bytes for a zip.

        Raises:
            BundleError: The file is missing, is a link, has another size or digest than the
                manifest says, refers to other files, or belongs to another export.
        """
        if self._zip is not None:
            data = _read_member(self._zip, graph.file, graph.size, str(self.path))
            self._check(graph, memoryview(data))
            return data
        path = self.path / graph.file
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path} is missing or not a regular file. Export the bundle again.")
        if path.stat().st_size != graph.size or graph.size == 0:
            raise self._damaged(graph, f"{path.stat().st_size} bytes instead of {graph.size}")
        with path.open("rb") as file:
            # Not closed by hand: an error's traceback may still hold views into the map.
            self._check(graph, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
        return str(path)

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
        self.verified(graph)
        path, offset = self.path / graph.file, 0
        if self._zip is not None:
            path, offset = self.path, _member_offset(self._zip, graph.file)
        with path.open("rb") as file:
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        model = referring(whole[offset : offset + graph.size], path.name, offset)
        return InPlace(model, str(path.parent.resolve()))

    def _check(self, graph: GraphFile, data: memoryview) -> None:
        if hashlib.sha256(data).hexdigest() != graph.sha256:
            raise self._damaged(graph, "its SHA-256 differs")
        summary = scan(data)
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
        if self._zip is not None:
            return _read_member(self._zip, MANIFEST, MAX_MANIFEST_BYTES, str(self.path))
        path = self.path / MANIFEST
        try:
            with path.open("rb") as file:
                data = file.read(MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            raise BundleError(
                f"{self.path} is not a bundle: {MANIFEST} cannot be read ({error.strerror}). "
                "Give --model the folder that mt3 export wrote."
            ) from error
        if len(data) > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes; not a manifest.")
        return data


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{path} is neither a bundle folder nor a zip of one: {error}."
        ) from error


def _member_offset(archive: zipfile.ZipFile, name: str) -> int:
    """Where in the archive the content of a stored member begins, behind its local header."""
    start = archive.getinfo(name).header_offset
    with Path(str(archive.filename)).open("rb") as file:
        file.seek(start)
        header = file.read(30)
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return start + 30 + int(name_length) + int(extra_length)


def _read_member(archive: zipfile.ZipFile, name: str, limit: int, where: str) -> bytes:
    """Reads one stored member of at most ``limit`` bytes."""
    try:
        info = archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
            raise BundleError(f"{name} in {where} is compressed or too large; bundles are stored.")
        with archive.open(info) as file:
            return file.read(limit + 1)
    except KeyError as error:
        raise BundleError(f"{where} holds no {name}; it is not a whole bundle.") from error
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"{name} in {where} cannot be read: {error}.") from error
