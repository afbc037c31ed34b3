"""Exports networks that assess performances: finds out what a path holds and writes its bundle.

What is read: the folder of a MERT (an audio encoder alone); the folder of one network; or a folder
that holds several of those, each in a folder of its name, beside ``audio_encoder/``, which they
share::

    config.json          {"model_type": "performance-assessor", "networks": ["gated", "concat"]}
    audio_encoder/       a MERT as it is published
    gated/, concat/      config.json and model.safetensors each

Equal weights give equal bytes, whatever file they came in.  No framework is needed, and no weights
are shipped: those of MERT are published for non-commercial use.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import ModelProto

from mt3_export.assessors.mert_encoder import (
    CLIP_SECONDS,
    LAYERS,
    RATE,
    MertWeights,
    build_mert,
    is_mert,
    read_mert,
)
from mt3_export.assessors.midi_transformer import build_midi_encoder
from mt3_export.assessors.modality_fusion import build_fusion
from mt3_export.assessors.network_folder import (
    MODEL_TYPE,
    NetworkWeights,
    is_network,
    read_network,
)
from mt3_export.assessors.score_head import build_head
from mt3_export.bundle_writer import exporter_name, new_bundle, stored
from mt3_export.classifiers.model_folder import CONFIG, Settings, open_source
from mt3_export.classifiers.transformer_blocks import PROFILES
from mt3_export.graphs.graph_builder import Storage
from mt3_export.graphs.lint import lint
from mt3_export.weights import FloatArray
from mt3_runtime.bundles.assessor_networks import (
    NETWORK_NAME,
    AssessorGraph,
    AssessorNetworksManifest,
    AssessorRole,
)
from mt3_runtime.bundles.verified_graphs import EXPORT_ID_KEY, MANIFEST
from mt3_runtime.errors import CheckpointError, OptionError

FOLDER_TYPE = "performance-assessor"
AUDIO_FOLDER = "audio_encoder"
_KNOWN = (FOLDER_TYPE, MODEL_TYPE, "mert_model")
_MOST_NETWORKS = 16
_MOST_CONFIG = 1 << 22
UNKNOWN_LICENCE = "not stated in the files: see where you have them from"

Build = Callable[..., ModelProto]


@dataclass(frozen=True)
class Assessors:
    """What was read and can be written.

    Attributes:
        audio: The shared audio encoder, if there is one.
        networks: In order.
        licence: As the folder states it.
        digest: SHA-256 over the digests of all files of weights.
    """

    audio: MertWeights | None
    networks: tuple[NetworkWeights, ...]
    licence: str = UNKNOWN_LICENCE
    digest: str = field(default="", compare=False)

    def parts(self) -> Iterator[tuple[str, AssessorRole, Build, MertWeights | NetworkWeights]]:
        """Network, role, builder and weights of each graph."""
        if self.audio is not None:
            yield "", "audio_encoder", build_mert, self.audio
        for weights in self.networks:
            name = weights.spec.name
            if weights.spec.reads:
                yield name, "midi_encoder", build_midi_encoder, weights
            yield name, "fusion", build_fusion, weights
            yield name, "head", build_head, weights


def find_assessors(path: Path) -> bool:
    """Whether a path holds such networks, as far as its ``config.json`` tells."""
    try:
        if not (path / CONFIG).is_file():
            return False
        config = json.loads((path / CONFIG).read_bytes()[:_MOST_CONFIG])
        return isinstance(config, dict) and config.get("model_type") in _KNOWN
    except (OSError, ValueError, RecursionError):  # whoever reads it says why
        return False


def read_assessors(path: Path) -> Assessors:
    """Reads a MERT, a network, or a folder of networks.

    Raises:
        CheckpointError: It is none that can be exported, is damaged or incomplete, or its networks
            do not fit the audio encoder beside them.
    """
    try:
        config = _config(path)
        if config.values.get("model_type") == FOLDER_TYPE:
            return _read_folder(path, config)
        with open_source(path) as source:
            if is_mert(source):
                audio = read_mert(source)
                return Assessors(audio, (), digest=source.digest)
            if is_network(source.config):
                name = str(
                    source.config.must_be("fusion", "gated", "concat", "cross", "audio", "midi")
                )
                network = read_network(source, name)
                return Assessors(None, (network,), digest=source.digest)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
    raise CheckpointError(f"{path} is neither a MERT nor a network that assesses performances")


def _config(path: Path) -> Settings:
    file = path / CONFIG
    try:
        if file.stat().st_size > _MOST_CONFIG:
            raise CheckpointError(f"{file} is too large for a text of settings")
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not readable as JSON ({error!s:.120})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is no JSON object")
    return Settings(str(file), values)


def _read_folder(path: Path, config: Settings) -> Assessors:
    names = config.values.get("networks", [])
    if (
        not isinstance(names, list)
        or len(names) > _MOST_NETWORKS
        or not all(isinstance(name, str) and NETWORK_NAME.fullmatch(name) for name in names)
        or len(set(names)) != len(names)
    ):
        raise CheckpointError(
            f"{config.where}: networks must be a list of at most {_MOST_NETWORKS} different "
            "lower-case names of folders"
        )
    licence = config.values.get("licence", UNKNOWN_LICENCE)
    if not isinstance(licence, str) or not 1 <= len(licence) <= 256 or not licence.isprintable():
        raise CheckpointError(f"{config.where}: licence must be a short text")
    layers = config.values.get("audio_layers", list(LAYERS))
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise CheckpointError(f"{config.where}: audio_layers must be a list of whole numbers")
    clip = config.whole("clip_samples", CLIP_SECONDS * RATE, RATE // 10, 60 * RATE)
    audio, digests, networks = None, [], []
    if (path / AUDIO_FOLDER).is_dir():
        with open_source(path / AUDIO_FOLDER) as source:
            audio = read_mert(source, layers=tuple(layers), clip=clip)
            digests.append(source.digest)
    for name in names:
        with open_source(path / name) as source:
            networks.append(read_network(source, name))
            digests.append(source.digest)
    if audio is None and not networks:
        raise CheckpointError(f"{path} names no networks and has no {AUDIO_FOLDER}/")
    for network in networks:
        if (
            audio is not None
            and network.spec.hears
            and network.shape.audio_width != audio.shape.width
        ):
            raise CheckpointError(
                f"{path}: network {network.spec.name} reads frames of {network.shape.audio_width} "
                f"numbers, {AUDIO_FOLDER}/ gives {audio.shape.width}; they do not belong together"
            )
    digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return Assessors(audio, tuple(networks), licence, digest)


def export_assessors(
    path: Path,
    out: str | os.PathLike[str],
    *,
    name: str,
    profiles: Sequence[str] = ("cpu",),
    storage: Storage = "fp16",
) -> AssessorNetworksManifest:
    """Writes the bundle of what a path holds.

    Args:
        path: A folder as above.
        out: Folder to make, or a file that ends in ``.mt3``; see `mt3_export.bundle_writer`.
        name: The bundle's.
        profiles: Graph profiles to include.
        storage: Precision of the stored matrices; arithmetic is fp32.

    Raises:
        CheckpointError: What `read_assessors` raises.
        OptionError: An unknown profile, none, or one twice.
        OutputError: ``out`` is in the way or cannot be written; nothing is left behind.
    """
    if not profiles or len(set(profiles)) < len(profiles) or not {*profiles} <= {*PROFILES}:
        raise OptionError(
            f"These networks have the profiles {', '.join(PROFILES[:-1])} and {PROFILES[-1]}, got "
            f"{', '.join(profiles)}."
        )
    found, exporter = read_assessors(path), exporter_name()
    parts = (_identity(found), exporter, storage, *(repr(n.spec) for n in found.networks))
    export_id = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    with new_bundle(Path(out)) as folder:
        graphs = []
        for profile in profiles:
            for network, role, build, weights in found.parts():
                metadata = {EXPORT_ID_KEY: export_id, "mt3.role": role, "mt3.profile": profile}
                model = build(weights, profile=profile, storage=storage, metadata=metadata)
                graphs.append(_write(folder, model, network, role, profile))
        manifest = AssessorNetworksManifest(
            kind="assessor",
            family="networks",
            export_id=export_id,
            name=name,
            licence=found.licence,
            source={"layout": "folder", "digest": found.digest},
            exporter=exporter,
            precision=stored(storage),
            audio=None if found.audio is None else found.audio.spec,
            networks=tuple(network.spec for network in found.networks),
            graphs=tuple(graphs),
        )
        (folder / MANIFEST).write_bytes(manifest.to_json())
    return manifest


def _identity(found: Assessors) -> str:
    """SHA-256 over the values that are written, whatever files they came in."""
    total = hashlib.sha256()
    owners: list[tuple[str, Mapping[str, FloatArray]]] = []
    if found.audio is not None:
        total.update(repr((found.audio.layers, found.audio.clip, found.audio.shape)).encode())
        owners.append(("", found.audio.tensors))
    owners += [(network.spec.name, network.tensors) for network in found.networks]
    for owner, tensors in owners:
        for name in sorted(tensors):
            total.update(f"{owner} {name} {tensors[name].shape}\n".encode())
            total.update(np.ascontiguousarray(tensors[name]).data)
    return total.hexdigest()


def _write(
    folder: Path, model: ModelProto, network: str, role: AssessorRole, profile: str
) -> AssessorGraph:
    if faults := lint(model):
        raise RuntimeError(f"the exporter built a faulty {role}: {'; '.join(faults)}")
    data = model.SerializeToString(deterministic=True)
    path = folder / ".".join(filter(None, (network, role, profile, "onnx")))
    path.write_bytes(data)
    return AssessorGraph(
        network=network,
        role=role,
        profile=profile,
        file=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        opset=next(item.version for item in model.opset_import if item.domain == ""),
    )
