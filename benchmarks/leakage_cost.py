"""What the leakage filter costs: its share of a transcription, on the song.

The settings take turns: no filter, the default one.  Both must have one token digest, as the filter
touches no token.  CPU time counts, as other work on the machine does not change it much; beside it
stands the time of the filter alone, on the same notes and audio, which is the sharper figure: the
difference of two transcriptions is smaller than what they differ by anyway.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from common import talk
from materials import bundle, parser, report, song

from mt3_runtime.audio.sources import load_audio
from mt3_runtime.commands.bench_command import columns
from mt3_runtime.leakage.leakage_filter import filter_notes
from mt3_runtime.loading import load_model

SETTINGS = {"no filter": False, "default filter": True}


def main() -> None:
    """Runs all rounds and reports."""
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, default=60.0, help="length of the song")
    options = made.parse_args()
    path = song(options.audio, options.seconds)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in (*SETTINGS, "filter alone")}
    with report(options, seconds=options.seconds) as (result, lines):
        with load_model(bundle(options)) as model:
            model.warmup()
            audio = load_audio(path, target_rate=model.sample_rate)
            for number in range(options.runs):
                for name, kind in SETTINGS.items():
                    talk(f"round {number}: {name}")
                    begin, clock = time.process_time(), time.perf_counter()
                    found = model.transcribe_notes(path, auto_filter=kind)
                    rounds[name].append(
                        {
                            "cpu": time.process_time() - begin,
                            "wall": time.perf_counter() - clock,
                            "notes": len(found.notes),
                            "digest": found.token_digest,
                        }
                    )
                    if kind is False:
                        raw = found.notes
                begin, clock = time.process_time(), time.perf_counter()
                kept = filter_notes(raw, [audio], auto_filter=True, rate=model.sample_rate).notes
                rounds["filter alone"].append(
                    {
                        "cpu": time.process_time() - begin,
                        "wall": time.perf_counter() - clock,
                        "notes": len(kept),
                        "digest": "",
                    }
                )
        result["rounds"] = rounds
        lines.extend(columns(rows(rounds)))


def rows(rounds: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """One row per setting: medians, and the share of the CPU time without a filter."""
    table = [["", "CPU s", "wall s", "share", "notes", "digest"]]
    whole = statistics.median(answer["cpu"] for answer in rounds["no filter"])
    for name, answers in rounds.items():
        cpu, wall = (statistics.median(a[key] for a in answers) for key in ("cpu", "wall"))
        first = answers[0]
        table.append(
            [name, f"{cpu:.2f}", f"{wall:.2f}", f"{100 * cpu / whole:.1f} %", str(first["notes"]),
             first["digest"][:12]]
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
