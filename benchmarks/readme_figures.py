"""The figures that README's table needs, from the report of each benchmark.

Contract: a function per benchmark takes its report (what ``--out`` writes) and returns plain
numbers, in seconds, bytes and shares; ``same`` says whether all sides that should do the same job
did, by their tokens.  Nothing is rounded here.  `readme_table` turns the numbers into words.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from common import medians
from recordings import f1
from song import without_runaways

Report = dict[str, Any]
Figures = dict[str, Any]

ACCURACY = {
    "violin": ("onset", "violin_solo"),
    "violin_60s": ("onset, beginning", "violin_solo"),
    "piano": ("onset", "piano_bach"),
    "kits": ("drum onset", "drums_"),
    "bands": ("drum onset", "band_"),
}
"""Name -> what is counted, and how the names of the recordings begin that are taken together."""


#: Share of YourMT3's sequences that may differ, with seeded weights; one segment of ten is 0.1.
#: Traced on a Sapphire Rapids, where 3 of 130 did: in the segment's fifth layer two experts weigh
#: the same but for 1.8e-7, the original in float32 takes one, and in float64 the other, as we do;
#: of 34,320 choices our float32 made every one as its float64, the original's float32 all but 11.
TIED = 0.05


def recordings(report: Report) -> Figures:
    """Equal segments; F1 of two models; what the leakage filters leave."""
    sides, tokens = report["sides"], report["tokens"].values()
    exact, stored = sides["exact"], sides["stored as fp16"]
    differences = [
        abs(f1(counts[kind]) - f1(stored[name][kind]))
        for name, counts in exact.items()
        for kind in ("onset", "drum onset")
        if kind in counts
    ]
    filters = {
        "filter": exact,
        "no_filter": sides["exact, no filter"],
        "classic": sides["exact, mt3-infer's filter"],
    }
    found: Figures = {
        "recordings": len(tokens),
        "segments": sum(one["segments"] for one in tokens),
        "equal": sum(one["equal"] for one in tokens),
        "magenta_mt3": _accuracy(exact),
        "default": _accuracy(sides["default"]),
        "stored": {"recordings": len(differences), "change": max(differences)},
        **{name: _leakage(side, filters["no_filter"]) for name, side in filters.items()},
    }
    return found | {"same": found["equal"] == found["segments"]}


def _accuracy(side: Report) -> dict[str, float]:
    found = {}
    for name, (kind, beginning) in ACCURACY.items():
        counts = [
            one[kind] for path, one in side.items() if path.startswith(beginning) and kind in one
        ]
        if counts:
            found[name] = f1(*counts)
    return found


def _leakage(side: Report, unfiltered: Report) -> dict[str, float]:
    """The share of drums in the notes of isolated drums, and what is left of bands' other notes."""
    kits = [one for path, one in side.items() if path.startswith("drums_")]
    melodic = [
        sum(one["notes"] - one["drums"] for path, one in each.items() if path.startswith("band_"))
        for each in (side, unfiltered)
    ]
    notes = sum(one["notes"] for one in kits)
    return {
        "drums": sum(one["drums"] for one in kits) / max(notes, 1),
        "kept": melodic[0] / max(melodic[1], 1),
    }


def song(report: Report) -> Figures:
    """Ours and the cached PyTorch loop, and the floor under both."""
    rounds, limits = report["rounds"], report["roofline"]
    first = rounds["ours, network"][0]
    return {
        "audio": report["seconds"],
        "rounds": len(rounds["ours"]),
        "segments": len(first["lengths"]),
        "tokens": sum(first["lengths"]),
        "ours": medians(rounds["ours"]),
        "fair": medians(rounds["fair"]),
        "network": medians(rounds["ours, network"]),
        "fair_network": medians(rounds["fair, network"]),
        "fair_peak": max(answer["peak_rss"] for answer in rounds["fair"]),
        "floor": limits["floor"],
        "floor_free": limits["floor_free"],
        "machine": limits["machine"],
        "same": report["same_tokens"],
    }


def shipped(report: Report) -> Figures:
    """Ours and mt3-infer, as it ships and without its runaway segments."""
    rounds = report["rounds"]
    answers, lengths = rounds["shipped"], rounds["ours, network"][0]["lengths"]
    runaways, without = without_runaways(answers)
    segments, timed = answers[0]["segments"], sum(len(answer["each"]) for answer in answers)
    return {
        "audio": report["seconds"],
        "rounds": len(rounds["ours"]),
        "segments": segments,
        "timed": timed,
        "scaled": "" if timed == segments else f" (scaled from {timed} of {segments} segments)",
        "ours": medians(rounds["ours"]),
        "longest": max(lengths),
        "shipped": medians(answers),
        "runaways": runaways,
        "without": without,
        "peak": max(answer["peak_rss"] for answer in answers),
        "same": report["same_tokens"],
    }


def decoder_step(report: Report) -> Figures:
    """One step by number of rows."""
    found: Figures = {"steps": report["steps"], "ours": [], "fair": [], "same": True}
    for answers in report["rounds"].values():
        rival = f"torch, {report['machine']['cores']} threads"
        found["ours"].append(medians(answers["default"]))
        found["fair"].append(medians(answers[rival]))
        ends = {tuple(answer["last_ids"]) for side in answers.values() for answer in side}
        found["same"] = found["same"] and len(ends) == 1
    return found | {"rows": " / ".join(report["rounds"])}


def cold_start(report: Report) -> Figures:
    """From starting a process to its first token."""
    found = {side: medians(a, "start to first token") for side, a in report["rounds"].items()}
    return found | {"rounds": len(report["rounds"]["ours"]), "same": True}


def memory(report: Report) -> Figures:
    """Peak memory by length; the worst round counts."""
    rounds = report["rounds"]
    peaks = [max(answer["peak_rss"] for answer in answers) for answers in rounds.values()]
    return {"lengths": " / ".join(rounds), "peaks": peaks, "same": True}


def many(report: Report) -> Figures:
    """Clips one by one and together."""
    rounds = report["rounds"]
    digests = {tuple(way["digests"]) for each in rounds for way in each.values()}
    sides = {way.replace(" ", "_"): medians([each[way] for each in rounds]) for way in rounds[0]}
    return sides | {"clips": report["clips"], "audio": report["seconds"], "same": len(digests) == 1}


def stored_weights(report: Report) -> Figures:
    """Weights stored as fp16 and as fp32."""
    sides: Figures = {
        storage: {
            "bytes": report["bytes"][storage],
            "load": medians([one["load"] for one in rounds]),
            "peak": medians([one["song"] for one in rounds], "peak_rss"),
        }
        for storage, rounds in report["rounds"].items()
    }
    return sides | {"audio": report["seconds"], "same": True}


def default_model(report: Report) -> Figures:
    """The default model and Magenta's."""
    sides: Figures = {
        side: {
            "bytes": report["bytes"][side],
            "song": medians(answers),
            "first": medians(report["first"][side]),
        }
        for side, answers in report["rounds"].items()
    }
    return sides | {"audio": report["seconds"], "same": report["one_digest_each"]}


def constraints(report: Report) -> Figures:
    """What masks and grammar take of the decoder's time."""
    rounds = report["rounds"]
    shares = [
        median(one["constraint_seconds"] / one["step_seconds"] for one in rounds[name])
        for name in ("line-up", "grammar", "both")
    ]
    digests = {one["digest"] for answers in rounds.values() for one in answers}
    return {"shares": shares, "audio": report["seconds"], "same": len(digests) == 1}


def yourmt3(report: Report) -> Figures:
    """YourMT3, ours and its authors', and the encoder's parts as shares of the peak.

    Where the two best experts of a frame weigh the same, the last bit decides, and the sequences of
    that segment may differ: `TIED`.  tests/parity/test_yourmt3_oracle.py bounds such ties.
    """
    profile, keys = report["profile"], ("encoder", "decoder", "seconds")
    shares = [
        profile[f"{part} flops"] / profile[f"{part} seconds"] / profile["peak"]
        for part in ("convolutions", "experts")
    ]
    sides = {
        side: {key: medians(answers, key) for key in keys}
        for side, answers in report["rounds"].items()
    }
    sequences = sum(map(len, report["lengths"]))
    return {
        **sides,
        "audio": report["seconds"],
        "rounds": len(report["rounds"]["ours"]),
        "sequences": sequences,
        "equal": sequences - report["differing"],
        "shares": shares,
        "same": report["differing"] <= TIED * sequences,
    }


def mr_mt3(report: Report) -> Figures:
    """MR-MT3, ours and as published."""
    ((tokens, rounds),) = report["rounds"].items()
    digests = {tuple(answer["digests"]) for answers in rounds.values() for answer in answers}
    return {
        "tokens": int(tokens),
        "recordings": report["recordings"],
        "segments": report["segments"],
        "rounds": len(rounds["together"]),
        **{side.replace(" ", "_"): medians(answers) for side, answers in rounds.items()},
        "same": len(digests) == 1,
    }
