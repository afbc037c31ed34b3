"""Engine store: a folder of pairs, `NAME.engine` and `NAME.json` that describes it.

Beside an engine may lie its runtime caches (`mt3_engines.storage.kernels`).

The folder is the user's own cache (``engines`` in the folder `mt3 models where` prints, or
``MT3_ENGINES``), never the bundle: an engine is a program, and a bundle that comes from somewhere
must not bring one along.  Files appear whole or not at all, and the description first: without its
engine it was interrupted and counts as absent.  Nothing of an engine is used before its SHA-256 has
been compared.

The folder may hold anything else.  A description is ours if it carries our format and the name that
follows from its key; an engine is ours if such a description stands beside it.  Nothing else is
ever deleted or replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mt3_engines.storage.kernels import KERNELS, engine_stem, is_kernels
from mt3_engines.storage.keys import EngineKey, EngineTarget
from mt3_engines.versions import MAKERS, MakerName
from mt3_runtime.backends.devices import check_profile
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import BundleError, DeviceError, OutputError
from mt3_runtime.filesystem.atomic import make_folder, write_atomic
from mt3_runtime.filesystem.ownership import delete, foreign_names, is_irregular, is_regular
from mt3_runtime.models.cache import cache_dir, expanded
from mt3_runtime.schema import read_document, read_fields

FORMAT, FORMAT_VERSION = "mt3-runtime.engine", 2
#: Names another folder for engines.
FOLDER_VARIABLE = "MT3_ENGINES"

ENGINE, SIDECAR, TIMING = ".engine", ".json", ".timing"
#: What polygraphy leaves beside a timing cache.
_LOCK = ".lock"
#: A description has some hundred bytes.
_MAX_SIDECAR = 1 << 16

#: How often an engine is written before its place is left to others.
_ATTEMPTS = 10
#: Seconds, at most, between the first two of them; twice as many each time.
_PAUSE = 0.02

#: What `EngineKey.stem` makes.
_STEM = re.compile(
    r"(encoder|decoder)-((int8|fp8)-)?fp(16|32)-s\d+(x\d+)*(-c\d+)?"
    r"-(trt|rtx)[\w.]+-sm\d+(x\d+)*-[0-9a-f]{12}"
)
#: What `write_atomic` calls a file until it is whole: the process, and 64 random bits.
_PART = re.compile(r"\.mt3-(\d+)-[0-9a-f]{16}\.part")


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
    return expanded(chosen) if chosen else cache_dir() / "engines"


class EngineStore:
    """A folder of engines; it need not exist."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = default_folder() if folder is None else folder

    def infos(self) -> Iterator[EngineInfo]:
        """All described engines, by name; files that describe none are passed over."""
        for path in filter(Path.is_file, self._files(SIDECAR)):
            try:
                yield read_info(path)
            except BundleError:
                continue

    def own(self) -> Iterator[tuple[Path, EngineInfo | None]]:
        """Descriptions that we wrote, by name, with what they say; None if that makes no sense.

        Links, folders and descriptions of another name than their key gives are not ours.
        """
        for path in self._files(SIDECAR):
            engine = path.with_suffix(ENGINE)
            if not _STEM.fullmatch(path.stem) or not _is_marked(path):
                continue
            if is_irregular(engine):
                continue
            try:
                info = read_info(path)
            except BundleError:
                yield path, None
            else:
                if info.key.stem == path.stem:
                    yield path, info

    def strays(self) -> list[Path]:
        """Own files that are no whole pair: interrupted builds, descriptions of no use."""
        parts = [path for path in self._files(".part") if _PART.fullmatch(path.name)]
        left = [path for path in parts if _is_abandoned(path)]
        building = len(left) < len(parts)
        found, awaited = [], []
        for path, info in self.own():
            if info is None:
                found += [path, *filter(is_regular, [path.with_suffix(ENGINE)])]
            elif not info.path.exists() and not building:
                found.append(path)
                awaited.append(info.size)
        # A part has no name of an engine: a description that waits for one vouches for it.
        limit = max(awaited, default=-1)
        return found + [p for p in left if _opens_ours(p) or p.lstat().st_size <= limit]

    def foreign(self) -> list[str]:
        """Names in the folder that are not ours, links and folders among them."""
        own = {path.name for path in self.strays()}
        for path in self._files(TIMING):
            own |= {path.name, path.name + _LOCK}
        for path, _ in self.own():
            own |= {path.name, path.with_suffix(ENGINE).name}
        own |= {path.name for path in self._files(KERNELS) if is_kernels(path)}
        return foreign_names(self.folder, own) if self.folder.is_dir() else []

    def put(self, key: EngineKey, engine: bytes, *, model: str, seconds: float) -> EngineInfo:
        """Keeps an engine.

        Others may keep one of the same key at the same time.  Whoever writes last looks last, and
        writes both files again unless they belong together; so one whole engine is left.

        Raises:
            OutputError: It cannot be written, or something that is not ours has its name; nothing
                half-written is left.
        """
        make_folder(self.folder)
        self.check_place(key)
        path = self.folder / (key.stem + ENGINE)
        digest = hashlib.sha256(engine).hexdigest()
        info = EngineInfo(model, key, digest, len(engine), round(seconds, 1), path)
        for attempt in range(_ATTEMPTS):
            self._write(info, engine)
            found = _whole(path)
            if found is not None:
                return found
            time.sleep(random.uniform(0.0, _PAUSE * 2**attempt))  # noqa: S311  no secret
        raise OutputError(f"other processes keep writing {path}; build it again afterwards.")

    def _write(self, info: EngineInfo, engine: bytes) -> None:
        path, sidecar = info.path, info.path.with_suffix(SIDECAR)
        # The old engine must not stand beside the new description, nor its kernels beside the new.
        delete([path, *self.kernels(path)])
        try:
            write_atomic(sidecar, info.to_json())
            write_atomic(path, engine)
        except BaseException:
            delete([sidecar])
            raise

    def check_place(self, key: EngineKey) -> None:
        """Checks that nothing of anybody else's has an engine's name, before minutes of work.

        Raises:
            OutputError: Something has.
        """
        sidecar = self.folder / (key.stem + SIDECAR)
        names = (sidecar, sidecar.with_suffix(ENGINE))
        there = [path for path in names if os.path.lexists(path)]
        if there and sidecar not in dict(self.own()):
            raise OutputError(
                f"{there[0]} is there and is no engine of mt3-runtime, so it is not replaced. Move "
                "it elsewhere, or choose another folder with --engines."
            )

    def find(self, wanted: EngineKey, place: EngineTarget, *, command: str) -> EngineInfo:
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
        """Deletes an engine, its runtime caches and its description; returns the bytes freed."""
        return delete([info.path, *self.kernels(info.path), info.path.with_suffix(SIDECAR)])

    def kernels(self, engine: Path | None = None) -> list[Path]:
        """The runtime caches of an engine, or of engines that are not there any more."""
        own = [path for path in self._files(KERNELS) if is_kernels(path)]
        if engine is not None:
            return [path for path in own if engine_stem(path) == engine.stem]
        return [p for p in own if not (self.folder / (engine_stem(p) + ENGINE)).exists()]

    def timing_cache(self, place: EngineTarget) -> Path:
        """Where TensorRT's measurements are kept between builds on one kind of machine."""
        maker = MAKERS[place.maker].extra
        name = f"{maker}{place.tensorrt}-sm{place.capability.replace('.', '')}"
        return self.folder / (name + TIMING)

    def _refusal(self, wanted: EngineKey, place: EngineTarget, same: list[EngineInfo]) -> str:
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


def graph_digests(bundle: Bundle, profile: str, device: MakerName = "tensorrt") -> dict[str, str]:
    """SHA-256 of the graphs by role, as the manifest states them.

    Raises:
        BundleError: There are none of this profile; the message says how to make them.
    """
    check_profile(bundle, device)
    graphs = (bundle.graph("encoder", profile), bundle.graph("decoder", profile))
    return {graph.role: graph.sha256 for graph in graphs}


def _whole(path: Path) -> EngineInfo | None:
    """An engine's description, if it is that of the file beside it."""
    try:
        info, data = read_info(path.with_suffix(SIDECAR)), path.read_bytes()
    except (BundleError, OSError):
        return None
    return info if info.sha256 == hashlib.sha256(data).hexdigest() else None


def _is_marked(path: Path) -> bool:
    """Whether a file is JSON that says it describes an engine of ours."""
    if not is_regular(path):
        return False
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MAX_SIDECAR))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT


def _is_abandoned(path: Path) -> bool:
    """Whether a file was being written by `write_atomic` in a process that is no more."""
    match = _PART.fullmatch(path.name)
    if match is None or not is_regular(path):
        return False
    if sys.platform == "win32":  # there, what is being written cannot be deleted
        return True
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _opens_ours(path: Path) -> bool:
    """Whether a file begins as descriptions do."""
    head = json.dumps({"format": FORMAT}, indent=1)[:-2].encode()
    try:
        with path.open("rb") as file:
            return file.read(len(head)) == head
    except OSError:
        return False


def _staleness(found: EngineKey, wanted: EngineKey) -> str:
    """Why an engine of the same role and shapes is not the wanted one; empty if unrelated."""
    alike = ("role", "precision", "slots", "capacity", "maker")
    if any(getattr(found, name) != getattr(wanted, name) for name in alike):
        return ""
    if found.graph == wanted.graph and found.recipe != wanted.recipe:
        return "it was built by another version of mt3-runtime"
    if found.export_id == wanted.export_id and found.graph != wanted.graph:
        return "the bundle's graph has changed since"
    return ""
