"""What masks and grammar cost: share of the decoder's time, on the song.

Settings take turns: no constraint, a line-up, the grammar, both.  A constraint changes tokens, and
with them the work; so here each one follows the unconstrained tokens and keeps its masks to itself
(`Shadow`).  All settings therefore do the same job, and must have one digest.

Two figures per setting: the CPU time inside the constraint, divided by that of the decoder's steps
in the same run (each worker's step runs on its own thread, so both are that thread's time, and
other work on the machine does not count); and the wall time from features to tokens.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from common import talk
from materials import bundle, parser, report, song

from mt3_runtime.commands.bench_command import columns
from mt3_runtime.decoding.batching import decode
from mt3_runtime.decoding.search import Greedy
from mt3_runtime.decoding.token_masks import constraint_for
from mt3_runtime.decoding.types import Constraint, Decoded, Job, Span
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model, token_digest
from mt3_runtime.notes.instruments import choose

SETTINGS: dict[str, dict[str, Any]] = {
    "none": {"lineup": None},
    "line-up": {"lineup": choose("drums, bass, guitar")},
    "grammar": {"lineup": None, "grammar": True},
    "both": {"lineup": choose("drums, bass, guitar"), "grammar": True},
}


class Shadow:
    """A constraint that does all its work and changes nothing; `seconds` is what it took."""

    def __init__(self, inner: Constraint, slots: int, size: int) -> None:
        self._inner, self._allowed = inner, np.ones((slots, size), np.bool_)
        self.seconds = 0.0

    def start(self, allowed: Any, slot: int, span: Span) -> None:  # noqa: ARG002
        self._clock(self._inner.start, self._allowed, slot, span)

    def move(self, source: int, target: int) -> None:
        self._allowed[target] = self._allowed[source]
        self._clock(self._inner.move, source, target)

    def advance(self, allowed: Any, tokens: Any, rows: Any = None) -> None:  # noqa: ARG002
        self._clock(self._inner.advance, self._allowed, tokens, rows)

    def _clock(self, call: Callable[..., None], *arguments: Any) -> None:
        begin = time.thread_time()
        call(*arguments)
        self.seconds += time.thread_time() - begin


class TimedLane:
    """A lane whose decoder steps are clocked."""

    def __init__(self, lane: Any) -> None:
        self._lane, self.seconds, self.steps = lane, 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lane, name)

    def step(self, rows: int) -> None:
        begin = time.thread_time()
        self._lane.step(rows)
        self.seconds += time.thread_time() - begin
        self.steps += 1


class TimedBackend:
    """A backend that makes such lanes, and keeps them."""

    def __init__(self, backend: Any) -> None:
        self._backend, self.lanes = backend, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def lane(self, *arguments: Any, **options: Any) -> TimedLane:
        self.lanes.append(TimedLane(self._backend.lane(*arguments, **options)))
        return self.lanes[-1]


def run(model: Model, features: Any, setting: dict[str, Any]) -> dict[str, Any]:
    """Decodes all segments once."""
    info, shadows = model.info, []
    seconds = info.segments.samples / info.segments.sample_rate
    constrain = constraint_for(info.vocabulary, info.notes, seconds=seconds, **setting)

    def shadow(slots: int) -> Shadow:
        assert constrain is not None  # noqa: S101  for the type checker
        shadows.append(Shadow(constrain(slots), slots, info.vocabulary.size))
        return shadows[-1]

    search = partial(Greedy, spec=info.decoding, constrain=shadow if constrain else None)
    backend = TimedBackend(model._backend)  # noqa: SLF001  the loop itself is measured
    starts = [info.segments.start(index) for index in range(len(features) + 1)]
    jobs = (
        Job(Span(i, starts[i], starts[i + 1]), partial(np.asarray, row))
        for i, row in enumerate(features)
    )
    begin = time.perf_counter()
    found = [
        sequence
        for item in decode(backend, [jobs], search)
        if isinstance(item, Decoded)
        for sequence in item.sequences
    ]
    return {
        "seconds": time.perf_counter() - begin,
        "digest": token_digest(found),
        "steps": sum(lane.steps for lane in backend.lanes),
        "step_seconds": sum(lane.seconds for lane in backend.lanes),
        "constraint_seconds": sum(shadow.seconds for shadow in shadows),
    }


def main() -> None:
    """Runs all rounds and reports."""
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, default=180.0, help="length of the song")
    made.add_argument("--threads", type=int, help="worker threads; all cores by default")
    options = made.parse_args()
    path, audio = bundle(options), song(options.audio, options.seconds)
    with (
        load_model(path, device="cpu", threads=options.threads) as model,
        report(options, audio=audio.name, seconds=options.seconds) as (result, lines),
    ):
        features = model.preprocess(audio)
        model.warmup()
        result["rounds"] = rounds = defaultdict(list)
        for number in range(options.runs):
            for name, setting in SETTINGS.items():
                talk(f"round {number + 1}: {name}")
                rounds[name].append(run(model, features, setting))
        lines.extend(text(rounds))


def text(rounds: dict[str, list[dict[str, Any]]]) -> list[str]:
    """One row per setting."""
    rows = [["constraint", "us per step", "of the steps' time", "features to tokens", "digest"]]
    for name, answers in rounds.items():
        share = [one["constraint_seconds"] / one["step_seconds"] for one in answers]
        per_step = [1e6 * one["constraint_seconds"] / one["steps"] for one in answers]
        wall = statistics.median(one["seconds"] for one in answers)
        rows.append(
            [
                name,
                f"{statistics.median(per_step):.0f}",
                f"{100 * statistics.median(share):.2f} %",
                f"{wall:.2f} s",
                "/".join(sorted({one["digest"][:12] for one in answers})),
            ]
        )
    return columns(rows)


if __name__ == "__main__":
    main()
