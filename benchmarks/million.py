"""Simulates a million songs over a thousand workers that fail: time, journals, stragglers, repeats.

    python benchmarks/million.py [--songs N] [--workers N] [--seed N] [--write]

What is not simulated is measured here first, with the true journal: bytes and seconds for each
song, and what a process pays to read the journals of a folder.  Everything else is a model, and
says so: lengths of songs, speeds of workers and how often they die are arguments.

Two ways of sharing the work: ``shards``, where each worker does what a hash of the name gives it
(``mt3 transcribe --shard``), and ``blocks``, where each takes the next block of files from one
driver (`mt3_server.ray`).  A worker that dies comes back after a while and does again what it had
begun.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import tempfile
import time
import tracemalloc
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.batch.records.journal import Journal
from mt3_runtime.batch.records.ledger import Stamp
from mt3_runtime.batch.records.shard import Shard

RESULT = Path(__file__).parent / "results" / "million.json"

#: Files that a process of `mt3 transcribe` has under way: five minutes of audio, and two at least.
UNDER_WAY = 2

#: Files of a block of `mt3_server.ray`.
BLOCK = 8

#: Songs that the true journal is measured with.
SAMPLE = 2_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """What is assumed.

    Attributes:
        songs: How many.
        workers: How many.
        median: Seconds of a song.
        spread: Standard deviation of the logarithm of its length.
        speed: Seconds of audio that a worker does in a second.
        slow: Share of the workers that are slow.
        slowness: How many times.
        lifetime: Mean hours until a worker dies.
        absence: Minutes until it is back, with the model loaded.
        unreadable: Share of the files that cannot be read.
        crashing: Share of the files that end the process that reads them.
    """

    songs: int = 1_000_000
    workers: int = 1_000
    median: float = 220.0
    spread: float = 0.4
    speed: float = 40.0
    slow: float = 0.02
    slowness: float = 3.0
    lifetime: float = 24.0
    absence: float = 5.0
    unreadable: float = 0.005
    crashing: float = 0.000_02


@dataclass(frozen=True)
class Outcome:
    """What came of a way.

    Attributes:
        hours: Until the last song is done.
        ideal: If all workers were busy to the end and none died.
        half: Hours until half of the songs are done.
        tail: Hours in which fewer than nine of ten workers are busy.
        deaths: Of workers.
        again: Songs that were begun more than once.
        audio_again: Hours of audio that were done twice.
        twice: Songs with two results.
        lost: Songs without result or failure.
        failed: Songs that failed.
    """

    hours: float
    ideal: float
    half: float
    tail: float
    deaths: int
    again: int
    audio_again: float
    twice: int
    lost: int
    failed: int


class Simulation:
    """One way of sharing the work, event by event.

    Args:
        world: What is assumed.
        parts: Songs that one worker takes in turn, part by part; None for blocks of one driver.
        seed: Of all chances.
    """

    def __init__(self, world: World, parts: list[list[int]] | None, seed: int) -> None:
        self.world, self._rng = world, np.random.default_rng(seed)
        rng = self._rng
        self.lengths = world.median * np.exp(rng.normal(0.0, world.spread, world.songs))
        self.lengths[rng.random(world.songs) < world.unreadable] = 0.0  # said at once
        self._crashing = set(np.flatnonzero(rng.random(world.songs) < world.crashing).tolist())
        self.failed = int((self.lengths == 0.0).sum()) + len(self._crashing)
        self.speeds = np.full(world.workers, world.speed)
        self.speeds[rng.random(world.workers) < world.slow] /= world.slowness
        self._dies = rng.exponential(world.lifetime * 3600.0, world.workers)
        self._blocks = iter(range(0, world.songs, BLOCK)) if parts is None else None
        self._parts, self._mine = iter(parts or ()), [list[int]() for _ in range(world.workers)]
        self._back: list[list[int]] = []
        self.results, self.finished = np.zeros(world.songs, np.int32), np.zeros(world.songs)
        self.ends, self.again = np.zeros(world.workers), set[int]()
        self.audio_again, self.deaths = 0.0, 0

    def run(self) -> Outcome:
        """Until nothing is left."""
        heap = [(0.0, worker) for worker in range(self.world.workers)]
        while heap:
            now, worker = heapq.heappop(heap)
            songs = self._take(worker)
            if not songs:
                self.ends[worker] = now
                continue
            end = now + float(self.lengths[songs].sum()) / self.speeds[worker]
            if end > self._dies[worker] or not self._crashing.isdisjoint(songs):
                end = self._die(worker, songs, now, end)
            else:
                self.results[songs] += 1
                self.finished[songs] = end
            heapq.heappush(heap, (end, worker))
        total, hour = float(self.lengths.sum()), 3600.0
        return Outcome(
            hours=round(float(self.finished.max()) / hour, 2),
            ideal=round(total / float(self.speeds.sum()) / hour, 2),
            half=round(float(np.median(self.finished)) / hour, 2),
            tail=round(float(self.ends.max() - np.quantile(self.ends, 0.1)) / hour, 2),
            deaths=self.deaths,
            again=len(self.again),
            audio_again=round(self.audio_again, 1),
            twice=int((self.results > 1).sum()),
            lost=int((self.results == 0).sum()),
            failed=self.failed,
        )

    def _take(self, worker: int) -> list[int]:
        """The songs that a worker begins next."""
        if self._blocks is not None:
            if self._back:
                return self._back.pop()
            start = next(self._blocks, self.world.songs)
            return list(range(start, min(start + BLOCK, self.world.songs)))
        while not self._mine[worker]:
            part = next(self._parts, None)
            if part is None:
                return []
            self._mine[worker] = part
        songs, self._mine[worker] = self._mine[worker][:UNDER_WAY], self._mine[worker][UNDER_WAY:]
        return songs

    def _die(self, worker: int, songs: list[int], now: float, end: float) -> float:
        """A worker dies over some songs; returns when it is back."""
        died = min(end, max(now, self._dies[worker]))
        self.deaths += 1
        self.audio_again += (died - now) * self.speeds[worker] / 3600.0
        self.again.update(songs)
        crashed = [song for song in songs if song in self._crashing]
        self._crashing.difference_update(crashed)
        self.results[crashed] += 1  # read alone next, and failed
        self.finished[crashed] = died
        rest = [song for song in songs if song not in crashed]
        if self._blocks is None:
            self._mine[worker] = rest + self._mine[worker]
        elif rest:
            self._back.append(rest)
        back = died + self.world.absence * 60.0
        self._dies[worker] = back + self._rng.exponential(self.world.lifetime * 3600.0)
        return float(back)


def shards(world: World, count: int) -> list[list[int]]:
    """The songs of each shard, by the hash that `Shard` uses."""
    parts: list[list[int]] = [[] for _ in range(count)]
    for song in range(world.songs):
        digest = hashlib.sha256(_name(song).encode()).digest()
        parts[int.from_bytes(digest[:8], "big") % count].append(song)
    first = next(k for k in range(count) if Shard(k + 1, count).has(_name(0)))
    if parts[first][0] != 0:
        raise SystemExit("a shard is chosen in another way than here")
    return parts


def simulate(world: World, seed: int) -> dict[str, Any]:
    """All ways."""
    found = {"blocks of one driver": asdict(Simulation(world, None, seed).run())}
    for each in (1, 10):
        parts = shards(world, each * world.workers)
        found[f"{each} shards a worker"] = asdict(Simulation(world, parts, seed).run())
    return found


def _name(song: int) -> str:
    return f"artist{song % 40_000:05}/album{song % 7}/{song:07} a song of usual length.flac"


def journal_costs() -> dict[str, float]:
    """What the true journal takes for each song, and what it takes to read one."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with Journal(home) as journal:
            journal.start({"runtime": "0.1.0"})
            began = time.perf_counter()
            for song in range(SAMPLE):
                name, stamp = _name(song), Stamp(20_000_000 + song, 1_764_500_000_000_000_000)
                base = str(home / name).removesuffix(".flac")
                contents = {f"{base}.mid": b"%d" % song, f"{base}.jsonl": b"%d " % song}
                journal.begin(name, stamp)
                journal.writing(name, contents)
                journal.finish(
                    "done", name, stamp, options="0123456789abcdef", split=False, attempts=1,
                    outputs=contents, seconds=220.123456, wall=5.5, notes=1500,
                    token_digest=hashlib.sha256(b"%d" % song).hexdigest(),
                )  # fmt: skip
            wrote = (time.perf_counter() - began) / SAMPLE
            path = journal.path
            journal.end()
        size = path.stat().st_size / SAMPLE
        tracemalloc.start()
        began = time.perf_counter()
        with Journal(home):
            memory = tracemalloc.get_traced_memory()[0] / SAMPLE
        tracemalloc.stop()
        began = time.perf_counter()
        with Journal(home):
            read = (time.perf_counter() - began) / SAMPLE
    return {
        "bytes": round(size, 1),
        "write_seconds": round(wrote, 6),
        "read_seconds": round(read, 8),
        "memory_bytes": round(memory, 1),
    }


def folders(world: World, costs: dict[str, float]) -> dict[str, Any]:
    """What journals come to, computed from what one song takes."""
    whole = costs["bytes"] * world.songs
    rows = {}
    for count in (1, 10, 100, world.workers):
        rows[f"{count} shards in one folder"] = {
            "journal_mb": round(whole / count / 1e6, 1),
            "resume_seconds": round(costs["read_seconds"] * world.songs, 1),
            "resume_memory_mb": round(costs["memory_bytes"] * world.songs / 1e6),
            "resume_reads_gb": round(whole * count / 1e9, 1),
        }
    rows[f"{world.workers} shards, a folder each"] = {
        "journal_mb": round(whole / world.workers / 1e6, 1),
        "resume_seconds": round(costs["read_seconds"] * world.songs / world.workers, 3),
        "resume_memory_mb": round(costs["memory_bytes"] * world.songs / world.workers / 1e6, 1),
        "resume_reads_gb": round(whole / 1e9, 1),
    }
    return rows


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--songs", type=int, default=World.songs)
    parser.add_argument("--workers", type=int, default=World.workers)
    parser.add_argument("--speed", type=float, default=World.speed)
    parser.add_argument("--seed", type=int, default=22)
    parser.add_argument("--write", action="store_true", help=f"keep it in {RESULT.name}")
    args = parser.parse_args()
    world = World(songs=args.songs, workers=args.workers, speed=args.speed)
    costs = journal_costs()
    found = {
        "world": asdict(world),
        "seed": args.seed,
        "journal, measured, each song": costs,
        "folders, computed": folders(world, costs),
        "one driver, computed": {
            "songs_a_second_at_most": round(1.0 / costs["write_seconds"], 1),
            "songs_a_second_wanted": round(world.workers * world.speed / world.median, 1),
        },
        "ways, simulated": simulate(world, args.seed),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if args.write:
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
