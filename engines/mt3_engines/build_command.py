"""`mt3 build`: builds engines from a bundle, for this GPU or, with TensorRT for RTX, for others."""

from __future__ import annotations

import argparse
import contextlib
import io
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
from mt3_engines.storage.requests import PROFILE, BuildOptions, make_keys
from mt3_engines.storage.shapes import CAPACITIES, SEGMENTS, SLOTS, make_plan, parse_numbers
from mt3_engines.storage.store import EngineInfo, EngineStore
from mt3_engines.targets import ALL, TARGETS, parse_targets
from mt3_engines.versions import MAKERS, RTX, Maker
from mt3_runtime.bundles.bundle import EXPORT_ID_KEY, Bundle
from mt3_runtime.bundles.onnx_scan import scan
from mt3_runtime.cli import ExitCode, listings, talk
from mt3_runtime.errors import BundleError, OptionError, OutputError
from mt3_runtime.filesystem.atomic import check_output, make_folder, write_atomic
from mt3_runtime.filesystem.ownership import is_regular, listed
from mt3_runtime.models.installed import resolve_model
from mt3_runtime.models.shipped import shipped_models
from mt3_runtime.progress import Meter

_MIB = 1 << 20


class BuildCommand:
    """Builds what is missing; engines that are there already stay."""

    name = "build"
    help = "build TensorRT engines from a bundle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's own arguments."""
        add = parser.add_argument
        add("bundle", metavar="BUNDLE", help="a bundle with the profile portable, or its name")
        add(
            "--for",
            dest="maker",
            choices=tuple(MAKERS),
            default="tensorrt",
            help="device of the engines; those of rtx are built without a GPU (default: tensorrt)",
        )
        add(
            "--targets",
            metavar="LIST",
            help=f"with --for rtx: GPUs, some of {','.join(TARGETS)} (default: {ALL})",
        )
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
        add(
            "--segments",
            default=",".join(map(str, SEGMENTS)),
            metavar="LIST",
            help="numbers of segments encoded together (default: %(default)s)",
        )
        add("--gpu", type=int, metavar="N", help="build for this GPU (default: 0)")
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
        _check_options(args)
        bundle = find_bundle(args.bundle)
        slots = parse_numbers(args.slots, "--slots")
        capacities = parse_numbers(args.capacities, "--capacities")
        segments = parse_numbers(args.segments, "--segments")
        plan = make_plan(bundle.manifest, slots, capacities, segments)
        wish = BuildOptions(args.precision, args.version_compatible, args.hardware, args.strip)
        if args.graphs is not None:
            version = args.tensorrt or {"tensorrt": "10.16", "rtx": str(RTX.oldest)}[args.maker]
            MAKERS[args.maker].version(version)
            place = EngineTarget(version, "0.0", "", args.maker)
            return _write_graphs(bundle, make_keys(bundle, plan, wish, place), Path(args.graphs))
        tools = _tools(args, bundle, wish)
        store = EngineStore(None if args.engines is None else Path(args.engines))
        place = tools.place
        gpu = f"{place.gpu}, " if place.gpu else ""
        capabilities = ", ".join(place.targets or [place.capability])
        talk(f"{place.program} for {gpu}compute capability {capabilities}")
        with _logged(args.log, bundle):
            for key in make_keys(bundle, plan, wish, place):
                info = None if args.rebuild else _present(store, key)
                print((info or _build(bundle, key, store, tools)).path)
        return ExitCode.OK


def _check_options(args: argparse.Namespace) -> None:
    """Refuses options that mean nothing to the maker that was chosen."""
    if args.maker != RTX.name:
        if args.targets is not None:
            raise OptionError("--targets belongs to --for rtx; use --hardware, or leave it out.")
        return
    args.every = args.targets is None or ALL in args.targets
    args.targets = parse_targets(ALL if args.targets is None else args.targets)
    other = {
        "--gpu": args.gpu is not None,
        "--hardware": args.hardware != "this",
        "--version-compatible": args.version_compatible,
    }
    if args.strip:
        raise OptionError(
            f"--strip does not go with --for rtx: {RTX.title} builds engines without weights only "
            "on the GPU they are for. Leave it out."
        )
    if named := [option for option, is_given in other.items() if is_given]:
        raise OptionError(f"{named[0]} does not go with --for rtx; --targets names the GPUs.")


def _suited(args: argparse.Namespace, bundle: Bundle, wish: BuildOptions) -> tuple[str, ...]:
    """The targets that were named; if that was all, those that have the arithmetic."""
    plan, fit = make_plan(bundle.manifest), []
    for target in args.targets:
        place = EngineTarget(str(RTX.oldest), target, "", RTX.name, (target,))
        lacking = make_keys(bundle, plan, wish, place)[0].lacking()
        if args.every and lacking:
            talk(f"leaving out {target}: {lacking}")
        else:
            fit.append(target)
    return tuple(fit)


def _tools(args: argparse.Namespace, bundle: Bundle, wish: BuildOptions) -> Tools:
    """What builds, and for which GPUs."""
    maker: Maker = MAKERS[args.maker]
    tensorrt = import_tensorrt(maker)
    if maker is RTX:
        targets = _suited(args, bundle, wish)
        place = EngineTarget(tensorrt.__version__, targets[0], "", RTX.name, targets)
        return Tools(tensorrt, import_polygraphy(maker), place, _no_gpu)
    cuda = open_cuda(args.gpu or 0)
    return Tools(tensorrt, import_polygraphy(maker), find_place(tensorrt, cuda), cuda.use)


def _no_gpu() -> None:
    """What `Tools.use_gpu` is where engines are built for GPUs that are named."""


def find_bundle(model: str) -> Bundle:
    """The bundle that a user means, with the graphs that engines are made of where it is ours.

    The one of the package has none: it is exported with them, into the cache folder.

    Raises:
        BundleError: There is none, or it is damaged.
        MissingDependencyError: The exporter or what it needs is not installed.
    """
    bundle = Bundle(resolve_model(model))
    names = [name for name, path in shipped_models().items() if path == bundle.path]
    if not names or PROFILE in bundle.profiles:
        return bundle
    profiles = ",".join([*bundle.profiles, PROFILE])
    talk(f"exporting {names[0]} with the graph profiles {profiles}, once")
    exporter, parser = listings()["export"], argparse.ArgumentParser()
    with exporter.needs(), contextlib.redirect_stdout(io.StringIO()) as path:
        command = exporter.load()
        command.add_arguments(parser)
        command.run(parser.parse_args([names[0], "--profiles", profiles]))
    return Bundle(Path(path.getvalue().strip()))


def _present(store: EngineStore, key: EngineKey) -> EngineInfo | None:
    """Exactly this engine, if it is there."""
    for info in store.infos():
        if info.key == key and info.path.is_file():
            talk(f"{info.path.name} is there already")
            return info
    return None


def _build(bundle: Bundle, key: EngineKey, store: EngineStore, tools: Tools) -> EngineInfo:
    what = f"{key.role} {key.numbers}" + (f", {key.capacity} columns" if key.capacity else "")
    talk(f"building {what}: this takes {'seconds' if key.targets else 'minutes'}")
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
