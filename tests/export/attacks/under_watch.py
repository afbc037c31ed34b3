"""Reads every hostile file within a bounded address space, and stops at anything but reading.

Usage: python under_watch.py FOLDER, with the project's sources on the path.  An audit hook sees
whatever would execute, write or connect; the limit on the address space holds for allocations of
any kind.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from mt3_export.checkpoints.checkpoint import read_checkpoint
from mt3_runtime.errors import CheckpointError
from tests.export.attacks import hostile_t5x, hostile_torch, lookalikes

#: Bytes of address space beyond what Python and NumPy have taken before.
ROOM = 512 * 2**20

#: Beginnings of audit events that reading a file never causes.
FORBIDDEN = (
    *("exec", "compile", "import", "code.", "marshal", "pickle", "ctypes"),
    *("os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "subprocess"),
    *("socket", "urllib", "shutil", "os.remove", "os.rename", "os.symlink", "os.mkdir", "os.link"),
)


def watch(event: str, arguments: tuple[object, ...]) -> None:
    writing = event == "open" and arguments[1] not in ("r", "rb", None)
    if writing or event.startswith(FORBIDDEN):
        sys.exit(f"reading caused {event} {arguments!r:.200}")


def make(base: Path) -> dict[str, Path]:
    """Every attack and every lookalike, by name."""
    made = {}
    for number, (name, (builder, _)) in enumerate(hostile_t5x.ATTACKS.items()):
        made[f"T5X: {name}"] = path = base / f"t5x_{number}" / "folder"
        path.mkdir(parents=True)
        builder(path, base / "marker")
    for number, (name, (builder, _)) in enumerate(hostile_torch.ATTACKS.items()):
        made[f"torch: {name}"] = path = base / f"torch_{number}" / "mt3.pth"
        path.parent.mkdir()
        builder(path, base / "marker")
    for number, (name, (build, _)) in enumerate(lookalikes.LOOKALIKES.items()):
        made[name] = base / f"other_{number}"
        build(made[name])
    return made


def main(base: Path) -> None:
    made = make(base)
    hostile_t5x.healthy(base / "good")
    hostile_torch.healthy(base / "good.pth")
    for path in (base / "good", base / "good.pth"):  # imports what is imported on first use
        read_checkpoint(path)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    sys.addaudithook(watch)
    for name, path in made.items():
        try:
            read_checkpoint(path)
        except CheckpointError:
            continue
        sys.exit(f"{name} was read")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
