"""Evaluation of transcriptions: recordings with labels, the notes found in them, and their scores.

Recordings are scored one by one (`Result`) and summarised in two ways: *pooled*, all counts added,
so that a long recording weighs more; and *mean*, every recording alike.  Each figure comes with a
95 % interval (`mt3_evaluation.bootstrap`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from mt3_evaluation.bootstrap import RESAMPLES, interval
from mt3_evaluation.labels import Labels, find_labels, is_transcription, read_labels
from mt3_evaluation.metrics import Measure, measure
from mt3_evaluation.scoring import before
from mt3_runtime.errors import AudioNotFoundError
from mt3_runtime.filesystem.atomic import exists
from mt3_runtime.notes.note import Note


@dataclass(frozen=True)
class Recording:
    """Something to evaluate.

    Attributes:
        name: Unique in an evaluation.
        labels: What is known about it.
        audio: The sound; None if only its notes are needed.
    """

    name: str
    labels: Labels
    audio: Path | None = None


@dataclass(frozen=True)
class Findings:
    """What a model found in a recording.

    Attributes:
        notes: The notes.
        seconds: Length of what was transcribed; None if not known.
        token_digest: Of the tokens; None if not known.
        source: The file they were read from; None if they were transcribed now.
    """

    notes: tuple[Note, ...]
    seconds: float | None = None
    token_digest: str | None = None
    source: Path | None = None


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval, which is None where there is too little to tell."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Result:
    """The scores of one recording.

    Attributes:
        recording: The recording, its labels cut to the excerpt.
        findings: The notes, cut to the excerpt.
        measures: Metrics by name; those that do not apply are missing.
    """

    recording: Recording
    findings: Findings
    measures: dict[str, Measure]

    @property
    def note_count(self) -> int:
        """Notes of the kinds that are labelled."""
        return sum(self.recording.labels.covers(note) for note in self.findings.notes)


def score(recording: Recording, findings: Findings, *, seconds: float | None = None) -> Result:
    """Scores one recording, or the notes that begin in its first ``seconds``."""
    if seconds is not None:
        known = recording.labels
        labels = replace(known, notes=tuple(before(known.notes, seconds)))
        recording = replace(recording, labels=labels)
        length = None if findings.seconds is None else min(findings.seconds, seconds)
        findings = replace(findings, notes=tuple(before(findings.notes, seconds)), seconds=length)
    return Result(recording, findings, measure(recording.labels, findings.notes))


@dataclass(frozen=True)
class Evaluation:
    """The scores of a set of recordings.

    Attributes:
        results: One per recording.
        resamples: Draws per interval.
        seed: Of the draws.
    """

    results: tuple[Result, ...]
    resamples: int = RESAMPLES
    seed: int = 0

    def single(self, result: Result, metric: str) -> Estimate | None:
        """A metric of one recording; None if it does not apply."""
        found = result.measures.get(metric)
        return None if found is None else self._estimate(found.value, [found])

    def pooled(self, metric: str) -> Estimate | None:
        """A metric over all counts; None if it applies to no recording."""
        found = self._measures(metric)
        if not found:
            return None
        numerator, denominator = np.sum([item.total for item in found], axis=0)
        return self._estimate(float(numerator / denominator), found)

    def mean(self, metric: str) -> Estimate | None:
        """The mean of a metric over recordings; None if it applies to none."""
        found = self._measures(metric)
        if not found:
            return None
        return self._estimate(fmean(item.value for item in found), found, mean=True)

    def _measures(self, metric: str) -> list[Measure]:
        return [r.measures[metric] for r in self.results if metric in r.measures]

    def _estimate(self, value: float, found: Sequence[Measure], *, mean: bool = False) -> Estimate:
        units = [item.units for item in found]
        draws = {"resamples": self.resamples, "seed": self.seed}
        return Estimate(value, interval(units, mean=mean, **draws))


def labelled(name: str, audio: Path | None, folder: Path, *, trusted: bool) -> Recording | None:
    """A recording with the labels that a folder holds for it; None if it holds none.

    Args:
        name: What the label files are called.
        audio: The sound, if it is needed.
        folder: Where labels are looked for.
        trusted: The user named the folder as one of labels; otherwise a file that `mt3 transcribe`
            made is none.

    Raises:
        AudioNotFoundError: The audio is missing.
        OptionError: A label file is damaged.
    """
    if audio is not None and not exists(audio):
        raise AudioNotFoundError(f"There is no audio file at {audio}.")
    files = find_labels(name, folder)
    if not files:
        return None
    labels = read_labels(files)
    if not trusted and is_transcription(labels.notes, files[0]):
        return None
    return Recording(name, labels, audio)


def unique_names(paths: Sequence[Path]) -> list[str]:
    """What to call files: their stems, or with suffix or folder where stems are not unique."""
    names = [path.stem for path in paths]
    for more in (lambda path: path.name, str):
        counts = Counter(names)
        names = [
            more(p) if counts[name] > 1 else name for p, name in zip(paths, names, strict=True)
        ]
    return names
