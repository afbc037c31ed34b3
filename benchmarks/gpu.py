"""Everything a GPU machine can say about its backends, in one command that may be cut short.

Sides, each in a process of its own, asked in turns:

    cuda            the CUDA backend, steps recorded as CUDA graphs
    cuda, plain     the same without CUDA graphs
    cuda fp16, bf16 bundles made of the same weights that compute in 16 bits
    bundle NAME     one per --also: another bundle on CUDA
    rtx ..., tensorrt ...   engines of TensorRT for RTX and of TensorRT, fp32 and fp16, which are
                    built first; a side whose package is not installed fails by name
    torch ...       a cached PyTorch loop on the same GPU (gpu_torch.py): fp32, fp16, each with and
                    without torch.compile; --torch-python names an interpreter that has torch

Parts, in this order: tokens against the CPU's, segment by segment; a decoder step by rows; features
to tokens of the song; audio file to MIDI; features of many songs; many files; the first note; the
memory held.  Every answer is kept at once in --out.  After --minutes it stops; the same command
goes on there.  A side that fails is named with its reason, and the others go on.

Where tokens differ, the first one that does is looked at: if both sides give it nearly the same
log-probability, the order of summation decided between two equals.  Ends with 0 if all was measured
and the fp32 tokens of every side that ran are the CPU's up to such ties, with 1 if not, and with 3
where there is no GPU.  --rehearse tries all of it on the CPU with a tiny network, with figures that
mean nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from common import ORACLE, STATE, Worker, check_report, medians, talk
from gpu_setup import Setup, prepare
from materials import parser

from mt3_runtime.cli import ExitCode
from mt3_runtime.commands.bench_command import columns
from mt3_runtime.commands.machine import describe, machine, versions
from mt3_runtime.diagnostics import cuda_libraries

#: Settings of the PyTorch loop: name, arguments of its `load`.
TORCH: dict[str, dict[str, Any]] = {
    "torch fp32": {},
    "torch fp16": {"half": True},
    "torch fp32, compiled": {"compiled": "inductor"},
    "torch fp16, compiled": {"half": True, "compiled": "inductor"},
}

#: Sides that run engines: name, maker and precision.
ENGINES = {
    f"{maker} {precision}": (maker, precision)
    for maker in ("rtx", "tensorrt")
    for precision in ("fp32", "fp16")
}

#: Sides that promise the tokens of the CPU.
EXACT = ("cuda", "rtx fp32", "tensorrt fp32")

#: Difference of log-probabilities up to which two tokens are equals.  fp32 sums of these lengths in
#: another order are some 1e-5 apart, and logits add up the differences of sixteen layers.
TIE = 2e-3

#: Seconds a side may think about one request: compiling takes minutes.
PATIENCE = 300.0


def main() -> int:
    """Runs what is not measured yet, and reports all of it."""
    options = arguments()
    trouble = "" if options.rehearse else no_gpu()
    if trouble:
        print(trouble, file=sys.stderr)
        return ExitCode.UNUSABLE
    check_report(options.out)
    setup = prepare(options)
    results = Results(options.out, setup)
    plan = Plan(options, setup, results, time.monotonic() + 60 * options.minutes)
    try:
        finished = plan.run()
    finally:
        plan.close()
    results.save()
    text = "\n".join([*results.text(options.seconds), "" if finished else "UNFINISHED: run again"])
    print(text)
    options.out.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    exact = [side for side in EXACT if side in results.found["load"]]
    kept = bool(exact) and all(map(results.kept, exact))
    return ExitCode.OK if finished and kept else ExitCode.FAILED


def arguments() -> Any:
    """The options."""
    made = parser(__doc__)
    add = made.add_argument
    add("--song", type=Path, help="audio file; joined from the recordings if not given")
    add("--seconds", type=float, default=180.0, help="length of the song")
    add("--segments", type=int, help="take so many of its segments only")
    add("--steps", type=int, default=128)
    add("--rows", type=int, nargs="+", default=[1, 8, 32, 128, 512])
    add("--copies", type=int, default=16, help="songs at once, for the throughput")
    add("--also", type=Path, nargs="*", default=[], help="other bundles to run on CUDA")
    add("--sides", nargs="*", help="only these sides")
    add("--no-half", action="store_true", help="leave fp16 and bf16 out")
    add("--no-engines", action="store_true", help="leave TensorRT out")
    add("--no-torch", action="store_true", help="leave PyTorch out")
    add("--torch-python", type=Path, default=ORACLE, help="an interpreter that has torch")
    add("--minutes", type=float, default=9.0, help="stop after so long")
    add("--patience", type=float, default=PATIENCE, help="seconds for one answer")
    add("--work", type=Path, default=STATE / "gpu", help="folder of what is made once")
    add("--rehearse", action="store_true", help="try this script without a GPU")
    options = made.parse_args()
    options.out = options.out or options.work / "gpu.json"
    return options


def no_gpu() -> str:
    """Why there is nothing to measure here; empty if there is."""
    driver = cuda_libraries.driver()
    if driver is not None and driver.gpus:
        return ""  # what ONNX Runtime or TensorRT lacks, the side says that needs it
    return "Nothing to measure: there is no NVIDIA GPU here (see `mt3 doctor`)."


class Results:
    """The answers so far, in a file that is never half-written.

    Attributes:
        found: ``machine``, and by side: ``failed``, ``load`` and ``answers`` by part.
        truth: What the CPU said.
    """

    def __init__(self, path: Path, setup: Setup) -> None:
        self._path = path
        self.truth = json.loads(setup.truth.read_text("utf-8"))
        digest = hashlib.sha256(setup.truth.read_bytes()).hexdigest()[:12]
        self.found: dict[str, Any] = {"truth": digest}
        if path.exists():
            self.found = json.loads(path.read_text("utf-8"))
            if self.found["truth"] != digest:
                raise SystemExit(f"{path} is of other materials; remove it or choose another --out")
        driver = cuda_libraries.driver()
        gpus = [str(gpu) for gpu in driver.gpus] if driver else []
        known = versions(["mt3-runtime", "onnxruntime", "onnxruntime-gpu", "numpy",
                          "tensorrt-rtx", "tensorrt-cu13"])  # fmt: skip
        self.found |= {"machine": machine(), "gpus": gpus, "versions": known}
        for name in ("failed", "load", "answers"):
            self.found.setdefault(name, {})

    def answers(self, part: str, side: str) -> list[dict[str, Any]]:
        """What a side answered in the rounds of a part."""
        found: list[dict[str, Any]] = (
            self.found["answers"].setdefault(part, {}).setdefault(side, [])
        )
        return found

    def save(self) -> None:
        """Writes all of it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        part.replace(self._path)

    def agreement(self, answer: dict[str, Any]) -> dict[str, Any]:
        """How what was said compares with the CPU: segments that are equal, ties, the rest."""
        equal = ties = 0
        apart = 0.0
        probs = answer.get("log_probs")
        for index, (ours, theirs) in enumerate(
            zip(answer["said"], self.truth["said"], strict=True)
        ):
            common = min(len(ours), len(theirs))
            until = next((k for k in range(common) if ours[k] != theirs[k]), common)
            same = until == len(ours) == len(theirs)
            equal += same
            if probs is None:
                continue
            pairs = list(zip(probs[index], self.truth["log_probs"][index], strict=False))
            gaps = [abs(a - b) for a, b in pairs[: until + 1]]
            apart = max(apart, *gaps[:until], 0.0)
            ties += not same and max(gaps, default=0.0) <= TIE
        return {"equal": equal, "ties": ties, "total": len(answer["said"]), "apart": apart}

    def kept(self, side: str) -> bool:
        """Whether all segments of a side are the CPU's, or differ by a tie."""
        found = self.answers("tokens", side)
        return bool(found) and found[0]["equal"] + found[0]["ties"] == found[0]["total"]

    def text(self, seconds: float) -> list[str]:
        """One row per side."""
        found = self.found
        steps = [name for name in found["answers"] if name.startswith("step ")]
        head = ["side", "equal", "ties", "apart", "network s", "file to MIDI s", "x real time",
                "many: x real", "files: x real", "first note ms",
                *(f"{name} ms" for name in steps), "load s", "warm s", "MiB"]  # fmt: skip
        rows = [head, *(self._row(side, steps, seconds) for side in found["load"])]
        lines = [describe(found["machine"]), ", ".join(f"{n} {v}" for n, v in
                 found["versions"].items()), ", ".join(found["gpus"]) or
                 "no GPU: a rehearsal, these figures mean nothing"]  # fmt: skip
        lines += [f"{side}: {load['device']}" for side, load in found["load"].items()]
        truth = (f"cpu: network {self.truth['seconds']:.2f} s, file to MIDI "
                 f"{self.truth['song']:.2f} s, {self.truth['tokens']} tokens")  # fmt: skip
        lines += [truth, "", *columns(rows)]
        lines += [f"FAILED {side}: {reason}" for side, reason in found["failed"].items()]
        return lines

    def _row(self, side: str, steps: list[str], seconds: float) -> list[str]:
        def median(part: str, scale: float = 1.0, digits: int = 2) -> str:
            answers = self.answers(part, side)
            return f"{scale * medians(answers):.{digits}f}" if answers else ""

        def rate(part: str, songs: float) -> str:
            answers = self.answers(part, side)
            return f"{songs * seconds / medians(answers):.0f}" if answers else ""

        tokens = (self.answers("tokens", side) or [{}])[0]
        load, held = self.found["load"][side], self.answers("memory", side)
        many = self.answers("many", side)
        copies = many[0]["tokens"] / self.truth["tokens"] if many else 0
        files = self.answers("files", side)
        return [
            side, f"{tokens['equal']}/{tokens['total']}" if tokens else "",
            str(tokens.get("ties", "")), f"{tokens['apart']:.1e}" if tokens else "",
            median("network"), median("song"), rate("song", 1), rate("many", copies),
            rate("files", files[0]["copies"]) if files else "", median("first note", 1000, 0),
            *(median(name, 1000, 3) for name in steps),
            f"{load['seconds']:.1f}", f"{load.get('warmup', 0):.1f}",
            str(held[0]["memory"] or "") if held else "",
        ]  # fmt: skip


class Plan:
    """Who is asked what, until the time is over."""

    def __init__(self, options: Any, setup: Setup, results: Results, deadline: float) -> None:
        self._options, self._setup, self._results = options, setup, results
        self._deadline = deadline
        self._workers: dict[str, Worker] = {}
        audio, midi = str(setup.audio), str(options.work / "gpu.mid")
        copies = options.copies
        #: By part: how many rounds, what is asked, and whether PyTorch takes part.
        self._parts: dict[str, tuple[int, str, dict[str, Any], bool]] = {
            "tokens": (1, "forward", {}, True),
            **{f"step {rows}": (options.runs, "steps", {"rows": rows, "count": options.steps}, True)
               for rows in options.rows},
            "network": (options.runs, "forward", {}, True),
            "song": (options.runs, "song", {"audio": audio, "midi": midi}, True),
            "many": (options.runs, "forward", {"copies": copies}, True),
            "files": (options.runs, "songs", {"audio": audio, "copies": copies}, False),
            "first note": (options.runs, "first_note", {"audio": audio}, False),
            "memory": (1, "held", {}, False),
        }  # fmt: skip

    def run(self) -> bool:
        """Asks everybody everything; False if the time was over before."""
        failed = self._results.found["failed"]
        for part, (rounds, request, arguments, torch_too) in self._parts.items():
            for number in range(rounds):
                for side in self._sides():
                    if side in failed or (side in TORCH and not torch_too):
                        continue
                    answers = self._results.answers(part, side)
                    if len(answers) > number:
                        continue
                    answer = self._ask(side, request, arguments)
                    if answer is not None:
                        answers.append(self._kept(part, answer))
                    elif side not in failed:
                        return False
                    self._results.save()
        return True

    def close(self) -> None:
        """Ends all processes."""
        for worker in self._workers.values():
            worker.kill()

    def _sides(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """The script and the arguments of every side."""
        options, setup = self._options, self._setup
        cuda = {"device": "cuda", "rehearsal": options.rehearse}
        fp32 = {"bundle": str(setup.bundle), **cuda}
        sides = {"cuda": ("gpu_side.py", fp32),
                 "cuda, plain": ("gpu_side.py", {**fp32, "cuda_graph": False})}  # fmt: skip
        for kind, path in setup.halves.items():
            sides[f"cuda {kind}"] = ("gpu_side.py", {"bundle": str(path), **cuda})
        for path in options.also:
            sides[f"bundle {path.name}"] = ("gpu_side.py", {"bundle": str(path), **cuda})
        for side, (maker, precision) in ENGINES.items():
            if options.no_engines or (options.rehearse and side != "rtx fp32"):
                continue
            engines = {"device": maker, "precision": precision, "rehearsal": options.rehearse,
                       "engines": str(options.work / "engines")}  # fmt: skip
            sides[side] = ("gpu_side.py", {"bundle": str(setup.bundle), **engines})
        for side, arguments in TORCH.items() if setup.weights else ():
            shared = {"weights": str(setup.weights), "bundle": str(setup.bundle),
                      "device": "cpu" if options.rehearse else "cuda"}  # fmt: skip
            if options.rehearse and "compiled" in arguments:
                shared |= {**arguments, "compiled": "eager"}  # traced, but no compiler needed
            elif options.rehearse and "half" in arguments:
                continue  # half precision is a GPU's business
            else:
                shared |= arguments
            sides[side] = ("gpu_torch.py", shared)
        wanted = options.sides or sides
        return {side: sides[side] for side in sides if side in wanted}

    def _ask(self, side: str, request: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """An answer; None if the side has failed or the time is over."""
        left = self._deadline - time.monotonic()
        if left < 5:
            return None
        try:
            worker = self._workers.get(side) or self._start(side)
            left = max(self._deadline - time.monotonic(), 1.0)
            return worker.ask(request, patience=min(left, self._options.patience), **arguments)
        except (SystemExit, TimeoutError) as error:
            lost = self._workers.pop(side, None)
            if lost:
                lost.kill()
            if isinstance(error, SystemExit) or left > self._options.patience:
                talk(f"{side} failed: {error}")
                self._results.found["failed"][side] = f"{request}: {error}"
            return None

    def _start(self, side: str) -> Worker:
        """Starts and loads a side."""
        script, arguments = self._sides()[side]
        python = self._options.torch_python if side in TORCH else sys.executable
        try:
            worker = self._workers[side] = Worker(script, python=python)
        except OSError as error:
            raise SystemExit(f"{python} cannot be started ({error.strerror})") from None
        patience = max(min(self._deadline - time.monotonic(), self._options.patience), 1.0)
        load = worker.ask("load", patience=patience, **arguments)
        self._results.found["load"].setdefault(side, load)
        worker.ask("take", patience=patience, path=str(self._setup.features))
        return worker

    def _kept(self, part: str, answer: dict[str, Any]) -> dict[str, Any]:
        """What is worth keeping of an answer."""
        if part == "tokens":
            answer |= self._results.agreement(answer)
        with contextlib.suppress(KeyError):
            answer["copies"] = self._parts[part][2]["copies"]
        return {key: value for key, value in answer.items() if key not in ("said", "log_probs")}


if __name__ == "__main__":
    sys.exit(main())
