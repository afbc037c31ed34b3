"""Bundles of other precision against the exact one: the same song, in turns, in one run.

Every bundle lives in a process of its own.  What is compared is the time from file to MIDI and from
ready features to tokens; beside it stand the seconds of all threads together, which other work on
the machine disturbs less, the number of tokens (a bundle that says less has less to do), the share
of segments whose tokens are those of the exact bundle, the peak memory of the process after all
rounds of the song, and the token digest.

    python benchmarks/precisions.py --bundle magenta_mt3/ --other fast/ --other small/
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from common import STATE, Worker, medians
from materials import bundle, parser, report, song

from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.commands.bench_command import columns
from mt3_runtime.diagnostics.cores import usable_cores


def main() -> None:
    """Runs all rounds and reports."""
    made = parser(__doc__)
    add = made.add_argument
    add("--other", type=Path, action="append", required=True, help="bundle of other precision")
    add("--seconds", type=float, default=180.0, help="length of the song")
    add("--threads", type=int, default=usable_cores(), help="threads of every side")
    options = made.parse_args()
    exact, audio = bundle(options), song(options.audio, options.seconds)
    facts = {"audio": audio.name, "seconds": options.seconds, "threads": options.threads}
    with report(options, **facts) as (result, lines):
        measure(options, [exact, *options.other], audio, result)
        lines.extend(text(result))


def measure(options: Any, bundles: list[Path], audio: Path, result: dict[str, Any]) -> None:
    """Asks the sides in turns."""
    sides = [_Side(path) for path in bundles]
    result["load"] = {
        side.name: side.worker.ask("load", bundle=str(side.path), threads=options.threads)
        for side in sides
    }
    result["bytes"] = {
        side.name: sum(g.size for g in Bundle(side.path).manifest.graphs if g.profile == "cpu")
        for side in sides
    }
    result["songs"], result["networks"] = songs, networks = defaultdict(list), defaultdict(list)
    for side in options.runs * sides:
        midi = str(STATE / f"{side.path.name}.mid")
        songs[side.name].append(side.worker.ask("song", audio=str(audio), midi=midi))
    for side in sides:
        side.worker.ask("features", audio=str(audio), out=str(STATE / "features.npy"))
    for side in options.runs * sides:
        networks[side.name].append(side.worker.ask("forward"))
    for side in sides:
        side.worker.close()


class _Side:
    """A bundle in a process."""

    def __init__(self, path: Path) -> None:
        self.path, self.worker = path, Worker("ours.py")
        self.name = f"{Bundle(path).manifest.precision} ({path.name})"


def text(result: dict[str, Any]) -> list[str]:
    """The table; the first side is the exact one."""
    exact = next(iter(result["songs"]))
    said = result["networks"][exact][0]["each"]
    rows = [
        ["precision", "file to MIDI", "faster", "CPU s", "features to tokens", "faster", "tokens",
         "identical segments", "graphs MB", "load s", "peak RSS MiB", "token digest"]
    ]  # fmt: skip
    for side, songs in result["songs"].items():
        networks = result["networks"][side]
        times = []
        for part in (result["songs"], result["networks"]):
            took = medians(part[side])
            times += [f"{took:.2f} s", f"{medians(part[exact]) / took:.2f} x"]
        times.insert(2, f"{medians(songs, 'cpu_seconds'):.2f}")
        same = sum(a == b for a, b in zip(said, networks[0]["each"], strict=True))
        peak = max(answer["peak_rss"] or 0 for answer in songs) / 2**20
        rows.append(
            [side, *times, str(sum(networks[0]["lengths"])), f"{same / len(said):.1%}",
             f"{result['bytes'][side] / 1e6:.0f}", f"{result['load'][side]['seconds']:.2f}",
             f"{peak:.0f}", networks[0]["digest"][:14]]
        )  # fmt: skip
    return [
        f"{result['audio']}: {len(said)} segments; median of {len(songs)} rounds",
        *columns(rows),
    ]


if __name__ == "__main__":
    main()
