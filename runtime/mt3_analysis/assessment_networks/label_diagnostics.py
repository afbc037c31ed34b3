"""Diagnostics of labels and predictions: what a correlation is worth before anybody believes it.

Contract: each check is a function of arrays that gives a `Finding`: figures by name, whether it is
flagged, and one sentence.  Arrays are as in `piece_bootstrap`.  Ceiling and rank of labels need no
model and belong before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from mt3_analysis.assessment_networks.piece_bootstrap import (
    Floats,
    correlations,
    group_ids,
    mean_correlation,
    pair,
    table,
    within,
)
from mt3_runtime.errors import OptionError

NEAR_CEILING = 0.98
"""A model that reaches this share of what the condition alone gives predicts the condition ..."""
NOTHING_WITHIN = 0.1
"""... if its correlation within conditions is below this."""
ONE_LABEL = 0.8
"""Mean |r| between labels from which several dimensions are one; expert labels have 0.40."""
COLLAPSED = 0.15
"""Mean |r| of predictions over that of labels from which dimensions were merged."""
MOVED = 0.2
"""A score may move by this share of its deviation when the same notes sound from another piano."""
CONSTANT = 1e-6
"""Relative deviation below which an uncertainty is the same for all inputs."""


@dataclass(frozen=True)
class Finding:
    """What a check says.

    Attributes:
        check: Its name.
        figures: Its numbers, by name.
        flagged: Whether something is wrong.
        said: One sentence.
    """

    check: str
    figures: Mapping[str, float]
    flagged: bool
    said: str


def finding(check: str, figures: Mapping[str, float], *, flagged: bool, said: str) -> Finding:
    """A `Finding` whose figures nobody changes."""
    return Finding(check, MappingProxyType(dict(figures)), flagged, said)


def ceiling_of(labels: npt.ArrayLike, conditions: npt.ArrayLike) -> Floats:
    """Pearson's r [k] that the condition alone reaches: of labels with their condition's mean.

    It is the square root of the share of variance between conditions, less what as many groups
    explain by chance: 1 - (1 - share) (n - 1) / (n - groups).

    Raises:
        OptionError: There are as many conditions as recordings.
    """
    known = table("labels", labels)
    ids = group_ids(conditions, len(known), "conditions")
    count = len(np.unique(ids))
    if count >= len(known):
        raise OptionError("every recording has a condition of its own; expected groups of several.")
    total = ((known - known.mean(axis=0)) ** 2).sum(axis=0)
    rest = (within(known, ids) ** 2).sum(axis=0)
    varied = total > 0
    unexplained = np.where(varied, rest / np.where(varied, total, 1.0), 1.0)
    share = 1.0 - unexplained * (len(known) - 1) / (len(known) - count)
    found: Floats = np.sqrt(np.clip(share, 0.0, 1.0))
    return found


def label_ceiling(
    predictions: npt.ArrayLike, labels: npt.ArrayLike, conditions: npt.ArrayLike
) -> Finding:
    """Whether a model does no more than recognise the condition that the labels were made from.

    Flagged if the mean r reaches `NEAR_CEILING` of the condition's and nothing is predicted within
    conditions.

    Args:
        predictions: [n, k].
        labels: [n, k].
        conditions: What should not be all there is to learn, one a recording: the tier of a
            degradation, a piano, a session.
    """
    said, known = pair(predictions, labels)
    ceiling = float(ceiling_of(known, conditions).mean())
    reached = mean_correlation(said, known)
    inside = mean_correlation(within(said, conditions), within(known, conditions))
    flagged = reached >= NEAR_CEILING * ceiling and inside < NOTHING_WITHIN
    return finding(
        "label ceiling",
        {"ceiling": ceiling, "r": reached, "r_within": inside},
        flagged=flagged,
        said=f"the condition alone reaches r {ceiling:.3f}, the model {reached:.3f}, within "
        f"conditions {inside:.3f}" + (": it predicts the condition" if flagged else ""),
    )


def mean_absolute_r(values: npt.ArrayLike) -> float:
    """Mean |r| between different columns of [n, k]; 0 of one column."""
    found = table("values", values)
    k = found.shape[1]
    if k < 2:
        return 0.0
    rows = [correlations(found, np.repeat(found[:, [i]], k, axis=1)) for i in range(k)]
    matrix = np.abs(np.stack(rows))
    return float((matrix.sum() - np.trace(matrix)) / (k * (k - 1)))


def effective_dimensions(values: npt.ArrayLike) -> float:
    """Participation ratio of the eigenvalues of the correlation matrix of [n, k].

    Square of their sum over the sum of squares: k of unrelated columns, 1 of copies.
    """
    found = table("values", values)
    k = found.shape[1]
    rows = [correlations(found, np.repeat(found[:, [i]], k, axis=1)) for i in range(k)]
    eigenvalues = np.linalg.eigvalsh(np.stack(rows))
    return float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


def label_rank(labels: npt.ArrayLike) -> Finding:
    """Whether several dimensions are one label under several names."""
    known = table("labels", labels)
    related, rank = mean_absolute_r(known), effective_dimensions(known)
    flagged = related > ONE_LABEL
    return finding(
        "label rank",
        {"mean_absolute_r": related, "effective_dimensions": rank},
        flagged=flagged,
        said=f"{known.shape[1]} dimensions are {rank:.2f} effective ones, mean |r| {related:.3f}"
        + (": one label under several names" if flagged else ""),
    )


def collapse(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> Finding:
    """Whether predicted dimensions are more alike than the labels are."""
    said, known = pair(predictions, labels)
    of_model, of_labels = mean_absolute_r(said), mean_absolute_r(known)
    flagged = of_model - of_labels > COLLAPSED
    return finding(
        "collapse",
        {"predictions": of_model, "labels": of_labels, "difference": of_model - of_labels},
        flagged=flagged,
        said=f"mean |r| between dimensions: {of_model:.3f} predicted, {of_labels:.3f} in labels"
        + (": dimensions were merged" if flagged else ""),
    )


def piece_or_playing(
    predictions: npt.ArrayLike, labels: npt.ArrayLike, pieces: npt.ArrayLike
) -> Finding:
    """How much of what is predicted is which piece it is; r within pieces beside r."""
    said, known = pair(predictions, labels)
    total = ((said - said.mean(axis=0)) ** 2).sum()
    inside = (within(said, pieces) ** 2).sum()
    share = 1.0 - float(inside / total) if total > 0 else 0.0
    overall = mean_correlation(said, known)
    playing = mean_correlation(within(said, pieces), within(known, pieces))
    flagged = overall >= NOTHING_WITHIN > playing
    return finding(
        "piece or playing",
        {"share_between_pieces": share, "r": overall, "r_within_pieces": playing},
        flagged=flagged,
        said=f"{share:.0%} of the predicted variance is between pieces; r {overall:.3f}, within "
        f"pieces {playing:.3f}" + (": it knows the piece, not the playing" if flagged else ""),
    )


def rerendering(scores: npt.ArrayLike, rendered_again: npt.ArrayLike) -> Finding:
    """Whether scores move when the same notes sound from another piano, with other noise.

    Args:
        scores: [n, k].
        rendered_again: The same performances, [n, k].
    """
    one, other = pair(scores, rendered_again)
    spread = one.std(axis=0)
    varied = spread > 0
    moved = np.abs(other - one).mean(axis=0)
    share = float(np.where(varied, moved / np.where(varied, spread, 1.0), 0.0).mean())
    flagged = share >= MOVED
    return finding(
        "re-rendering",
        {"moved": share},
        flagged=flagged,
        said=f"scores move by {share:.2f} of their deviation with another piano"
        + (": they judge the sound of the recording" if flagged else ""),
    )


def constant_confidence(uncertainties: npt.ArrayLike) -> Finding:
    """Whether a predicted uncertainty depends on the input at all.

    Args:
        uncertainties: Variances or their logarithms, [n, k].
    """
    found = table("uncertainties", uncertainties)
    spread = float(found.std(axis=0).mean())
    flagged = spread <= CONSTANT * max(1.0, float(np.abs(found).max()))
    return finding(
        "constant confidence",
        {"deviation": spread},
        flagged=flagged,
        said=f"the predicted uncertainty varies by {spread:.3g} between recordings"
        + (": it is a constant, no confidence" if flagged else ""),
    )
