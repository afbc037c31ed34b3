"""Calibration of note confidence: reliability, expected calibration error, and a better fit.

Contract: `verdicts` says of every note whether it is right; `fit` finds the `Calibration` that
predicts it best from the probabilities of the notes' tokens; `assess` compares both, the
confidences that notes have and those of a fit that never saw the recording (*leave one recording
out*), with the truth.  A note is right if it matches a label as in the onset metrics of
`mt3_evaluation.scoring`: onset within 50 ms and pitch, or class of drum.  Whether the instrument
is right is another question.  Notes of kinds that the labels say nothing about are left out.

Two figures.  Average precision (AP) is the area under precision over recall when notes are taken
in the order of their confidence; notes of equal confidence come together, so confidences that say
nothing have the AP of the *base*, the share of right notes.  The calibration error is the mean
distance between confidence and share of right notes over ten bins, weighted by their notes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_evaluation.labels import Labels
from mt3_evaluation.scoring import by_drum_class, by_pitch, drums, match, pitched
from mt3_runtime.errors import OptionError
from mt3_runtime.notes.confidence import Calibration, Weights, logit
from mt3_runtime.notes.note import Note

FloatArray = npt.NDArray[np.float64]

BINS = 10
"""Of equal width, for the calibration error and the reliability plot."""

RIDGE = 0.01
"""Penalty on the weights of the tokens, per note and squared weight: where nothing can be learned,
they are 0."""

_STEPS = 50
"""Of Newton's method; ten are enough where there is anything to learn."""


class Verdict(NamedTuple):
    """A note, and whether it is right."""

    note: Note
    right: bool


class Bin(NamedTuple):
    """Notes of similar confidence: how many, their mean confidence, their share of right ones."""

    notes: int
    confidence: float
    right: float


@dataclass(frozen=True)
class Trust:
    """How well some confidences predict what is right.

    Attributes:
        base: Share of right notes.
        average_precision: See the module; None if no note or every note is right.
        error: Calibration error.
        bins: `BINS` bins from 0 to 1; empty ones are None.
    """

    base: float
    average_precision: float | None
    error: float
    bins: tuple[Bin | None, ...]


@dataclass(frozen=True)
class Judged:
    """The notes of a recording.

    Attributes:
        name: Of the recording.
        notes: How many.
        given: Of the confidences they have.
        refitted: Of a fit to all other recordings; None if there is no other.
    """

    name: str
    notes: int
    given: Trust
    refitted: Trust | None


@dataclass(frozen=True)
class Assessment:
    """What `assess` found.

    Attributes:
        recordings: One by one.
        pooled: All notes together.
        fitted: The fit to all recordings: what a bundle would carry.
    """

    recordings: tuple[Judged, ...]
    pooled: Judged
    fitted: Calibration


def verdicts(labels: Labels, notes: Sequence[Note]) -> list[Verdict]:
    """Which of the notes that labels say something about are right, in the order of the notes.

    Raises:
        MissingDependencyError: mir_eval is not installed.
    """
    right: set[int] = set()
    for kind, key in ((pitched, by_pitch), (drums, by_drum_class)):
        mine = kind(notes)
        found = match(kind(labels.notes), mine, key)
        right |= {id(mine[index]) for _, index in found}
    return [Verdict(note, id(note) in right) for note in notes if labels.covers(note)]


def fit(judged: Iterable[Verdict]) -> Calibration:
    """The calibration that makes the verdicts most likely, with `RIDGE`."""
    known = list(judged)
    return Calibration(
        *(
            _weights([verdict for verdict in known if verdict.note.is_drum == is_drum])
            for is_drum in (False, True)
        )
    )


def assess(recordings: Mapping[str, Sequence[Verdict]]) -> Assessment:
    """Compares confidences with verdicts, by recording and pooled.

    Raises:
        OptionError: A note's probabilities are not known, or there is no note.
    """
    _check(recordings)
    everything = [verdict for some in recordings.values() for verdict in some]
    again: dict[str, FloatArray] = {}
    if len(recordings) > 1:
        for name, some in recordings.items():
            others = (v for other, more in recordings.items() if other != name for v in more)
            again[name] = _confidences(some, fit(others).confidence)
    joined = np.concatenate(list(again.values())) if again else None
    return Assessment(
        tuple(_judged(name, some, again.get(name)) for name, some in recordings.items() if some),
        _judged("pooled", everything, joined),
        fit(everything),
    )


def trust(right: npt.NDArray[np.bool_], confidences: FloatArray) -> Trust:
    """How well confidences, float [n], predict what is right, bool [n]; n is above 0."""
    places = np.minimum((confidences * BINS).astype(np.intp), BINS - 1)
    bins: list[Bin | None] = []
    for place in range(BINS):
        inside = places == place
        count = int(inside.sum())
        bins.append(
            Bin(count, float(confidences[inside].mean()), float(right[inside].mean()))
            if count
            else None
        )
    error = sum(b.notes * abs(b.confidence - b.right) for b in bins if b) / len(right)
    return Trust(float(right.mean()), average_precision(right, confidences), error, tuple(bins))


def average_precision(right: npt.NDArray[np.bool_], scores: FloatArray) -> float | None:
    """Sum over the distinct scores, from the highest, of precision times gained recall.

    Args:
        right: bool [n].
        scores: float [n].

    Returns:
        None if there are not both right and wrong notes.
    """
    if right.all() or not right.any():
        return None
    order = np.argsort(-scores, kind="stable")
    hits, ranked = np.cumsum(right[order]), scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of notes of equal score
    gained = np.diff(hits[ends], prepend=0) / hits[-1]
    return float((gained * hits[ends] / (ends + 1)).sum())


def _check(recordings: Mapping[str, Sequence[Verdict]]) -> None:
    for name, some in recordings.items():
        if any(verdict.note.probabilities.pitch is None for verdict in some):
            raise OptionError(
                f"The notes of {name} do not have the probabilities of their tokens: they were "
                "read from a file without them (MIDI). Use a model, or json, jsonl or csv files."
            )
    if not any(recordings.values()):
        raise OptionError("No note is of a kind that the labels say anything about.")


def _judged(name: str, some: Sequence[Verdict], refitted: FloatArray | None) -> Judged:
    right = _rights(some)
    given = trust(right, _confidences(some, lambda note: note.confidence))
    return Judged(name, len(some), given, None if refitted is None else trust(right, refitted))


def _rights(some: Sequence[Verdict]) -> npt.NDArray[np.bool_]:
    return np.array([verdict.right for verdict in some], np.bool_)


def _confidences(some: Sequence[Verdict], confidence: Callable[[Note], float]) -> FloatArray:
    return np.array([confidence(verdict.note) for verdict in some], np.float64)


def _weights(some: Sequence[Verdict]) -> Weights:
    """The most likely logistic model in which no surer token makes a note less sure."""
    width = len(astuple(Weights(0, 0, 0, 0, 0)))
    inputs = np.ones((len(some), width))
    for row, verdict in enumerate(some):
        chances = verdict.note.probabilities
        inputs[row, 1:] = [0.0 if chance is None else logit(chance) for chance in chances]
    used, weights = np.ones(width, np.bool_), np.zeros(width)
    while True:
        weights[used] = _likeliest(inputs[:, used], _rights(some))
        against = used & (weights < 0.0)
        against[0] = False  # the bias may be what it is
        if not against.any():
            return Weights(*(round(float(weight), 4) for weight in weights))
        used &= ~against
        weights[against] = 0.0


def _likeliest(inputs: FloatArray, right: npt.NDArray[np.bool_]) -> FloatArray:
    """Weights [m] of inputs [n, m], whose first column is 1, by Newton's method."""
    count, width = inputs.shape
    penalty = RIDGE * max(count, 1) * np.diag([0.0, *[1.0] * (width - 1)])
    weights = np.zeros(width)
    for _ in range(_STEPS):
        chance = 0.5 + 0.5 * np.tanh(0.5 * inputs @ weights)
        slope = inputs.T @ (chance - right) + penalty @ weights
        curve = (inputs * (chance * (1 - chance))[:, np.newaxis]).T @ inputs + penalty
        # One more note of either kind keeps the bias finite where all are right, or none.
        slope[0] += np.tanh(0.5 * weights[0])
        curve[0, 0] += 0.5 / np.cosh(0.5 * weights[0]) ** 2
        step = np.linalg.solve(curve + 1e-9 * np.eye(width), slope)
        weights -= np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-10:
            break
    return weights
