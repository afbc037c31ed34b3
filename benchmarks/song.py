"""A three-minute song: audio file to MIDI file, against mt3-infer as shipped and a fair baseline.

Sides, each in a process of its own with its model loaded (loading is reported apart):

    ours      the public API of mt3_runtime with its defaults
    fair      the same front and back end around a cached PyTorch loop, batch 32 (torch_peer.py)
    shipped   mt3-infer 0.2.0 with its default model, as its command line runs it (shipped_peer.py)

The song is the recordings of the shared folder joined at 44.1 kHz stereo in the order of
`common.RECORDINGS`.  Ours and fair must have one token digest; shipped computes other features and
so other tokens.  Its time is given as it is, and without the segments in which it runs into its
limit of tokens (`without_runaways`).  The last lines compare ours with the machine's own limits
(see roofline.py).
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean
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
    add = made.add_argument
    add("--seconds", type=float, default=180.0, help="length of the song")
    add("--threads", type=int, default=usable_cores(), help="threads of every side")
    add("--no-fair", action="store_true", help="leave the cached PyTorch loop out")
    add("--peer-runs", type=int, default=1, help="of the rounds, those with shipped; 0: none")
    add("--peer-segments", type=int, metavar="N",
        help="time N evenly spaced segments of shipped per round (others each round) and scale; "
        "all by default")  # fmt: skip
    add("--no-roofline", action="store_true")
    options = made.parse_args()
    model, audio = bundle(options), song(options.audio, options.seconds)
    facts = {"audio": audio.name, "seconds": options.seconds, "threads": options.threads}
    with report(options, **facts) as (result, lines):
        measure(options, model, audio, result)
        if not options.no_roofline:
            limits(model, result)
        lines.extend(text(result))


def measure(options: Any, model: Path, audio: Path, result: dict[str, Any]) -> None:
    """Asks the sides in turns."""
    workers = {"ours": Worker("ours.py")}
    if not options.no_fair:
        workers["fair"] = Worker("torch_peer.py", python=ORACLE)
    if options.peer_runs:
        workers["shipped"] = Worker("shipped_peer.py", python=ORACLE)
    result["load"] = {
        side: worker.ask("load", **_load_arguments(side, options, model))
        for side, worker in workers.items()
    }
    result["rounds"] = rounds = defaultdict(list)
    for number in range(options.runs):
        for side, worker in workers.items():
            arguments = {"audio": str(audio), "midi": str(STATE / f"{side}.mid")}
            if side != "shipped":
                rounds[side].append(worker.ask("song", **arguments))
            elif number < options.peer_runs:
                part = (options.peer_segments, number / options.peer_runs)
                rounds[side].append(worker.ask("song", **arguments, part=part))
    network = [side for side in workers if side != "shipped"]
    ready = str(STATE / "features.npy")
    # Only now, so that the features held by our side do not count in its peak memory.
    result["features"] = workers["ours"].ask("features", audio=str(audio), out=ready)
    for side in network[1:]:
        workers[side].ask("features", path=ready)
    for side in options.runs * network:
        rounds[f"{side}, network"].append(workers[side].ask("forward"))
    result["schedule"] = workers["ours"].ask("schedule")
    digests = {a["digest"] for answers in rounds.values() for a in answers if "digest" in a}
    result["same_tokens"] = len(digests) == 1
    for worker in workers.values():
        worker.close()


def _load_arguments(side: str, options: Any, model: Path) -> dict[str, Any]:
    arguments = {"threads": options.threads}
    if side != "shipped":
        arguments["bundle"] = str(model)
    if side != "ours":
        arguments["checkpoint"] = str(torch_checkpoint(options))
    return arguments


def limits(model: Path, result: dict[str, Any]) -> None:
    """Adds the roofline, measured while the workers are gone."""
    found, work = roofline.measure(), roofline.costs(Bundle(model))
    lengths = result["rounds"]["ours, network"][0]["lengths"]
    floor = roofline.floor(found, work, lengths, result["schedule"]["rows"])
    result["roofline"] = roofline.as_json(found, work) | floor


def text(result: dict[str, Any]) -> list[str]:
    """The tables."""
    rounds, first = result["rounds"], result["rounds"]["ours, network"][0]
    tokens, longest = sum(first["lengths"]), max(first["lengths"])
    loads = ", ".join(f"{side} {load['seconds']:.2f} s" for side, load in result["load"].items())
    lines = [
        (
            f"{result['audio']}: {len(first['lengths'])} segments, {tokens} tokens with their "
            f"ends, longest {longest}; median of {len(rounds['ours'])} rounds"
        ),
        *_table("file to MIDI", ("ours", "fair", "shipped"), result),
        "",
        *_table("features to tokens", ("ours, network", "fair, network"), result),
        "",
        f"token digests equal: {'yes' if result['same_tokens'] else 'NO'}",
        f"loading: {loads}",
    ]
    if "shipped" in rounds:
        lines.append(_about_shipped(rounds["shipped"], result["load"]["shipped"]))
    return lines + (_about_limits(result) if "roofline" in result else [])


def _table(title: str, sides: tuple[str, ...], result: dict[str, Any]) -> list[str]:
    rounds, ours = result["rounds"], medians(result["rounds"][sides[0]])
    rows = [
        [title, "seconds", "best", "x real time", "ours is faster", "peak RSS MiB", "token digest"]
    ]
    for side in filter(rounds.__contains__, sides):
        answers = rounds[side]
        took = medians(answers)
        if side == "shipped":  # its rounds may hold different parts of the song
            took = fmean(answer["seconds"] for answer in answers)
        best = f"{min(answer['seconds'] for answer in answers):.2f}"
        peak = max(answer.get("peak_rss") or 0 for answer in answers)
        speed, ratio = f"{result['seconds'] / took:.2f}", f"{took / ours:.1f} x"
        digest = answers[0].get("digest", "other features")[:14]
        rows.append(
            [side, f"{took:.2f}", best, speed, ratio, f"{peak / 2**20:.0f}" if peak else "", digest]
        )
    return columns(rows)


def _about_shipped(answers: list[dict[str, Any]], load: dict[str, Any]) -> str:
    timed = {segment for answer in answers for segment in answer["timed"]}
    runaways, without = without_runaways(answers)
    total, measured = answers[0]["segments"], sum(answer["measured"] for answer in answers)
    scaled = "" if len(answers[0]["timed"]) == total else ", scaled to all"
    versions = ", ".join(f"{name} {found}" for name, found in load["versions"].items())
    return (
        f"shipped: {versions}, {load['adapter']}, mel by {load['mel']}; {len(timed)} of {total} "
        f"segments timed{scaled}, {measured:.0f} s, {sum(a['tokens'] for a in answers)} tokens; "
        f"{runaways} segments ran into its limit of tokens, without them {without:.1f} s"
    )


def without_runaways(answers: list[dict[str, Any]]) -> tuple[int, float]:
    """Segments of shipped that never came to an end, and its seconds if they were like the others.

    Its features are not those that the weights were trained with; on some segments it says notes
    until the limit, which takes longer than all others together.
    """
    each = [segment for answer in answers for segment in answer["each"]]
    ended = [segment["seconds"] for segment in each if segment["ended"]]
    around = fmean(answer["around"] for answer in answers)
    seconds = around + answers[0]["segments"] * fmean(ended) if ended else math.nan
    return len(each) - len(ended), seconds


def _about_limits(result: dict[str, Any]) -> list[str]:
    found, network = result["roofline"], medians(result["rounds"]["ours, network"])
    machine, schedule = found["machine"], result["schedule"]
    lanes = f"{schedule['workers']} workers x {schedule['slots']} slots"
    return [
        "",
        (
            f"machine: reads {machine['bandwidth'] / 1e9:.1f} GB/s ({machine['bandwidth_by']}), "
            f"multiplies {machine['peak'] / 1e9:.0f} GFLOP/s fp32 ({machine['peak_by']})"
        ),
        (
            f"floor of features to tokens: encoder {found['encoder']:.2f} s, decoder products "
            f"{found['steps']:.2f} s ({found['mean_rows']:.1f} rows per step, {lanes}), caches "
            f"{found['caches']:.2f} s: together {found['floor']:.2f} s"
        ),
        (
            f"reached: {found['floor'] / network:.0%} of that; {found['floor_free'] / network:.0%} "
            f"of {found['floor_free']:.2f} s, the floor without any weight traffic"
        ),
    ]


if __name__ == "__main__":
    main()
