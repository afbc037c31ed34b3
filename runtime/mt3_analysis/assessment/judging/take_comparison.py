"""Puts takes of one piece in order, with the probability that one is better than another.

Contract: takes are compared in the dimensions that could be judged in all of them, by their
indices and intervals.  On pieces that nothing was trained with, the order of takes is what holds;
absolute values do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mt3_analysis.assessment.alignment import LEAST_MATCHED, align
from mt3_analysis.assessment.assessment_results import (
    Assessment,
    Comparison,
    Dimension,
    Head,
    Ranked,
)
from mt3_analysis.assessment.performance import Floats, Performance
from mt3_analysis.assessment.score import make_score
from mt3_runtime.errors import OptionError

_INTERVALS = 2 * 1.2815515655446004  # width of an 80 % interval in standard deviations
_LEAST_DEVIATION = 0.01  # of an index: intervals at an end of a scale have no width


def compare_assessments(assessments: Sequence[Assessment]) -> tuple[Comparison, ...]:
    """The order of takes, for each head that judged something in all of them.

    Raises:
        OptionError: There are fewer than two takes, or nothing was judged in all of them.
    """
    if len(assessments) < 2:
        raise OptionError(f"{len(assessments)} take is nothing to compare; expected 2 or more.")
    found = []
    heads: tuple[Head, ...] = ("execution", "style")
    for head in heads:
        names = [
            each.name
            for each in assessments[0].dimensions
            if each.head == head and all(other[each.name].assessed for other in assessments)
        ]
        if names:
            found.append(_compared(head, names, assessments))
    if not found:
        raise OptionError("No dimension could be judged in all takes; give a score with --score.")
    return tuple(found)


def check_same_piece(performances: Sequence[Performance]) -> None:
    """Checks that takes are of one piece, by their notes alone.

    Raises:
        OptionError: Fewer than 60 % of the notes of one match those of the first one.
    """
    first = performances[0]
    length = first.offset_s - first.onset_s
    score = make_score(2.0 * first.onset_s, 2.0 * length, first.pitch, name=first.name)
    for other in performances[1:]:
        share = align(other, score).share
        if share < LEAST_MATCHED:
            raise OptionError(
                f"{share:.0%} of the notes of {other.name} match {first.name}; expected "
                f"{LEAST_MATCHED:.0%} or more. Are they takes of different pieces?"
            )


def _compared(head: Head, names: Sequence[str], assessments: Sequence[Assessment]) -> Comparison:
    pairs = {name: _pairs([take[name] for take in assessments]) for name in names}
    mean = np.mean([_odds(matrix) for matrix in pairs.values()], axis=0)
    whole = 1.0 / (1.0 + np.exp(-mean))
    others = len(assessments) - 1
    better = (whole.sum(1) - 0.5) / others
    places = 1 + (better[None, :] > better[:, None] + 1e-9).sum(1)
    takes = tuple(
        Ranked(take.name, int(place), float(share), tuple(map(float, row)))
        for take, place, share, row in zip(assessments, places, better, whole, strict=True)
    )
    by_dimension = {
        name: tuple(map(float, (matrix.sum(1) - 0.5) / others)) for name, matrix in pairs.items()
    }
    return Comparison(head, tuple(names), takes, by_dimension)


def _pairs(dimensions: Sequence[Dimension]) -> Floats:
    """Probability that take i is better than take j, float64 [takes, takes]."""
    value = np.array([each.value for each in dimensions], np.float64)
    width = np.array([(each.high or 0.0) - (each.low or 0.0) for each in dimensions])
    deviation = np.maximum(width / _INTERVALS, _LEAST_DEVIATION)
    apart = np.sqrt(deviation[:, None] ** 2 + deviation[None, :] ** 2)
    normal = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2.0)))
    return np.asarray(normal((value[:, None] - value[None, :]) / apart), np.float64)


def _odds(probability: Floats) -> Floats:
    """Logarithm of the odds, of at most 99 to 1: no dimension decides alone."""
    kept = np.clip(probability, 0.01, 0.99)
    return np.asarray(np.log(kept / (1.0 - kept)))
