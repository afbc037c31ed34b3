"""What reading costs: decoding, salience and features, here and in reader processes.

The sides take turns in every round: "parts" does the three steps one after another, without shared
spectra; "plan" makes them in one pass; "pool" does that in processes, whose start is paid for, too.
All must give the same bits.  Processor time counts, of this process and of its children; wall time
says what a pool gains, and means something on a quiet machine only.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import talk
from materials import RECORDINGS, parser, report

from mt3_runtime.audio.log_mel import FeatureConfig, FeatureExtractor
from mt3_runtime.audio.segments import SegmentConfig, cut
from mt3_runtime.audio.sources import open_audio
from mt3_runtime.commands.bench_command import columns
from mt3_runtime.leakage.salience_frames import SalienceSpectra
from mt3_runtime.reading import LocalReading, ReaderPool, ReadingPlan

RATE = 16000
PLAN = ReadingPlan(RATE, SegmentConfig(), FeatureConfig(), salience=True)


def main() -> None:
    """Runs all rounds and reports."""
    made = parser(__doc__)
    made.add_argument("--readers", type=int, default=2, help="processes of the pool")
    options = made.parse_args()
    paths = [options.audio / name for name in RECORDINGS]
    rounds: dict[str, list[dict[str, float]]] = {}
    with report(options, readers=options.readers) as (result, lines):
        digests = set()
        for number in range(options.runs):
            for name, side in sides(options.readers).items():
                talk(f"round {number}: {name}")
                begin, clock = processor_seconds(), time.perf_counter()
                seconds, digest = side(paths)
                cost = processor_seconds() - begin
                wall = time.perf_counter() - clock
                answer = {"cpu": cost, "wall": wall, "audio": seconds}
                rounds.setdefault(name, []).append(answer)
                if digest:
                    digests.add(digest)
        if len(digests) != 1:
            raise SystemExit("the sides gave different samples")
        result["rounds"], result["digest"] = rounds, digests.pop()
        lines.extend(columns(rows(rounds)))


Side = Callable[[list[Path]], tuple[float, str]]


def sides(readers: int) -> dict[str, Side]:
    """What is measured; the steps alone have no digest."""
    return {
        "decoding": decoding,
        "parts": one_by_one,
        "plan": lambda paths: together(LocalReading(path, PLAN) for path in paths),
        "pool": lambda paths: pooled(paths, readers),
    }


def decoding(paths: list[Path]) -> tuple[float, str]:
    """Samples alone."""
    counts = [sum(map(len, open_audio(path, target_rate=RATE))) for path in paths]
    return sum(counts) / RATE, ""


def one_by_one(paths: list[Path]) -> tuple[float, str]:
    """Salience of blocks, then features of segments, without shared spectra."""
    extract, digest, count = FeatureExtractor(PLAN.features), Digest(), 0
    for path in paths:
        spectra = SalienceSpectra(RATE)
        heard, blocks = [], []
        for block in open_audio(path, target_rate=RATE):
            heard.append(spectra.hear(block))
            blocks.append(block)
            count += len(block)
        data = [extract(segment.samples) for segment in cut(blocks, SegmentConfig())]
        digest.add(data, [frames[:-1] for frames in heard])
    return count / RATE, digest.text


def together(readings: Iterable[Any]) -> tuple[float, str]:
    """Everything of recordings in one pass, wherever that is made."""
    return joined(map(made_of, readings))


def pooled(paths: list[Path], readers: int) -> tuple[float, str]:
    """The same by processes, each with a thread that asks it, as those of a decoding loop do."""
    with ReaderPool(readers) as pool, ThreadPoolExecutor(readers) as threads:
        return joined(threads.map(lambda path: made_of(pool.open(path, PLAN)), paths))


def made_of(reading: Any) -> tuple[int, list[Any], list[tuple[Any, ...]]]:
    """Number of samples, features and salience frames of a recording."""
    parts = list(reading)
    data, frames = [part.data for part in parts], [part.salience[:-1] for part in parts]
    return sum(part.samples for part in parts), data, frames


def joined(made: Iterable[tuple[int, list[Any], list[tuple[Any, ...]]]]) -> tuple[float, str]:
    """Seconds and digest of all recordings."""
    digest, total = Digest(), 0
    for count, data, frames in made:
        digest.add(data, frames)
        total += count
    return total / RATE, digest.text


class Digest:
    """SHA-256 of features and salience frames, however they were cut."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, data: list[Any], frames: list[tuple[Any, ...]]) -> None:
        """Takes in a recording."""
        for array in data:
            self._digest.update(array.tobytes())
        for column in zip(*frames, strict=True):
            self._digest.update(np.concatenate(column).tobytes())

    @property
    def text(self) -> str:
        """In hexadecimal digits."""
        return self._digest.hexdigest()


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def rows(rounds: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """One row per side: medians of seconds of audio per second."""
    table = [["", "audio s / CPU s", "audio s / wall s"]]
    for name, answers in rounds.items():
        cpu, wall = (
            statistics.median(a["audio"] / a[key] for a in answers) for key in ("cpu", "wall")
        )
        table.append([name, f"{cpu:.0f}", f"{wall:.0f}"])
    return table


if __name__ == "__main__":
    main()
