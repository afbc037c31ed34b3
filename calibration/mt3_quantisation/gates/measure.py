"""Measures quantised graphs against exact ones: scores, tokens, KL divergence, bytes, seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from operator import add
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from mt3_evaluation.labels import Labels
from mt3_evaluation.scoring import score_drums, score_instruments, score_notes
from mt3_quantisation.gates.exact_bundle import Heard, transcribed
from mt3_quantisation.gates.gate import Change, Scored, mean_change, pooled_change
from mt3_quantisation.gates.teacher_forcing import Segment, forced
from mt3_runtime.backends.devices import open_backend
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.bundles.manifest import Manifest, Role
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from mt3_runtime.notes.note import Note

if TYPE_CHECKING:
    from onnx import ModelProto

FORCED_SEGMENTS = 48
"""Segments whose thoughts are compared: some 4,000 steps, seconds of work."""

ROLES: tuple[Role, ...] = ("encoder", "decoder")

LOADS = 3
"""Times each bundle is loaded, for the median."""


@dataclass(frozen=True)
class Drift:
    """What teacher forcing tells.

    Attributes:
        kl: Mean over all steps of KL(exact || other) over all tokens, in nats.
        flips: Share of the steps at which another token is the best one.
        steps: Their number.
    """

    kl: float
    flips: float
    steps: int


@dataclass(frozen=True)
class Comparison:
    """A model against the exact one, on the same excerpts.

    Attributes:
        changes: Of each labelled excerpt, all takes added up.
        identical: Share of the segments all of whose tokens are equal.
        segments: Their number.
        agreement: Multi-instrument F1 (exact programs) of the notes, with the exact model's notes
            as labels; mean over the excerpts in which either has notes.
    """

    changes: tuple[Change, ...]
    identical: float
    segments: int
    agreement: float

    @property
    def figures(self) -> dict[str, float]:
        """The differences by name; what does not apply is missing."""
        found = {
            "pooled_onset_f1": pooled_change(self.changes, "onsets"),
            "pooled_drum_f1": pooled_change(self.changes, "drums"),
            "mean_f1": mean_change(self.changes),
            "lowest_f1": min((change.f1 for change in self.changes), default=None),
            "highest_f1": max((change.f1 for change in self.changes), default=None),
            "identical_segments": self.identical,
            "notes_f1": self.agreement,
        }
        return {name: value for name, value in found.items() if value is not None}


def compared(exact: Sequence[Heard], other: Sequence[Heard]) -> Comparison:
    """Compares what two models heard in the same excerpts."""
    pairs = list(zip(exact, other, strict=True))
    same = [
        np.array_equal(mine.tokens, theirs.tokens)
        for one, two in pairs
        for mine, theirs in zip(one.tokens, two.tokens, strict=True)
    ]
    agreements = [
        score_instruments(one.notes, two.notes, granularity="full").f1 for one, two in pairs
    ]
    known = [value for value in agreements if value is not None]
    return Comparison(
        changes=tuple(_changes(pairs)),
        identical=float(np.mean(same)) if same else 1.0,
        segments=len(same),
        agreement=float(np.mean(known)) if known else 1.0,
    )


def _changes(pairs: Iterable[tuple[Heard, Heard]]) -> Iterator[Change]:
    for name, takes in groupby(pairs, key=lambda pair: pair[0].excerpt.name):
        exact, other = zip(*[map(_scored, pair) for pair in takes], strict=True)
        yield Change(name, reduce(add, exact), reduce(add, other))


def _scored(heard: Heard) -> Scored:
    return scored(heard.excerpt.labels, heard.notes)


def scored(labels: Labels, notes: Iterable[Note]) -> Scored:
    """The scores of the kinds of notes that are labelled."""
    found = tuple(notes)
    return Scored(
        score_notes(labels.notes, found) if labels.pitched else None,
        score_drums(labels.notes, found) if labels.drums else None,
    )


def drift(
    exact: Mapping[Role, ModelProto],
    other: Mapping[Role, ModelProto],
    manifest: Manifest,
    segments: Sequence[Segment],
    *,
    threads: int | None = None,
) -> Drift:
    """Compares the thoughts of two pairs of graphs about the same tokens."""
    total, flips, steps = 0.0, 0, 0
    for one, two in zip(
        forced(exact, manifest, segments, threads=threads),
        forced(other, manifest, segments, threads=threads),
        strict=True,
    ):
        mine, theirs = one.log_probs.astype(np.float64), two.log_probs.astype(np.float64)
        total += float((np.exp(mine) * (mine - theirs)).sum())
        flips += int(np.count_nonzero(mine.argmax(axis=1) != theirs.argmax(axis=1)))
        steps += len(mine)
    return Drift(total / max(steps, 1), flips / max(steps, 1), steps)


def independent(bundle: Bundle, device: str, heard: Sequence[Heard]) -> bool:
    """Whether tokens are the same with one lane of few slots as with all there are.

    Args:
        bundle: The model.
        device: Where it runs.
        heard: What it hears as it usually runs.
    """
    backend = open_backend(bundle, device, threads=1)
    backend.slots = bundle.manifest.model.channels + 3
    with Model(bundle, backend) as model:
        again = transcribed(model, [h.excerpt for h in heard], [h.features for h in heard])
    return all(
        np.array_equal(mine.tokens, theirs.tokens)
        for one, two in zip(heard, again, strict=True)
        for mine, theirs in zip(one.tokens, two.tokens, strict=True)
    )


def load_seconds(
    one: Bundle, two: Bundle, *, device: str = "cpu", profile: str | None = None
) -> tuple[float, float]:
    """Median times to load a profile of two bundles, taken in turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(LOADS):
        for bundle, times in zip((one, two), taken, strict=True):
            begin = time.perf_counter()
            load_model(bundle.path, device=device, profile=profile).close()
            times.append(time.perf_counter() - begin)
    return median(taken[0]), median(taken[1])


def total_bytes(bundle: Bundle, profile: str) -> int:
    """Bytes of the graphs of a profile."""
    return sum(bundle.graph(role, profile).size for role in ROLES)
