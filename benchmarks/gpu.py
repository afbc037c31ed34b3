"""Everything a GPU machine can say about the CUDA backend, in one command.

Sides, each in a process of its own, asked in turns:

    cpu            the runtime on the CPU: its tokens are the truth
    cuda           the CUDA backend, steps recorded as CUDA graphs
    cuda, plain    the same without CUDA graphs
    bundle NAME    one per --also: another bundle (fp16, bf16) on CUDA
    torch ...      the cached PyTorch loop of torch_peer.py on the same GPU: fp32, fp16, each with
                   and without torch.compile; needs the oracle's environment (MT3_ORACLE_PYTHON)

Measured: tokens against the CPU's, segment by segment; a decoder step by rows; features to tokens
of a song, and of the song many times over; audio file to MIDI; the first note; GPU memory.

Ends with 0, with 1 if the fp32 tokens on CUDA are not the CPU's, and with 3 where there is no GPU
that ONNX Runtime can use; --rehearse tries the script on the CPU, with figures that mean nothing.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import ORACLE, STATE, Worker, medians
from materials import parser, report, song, torch_checkpoint

from mt3_export.bundles import export_bundle
from mt3_export.checkpoints import read_checkpoint
from mt3_export.variants import variant_named
from mt3_runtime import nvidia
from mt3_runtime.backends.ort_common import import_onnxruntime
from mt3_runtime.backends.ort_cuda import CUDA
from mt3_runtime.cli import ExitCode
from mt3_runtime.commands.bench import columns

#: Settings of the PyTorch loop: name, arguments of its `load`.
TORCH = {
    "torch fp32": {},
    "torch fp32, compiled": {"compiled": True},
    "torch fp16": {"half": True},
    "torch fp16, compiled": {"half": True, "compiled": True},
}


def main() -> int:
    """Runs all rounds and reports."""
    made = parser(__doc__)
    add = made.add_argument
    add("--seconds", type=float, default=180.0, help="length of the song")
    add("--steps", type=int, default=128)
    add("--rows", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    add("--copies", type=int, default=16, help="songs at once, for the throughput")
    add("--also", type=Path, nargs="*", default=[], help="other bundles to run on CUDA")
    add("--no-torch", action="store_true", help="leave PyTorch out")
    add("--rehearse", action="store_true", help="try this script without a GPU")
    options = made.parse_args()
    trouble = "" if options.rehearse else no_gpu()
    if trouble:
        print(trouble, file=sys.stderr)
        return ExitCode.UNUSABLE
    audio, model = song(options.audio, options.seconds), bundle(options)
    driver = nvidia.driver()
    gpus = [str(gpu) for gpu in driver.gpus] if driver else []
    with report(options, seconds=options.seconds, gpus=gpus, rehearsal=options.rehearse) as (
        result,
        lines,
    ):
        sides = start(options, model, result)
        try:
            measure(options, audio, sides, result)
        finally:
            for worker in sides.values():
                worker.close()
        lines.extend(text(result))
    return ExitCode.OK if result["same"]["cuda"] == 1.0 else ExitCode.FAILED


def no_gpu() -> str:
    """Why there is nothing to measure here; empty if there is."""
    driver = nvidia.driver()
    if driver is None or not driver.gpus:
        return "There is no NVIDIA GPU here, so there is nothing to measure (see `mt3 doctor`)."
    if CUDA not in import_onnxruntime().get_available_providers():
        return "The installed ONNX Runtime has no CUDA provider, see `mt3 doctor` for the remedy."
    return ""


def bundle(options: Any) -> Path:
    """The fp32 bundle with the profiles of both devices."""
    if options.bundle:
        return Path(options.bundle)
    made, contents = STATE / "magenta_mt3.gpu.bundle", read_checkpoint(options.checkpoint)
    source = {"layout": contents.layout, "digest": contents.digest}
    variant = variant_named(contents.variant)
    export_bundle(contents.weights, variant, made, source=source, profiles=("cpu", "portable"))
    return made


def start(options: Any, model: Path, result: dict[str, Any]) -> dict[str, Worker]:
    """Starts and loads all sides; what each added to the GPU's memory is noted."""
    rehearsal = options.rehearse
    cuda = {"device": "cuda", "rehearsal": rehearsal}
    ours = {"cpu": {"bundle": str(model), "device": "cpu"},
            "cuda": {"bundle": str(model), **cuda},
            "cuda, plain": {"bundle": str(model), "cuda_graph": False, **cuda}}  # fmt: skip
    ours |= {f"bundle {path.name}": {"bundle": str(path), **cuda} for path in options.also}
    sides, result["load"] = {}, {}
    for side, arguments in ours.items():
        sides[side] = Worker("gpu_side.py")
        before = sides[side].ask("memory")["used"]
        result["load"][side] = sides[side].ask("load", **arguments)
        after = sides[side].ask("memory")["used"]
        result["load"][side]["memory"] = None if before is None else after - before
    if not options.no_torch:
        shared = {"checkpoint": str(torch_checkpoint(options)), "bundle": str(model), "threads": 1,
                  "device": "cpu" if rehearsal else "cuda"}  # fmt: skip
        for side, arguments in TORCH.items():
            if rehearsal and arguments:
                continue  # fp16 and a compiler are a GPU's business
            sides[side] = Worker("torch_peer.py", python=ORACLE)
            result["load"][side] = sides[side].ask("load", **shared, **arguments)
    return sides


def measure(options: Any, audio: Path, sides: dict[str, Worker], result: dict[str, Any]) -> None:
    """Asks the sides in turns; the CPU takes part in what it can do in the time."""
    ready, midi = str(STATE / "features.npy"), str(STATE / "gpu.mid")
    sides["cpu"].ask("features", audio=str(audio), out=ready)
    for side, worker in sides.items():
        worker.ask("features", path=ready) if side in TORCH else worker.ask("take", path=ready)
    rounds: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for number in range(options.runs):
        for side, worker in sides.items():
            if side == "cpu" and number:
                continue
            rounds["network"][side].append(worker.ask("forward"))
            rounds["song"][side].append(worker.ask("song", audio=str(audio), midi=midi))
            if side not in TORCH and side != "cpu":
                rounds["many"][side].append(worker.ask("forward", copies=options.copies))
                rounds["first note"][side].append(worker.ask("first_note", audio=str(audio)))
            for rows in options.rows if side != "cpu" else ():
                run = {"batch": rows, "threads": 1} if side in TORCH else {"rows": rows}
                rounds[f"step {rows}"][side].append(worker.ask("steps", **run, count=options.steps))
    result["rounds"] = rounds
    result["memory"] = sides["cuda"].ask("memory")["used"]
    truth = rounds["network"]["cpu"][0]
    result["tokens"] = truth["tokens"]
    result["same"] = {
        side: agreement(answers[0], truth) for side, answers in rounds["network"].items()
    }


def agreement(answer: dict[str, Any], truth: dict[str, Any]) -> float:
    """The share of segments with the CPU's tokens."""
    pairs = list(zip(answer["each"], truth["each"], strict=True))
    return sum(ours == theirs for ours, theirs in pairs) / len(pairs)


def text(result: dict[str, Any]) -> list[str]:
    """One row per side."""
    rounds, seconds = result["rounds"], result["seconds"]
    steps = [name for name in rounds if name.startswith("step ")]
    head = ["side", "same segments", "file to MIDI s", "x real time", "network s", "many: x real",
            "first note ms", *(f"{name} rows ms" for name in steps), "load s",
            "memory MiB"]  # fmt: skip
    rows = [head]
    for side, answers in rounds["network"].items():
        took = medians(rounds["song"][side])
        many = rounds["many"].get(side)
        first = rounds["first note"].get(side)
        load = result["load"][side]
        rate = many and many[0]["tokens"] / result["tokens"] * seconds / medians(many)
        rows.append([
            side, f"{result['same'][side]:.1%}", f"{took:.2f}", f"{seconds / took:.0f}",
            f"{medians(answers):.2f}", f"{rate:.0f}" if rate else "",
            f"{1000 * medians(first):.0f}" if first else "",
            *(f"{1000 * medians(found):.2f}" if (found := rounds[name].get(side)) else ""
              for name in steps),
            f"{load['seconds']:.2f}",
            "" if load.get("memory") is None else str(load["memory"]),
        ])  # fmt: skip
    lines = [", ".join(result["gpus"]) or "no GPU: a rehearsal, these figures mean nothing", ""]
    return [*lines, *columns(rows)]


if __name__ == "__main__":
    sys.exit(main())
