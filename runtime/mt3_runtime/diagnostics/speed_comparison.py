"""Compares two reports of `mt3 bench`: slower, faster, or the same, by a stated statistical rule.

The rule, for each recording that both reports have: the runs of the whole work are *slower* if the
median rose by more than `LEAST_CHANGE` and the one-sided exact test of Mann and Whitney gives
p < `SIGNIFICANCE`; *faster* the other way round; the same otherwise.  So one slow run of a busy
machine decides nothing, and a small change that is certain does not either.  Peak memory is one
figure of a process and repeats within a few per cent: it is *more* if it rose by more than
`LEAST_MEMORY`.

Only equal work is compared: the same model, precision, device, machine and tokens.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mt3_runtime.errors import OptionError

SIGNIFICANCE = 0.01
"""Largest probability of a verdict by chance, for each recording."""

LEAST_CHANGE = 0.05
"""Part of the old median by which it must have moved: less is noise of a quiet machine."""

LEAST_MEMORY = 0.10
"""Part of the old peak by which memory must have grown."""

LEAST_RUNS = 5
"""Runs on each side from which on the test can reach its significance: 1 / C(10, 5) = 0.004."""


@dataclass(frozen=True)
class Comparison:
    """What became of one figure.

    Attributes:
        subject: Recording, or ``peak memory``.
        old: Median seconds, or bytes, of the old report.
        new: The same of the new one.
        chance: Probability of as great a difference by chance; None for memory.
        verdict: ``slower``, ``faster``, ``more``, ``less`` or ``same``.
    """

    subject: str
    old: float
    new: float
    chance: float | None
    verdict: str

    @property
    def regressed(self) -> bool:
        """Whether it got worse."""
        return self.verdict in ("slower", "more")


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a report that `mt3 bench --json` wrote.

    Raises:
        OptionError: There is none, or it holds something else, or no single runs.
    """
    try:
        report: dict[str, Any] = json.loads(Path(path).read_bytes())
        rows = {(row["audio"], row["token_digest"]): row["runs_s"] for row in report["recordings"]}
        usable = [all(0 < float(one) < math.inf for one in runs) for runs in rows.values()]
        few = any(len(runs) < LEAST_RUNS for runs in rows.values())
        _circumstances(report)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(
            f"{path} cannot be compared with ({type(error).__name__}: {error}); expected what "
            "`mt3 bench --json` of this version or a later one prints."
        ) from error
    if few or not usable or not all(usable):
        raise OptionError(
            f"{path} has fewer than {LEAST_RUNS} runs of a recording, or some that took no time: "
            f"too few to tell a change from chance; make it with --runs {LEAST_RUNS} or more."
        )
    return report


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Comparison]:
    """Compares the recordings that two reports share, and peak memory.

    Raises:
        OptionError: They share none, or did not do the same work on the same machine.
    """
    before, now = _circumstances(old), _circumstances(new)
    rows = {row["audio"]: row for row in old["recordings"]}
    shared = [row for row in new["recordings"] if row["audio"] in rows]
    for row in shared:
        name = f"tokens of {row['audio']}"
        before[name], now[name] = rows[row["audio"]]["token_digest"], row["token_digest"]
    if other := [f"{key} {before[key]} and {now[key]}" for key in now if before[key] != now[key]]:
        raise OptionError(
            f"The reports cannot be compared, they have {'; '.join(other)}. Measure both sides on "
            "one machine, with one model that gives the same tokens."
        )
    if not shared:
        raise OptionError(
            f"The reports share no recording: {', '.join(rows)} there, "
            f"{', '.join(row['audio'] for row in new['recordings'])} here. Give the same files."
        )
    found = [_speed(row["audio"], rows[row["audio"]]["runs_s"], row["runs_s"]) for row in shared]
    if old.get("peak_rss_bytes") and new.get("peak_rss_bytes"):
        found.append(_memory(old["peak_rss_bytes"], new["peak_rss_bytes"]))
    return found


def chance_of_slower(old: Sequence[float], new: Sequence[float]) -> float:
    """One-sided exact test of Mann and Whitney: how likely runs of one kind give such an order.

    Args:
        old: Seconds of each run, [m].
        new: Seconds of each run, [n].

    Returns:
        Probability that, of m + n runs of the same kind, the later n are as slow or slower in rank.
        Equal times count half to each side, in favour of chance.
    """
    wins = sum((n > o) + 0.5 * (n == o) for n in new for o in old)
    total = sum(_orders(len(old), len(new), pairs) for pairs in range(len(old) * len(new) + 1))
    least = int(wins)  # half a pair is given to chance
    reached = sum(_orders(len(old), len(new), p) for p in range(least, len(old) * len(new) + 1))
    return reached / total


@cache
def _orders(m: int, n: int, pairs: int) -> int:
    """Number of orders of m old and n new runs in which so many pairs have the new one slower."""
    if pairs < 0:
        return 0
    if m == 0 or n == 0:
        return int(pairs == 0)
    # The slowest of all is new, and slower than every old one; or it is old.
    return _orders(m, n - 1, pairs - m) + _orders(m - 1, n, pairs)


def _speed(name: str, old: Sequence[float], new: Sequence[float]) -> Comparison:
    before, now = statistics.median(old), statistics.median(new)
    slower, faster = chance_of_slower(old, new), chance_of_slower(new, old)
    verdict = "same"
    if now > before * (1 + LEAST_CHANGE) and slower < SIGNIFICANCE:
        verdict = "slower"
    elif now < before * (1 - LEAST_CHANGE) and faster < SIGNIFICANCE:
        verdict = "faster"
    return Comparison(name, before, now, min(slower, faster), verdict)


def _memory(old: int, new: int) -> Comparison:
    verdict = "more" if new > old * (1 + LEAST_MEMORY) else "same"
    verdict = "less" if new < old * (1 - LEAST_MEMORY) else verdict
    return Comparison("peak memory", old, new, None, verdict)


def _circumstances(report: dict[str, Any]) -> dict[str, str]:
    """What must be equal on both sides."""
    return {
        "model": str(report["model"]["export_id"]),
        "precision": str(report["precision"]),
        "device": str(report["device"]),
        "CPU": str(report["machine"]["cpu"]),
        "cores": str(report["machine"]["cores"]),
    }
