"""Options of `mt3 calibrate BUNDLE` for 8-bit products: formats, ranges, sensitivity."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from mt3_evaluation.plots import check_picture, to_bytes
from mt3_quantisation.forms.products import without
from mt3_quantisation.forms.recipes import Recipe
from mt3_quantisation.gates.exact_bundle import Source
from mt3_quantisation.gates.material import Material
from mt3_quantisation.gates.teacher_forcing import segments_of
from mt3_quantisation.qdq.insertion import FORMATS
from mt3_quantisation.qdq.qdq_recipe import (
    FP8,
    INT8,
    Quantised,
    portable_graphs,
    weight_products,
)
from mt3_quantisation.qdq.ranges import METHODS
from mt3_quantisation.qdq.sensitivity import measure, parts_of
from mt3_quantisation.qdq.sensitivity_report import chart, document, table
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.errors import OptionError
from mt3_runtime.filesystem.atomic import STDOUT, check_output, write_output
from mt3_runtime.models.installed import BUNDLE_SUFFIX, resolve_model
from mt3_runtime.progress import Meter

#: Segments on which parts are compared: a thousand steps tell parts apart that differ by a third.
SEGMENTS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what only these formats know."""
    group = parser.add_argument_group("products in 8 bits, for engines (int8, fp8)")
    add = group.add_argument
    add("--keep", action="append", default=[], metavar="NAME", help="leave a product, a group or a "
        "layer as it is, by its name in the report of --sensitivity; may be repeated")  # fmt: skip
    add("--ranges", metavar="FILE", help="ranges of activations to use instead of measuring them")
    add("--ranges-by", choices=METHODS, help="how ranges are chosen (default: mse for "
        "int8, absmax for fp8)")  # fmt: skip
    add("--sensitivity", action="store_true", help="quantise each group of products and each layer "
        "alone, and show what it costs; writes no bundle, and -o takes a JSON file")  # fmt: skip
    add("--each", action="store_true", help="with --sensitivity: each product as well")
    add("--plot", metavar="FILE", help="with --sensitivity: a chart (.png, .svg or .pdf)")


def configured(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe with the wishes of the command line.

    Raises:
        OptionError: They contradict each other, or are none of this recipe's.
    """
    if isinstance(recipe, Quantised):
        return quantised(recipe, args)
    if args.keep or args.ranges or args.ranges_by:
        raise OptionError(
            f"--keep, --ranges and --ranges-by go with --precision {' and '.join(FORMATS)}, not "
            f"with {recipe.name}."
        )
    return recipe


def quantised(recipe: Quantised, args: argparse.Namespace) -> Quantised:
    """The same of the recipes that have such wishes.

    Raises:
        OptionError: They contradict each other.
    """
    if args.ranges and args.ranges_by:
        raise OptionError("--ranges brings ranges along; --ranges-by says how to measure them.")
    return replace(
        recipe,
        keep=tuple(args.keep),
        ranges=Path(args.ranges) if args.ranges else None,
        method=args.ranges_by or recipe.method,
    )


def run_sensitivity(args: argparse.Namespace, material: Material | None = None) -> int:
    """``--sensitivity``: the report, and nothing else.

    Args:
        args: Of the command.
        material: What to listen to; the usual one by default.
    """
    recipes = {"int8": INT8, "fp8": FP8}
    if args.precision not in (None, *recipes):
        raise OptionError(f"--sensitivity knows --precision {' and '.join(recipes)}.")
    for path in filter(None, (args.output, args.plot)):
        check_output(path, [args.ranges], bundles=[resolve_model(args.bundle)])
    if args.output and Path(args.output).suffix == BUNDLE_SUFFIX:
        raise OptionError("With --sensitivity, -o takes a JSON file and no bundle.")
    picture = check_picture(args.plot) if args.plot else ""
    recipe = quantised(recipes[args.precision or "int8"], args)
    source = Source(Bundle(resolve_model(args.bundle)), threads=args.threads)
    graphs, material = portable_graphs(source), material or Material()
    products = weight_products(graphs)
    chosen = without(products, recipe.keep)
    ranges = recipe.ranges_of(source, graphs, products, material, talk)
    segments = segments_of(source.listen(material.calibration), source.manifest, most=SEGMENTS)
    parts = parts_of(chosen, each=args.each)
    with Meter("parts", unit="parts") as meter:
        found = measure(
            source, graphs, ranges, segments, parts, kind=recipe.name, report=meter.update
        )
    if args.output:
        text = json.dumps(document(found), indent=1, allow_nan=False)
        write_output(args.output, f"{text}\n".encode())
    if args.plot:
        write_output(args.plot, to_bytes(chart(found), picture))
    if args.output != STDOUT:
        print(table(found))
    return ExitCode.OK
