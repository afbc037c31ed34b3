"""YourMT3: one minute of audio, ours against its authors' package, encoder and decoder apart.

Sides, each in a process of its own with its model loaded:

    ours      the default settings of mt3_runtime
    authors   the package `yourmt3` of PyPI, eight segments at once (yourmt3_peer.py)

Both run the same seeded weights, as the published ones are not at hand, on the same features of
real recordings, on the same number of cores.  Random weights do not end their sequences as trained
ones do, so lengths are drawn from the distribution that is printed, and both sides are made to keep
to them (forced.py).  The time depends on the lengths and not on the tokens; those are compared
nevertheless, and sequences that differ are counted.

The last lines profile our encoder on one core: what its convolutions and its experts reach of the
speed of a large matrix product of ONNX Runtime, measured in turns with it.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
from common import ROOT, STATE, YOURMT3, Worker, medians, talk
from forced import DISTRIBUTION, SINGLE_DISTRIBUTION, draw_lengths
from materials import parser, report, song
from roofline import matmul_session

from mt3_export.bundle_writer import export_bundle
from mt3_export.checkpoints.checkpoint import read_checkpoint
from mt3_export.variants import variant_named
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.commands.bench_command import columns
from mt3_runtime.diagnostics.cores import usable_cores

sys.path.insert(0, str(ROOT))
from tests.export.yourmt3_writer import write_yourmt3
from tests.seeded import YOURMT3 as SHAPES
from tests.seeded import seeded_weights

#: What the package calls them.
MODELS = {
    "ymt3_plus": "YMT3+",
    "yptf_single": "YPTF+Single",
    "yptf_multi": "YPTF+Multi",
    "yptf_moe_multi": "YPTF+MoE+Multi",
}
PRODUCT = 1024  # rows and columns of the matrix product that stands for the peak


def main() -> None:
    """Runs all rounds and reports."""
    made = parser(__doc__)
    add = made.add_argument
    add("--model", choices=MODELS, default="yptf_moe_multi")
    add("--seconds", type=float, default=60.0, help="length of the audio")
    add("--threads", type=int, default=usable_cores(), help="threads of both sides")
    add("--no-peer", action="store_true", help="leave the authors' package out")
    options = made.parse_args()
    checkpoint, model = _materials(options.model)
    audio = song(options.audio, options.seconds)
    facts = {"model": options.model, "seconds": options.seconds, "threads": options.threads}
    with report(options, **facts) as (result, lines):
        _measure(options, checkpoint, model, audio, result)
        result["profile"] = _profile(model)
        lines.extend(_text(result))


def _materials(name: str) -> tuple[Path, Path]:
    """A checkpoint of seeded weights in the published layout, and the bundle made of it."""
    checkpoint, bundle = STATE / f"{name}.pt", STATE / f"{name}.bundle"
    talk(f"writing {checkpoint}")
    STATE.mkdir(parents=True, exist_ok=True)
    write_yourmt3(checkpoint, seeded_weights(SHAPES[name]), bare=True)
    contents = read_checkpoint(checkpoint, name)
    source = {"layout": contents.layout, "digest": contents.digest}
    export_bundle(contents.weights, variant_named(name), bundle, source=source)
    return checkpoint, bundle


def _measure(
    options: Any, checkpoint: Path, model: Path, audio: Path, result: dict[str, Any]
) -> None:
    """Asks the sides in turns."""
    workers = {"ours": Worker("yourmt3_ours.py")}
    loads = {"ours": workers["ours"].ask("load", bundle=str(model), threads=options.threads)}
    ready = str(STATE / "features.npy")
    segments = workers["ours"].ask("features", audio=str(audio), out=ready)["segments"]
    if not options.no_peer:
        workers["authors"] = Worker("yourmt3_peer.py", python=YOURMT3)
        loads["authors"] = workers["authors"].ask(
            "load", model=MODELS[options.model], weights=str(checkpoint), threads=options.threads
        )
        result["versions"] |= loads["authors"]["versions"]
        workers["authors"].ask("features", path=ready)
    channels = Bundle(model).manifest.model.channels
    lengths = draw_lengths(segments, channels)
    result |= {"load": loads, "lengths": lengths, "channels": channels}
    rounds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    tokens: dict[str, Any] = {}
    for _ in range(options.runs):
        for side, worker in workers.items():
            answer = worker.ask("forced", lengths=lengths)
            tokens[side] = answer.pop("tokens")
            rounds[side].append(answer)
    for worker in workers.values():
        worker.close()
    result["rounds"] = rounds
    pairs = zip(*tokens.values(), strict=True)
    result["differing"] = sum(len(set(map(tuple, pair))) > 1 for pair in pairs)


def _profile(model: Path, runs: int = 4) -> dict[str, float]:
    """Seconds and GFLOP/s of the encoder's parts on one core, with the peak beside them."""
    bundle = Bundle(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(STATE / "profile")
    path = bundle.path / bundle.graph("encoder", "cpu").file
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
    config = bundle.manifest.features
    inputs = np.random.default_rng(0).random((1, config.frames, config.bins), np.float32)
    peak = []
    for _ in range(runs):
        session.run(None, {"features": inputs})
        peak.append(_peak())
    file = Path(session.end_profiling())
    events = json.loads(file.read_text())
    file.unlink()
    first = [event["ts"] for event in events if event["name"] == "model_run"][1]  # 0 warms up
    found: dict[str, float] = defaultdict(float)
    for event in events:
        if event["name"].endswith("_kernel_time") and event["ts"] >= first:
            part, flops = _work(event["args"])
            found[f"{part} seconds"] += event["dur"] * 1e-6 / (runs - 1)
            found[f"{part} flops"] += flops / (runs - 1)
    return {"peak": median(peak[1:]), **found}


def _peak() -> float:
    """FLOP/s of one large product on one core."""
    factor = np.ones((PRODUCT, PRODUCT), np.float32)
    session = matmul_session(factor, threads=1)
    session.run(None, {"a": factor})
    begin = time.perf_counter()
    for _ in range(10):
        session.run(None, {"a": factor})
    return 20.0 * PRODUCT**3 / (time.perf_counter() - begin)


def _work(arguments: dict[str, Any]) -> tuple[str, float]:
    """Which part of the encoder a node belongs to, and its arithmetic.

    Weights that were rearranged for the kernels are not among a node's inputs; of a product the
    inner size is the last of its first input.  Only experts multiply matrices without a batch.
    """
    kind = arguments["op_name"]
    inputs, outputs = (
        [next(iter(shape.values())) for shape in arguments[key]]
        for key in ("input_type_shape", "output_type_shape")
    )
    if kind == "Conv":
        return "convolutions", 2.0 * float(np.prod(outputs[0]) * np.prod(inputs[1][1:]))
    if kind not in ("MatMul", "Gemm", "FusedMatMul"):
        return "the rest", 0.0
    part = "experts" if len(inputs[0]) == 2 and outputs[0][-1] > 8 else "other products"
    return part, 2.0 * float(np.prod(outputs[0]) * inputs[0][-1])


def _text(result: dict[str, Any]) -> list[str]:
    """The tables."""
    rounds, lengths = result["rounds"], result["lengths"]
    flat = [length for segment in lengths for length in segment]
    ours = medians(rounds["ours"])
    table = [["features to tokens", "encoder s", "decoder s", "together s", "best", "x real time",
              "ours is faster", "peak RSS MiB"]]  # fmt: skip
    for side, answers in rounds.items():
        together = medians(answers)
        table.append(
            [
                side,
                *(f"{medians(answers, key):.2f}" for key in ("encoder", "decoder")),
                f"{together:.2f}",
                f"{min(answer['seconds'] for answer in answers):.2f}",
                f"{result['seconds'] / together:.2f}",
                f"{together / ours:.2f} x",
                f"{max(answer['peak_rss'] for answer in answers) / 2**20:.0f}",
            ]
        )
    loads = ", ".join(f"{side} {load['seconds']:.2f} s" for side, load in result["load"].items())
    return [
        (
            f"{result['model']}, seeded weights: {result['seconds']:g} s of audio, {len(lengths)} "
            f"segments x {result['channels']} channels, {sum(flat)} tokens, longest {max(flat)}; "
            f"{result['threads']} threads, median of {len(rounds['ours'])} rounds"
        ),
        f"lengths: {DISTRIBUTION if result['channels'] > 1 else SINGLE_DISTRIBUTION}",
        *columns(table),
        "",
        f"sequences that differ: {result['differing']} of {len(flat)}; loading: {loads}",
        *_about_profile(result["profile"]),
    ]


def _about_profile(found: dict[str, float]) -> list[str]:
    """The encoder's parts on one core."""
    peak = found["peak"]
    table = [["our encoder, one core", "ms per segment", "GFLOP", "of the peak"]]
    parts = ("convolutions", "experts", "other products", "the rest")
    for part in (part for part in parts if found.get(f"{part} seconds")):
        seconds, flops = found[f"{part} seconds"], found[f"{part} flops"]
        share = f"{flops / seconds / peak:.0%}" if flops else ""
        table.append([part, f"{seconds * 1e3:.1f}", f"{flops / 1e9:.1f}", share])
    return ["", *columns(table), f"peak: {peak / 1e9:.0f} GFLOP/s, a product of {PRODUCT} rows"]


if __name__ == "__main__":
    main()
