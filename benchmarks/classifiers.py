"""Times AST and DistilHuBERT, seeded and of the published sizes, in turns with PyTorch.

    python benchmarks/classifiers.py --torch-python PYTHON --folder FOLDER [--rounds 5]

PYTHON has torch and transformers.  FOLDER keeps the networks (440 MB) and the bundles for the next
run.  Each side is a process of its own with all threads, and both are asked in turns, so that what
else the machine does meets both alike.  What one clip of 30 s costs is an AST window and 30 s of
DistilHuBERT.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PEER = Path(__file__).with_name("classifiers_peer.py")
#: Networks, and the bundles made of them.
KINDS = {"ast": "tagger", "hubert": "genre"}


def serve(folder: Path, threads: int) -> None:
    """Our side, as `classifiers_peer.serve`."""
    from mt3_analysis import open_classifier  # noqa: PLC0415  only in the process that is measured

    begun = time.perf_counter()
    networks = {name: open_classifier(folder / KINDS[name], threads=threads) for name in KINDS}
    print("ready", time.perf_counter() - begun, flush=True)
    noise = np.random.default_rng(0).standard_normal(30 * 16000).astype(np.float32) * 0.1
    for line in sys.stdin:
        name = line.strip()
        samples = noise[: 16384 * 10] if name == "ast" else noise
        begun = time.perf_counter()
        networks[name].logits(samples)
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(seconds, peak, flush=True)


class Side:
    """A process that answers."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603  ourselves
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.load = self._numbers()[0]
        self.peak = 0.0

    def ask(self, name: str) -> float:
        """Seconds of a run."""
        assert self._process.stdin is not None  # noqa: S101  it is a pipe
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        seconds, self.peak = self._numbers()
        return seconds

    def close(self) -> None:
        """Ends it."""
        self._process.communicate()

    def _numbers(self) -> list[float]:
        assert self._process.stdout is not None  # noqa: S101  it is a pipe
        line = self._process.stdout.readline().removeprefix("ready").split()
        return [float(word) for word in line]


def prepare(folder: Path, python: str) -> None:
    """Makes networks and bundles that are not there."""
    if not (folder / "ast").is_dir():
        subprocess.run([python, str(PEER), "make", str(folder)], check=True)  # noqa: S603
    from mt3_export.classifiers.classifier_writer import export_classifier  # noqa: PLC0415

    for name, bundle in KINDS.items():
        out = folder / bundle
        if not out.exists():
            export_classifier(folder / name, out, name=name)


def main() -> None:
    """Runs both sides and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch-python", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.folder, args.threads)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    prepare(args.folder, args.torch_python)
    same = ["--folder", str(args.folder), "--threads", str(args.threads)]
    ours = Side(sys.executable, __file__, "--torch-python", "-", *same, "--serve")
    theirs = Side(args.torch_python, str(PEER), "serve", str(args.folder), str(args.threads))
    files = (path for name in KINDS.values() for path in (args.folder / name).iterdir())
    disk = sum(path.stat().st_size for path in files) / 1e6
    print(f"load {ours.load:.2f} s (PyTorch {theirs.load:.2f}), disk {disk:.0f} MB")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in KINDS}
    for turn in range(args.rounds + 1):
        for name in KINDS:
            pair = ours.ask(name), theirs.ask(name)
            if turn:  # the first warms up
                times[name].append(pair)
    clip = 0.0
    for name, pairs in times.items():
        own, other = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        clip += own
        print(f"{name}: {own:.2f} s, PyTorch {other:.2f} s, {ratio:.2f} times as fast")
    print(f"clip of 30 s: {clip:.2f} s; peak {ours.peak:.0f} MiB, PyTorch {theirs.peak:.0f} MiB")
    ours.close()
    theirs.close()


if __name__ == "__main__":
    main()
