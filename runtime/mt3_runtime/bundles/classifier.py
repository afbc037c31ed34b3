"""Bundles that hear what is played instead of notes: manifests of taggers and genre classifiers.

``docs/bundle-format.md`` specifies every key.  A classifier is one graph, features to logits, with
the front end that makes its features, the windows it hears, and its labels, all as data.  `kind`
says what it is; a transcriber's manifest has no such key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from mt3_runtime.bundles.assessor_networks import AssessorNetworksBundle
from mt3_runtime.bundles.bundle import Bundle, quoted
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

Kind = Literal["tagger", "genre"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Activation = Literal["share", "probability"]
"""What scores are: shares of one (softmax), or probabilities of each label (sigmoid)."""

#: Samples of a window: four minutes at 16 kHz.
_MAX_WINDOW = 1 << 22
#: AudioSet has 527 classes, the largest public label sets some ten thousand.
MAX_LABELS = 1 << 14

Rate = Annotated[int, Between(1000, 192000)]
Size = Annotated[int, Between(1, 1 << 14)]
Hertz = Annotated[float, Between(0.0, 96000.0)]


@dataclass(frozen=True)
class KaldiConfig:
    """Kaldi's log filter bank: frames without their mean, pre-emphasis, mel triangles, logarithm.

    Attributes:
        sample_rate: [Hz].
        frame: Samples of a frame.
        hop: Samples between two frames.
        fft: Samples a frame is filled up to.
        bins: Mel filters.
        low_hz: Where the first filter begins.
        high_hz: Where the last one ends.
        pre_emphasis: Share of the sample before that is subtracted.
        frames: Frames of a window; a shorter one is filled up with zeros, before normalisation.
        mean: Subtracted from the logarithms.
        divisor: What they are divided by then.
    """

    sample_rate: Rate
    frame: Size
    hop: Size
    fft: Size
    bins: Annotated[int, Between(1, 1024)]
    low_hz: Hertz
    high_hz: Hertz
    pre_emphasis: Annotated[float, Between(0.0, 1.0)]
    frames: Size
    mean: Annotated[float, Between(-1000.0, 1000.0)]
    divisor: Annotated[float, Between(1e-3, 1000.0)]


@dataclass(frozen=True)
class WaveConfig:
    """The samples themselves.

    Attributes:
        sample_rate: [Hz].
        normalise: Whether they are brought to mean 0 and variance 1.
    """

    sample_rate: Rate
    normalise: bool


@dataclass(frozen=True)
class MagnitudeConfig:
    """Magnitudes of a short-time Fourier transform.

    Attributes:
        sample_rate: [Hz].
        frame: Samples of a frame.
        hop: Samples between two frames.
        fft: Samples a frame is filled up to.
        frames: Frames of a window.
        taper: What the samples of a frame are multiplied with: the original's own numbers, whose
            last digit an 8-bit network behind it notices.
    """

    sample_rate: Rate
    frame: Size
    hop: Size
    fft: Size
    frames: Size
    taper: tuple[Annotated[float, Between(-1.0, 1.0)], ...]


@dataclass(frozen=True)
class FrontEnd:
    """How features are made: exactly one of three ways."""

    kaldi: KaldiConfig | None = None
    wave: WaveConfig | None = None
    magnitude: MagnitudeConfig | None = None

    @property
    def chosen(self) -> KaldiConfig | WaveConfig | MagnitudeConfig:
        """The one that is there."""
        for config in (self.kaldi, self.wave, self.magnitude):
            if config is not None:
                return config
        raise BundleError("front_end names no front end.")

    def faults(self) -> list[str]:
        """What contradicts itself; empty for a sound one."""
        given = [c for c in (self.kaldi, self.wave, self.magnitude) if c is not None]
        if len(given) != 1:
            return [f"front_end names {len(given)} front ends instead of one"]
        config = self.chosen
        if isinstance(config, WaveConfig):
            return []
        found = [f"frames of {config.frame} samples do not fit into {config.fft}"]
        found = found if config.frame > config.fft else []
        if isinstance(config, MagnitudeConfig) and len(config.taper) != config.frame:
            found.append(f"a taper of {len(config.taper)} numbers for {config.frame} samples")
        if isinstance(config, KaldiConfig) and not config.low_hz < config.high_hz:
            found.append(f"filters from {config.low_hz} to {config.high_hz} Hz")
        return found


@dataclass(frozen=True)
class WindowSpec:
    """The windows a recording is cut into.

    Attributes:
        samples: Length of a window.
        hop: From the beginning of one to that of the next.
        shortest: Fewest samples of which the graph makes anything.
    """

    samples: Annotated[int, Between(1, _MAX_WINDOW)]
    hop: Annotated[int, Between(1, _MAX_WINDOW)]
    shortest: Annotated[int, Between(1, _MAX_WINDOW)]


@dataclass(frozen=True)
class ClassifierGraph:
    """The ONNX file of one profile.

    Attributes:
        profile: ``cpu`` or ``compat``.
        file: Plain file name inside the bundle.
        sha256: Digest of the file, lower-case hexadecimal.
        size: Length in bytes.
        opset: Standard operator set version.
    """

    profile: str
    file: str
    sha256: str
    size: Annotated[int, Between(1, MAX_FILE)]
    opset: Annotated[int, Between(1, 1000)]

    @classmethod
    def from_dict(cls, data: object) -> ClassifierGraph:
        """Reads what ``asdict`` wrote; raises `BundleError`."""
        return read_graph(cls, data)


@dataclass(frozen=True)
class ClassifierManifest:
    """The typed content of a classifier's ``bundle.json``; field names are the JSON keys.

    Attributes:
        kind: ``tagger``: which instruments and sounds; ``genre``: which style.
        export_id: Marks all files of one export.
        name: The model's.
        network: ``ast``, ``hubert``, ``wav2vec2`` or ``yamnet``.
        licence: Of the weights, as far as it is known.
        source: Where the weights are from; ``digest`` is their SHA-256.
        exporter: Who wrote this.
        precision: Of the graphs.
        front_end: How features are made.
        window: How recordings are cut.
        labels: Names of the logits, in their order.
        activation: What the network was taught its logits are.
        score_steps: Scores are rounded to multiples of one part of these, up to one step below 1,
            as an 8-bit original gives them; 0: not rounded.
        graphs: One file a profile.
    """

    kind: Kind
    export_id: str
    name: str
    network: str
    licence: str
    source: dict[str, str]
    exporter: str
    precision: Precision
    front_end: FrontEnd
    window: WindowSpec
    labels: tuple[str, ...]
    activation: Activation
    score_steps: Annotated[int, Between(0, 1 << 16)]
    graphs: tuple[ClassifierGraph, ...]

    def to_json(self) -> bytes:
        """Returns the file's bytes: indented, keys in the order of this class, ASCII."""
        return document_bytes(self, FORMAT, FORMAT_VERSION)

    @classmethod
    def from_json(cls, data: bytes, where: str) -> ClassifierManifest:
        """Parses and checks a manifest.

        Raises:
            BundleError: Not JSON, not a bundle, no classifier, or a missing, unknown, mistyped or
                contradictory key; the message names ``where`` and the key.
        """
        body = parse_bundle(data, where)
        if "kind" not in body:
            raise BundleError(
                f"{where} describes a transcriber, not a tagger or a genre classifier; use it with "
                "`mt3 transcribe --model`."
            )
        return read_whole(cls, body, where)

    def contradictions(self) -> list[str]:
        """What its parts say differently about one thing; empty for a sound manifest."""
        faults, window = self.front_end.faults(), self.window
        if not 2 <= len(self.labels) <= MAX_LABELS:
            faults.append(f"{len(self.labels)} labels, expected 2 to {MAX_LABELS}")
        if len(set(self.labels)) != len(self.labels):
            faults.append("one label is there twice")
        if not window.hop <= window.samples or not window.shortest <= window.samples:
            faults.append(f"windows of {window.samples} samples, {window.hop} apart")
        profiles = [graph.profile for graph in self.graphs]
        if not profiles or len(set(profiles)) != len(profiles):
            faults.append(f"graphs of the profiles {', '.join(profiles) or 'none'}")
        if "digest" not in self.source:
            faults.append("source has no digest")
        return faults


class ClassifierBundle(GraphFiles):
    """An opened bundle of a tagger or of a genre classifier.

    Attributes:
        path: Folder or zip file.
        manifest: What ``bundle.json`` says.
    """

    manifest: ClassifierManifest

    def __init__(self, path: str | Path) -> None:
        """Reads and checks the manifest; graph files are checked when asked for.

        Raises:
            BundleNotFoundError: ``path`` does not exist.
            BundleError: It is no such bundle, or its manifest is damaged.
        """
        super().__init__(path)
        where = str(self.path / MANIFEST)
        self.manifest = ClassifierManifest.from_json(self.read_manifest(), where)

    def graph(self, profile: str) -> ClassifierGraph:
        """Looks up the graph of a profile; raises `BundleError` if there is none."""
        for graph in self.manifest.graphs:
            if graph.profile == profile:
                return graph
        have = ", ".join(graph.profile for graph in self.manifest.graphs)
        raise BundleError(
            f"{self.path} holds no graph of profile {profile!r} (it has: {have}). Make it with: "
            f"mt3 export CHECKPOINT --profiles {profile} -o {quoted(self.path)}"
        )


def open_bundle(path: str | Path) -> Bundle | ClassifierBundle | AssessorNetworksBundle:
    """Opens a bundle of any kind.

    Raises:
        BundleNotFoundError: ``path`` does not exist.
        BundleError: It is no bundle, or its manifest is damaged.
    """
    data = GraphFiles(path).read_manifest()
    kind = parse_bundle(data, str(Path(path) / MANIFEST)).get("kind")
    if kind is None:
        return Bundle(path)
    return AssessorNetworksBundle(path) if kind == "assessor" else ClassifierBundle(path)
