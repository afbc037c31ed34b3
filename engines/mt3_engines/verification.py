"""What a verification on a GPU found: runs, how they compare, the report, answers that are kept.

`mt3_engines.verify_on_gpu` asks; everything here works without a GPU.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mt3_engines.storage.store import EngineInfo
from mt3_runtime.decoding.types import Sequence
from mt3_runtime.errors import OutputError
from mt3_runtime.filesystem.atomic import write_atomic

if TYPE_CHECKING:
    from mt3_runtime.backends.base import FloatArray
    from mt3_runtime.model import Model

#: Segments that exact engines must say as the CPU does.  The rest are near-ties, which another
#: order of summation decides: on the CPU itself, fp16 storage alone moves 1.4 % of segments.
EXACT_SHARE = 0.98

CPU = "cpu"

#: Stands in a file of answers, so that no other file is taken for one.
FORMAT = "mt3 verification 1"


@dataclass
class Run:
    """One recording on one device.

    Attributes:
        sequences: What was decoded.
        seconds: Of each repetition.
    """

    sequences: list[Sequence] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        said = [
            [s.tokens.tolist(), [float(p) for p in s.log_probs], bool(s.truncated)]
            for s in self.sequences
        ]
        return {"sequences": said, "seconds": self.seconds}

    @classmethod
    def from_dict(cls, value: Any) -> Run:
        """Reads what `to_dict` wrote."""
        sequences = [
            Sequence(np.array(tokens, np.int32), np.array(log_probs, np.float32), truncated)
            for tokens, log_probs, truncated in value["sequences"]
        ]
        return cls(sequences, [float(s) for s in value["seconds"]])

    @property
    def digest(self) -> str:
        """12 hexadecimal digits of all tokens."""
        hashed = hashlib.sha256()
        for sequence in self.sequences:
            hashed.update(np.asarray([len(sequence.tokens), *sequence.tokens], np.int32).tobytes())
        return hashed.hexdigest()[:12]

    @property
    def tokens(self) -> int:
        """How many."""
        return sum(len(sequence.tokens) for sequence in self.sequences)


@dataclass(frozen=True)
class Agreement:
    """How two runs of one recording compare.

    Attributes:
        equal: Sequences that are the same.
        total: All sequences.
        apart: Largest difference of log-probabilities before the first token that differs.
    """

    equal: int
    total: int
    apart: float


def compare(found: Run, expected: Run) -> Agreement:
    """Compares tokens, and probabilities as long as the tokens agree."""
    equal, apart = 0, 0.0
    for a, b in zip(found.sequences, expected.sequences, strict=True):
        length = min(len(a.tokens), len(b.tokens))
        same = np.asarray(a.tokens[:length]) == np.asarray(b.tokens[:length])
        until = length if same.all() else int(np.argmin(same))
        distances = np.abs(np.asarray(a.log_probs[:until]) - np.asarray(b.log_probs[:until]))
        apart = max(apart, float(distances.max(initial=0.0)))
        equal += until == length and len(a.tokens) == len(b.tokens)
    return Agreement(equal, len(expected.sequences), apart)


def measure(models: dict[str, Model], features: FloatArray, repeats: int) -> dict[str, Run]:
    """Runs all models in turn, once to warm up and then ``repeats`` times."""
    runs = {name: Run() for name in models}
    for repeat in range(repeats + 1):
        for name, model in models.items():
            started = time.perf_counter()
            sequences = model.forward(features)
            if repeat:
                runs[name].seconds.append(time.perf_counter() - started)
            runs[name].sequences = sequences
    return runs


@dataclass(frozen=True)
class StepRow:
    """Steps of so many rows.

    Attributes:
        device: Which engines.
        rows: How many.
        seconds: Median of a step.
        computed: Bytes that a lane of so many rows takes, by the formula.
        taken: Bytes of the GPU that were free before the lane was made and are not any more; less
            where memory of an earlier lane was taken over.
    """

    device: str
    rows: int
    seconds: float
    computed: int
    taken: int


class Answers:
    """What was measured so far, in a file, so that a run that was cut short goes on there."""

    def __init__(self, path: Path | None, about: Mapping[str, Any]) -> None:
        """Args: the file, None for none, and what must be the same for its answers to be of use.

        Raises:
            OutputError: The file is something else, or of another bundle, GPU or version.
        """
        self._path, self._about = path, dict(about)
        self._found: dict[str, Any] = {}
        if path is None or not path.exists():
            return
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            known = data["format"] == FORMAT
        except (OSError, ValueError, TypeError, KeyError):
            known = False
        if not known:
            raise OutputError(f"{path} holds no answers of a verification; choose another file.")
        other = sorted(key for key in about if data["about"].get(key) != about[key])
        if other:
            raise OutputError(
                f"{path} is of another {' and '.join(other)}; remove it, or choose another file."
            )
        self._found = data["recordings"]

    def get(self, recording: str, devices: Mapping[str, Any]) -> dict[str, Run] | None:
        """The runs of a recording, if all of these devices have had it."""
        found = self._found.get(recording, {})
        if not set(devices) <= set(found):
            return None
        return {name: Run.from_dict(found[name]) for name in devices}

    def keep(self, recording: str, runs: Mapping[str, Run]) -> None:
        """Writes the runs of a recording."""
        self._found[recording] = {name: run.to_dict() for name, run in runs.items()}
        if self._path is not None:
            data = {"format": FORMAT, "about": self._about, "recordings": self._found}
            write_atomic(self._path, json.dumps(data).encode())


def report(
    title: list[str],
    engines: list[EngineInfo],
    results: dict[str, dict[str, Run]],
    *,
    steps: list[StepRow] | None = None,
    promised: bool = True,
) -> tuple[str, bool]:
    """Writes the report.

    Args:
        title: Lines about the machine and the model.
        engines: What was built.
        results: Runs by recording and device.
        steps: What steps of many rows took.
        promised: Whether engines promise to say what the CPU says.

    Returns:
        Markdown, and whether fp32 engines agree with the CPU in `EXACT_SHARE` of all segments, of
        which there must be some; where nothing is promised, whether there are any.
    """
    lines = ["# TensorRT verification", "", *title, "", "## Engines", ""]
    lines += ["| engine | MiB | build s |", "|---|---|---|"]
    lines += [f"| {e.path.name} | {e.size / 2**20:.1f} | {e.build_seconds:.0f} |" for e in engines]
    if steps:
        lines += ["", "## Steps", "", "| engines | rows | ms | rows/s | MiB computed | MiB taken |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [
            f"| {s.device} | {s.rows} | {1000 * s.seconds:.3f} | {s.rows / s.seconds:.0f} "
            f"| {s.computed / 2**20:.0f} | {s.taken / 2**20:.0f} |"
            for s in steps
        ]
    lines += ["", "## Recordings", ""]
    lines += ["| recording | device | median s | tokens | tokens/s | digest | equal | apart |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    equal = total = 0
    for name, runs in results.items():
        for device, run in runs.items():
            agreement = compare(run, runs[CPU])
            seconds = statistics.median(run.seconds)
            lines.append(
                f"| {name} | {device} | {seconds:.3f} | {run.tokens} | {run.tokens / seconds:.0f} "
                f"| {run.digest} | {agreement.equal}/{agreement.total} | {agreement.apart:.1e} |"
            )
            if device == "fp32":
                equal, total = equal + agreement.equal, total + agreement.total
    fine = equal >= EXACT_SHARE * total > 0 if promised else total > 0
    verdict = f"; the promise is {'kept' if fine else 'NOT kept'}" if promised else ""
    lines += ["", f"fp32: {equal} of {total} segments as on the CPU{verdict}.", ""]
    return "\n".join(lines), fine
