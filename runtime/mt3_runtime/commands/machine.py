"""Describes this machine (CPU, cores, memory in use) for measurements."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.diagnostics.cpu_kernels import cpu, kernels
from mt3_runtime.imports.extras import DISTRIBUTION
from mt3_runtime.imports.lazy import version


def machine() -> dict[str, Any]:
    """What the measurements ran on."""
    found = cpu()
    return {
        "cpu": found.name,
        "kernels": kernels(found.flags),
        "cores": usable_cores(),
        "memory_bytes": _memory(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def describe(found: dict[str, Any]) -> str:
    """One line about a `machine`."""
    memory = found["memory_bytes"]
    size = "" if memory is None else f", {memory / 2**30:.0f} GiB"
    chosen = f" ({found['kernels']})" if found.get("kernels") else ""
    return (
        f"{found['cpu']}{chosen}, {found['cores']} cores{size}, {found['system']}, "
        f"Python {found['python']}"
    )


def versions(distributions: Sequence[str]) -> dict[str, str]:
    """Versions of those distributions that are installed; this project's under its own name."""
    found = {}
    for name in distributions:
        try:
            found[name] = version() if name == DISTRIBUTION else metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_rss() -> int | None:
    """Most memory this process ever held, in bytes; None where the system does not tell.

    Linux is asked through /proc: its ``ru_maxrss`` starts at the size of the parent process.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource  # noqa: PLC0415  not on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes everywhere but on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such call on Windows
        return None
