"""Many short recordings: one call for each against one batch for all of them.

The song is cut into clips.  One process with one loaded model transcribes them in turns with
`transcribe_notes`, clip by clip, and with `transcribe_many`; both must give the same tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from materials import bundle, parser, report, song

from mt3_runtime.audio.sources import load_audio
from mt3_runtime.commands.bench_command import columns
from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from mt3_runtime.transcription import Transcription

Clips = list[np.ndarray[Any, Any]]
Way = Callable[[Clips], list[Transcription]]


def main() -> None:
    """Runs all rounds and reports."""
    made = parser(__doc__)
    add = made.add_argument
    add("--clips", type=int, default=24, help="number of recordings")
    add("--seconds", type=float, default=4.0, help="length of each")
    add("--threads", type=int, default=usable_cores())
    options = made.parse_args()
    path = bundle(options)
    samples = load_audio(song(options.audio, options.clips * options.seconds))
    clips = np.array_split(samples, options.clips)
    facts = {"clips": options.clips, "seconds": options.seconds, "threads": options.threads}
    with (
        report(options, **facts) as (result, lines),
        load_model(path, device="cpu", threads=options.threads) as model,
    ):
        model.warmup()
        ways: dict[str, Way] = {
            "one by one": partial(_one_by_one, model),
            "together": partial(_together, model),
        }
        rounds = [
            {name: _timed(way, clips) for name, way in ways.items()} for _ in range(options.runs)
        ]
        result["rounds"] = rounds
        lines.extend(columns(_rows(rounds, len(samples) / 16000)))


def _one_by_one(model: Model, clips: Clips) -> list[Transcription]:
    return [model.transcribe_notes(clip) for clip in clips]


def _together(model: Model, clips: Clips) -> list[Transcription]:
    return list(model.transcribe_many(clips))


def _timed(way: Way, clips: Clips) -> dict[str, Any]:
    begin = time.perf_counter()
    found = way(clips)
    return {"seconds": time.perf_counter() - begin, "digests": [r.token_digest for r in found]}


def _rows(rounds: list[dict[str, Any]], length: float) -> list[list[str]]:
    table = [["way", "seconds", "x real time", "first digest", "same tokens"]]
    expected = rounds[0]["one by one"]["digests"]
    for name in rounds[0]:
        seconds = median(each[name]["seconds"] for each in rounds)
        same = all(each[name]["digests"] == expected for each in rounds)
        table.append(
            [
                name,
                f"{seconds:.2f}",
                f"{length / seconds:.1f}",
                expected[0][:12],
                "yes" if same else "NO",
            ]
        )
    return table


if __name__ == "__main__":
    main()
