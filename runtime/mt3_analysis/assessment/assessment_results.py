"""What is said of a performance: dimensions with intervals, measures, and what was missing.

Contract: plain frozen data, the same in JSON (`FORMAT`, `VERSION`).  A dimension that cannot be
judged is there all the same, with `assessed` False and the reason.  An index runs from 0, as at the
far end of its scale, to 1, as where nothing was spoiled; it is no mark, and no percentage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mt3_analysis.assessment.measures.measured_take import Measured

FORMAT = "mt3-runtime.assessment"
VERSION = 1

Head = Literal["execution", "style"]

INTERVAL = 0.8
"""Share of values that lie in the interval of a dimension."""


@dataclass(frozen=True)
class Dimension:
    """One respect in which a performance is judged.

    Attributes:
        name: Such as ``wrong_notes``.
        head: ``execution``: clean playing; ``style``: how listeners describe it.
        assessed: Whether it could be judged.
        value: Index 0..1.
        low: Lower end of the 80 % interval.
        high: Upper end.
        percentile: Share of the reference performances with a lower value, 0..100, if there is a
            reference.
        observations: Notes, chords or gaps it rests on.
        why: What it was made of: measures with value and unit.
        reason: Why it was not judged.
    """

    name: str
    head: Head
    assessed: bool
    value: float | None = None
    low: float | None = None
    high: float | None = None
    percentile: float | None = None
    observations: int = 0
    why: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class AlignmentCounts:
    """How the notes of a take and of its score go together.

    Attributes:
        score: Name of the score.
        written: Notes of the score, of the part that was played.
        matched: Of these, played.
        wrong: Played with another pitch.
        missing: Not played.
        extra: Played and not written.
        unplayed: Notes of the score before or behind what was played.
    """

    score: str
    written: int
    matched: int
    wrong: int
    missing: int
    extra: int
    unplayed: int


@dataclass(frozen=True)
class Assessment:
    """What is said of one performance.

    Attributes:
        name: Of the take.
        source: ``midi``, ``audio`` (transcribed) or ``notes``.
        duration_s: From the first onset to the last offset.
        notes: Number of notes.
        known: What else than notes is known.
        dimensions: In fixed order.
        measures: All measures, in fixed order.
        alignment: Counts, if there was a score.
        remarks: What was left out or changed, a sentence each.
    """

    name: str
    source: Literal["midi", "audio", "notes"]
    duration_s: float
    notes: int
    known: tuple[str, ...]
    dimensions: tuple[Dimension, ...]
    measures: tuple[Measured, ...]
    alignment: AlignmentCounts | None = None
    remarks: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Dimension:
        """The dimension of a name; raises `KeyError`."""
        for dimension in self.dimensions:
            if dimension.name == name:
                return dimension
        raise KeyError(name)

    def __iter__(self) -> Iterator[Dimension]:
        """The dimensions."""
        return iter(self.dimensions)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in JSON."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def lines(self) -> list[str]:
        """A table for people: dimension, index with interval, what it was made of."""
        rows = [("dimension", "index", "80 % interval", "percentile", "from")]
        for each in self.dimensions:
            if each.assessed:
                interval = f"{each.low:.2f} to {each.high:.2f}"
                share = "-" if each.percentile is None else f"{each.percentile:.0f}"
                rows.append((each.name, f"{each.value:.2f}", interval, share, "; ".join(each.why)))
            else:
                rows.append((each.name, "-", "not assessed", "-", each.reason or ""))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return [
            "  ".join([*(cell.ljust(n) for cell, n in zip(row, widths, strict=False)), row[4]])
            for row in rows
        ]


@dataclass(frozen=True)
class Ranked:
    """A take in the order of several.

    Attributes:
        name: Of the take.
        place: 1 is best.
        better: Mean probability 0..1 that it is better than another one of them.
        against: Probability for each other one, in the order of the takes; 0.5 for itself.
    """

    name: str
    place: int
    better: float
    against: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """The order of takes of one piece.

    Attributes:
        head: What was compared.
        dimensions: Those that could be judged in all takes.
        takes: In the order they were given.
        by_dimension: Probability that a take is better than another one, mean over the others, by
            dimension and take.
    """

    head: Head
    dimensions: tuple[str, ...]
    takes: tuple[Ranked, ...]
    by_dimension: dict[str, tuple[float, ...]]

    def lines(self) -> list[str]:
        """The order for people, the best first."""
        ordered = sorted(self.takes, key=lambda take: take.place)
        width = max(len(take.name) for take in ordered)
        head = f"{self.head}, by {', '.join(self.dimensions)}"
        return [
            f"{head}:",
            *(
                f"{take.place}. {take.name.ljust(width)}  better than another: {take.better:.0%}"
                for take in ordered
            ),
        ]


def document(
    assessments: Sequence[Assessment], comparisons: Sequence[Comparison] = ()
) -> dict[str, Any]:
    """The JSON document of takes, and of their comparison."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "interval": INTERVAL,
        "takes": [assessment.to_dict() for assessment in assessments],
        "comparisons": [_plain(asdict(comparison)) for comparison in comparisons],
    }


def _plain(value: Any) -> Any:
    """The same with floats of six digits behind the point, and lists for tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value
