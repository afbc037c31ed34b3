"""The small default model beside Magenta's MT3: a three-minute song, and a first short recording.

Both sides go through the public API with its defaults, each in a process of its own, asked in
turns.  *Song* is audio file to MIDI file with the model loaded; *first* is the whole command, from
nothing to the MIDI file of the demonstration recording (13 s), with a new process each time.  The
two write different tokens, so their digests differ; a side must have one digest in all rounds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import ROOT, STATE, Worker, environment, medians
from materials import bundle, parser, report, song

from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.commands.bench_command import columns
from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.models.installed import resolve_model

DEMO = ROOT / "calibration" / "demo" / "demo.flac"
RUN = "import sys; from mt3_runtime.cli import main; sys.exit(main())"


def main() -> None:
    """Runs all rounds and reports."""
    made = parser(__doc__)
    add = made.add_argument
    add("--default", default="default", help="name or path of the small model")
    add("--seconds", type=float, default=180.0, help="length of the song")
    add("--threads", type=int, default=usable_cores(), help="threads of both sides")
    options = made.parse_args()
    sides = {"default": resolve_model(options.default), "magenta_mt3": bundle(options)}
    audio = song(options.audio, options.seconds)
    facts = {"audio": audio.name, "seconds": options.seconds, "threads": options.threads}
    with report(options, **facts) as (result, lines):
        result["bytes"] = {side: _size(path) for side, path in sides.items()}
        measure(options, sides, audio, result)
        lines.extend(text(result))


def measure(options: Any, sides: dict[str, Path], audio: Path, result: dict[str, Any]) -> None:
    """Asks the sides in turns."""
    first: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _ in range(options.runs):
        for side, path in sides.items():
            first[side].append({"seconds": cold(path, options.threads)})
    workers = {side: Worker("ours.py") for side in sides}
    result["load"] = {
        side: worker.ask("load", bundle=str(sides[side]), threads=options.threads)
        for side, worker in workers.items()
    }
    rounds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _ in range(options.runs):
        for side, worker in workers.items():
            midi = str(STATE / f"{side}.mid")
            rounds[side].append(worker.ask("song", audio=str(audio), midi=midi))
    for worker in workers.values():
        worker.close()
    result["first"], result["rounds"] = dict(first), dict(rounds)
    result["one_digest_each"] = all(
        len({answer["digest"] for answer in answers}) == 1 for answers in rounds.values()
    )


def cold(path: Path, threads: int) -> float:
    """Seconds of the whole command on the demonstration recording."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["transcribe", str(DEMO), "-m", str(path), "-o", f"{folder}/demo.mid", "-q"]
        begin = time.perf_counter()
        subprocess.run(  # noqa: S603  our own command
            [sys.executable, "-c", RUN, *words, "--threads", str(threads)],
            env=os.environ | environment(),
            check=True,
        )
        return time.perf_counter() - begin


def text(result: dict[str, Any]) -> list[str]:
    """The table."""
    rows = [["", "MB", "song, s", "x real time", "first, s", "peak RSS MiB", "token digest"]]
    for side, answers in result["rounds"].items():
        took = medians(answers)
        peak = max(answer["peak_rss"] for answer in answers) / 2**20
        rows.append(
            [
                side,
                f"{result['bytes'][side] / 1e6:.1f}",
                f"{took:.2f}",
                f"{result['seconds'] / took:.0f}",
                f"{medians(result['first'][side]):.2f}",
                f"{peak:.0f}",
                answers[0]["digest"][:14],
            ]
        )
    ratio = medians(result["rounds"]["magenta_mt3"]) / medians(result["rounds"]["default"])
    return [
        f"{result['audio']}: median of {len(result['rounds']['default'])} rounds, in turns",
        *columns(rows),
        "",
        (
            f"default is faster by {ratio:.1f} x; one digest per side: "
            f"{'yes' if result['one_digest_each'] else 'NO'}"
        ),
    ]


def _size(path: Path) -> int:
    return sum(graph.size for graph in Bundle(path).manifest.graphs if graph.profile == "cpu")


if __name__ == "__main__":
    main()
