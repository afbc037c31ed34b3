"""Scores transcriptions stem by stem: F1 of the notes that are on the right stem.

Contract: labels and notes are divided into stems (`mt3_runtime.notes.stems`), and match only within
one: a note on another stem's instrument is wrong there, and missing here.  Pitched notes match by
onset and pitch, drums by onset and class.  Stems of which the labels say nothing are left out; one
that only the notes have counts as wrong.  The row ``all`` adds up the counts of all stems.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mt3_evaluation.bootstrap import interval
from mt3_evaluation.evaluation import Evaluation, Result
from mt3_evaluation.metrics import Measure, f1_measure
from mt3_evaluation.score_report import DECIMALS, aligned
from mt3_evaluation.scoring import Pairs, Score, by_drum_class, by_pitch, match
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.stems import STEMS, Role, split

ALL = "all"
"""Name of the row of all stems together."""

HEAD = ("stem", "recordings", "labels", "notes", "precision", "recall", "F1", "from", "to")


def stem_measures(result: Result) -> dict[str, Measure]:
    """What a recording counted for each stem that its labels or notes have, and for `ALL`."""
    known = result.recording.labels
    labels = split(known.notes)
    notes = split(note for note in result.findings.notes if known.covers(note))
    found: dict[str, Measure] = {}
    whole: tuple[list[Note], list[Note]] = [], []
    pairs: Pairs = []
    for stem in STEMS:
        drums = stem.role is Role.PERCUSSIVE
        sides = labels.get(stem.name, ()), notes.get(stem.name, ())
        if any(sides) and (known.drums if drums else known.pitched and known.programs):
            own = match(*sides, by_drum_class if drums else by_pitch)
            found[stem.name] = f1_measure(*sides, own)
            pairs += [(i + len(whole[0]), j + len(whole[1])) for i, j in own]
            for every, side in zip(whole, sides, strict=True):
                every.extend(side)
    return {**found, ALL: f1_measure(*whole, pairs)} if found else {}


def by_stem(evaluation: Evaluation) -> dict[str, list[Measure]]:
    """Measures of all recordings by stem, in the order of `STEMS`, and `ALL` behind them."""
    singles = [stem_measures(result) for result in evaluation.results]
    found = {
        name: [single[name] for single in singles if name in single]
        for name in (*(stem.name for stem in STEMS), ALL)
    }
    return {name: some for name, some in found.items() if some}


def stem_document(evaluation: Evaluation) -> dict[str, Any]:
    """The scores as plain JSON types, by stem."""
    return {
        name: {**_counts(measures), **_estimate(evaluation, measures)}
        for name, measures in by_stem(evaluation).items()
    }


def stem_table(evaluation: Evaluation) -> str:
    """The scores as a table, a row per stem."""
    rows = [
        (
            name,
            *(str(row[key]) for key in ("recordings", "labels", "notes")),
            *(_figure(row[key]) for key in ("precision", "recall", "value", "low", "high")),
        )
        for name, row in stem_document(evaluation).items()
    ]
    return aligned([HEAD, *rows])


def _counts(measures: list[Measure]) -> Mapping[str, Any]:
    score = sum((measure.score or Score(0, 0, 0) for measure in measures), Score(0, 0, 0))
    return {
        "recordings": len(measures),
        "labels": score.labels,
        "notes": score.notes,
        "matched": score.matched,
        "precision": _rounded(score.precision),
        "recall": _rounded(score.recall),
        "value": _rounded(score.f1),
    }


def _estimate(evaluation: Evaluation, measures: list[Measure]) -> Mapping[str, Any]:
    units = [measure.units for measure in measures]
    found = interval(units, resamples=evaluation.resamples, seed=evaluation.seed)
    ends = found or (None, None)
    return {"low": _rounded(ends[0]), "high": _rounded(ends[1])}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
