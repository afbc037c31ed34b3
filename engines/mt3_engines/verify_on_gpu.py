"""Verifies TensorRT or TensorRT for RTX on a GPU in one command: build, parity, speed, a report.

    python -m mt3_engines.verify_on_gpu BUNDLE RECORDING... [--for rtx] -o report.md

Builds the engines of both precisions (or takes those that are there), transcribes every recording
on the CPU and with each, and writes down what was built, which segments say the same, how far
log-probabilities are apart where they do, and how long it took; then what steps of more and more
rows take, in time and in memory, beside what the formula says.  Runs are interleaved, times are
medians, and the digest of the tokens stands beside each: rows with one digest did the same work.
What fails is named in the report, and the rest is done.  With ``--answers FILE`` what was measured
is kept at once, and the same command goes on there.
The exit code says whether the exact engines kept their promise.  There is none for a bundle whose
products are quantised: what is summed in another order is rounded to another step now and then.
Its engines are compared with the exact bundle (``--exact``), or with itself on the CPU.  Nor is
there one on a GPU that has no fp32 products in TensorRT for RTX (Turing).
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mt3_engines.build_command import find_bundle
from mt3_engines.building.builder import Tools, build_engine
from mt3_engines.optional import find_place, import_polygraphy, import_tensorrt, open_cuda
from mt3_engines.running.backend import TensorRtBackend
from mt3_engines.storage.keys import PRECISIONS, EngineKey, EngineTarget, Precision
from mt3_engines.storage.requests import BuildOptions, make_keys
from mt3_engines.storage.shapes import CAPACITIES, SLOTS, encoder_shapes, make_plan, parse_numbers
from mt3_engines.storage.store import EngineInfo, EngineStore
from mt3_engines.targets import check_gpu
from mt3_engines.verification import CPU, Answers, Run, StepRow, measure, report
from mt3_engines.versions import MAKERS, RTX
from mt3_runtime.backends.ort_cpu import OrtCpuBackend
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import ExitCode, guarded, talk
from mt3_runtime.errors import MT3Error
from mt3_runtime.filesystem.atomic import check_output, write_output
from mt3_runtime.model import Model
from mt3_runtime.models.installed import resolve_model

if TYPE_CHECKING:
    from mt3_engines.running.cuda import Cuda

#: Steps of each number of rows: the first ones record, the rest are timed.
_RECORDING, _TIMED = 2, 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the whole check; returns an exit code of `mt3_runtime.cli.ExitCode`."""
    args = _parser().parse_args(arguments)
    try:
        return _run(args)
    except MT3Error as error:
        talk(f"error: {error}")
        return ExitCode.UNUSABLE


def _run(args: argparse.Namespace) -> int:
    bundle = find_bundle(args.bundle)
    exact = bundle if args.exact is None else Bundle(resolve_model(args.exact))
    bundles = [bundle.path, exact.path]
    check_output(args.output, args.recordings, bundles=bundles)
    if args.answers is not None:
        check_output(args.answers, [*args.recordings, args.output], bundles=bundles)
    tools, cuda = _tools(args)
    about = {
        "bundle": bundle.manifest.export_id,
        "exact bundle": exact.manifest.export_id,
        "GPU": f"{cuda.name} {cuda.capability}",
        "program": tools.place.program,
        "number of --repeats": args.repeats,
    }
    answers = Answers(None if args.answers is None else Path(args.answers), about)
    engines: list[EngineInfo] = []
    backends: dict[str, Any] = {CPU: OrtCpuBackend(exact)}
    failures: list[str] = []
    precisions = _precisions(bundle, tools.place)
    for precision in precisions:
        try:
            built, backends[precision] = _opened(args, bundle, tools, cuda, precision)
            engines += built
        except MT3Error as error:  # what the other precision does is still worth knowing
            talk(f"error: {error}")
            failures.append(f"{precision}: {error}")
    models = {
        name: Model(bundle, backend, auto_filter=False, decoding="greedy")
        for name, backend in backends.items()
    }
    results = _transcribed(args, models, answers, failures)
    steps: list[StepRow] = []
    for precision in precisions:
        if precision in backends:
            try:
                steps += _steps(precision, backends[precision], cuda)
            except MT3Error as error:
                talk(f"error: {error}")
                failures.append(f"{precision}, steps: {error}")
    manifest = bundle.manifest
    title = [
        f"{manifest.name}, export {manifest.export_id}.",
        *(f"{name}: {backend.description}." for name, backend in backends.items()),
        *(f"FAILED {failure}" for failure in failures),
    ]
    promised = args.exact is None and manifest.precision.arithmetic == "fp32"
    promised = promised and "fp32" in precisions
    text, fine = report(title, engines, results, steps=steps, promised=promised)
    write_output(args.output, text.encode())
    return ExitCode.OK if fine and not failures else ExitCode.FAILED


def _tools(args: argparse.Namespace) -> tuple[Tools, Cuda]:
    """What builds engines for this GPU, and the GPU."""
    maker = MAKERS[args.maker]
    tensorrt, cuda = import_tensorrt(maker), open_cuda(args.gpu, maker)
    place = find_place(tensorrt, cuda, maker)
    if maker is RTX:
        check_gpu(place)
        place = EngineTarget(place.tensorrt, place.capability, "", RTX.name, (place.capability,))
    return Tools(tensorrt, import_polygraphy(maker), place, cuda.use), cuda


def _opened(
    args: argparse.Namespace, bundle: Bundle, tools: Tools, cuda: Cuda, precision: Precision
) -> tuple[list[EngineInfo], TensorRtBackend]:
    """The engines of one precision, and what runs them."""
    store = EngineStore(None if args.engines is None else Path(args.engines))
    built = _built(bundle, store, tools, precision, args.slots)
    return built, TensorRtBackend(
        bundle,
        tensorrt=tools.tensorrt,
        cuda=cuda,
        maker=MAKERS[args.maker],
        store=store,
        precision=precision,
    )


def _precisions(bundle: Bundle, place: EngineTarget) -> list[Precision]:
    """Those that the GPU has the arithmetic for."""
    found: list[Precision] = []
    for precision in PRECISIONS:
        keys = make_keys(bundle, make_plan(bundle.manifest), BuildOptions(precision), place)
        lacking = keys[0].lacking()
        if lacking and place.targets:
            talk(f"leaving out {precision}: {lacking}")
        else:
            found.append(precision)
    return found


def _transcribed(
    args: argparse.Namespace, models: dict[str, Model], answers: Answers, failures: list[str]
) -> dict[str, dict[str, Run]]:
    """Runs by recording and device; those that are known are not repeated."""
    results: dict[str, dict[str, Run]] = {}
    for recording in args.recordings:
        name = Path(recording).name
        try:
            data = Path(recording).read_bytes() if Path(recording).is_file() else b""
            key = f"{name} {hashlib.sha256(data).hexdigest()[:12]}"
            runs = answers.get(key, models)
            if runs is None:
                talk(f"transcribing {recording}")
                features = models[CPU].preprocess(recording)
                runs = measure(models, features, args.repeats)
                answers.keep(key, runs)
            results[name] = runs
        except MT3Error as error:
            talk(f"error: {error}")
            failures.append(f"{recording}: {error}")
    return results


def _steps(precision: str, backend: TensorRtBackend, cuda: Cuda) -> list[StepRow]:
    """What steps of silence take with each number of rows that there is memory for."""
    manifest, found = backend.manifest, []
    silence = np.zeros(encoder_shapes(manifest)["features"][1:], np.float32)
    memory = encoder_shapes(manifest).get("previous_ids", (1, 0))[1:]
    ids = np.full(memory, manifest.decoding.start_id, np.int64) if manifest.model.memory else None
    for rows in backend.rows:
        free, lane = cuda.available(), backend.lane(backend.slots)
        while lane.room < rows and lane.widen():
            pass
        if lane.room < rows:
            talk(f"{precision}: no memory for {rows} rows")
            break
        for slot in range(0, rows - manifest.model.channels + 1, manifest.model.channels):
            lane.load(slot, silence, ids)
        seconds = []
        for _ in range(min(_RECORDING + _TIMED, manifest.decoding.max_tokens)):
            begin = time.perf_counter()
            lane.step(rows)
            seconds.append(time.perf_counter() - begin)
        taken = max(0, free - cuda.available())
        median = statistics.median(seconds[_RECORDING:])
        found.append(StepRow(precision, rows, median, backend.lane_bytes(rows), taken))
        del lane
    return found


def _built(
    bundle: Bundle, store: EngineStore, tools: Tools, precision: Precision, slots: str
) -> list[EngineInfo]:
    """The engines of one precision, built where none is there that runs here."""
    plan = make_plan(bundle.manifest, parse_numbers(slots, "--slots"), CAPACITIES)
    there = [info for info in store.infos() if info.path.is_file()]
    found = []
    for key in make_keys(bundle, plan, BuildOptions(precision), tools.place):
        fit = (info for info in there if info.key == key or _wider(info, key))
        info = next(fit, None)
        if info is None:
            talk(f"building {key.stem}")
            info = build_engine(bundle, key, store=store, tools=tools)
        found.append(info)
    return found


def _wider(info: EngineInfo, key: EngineKey) -> bool:
    """Whether an engine of TensorRT for RTX is this one, for more targets."""
    same = info.key.same_work(key) and info.key.tensorrt == key.tensorrt
    return same and bool(key.targets) and set(key.targets) <= set(info.key.targets)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mt3_engines.verify_on_gpu", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("recordings", metavar="RECORDING", nargs="+")
    parser.add_argument("-o", "--output", default="-", metavar="FILE", help="default: stdout")
    parser.add_argument(
        "--for", dest="maker", choices=list(MAKERS), default="tensorrt", help="whose engines"
    )
    parser.add_argument("--answers", metavar="FILE", help="keep what was measured, and go on there")
    parser.add_argument("--exact", metavar="BUNDLE", help="what the CPU runs, if not BUNDLE itself")
    parser.add_argument("--engines", metavar="DIR", help="folder of the engines")
    parser.add_argument("--gpu", type=int, default=0, metavar="N")
    parser.add_argument("--slots", default=",".join(map(str, SLOTS)), metavar="LIST")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed runs")
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
