"""Verifies TensorRT on a GPU in one command: build, parity, speed, a report.

    python -m mt3_engines.verify_on_gpu BUNDLE RECORDING... -o report.md

Builds the engines of both precisions (or takes those that are there), transcribes every recording
on the CPU and with each, and writes down what was built, which segments say the same, how far
log-probabilities are apart where they do, and how long it took.  Runs are interleaved, times are
medians, and the digest of the tokens stands beside each: rows with one digest did the same work.
What fails is named in the report, and the rest is done.
The exit code says whether the exact engines kept their promise.  There is none for a bundle whose
products are quantised: what is summed in another order is rounded to another step now and then.
Its engines are compared with the exact bundle (``--exact``), or with itself on the CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mt3_engines.building.builder import Tools, build_engine
from mt3_engines.optional import find_place, import_polygraphy, import_tensorrt, open_cuda
from mt3_engines.running.backend import TensorRtBackend
from mt3_engines.storage.keys import PRECISIONS, Precision
from mt3_engines.storage.requests import BuildOptions, make_keys
from mt3_engines.storage.shapes import CAPACITIES, SLOTS, make_plan, parse_numbers
from mt3_engines.storage.store import EngineInfo, EngineStore
from mt3_runtime.backends.ort_cpu import OrtCpuBackend
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import ExitCode, guarded, talk
from mt3_runtime.errors import MT3Error
from mt3_runtime.filesystem.atomic import check_output, write_output
from mt3_runtime.model import Model
from mt3_runtime.models.installed import resolve_model

if TYPE_CHECKING:
    from mt3_runtime.backends.base import FloatArray
    from mt3_runtime.decoding.types import Sequence as TokenSequence

#: Segments that exact engines must say as the CPU does.  The rest are near-ties, which another
#: order of summation decides: on the CPU itself, fp16 storage alone moves 1.4 % of segments.
EXACT_SHARE = 0.98

CPU = "cpu"


@dataclass
class Run:
    """One recording on one device.

    Attributes:
        sequences: What was decoded.
        seconds: Of each repetition.
    """

    sequences: list[TokenSequence] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """12 hexadecimal digits of all tokens."""
        hashed = hashlib.sha256()
        for sequence in self.sequences:
            hashed.update(np.asarray([len(sequence.tokens), *sequence.tokens], np.int32).tobytes())
        return hashed.hexdigest()[:12]

    @property
    def tokens(self) -> int:
        """How many."""
        return sum(len(sequence.tokens) for sequence in self.sequences)


@dataclass(frozen=True)
class Agreement:
    """How two runs of one recording compare.

    Attributes:
        equal: Sequences that are the same.
        total: All sequences.
        apart: Largest difference of log-probabilities before the first token that differs.
    """

    equal: int
    total: int
    apart: float


def compare(found: Run, expected: Run) -> Agreement:
    """Compares tokens, and probabilities as long as the tokens agree."""
    equal, apart = 0, 0.0
    for a, b in zip(found.sequences, expected.sequences, strict=True):
        length = min(len(a.tokens), len(b.tokens))
        same = np.asarray(a.tokens[:length]) == np.asarray(b.tokens[:length])
        until = length if same.all() else int(np.argmin(same))
        distances = np.abs(np.asarray(a.log_probs[:until]) - np.asarray(b.log_probs[:until]))
        apart = max(apart, float(distances.max(initial=0.0)))
        equal += until == length and len(a.tokens) == len(b.tokens)
    return Agreement(equal, len(expected.sequences), apart)


def measure(models: dict[str, Model], features: FloatArray, repeats: int) -> dict[str, Run]:
    """Runs all models in turn, once to warm up and then ``repeats`` times."""
    runs = {name: Run() for name in models}
    for repeat in range(repeats + 1):
        for name, model in models.items():
            started = time.perf_counter()
            sequences = model.forward(features)
            if repeat:
                runs[name].seconds.append(time.perf_counter() - started)
            runs[name].sequences = sequences
    return runs


def report(
    title: list[str],
    engines: list[EngineInfo],
    results: dict[str, dict[str, Run]],
    *,
    promised: bool = True,
) -> tuple[str, bool]:
    """Writes the report.

    Args:
        title: Lines about the machine and the model.
        engines: What was built.
        results: Runs by recording and device.
        promised: Whether engines promise to say what the CPU says.

    Returns:
        Markdown, and whether fp32 engines agree with the CPU in `EXACT_SHARE` of all segments, of
        which there must be some; where nothing is promised, whether there are any.
    """
    lines = ["# TensorRT verification", "", *title, "", "## Engines", ""]
    lines += ["| engine | MiB | build s |", "|---|---|---|"]
    lines += [f"| {e.path.name} | {e.size / 2**20:.1f} | {e.build_seconds:.0f} |" for e in engines]
    lines += ["", "## Recordings", ""]
    lines += ["| recording | device | median s | tokens | tokens/s | digest | equal | apart |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    equal = total = 0
    for name, runs in results.items():
        for device, run in runs.items():
            agreement = compare(run, runs[CPU])
            seconds = statistics.median(run.seconds)
            lines.append(
                f"| {name} | {device} | {seconds:.3f} | {run.tokens} | {run.tokens / seconds:.0f} "
                f"| {run.digest} | {agreement.equal}/{agreement.total} | {agreement.apart:.1e} |"
            )
            if device == "fp32":
                equal, total = equal + agreement.equal, total + agreement.total
    fine = equal >= EXACT_SHARE * total > 0 if promised else total > 0
    verdict = f"; the promise is {'kept' if fine else 'NOT kept'}" if promised else ""
    lines += ["", f"fp32: {equal} of {total} segments as on the CPU{verdict}.", ""]
    return "\n".join(lines), fine


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the whole check; returns an exit code of `mt3_runtime.cli.ExitCode`."""
    args = _parser().parse_args(arguments)
    try:
        return _run(args)
    except MT3Error as error:
        talk(f"error: {error}")
        return ExitCode.UNUSABLE


def _run(args: argparse.Namespace) -> int:
    bundles = [resolve_model(name) for name in (args.bundle, args.exact) if name is not None]
    check_output(args.output, args.recordings, bundles=bundles)
    bundle = Bundle(bundles[0])
    store = EngineStore(None if args.engines is None else Path(args.engines))
    tensorrt, cuda = import_tensorrt(), open_cuda(args.gpu)
    tools = Tools(tensorrt, import_polygraphy(), find_place(tensorrt, cuda), cuda.use)
    engines: list[EngineInfo] = []
    exact = bundle if args.exact is None else Bundle(resolve_model(args.exact))
    backends: dict[str, Any] = {CPU: OrtCpuBackend(exact)}
    failures: list[str] = []
    for precision in PRECISIONS:
        try:
            engines += _built(bundle, store, tools, precision, args.slots)
            backends[precision] = TensorRtBackend(
                bundle, tensorrt=tensorrt, cuda=cuda, store=store, precision=precision
            )
        except MT3Error as error:  # what the other precision does is still worth knowing
            talk(f"error: {error}")
            failures.append(f"{precision}: {error}")
    models = {
        name: Model(bundle, backend, auto_filter=False, decoding="greedy")
        for name, backend in backends.items()
    }
    results: dict[str, dict[str, Run]] = {}
    for recording in args.recordings:
        talk(f"transcribing {recording}")
        try:
            features = models[CPU].preprocess(recording)
            results[Path(recording).name] = measure(models, features, args.repeats)
        except MT3Error as error:
            talk(f"error: {error}")
            failures.append(f"{recording}: {error}")
    manifest = bundle.manifest
    title = [
        f"{manifest.name}, export {manifest.export_id}.",
        *(f"{name}: {backend.description}." for name, backend in backends.items()),
        *(f"FAILED {failure}" for failure in failures),
    ]
    promised = args.exact is None and bundle.manifest.precision.arithmetic == "fp32"
    text, fine = report(title, engines, results, promised=promised)
    write_output(args.output, text.encode())
    return ExitCode.OK if fine and not failures else ExitCode.FAILED


def _built(
    bundle: Bundle, store: EngineStore, tools: Tools, precision: Precision, slots: str
) -> list[EngineInfo]:
    """The engines of one precision, built where they are missing."""
    plan = make_plan(bundle.manifest, parse_numbers(slots, "--slots"), CAPACITIES)
    there = {info.key: info for info in store.infos() if info.path.is_file()}
    found = []
    for key in make_keys(bundle, plan, BuildOptions(precision), tools.place):
        if key not in there:
            talk(f"building {key.stem}")
        found.append(there.get(key) or build_engine(bundle, key, store=store, tools=tools))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mt3_engines.verify_on_gpu", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("recordings", metavar="RECORDING", nargs="+")
    parser.add_argument("-o", "--output", default="-", metavar="FILE", help="default: stdout")
    parser.add_argument("--exact", metavar="BUNDLE", help="what the CPU runs, if not BUNDLE itself")
    parser.add_argument("--engines", metavar="DIR", help="folder of the engines")
    parser.add_argument("--gpu", type=int, default=0, metavar="N")
    parser.add_argument("--slots", default=",".join(map(str, SLOTS)), metavar="LIST")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed runs")
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
