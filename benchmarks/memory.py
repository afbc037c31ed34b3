"""Peak resident memory of a transcription, and that it does not grow with the recording.

One fresh process per length: load with defaults, audio file to MIDI file, then the high-water mark.
The long recording is the three-minute song over and over.
"""

from __future__ import annotations

from typing import Any

from common import STATE, Worker
from materials import bundle, parser, report, song

from mt3_runtime.commands.bench_command import columns


def main() -> None:
    """Transcribes each length once per round and reports."""
    made = parser(__doc__)
    made.set_defaults(runs=1)
    made.add_argument("--minutes", type=float, nargs="+", default=[3.0, 60.0])
    options = made.parse_args()
    model = bundle(options)
    with report(options) as (result, lines):
        rounds: dict[str, list[dict[str, Any]]] = {f"{m:g} min": [] for m in options.minutes}
        for minutes, answers in zip(options.minutes, rounds.values(), strict=True):
            audio = song(options.audio, 60 * minutes)
            for _ in range(options.runs):
                worker = Worker("ours.py")
                loaded = worker.ask("load", bundle=str(model))
                answer = worker.ask("song", audio=str(audio), midi=str(STATE / "memory.mid"))
                worker.close()
                answers.append(answer | {"peak_rss_loaded": loaded["peak_rss"]})
            if minutes > 10:  # an hour is 635 MB
                audio.unlink()
        result["rounds"] = rounds
        lines.extend(columns(rows(rounds)))


def rows(rounds: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """One row per length; the worst round counts."""
    table = [["recording", "segments", "notes", "seconds", "loaded MiB", "peak MiB", "digest"]]
    for name, answers in rounds.items():
        worst = max(answers, key=lambda answer: answer["peak_rss"])
        sizes = [f"{worst[key] / 2**20:.0f}" for key in ("peak_rss_loaded", "peak_rss")]
        counts = [str(worst["segments"]), str(worst["notes"]), f"{worst['seconds']:.1f}"]
        table.append([name, *counts, *sizes, worst["digest"][:12]])
    return table


if __name__ == "__main__":
    main()
