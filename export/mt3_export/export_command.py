"""`mt3 export`: makes a bundle from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mt3_runtime.cli import talk
from mt3_runtime.errors import CheckpointError, OptionError
from mt3_runtime.files.atomic import exists
from mt3_runtime.models.cache import cache_dir
from mt3_runtime.models.catalogue import get_model_info, pulled_checkpoint
from mt3_runtime.notes.stems import OTHER, STEMS

if TYPE_CHECKING:
    import argparse

    from mt3_runtime.models.catalogue import ModelInfo

PROFILE_NAMES = ("cpu", "portable", "compat")
FRONT_END_NAMES = ("trained", "mt3-infer")
ROUTE_NAMES = ("direct", "jax2tf", "torch")


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
            "`mt3 models pull` fetched",
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
            "half the size, fp32 exact",
        )
        parser.add_argument(
            "--profiles",
            metavar="LIST",
            help="comma-separated graph profiles: cpu, portable (CUDA, TensorRT), compat (old "
            "parsers) (default: cpu)",
        )
        parser.add_argument(
            "--stem",
            choices=[stem.name for stem in STEMS],
            default=OTHER,
            help="what the model is for: it is preferred for this stem (default: anything)",
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

    def run(self, args: argparse.Namespace) -> int:
        """Does the work; the bundle's path goes to stdout."""
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
        talk(
            f"{variant.name}: {contents.weights.parameters:,} parameters, licence: "
            f"{variant.licence}"
        )
        manifest = export_bundle(
            contents.weights,
            variant,
            out,
            source={"layout": contents.layout, "digest": contents.digest},
            profiles=profiles,
            storage=args.weights or ("fp16" if args.via == "direct" else "fp32"),
            name=name,
            stem=args.stem,
            route=args.via,
        )
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
