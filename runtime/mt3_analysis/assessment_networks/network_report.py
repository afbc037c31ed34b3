"""Report of trained networks: the study's tables, tests over pieces, and what diagnostics say.

Contract: `build_report` takes predictions by model and compares all of them on the same recordings
and the same draws.  `NetworkReport.to_dict` is JSON of one version; `text` is for people.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_analysis.assessment_networks.artefact_probe import artefact_probe
from mt3_analysis.assessment_networks.label_diagnostics import (
    Finding,
    collapse,
    label_ceiling,
    label_rank,
    piece_or_playing,
)
from mt3_analysis.assessment_networks.modality_diagnostics import difference, fusion_gain
from mt3_analysis.assessment_networks.piece_bootstrap import (
    Floats,
    Interval,
    bootstrap,
    correlations,
    group_ids,
    mean_correlation,
    pair,
    table,
)
from mt3_runtime.errors import OptionError

FORMAT, VERSION = "mt3-analysis.network-report", 1
SIGNIFICANT = 0.05
"""Of the study's test."""


@dataclass(frozen=True)
class ModelRow:
    """One model.

    Attributes:
        model: Its name.
        r: Mean Pearson's r of the dimensions.
        r2: Mean coefficient of determination.
        mae: Mean absolute error.
        pairs: Share of pairs of one piece that are in the right order; NaN where there are none.
    """

    model: str
    r: Interval
    r2: float
    mae: float
    pairs: float


@dataclass(frozen=True)
class DimensionTest:
    """Two models on one dimension.

    Attributes:
        dimension: Its name.
        t: Paired t statistic of absolute errors; positive where the first model errs less.
        p: Its two-sided p, by the normal distribution.
        winner: Whose errors are smaller; empty where p is not below 0.05.
    """

    dimension: str
    t: float
    p: float
    winner: str


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same recordings.

    Attributes:
        model: The one.
        against: The other.
        gain: Difference of r, paired draws of pieces.
        by_dimension: The study's own test of each dimension.  Recordings count as independent
            there, so p is too small where a piece has several.
    """

    model: str
    against: str
    gain: Interval
    by_dimension: tuple[DimensionTest, ...]


@dataclass(frozen=True)
class NetworkReport:
    """What is known of some models.

    Attributes:
        dimensions: Names.
        recordings: How many were judged.
        pieces: Of how many pieces.
        models: One row a model.
        by_dimension: Model -> dimension -> r.
        tests: Each fusion against the better single modality.
        findings: By model; those of the labels under an empty name.
    """

    dimensions: tuple[str, ...]
    recordings: int
    pieces: int
    models: tuple[ModelRow, ...]
    by_dimension: Mapping[str, Mapping[str, float]]
    tests: tuple[PairedTest, ...]
    findings: Mapping[str, tuple[Finding, ...]] = field(default_factory=dict)

    @property
    def flagged(self) -> tuple[str, ...]:
        """Checks that are flagged, each once."""
        found = [f.check for several in self.findings.values() for f in several if f.flagged]
        return tuple(dict.fromkeys(found))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``pairs`` is null where there are none."""
        models = [asdict(row) for row in self.models]
        for row in models:
            row["pairs"] = row["pairs"] if math.isfinite(row["pairs"]) else None
        return {
            "format": FORMAT,
            "version": VERSION,
            "dimensions": list(self.dimensions),
            "recordings": self.recordings,
            "pieces": self.pieces,
            "models": models,
            "by_dimension": {name: dict(row) for name, row in self.by_dimension.items()},
            "tests": [asdict(test) for test in self.tests],
            "findings": {
                name: [
                    {
                        "check": f.check,
                        "figures": dict(f.figures),
                        "flagged": f.flagged,
                        "said": f.said,
                    }
                    for f in several
                ]
                for name, several in self.findings.items()
            },
        }

    def text(self) -> str:
        """Tables for people."""
        lines = [f"{self.recordings} recordings of {self.pieces} pieces", ""]
        lines += _columns(
            ["model", "r [95 % over pieces]", "R2", "MAE", "pairs"],
            [
                [row.model, str(row.r), f"{row.r2:.3f}", f"{row.mae:.2f}", _share(row.pairs)]
                for row in self.models
            ],
        )
        names = [row.model for row in self.models]
        lines += ["", *_columns(
            ["dimension", *names],
            [[d, *(f"{self.by_dimension[m][d]:.3f}" for m in names)] for d in self.dimensions],
        )]  # fmt: skip
        if self.tests:
            lines += ["", *_columns(
                ["fusion", "against", "gain of r [95 %]"],
                [[test.model, test.against, str(test.gain)] for test in self.tests],
            )]  # fmt: skip
        for test in self.tests:
            lines += ["", *_columns(
                [f"{test.model} or {test.against}", "paired t", "p", "winner"],
                [
                    [each.dimension, f"{each.t:.2f}", f"{each.p:.4f}", each.winner or "tie"]
                    for each in test.by_dimension
                ],
            )]  # fmt: skip
        lines.append("")
        for name, several in self.findings.items():
            for found in several:
                mark = "FLAG" if found.flagged else "ok"
                lines.append(f"{mark:4}  {name or 'labels'}: {found.check}: {found.said}")
        return "\n".join(lines) + "\n"


def build_report(
    predictions: Mapping[str, npt.ArrayLike],
    labels: npt.ArrayLike,
    dimensions: Sequence[str],
    pieces: npt.ArrayLike,
    *,
    single: Sequence[str] = (),
    conditions: npt.ArrayLike | None = None,
    about_recordings: npt.ArrayLike | None = None,
    resamples: int = 1000,
) -> NetworkReport:
    """Compares models and runs the diagnostics that need predictions alone.

    Args:
        predictions: Model -> [n, k].
        labels: [n, k].
        dimensions: Names of the columns.
        pieces: Whose each recording is, [n].
        single: Which of the models hear one modality alone; the others are tested against the
            better one of them.
        conditions: For the label ceiling, [n].
        about_recordings: For the artefact probe, [n, f]; `nuisances` makes them.
        resamples: Draws of each interval.

    Raises:
        OptionError: There is no model, or arrays do not fit each other.
    """
    known = table("labels", labels)
    ids = group_ids(pieces, len(known))
    if not predictions or not set(single) <= set(predictions):
        raise OptionError("a report needs predictions by model, those in `single` among them.")
    if len(dimensions) != known.shape[1]:
        raise OptionError(f"{known.shape[1]} columns of labels have {len(dimensions)} names.")
    tables = {name: pair(values, known)[0] for name, values in predictions.items()}
    tests: list[PairedTest] = []
    findings: dict[str, tuple[Finding, ...]] = {"": (label_rank(known),)}
    best = max(single, key=lambda name: mean_correlation(tables[name], known), default=None)
    for name, said in tables.items():
        found = [collapse(said, known), piece_or_playing(said, known, ids)]
        if conditions is not None:
            found.append(label_ceiling(said, known, conditions))
        if about_recordings is not None:
            found.append(artefact_probe(about_recordings, said, known, ids))
        if best is not None and name not in single:
            alone = {other: tables[other] for other in single}
            found.append(fusion_gain(said, alone, known, ids, resamples=resamples))
            interval = difference(said, tables[best], known, ids, resamples=resamples)
            each = _paired(name, best, tables, known, dimensions)
            tests.append(PairedTest(name, best, interval, each))
        findings[name] = tuple(found)
    return NetworkReport(
        tuple(dimensions),
        len(known),
        int(ids.max()) + 1,
        tuple(_row(name, said, known, ids, resamples) for name, said in tables.items()),
        {name: _by_dimension(said, known, dimensions) for name, said in tables.items()},
        tuple(tests),
        findings,
    )


def _by_dimension(said: Floats, known: Floats, dimensions: Sequence[str]) -> dict[str, float]:
    return dict(zip(dimensions, map(float, correlations(said, known)), strict=True))


def _row(name: str, said: Floats, known: Floats, ids: Any, resamples: int) -> ModelRow:
    def figure(rows: npt.NDArray[np.int64]) -> float:
        return mean_correlation(said[rows], known[rows])

    total = ((known - known.mean(axis=0)) ** 2).sum(axis=0)
    rest = ((known - said) ** 2).sum(axis=0)
    r2 = float((1.0 - rest / np.where(total > 0, total, 1.0)).mean())
    mae = float(np.abs(known - said).mean())
    interval = bootstrap(figure, ids, len(known), resamples=resamples)
    return ModelRow(name, interval, r2, mae, pairs_right(said, known, ids))


def pairs_right(predictions: npt.ArrayLike, labels: npt.ArrayLike, pieces: npt.ArrayLike) -> float:
    """Share of pairs of one piece with different labels that predictions put in their order.

    Equal predictions count half; NaN where there is no such pair.
    """
    said, known = pair(predictions, labels)
    ids = group_ids(pieces, len(known))
    right = total = 0.0
    for piece in range(int(ids.max()) + 1):
        rows = np.flatnonzero(ids == piece)
        one, other = np.triu_indices(len(rows), 1)
        wanted = np.sign(known[rows[one]] - known[rows[other]])
        found = np.sign(said[rows[one]] - said[rows[other]])
        counted = wanted != 0
        total += float(counted.sum())
        right += float((counted * (found == wanted)).sum() + 0.5 * (counted * (found == 0)).sum())
    return right / total if total else math.nan


def _paired(
    one: str,
    other: str,
    tables: Mapping[str, Floats],
    known: Floats,
    dimensions: Sequence[str],
) -> tuple[DimensionTest, ...]:
    less = np.abs(tables[other] - known) - np.abs(tables[one] - known)
    spread = less.std(axis=0, ddof=1) / math.sqrt(len(less))
    found = []
    for name, mean, deviation in zip(dimensions, less.mean(axis=0), spread, strict=True):
        t = float(mean / deviation) if deviation > 0 else 0.0
        p = math.erfc(abs(t) / math.sqrt(2.0))
        winner = "" if p >= SIGNIFICANT else (one if t > 0 else other)
        found.append(DimensionTest(name, t, p, winner))
    return tuple(found)


def _share(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
