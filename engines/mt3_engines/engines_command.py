"""`mt3 engines`: lists, inspects and removes engines of TensorRT and TensorRT for RTX."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mt3_engines.storage.keys import RECIPE, EngineKey
from mt3_engines.storage.store import (
    ENGINE,
    SIDECAR,
    EngineInfo,
    EngineStore,
    graph_digests,
    read_info,
)
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.errors import BundleError, OptionError
from mt3_runtime.filesystem.ownership import delete, listed
from mt3_runtime.models.installed import resolve_model

_MIB = 1 << 20


class EnginesCommand:
    """Lists, describes, checks and removes engines; needs neither TensorRT nor a GPU."""

    name = "engines"
    help = "list, inspect and remove TensorRT engines"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds `list` (the default), `inspect`, `verify` and `prune`."""
        parser.set_defaults(action=_list, engines=None)
        actions = parser.add_subparsers(metavar="ACTION")
        listing = actions.add_parser("list", help="all engines (default)")
        listing.set_defaults(action=_list)
        inspect = actions.add_parser("inspect", help="all that is known about one engine, as JSON")
        inspect.add_argument("name", metavar="NAME", help="as `list` prints it, or a path")
        inspect.set_defaults(action=_inspect)
        verify = actions.add_parser("verify", help="compare all engines with their digests")
        verify.set_defaults(action=_verify)
        prune = actions.add_parser("prune", help="delete engines that are of no use any more")
        prune.add_argument(
            "bundle",
            nargs="?",
            metavar="BUNDLE",
            help="also delete what was built for other graphs of this bundle's name",
        )
        prune.add_argument("--all", action="store_true", help="delete every engine")
        prune.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
        prune.set_defaults(action=_prune)
        for action in (listing, inspect, verify, prune):
            action.add_argument(
                "--engines", metavar="DIR", help="folder of the engines (default: in the cache)"
            )

    def run(self, args: argparse.Namespace) -> int:
        """Runs the chosen action."""
        folder = None if args.engines is None else Path(args.engines)
        code: int = args.action(args, EngineStore(folder))
        return code


def _list(_: argparse.Namespace, store: EngineStore) -> int:
    head = ("NAME", "MODEL", "ROLE", "PRECISION", "ROWS", "COLUMNS", "MADE BY", "GPU", "SIZE")
    rows: list[tuple[str, ...]] = [head, *(_row(info) for info in store.infos())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    if len(rows) == 1:
        talk(f"no engines in {store.folder}; make some with: mt3 build BUNDLE")
    return ExitCode.OK


def _row(info: EngineInfo) -> tuple[str, ...]:
    key = info.key
    return (
        info.path.stem,
        info.model,
        key.role,
        key.precision,
        ",".join(map(str, key.slots)),
        str(key.capacity or "-"),
        f"{key.made_by.title} {key.tensorrt}",
        key.gpu or f"compute {','.join(key.targets)}",
        f"{info.size / _MIB:.0f} MiB",
    )


def _inspect(args: argparse.Namespace, store: EngineStore) -> int:
    path = Path(args.name)
    if not path.suffix or not path.exists():
        path = store.folder / (path.name + SIDECAR)
    info = read_info(path.with_suffix(SIDECAR))
    print(json.dumps({**json.loads(info.to_json()), "path": str(info.path)}, indent=1))
    return ExitCode.OK


def _verify(_: argparse.Namespace, store: EngineStore) -> int:
    bad = [(path.name, "no whole pair of engine and description") for path in store.strays()]
    alike = [name for name in store.foreign() if name.endswith((ENGINE, SIDECAR))]
    bad += [(name, "no engine of mt3-runtime") for name in alike]
    for info in store.infos():
        try:
            store.load(info)
        except BundleError as error:
            bad.append((info.path.name, str(error)))
            continue
        print(f"{info.sha256}  {info.path.name}")
    for name, why in bad:
        talk(f"{name}: {why}")
    return ExitCode.FAILED if bad else ExitCode.OK


def _prune(args: argparse.Namespace, store: EngineStore) -> int:
    if args.all and args.bundle is not None:
        raise OptionError("prune takes a bundle or --all, not both.")
    bundle = None if args.bundle is None else Bundle(resolve_model(args.bundle))
    found: dict[Path, str] = dict.fromkeys(store.strays(), "no whole pair")
    for path, info in store.own():
        if info is not None and info.path.exists():
            why = "all" if args.all else _use(info, store, bundle)
            files = (info.path, path, *store.kernels(info.path))
            found |= {name: why for name in files if why}
    found |= dict.fromkeys(store.kernels(), "its engine is gone")
    for path, why in sorted(found.items()):
        print(f"{path.name}  {why}")
    foreign = store.foreign()
    if foreign:
        talk(f"left alone, as mt3 did not make it: {listed(foreign)}")
    if not args.dry_run:
        # Descriptions go last: without one, nothing would say any more that an engine is ours.
        freed = delete(sorted(found, key=lambda path: path.suffix == SIDECAR))
        talk(f"{freed / _MIB:.0f} MiB freed")
    return ExitCode.OK


def _use(info: EngineInfo, store: EngineStore, bundle: Bundle | None) -> str:
    """Why an engine is of no use; empty if it may be."""
    if info.key.recipe != RECIPE:
        return "built by another version of mt3-runtime"
    try:
        store.load(info)
    except BundleError:
        return "damaged"
    if bundle is not None and info.model == bundle.manifest.name:
        return "" if _current(info.key, bundle) else "the bundle has other graphs now"
    return ""


def _current(key: EngineKey, bundle: Bundle) -> bool:
    digests = graph_digests(bundle, "portable")
    return key.export_id == bundle.manifest.export_id and key.graph == digests[key.role]
