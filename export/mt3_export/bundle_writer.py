"""Writes bundles: a folder or a `.mt3` file from weights and a variant's tables.

Everything is built and checked in memory or in a temporary folder beside the target, and moved into
place in one step: a bundle is either the old one or the whole new one.  Only a whole bundle of ours
is replaced, and only if nothing else is with it (`mt3_runtime.bundles.bundle_ownership`).
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING

from mt3_export.graphs.decoder import build_decoder
from mt3_export.graphs.encoder import build_encoder
from mt3_export.graphs.lint import lint
from mt3_export.graphs.profiles import blocks_for
from mt3_export.routes.traced_graphs import TRACED_PROFILE, RouteName, load_tracer, trace
from mt3_export.weights import T5Shape
from mt3_runtime.bundles.bundle import (
    EXPORT_ID_KEY,
    MANIFEST,
    MAX_TOKENS_KEY,
    GraphFile,
    Manifest,
    ModelSpec,
    Role,
)
from mt3_runtime.bundles.bundle_ownership import bundle_files
from mt3_runtime.bundles.manifest import CacheForm
from mt3_runtime.bundles.precision import Precision
from mt3_runtime.errors import CheckpointError, OptionError, OutputError
from mt3_runtime.filesystem.atomic import exists, is_folder, real_path
from mt3_runtime.filesystem.folders import folder_beside, move_folder
from mt3_runtime.filesystem.ownership import is_regular
from mt3_runtime.imports.lazy import version
from mt3_runtime.notes.stems import OTHER, stem_named

if TYPE_CHECKING:
    import onnx

    from mt3_export.graphs.graph_builder import Storage
    from mt3_export.variants import Variant
    from mt3_export.weights import Weights

BUNDLE_SUFFIX = ".mt3"


def export_bundle(
    weights: Weights,
    variant: Variant,
    out: str | os.PathLike[str],
    *,
    source: dict[str, str],
    profiles: Sequence[str] = ("cpu",),
    storage: Storage = "fp32",
    name: str | None = None,
    stem: str = OTHER,
    route: RouteName = "direct",
) -> Manifest:
    """Builds all graphs of a model and writes them as a bundle.

    Equal inputs give equal bytes: there is no time stamp and no random number in a bundle.

    Args:
        weights: Canonical weights.
        variant: The variant's tables.
        out: Folder to make, or a file that ends in ``.mt3``.  A whole older bundle there is
            replaced; anything else is left alone.
        source: Where the weights come from; ``digest`` is required, the rest is for people.
        profiles: Graph profiles to include.
        storage: Precision of the stored matrices.
        name: The model's name; the variant's by default.
        stem: What the model is for, one of `mt3_runtime.notes.stems.STEMS`; by default anything.
        route: How the graphs are made; see `mt3_export.routes.traced_graphs`.

    Raises:
        OptionError: No profile, an unknown one, or one twice; an unknown stem; or the route cannot
            write these.
        MissingDependencyError: What the route needs is not installed.
        CheckpointError: The weights do not fit the variant's tables.
        OutputError: ``out`` is in the way or cannot be written; nothing is left behind.
    """
    if not profiles or len(set(profiles)) != len(profiles):
        raise OptionError(f"profiles must be one or more different names, got {list(profiles)}.")
    for profile in profiles:
        blocks_for(profile)
    stem_named(stem)
    if route != "direct":
        _check_route(route, weights, profiles, storage)
    _check_fit(weights, variant)
    exporter = exporter_name() + ("" if route == "direct" else f" via {route}")
    identity = "\n".join([source["digest"], variant.name, exporter, storage])
    export_id = hashlib.sha256(identity.encode()).hexdigest()[:32]
    with new_bundle(Path(out)) as folder:
        graphs = [
            _write_graph(folder, role, profile, weights, variant, storage, export_id, route)
            for profile in profiles
            for role in _ROLES
        ]
        manifest = Manifest(
            export_id=export_id,
            name=name or variant.name,
            family=variant.family,
            variant=variant.name,
            stem=stem,
            licence=variant.licence,
            source=source,
            exporter=exporter,
            precision=stored(storage),
            features=variant.features,
            segments=variant.segments,
            vocabulary=variant.vocabulary,
            notes=variant.notes,
            confidence=variant.confidence,
            decoding=variant.decoding,
            model=_model_spec(weights, variant),
            graphs=tuple(graphs),
        )
        (folder / MANIFEST).write_bytes(manifest.to_json())
    return manifest


_ROLES: tuple[Role, ...] = ("encoder", "decoder")


def stored(storage: Storage) -> Precision:
    """How exact graphs are whose matrices are stored like this, and that compute in fp32."""
    return Precision("fp32" if storage == "fp32" else f"{storage}-stored", weights=storage)


def _check_route(
    route: RouteName, weights: Weights, profiles: Sequence[str], storage: Storage
) -> None:
    """Checks what a traced route can write, before minutes of work."""
    if list(profiles) != [TRACED_PROFILE] or storage != "fp32":
        raise OptionError(
            f"Route {route} writes profile {TRACED_PROFILE} with fp32 weights and nothing else."
        )
    if type(weights.shape) is not T5Shape:
        raise OptionError(
            f"Route {route} knows the T5 networks of Magenta and its ports; this one has other "
            "parts. Leave --via out."
        )
    load_tracer(route)


def _check_fit(weights: Weights, variant: Variant) -> None:
    pairs = (
        ("vocabulary size", weights.shape.vocab_size, variant.vocabulary.size),
        ("input bins", weights.shape.input_bins, variant.features.bins),
        ("decoder channels", weights.shape.channels, len(variant.notes.channels) or 1),
    )
    for what, found, expected in pairs:
        if found != expected:
            raise CheckpointError(
                f"The checkpoint's {what} is {found}, but variant {variant.name} has {expected}."
            )


def _model_spec(weights: Weights, variant: Variant) -> ModelSpec:
    shape = weights.shape
    return ModelSpec(
        frames=variant.features.frames,
        layers=shape.decoder_layers,
        heads=shape.heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        channels=shape.channels,
        memory=variant.memory,
    )


def _write_graph(
    folder: Path,
    role: Role,
    profile: str,
    weights: Weights,
    variant: Variant,
    storage: Storage,
    export_id: str,
    route: RouteName,
) -> GraphFile:
    """Builds, checks and writes one graph, and describes it for the manifest."""
    metadata = {
        EXPORT_ID_KEY: export_id,
        MAX_TOKENS_KEY: str(variant.decoding.max_tokens),
        "mt3.role": role,
        "mt3.profile": profile,
    }
    frames, max_tokens = variant.features.frames, variant.decoding.max_tokens
    if route != "direct":
        model = trace(route, role, weights, frames=frames, max_tokens=max_tokens, metadata=metadata)
    elif role == "encoder":
        model = build_encoder(
            weights,
            frames,
            profile=profile,
            storage=storage,
            metadata=metadata,
            memory=variant.memory,
            memory_tokens=variant.decoding.memory_tokens,
        )
    else:
        model = build_decoder(
            weights,
            frames + variant.memory,
            max_tokens=max_tokens,
            profile=profile,
            storage=storage,
            metadata=metadata,
        )
    blocks = blocks_for(profile)
    return save_graph(
        model,
        folder,
        role=role,
        profile=profile,
        cache="in_place" if route != "direct" else blocks.cache,
        cross_key_transposed=blocks.cross_key_transposed,
        traced=route != "direct",
    )


def save_graph(
    model: onnx.ModelProto,
    folder: Path,
    *,
    role: Role,
    profile: str,
    cache: CacheForm,
    cross_key_transposed: bool,
    traced: bool = False,
) -> GraphFile:
    """Checks and writes a graph, and describes it for the manifest.

    Args:
        model: With its metadata.
        folder: Where to; the name is made of role and profile.
        role: What the graph is.
        profile: Its name there.
        cache: See `GraphFile`.
        cross_key_transposed: See `GraphFile`.
        traced: See `mt3_export.graphs.lint.lint`.
    """
    faults = lint(model, traced=traced)
    if faults:
        raise RuntimeError(f"the exporter built a faulty {role} ({profile}): {'; '.join(faults)}")
    data = model.SerializeToString(deterministic=True)
    path = folder / f"{role}.{profile}.onnx"
    path.write_bytes(data)
    return GraphFile(
        role=role,
        profile=profile,
        file=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        opset=next(item.version for item in model.opset_import if item.domain == ""),
        cache=cache,
        cross_key_transposed=cross_key_transposed,
        inputs=tuple(value.name for value in model.graph.input),
        outputs=tuple(value.name for value in model.graph.output),
    )


@contextmanager
def new_bundle(out: Path) -> Iterator[Path]:
    """Yields a temporary folder to fill; moves it to ``out`` if all went well.

    Raises:
        OutputError: ``out`` is in the way or cannot be written; what is there is unharmed and
            nothing is left behind.
    """
    check_target(out)
    target = real_path(out)
    with folder_beside(target) as folder:
        yield folder
        if out.suffix == BUNDLE_SUFFIX:
            packed = folder.with_name(f"packed{BUNDLE_SUFFIX}")
            _pack(folder, packed)
            check_target(out)
            packed.replace(target)
        else:
            move_folder(folder, target, replaceable=replaceable_files)


def check_target(out: Path) -> None:
    """Checks that a bundle can be written there; only an older bundle is ever replaced.

    Raises:
        OutputError: Something else is in the way, or the place cannot be written to.
    """
    target = real_path(out)
    above = next((folder for folder in target.parents if exists(folder)), None)
    if above is None or not is_folder(above) or not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(
            f"The bundle cannot be written to {out}: {above} is no folder one may write in. "
            "Choose another place with -o."
        )
    if not os.path.lexists(target):
        return
    packed = out.suffix == BUNDLE_SUFFIX
    if not (is_regular(target) if packed else is_folder(target)):
        raise OutputError(f"{out} exists and is not a bundle; choose another name with -o.")
    replaceable_files(target)


def replaceable_files(place: Path) -> list[Path]:
    """The files of an older bundle that a new one may replace; none of an empty folder.

    Raises:
        OutputError: There is anything else, or a graph has changed since it was exported.
    """
    if place.is_dir() and not any(place.iterdir()):
        return []
    try:
        return bundle_files(place, unchanged=True)
    except OutputError as error:
        raise OutputError(f"{error} It is not replaced; choose another place with -o.") from error


def _pack(folder: Path, target: Path) -> None:
    """Zips a folder without compression, with fixed times, manifest first."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.iterdir(), key=lambda p: (p.name != MANIFEST, p.name)):
            archive.writestr(zipfile.ZipInfo(path.name, (1980, 1, 1, 0, 0, 0)), path.read_bytes())


def exporter_name() -> str:
    """What a manifest says of who wrote it: this package and its version."""
    try:
        return f"mt3_export {version()}"
    except PackageNotFoundError:  # run from the source tree
        return "mt3_export 0"
