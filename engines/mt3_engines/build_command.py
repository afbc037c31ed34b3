"""`mt3 build`: builds TensorRT engines from a bundle, for this machine."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from mt3_engines.building.builder import Report, Tools, build_engine, prepared_graph
from mt3_engines.optional import (
    find_place,
    import_polygraphy,
    import_tensorrt,
    log,
    open_cuda,
)
from mt3_engines.storage.keys import HARDWARE, PRECISIONS, EngineKey, EngineTarget
from mt3_engines.storage.requests import BuildOptions, make_keys
from mt3_engines.storage.shapes import CAPACITIES, SLOTS, make_plan, parse_numbers
from mt3_engines.storage.store import EngineInfo, EngineStore
from mt3_engines.versions import parse_version
from mt3_runtime.bundles.bundle import EXPORT_ID_KEY, Bundle
from mt3_runtime.bundles.onnx_scan import scan
from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.errors import BundleError, OutputError
from mt3_runtime.filesystem.atomic import check_output, make_folder, write_atomic
from mt3_runtime.filesystem.ownership import is_regular, listed
from mt3_runtime.models.installed import resolve_model
from mt3_runtime.progress import Meter

_MIB = 1 << 20


class BuildCommand:
    """Builds what is missing; engines that are there already stay."""

    name = "build"
    help = "build a TensorRT engine from a bundle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's own arguments."""
        add = parser.add_argument
        add("bundle", metavar="BUNDLE", help="a bundle with the profile portable, or its name")
        add("--precision", choices=PRECISIONS, default="fp16", help="default: fp16")
        add(
            "--slots",
            default=",".join(map(str, SLOTS)),
            metavar="LIST",
            help="numbers of sequences decoded together (default: %(default)s)",
        )
        add(
            "--capacities",
            default=",".join(map(str, CAPACITIES)),
            metavar="LIST",
            help="lengths of the cache, beside the longest sequence (default: %(default)s)",
        )
        add("--gpu", type=int, default=0, metavar="N", help="build for this GPU (default: 0)")
        add("--engines", metavar="DIR", help="folder of the engines (default: in the cache)")
        add(
            "--version-compatible",
            action="store_true",
            help="let later versions of this TensorRT run them, too (slower)",
        )
        add(
            "--hardware",
            choices=HARDWARE,
            default="this",
            help="GPUs they run on: this kind, same compute capability, all from Ampere on "
            "(default: this)",
        )
        add("--strip", action="store_true", help="leave the weights out; the bundle brings them")
        add("--rebuild", action="store_true", help="build again what is there")
        add("--log", metavar="FILE", help="keep what TensorRT says")
        add("--graphs", metavar="DIR", help="write the ONNX graphs instead; needs no TensorRT")
        add("--tensorrt", metavar="VERSION", help="with --graphs: for this version")

    def run(self, args: argparse.Namespace) -> int:
        """Does the work; the paths of what was made go to stdout."""
        bundle = Bundle(resolve_model(args.bundle))
        slots = parse_numbers(args.slots, "--slots")
        plan = make_plan(bundle.manifest, slots, parse_numbers(args.capacities, "--capacities"))
        wish = BuildOptions(args.precision, args.version_compatible, args.hardware, args.strip)
        if args.graphs is not None:
            version = args.tensorrt or "10.16"
            parse_version(version)
            keys = make_keys(bundle, plan, wish, EngineTarget(version, "0.0", ""))
            return _write_graphs(bundle, keys, Path(args.graphs))
        tensorrt, cuda = import_tensorrt(), open_cuda(args.gpu)
        tools = Tools(tensorrt, import_polygraphy(), find_place(tensorrt, cuda), cuda.use)
        store = EngineStore(None if args.engines is None else Path(args.engines))
        place = tools.place
        talk(f"TensorRT {place.tensorrt} for {place.gpu} (compute capability {place.capability})")
        with _logged(args.log, bundle):
            for key in make_keys(bundle, plan, wish, place):
                info = None if args.rebuild else _present(store, key)
                print((info or _build(bundle, key, store, tools)).path)
        return ExitCode.OK


def _present(store: EngineStore, key: EngineKey) -> EngineInfo | None:
    """Exactly this engine, if it is there."""
    for info in store.infos():
        if info.key == key and info.path.is_file():
            talk(f"{info.path.name} is there already")
            return info
    return None


def _build(bundle: Bundle, key: EngineKey, store: EngineStore, tools: Tools) -> EngineInfo:
    what = f"{key.role} {key.numbers}" + (f", {key.capacity} columns" if key.capacity else "")
    talk(f"building {what}: this takes minutes")
    with Meter(what, unit="steps") as meter:
        report: Report = meter.update
        info = build_engine(bundle, key, store=store, tools=tools, report=report)
    talk(f"{info.path.name}: {info.size / _MIB:.0f} MiB in {info.build_seconds:.0f} s")
    return info


def _write_graphs(bundle: Bundle, keys: list[EngineKey], folder: Path) -> int:
    make_folder(folder)
    paths = [folder / _graph_name(key) for key in keys]
    foreign = [path.name for path in paths if os.path.lexists(path) and not _is_graph(path)]
    if foreign:
        raise OutputError(
            f"{folder} holds {listed(foreign)}, which mt3 did not write; choose another folder."
        )
    for key, path in zip(keys, paths, strict=True):
        write_atomic(path, prepared_graph(bundle, key).SerializeToString())
        print(path)
    return ExitCode.OK


def _graph_name(key: EngineKey) -> str:
    columns = f".c{key.capacity}" if key.capacity else ""
    return f"{key.role}.{key.numbers}{columns}.onnx"


def _is_graph(path: Path) -> bool:
    """Whether a file is a graph of this project."""
    if not is_regular(path):
        return False
    try:
        return EXPORT_ID_KEY in scan(memoryview(path.read_bytes())).metadata
    except (BundleError, OSError):
        return False


@contextlib.contextmanager
def _logged(path: str | None, bundle: Bundle) -> Iterator[None]:
    """Keeps what TensorRT and polygraphy log, in a file."""
    if path is None:
        yield
        return
    check_output(path, bundles=[bundle.path])
    try:
        handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [log, logging.getLogger("Polygraphy")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
