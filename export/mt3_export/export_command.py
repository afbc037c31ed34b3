"""`mt3 export`: makes a bundle from a checkpoint."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mt3_runtime.bundles.bundle import MANIFEST, Bundle, Manifest
from mt3_runtime.cli import talk
from mt3_runtime.errors import CheckpointError, OptionError
from mt3_runtime.filesystem.atomic import exists, is_folder
from mt3_runtime.models.cache import CLASSIFIER_FOLDER, cache_dir
from mt3_runtime.models.catalogue import get_model_info, pulled_checkpoint
from mt3_runtime.models.installed import BUNDLE_SUFFIX, find_model, installed_models, is_plain
from mt3_runtime.notes.stems import OTHER, STEMS

if TYPE_CHECKING:
    from mt3_runtime.models.catalogue import ModelInfo

PROFILE_NAMES = ("cpu", "portable", "compat")
FRONT_END_NAMES = ("trained", "mt3-infer")
ROUTE_NAMES = ("direct", "jax2tf", "torch")
STARTS = ("samples", "features")
"""What a single graph reads; those of `mt3_export.graphs.complete_graph`."""


class ExportCommand:
    """Reads a checkpoint without its framework and writes a bundle."""

    name = "export"
    help = "make an ONNX bundle from a checkpoint"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's own arguments."""
        parser.add_argument(
            "checkpoint",
            metavar="CHECKPOINT",
            help="a T5X folder, a .pth, .pt or .ckpt file or its folder, or a name that "
            "`mt3 models pull` fetched; or a bundle or its name, to add profiles; or a tagger or "
            "genre classifier (AST, HuBERT, Wav2Vec2, YAMNet's .tflite); or networks that assess "
            "performances (docs/assessment-networks.md)",
        )
        parser.add_argument(
            "--variant", metavar="NAME", help="refuse anything else; found out if not given"
        )
        parser.add_argument(
            "-o",
            "--output",
            metavar="DIR",
            help="folder or .mt3 file to write (default: where `mt3 transcribe` looks by name)",
        )
        parser.add_argument(
            *("--weights", "--precision"),
            choices=("fp16", "fp32"),
            dest="weights",
            help="precision of the stored weights; arithmetic is always fp32. fp16 (default) is "
            "half the size, fp32 exact; of a bundle, what it has",
        )
        parser.add_argument(
            "--profiles",
            metavar="LIST",
            help="comma-separated graph profiles: cpu, portable (CUDA, TensorRT), compat (old "
            "parsers) (default: cpu, or those of the bundle)",
        )
        parser.add_argument(
            "--stem",
            choices=[stem.name for stem in STEMS],
            help="what the model is for: it is preferred for this stem (default: anything)",
        )
        parser.add_argument(
            "--labels",
            metavar="FILE",
            help="names of the classes of a tagger whose weights have none, a name a line",
        )
        parser.add_argument(
            "--features",
            choices=FRONT_END_NAMES,
            default="trained",
            help="trained: those of the training (default); mt3-infer: those that program computes "
            "instead, to see what they cost",
        )
        parser.add_argument(
            "--via",
            choices=ROUTE_NAMES,
            default="direct",
            help="how graphs are made: written node by node (direct, the default), or traced "
            "through a framework, to check that (profile compat only)",
        )
        parser.add_argument(
            "--single-file",
            nargs="?",
            const="samples",
            choices=STARTS,
            metavar="INPUT",
            help="one graph of the whole model, for programs without mt3 (docs/web.md): samples of "
            "segments in, tokens out; with INPUT features, those in place of samples. Needs -o",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Does the work; the bundle's path goes to stdout."""
        from mt3_export.assessors.assessor_writer import find_assessors  # noqa: PLC0415  onnx takes 0.3 s to import
        from mt3_export.classifiers.classifier_writer import find_classifier  # noqa: PLC0415

        if args.checkpoint and find_assessors(Path(args.checkpoint)):
            return _export_assessors(Path(args.checkpoint), args)
        if args.checkpoint and find_classifier(Path(args.checkpoint)):
            return _export_classifier(Path(args.checkpoint), args)
        known = _known_classifier(args.checkpoint)
        if known is not None:
            return _export_classifier(pulled_checkpoint(known.name), args, name=known.name)
        if args.labels is not None:
            raise OptionError("--labels is for taggers and genre classifiers; leave it out.")
        return _written(*(_export(args) if args.single_file is None else _export_single(args)))


def _export(args: argparse.Namespace) -> tuple[Manifest, Path]:
    """Writes encoder and decoder of a checkpoint, or of a bundle once more."""
    found = find_bundle(args.checkpoint)
    return _export_checkpoint(args) if found is None else _export_again(*found, args)


def _export_single(args: argparse.Namespace) -> tuple[Manifest, Path]:
    """Writes one graph of the whole model: of a bundle as it is, or of one made for it."""
    from mt3_export.bundle_writer import check_target  # noqa: PLC0415  onnx takes 0.3 s to import
    from mt3_export.single_file import export_single_file  # noqa: PLC0415

    if not args.output:
        raise OptionError("--single-file needs -o, the name of a folder or of a .mt3 file.")
    if args.profiles not in (None, "cpu") or args.via != "direct":
        raise OptionError(
            "--single-file makes one graph of profile cpu; leave out --profiles, --via."
        )
    out = Path(args.output)
    check_target(out)  # before the work, not after
    found = find_bundle(args.checkpoint)
    changed = (args.variant, args.weights, args.stem) != (None, None, None)
    if found and "cpu" in found[0].profiles and not changed and args.features == "trained":
        return export_single_file(found[0], out, start=args.single_file), out
    with tempfile.TemporaryDirectory() as folder:
        pair = Path(folder) / "model"
        _export(argparse.Namespace(**vars(args) | {"output": str(pair), "profiles": "cpu"}))
        return export_single_file(Bundle(pair), out, start=args.single_file), out


def _export_checkpoint(args: argparse.Namespace) -> tuple[Manifest, Path]:
    from mt3_export.bundle_writer import check_target, export_bundle  # noqa: PLC0415  onnx takes 0.3 s to import
    from mt3_export.checkpoints.checkpoint import read_checkpoint  # noqa: PLC0415
    from mt3_export.variants import variant_named, with_front_end  # noqa: PLC0415

    usual = "cpu" if args.via == "direct" else "compat"
    profiles = _profiles(usual if args.profiles is None else args.profiles)
    model = _pulled(args.checkpoint)
    checkpoint = Path(args.checkpoint) if model is None else pulled_checkpoint(model.name)
    if args.output == "":
        raise OptionError("-o needs the name of a folder or of a .mt3 file.")
    if args.output is not None:
        check_target(Path(args.output))  # before minutes of work, not after
    expected = args.variant or (None if model is None else model.exporter)
    contents = read_checkpoint(checkpoint, expected)
    variant = with_front_end(variant_named(contents.variant), args.features)
    name = variant.name if model is None or args.features != "trained" else model.name
    stored = cache_dir() / "bundles" / name
    out = stored if args.output is None else Path(args.output)
    talk(f"{variant.name}: {contents.weights.parameters:,} parameters, licence: {variant.licence}")
    manifest = export_bundle(
        contents.weights,
        variant,
        out,
        source={"layout": contents.layout, "digest": contents.digest},
        profiles=profiles,
        storage=args.weights or ("fp16" if args.via == "direct" else "fp32"),
        name=name,
        stem=args.stem or OTHER,
        route=args.via,
    )
    return manifest, out


def _known_classifier(text: str) -> ModelInfo | None:
    """The tagger or genre classifier of the catalogue that was asked for by name."""
    if not text or exists(Path(text)):
        return None
    try:
        model = get_model_info(text)
    except OptionError:
        return None
    return None if model.kind == "transcription" else model


def _export_classifier(
    checkpoint: Path, args: argparse.Namespace, *, name: str | None = None
) -> int:
    """Writes the bundle of a tagger or genre classifier."""
    from mt3_export.bundle_writer import check_target  # noqa: PLC0415  onnx takes 0.3 s to import
    from mt3_export.classifiers.classifier_writer import export_classifier  # noqa: PLC0415

    if args.variant or args.stem or args.via != "direct" or args.features != "trained":
        raise OptionError(
            f"{checkpoint} is a tagger or genre classifier: --variant, --stem, --via and "
            "--features are for models that transcribe."
        )
    if args.output == "":
        raise OptionError("-o needs the name of a folder or of a .mt3 file.")
    own = checkpoint.resolve().stem if checkpoint.is_file() else checkpoint.resolve().name
    name = name or own
    if args.output is None and not is_plain(name):
        raise OptionError(f"{name!r} is no name for a bundle; say with -o where it shall go.")
    out = cache_dir() / CLASSIFIER_FOLDER / name if args.output is None else Path(args.output)
    check_target(out)
    profiles = ["cpu"] if args.profiles is None else _profiles(args.profiles)
    manifest = export_classifier(
        checkpoint,
        out,
        name=name,
        profiles=profiles,
        storage=args.weights or "fp16",
        labels=None if args.labels is None else Path(args.labels),
    )
    talk(f"{name}: {manifest.kind}, {manifest.network}, {len(manifest.labels)} classes")
    talk(f"licence: {manifest.licence}")
    for graph in manifest.graphs:
        talk(f"{graph.file}: {graph.size / 2**20:.1f} MiB")
    print(out)
    return 0


def _export_assessors(checkpoint: Path, args: argparse.Namespace) -> int:
    """Writes the bundle of networks that assess performances."""
    from mt3_export.assessors.assessor_writer import export_assessors  # noqa: PLC0415  onnx takes 0.3 s to import
    from mt3_export.bundle_writer import check_target  # noqa: PLC0415

    changed = (args.variant, args.stem, args.labels, args.single_file) != (None,) * 4
    if changed or args.via != "direct" or args.features != "trained":
        raise OptionError(
            f"{checkpoint} assesses performances: --variant, --stem, --labels, --single-file, "
            "--via and --features are for other models."
        )
    if not args.output:
        raise OptionError("Networks that assess need -o, the name of a folder or of a .mt3 file.")
    out = Path(args.output)
    check_target(out)
    manifest = export_assessors(
        checkpoint,
        out,
        name=out.name.removesuffix(BUNDLE_SUFFIX),
        profiles=["cpu"] if args.profiles is None else _profiles(args.profiles),
        storage=args.weights or "fp16",
    )
    for network in manifest.networks:
        talk(f"{network.name}: {network.fusion}, {len(network.dimensions)} dimensions")
    talk(f"licence: {manifest.licence}")
    for graph in manifest.graphs:
        talk(f"{graph.file}: {graph.size / 2**20:.1f} MiB")
    print(out)
    return 0


def find_bundle(text: str) -> tuple[Bundle, str] | None:
    """The bundle that stands for a checkpoint, and the name that its successor gets.

    It is a path, or the name of a model without a pulled checkpoint.

    Raises:
        BundleError: It is damaged.
    """
    path = Path(text)
    if text and exists(path):
        packed = path.suffix == BUNDLE_SUFFIX and not is_folder(path)
        if not packed and not exists(path / MANIFEST):
            return None
        bundle = Bundle(path)
        return bundle, bundle.manifest.name
    try:
        known = get_model_info(text).name
    except OptionError:
        known = text
    pulled = known and exists(cache_dir() / "checkpoints" / known)
    found = None if pulled or not text else find_model(text)
    return None if found is None else (Bundle(found), found.name.removesuffix(BUNDLE_SUFFIX))


def _export_again(bundle: Bundle, name: str, args: argparse.Namespace) -> tuple[Manifest, Path]:
    """Writes a bundle's model with other profiles or in another place."""
    from mt3_export.bundle_weights import read_bundle  # noqa: PLC0415  onnx takes 0.3 s to import
    from mt3_export.bundle_writer import check_target, export_bundle  # noqa: PLC0415
    from mt3_export.variants import with_front_end  # noqa: PLC0415

    old = bundle.manifest
    if args.variant not in (None, old.variant):
        raise CheckpointError(f"{bundle.path} is {old.variant}, not {args.variant}.")
    if args.via != "direct":
        raise OptionError(f"--via {args.via} needs a checkpoint, and {bundle.path} is a bundle.")
    if args.weights == "fp32" and old.precision.weights != "fp32":
        raise OptionError(
            f"The weights of {bundle.path} were rounded to {old.precision.weights}; for exact ones "
            "export the checkpoint."
        )
    profiles = list(bundle.profiles) if args.profiles is None else _profiles(args.profiles)
    changed = args.features != "trained"
    out = _target(args.output, f"{old.variant}_as_mt3_infer" if changed else name, old)
    check_target(out)  # before the work, not after
    contents = read_bundle(bundle)
    manifest = export_bundle(
        contents.weights,
        with_front_end(contents.variant, args.features),
        out,
        source=old.source,
        profiles=profiles,
        storage=args.weights or contents.storage,
        name=None if changed else old.name,
        stem=args.stem or old.stem,
    )
    return manifest, out


def _target(output: str | None, name: str, old: Manifest) -> Path:
    """Where a bundle goes that is exported again: under its name, if no other has that."""
    if output == "":
        raise OptionError("-o needs the name of a folder or of a .mt3 file.")
    if output is not None:
        return Path(output)
    out = installed_models().get(name)
    if out is None and not is_plain(name):  # a bundle's own: it must not lead out of the folder
        raise OptionError(f"{name!r} is no name for a folder; say with -o where it shall go.")
    if out is None:
        return cache_dir() / "bundles" / name
    if Bundle(out).manifest.export_id != old.export_id:
        raise OptionError(
            f"{out} is another bundle of the same name; say with -o where this one shall go."
        )
    return out


def _written(manifest: Manifest, out: Path) -> int:
    for graph in manifest.graphs:
        talk(f"{graph.file}: {graph.size / 2**20:.1f} MiB")
    print(out)
    return 0


def _profiles(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in PROFILE_NAMES]
    if unknown or not names:
        raise OptionError(
            f"--profiles takes a comma-separated list of {', '.join(PROFILE_NAMES)}, got {text!r}."
        )
    return names


def _pulled(text: str) -> ModelInfo | None:
    """The catalogue's model that was asked for by name, or None if the text is a path."""
    if text and exists(Path(text)):
        return None
    try:
        return get_model_info(text)
    except OptionError:
        raise CheckpointError(
            f"There is no checkpoint at {text!r}, and the catalogue (`mt3 models`) does not know "
            "that name."
        ) from None
