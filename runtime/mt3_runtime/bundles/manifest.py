"""The bundle manifest `bundle.json` as typed data.

``docs/bundle-format.md`` specifies every key.  Nothing has a default in the file, a key too many or
too few is an error, and the parts must agree with each other: a manifest that was read is sound.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar

from mt3_runtime.audio.log_mel import FeatureConfig
from mt3_runtime.audio.segments import SegmentConfig
from mt3_runtime.bundles.precision import Precision
from mt3_runtime.bundles.verified_graphs import StoredGraph
from mt3_runtime.errors import BundleError
from mt3_runtime.notes.confidence import Calibration
from mt3_runtime.notes.note_rules import NoteRules
from mt3_runtime.notes.stems import STEMS
from mt3_runtime.notes.vocabulary import Vocabulary
from mt3_runtime.schema import Between, document_bytes, parse_document, read_fields

FORMAT = "mt3-runtime.bundle"
FORMAT_VERSION = 1
#: Sizes become allocations: they are bounded by something no model comes near.
_MAX_SIZE = 1 << 20
_MAX_CHANNELS = 256

Role = Literal["encoder", "decoder", "complete"]
CacheForm = Literal["in_place", "concat"]
MAX_FILE = (1 << 31) - 1
"""Bytes of the largest protobuf message."""

#: Numbers in the keys and values of one row: 1 GiB of fp32, a hundred times the largest model.
_MAX_CACHE = 1 << 28

Size = Annotated[int, Between(1, _MAX_SIZE)]
Id = Annotated[int, Between(0, _MAX_SIZE)]

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SHA256 = re.compile(r"[0-9a-f]{64}")


class Checked(Protocol):
    """A manifest of any kind of bundle."""

    def contradictions(self) -> list[str]: ...


Graph = TypeVar("Graph", bound=StoredGraph)
Whole = TypeVar("Whole", bound=Checked)


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
        orderly: Whether the labels the model was taught with say everything in one order only: it
            is always decoded under that grammar (`mt3_runtime.decoding.canonical_order`).
    """

    start_id: Id
    eos_id: Id
    max_tokens: Size
    beam_alpha: Annotated[float, Between(0.0, 10.0)]
    min_tokens: Size = 1
    memory_tokens: Id = 0
    memory_start: tuple[Id, ...] = ()
    orderly: bool = False


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

    frames: Size
    layers: Size
    heads: Size
    head_dim: Size
    vocab_size: Size
    channels: Annotated[int, Between(1, _MAX_CHANNELS)] = 1
    memory: Id = 0

    @property
    def cross_rows(self) -> int:
        """T + M, the rows that cross-attention sees."""
        return self.frames + self.memory


@dataclass(frozen=True)
class GraphFile:
    """One ONNX file of a bundle.

    Attributes:
        role: ``encoder``, ``decoder``, or ``complete``: features, both and the loop in one graph.
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
    size: Annotated[int, Between(0, MAX_FILE)]
    opset: Annotated[int, Between(1, 1000)]
    cache: CacheForm
    cross_key_transposed: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def returns_cross(self) -> bool:
        """Whether this decoder gives its cross keys and values out again, unchanged."""
        return "present_cross_key_0" in self.outputs

    @classmethod
    def from_dict(cls, data: object) -> GraphFile:
        """Reads what ``asdict`` wrote.

        Raises:
            BundleError: A key or a value is wrong; the name is no plain one.
        """
        return read_graph(cls, data)


def read_graph(kind: type[Graph], data: object) -> Graph:
    """Reads what ``asdict`` wrote of a graph file, of any kind of bundle.

    Raises:
        BundleError: A key or a value is wrong; the name is no plain one.
    """
    graph = read_fields(kind, data, "graph")
    if not PLAIN_NAME.fullmatch(graph.file) or ".." in graph.file:
        raise BundleError(f"{graph.file!r} is not a plain file name.")
    if not SHA256.fullmatch(graph.sha256):
        raise BundleError(f"{graph.file}: the SHA-256 is not 64 hexadecimal digits.")
    return graph


def read_whole(
    kind: type[Whole], body: object, where: str, *, remedy: str = "Export it again."
) -> Whole:
    """Reads a manifest of any kind, whose parts agree.

    Raises:
        BundleError: A key is missing, unknown or mistyped, or two contradict each other; the
            message names ``where``.
    """
    found = read_fields(kind, body, where)
    if faults := found.contradictions():
        raise BundleError(f"{where} contradicts itself: {'; '.join(faults)}. {remedy}")
    return found


def parse_bundle(data: bytes, where: str) -> dict[str, Any]:
    """The keys of a bundle of any kind; raises `BundleError`."""
    return parse_document(
        data,
        where,
        FORMAT,
        FORMAT_VERSION,
        otherwise="does not describe a bundle",
        remedy="Update mt3-runtime, or export the model again.",
    )


@dataclass(frozen=True)
class Manifest:
    """The typed content of ``bundle.json``; field names are the JSON keys."""

    export_id: str
    name: str
    family: str
    variant: str
    stem: str
    licence: str
    source: dict[str, str]
    exporter: str
    precision: Precision
    features: FeatureConfig
    segments: SegmentConfig
    vocabulary: Vocabulary
    notes: NoteRules
    confidence: Calibration | None
    decoding: DecodingSpec
    model: ModelSpec
    graphs: tuple[GraphFile, ...]

    def to_json(self) -> bytes:
        """Returns the file's bytes: indented, keys in the order of this class, ASCII."""
        return document_bytes(self, FORMAT, FORMAT_VERSION)

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Manifest:
        """Parses and checks a manifest.

        Raises:
            BundleError: Not JSON, not a bundle, a newer version, or a missing, unknown or
                mistyped key; the message names ``where`` and the key.
        """
        body = parse_bundle(data, where)
        if "kind" in body:
            raise BundleError(
                f"{where} describes a bundle of kind {body['kind']!r:.40}, which writes no notes; "
                "use it with `mt3 tag` or `mt3 genre` (one of kind assessor with "
                "`mt3_analysis.open_assessor_networks`)."
            )
        return read_whole(cls, body, where)

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
        graphs = [(graph.role, graph.profile) for graph in self.graphs]
        if len(set(graphs)) != len(graphs):
            faults.append("one profile has two graphs of one role")
        if "digest" not in self.source:
            faults.append("source has no digest")
        if self.stem not in [stem.name for stem in STEMS]:
            faults.append(f"stem {self.stem!r} is none of {', '.join(s.name for s in STEMS)}")
        return faults + _size_faults(model, decoding) + _memory_faults(model, decoding)


def _size_faults(model: ModelSpec, decoding: DecodingSpec) -> list[str]:
    """Sizes that are sane one by one, and together more than there is memory for."""
    columns = max(model.cross_rows, decoding.max_tokens)
    numbers = 2 * model.layers * model.heads * model.head_dim * columns
    return [f"keys and values of a row are {numbers} numbers"] if numbers > _MAX_CACHE else []


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
