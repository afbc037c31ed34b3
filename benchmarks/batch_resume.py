"""How long a batch takes to see that it is done: many files, all with their results.

The files are empty, and the journal is the one that a run would have left; the command then looks
at everything and does nothing.  Wall time says something on a quiet machine only.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from materials import parser, report

from mt3_runtime.batch.records.fingerprint import digest, options_of
from mt3_runtime.batch.records.journal import Journal
from mt3_runtime.batch.records.ledger import Stamp
from mt3_runtime.cli import _parser, listings
from mt3_runtime.cli import main as mt3
from mt3_runtime.models.installed import resolve_model


def main() -> None:
    """Makes the folders, runs the command a few times and reports."""
    made = parser(__doc__)
    made.add_argument("--files", type=int, default=100_000)
    options = made.parse_args()
    top = Path(tempfile.mkdtemp(prefix="mt3-resume-"))
    try:
        _make(top / "in", top / "out", options.files)
        command = ["transcribe", str(top / "in"), "-o", str(top / "out")]
        with report(options, files=options.files) as (result, lines):
            result["seconds"] = found = [_timed(command) for _ in range(options.runs)]
            lines.append(f"{options.files} files that are done: {median(found):.2f} s")
    finally:
        shutil.rmtree(top)


def _make(folder: Path, out: Path, count: int) -> None:
    folder.mkdir()
    parsed = _parser(listings(), listings()["transcribe"].load())
    arguments = parsed.parse_args(["transcribe", str(folder), "-o", str(out)])
    options = options_of(resolve_model(arguments.model), arguments)
    os.fsync = lambda _: None  # 100,000 of them take minutes
    with Journal(out) as journal:
        journal.start(options)
        for number in range(count):
            source, result = folder / f"{number:06}.wav", out / f"{number:06}.mid"
            source.touch()
            result.write_bytes(b"x")
            key, stamp = journal.key(source), Stamp(0, source.stat().st_mtime_ns)
            journal.begin(key, stamp)
            journal.writing(key, {str(result): b"x"})
            journal.finish(
                "done", key, stamp, options=digest(options), split=False,
                outputs={str(result): b"x"}, attempts=1, seconds=1.0, wall=0.1, notes=1,
                token_digest="0" * 64,
            )  # fmt: skip


def _timed(command: list[str]) -> float:
    begin = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = mt3(command)
    seconds = time.perf_counter() - begin
    if code or "0 files to do" not in said.getvalue():
        raise SystemExit(f"the batch was not done: {said.getvalue()}")
    return seconds


if __name__ == "__main__":
    main()
