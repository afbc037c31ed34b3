"""`mt3 calibrate`: the verbs that training and quantisation register.

Contract: a verb is an object of the shape `mt3_runtime.cli.Command`, registered in the entry-point
group `VERB_GROUP` under its name.  The verb `BUNDLE_VERB` has a short form: a word that is no
verb's name is the bundle it works on.
"""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points
from typing import Any

from mt3_runtime.cli import Command
from mt3_runtime.errors import MissingDependencyError

VERB_GROUP = "mt3_runtime.calibrate"
"""Entry-point group of the verbs."""

BUNDLE_VERB = "precision"
"""`mt3 calibrate BUNDLE ...` is short for `mt3 calibrate precision BUNDLE ...`."""


class CalibrateCommand:
    """Makes bundles of other precision; trains, and exports what was trained."""

    name = "calibrate"
    help = "make a faster or smaller bundle of an exact one, or train a small model"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds all verbs with their arguments.

        Raises:
            MissingDependencyError: A package that a verb needs is not installed.
        """
        found = verbs()
        others = sorted(name for name in found if name != BUNDLE_VERB)
        rows = parser.add_subparsers(
            action=_Verbs, metavar="|".join(["BUNDLE", *others]), required=True
        )
        for name, verb in sorted(found.items()):
            short = parser.prog if name == BUNDLE_VERB else f"{parser.prog} {name}"
            row = rows.add_parser(name, prog=short, help=verb.help)
            row.set_defaults(verb=verb)
            verb.add_arguments(row)

    def run(self, args: argparse.Namespace) -> int:
        """Runs the chosen verb."""
        verb: Command = args.verb
        return verb.run(args)


def verbs() -> dict[str, Command]:
    """What `mt3 calibrate` can do in this installation, by name.

    Raises:
        MissingDependencyError: There is nothing, or a package that a verb needs is not installed.
    """
    found: dict[str, Command] = {}
    for entry in entry_points(group=VERB_GROUP):
        try:
            found[entry.name] = entry.load()()
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"`mt3 calibrate` needs the module {error.name!r}, which is not installed. "
                "Install it with: pip install --upgrade 'mt3-runtime[calibration]'"
            ) from error
    if not found:
        raise MissingDependencyError(
            "This installation has neither training nor quantisation. Install them with: "
            "pip install --upgrade 'mt3-runtime[calibration]'"
        )
    return found


class _Verbs(argparse._SubParsersAction):  # type: ignore[type-arg]  # noqa: SLF001
    """Sub-commands, where any other word is the bundle of the verb `BUNDLE_VERB`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.choices: Any = None  # argparse refuses no word then

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values[0] not in self._name_parser_map:
            values = [BUNDLE_VERB, *values]
        super().__call__(parser, namespace, values, option_string)
