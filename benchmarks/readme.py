"""Measures every figure of README's table in one run, and keeps them in benchmarks/results.

    python benchmarks/readme.py                       # what was not measured yet; a quiet machine!
    python benchmarks/readme.py --write               # the same, and README's table from it

The benchmarks run one after the other, each with its sides in turns.  What is finished is kept in
.state/readme and not run again for the same commit and machine; ``--state`` names such a folder to
go on with it later.  readme.json is written as soon as all are finished, and holds the digest of
the runtime's hot path: CI fails where that has changed since (scripts/nightly_results.py).
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import readme_figures as figures
import readme_table
from common import HERE, ROOT, SHARED, talk
from materials import bundle

sys.path.insert(0, str(ROOT))
from scripts import nightly_results as results

KEPT = ROOT / results.FOLDER
STATE = ROOT / ".state" / "readme"


@dataclass(frozen=True)
class Benchmark:
    """One of the scripts beside this one.

    Attributes:
        figures: What the table needs of its report.
        arguments: The script and its options; sides are slow here and there, so lengths are chosen
            such that two slow cores have done it all within half an hour.
        rehearsal: Options that make it short, to try the whole.
    """

    figures: Callable[[dict[str, Any]], dict[str, Any]]
    arguments: str
    rehearsal: str


BENCHMARKS = {
    "recordings": Benchmark(
        figures.recordings,
        "recordings.py --runs 1",
        "--recordings violin_solo.mp3 piano_bach.mp3 drums_rock.flac band_hendrix.flac --threads 1",
    ),
    "song": Benchmark(
        figures.song, "song.py --seconds 180 --peer-runs 0", "--seconds 10 --threads 1"
    ),
    # All of its segments once: minutes, as each new token costs it all those before.
    "shipped": Benchmark(
        figures.shipped,
        "song.py --seconds 60 --peer-runs 1 --no-fair --no-roofline",
        "--seconds 20 --peer-segments 2 --threads 1",
    ),
    "decoder_step": Benchmark(
        figures.decoder_step, "decoder_step.py --seconds 70 --brief", "--seconds 5 --steps 4"
    ),
    "cold_start": Benchmark(figures.cold_start, "cold_start.py --peer", ""),
    "memory": Benchmark(figures.memory, "memory.py --runs 1 --minutes 3 60", "--minutes 0.1 0.2"),
    "many": Benchmark(figures.many, "many.py --clips 10 --seconds 4", "--clips 2"),
    "stored_weights": Benchmark(figures.stored_weights, "stored_weights.py", "--seconds 4"),
    "default_model": Benchmark(
        figures.default_model, "default_model.py --seconds 180", "--seconds 10"
    ),
    "constraints": Benchmark(figures.constraints, "constraints.py --seconds 60", "--seconds 5"),
    "yourmt3": Benchmark(figures.yourmt3, "yourmt3.py --seconds 20", "--seconds 4 --threads 1"),
    "mr_mt3": Benchmark(figures.mr_mt3, "mr_mt3.py --tokens 64", "--tokens 8 --threads 1"),
}


def main() -> int:
    """Runs what is not finished, and keeps the figures."""
    options = _options()
    state = options.state or STATE / _state_name(rehearse=options.rehearse)
    names = [name for name in options.only or BENCHMARKS if not _file(state, name).exists()]
    talk(f"{', '.join(names) or 'nothing'} to be measured; kept in {state}")
    if names:
        options.bundle = bundle(options)
    for name in names:
        run(name, state, options)
    folder = state / "results" if options.rehearse else KEPT
    parts = {name: _read(state, name) for name in BENCHMARKS if _file(state, name).exists()}
    digest = results.digest(results.FIGURES["readme"])
    done = [name for name, part in parts.items() if part["digest"] == digest]
    if missing := BENCHMARKS.keys() - done:
        talk(f"not measured on this code: {', '.join(sorted(missing))}; nothing is written")
        return 1
    _keep(folder / "readme.json", whole(parts))
    print(readme_table.render(readme_table.load(folder)))
    if options.write and not options.rehearse:
        readme_table.write(folder)
    different = [name for name, part in parts.items() if not part["figures"]["same"]]
    if different:
        talk(f"SIDES WITH DIFFERENT TOKENS: {', '.join(different)}")
    return int(bool(different))


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = made.add_argument
    add("--write", action="store_true", help="write the table into README.md as well")
    add("--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    add("--runs", type=int, default=3, help="rounds; of what is slow always one")
    add("--checkpoint", type=Path, default=SHARED / "checkpoints" / "magenta_mt3")
    add("--audio", type=Path, default=SHARED / "audio", help="folder of the recordings")
    add("--bundle", type=Path, help="the exact bundle; made from the checkpoint if not given")
    add("--state", type=Path, help="folder of an earlier run to go on with")
    add(
        "--rehearse",
        action="store_true",
        help="seconds of audio, one round; nothing is kept but in the state",
    )
    return made.parse_args()


def _state_name(*, rehearse: bool) -> str:
    """A name for this commit, what is changed beside it, and this machine."""
    commit = results.git("rev-parse", "--short=12", "HEAD").strip()
    changes = results.git("diff", "HEAD", "--", ".", ":!README.md", f":!{results.FOLDER}")
    seen = hashlib.sha256(f"{changes}{results.machine()}".encode()).hexdigest()[:8]
    return f"{commit}-{seen}{'-rehearsal' if rehearse else ''}"


def _file(state: Path, name: str) -> Path:
    return state / f"{name}.json"


def _read(state: Path, name: str) -> dict[str, Any]:
    return dict(json.loads(_file(state, name).read_bytes()))


def run(name: str, state: Path, options: argparse.Namespace) -> None:
    """Runs one benchmark and keeps its figures; raises `SystemExit` if it fails."""
    benchmark = BENCHMARKS[name]
    script, *given = benchmark.arguments.split()
    if "--runs" not in given:
        given += ["--runs", str(options.runs)]
    if options.rehearse:
        given += ["--runs", "1", *benchmark.rehearsal.split()]
    raw = state / "reports" / f"{name}.json"
    raw.parent.mkdir(parents=True, exist_ok=True)
    paths = ["--checkpoint", str(options.checkpoint), "--audio", str(options.audio)]
    paths += ["--bundle", str(options.bundle), "--out", str(raw)]
    talk(f"=== {name}: {script} {' '.join(given)}")
    begin, now = time.monotonic(), dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    command = [sys.executable, str(HERE / script), *given, *paths]
    if status := subprocess.run(command, check=False).returncode:  # noqa: S603  our own script
        raise SystemExit(f"{name} failed with status {status}; what came before it is kept")
    seconds = round(time.monotonic() - begin)
    talk(f"=== {name}: {seconds} s")
    _keep(_file(state, name), part(benchmark, raw, {"date": now, "seconds": seconds}))


def part(benchmark: Benchmark, raw: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one benchmark's report: the figures, and the text as it was printed."""
    report = json.loads(raw.read_bytes())
    return {
        "command": benchmark.arguments,
        "commit": results.git("rev-parse", "HEAD").strip(),
        "digest": results.digest(results.FIGURES["readme"]),
        **facts,
        "machine": results.machine(),
        "busy_before": report["busy_before"],
        "versions": report["versions"],
        "figures": benchmark.figures(report),
        "text": raw.with_suffix(".txt").read_text(encoding="utf-8").splitlines(),
    }


def whole(parts: dict[str, Any]) -> dict[str, Any]:
    """The result of all benchmarks, in the form of scripts/nightly_results.py."""
    same = [part["figures"]["same"] for part in parts.values()]
    counts = {"passed": sum(same), "failed": len(same) - sum(same), "skipped": 0}
    digest = results.digest(results.FIGURES["readme"])
    return {
        "commit": results.git("rev-parse", "HEAD").strip(),
        "changed": bool(results.git("status", "--porcelain", "--untracked-files=no").strip()),
        "date": max(part["date"] for part in parts.values()),
        "machine": results.machine(),
        "parts": {"readme": {"digest": digest, "exit": 0, **counts, "benchmarks": parts}},
    }


def _keep(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    talk(f"written: {path}")


if __name__ == "__main__":
    sys.exit(main())
