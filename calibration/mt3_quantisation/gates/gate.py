"""The precision gate: how far scores of a quantised bundle may fall below the exact one's.

Contract: pure functions of per-file scores.  Each file has one F1, of all its notes that are
labelled, pitched ones by onset and drums by class (`mt3_evaluation.scoring`), in all of its takes
(`mt3_quantisation.gates.material`), and is compared with what the exact model has for the same.

``packaging``  For what everybody gets without asking: no labelled file may move by more than
               `FILE_WITHIN`, in either direction.
``relaxed``    For what somebody asks for by name.  Single files move by several notes when a near
               tie falls the other way, so what is bounded is stable: the pooled F1 of pitched
               onsets and of drums, the mean change of the files, and for single files only how far
               down they may go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from mt3_evaluation.scoring import Score

GateName = Literal["packaging", "relaxed"]

FILE_WITHIN = 0.01
"""``packaging``: F1 by which a file may differ."""

POOLED_DOWN, MEAN_DOWN, FILE_DOWN = 0.005, 0.005, 0.03
"""``relaxed``: F1 by which pooled scores, the mean of the files, and a single file may fall."""

_ROUNDING = 1e-9
"""F1s are quotients of whole numbers: what differs by less is equal."""


@dataclass(frozen=True)
class Scored:
    """One labelled file, or several added up.

    Attributes:
        onsets: Of the pitched notes; None if those are not labelled.
        drums: Of the drums; None if those are not labelled.
    """

    onsets: Score | None
    drums: Score | None

    def __add__(self, other: Scored) -> Scored:
        """Both files, as one; what is labelled in one only counts for neither."""
        return Scored(_sum(self.onsets, other.onsets), _sum(self.drums, other.drums))

    @property
    def whole(self) -> Score:
        """Both, added."""
        return sum((s for s in (self.onsets, self.drums) if s), Score(0, 0, 0))


@dataclass(frozen=True)
class Change:
    """One labelled file, as the exact model and as another one has it."""

    name: str
    exact: Scored
    other: Scored

    @property
    def f1(self) -> float:
        """By how much the F1 of the file is higher than the exact model's; 0 for silent files."""
        return _difference(self.exact.whole, self.other.whole)


def pooled_change(changes: Sequence[Change], part: Literal["onsets", "drums"]) -> float | None:
    """By how much one F1 over all files is higher; None if the part is labelled nowhere."""
    pairs = [(getattr(c.exact, part), getattr(c.other, part)) for c in changes]
    labelled = [pair for pair in pairs if None not in pair]
    if not labelled:
        return None
    exact, other = (sum(side, Score(0, 0, 0)) for side in zip(*labelled, strict=True))
    return _difference(exact, other)


def mean_change(changes: Sequence[Change]) -> float:
    """Mean change of the files' F1s; 0 without files."""
    return fmean(change.f1 for change in changes) if changes else 0.0


def packaging(changes: Sequence[Change]) -> list[str]:
    """What breaks the gate ``packaging``, one sentence per file; empty for a pass."""
    return [
        f"{change.name}: F1 differs by {change.f1:+.4f}, more than {FILE_WITHIN}"
        for change in changes
        if abs(change.f1) > FILE_WITHIN + _ROUNDING
    ]


def relaxed(changes: Sequence[Change]) -> list[str]:
    """What breaks the gate ``relaxed``, one sentence per limit; empty for a pass."""
    bounds: list[tuple[str, float | None, float]] = [
        ("pooled onset F1", pooled_change(changes, "onsets"), POOLED_DOWN),
        ("pooled drum F1", pooled_change(changes, "drums"), POOLED_DOWN),
        ("the files' mean F1", mean_change(changes), MEAN_DOWN),
        *((f"{change.name}: F1", change.f1, FILE_DOWN) for change in changes),
    ]
    return [
        f"{what} falls by {-change:.4f}, more than {limit}"
        for what, change, limit in bounds
        if change is not None and change < -limit - _ROUNDING
    ]


GATES: dict[GateName, Callable[[Sequence[Change]], list[str]]] = {
    "packaging": packaging,
    "relaxed": relaxed,
}


def _sum(one: Score | None, two: Score | None) -> Score | None:
    return None if one is None or two is None else one + two


def _difference(exact: Score, other: Score) -> float:
    return (other.f1 or 0.0) - (exact.f1 or 0.0)
