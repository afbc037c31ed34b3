"""`mt3 calibrate index` and `filter`: lists the stems of a data set, and filters the lists.

Both can be stopped and begun again: what was read is not read twice.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.errors import OptionError, OutputError
from mt3_runtime.filesystem.atomic import exists, is_folder
from mt3_runtime.notes.stems import STEMS, stem_named
from mt3_training.datasets.filter_rules import SILENCE
from mt3_training.datasets.index_builder import (
    INDEX,
    LEFT_OUT,
    READERS,
    IndexOptions,
    build_index,
    layout_of,
)
from mt3_training.datasets.index_filter import FILTERED_OUT, filter_indices, filtered_name

ALL = "all"

LICENCES = {"slakh": "CC BY 4.0", "babyslakh": "CC BY 4.0"}
"""Of data sets that are named with --dataset, as their publishers state them."""


class IndexVerb:
    """`mt3 calibrate index`: lists the stems of a data set."""

    name = "index"
    help = "list the stems of a data set, with what they hold"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the data set and the place of the indices."""
        add = parser.add_argument
        add("root", metavar="ROOT", help="folder of the data set, or a CSV table of pairs")
        add("-o", "--output", metavar="DIR", help="folder of the indices (default: ROOT)")
        layout = parser.add_mutually_exclusive_group().add_argument
        layout("--as", dest="layout", choices=tuple(READERS), help="layout of the data set "
            "(default: told by what is in it)")  # fmt: skip
        layout("--dataset", choices=tuple(LICENCES), help="the same, with name and licence: "
            "either is read as slakh")  # fmt: skip
        add("--stems", default=ALL, metavar="LIST", help="stems that get an index of their own: "
            f"{ALL} (default), or names with commas")  # fmt: skip
        add("--keys-include-organs", action="store_true", help="organs count as piano, not other")
        add("--licence", metavar="TEXT", help="of the data set, as you have read it; it goes with "
            "the entries")  # fmt: skip
        add("-q", "--quiet", action="store_true", help="only warnings and errors on stderr")

    def run(self, args: argparse.Namespace) -> int:
        """Reads and writes; the path of the whole index goes to stdout."""
        root = Path(args.root)
        if not exists(root):
            raise OptionError(f"{root} does not exist; name the folder of a data set.")
        output = Path(args.output or (root if is_folder(root) else root.parent))
        if args.output is None and not os.access(output, os.W_OK | os.X_OK):
            raise OutputError(f"{output} cannot be written to; name another folder with -o.")
        options = IndexOptions(
            layout=args.layout or ("slakh" if args.dataset else layout_of(root)),
            stems=chosen(args.stems),
            organs_are_keys=args.keys_include_organs,
            dataset=args.dataset or "",
            licence=args.licence or LICENCES.get(args.dataset, ""),
        )
        report = build_index(root, output, options, _quiet if args.quiet else talk)
        if not args.quiet:
            by_stem = ", ".join(f"{name} {n}" for name, n in report.by_stem.items() if n)
            talk(f"{options.layout}: {report.entries} stems: {by_stem or 'none of those wanted'}")
            if report.unsure:
                talk(f"{report.unsure} of them are drums whose sound does not say which; unsure")
            _tell_left_out(report.left_out, output / LEFT_OUT)
        print(output / INDEX)
        return ExitCode.OK if report.entries else ExitCode.FAILED


class FilterVerb:
    """`mt3 calibrate filter`: leaves out of indices what teaches nothing."""

    name = "filter"
    help = "leave silent, empty, damaged and misaligned stems out of indices"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the indices, and what counts as silence."""
        add = parser.add_argument
        add("folder", metavar="DIR", help="folder of the indices")
        add("--stems", default=ALL, metavar="LIST", help=f"{ALL} (default), or names with commas")
        add("--silence", type=_decibels, default=SILENCE, metavar="DB", help="level below which "
            f"the loudest 5 s are silence (default: {SILENCE:g} dB of full scale)")  # fmt: skip
        add("-q", "--quiet", action="store_true", help="only warnings and errors on stderr")

    def run(self, args: argparse.Namespace) -> int:
        """Filters; the paths of the filtered indices go to stdout."""
        folder = Path(args.folder)
        tell = _quiet if args.quiet else talk
        reports = filter_indices(folder, chosen(args.stems), tell, silence=args.silence)
        for name, report in reports.items():
            if not args.quiet and (report.kept or report.left_out):
                tell(f"{name}: {report.kept} kept")
                _tell_left_out(report.left_out, folder / FILTERED_OUT)
            print(folder / filtered_name(name))
        return ExitCode.OK


def chosen(text: str) -> tuple[str, ...]:
    """Names of stems from what a user typed.

    Raises:
        OptionError: One is unknown, or there is none.
    """
    if text.strip() == ALL:
        return tuple(stem.name for stem in STEMS)
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise OptionError("--stems names none; leave it out for all.")
    return tuple(dict.fromkeys(stem_named(name).name for name in names))


def _tell_left_out(left_out: dict[str, int], table: Path) -> None:
    if left_out:
        reasons = ", ".join(f"{reason} {count}" for reason, count in left_out.items())
        talk(f"left out: {reasons} (each in {table})")


def _decibels(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not -120.0 <= value < 0.0:  # false for NaN
        raise argparse.ArgumentTypeError(f"{text!r} is not a level below full scale, -120 to 0 dB")
    return value


def _quiet(_message: str) -> None:
    """Says nothing."""
