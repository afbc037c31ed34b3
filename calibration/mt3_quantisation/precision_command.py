"""`mt3 calibrate BUNDLE --precision NAME`: makes a quantised bundle, judges it, and writes it.

Nothing is written unless the gate is passed or ``--force`` is given, and then all at once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mt3_evaluation.evaluation import labelled, unique_names
from mt3_evaluation.scoring import by_pitch, match
from mt3_export.bundle_writer import check_target, new_bundle
from mt3_quantisation import qdq_command as qdq
from mt3_quantisation.forms.precision_bundle import write_files, write_graphs
from mt3_quantisation.forms.recipes import RECIPES, Product, Recipe, recipe_named
from mt3_quantisation.gates.exact_bundle import Source
from mt3_quantisation.gates.gate_table import table
from mt3_quantisation.gates.judge import Judgement, judge
from mt3_quantisation.gates.material import TAKES, Excerpt, Material, in_takes
from mt3_runtime.audio.sources import load_audio
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.bundles.manifest import Manifest
from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.commands.folder_inputs import find_inputs
from mt3_runtime.errors import OptionError
from mt3_runtime.filesystem.atomic import STDOUT, check_output, is_folder, real_path, write_output
from mt3_runtime.models.installed import resolve_model

FORMAT, VERSION = "mt3-runtime.precision", 1


class PrecisionVerb:
    """`mt3 calibrate BUNDLE`: makes a bundle of other precision of an exact one."""

    name = "precision"
    help = "make a bundle of other precision of this one"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the bundle, what is made of it, and how it is judged."""
        add_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Makes, judges and writes."""
        return run(args)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the bundle, what is made of it, and how it is judged."""
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="exact bundle, or name of an installed model")
    add("--precision", choices=tuple(RECIPES), help="what to make")
    add("-o", "--output", metavar="OUT", help="folder or .mt3 file to write")
    add("--force", action="store_true", help="write it even if its gate fails; it will say so")
    add("--audio", metavar="DIR", help="folder of your own labelled recordings to judge by as well")
    add("--json", metavar="FILE", help="write everything as JSON; - for stdout, then no table")
    add("--device", default="cpu", help="where the new bundle is judged: cpu (default), cuda[:N]")
    add("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    qdq.add_arguments(parser)


def run(args: argparse.Namespace, material: Material | None = None) -> int:
    """Makes, judges and writes.

    Args:
        args: Of `add_arguments`.
        material: What to make it with and to judge it by; the usual one by default.
    """
    if args.sensitivity:
        return qdq.run_sensitivity(args, material)
    out = _checked(args)
    recipe, source = qdq.configured(recipe_named(args.precision), args), _source(args)
    own = _own(args.audio, source.manifest) if args.audio else ()
    material = material or Material()
    talk(f"making {recipe.name} of {source.manifest.name}")
    product = recipe.apply(source, material, talk)
    with tempfile.TemporaryDirectory(prefix="mt3-precision-") as place:
        made, stand_in = _drafts(source.manifest, product, Path(place))
        sets: dict[str, Sequence[Excerpt]] = {"check": material.check}
        if own:
            sets["own"] = in_takes(own, TAKES)
        judgement = judge(
            source,
            made,
            sets,
            gate=recipe.gate,
            device=args.device,
            stand_in=stand_in if args.device == "cpu" else None,
            talk=talk,
        )
    _report(args, recipe, source, judgement)
    if not judgement.verdict.passed and not args.force:
        talk(f"not written, as it fails its gate; --force writes {out} all the same")
        return ExitCode.FAILED
    precision = replace(product.precision, gate=judgement.verdict)
    with new_bundle(out) as folder:
        write_graphs(source.manifest, product.graphs, folder, precision=precision)
        write_files(product.files, folder)
    talk(f"written: {out}")
    return ExitCode.OK


def _checked(args: argparse.Namespace) -> Path:
    """Refuses what could only fail after minutes of work; returns where the bundle goes."""
    if not args.precision:
        raise OptionError(f"Say what to make, with --precision: one of {', '.join(RECIPES)}.")
    if not args.output:
        raise OptionError("-o needs the name of a folder or of a .mt3 file.")
    if args.plot or args.each:
        raise OptionError("--plot and --each go with --sensitivity.")
    out, source = Path(args.output), resolve_model(args.bundle)
    if real_path(out) == real_path(source):
        raise OptionError(f"{out} is the exact bundle itself; choose another name with -o.")
    check_target(out)
    if args.audio is not None and not is_folder(args.audio):
        raise OptionError(f"--audio takes a folder, and {args.audio} is none.")
    if args.json:
        audio = find_inputs([args.audio]) if args.audio else []
        check_output(args.json, [args.ranges, *audio], bundles=[source, out])
    match((), (), by_pitch)  # complains now if mir_eval is missing
    return out


def _source(args: argparse.Namespace) -> Source:
    return Source(Bundle(resolve_model(args.bundle)), threads=args.threads)


def _own(folder: str, manifest: Manifest) -> tuple[Excerpt, ...]:
    """The labelled recordings of a folder.

    Raises:
        AudioError: One cannot be read.
        OptionError: There is none, or a label file is damaged.
    """
    rate = manifest.segments.sample_rate
    audio = find_inputs([folder])
    found = []
    for name, path in zip(unique_names(audio), audio, strict=True):
        recording = labelled(path.stem, path, path.parent, trusted=False)
        if recording is None:
            talk(f"skipped: {path}: no labels")
            continue
        samples = load_audio(path, target_rate=rate)
        found.append(Excerpt(name, samples, rate, recording.labels))
    if not found:
        raise OptionError(f"No recording in {folder} has labels; docs/evaluation.md says how.")
    return tuple(found)


def _drafts(source: Manifest, product: Product, place: Path) -> tuple[Bundle, Bundle | None]:
    """The product, and what stands in for it, as bundles in a temporary folder."""
    drafts = []
    for name, graphs, precision in (
        ("made", product.graphs, product.precision),
        ("stand-in", product.stand_ins, product.stand_in_precision or product.precision),
    ):
        if graphs:
            (place / name).mkdir()
            write_graphs(source, graphs, place / name, precision=precision)
            drafts.append(Bundle(place / name))
    return drafts[0], drafts[1] if len(drafts) > 1 else None


def _report(args: argparse.Namespace, recipe: Recipe, source: Source, found: Judgement) -> None:
    if args.json:
        document = {
            "format": FORMAT,
            "version": VERSION,
            "precision": recipe.name,
            "source": {"name": source.manifest.name, "export_id": source.manifest.export_id},
            **found.document(),
        }
        write_output(args.json, f"{json.dumps(document, indent=1, allow_nan=False)}\n".encode())
    if args.json != STDOUT:
        print(f"{source.manifest.name}, {recipe.name}\n\n{table(found)}")
