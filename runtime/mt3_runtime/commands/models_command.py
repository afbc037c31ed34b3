"""`mt3 models`: lists known and installed models, downloads checkpoints.

Tables and paths go to stdout, one row per line, so that they can be piped; progress and advice go
to stderr.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from pathlib import Path

from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.errors import OptionError
from mt3_runtime.models import catalogue
from mt3_runtime.models.cache import cache_dir
from mt3_runtime.models.catalogue import download_model
from mt3_runtime.models.installed import installed_classifiers, installed_models, remove_model
from mt3_runtime.models.provenance import provenances
from mt3_runtime.progress import Meter

_MIB = 1 << 20
#: Columns of `info`: where values begin, and how wide they get.
_INDENT, _WIDTH = 12, 100
#: A checkpoint of more files is not listed unasked.
_FEW_FILES = 4


class ModelsCommand:
    """Lists, explains and fetches models."""

    name = "models"
    help = "list the known models, fetch checkpoints"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds `list` (the default), `info`, `pull`, `remove` and `where`."""
        parser.set_defaults(action=_list)
        actions = parser.add_subparsers(metavar="ACTION")
        actions.add_parser("list", help="all known models (default)")
        info = actions.add_parser("info", help="all that is known about one model")
        info.add_argument("name", metavar="NAME")
        info.add_argument("--files", action="store_true", help="also list many files")
        info.set_defaults(action=_info)
        pull = actions.add_parser("pull", help="fetch a checkpoint into the cache folder")
        pull.add_argument("name", metavar="NAME")
        pull.add_argument(
            "--allow-unverified",
            action="store_true",
            help="also fetch files whose digest the catalogue does not know",
        )
        pull.set_defaults(action=_pull)
        remove = actions.add_parser("remove", help="delete a stored checkpoint and bundle")
        remove.add_argument("name", metavar="NAME")
        remove.set_defaults(action=_remove)
        where = actions.add_parser("where", help="print the cache folder")
        where.set_defaults(action=_where)

    def run(self, args: argparse.Namespace) -> int:
        """Runs the chosen action."""
        args.action(args)
        return ExitCode.OK


def _list(_: argparse.Namespace) -> None:
    installed = _installed()
    known = {model.name: model for model in catalogue.list_models()}
    rows = [("NAME", "STATE", "SIZE", "CHECKED BY", "LICENCE", "WHAT")]
    for name, model in known.items():
        state = _state(model, installed)
        rows.append((name, state, _size(model), _digest(model), model.licence, model.summary))
    rows += [
        (name, "installed", "-", "-", "-", str(installed[name]))
        for name in installed.keys() - known
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:5], widths, strict=True)]
        print("  ".join([*cells, row[5]]))


def _info(args: argparse.Namespace) -> None:
    model = catalogue.get_model_info(args.name)
    installed = _installed()
    origin = provenances()[model.exporter]
    rows = {
        "name": model.name,
        "aliases": ", ".join(model.aliases),
        "what": model.summary,
        "family": model.family,
        "state": _state(model, installed),
        "installed": str(installed.get(model.name, "")),
        "licence": model.licence,
        "doubts": model.licence_note,
        "taught on": model.trained_on,
        "source": model.source,
        "revision": model.revision or "none: the host has no revisions",
        "size": _size(model),
        "checked by": f"{_digest(model)} ({model.digests})",
        "note": model.note,
        "original": f"{origin.repository} at {origin.commit}",
        "code": f"{origin.licence}; {origin.framework}",
        "here": ", ".join(origin.implemented) or "not in this version",
        "verified": origin.verified_on,
        "remarks": origin.notes,
    }
    for key, value in rows.items():
        if value:
            print(f"{key + ':':<{_INDENT}}{_wrapped(value)}")
    shown = model.files if args.files or len(model.files) <= _FEW_FILES else ()
    print(f"{'files:':<{_INDENT}}{len(model.files)}{'' if shown else ' (--files lists them)'}")
    for file in shown:
        size = "-" if file.size is None else str(file.size)
        print(f"{file.sha256 or 'unverified':<64}  {size:>10}  {file.path}")


def _wrapped(text: str) -> str:
    """The text in lines of readable length, the second and later ones indented."""
    lines = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * _INDENT).join(lines)


def _pull(args: argparse.Namespace) -> None:
    model = catalogue.get_model_info(args.name)
    talk(f"{model.name}: {model.licence}. {model.licence_note}")
    if model.trained_on:
        talk(f"taught on {model.trained_on}")
    with Meter(model.name, unit="MiB") as meter:
        folder = download_model(
            model.name,
            allow_unverified=args.allow_unverified,
            progress=lambda done, total: meter.update(done / _MIB, total and total / _MIB),
        )
    print(folder)
    if model.supported:
        talk(f"next: mt3 export {model.name}")


def _remove(args: argparse.Namespace) -> None:
    freed = remove_model(args.name)
    if not freed:
        raise OptionError(f"Nothing is stored under {args.name!r}; `mt3 models` lists what is.")
    talk(f"{freed / _MIB:.0f} MiB freed")


def _where(_: argparse.Namespace) -> None:
    print(cache_dir())


def _installed() -> dict[str, Path]:
    """The bundles in the cache folder; what is known is listed where it cannot be looked into."""
    try:
        return installed_models() | installed_classifiers()
    except OptionError as error:
        talk(f"warning: {error}")
        return {}


def _state(model: catalogue.ModelInfo, installed: Mapping[str, object]) -> str:
    if model.name in installed:
        return "installed"
    if model.shipped:
        return "shipped"
    return "exportable" if model.supported else "known"


def _digest(model: catalogue.ModelInfo) -> str:
    """Whether what arrives can be told from anything else."""
    return "SHA-256" if model.verified else "unverified"


def _size(model: catalogue.ModelInfo) -> str:
    return f"{model.size / _MIB:.0f} MiB" if model.size else "-"
