"""The progress of a batch: counts, speed and time left, as a bar or as lines of JSON.

Contract: one bar for all sources, in bytes of them, because lengths are not known before they are
read; of a single source, in its seconds.  ``json`` writes one object a line on stderr every ten
seconds, and a last one, with ``event`` "progress" or "end":

    done, skipped, failed, total    sources
    audio_seconds                   transcribed so far
    speed                           seconds of audio per second, over the last minute
    elapsed_seconds, eta_seconds    since the work began, and to its end (null: not known yet)

Clocks that jump change none of it: only `time.monotonic` is asked.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Literal, Self

from mt3_runtime.progress import Meter

if TYPE_CHECKING:
    from mt3_runtime.batch.task import Task
    from mt3_runtime.transcription import Progress

Style = Literal["bar", "json", "none"]

#: Seconds between two lines.
EVERY = 10.0

#: Seconds over which the speed is measured.
_RECENT = 60.0

_MEGABYTE = 1e6


class BatchProgress:
    """See the module docstring; a context manager.  Any thread may call `update`."""

    def __init__(self, tasks: Iterable[Task], *, style: Style, skipped: int, failed: int) -> None:
        tasks = list(tasks)
        self._style, self._single = style, len(tasks) == 1
        self._total = len(tasks) + skipped + failed
        self.done, self.failed, self.skipped = 0, failed, skipped
        self._bytes = float(sum(task.size for task in tasks))
        self._bytes_done = self._seconds_done = 0.0
        self._under_way: dict[Task, tuple[float, float]] = {}  # bytes and seconds that are done
        self._changing, self._looking = threading.Lock(), threading.Lock()
        self._begun = self._told = time.monotonic()
        self._recent: deque[tuple[float, float]] = deque([(self._begun, 0.0)])
        label = tasks[0].job.source.name if self._single else f"{len(tasks)} files"
        self._meter = Meter(label, unit="s" if self._single else "MB", quiet=style != "bar")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._meter)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if self._style == "json":
            self._print("end")

    def update(self, task: Task, now: Progress) -> None:
        """Takes the progress of a source."""
        share = now.seconds_done / now.seconds_total if now.seconds_total else 0.0
        with self._changing:
            self._under_way[task] = task.size * min(share, 1.0), now.seconds_done
        if self._single:
            self._meter.update(now.seconds_done, now.seconds_total, f"{now.notes} notes")

    def finish(self, task: Task, seconds: float, *, failed: bool) -> None:
        """A source is done, or has failed; ``seconds`` of audio."""
        with self._changing:
            self._under_way.pop(task, None)
            self._bytes_done += task.size
            self._seconds_done += seconds
        if failed:
            self.failed += 1
        else:
            self.done += 1
        self.look()

    def again(self, task: Task) -> None:
        """A source is to be begun again."""
        with self._changing:
            self._under_way.pop(task, None)

    def look(self) -> None:
        """Shows how far it is, if it is time for that; any thread may call it."""
        with self._looking:
            self._look()

    def _look(self) -> None:
        now, (size, seconds) = time.monotonic(), self._so_far()
        if now - self._recent[-1][0] >= 1.0:
            self._recent.append((now, seconds))
        while len(self._recent) > 2 and now - self._recent[1][0] > _RECENT:
            self._recent.popleft()
        if self._style == "json" and now - self._told >= EVERY:
            self._told = now
            self._print("progress")
        elif not self._single:
            ended = self.done + self.failed + self.skipped
            note = f"{ended}/{self._total} files, {self._speed(seconds, now):.1f} times real time"
            self._meter.update(size / _MEGABYTE, self._bytes / _MEGABYTE, note)

    def _so_far(self) -> tuple[float, float]:
        """Bytes and seconds of audio that are done, those of sources under way included."""
        with self._changing:
            under_way = list(self._under_way.values())
            size, seconds = self._bytes_done, self._seconds_done
        return size + sum(pair[0] for pair in under_way), seconds + sum(p[1] for p in under_way)

    def _speed(self, seconds: float, now: float) -> float:
        then, before = self._recent[0]
        return max(0.0, seconds - before) / max(now - then, 1e-3)

    def _print(self, event: str) -> None:
        now, (size, seconds) = time.monotonic(), self._so_far()
        elapsed = now - self._begun
        left = elapsed * (self._bytes - size) / size if size else None
        line = {
            "event": event,
            "done": self.done,
            "skipped": self.skipped,
            "failed": self.failed,
            "total": self._total,
            "audio_seconds": round(seconds, 3),
            "speed": round(self._speed(seconds, now), 2),
            "elapsed_seconds": round(elapsed, 3),
            "eta_seconds": None if left is None else round(max(0.0, left), 1),
        }
        with suppress(OSError):  # that nobody reads it is no reason to stop
            sys.stderr.write(f"{json.dumps(line)}\n")  # in one piece: other threads talk, too
            sys.stderr.flush()
