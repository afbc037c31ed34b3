"""Exports a tagger or a genre classifier: finds out what a path holds and writes its bundle.

Contract: `find_classifier` says whether a path is one, from names alone; `export_classifier` reads,
builds and writes.  Equal weights give equal bytes, whatever file they came in.  Nothing is shipped:
weights and the names of their classes are the user's own files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto

from mt3_export.bundle_writer import exporter_name, new_bundle, stored
from mt3_export.checkpoints.torch_zip import TorchArchive
from mt3_export.classifiers.ast_network import build_ast, front_end_of, is_ast, read_ast, window_of
from mt3_export.classifiers.model_folder import CONFIG, WEIGHTS, open_source, read_labels
from mt3_export.classifiers.tflite import read_tflite
from mt3_export.classifiers.transformer_blocks import PROFILES
from mt3_export.classifiers.wave_network import (
    FAMILIES,
    build_wave,
    front_end_of_wave,
    is_wave,
    read_wave,
    window_of_wave,
)
from mt3_export.classifiers.yamnet_network import (
    SCORE_STEPS,
    build_yamnet,
    front_end_of_yamnet,
    read_yamnet,
    window_of_yamnet,
)
from mt3_export.graphs.graph_builder import Storage
from mt3_export.graphs.lint import lint
from mt3_export.weights import FloatArray
from mt3_runtime.bundles.classifier import (
    Activation,
    ClassifierGraph,
    ClassifierManifest,
    FrontEnd,
    Kind,
    WindowSpec,
)
from mt3_runtime.bundles.verified_graphs import EXPORT_ID_KEY, MANIFEST
from mt3_runtime.errors import CheckpointError, OptionError

_AST = "audio-spectrogram-transformer"
UNKNOWN_LICENCE = "not stated in the files: see where you have them from"


@dataclass(frozen=True)
class Classifier:
    """A network that was read and can be written.

    Attributes:
        kind: What it is for.
        network: What it is called in the manifest.
        labels: Names of its classes; empty where its files have none.
        classes: How many there are.
        front_end: How features are made.
        window: How recordings are cut.
        activation: What its logits are.
        score_steps: Steps its scores are rounded to; 0 for none.
        digest: SHA-256 of the file with the weights.
        identity: SHA-256 of the weights, whatever file they came in.
        profiles: That it can be written in.
        build: Writes its graph: profile, storage, metadata.
    """

    kind: Kind
    network: str
    labels: tuple[str, ...]
    classes: int
    front_end: FrontEnd
    window: WindowSpec
    activation: Activation
    score_steps: int
    digest: str
    identity: str
    profiles: tuple[str, ...]
    build: Callable[[str, Storage, dict[str, str]], ModelProto]


def find_classifier(path: Path) -> bool:
    """Whether a path holds a tagger or a genre classifier, as far as names tell.

    Of a ``torch.save`` file without settings the names of its tensors do.
    """
    try:
        if path.suffix == ".tflite":
            return path.is_file()
        folder = path if path.is_dir() else path.parent if path.name in WEIGHTS else None
        if folder is not None and (folder / CONFIG).is_file():
            config = json.loads((folder / CONFIG).read_bytes()[: 1 << 22])
            return isinstance(config, dict) and config.get("model_type") in (_AST, *FAMILIES)
        if path.suffix == ".pth" and path.is_file():
            with TorchArchive(path) as archive:
                names = archive.state_dict()
            return "v.dist_token" in {name.removeprefix("module.") for name in names}
    except (CheckpointError, OSError, ValueError, RecursionError):  # whoever reads it says why
        return False
    return False


def read_classifier(path: Path) -> Classifier:
    """Reads a network.

    Raises:
        CheckpointError: It is none that can be exported, is damaged or incomplete.
    """
    try:
        return _read_tflite(path) if path.suffix == ".tflite" else _read_folder(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error


def _read_folder(path: Path) -> Classifier:
    with open_source(path) as source:
        if is_ast(source):
            weights = read_ast(source)
            return Classifier(
                "tagger",
                "ast",
                weights.labels,
                len(weights.tensors["head.bias"]),
                front_end_of(weights),
                window_of(weights.front_end),
                weights.activation,
                0,
                source.digest,
                _digest(weights.tensors),
                PROFILES,
                lambda p, s, m: build_ast(weights, profile=p, storage=s, metadata=m),
            )
        if is_wave(source):
            network = read_wave(source)
            return Classifier(
                "genre",
                network.shape.family,
                network.labels,
                len(network.tensors["classifier.bias"]),
                front_end_of_wave(network),
                window_of_wave(network),
                network.activation,
                0,
                source.digest,
                _digest(network.tensors),
                PROFILES,
                lambda p, s, m: build_wave(network, profile=p, storage=s, metadata=m),
            )
    raise CheckpointError(f"{path} is neither an audio spectrogram transformer nor a HuBERT")


def _read_tflite(path: Path) -> Classifier:
    weights = read_yamnet(read_tflite(path), str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Classifier(
        "tagger",
        "yamnet",
        weights.labels,
        len(weights.layers[-1].bias),
        front_end_of_yamnet(weights),
        window_of_yamnet(),
        "probability",
        SCORE_STEPS,
        digest,
        digest,
        PROFILES,
        lambda _p, _s, m: build_yamnet(weights, metadata=m),
    )


def _digest(tensors: Mapping[str, FloatArray]) -> str:
    """SHA-256 over names, shapes and values."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].shape}\n".encode())
        found.update(np.ascontiguousarray(tensors[name]).data)
    return found.hexdigest()


def export_classifier(
    path: Path,
    out: str | os.PathLike[str],
    *,
    name: str,
    profiles: Sequence[str] = ("cpu",),
    storage: Storage = "fp16",
    labels: Path | None = None,
    licence: str = UNKNOWN_LICENCE,
) -> ClassifierManifest:
    """Writes the bundle of a tagger or a genre classifier.

    Args:
        path: A Hugging Face folder or the file in it, AST's ``.pth``, or YAMNet's ``.tflite``.
        out: Folder to make, or a file that ends in ``.mt3``; see `mt3_export.bundle_writer`.
        name: The model's.
        profiles: Graph profiles to include.
        storage: Precision of the stored matrices; arithmetic is fp32.
        labels: A file with the names of the classes, where the weights' own have none.
        licence: Of the weights.

    Raises:
        CheckpointError: What `read_classifier` raises; no labels, or of another number.
        OptionError: An unknown profile, none, or one twice.
        OutputError: ``out`` is in the way or cannot be written; nothing is left behind.
    """
    if not profiles or len(set(profiles)) < len(profiles) or not {*profiles} <= {*PROFILES}:
        raise OptionError(
            f"A classifier has the profiles {', '.join(PROFILES[:-1])} and {PROFILES[-1]}, got "
            f"{', '.join(profiles)}."
        )
    classifier = with_labels(read_classifier(path), labels, path)
    exporter = exporter_name()
    parts = (classifier.identity, classifier.network, exporter, storage, *classifier.labels)
    export_id = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    with new_bundle(Path(out)) as folder:
        graphs = tuple(
            _write(folder, classifier, profile, storage, export_id) for profile in profiles
        )
        manifest = ClassifierManifest(
            kind=classifier.kind,
            export_id=export_id,
            name=name,
            network=classifier.network,
            licence=licence,
            source={
                "layout": path.suffix.removeprefix(".") or "folder",
                "digest": classifier.digest,
            },
            exporter=exporter,
            precision=stored("fp16" if classifier.network == "yamnet" else storage),
            front_end=classifier.front_end,
            window=classifier.window,
            labels=classifier.labels,
            activation=classifier.activation,
            score_steps=classifier.score_steps,
            graphs=graphs,
        )
        (folder / MANIFEST).write_bytes(manifest.to_json())
    return manifest


def with_labels(classifier: Classifier, file: Path | None, path: Path) -> Classifier:
    """The classifier with names for its classes; raises `CheckpointError` if they do not fit."""
    labels = classifier.labels if file is None else read_labels(file)
    if not labels:
        raise CheckpointError(
            f"{path} does not name its {classifier.classes} classes; give a file that does, with "
            "--labels FILE (a name a line, or AudioSet's class_labels_indices.csv)"
        )
    if len(labels) != classifier.classes:
        raise CheckpointError(
            f"{file or path} names {len(labels)} classes, the network has {classifier.classes}; "
            "they do not belong together"
        )
    return replace(classifier, labels=labels)


def _write(
    folder: Path, classifier: Classifier, profile: str, storage: Storage, export_id: str
) -> ClassifierGraph:
    metadata = {EXPORT_ID_KEY: export_id, "mt3.kind": classifier.kind, "mt3.profile": profile}
    model = classifier.build(profile, storage, metadata)
    if faults := lint(model):
        raise RuntimeError(f"the exporter built a faulty classifier: {'; '.join(faults)}")
    data = model.SerializeToString(deterministic=True)
    path = folder / f"{classifier.kind}.{profile}.onnx"
    path.write_bytes(data)
    return ClassifierGraph(
        profile=profile,
        file=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        opset=next(item.version for item in model.opset_import if item.domain == ""),
    )
