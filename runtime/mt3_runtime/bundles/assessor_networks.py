"""Bundles of networks that assess performances: several graphs, one audio encoder for all of them.

``docs/assessment-networks.md`` says what each graph reads and gives.  A bundle holds at most one
audio encoder and any number of networks, each with the graphs of its roles; `kind` is
``assessor``, `family` ``networks``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from mt3_runtime.bundles.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MAX_FILE,
    parse_bundle,
    read_graph,
    read_whole,
)
from mt3_runtime.bundles.precision import Precision
from mt3_runtime.bundles.verified_graphs import MANIFEST, GraphFiles
from mt3_runtime.errors import BundleError
from mt3_runtime.schema import Between, document_bytes

Fusion = Literal["gated", "concat", "cross", "audio", "midi"]
"""How the two modalities meet; the last two hear one of them alone."""
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
Alignment = Literal["note", "frame_index", "attention", "none"]
"""``note``: each note meets the mean of its own frames; ``frame_index``: note i meets frame i, as
published; ``attention``: cross-attention finds its own; ``none``: one modality."""
AssessorRole = Literal["audio_encoder", "midi_encoder", "fusion", "head"]

#: Alignments that a fusion can have.
ALIGNMENTS: dict[Fusion, tuple[Alignment, ...]] = {
    "gated": ("note", "frame_index"),
    "concat": ("note", "frame_index"),
    "cross": ("attention",),
    "audio": ("none",),
    "midi": ("none",),
}
#: Roles of a network's own graphs.
_ROLES: dict[Fusion, tuple[AssessorRole, ...]] = {
    "gated": ("midi_encoder", "fusion", "head"),
    "concat": ("midi_encoder", "fusion", "head"),
    "cross": ("midi_encoder", "fusion", "head"),
    "audio": ("fusion", "head"),
    "midi": ("midi_encoder", "fusion", "head"),
}

NETWORK_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
DIMENSION_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")
MAX_DIMENSIONS = 64
_MAX_SAMPLES = 1 << 22

Size = Annotated[int, Between(1, 1 << 14)]


@dataclass(frozen=True)
class AudioEncoderSpec:
    """What the shared audio encoder hears.

    Attributes:
        sample_rate: [Hz].
        samples: Of a clip; longer recordings are cut into clips of this length.
        shortest: Fewest samples that give a frame.
        hop: Samples from one frame to the next.
        width: D, of a frame.
        layers: The hidden states whose mean a frame is; 0 is what enters the first layer.
        normalise: Whether a clip is brought to mean 0 and standard deviation 1 (divisor n - 1).
    """

    sample_rate: Annotated[int, Between(1000, 192000)]
    samples: Annotated[int, Between(1, _MAX_SAMPLES)]
    shortest: Annotated[int, Between(1, _MAX_SAMPLES)]
    hop: Size
    width: Size
    layers: tuple[Annotated[int, Between(0, 256)], ...]
    normalise: bool


@dataclass(frozen=True)
class AssessorNetwork:
    """One network of a bundle.

    Attributes:
        name: Its name here, such as ``gated``.
        fusion: One of `FUSIONS`.
        alignment: What a note is paired with; see `ALIGNMENTS`.
        max_notes: Most notes of a clip that are read, the earliest; 0 where none are.
        fill: Whether fewer notes are filled up to that number with zeros that the network takes
            for notes, as published.
        dimensions: Names of the scores, in order.
        ordinal_classes: Classes of the ordinal output; 0 where there is none.
    """

    name: str
    fusion: Fusion
    alignment: Alignment
    max_notes: Annotated[int, Between(0, 1 << 14)]
    fill: bool
    dimensions: tuple[str, ...]
    ordinal_classes: Annotated[int, Between(0, 1000)]

    @property
    def hears(self) -> bool:
        """Whether it needs audio."""
        return self.fusion != "midi"

    @property
    def reads(self) -> bool:
        """Whether it needs notes."""
        return self.fusion != "audio"

    def faults(self) -> list[str]:
        """What contradicts itself; empty for a sound one."""
        found = []
        if not NETWORK_NAME.fullmatch(self.name):
            found.append(f"{self.name!r} is no name of a network")
        if self.alignment not in ALIGNMENTS[self.fusion]:
            found.append(f"{self.name}: fusion {self.fusion} has no alignment {self.alignment}")
        if self.reads != (self.max_notes > 0) or (self.fill and not self.reads):
            found.append(f"{self.name}: {self.max_notes} notes for fusion {self.fusion}")
        names = self.dimensions
        if not 1 <= len(names) <= MAX_DIMENSIONS or len(set(names)) != len(names):
            found.append(f"{self.name}: {len(names)} dimensions, or one of them twice")
        if not all(map(DIMENSION_NAME.fullmatch, names)):
            found.append(f"{self.name}: a dimension is no plain lower-case name")
        if self.ordinal_classes == 1:
            found.append(f"{self.name}: an ordinal output of one class")
        return found


@dataclass(frozen=True)
class AssessorGraph:
    """One ONNX file.

    Attributes:
        network: Whose it is; empty for the shared audio encoder.
        role: What it does.
        profile: ``cpu``, ``portable`` or ``compat``.
        file: Plain file name inside the bundle.
        sha256: Digest of the file, lower-case hexadecimal.
        size: Length in bytes.
        opset: Standard operator set version.
    """

    network: str
    role: AssessorRole
    profile: str
    file: str
    sha256: str
    size: Annotated[int, Between(1, MAX_FILE)]
    opset: Annotated[int, Between(1, 1000)]

    @classmethod
    def from_dict(cls, data: object) -> AssessorGraph:
        """Reads what ``asdict`` wrote; raises `BundleError`."""
        return read_graph(cls, data)


@dataclass(frozen=True)
class AssessorNetworksManifest:
    """The typed content of ``bundle.json``; field names are the JSON keys.

    Attributes:
        kind: ``assessor``.
        family: ``networks``.
        export_id: Marks all files of one export.
        name: The bundle's.
        licence: Of the weights, as far as it is known.
        source: Where the weights are from; ``digest`` is their SHA-256.
        exporter: Who wrote this.
        precision: Of the graphs.
        audio: The shared audio encoder; None where no network of the bundle needs one, or where
            frames are made elsewhere.
        networks: Any number, none beside an audio encoder alone.
        graphs: One file for each role and profile.
    """

    kind: Literal["assessor"]
    family: Literal["networks"]
    export_id: str
    name: str
    licence: str
    source: dict[str, str]
    exporter: str
    precision: Precision
    audio: AudioEncoderSpec | None
    networks: tuple[AssessorNetwork, ...]
    graphs: tuple[AssessorGraph, ...]

    @property
    def profiles(self) -> tuple[str, ...]:
        """The profiles of its graphs, in order."""
        return tuple(dict.fromkeys(graph.profile for graph in self.graphs))

    def to_json(self) -> bytes:
        """Returns the file's bytes: indented, keys in the order of this class, ASCII."""
        return document_bytes(self, FORMAT, FORMAT_VERSION)

    @classmethod
    def from_json(cls, data: bytes, where: str) -> AssessorNetworksManifest:
        """Parses and checks a manifest.

        Raises:
            BundleError: Not JSON, not a bundle, of another kind, or a missing, unknown, mistyped or
                contradictory key; the message names ``where`` and the key.
        """
        body: dict[str, Any] = parse_bundle(data, where)
        if body.get("kind") != "assessor":
            kind = body.get("kind", "transcriber")
            raise BundleError(f"{where} describes a bundle of kind {kind!r:.40}, no assessor.")
        if body.get("family") != "networks":
            family = body.get("family")
            raise BundleError(
                f"{where} describes an assessor of family {family!r:.40}, no networks."
            )
        return read_whole(cls, body, where)

    def contradictions(self) -> list[str]:
        """What its parts say differently about one thing; empty for a sound manifest."""
        faults = [fault for network in self.networks for fault in network.faults()]
        names = [network.name for network in self.networks]
        if len(set(names)) != len(names):
            faults.append("one network is there twice")
        if self.audio is None and not self.networks:
            faults.append("neither an audio encoder nor a network")
        if self.audio is not None and (
            not self.audio.layers or self.audio.shortest > self.audio.samples
        ):
            faults.append("an audio encoder without layers, or with clips too short for a frame")
        wanted = {("", "audio_encoder")} if self.audio is not None else set()
        wanted |= {(n.name, role) for n in self.networks for role in _ROLES[n.fusion]}
        expected = sorted((*pair, profile) for pair in wanted for profile in self.profiles)
        found = sorted((g.network, g.role, g.profile) for g in self.graphs)
        if not found or found != expected:
            faults.append(f"{len(found)} graphs, which are not one for each role and profile")
        if "digest" not in self.source:
            faults.append("source has no digest")
        return faults


class AssessorNetworksBundle(GraphFiles):
    """An opened bundle of networks that assess performances.

    Attributes:
        path: Folder or zip file.
        manifest: What ``bundle.json`` says.
    """

    manifest: AssessorNetworksManifest

    def __init__(self, path: str | Path) -> None:
        """Reads and checks the manifest; graph files are checked when asked for.

        Raises:
            BundleNotFoundError: ``path`` does not exist.
            BundleError: It is no such bundle, or its manifest is damaged.
        """
        super().__init__(path)
        where = str(self.path / MANIFEST)
        self.manifest = AssessorNetworksManifest.from_json(self.read_manifest(), where)

    def network(self, name: str) -> AssessorNetwork:
        """Looks up a network; raises `BundleError` if there is none of this name."""
        for network in self.manifest.networks:
            if network.name == name:
                return network
        have = ", ".join(network.name for network in self.manifest.networks) or "none"
        raise BundleError(f"{self.path} holds no network {name!r:.40} (it has: {have}).")

    def graph(self, network: str, role: AssessorRole, profile: str) -> AssessorGraph:
        """Looks up a graph; raises `BundleError` if there is none."""
        for graph in self.manifest.graphs:
            if (graph.network, graph.role, graph.profile) == (network, role, profile):
                return graph
        have = ", ".join(self.manifest.profiles)
        raise BundleError(
            f"{self.path} holds no {role} of profile {profile!r:.40} (its profiles: {have}). "
            "Export the networks again with --profiles."
        )
