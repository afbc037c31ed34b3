"""Where engines are kept: a folder of pairs, ``NAME.engine`` and ``NAME.json`` that describes it.

The folder is the user's own cache (``engines`` in the folder `mt3 models where` prints, or
``MT3_ENGINES``), never the bundle: an engine is a program, and a bundle that comes from somewhere
must not bring one along.  Files appear whole or not at all; the description is written last, so an
engine without one was interrupted and counts as absent.  Nothing of an engine is used before its
SHA-256 has been compared.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mt3_engines.keys import EngineKey, Place
from mt3_runtime.bundle import Bundle
from mt3_runtime.cache import cache_dir
from mt3_runtime.errors import BundleError, DeviceError, OutputError
from mt3_runtime.output import make_folder, write_atomic
from mt3_runtime.schema import read_document, read_fields

FORMAT, FORMAT_VERSION = "mt3-runtime.engine", 1
#: Names another folder for engines.
FOLDER_VARIABLE = "MT3_ENGINES"

ENGINE, SIDECAR, TIMING = ".engine", ".json", ".timing"
#: A description has some hundred bytes.
_MAX_SIDECAR = 1 << 16


@dataclass(frozen=True)
class EngineInfo:
    """One engine's description.

    Attributes:
        model: Name of the bundle, for people.
        key: What it is.
        sha256: Digest of the engine file.
        size: Its length in bytes.
        build_seconds: How long TensorRT took.
        path: The engine file.
    """

    model: str
    key: EngineKey
    sha256: str
    size: int
    build_seconds: float
    path: Path

    def to_json(self) -> bytes:
        """The bytes of the description."""
        document = {"format": FORMAT, "version": FORMAT_VERSION, **asdict(self)}
        del document["path"]
        return (json.dumps(document, indent=1) + "\n").encode("ascii")


@dataclass(frozen=True)
class _Document:
    """The keys of a description."""

    model: str
    key: object
    sha256: str
    size: int
    build_seconds: float


def default_folder() -> Path:
    """Where engines are kept unless a command says otherwise."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen).expanduser() if chosen else cache_dir() / "engines"


class EngineStore:
    """A folder of engines; it need not exist."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = default_folder() if folder is None else folder

    def infos(self) -> Iterator[EngineInfo]:
        """All described engines, by name; files that describe none are passed over."""
        for path in self._files(SIDECAR):
            try:
                yield read_info(path)
            except BundleError:
                continue

    def strays(self) -> list[Path]:
        """Files that are no whole pair: interrupted builds, unreadable descriptions."""
        whole = {info.path.stem for info in self.infos() if info.path.is_file()}
        found = [*self._files(ENGINE), *self._files(SIDECAR), *self._files(".part")]
        return [path for path in found if path.stem not in whole]

    def put(self, key: EngineKey, engine: bytes, *, model: str, seconds: float) -> EngineInfo:
        """Keeps an engine.

        Raises:
            OutputError: It cannot be written; nothing half-written is left.
        """
        make_folder(self.folder)
        path = self.folder / (key.stem + ENGINE)
        digest = hashlib.sha256(engine).hexdigest()
        info = EngineInfo(model, key, digest, len(engine), round(seconds, 1), path)
        sidecar = path.with_suffix(SIDECAR)
        _remove(sidecar)  # the old description must not stand beside the new engine
        write_atomic(path, engine)
        write_atomic(sidecar, info.to_json())
        return info

    def find(self, wanted: EngineKey, place: Place, *, command: str) -> EngineInfo:
        """The engine that does a piece of work here; of several, one that was built here.

        Args:
            wanted: What it must compute; where it was built does not matter.
            place: Where it must run.
            command: What the user types to build it.

        Raises:
            DeviceError: There is none; the message names the nearest, why it does not do, and the
                command.
        """
        same = [info for info in self.infos() if info.key.same_work(wanted) and info.path.is_file()]
        usable = [info for info in same if not info.key.obstacles(place)]
        if usable:
            return min(usable, key=lambda info: (info.key.gpu != place.gpu, info.key.stem))
        raise DeviceError(f"{self._refusal(wanted, place, same)} Build it with: {command}")

    def load(self, info: EngineInfo) -> bytes:
        """Reads and checks an engine.

        Raises:
            BundleError: The file is not the one that was built.
        """
        try:
            engine = info.path.read_bytes()
        except OSError as error:
            raise BundleError(f"{info.path} cannot be read ({error.strerror}).") from error
        if len(engine) != info.size or hashlib.sha256(engine).hexdigest() != info.sha256:
            raise BundleError(
                f"{info.path} is not the engine that was built: its digest differs. Remove it with "
                "`mt3 engines prune` and build it again."
            )
        return engine

    def remove(self, info: EngineInfo) -> int:
        """Deletes an engine and its description; returns the bytes freed."""
        return remove_files([info.path.with_suffix(SIDECAR), info.path])

    def timing_cache(self, place: Place) -> Path:
        """Where TensorRT's measurements are kept between builds on one kind of machine."""
        name = f"trt{place.tensorrt}-sm{place.capability.replace('.', '')}"
        return self.folder / (name + TIMING)

    def _refusal(self, wanted: EngineKey, place: Place, same: list[EngineInfo]) -> str:
        what = f"{wanted.role} engine ({wanted.numbers}" + (
            f", {wanted.capacity} columns)" if wanted.capacity else ")"
        )
        if same:
            why = "; ".join(same[0].key.obstacles(place))
            return f"The {what} {same[0].path.name} cannot be used here: {why}."
        for info in self.infos():
            stale = _staleness(info.key, wanted)
            if stale:
                return f"The {what} {info.path.name} is out of date: {stale}."
        return f"There is no {what} for this bundle in {self.folder}."

    def _files(self, ending: str) -> list[Path]:
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix == ending)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise OutputError(f"cannot read the folder {self.folder}: {error.strerror}") from error


def read_info(path: Path) -> EngineInfo:
    """Reads the description of an engine.

    Raises:
        BundleError: It is not one.
    """
    body = read_document(
        path,
        FORMAT,
        FORMAT_VERSION,
        most=_MAX_SIDECAR,
        otherwise="does not describe an engine",
        remedy="Build the engine again.",
    )
    found = read_fields(_Document, body, str(path))
    key = EngineKey.from_dict(found.key, f"{path}, key")
    return EngineInfo(
        found.model, key, found.sha256, found.size, found.build_seconds, path.with_suffix(ENGINE)
    )


def graph_digests(bundle: Bundle, profile: str) -> dict[str, str]:
    """SHA-256 of the graphs by role, as the manifest states them."""
    graphs = (bundle.graph("encoder", profile), bundle.graph("decoder", profile))
    return {graph.role: graph.sha256 for graph in graphs}


def remove_files(paths: Iterable[Path]) -> int:
    """Deletes files; returns the bytes freed.

    Raises:
        OutputError: One is there and cannot be deleted.
    """
    return sum(_remove(path) for path in paths)


def _remove(path: Path) -> int:
    try:
        size = path.lstat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise OutputError(f"cannot delete {path}: {error.strerror}") from error
    return size


def _staleness(found: EngineKey, wanted: EngineKey) -> str:
    """Why an engine of the same role and shapes is not the wanted one; empty if unrelated."""
    alike = ("role", "precision", "slots", "capacity")
    if any(getattr(found, name) != getattr(wanted, name) for name in alike):
        return ""
    if found.graph == wanted.graph and found.recipe != wanted.recipe:
        return "it was built by another version of mt3-runtime"
    if found.export_id == wanted.export_id and found.graph != wanted.graph:
        return "the bundle's graph has changed since"
    return ""
