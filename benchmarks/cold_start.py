"""From starting a process to its first token, with the files in the page cache.

Every round starts a fresh interpreter per side (cold_probe.py).  `user code` counts from the first
line of the script, `first token` from the moment the parent started the process, `whole process`
to its end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import HERE, ORACLE, environment, medians, talk
from materials import bundle, parser, report, torch_checkpoint

from mt3_runtime.commands.bench_command import columns


def main() -> None:
    """Runs all rounds and reports."""
    made = parser(__doc__)
    made.set_defaults(runs=10)
    made.add_argument("--peer", action="store_true", help="mt3-infer as shipped, too")
    options = made.parse_args()
    sides = {"ours": (Path(sys.executable), bundle(options))}
    if options.peer:
        sides["shipped"] = (ORACLE, torch_checkpoint(options))
    with report(options) as (result, lines):
        for side, files in sides.items():  # fills the page cache
            start(side, *files)
        rounds: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for _ in range(options.runs):
            for side, files in sides.items():
                rounds[side].append(start(side, *files))
        result["rounds"] = rounds
        lines.append(f"seconds, median of {options.runs} fresh processes:")
        for side, answers in rounds.items():
            names = list(answers[0])
            lines.extend(
                columns([["", *names], [side, *(f"{medians(answers, n):.3f}" for n in names)]])
            )


def start(side: str, python: Path, model: Path) -> dict[str, Any]:
    """One fresh process: seconds by phase."""
    talk(f"cold start: {side}")
    command = [str(python), str(HERE / "cold_probe.py"), side, str(model)]
    begin = time.time()
    done = subprocess.run(  # noqa: S603  our own script
        command, capture_output=True, text=True, check=False, env=os.environ | environment()
    )
    whole = time.time() - begin
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    phases: dict[str, float] = found["phases"]
    return phases | {
        "user code": sum(phases.values()),
        "start to first token": found["ready_at"] - begin,
        "whole process": whole,
    }


if __name__ == "__main__":
    main()
