"""The bundle: everything one model needs at run time, in one folder or one uncompressed zip.

``docs/bundle-format.md`` specifies it byte by byte.  In short: ``bundle.json`` describes features,
segments, vocabulary, decoding and note rules as data, and lists the graph files with their SHA-256.
Loading never executes anything from a bundle, and trusts nothing in it: file names are plain names,
digests are checked before a byte reaches a parser, graphs that refer to other files are refused,
and every graph carries the export id of the manifest, so that files of two exports cannot be mixed.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from mt3_runtime.errors import BundleError, BundleNotFoundError
from mt3_runtime.features import FeatureConfig
from mt3_runtime.noterules import NoteRules
from mt3_runtime.onnxscan import scan
from mt3_runtime.schema import read_fields
from mt3_runtime.segments import SegmentConfig
from mt3_runtime.vocabulary import Vocabulary

FORMAT = "mt3-runtime.bundle"
FORMAT_VERSION = 1
MANIFEST = "bundle.json"
EXPORT_ID_KEY = "mt3.export_id"
MAX_TOKENS_KEY = "mt3.max_tokens"
#: A manifest is a few kilobytes; anything larger is not one.
MAX_MANIFEST_BYTES = 1 << 20
#: Sizes become allocations: they are bounded by something no model comes near.
_MAX_SIZE = 1 << 20
_MAX_CHANNELS = 256

Role = Literal["encoder", "decoder"]
T = TypeVar("T")

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class DecodingSpec:
    """What the decoding loop must know about the model.

    Attributes:
        start_id: Token fed at position 0 (T5: the padding id).
        eos_id: Token that ends a segment.
        max_tokens: Most tokens generated per sequence, end-of-sequence included.
        beam_alpha: Exponent of T5X's length normalisation, for ``decoding="t5x"``.
        min_tokens: Fewest tokens of a sequence: an earlier end-of-sequence is a token like others
            (2 in YourMT3, whose loop does not look at the first token).
        memory_tokens: Length of the vector of ids that a segment's memory is made of: the start
            token and the tokens of the previous segment, cropped or filled with the start token,
            which is T5's padding.  0 for models without memory.
        memory_start: The ids that open this vector for the first segment of a recording.
    """

    start_id: int
    eos_id: int
    max_tokens: int
    beam_alpha: float
    min_tokens: int = 1
    memory_tokens: int = 0
    memory_start: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """Sizes the runtime allocates buffers from.

    Attributes:
        frames: T, encoder frames per segment and channel.
        layers: Decoder layers.
        heads: H, attention heads.
        head_dim: D, width of a head.
        vocab_size: V, columns of the output head.
        channels: K, sequences that are decoded from one segment, each from its own cross keys and
            values.
        memory: M, rows behind the T encoder rows that carry what the previous segment said; cross
            keys and values have T + M rows.
    """

    frames: int
    layers: int
    heads: int
    head_dim: int
    vocab_size: int
    channels: int = 1
    memory: int = 0

    @property
    def cross_rows(self) -> int:
        """T + M, the rows that cross-attention sees."""
        return self.frames + self.memory


@dataclass(frozen=True)
class GraphFile:
    """One ONNX file of a bundle.

    Attributes:
        role: ``encoder`` or ``decoder``.
        profile: ``cpu``, ``portable`` or ``compat``.
        file: Plain file name inside the bundle.
        sha256: Digest of the file, lower-case hexadecimal.
        size: Length in bytes.
        opset: Standard operator set version.
        cache: ``in_place`` or ``concat``; see ``docs/graph-contract.md``.
        cross_key_transposed: Cross keys are [N, H, D, T] instead of [N, H, T, D].
        inputs: Names in order.
        outputs: Names in order.
    """

    role: Role
    profile: str
    file: str
    sha256: str
    size: int
    opset: int
    cache: Literal["in_place", "concat"]
    cross_key_transposed: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The typed content of ``bundle.json``; field names are the JSON keys."""

    export_id: str
    name: str
    family: str
    variant: str
    licence: str
    source: dict[str, str]
    exporter: str
    precision: str
    features: FeatureConfig
    segments: SegmentConfig
    vocabulary: Vocabulary
    notes: NoteRules
    decoding: DecodingSpec
    model: ModelSpec
    graphs: tuple[GraphFile, ...]

    def to_json(self) -> bytes:
        """Returns the file's bytes: indented, keys in the order of this class, ASCII."""
        document: dict[str, Any] = {"format": FORMAT, "version": FORMAT_VERSION}
        for field in fields(self):
            value = getattr(self, field.name)
            if hasattr(value, "to_dict"):
                value = value.to_dict()
            elif isinstance(value, DecodingSpec | ModelSpec):
                value = asdict(value)
            elif field.name == "graphs":
                value = [asdict(graph) for graph in value]
            document[field.name] = value
        return (json.dumps(document, indent=1) + "\n").encode("ascii")

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Manifest:
        """Parses and checks a manifest.

        Raises:
            BundleError: Not JSON, not a bundle, a newer version, or a missing, unknown or
                mistyped key; the message names ``where`` and the key.
        """
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{where} is not readable as JSON: {error}.") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise BundleError(f"{where} does not describe a bundle of this project.")
        if document.get("version") != FORMAT_VERSION:
            raise BundleError(
                f"{where} has format version {document.get('version')!r}; this program reads "
                f"version {FORMAT_VERSION}. Update mt3-runtime, or export the model again."
            )
        body = {key: value for key, value in document.items() if key not in ("format", "version")}
        for key, parse in _PARSERS.items():
            if key in body:
                body[key] = _parse_part(parse, body[key], f"{where}, {key}")
        manifest = read_fields(cls, body, where)
        faults = manifest.contradictions()
        if faults:
            raise BundleError(f"{where} contradicts itself: {'; '.join(faults)}. Export it again.")
        return manifest

    def contradictions(self) -> list[str]:
        """What its parts say differently about one thing; empty for a sound manifest."""
        features, model, decoding = self.features, self.model, self.decoding
        ids = self.vocabulary
        pairs = (
            ("vocabulary size", "vocabulary", ids.size, "model", model.vocab_size),
            (
                "sample rate",
                "features",
                features.sample_rate,
                "segments",
                self.segments.sample_rate,
            ),
            ("end-of-sequence", "vocabulary", ids.eos, "decoding", decoding.eos_id),
            ("start token", "vocabulary", ids.pad, "decoding", decoding.start_id),
            ("channels", "notes", len(self.notes.channels) or 1, "model", model.channels),
        )
        faults = [
            f"{what} is {a} in {first} and {b} in {second}"
            for what, first, a, second, b in pairs
            if a != b
        ]
        lengths = features.lengths
        if self.segments.samples not in lengths:
            faults.append(
                f"segments have {self.segments.samples} samples, features are made of "
                f"{lengths.start} to {lengths.stop - 1}"
            )
        if self.segments.padding == "extra_hop" and lengths.start > self.segments.hop:
            faults.append(f"padding extra_hop leaves less than {lengths.start} samples at the end")
        return faults + _memory_faults(model, decoding)


def _memory_faults(model: ModelSpec, decoding: DecodingSpec) -> list[str]:
    """What model and decoding say differently about length and memory of a sequence."""
    ids, room = decoding.memory_start, decoding.memory_tokens
    checks = (
        (decoding.min_tokens > decoding.max_tokens, "min_tokens exceeds max_tokens"),
        ((model.memory > 0) != (room > 0), f"{model.memory} rows of memory from {room} tokens"),
        (model.memory > room > 0, f"{model.memory} rows of memory exceed their {room} tokens"),
        (model.memory and model.channels > 1, f"memory with {model.channels} channels"),
        (len(ids) > room, f"memory_start has {len(ids)} ids for {room} tokens"),
        (any(i >= model.vocab_size for i in ids), "memory_start leaves the vocabulary"),
    )
    return [fault for broken, fault in checks if broken]


def _parse_part(parse: Callable[[Any], T], value: Any, where: str) -> T:
    try:
        return parse(value)
    except BundleError as error:
        raise BundleError(f"{where}: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BundleError(f"{where}: cannot be understood ({error}).") from error


def _graph_file(value: Any) -> GraphFile:
    graph = read_fields(GraphFile, value, "graph")
    if graph.role not in ("encoder", "decoder") or graph.cache not in ("in_place", "concat"):
        raise BundleError(f"unknown role {graph.role!r} or cache {graph.cache!r}.")
    if not _PLAIN_NAME.fullmatch(graph.file) or ".." in graph.file:
        raise BundleError(f"{graph.file!r} is not a plain file name.")
    if not re.fullmatch(r"[0-9a-f]{64}", graph.sha256):
        raise BundleError(f"{graph.file}: the SHA-256 is not 64 hexadecimal digits.")
    names = [tuple(str(name) for name in part) for part in (graph.inputs, graph.outputs)]
    return GraphFile(**{**asdict(graph), "inputs": names[0], "outputs": names[1]})


def _decoding_spec(value: Any) -> DecodingSpec:
    spec = _bounded(read_fields(DecodingSpec, value, "decoding"))
    ids = spec.memory_start
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i <= _MAX_SIZE for i in ids):
        raise BundleError(f"decoding: memory_start is {ids!r}, expected a list of token ids.")
    return replace(spec, memory_start=tuple(ids))


def _bounded(spec: T) -> T:
    for field in fields(spec):  # type: ignore[arg-type]
        value = getattr(spec, field.name)
        lowest = 0 if field.name in ("start_id", "eos_id", "memory", "memory_tokens") else 1
        highest = _MAX_CHANNELS if field.name == "channels" else _MAX_SIZE
        if isinstance(value, int) and not lowest <= value <= highest:
            raise BundleError(f"{field.name} is {value}, outside {lowest}..{highest}.")
    return spec


_PARSERS: dict[str, Callable[[Any], object]] = {
    "features": FeatureConfig.from_dict,
    "segments": SegmentConfig.from_dict,
    "vocabulary": Vocabulary.from_dict,
    "notes": NoteRules.from_dict,
    "decoding": _decoding_spec,
    "model": lambda value: _bounded(read_fields(ModelSpec, value, "model")),
    "graphs": lambda value: tuple(_graph_file(item) for item in value),
}


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
