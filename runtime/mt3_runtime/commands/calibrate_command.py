"""`mt3 calibrate`: the verbs that training and quantisation register.

Contract: a verb is an object of the shape `mt3_runtime.cli.Command`, registered in the entry-point
group `VERB_GROUP` under its name.  Only the chosen verb is imported, so one works where a package
that another one needs is absent.  The verb `BUNDLE_VERB` has a short form: a word that is no verb's
name is the bundle it works on.
"""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points
from typing import Any

from mt3_runtime.cli import Command, Listing

VERB_GROUP = "mt3_runtime.calibrate"
"""Entry-point group of the verbs."""

BUNDLE_VERB = "precision"
"""`mt3 calibrate BUNDLE ...` is short for `mt3 calibrate precision BUNDLE ...`."""

_LISTINGS = {
    name: Listing(f"calibrate {name}", text, "calibration")
    for name, text in (
        ("assess", "make degraded performances, scales, references and style heads"),
        ("assessor", "train networks that assess performances, and judge them"),
        ("build-index", "the same as index"),
        ("export", "make a bundle of what was trained"),
        ("filter", "leave silent, empty, damaged and misaligned stems out of indices"),
        ("filter-index", "the same as filter"),
        ("index", "list the stems of a data set, with what they hold"),
        (BUNDLE_VERB, "make a bundle of other precision of this one"),
        ("train", "begin a training run, or go on with one"),
        ("train-per-stem", "train a model for each stem, or go on with it"),
    )
}


class CalibrateCommand:
    """Makes bundles of other precision; trains, and exports what was trained."""

    name = "calibrate"
    help = "make a faster or smaller bundle of an exact one, or train a small model"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds all verbs; the chosen one adds its own arguments."""
        found = verbs()
        others = sorted(name for name in found if name != BUNDLE_VERB)
        rows = parser.add_subparsers(
            action=_Verbs, metavar="|".join(["BUNDLE", *others]), required=True
        )
        for name, verb in sorted(found.items()):
            short = parser.prog if name == BUNDLE_VERB else f"{parser.prog} {name}"
            rows.add_parser(name, prog=short, help=verb.help)

    def run(self, args: argparse.Namespace) -> int:
        """Runs the chosen verb."""
        verb: Command = args.verb
        with args.listing.needs():
            return verb.run(args)


def verbs() -> dict[str, Listing]:
    """What `mt3 calibrate` can do, by name: this project's verbs, and those that others register.

    Those without a source are not part of this installation.
    """
    found = dict(_LISTINGS)
    for entry in entry_points(group=VERB_GROUP):
        known = found.get(entry.name, Listing(f"calibrate {entry.name}", ""))
        found[entry.name] = Listing(known.name, known.help, known.extra, entry)
    return found


class _Verbs(argparse._SubParsersAction):  # type: ignore[type-arg]  # noqa: SLF001
    """Sub-commands, where any other word is the bundle of the verb `BUNDLE_VERB`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._verbs = verbs()
        self.choices: Any = None  # argparse refuses no word then

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values[0] not in self._verbs:
            values = [BUNDLE_VERB, *values]
        self.fill(values[0])
        super().__call__(parser, namespace, values, option_string)

    def fill(self, name: str) -> argparse.ArgumentParser:
        """Imports a verb and adds its arguments to its parser, once.

        Raises:
            MissingDependencyError: It, or a package it needs, is not installed.
        """
        listing = self._verbs[name]
        parser: argparse.ArgumentParser = self._name_parser_map[name]
        if parser.get_default("verb") is None:
            verb = listing.load()
            parser.set_defaults(verb=verb, listing=listing)
            verb.add_arguments(parser)
        return parser
