"""One decoder step by batch size, against a cached PyTorch loop with the same weights.

Every side decodes the same segments of the song for the same number of steps, end-of-sequence
ignored, and must end at the same tokens.  Settings of ours:

    default              as the runtime does: a lone row gets all threads, more rows are spread over
                         a lane per core with one thread each
    one lane             one lane, one thread
    one lane, N threads  one lane, all threads

The floor is that of roofline.py for the same steps: weights once per step, caches once per row.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import roofline
from common import ORACLE, STATE, Worker, medians
from materials import bundle, parser, report, song, torch_checkpoint

from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.commands.bench_command import columns
from mt3_runtime.diagnostics.cores import usable_cores


def main() -> None:
    """Runs all rounds and reports."""
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, default=180.0, help="length of the song")
    made.add_argument("--steps", type=int, default=128)
    made.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    made.add_argument("--brief", action="store_true", help="our defaults and PyTorch on all cores")
    options = made.parse_args()
    model, cores = bundle(options), usable_cores()
    audio, ready = str(song(options.audio, options.seconds)), str(STATE / "features.npy")
    checkpoint = str(torch_checkpoint(options))
    with report(options, steps=options.steps) as (result, lines):
        ours, fair = Worker("ours.py"), Worker("torch_peer.py", python=ORACLE)
        ours.ask("load", bundle=str(model))
        loaded = fair.ask("load", checkpoint=checkpoint, bundle=str(model), threads=cores)
        result["versions"] |= loaded["versions"]
        ours.ask("features", audio=audio, out=ready)
        fair.ask("features", path=ready)
        result["rounds"] = {
            str(batch): rounds(ours, fair, options, batch) for batch in options.batches
        }
        for worker in (ours, fair):
            worker.close()
        found, work = roofline.measure(), roofline.costs(Bundle(model))
        result["roofline"] = roofline.as_json(found, work)
        lines.append(f"{options.steps} steps, median of {options.runs} rounds, ms per step (best):")
        lines.extend(text(result, found, work))


def rounds(ours: Worker, fair: Worker, options: Any, batch: int) -> dict[str, list[Any]]:
    """Asks all settings in turns: answers per setting."""
    cores, run = usable_cores(), {"batch": batch, "count": options.steps}
    answers: dict[str, list[Any]] = defaultdict(list)
    for _ in range(options.runs):
        alone = {"alone": True} if batch == 1 else {"lanes": min(cores, batch)}
        answers["default"].append(ours.ask("steps", **run, **alone))
        answers[f"torch, {cores} threads"].append(fair.ask("steps", **run, threads=cores))
        if options.brief:
            continue
        answers["one lane"].append(ours.ask("steps", **run))
        answers["torch, 1 thread"].append(fair.ask("steps", **run, threads=1))
        answers[f"one lane, {cores} threads"].append(ours.ask("steps", **run, alone=True))
    return answers


def text(result: dict[str, Any], found: roofline.Machine, work: roofline.Costs) -> list[str]:
    """One row per batch size."""
    settings = list(next(iter(result["rounds"].values())))
    rows = [["rows", *settings, "default is faster", "floor", "of floor", "same tokens"]]
    for batch, answers in result["rounds"].items():
        took = {setting: medians(answers[setting]) for setting in settings}
        rival = min(seconds for setting, seconds in took.items() if setting.startswith("torch"))
        parts = roofline.floor(
            found, work, int(batch) * [result["steps"]], result["steps"] * [int(batch)]
        )
        floor = (parts["steps"] + parts["caches"]) / result["steps"]
        ends = {tuple(answer["last_ids"]) for side in answers.values() for answer in side}
        rows.append(
            [
                batch,
                *(f"{1000 * took[side]:.2f} ({1000 * _best(answers[side]):.2f})" for side in took),
                f"{rival / took['default']:.1f} x",
                f"{1000 * floor:.2f}",
                f"{floor / took['default']:.0%}",
                "yes" if len(ends) == 1 else "NO",
            ]
        )
    return columns(rows)


def _best(answers: list[dict[str, Any]]) -> float:
    return float(min(answer["seconds"] for answer in answers))


if __name__ == "__main__":
    main()
