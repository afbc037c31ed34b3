"""What the default packaging costs: weights stored as fp32 and as fp16, computed with in fp32.

Both bundles are made of one checkpoint.  Every round starts a fresh process per bundle, in turns:
load with defaults, one silent segment, an excerpt of the song.  Processor time says more than the
clock where the machine is not quiet.  The digests differ: rounded weights are other weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import STATE, Worker, medians
from materials import bundle, exported, parser, report, song

from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.commands.bench_command import columns

FIGURES = {
    "load s": ("load", "seconds", 1.0),
    "load cpu s": ("load", "cpu_seconds", 1.0),
    "load peak MiB": ("load", "load_peak_rss", 2.0**20),
    "song s": ("song", "seconds", 1.0),
    "song cpu s": ("song", "cpu_seconds", 1.0),
    "peak MiB": ("song", "peak_rss", 2.0**20),
}
"""Columns: of which answer, which key, and its unit."""


def main() -> None:
    """Runs all rounds and reports."""
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, default=30.0, help="of the song")
    options = made.parse_args()
    bundles = {"fp32": bundle(options), "fp16": exported(options, "fp16")}
    sizes = {
        storage: sum(graph.size for graph in Bundle(path).manifest.graphs)
        for storage, path in bundles.items()
    }
    audio = song(options.audio, options.seconds)
    with report(options, seconds=options.seconds) as (result, lines):
        rounds: dict[str, list[dict[str, dict[str, Any]]]] = {storage: [] for storage in sizes}
        for _ in range(options.runs):
            for storage, answers in rounds.items():
                answers.append(one_round(bundles[storage], audio))
        result |= {"bytes": sizes, "rounds": rounds}
        lines.append(f"medians of {options.runs} fresh processes, {options.seconds:g} s of audio:")
        lines.extend(columns(rows(sizes, rounds)))


def one_round(path: Path, audio: Path) -> dict[str, dict[str, Any]]:
    """One fresh process."""
    worker = Worker("ours.py")
    answers = {
        "load": worker.ask("load", bundle=str(path)),
        "song": worker.ask("song", audio=str(audio), midi=str(STATE / "stored_weights.mid")),
    }
    worker.close()
    return answers


def rows(
    sizes: dict[str, int], rounds: dict[str, list[dict[str, dict[str, Any]]]]
) -> list[list[str]]:
    """One row per bundle."""
    table = [["stored", "MiB", *FIGURES, "digest"]]
    for storage, answers in rounds.items():
        figures = [
            f"{medians([a[answer] for a in answers], key) / unit:.2f}"
            for answer, key, unit in FIGURES.values()
        ]
        size, digest = f"{sizes[storage] / 2**20:.1f}", answers[0]["song"]["digest"][:12]
        table.append([storage, size, *figures, digest])
    return table


if __name__ == "__main__":
    main()
