"""What all processes of the benchmarks share: where things lie, and how they talk.

Numbers that are compared come from one run.  Each side lives in a process of its own, loads once,
and is then asked in turns (A B A B ...), so that a busy moment of the machine falls on both; what
is reported is the median over the rounds.  Beside every time stands the token digest: two rows with
one digest did the same job.

This module needs the standard library only: the PyTorch environment imports it as well.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SHARED = Path(os.environ.get("MT3_SHARED", ROOT.parent / "shared"))
STATE = ROOT / ".state" / "benchmarks"
YOURMT3 = Path(os.environ.get("MT3_YOURMT3_PYTHON", ROOT / ".venvs/yourmt3/bin/python"))
ORACLE = Path(os.environ.get("MT3_ORACLE_PYTHON", ROOT / ".venvs" / "oracle" / "bin" / "python"))
JAX2TF = Path(os.environ.get("MT3_JAX2TF_PYTHON", ROOT / ".venvs" / "jax2tf" / "bin" / "python"))

Handler = Callable[..., dict[str, Any]]


class Worker:
    """A process that answers requests, one JSON line each (see `serve`)."""

    def __init__(self, script: str, *, python: str | Path = sys.executable) -> None:
        self.name = script
        found = environment()
        if str(python) == sys.executable and "PYTHONPATH" in os.environ:  # other peers stay apart
            found["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
        self._process = subprocess.Popen(  # noqa: S603  our own scripts
            [str(python), str(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | found,
            text=True,
        )

    def ask(
        self, request: str, *, patience: float | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Sends one request and waits for its answer, so many seconds at most.

        Raises:
            TimeoutError: There was none; the process is of no use any more.
            SystemExit: The process ended.
        """
        talk(f"{self.name}: {request}")
        assert self._process.stdin is not None  # noqa: S101  for the type checker
        assert self._process.stdout is not None  # noqa: S101
        try:
            print(json.dumps([request, arguments]), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise SystemExit(f"{self.name} ended with status {self._process.wait()}.") from None
        if not select.select([self._process.stdout], [], [], patience)[0]:
            raise TimeoutError(f"no answer to {request} within {patience:.0f} s")
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} ended with status {self._process.wait()}; see above.")
        return dict(json.loads(answer))

    def kill(self) -> None:
        """Ends the process whatever it does."""
        self._process.kill()
        self._process.communicate()

    def close(self) -> None:
        """Ends the process: the end of its input is the request to leave."""
        self._process.communicate()


def check_report(path: Path) -> None:
    """Refuses, before hours of work, a report that would replace what no benchmark wrote.

    The text goes beside the JSON file under a name that nobody has chosen, so one that is there
    must have a report of ours beside it.
    """
    text = path.with_suffix(".txt")
    if text == path:
        raise SystemExit(f"--out takes a JSON file; {path} is where its text would go")
    if not (path.exists() or text.exists()):
        return
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or "machine" not in found:
        raise SystemExit(f"{path} or {text} was written by no benchmark; choose another --out")


def environment() -> dict[str, str]:
    """Variables that let `mt3_runtime` be imported where it is not installed, version and all."""
    metadata = STATE / "metadata"
    target = metadata / "mt3_runtime-0+source.dist-info" / "METADATA"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("Metadata-Version: 2.1\nName: mt3-runtime\nVersion: 0+source\n")
    return {"PYTHONPATH": f"{ROOT / 'runtime'}{os.pathsep}{metadata}"}


def serve(handlers: Mapping[str, Handler]) -> None:
    """The other end of a `Worker`: answers until the input ends.

    Peers print to stdout; the answers keep the real one for themselves.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request, arguments = json.loads(line)
        print(json.dumps(handlers[request](**arguments)), file=answers, flush=True)


def talk(text: str) -> None:
    """Progress for whoever watches."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def medians(answers: list[dict[str, Any]], key: str = "seconds") -> float:
    """The median of one figure over the rounds."""
    return float(statistics.median(answer[key] for answer in answers))
