"""How many CPU cores this process may use, in a container too.

The smaller of two figures: the cores the scheduler may put it on (affinity), and the CPU time per
time that its control group is granted, rounded up.  ``docker run --cpus=2`` and Kubernetes' limits
set only the latter; sixty-four workers on two cores' time are several times slower and larger than
two.  ``PYTHON_CPU_COUNT`` and ``python -X cpu_count``, which Python 3.13 introduced, overrule both.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cores() -> int:
    """Number of cores that work for this process at once, at least 1."""
    for chosen in (sys._xoptions.get("cpu_count"), os.environ.get("PYTHON_CPU_COUNT")):  # noqa: SLF001
        if isinstance(chosen, str) and chosen.isdecimal() and int(chosen):
            return int(chosen)
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else min(cores, max(1, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of CPU time that the control groups of this process allow.

    Every group up to the root may have a limit of its own; the smallest one counts.

    Args:
        root: Where ``proc`` and ``sys`` are, for tests.

    Returns:
        Seconds of CPU time per second; None without a limit, and on systems other than Linux.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found = [limit for folder in _folders(groups, mounts, root) for limit in _limits(folder)]
    return min(found, default=None)


def _folders(groups: list[str], mounts: list[str], root: Path) -> Iterator[Path]:
    """The folders of the groups that may limit CPU time, innermost first."""
    for line in mounts:
        before, _, after = line.partition(" - ")
        fields, kind, options = before.split(), after.split()[:1], after.split()[-1:]
        if len(fields) < 5 or kind not in (["cgroup"], ["cgroup2"]):
            continue
        if kind == ["cgroup"] and "cpu" not in "".join(options).split(","):
            continue
        member = _member(groups, unified=kind == ["cgroup2"])
        shown, place = PurePosixPath(_plain(fields[3])), PurePosixPath(_plain(fields[4]))
        # A container sees its own group alone, mounted; the path may still be the host's.
        below = member.is_relative_to(shown) and ".." not in member.parts
        inside = member.relative_to(shown) if below else PurePosixPath()
        for part in (inside, *inside.parents):
            yield root / place.relative_to("/") / part


def _member(groups: list[str], *, unified: bool) -> PurePosixPath:
    """The path of this process's group: of cgroup v2, or of v1's controller ``cpu``."""
    for line in groups:
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if (number, controllers) == ("0", "") if unified else "cpu" in controllers.split(","):
            return PurePosixPath(path)
    return PurePosixPath("/")


def _limits(folder: Path) -> Iterator[float]:
    """The limit of one group: ``cpu.max`` of v2, or v1's quota and period in microseconds."""
    texts = [_read(folder / "cpu.max").split()]
    texts.append([*_read(folder / "cpu.cfs_quota_us").split(), _read(folder / "cpu.cfs_period_us")])
    for quota, period in (text for text in texts if len(text) == 2):
        try:
            limit = int(quota) / int(period)  # "max" and -1: none
        except (ValueError, ZeroDivisionError):
            continue
        if limit > 0:
            yield limit


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _plain(text: str) -> str:
    """A path of mountinfo, whose blanks and backslashes are written in octal."""
    return text.encode("latin-1", "replace").decode("unicode_escape") if "\\" in text else text
