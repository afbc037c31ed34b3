"""A batch that is killed again and again, against one that nobody disturbs.

So many short recordings are cut from the song.  `mt3 transcribe` does them once undisturbed; then
into another folder, killed (SIGKILL) at a random moment of every run (while it loads, reads,
decodes or writes), so many times, and at last left to end.  What is done before the last kill is
begun again (``--restart``).  Every result must then be there once, whole, and equal to that of the
undisturbed run, nothing else may lie there, and the journal must have no line without meaning.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from common import talk
from materials import parser, report, song

from mt3_runtime.audio.sources import load_audio
from mt3_runtime.batch.records.journal import NAME, Journal

RATE = 16000

#: Seconds in which a process loads the model, and in which it does a file.
_START, _SOON = 3.0, 0.3

#: Bytes that the journal grows by with a file.
_LINES = 700


def main() -> None:
    """Does it and reports."""
    made = parser(__doc__)
    made.add_argument("--files", type=int, default=100)
    made.add_argument("--kills", type=int, default=100)
    made.add_argument("--seconds", type=float, default=3.0, help="length of each file")
    made.add_argument("--seed", type=int, default=1, help="of the moments")
    options = made.parse_args()
    facts = {name: getattr(options, name) for name in ("files", "kills", "seconds", "seed")}
    with report(options, **facts) as (result, lines), tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        _cut(home / "in", options)
        begun = time.monotonic()
        if _start(home, "whole", options).wait():
            raise SystemExit("the undisturbed run has failed")
        undisturbed = time.monotonic() - begun
        moments = random.Random(options.seed)  # noqa: S311  no secret
        kills, done = 0, False
        while kills < options.kills:
            again = ["--restart"] if done else []  # there is always something left to be done
            process = _start(home, "out", options, *again)
            _wait(process, home / "out", moments)
            done = process.poll() is not None
            if not done:
                process.kill()
                kills += 1
            process.wait()
            talk(f"{kills} kills{', all done' if done else ''}")
        code = _start(home, "out", options).wait()
        whole, found = _results(home / "whole"), _results(home / "out")
        with Journal(home / "out") as journal:
            damaged = journal.damaged
        result |= {
            "undisturbed_seconds": round(undisturbed, 3),
            "exit_code": code,
            "results": len(found),
            "equal": sum(whole.get(name) == content for name, content in found.items()),
            "missing": sorted(whole.keys() - found.keys()),
            "more": sorted(found.keys() - whole.keys()),
            "damaged_lines": damaged,
        }
        right = code == 0 and found == whole and len(whole) == 2 * options.files and not damaged
        result["right"] = right
        lines += [f"{name}: {value}" for name, value in result.items() if name != "machine"]
    if not right:
        raise SystemExit("a batch that was killed came to something else")


def _wait(process: subprocess.Popen[bytes], folder: Path, moments: random.Random) -> None:
    """Waits until the process has got on with none to four files, and somewhat longer."""
    more = moments.randrange(5) * _LINES
    there = _size(folder / NAME) + more
    while more and process.poll() is None and _size(folder / NAME) < there:
        time.sleep(0.02)
    time.sleep(moments.uniform(0.0, _SOON if more else _START))


def _cut(folder: Path, options: argparse.Namespace) -> None:
    folder.mkdir()
    samples = load_audio(song(options.audio, options.files * options.seconds))
    for number, part in enumerate(np.array_split(np.asarray(samples), options.files)):
        soundfile.write(folder / f"{number:03}.wav", part, RATE)


def _start(
    home: Path, out: str, options: argparse.Namespace, *more: str
) -> subprocess.Popen[bytes]:
    model = ["-m", str(options.bundle or "default")]
    words = [
        "transcribe",
        "in",
        "-o",
        out,
        "-f",
        "midi,json",
        "-q",
        "--device",
        "cpu",
        *model,
        *more,
    ]
    return subprocess.Popen(  # noqa: S603  ourselves
        [sys.executable, "-m", "mt3_runtime", *words], cwd=home, env=os.environ
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _results(folder: Path) -> dict[str, bytes]:
    """The content of all files but the journal."""
    if not folder.exists():
        return {}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != NAME}


if __name__ == "__main__":
    main()
