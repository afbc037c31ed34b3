"""What a batch's journal says about each source: the state behind its lines.

Contract: `Ledger.add` takes the lines of a journal in their order, one JSON object each, and never
trusts them: a line that is damaged, or that means nothing, is counted and passed over, and its
source is simply done again.  Times of day stand in the lines for people; nothing is decided by
them, so clocks may jump.

Lines, by ``status``:

==========  ======================================================================================
run         A process has begun to work here: its number, machine, options; ``restart`` puts an end
            to what stands above.
begun       A source was handed out to be read.
writing     All its results are there in memory, and these files are about to be written, with the
            SHA-256 of each.
done        They are written.
failed      It came to nothing, and why.
ended       The process ended in an orderly way: what it had begun was only called off.
==========  ======================================================================================
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: What the lines that we write begin and end with.
_BEGINS, _ENDS = (b'{"status":', b'{"format":'), b"}\n"

#: What a line may raise that means nothing.
_NONSENSE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)

CRASHED = "crashed"
"""Why a source failed whose reading ended the process that read it."""


class Stamp(NamedTuple):
    """What tells that a file has changed: size in bytes, and time of the last change in ns."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Stamp | None:
        """The stamp of a file; None if it cannot be looked at.  Pipes change as they are read."""
        try:
            found = os.stat(path)  # noqa: PTH116  a tenth of what a Path costs, for 100,000 files
        except (OSError, ValueError):
            return None
        regular = stat.S_ISREG(found.st_mode)
        return cls(found.st_size, found.st_mtime_ns) if regular else cls(0, 0)


@dataclass(slots=True)
class Entry:
    """A source as its last lines tell it.

    Attributes:
        status: ``done`` or ``failed``; empty if it was begun since.
        stamp: Of the source, when it was read.
        options: Digest of those it was done with (`mt3_runtime.batch.records.fingerprint`).
        split: Whether its results are split into stems.
        outputs: Names of its results, relative to the journal's folder.
        attempts: How many times it was read since it was last done.
        lost: How many times it was begun and never finished, because the process died.
        seconds: Of audio.
        wall: Seconds it took.
        notes: How many were found.
        error: Kind of the failure.
        message: What was said about it.
    """

    status: str = ""
    stamp: Stamp | None = None
    options: str = ""
    split: bool = False
    outputs: tuple[str, ...] = ()
    attempts: int = 0
    lost: int = 0
    seconds: float = 0.0
    wall: float = 0.0
    notes: int = 0
    error: str = ""
    message: str = ""

    @property
    def suspicious(self) -> bool:
        """Whether reading it is likely to end the process that reads it."""
        return self.lost > 0 or self.error == CRASHED


@dataclass
class Ledger:
    """The state of all sources of a journal.

    Attributes:
        entries: By the source's key, its path relative to the journal's folder.
        digests: By the name of a file that we wrote, or were about to: the source it is of, and all
            its SHA-256, joined.
        restarted: Whether a run put an end to what stood in the journal.
        damaged: How many lines mean nothing.
        run: The last line of a run.
        processes: Machine and number of every process that worked here.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    digests: dict[str, tuple[str, str]] = field(default_factory=dict)
    restarted: bool = False
    damaged: int = 0
    run: dict[str, Any] = field(default_factory=dict)
    processes: set[tuple[str, int]] = field(default_factory=set)
    _open: set[str] = field(default_factory=set)

    def add(self, line: bytes) -> None:
        """Takes the next line."""
        try:
            item = json.loads(line)
        except _NONSENSE:
            self.damaged += 1
        else:
            self._take(item)

    def add_all(self, lines: Sequence[bytes]) -> None:
        """Takes the next lines, in a third of the time, unless one of them is damaged."""
        try:
            whole = all(line.startswith(_BEGINS) and line.endswith(_ENDS) for line in lines)
            items = json.loads(b"[%b]" % b",".join(lines)) if whole else ()
        except _NONSENSE:
            items = ()
        if len(items) == len(lines):
            for item in items:
                self._take(item)
        else:
            for line in lines:
                self.add(line)

    def _take(self, item: Any) -> None:
        try:
            self._apply(item["status"], item)
        except _NONSENSE:
            self.damaged += 1

    def _apply(self, status: str, item: dict[str, Any]) -> None:
        if status == "run":
            self._begin_run(item)
        elif status == "ended":
            for key in self._open:
                self.entries[key].lost -= 1
                self.entries[key].attempts -= 1
            self._open.clear()
        elif status == "writing":
            self._own(str(item["source"]), item["outputs"])
        elif status == "begun":
            self._begin(str(item["source"]), Stamp(int(item["size"]), int(item["mtime_ns"])))
        elif status in ("done", "failed"):
            self._finish(status, item)
        else:
            raise ValueError(status)

    def _begin_run(self, item: dict[str, Any]) -> None:
        self.run = item
        self.processes.add((str(item.get("host")), int(item.get("pid", 0))))
        self._open.clear()
        if item.get("restart") is True:
            self.restarted = True
            for entry in self.entries.values():
                entry.status = ""

    def _begin(self, key: str, stamp: Stamp) -> None:
        entry = self.entries.get(key)
        if entry is None or entry.stamp != stamp or entry.status == "done":
            entry = self.entries[key] = Entry(stamp=stamp)
        entry.status = ""
        if key not in self._open:  # it may be begun again by the same process
            entry.lost += 1
            entry.attempts += 1
        self._open.add(key)

    def _finish(self, status: str, item: dict[str, Any]) -> None:
        done = status == "done"
        entry = Entry(
            status,
            Stamp(int(item["size"]), int(item["mtime_ns"])),
            str(item["options"]) if done else "",
            bool(item["split"]) if done else False,
            tuple(map(str, item["outputs"])) if done else (),
            int(item["attempts"]),
            0,
            _finite(item["seconds"]) if done else 0.0,
            _finite(item["wall"]),
            int(item["notes"]) if done else 0,
            "" if done else str(item["error"]),
            "" if done else str(item["message"]),
        )
        if done:
            self._own(str(item["source"]), item["outputs"])
        self.entries[str(item["source"])] = entry
        self._open.discard(str(item["source"]))

    def _own(self, source: str, outputs: dict[str, str]) -> None:
        for name, digest in outputs.items():
            owner, known = self.digests.get(name, (source, ""))
            if owner != source:
                known = ""
            if digest not in known:
                self.digests[name] = source, known + digest


def _finite(value: Any) -> float:
    """A number that JSON has; Python reads and writes infinities as well.

    Raises:
        ValueError: It is none.
    """
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number
