"""Fuzzes for as long as one likes.

    python -m scripts.overnight_fuzzing [--minutes N] [TARGET ...]    (from the root)

Targets take turns, each in a process of its own under a limit of memory, so that a crash of a
library below is found and ends nothing.  What fails is kept, as small as hypothesis makes it, as
``.state/fuzzing/failing/TARGET-DIGEST``; the exit code is 1 then.  Mend it, and put the file into
``tests/fuzz/corpus/TARGET``, where the ordinary tests read it.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from tests.fuzz.targets import TARGETS, inputs

STATE = Path(__file__).resolve().parents[1] / ".state" / "fuzzing"

SLICE = 120
"""Seconds of a target's turn."""

EXAMPLES = 500
"""Inputs that hypothesis draws at a time: few enough that a turn ends when it should."""

TRACEBACK = 4000
"""Characters that are shown of what a target said last."""

MEMORY = 8 << 30
"""Bytes of address space of a target: ONNX Runtime and its threads take two before they begin."""


def search(name: str, seconds: float) -> int:
    """Reads inputs of a target for some seconds; returns how many."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    kept = DirectoryBasedExampleDatabase(STATE / "examples" / name)
    running, count, end = STATE / f"running-{name}", 0, time.monotonic() + seconds
    with TARGETS[name].opened() as read:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=kept,
            suppress_health_check=[*HealthCheck],
        )
        @given(inputs(name))
        def one(data: bytes) -> None:
            nonlocal count
            count += 1
            # The last one is the smallest that fails, or the one that kills.
            running.write_bytes(data)
            read(data)

        while time.monotonic() < end:
            one()
    running.unlink(missing_ok=True)
    return count


def keep(name: str) -> Path | None:
    """Moves what a target read last among the failing inputs; None if it read nothing."""
    running = STATE / f"running-{name}"
    if not running.exists():
        return None
    digest = hashlib.sha256(running.read_bytes()).hexdigest()[:16]
    kept = STATE / "failing" / f"{name}-{digest}"
    kept.parent.mkdir(exist_ok=True)
    return running.replace(kept)


def main(words: list[str] | None = None) -> int:
    """Lets the targets take turns; 1 if something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--minutes", type=float, default=480, help="in all (default: a night)")
    parser.add_argument("--turn", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if unknown := [name for name in args.targets if name not in TARGETS]:
        parser.error(f"unknown target {unknown[0]}; expected some of {', '.join(TARGETS)}")
    STATE.mkdir(parents=True, exist_ok=True)
    if args.turn:
        print(search(args.targets[0], args.minutes * 60))
        return 0
    end, failed, count = time.monotonic() + args.minutes * 60, 0, 0
    names = args.targets or list(TARGETS)
    while (left := end - time.monotonic()) > 0:
        for name in names:
            minutes = min(SLICE, max(left / len(names), 1)) / 60
            turn = [sys.executable, "-m", "scripts.overnight_fuzzing", name, "--turn", "--minutes"]
            said = STATE / f"stderr-{name}"  # libraries below remark on every other input
            with said.open("wb") as errors:
                ended = subprocess.run(  # noqa: S603  our own program
                    [*turn, str(minutes)], stdout=subprocess.PIPE, stderr=errors, check=False
                )
            if ended.returncode:
                failed += 1
                print(f"{name}: exit code {ended.returncode}; its input: {keep(name)}", flush=True)
                print(said.read_text(errors="replace")[-TRACEBACK:], file=sys.stderr)
            else:
                count += int(ended.stdout.split()[-1])
    print(f"{count} inputs, {failed} failures")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
