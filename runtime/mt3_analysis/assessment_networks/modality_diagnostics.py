"""Diagnostics of fusion: gates, alignment of both modalities, attention, what each is worth.

Contract: as in `mt3_analysis.assessment_networks.label_diagnostics`: functions of arrays, each with
figures, a verdict and a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mt3_analysis.assessment_networks.label_diagnostics import Finding, finding
from mt3_analysis.assessment_networks.piece_bootstrap import (
    Floats,
    Interval,
    bootstrap,
    group_ids,
    mean_correlation,
    pair,
    table,
)
from mt3_runtime.errors import OptionError

NEUTRAL = 0.04
"""Gates this near to one half, everywhere, choose nothing."""
OPEN, SHUT = 0.9, 0.1
STUDY_GAIN = 0.10
"""The study's rule: fusion is worth it from 10 % over the better single modality."""
UNIFORM = 0.98
"""Entropy of attention, as a share of the largest, from which it looks at nothing in particular."""


def gate_summary(gates: npt.ArrayLike) -> Finding:
    """Mean, deviation over notes, and how many are all but open or shut.

    Args:
        gates: Share of the audio, [..., notes, channels], each from 0 to 1.
    """
    found = np.asarray(gates, np.float64)
    if found.ndim < 2 or not found.size or not np.isfinite(found).all():
        raise OptionError("gates must be an array [..., notes, channels] of finite numbers.")
    if found.min() < 0.0 or found.max() > 1.0:
        raise OptionError("gates must lie between 0 and 1.")
    notes = found.mean(axis=-1)
    figures = {
        "mean": float(found.mean()),
        "sd_over_notes": float(notes.std()),
        "share_shut": float((found < SHUT).mean()),
        "share_open": float((found > OPEN).mean()),
    }
    flagged = abs(figures["mean"] - 0.5) <= NEUTRAL and float(found.std()) <= NEUTRAL
    return finding(
        "gate",
        figures,
        flagged=flagged,
        said=f"the gate gives audio {figures['mean']:.3f} on average, deviation over notes "
        f"{figures['sd_over_notes']:.3f}, {figures['share_shut']:.0%} shut, "
        f"{figures['share_open']:.0%} open" + (": it has learned nothing" if flagged else ""),
    )


def modality_alignment(audio: npt.ArrayLike, midi: npt.ArrayLike) -> Finding:
    """Mean cosine of a recording's two embeddings, less that of embeddings of two recordings.

    Args:
        audio: [n, W].
        midi: [n, W], of the same recordings.
    """
    heard, read = pair(audio, midi)
    lengths = [np.linalg.norm(x, axis=1, keepdims=True) for x in (heard, read)]
    unit = [
        x / np.where(size > 0, size, 1.0) for x, size in zip((heard, read), lengths, strict=True)
    ]
    cosines = unit[0] @ unit[1].T
    n = len(cosines)
    matched = float(np.trace(cosines) / n)
    mismatched = float((cosines.sum() - np.trace(cosines)) / (n * (n - 1)))
    best = float((cosines.argmax(axis=1) == np.arange(n)).mean())
    flagged = matched - mismatched <= 0.0
    return finding(
        "modality alignment",
        {
            "matched": matched,
            "mismatched": mismatched,
            "difference": matched - mismatched,
            "found_first": best,
        },
        flagged=flagged,
        said=f"cosine {matched:.3f} of a recording's own embeddings, {mismatched:.3f} of others"
        + (": the modalities do not know each other" if flagged else ""),
    )


def attention_summary(weights: npt.ArrayLike, modality_of_key: Sequence[str]) -> Finding:
    """Entropy of attention, as a share of the largest possible, and its mass by modality.

    Args:
        weights: [queries, keys], rows of sum one.
        modality_of_key: Names, one a key.
    """
    found = _weights(weights)
    if len(modality_of_key) != found.shape[1]:
        raise OptionError(f"{found.shape[1]} keys have {len(modality_of_key)} modalities.")
    logs = np.log(np.where(found > 0, found, 1.0))
    most = np.log(found.shape[1]) if found.shape[1] > 1 else 1.0
    entropy = float(-(found * logs).sum(axis=1).mean() / most)
    names = np.asarray(modality_of_key)
    mass = {
        f"mass_{name}": float(found[:, names == name].sum() / len(found))
        for name in dict.fromkeys(modality_of_key)
    }
    flagged = entropy >= UNIFORM and found.shape[1] > 1
    shares = ", ".join(f"{name[5:]} {share:.0%}" for name, share in mass.items())
    return finding(
        "attention",
        {"entropy": entropy, **mass},
        flagged=flagged,
        said=f"attention has {entropy:.2f} of the largest entropy; {shares}"
        + (": it looks at nothing in particular" if flagged else ""),
    )


def attention_in_time(
    weights: npt.ArrayLike, queries: npt.ArrayLike, keys: npt.ArrayLike, *, window: float = 0.3
) -> float:
    """Share of attention that falls within a window of the query's own time.

    Args:
        weights: [queries, keys], rows of sum one.
        queries: Times [s].
        keys: Times [s].
        window: [s] to both sides.
    """
    found = _weights(weights)
    asked, there = np.asarray(queries, np.float64), np.asarray(keys, np.float64)
    if asked.shape != found.shape[:1] or there.shape != found.shape[1:]:
        raise OptionError("queries and keys must have a time each.")
    near = np.abs(asked[:, np.newaxis] - there) <= window
    return float((found * near).sum() / len(found))


def _weights(weights: npt.ArrayLike) -> Floats:
    found = np.asarray(weights, np.float64)
    if found.ndim != 2 or not found.size or not np.isfinite(found).all() or found.min() < 0:
        raise OptionError("attention must be an array [queries, keys] of shares.")
    if np.abs(found.sum(axis=1) - 1.0).max() > 1e-3:
        raise OptionError("rows of attention must have the sum 1.")
    return found


def shuffled(groups: npt.ArrayLike, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Row numbers in another order, in which every recording has what another piece's has.

    Args:
        groups: The piece of each recording.
        seed: Of the draw.

    Raises:
        OptionError: One piece has more than half of the recordings.
    """
    rows = len(np.asarray(groups))
    ids = group_ids(groups, rows)
    counts = np.bincount(ids)
    if counts.max() * 2 > rows:
        raise OptionError("one piece has more than half of the recordings; nothing to swap with.")
    chance = np.random.default_rng(seed)
    order = np.concatenate(
        [
            chance.permutation(np.flatnonzero(ids == piece))
            for piece in np.argsort(-counts, kind="stable")
        ]
    )
    # Pieces lie side by side: a turn by the largest one takes every row into another piece.
    found = np.empty(rows, np.int64)
    found[order] = np.roll(order, int(counts.max()))
    return found


def modality_worth(
    predictions: npt.ArrayLike,
    without: Mapping[str, npt.ArrayLike],
    labels: npt.ArrayLike,
    pieces: npt.ArrayLike,
    *,
    resamples: int = 1000,
) -> dict[str, Finding]:
    """Loss of r when one modality is taken from another piece, by modality.

    Args:
        predictions: Of the model [n, k].
        without: Modality -> predictions with that one `shuffled`.
        labels: [n, k].
        pieces: Whose each recording is.
        resamples: Draws of the interval.
    """
    said, known = pair(predictions, labels)
    found = {}
    for name, values in without.items():
        other = pair(values, known)[0]
        loss = difference(said, other, known, pieces, resamples=resamples)
        flagged = loss.low <= 0.0
        found[name] = finding(
            f"worth of {name}",
            {"loss": loss.value, "low": loss.low, "high": loss.high},
            flagged=flagged,
            said=f"without its own {name} r falls by {loss}"
            + (": it is not used" if flagged else ""),
        )
    return found


def difference(
    one: npt.ArrayLike,
    other: npt.ArrayLike,
    labels: npt.ArrayLike,
    pieces: npt.ArrayLike,
    *,
    resamples: int = 1000,
) -> Interval:
    """Mean r of one model less that of another, with the paired interval over pieces."""
    first, known = pair(one, labels)
    second = pair(other, known)[0]

    def figure(rows: npt.NDArray[np.int64]) -> float:
        return mean_correlation(first[rows], known[rows]) - mean_correlation(
            second[rows], known[rows]
        )

    return bootstrap(figure, pieces, len(known), resamples=resamples)


def fusion_gain(
    fused: npt.ArrayLike,
    single: Mapping[str, npt.ArrayLike],
    labels: npt.ArrayLike,
    pieces: npt.ArrayLike,
    *,
    resamples: int = 1000,
) -> Finding:
    """Gain of fusion over the better single modality: the study's rule, and whether it is certain.

    Flagged where the lower end of the interval is not above 0.

    Args:
        fused: Predictions [n, k].
        single: Predictions of each modality alone.
        labels: [n, k].
        pieces: Whose each recording is.
        resamples: Draws of the interval.
    """
    if not single:
        raise OptionError("a gain needs a modality to compare with.")
    known = table("labels", labels)
    reached = {name: mean_correlation(values, known) for name, values in single.items()}
    best = max(reached, key=lambda name: reached[name])
    gain = difference(fused, single[best], known, pieces, resamples=resamples)
    share = gain.value / reached[best] if reached[best] > 0 else float("inf")
    flagged = gain.low <= 0.0
    rule = "passes" if share >= STUDY_GAIN else "fails"
    return finding(
        "fusion gain",
        {
            "gain": gain.value,
            "low": gain.low,
            "high": gain.high,
            "share": share,
            "passes_study_rule": float(share >= STUDY_GAIN),
        },
        flagged=flagged,
        said=f"fusion gains r {gain} over {best} alone, {share:+.1%}: it {rule} the study's rule "
        f"of {STUDY_GAIN:.0%}" + (", and the gain is not certain" if flagged else ""),
    )
