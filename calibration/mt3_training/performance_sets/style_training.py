"""Trains the style head: a small network on measures, judged on excerpts and movements not seen.

Contract: NumPy alone, a minute or two.  Settings were chosen inside training parts, never by the
part that is judged.  Intervals are quantiles of residuals on movements that were not trained
with, because that is what a user's own piece is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from mt3_analysis.assessment.judging.style_bundle import (
    KNOTS,
    WEIGHTS,
    Layers,
    StyleDimension,
    StyleManifest,
    StyleNetwork,
    normal_scores,
    packed,
)
from mt3_analysis.assessment.measures.all_measures import MEASURES
from mt3_analysis.assessment.performance import Floats
from mt3_runtime.bundles.verified_graphs import MANIFEST
from mt3_runtime.errors import OutputError
from mt3_runtime.filesystem.atomic import make_folder, write_atomic
from mt3_training.performance_sets.percepiano import (
    DIMENSIONS,
    RatedSet,
    excerpt_folds,
    movement_folds,
)

HIDDEN, MEMBERS, EPOCHS, BATCH = 96, 4, 240, 200
DECAY = 20.0
"""Weight of the squares of the weights, over a batch.  Epochs and this were chosen among (60, 5),
(120, 5), (120, 20), (240, 5) and (240, 20) by excerpts within the training part of each published
fold."""

RATE = 1e-3
_TENTHS = (0.1, 0.9)
_FARTHEST = 0.995


@dataclass(frozen=True)
class StyleScores:
    """How good predictions are on recordings that were not trained with.

    Attributes:
        r2: Share of the variance explained, mean over columns.
        r: Correlation, mean over columns.
        pairs: Share of pairs of takes of one excerpt in the right order, mean over columns.
        by_column: r and pairs of each column.
    """

    r2: float
    r: float
    pairs: float
    by_column: tuple[tuple[float, float], ...]


def chosen_measures(*, with_score: bool) -> list[str]:
    """Measures that the network takes: all, or those that need no score."""
    return [n for n, measure in MEASURES.items() if with_score or "score" not in measure.needs]


def fit(values: Floats, labels: Floats, *, members: int = MEMBERS, seed: int = 0) -> Layers:
    """Trains networks of one hidden layer.

    Args:
        values: Measures, [n, inputs], NaN where not measured.
        labels: [n, dimensions].
        members: Networks that are averaged.
        seed: Of weights and order.
    """
    shares = (np.arange(KNOTS) + 0.5) / KNOTS
    with np.errstate(all="ignore"):
        filled = np.where(np.isnan(values).all(0), 0.0, values)
        knots = np.nanquantile(filled, shares, axis=0).T.astype(np.float32).astype(np.float64)
    inputs = normal_scores(values, knots)
    return Layers(knots, tuple(_member(inputs, labels, seed + index) for index in range(members)))


def predict(layers: Layers, values: Floats) -> Floats:
    """Predictions, float64 [n, dimensions]."""
    return layers.forward(normal_scores(values, layers.knots))


def held_out(
    values: Floats, labels: Floats, parts: Sequence[int], *, members: int = MEMBERS
) -> Floats:
    """Predictions of each part by networks trained on the others; NaN for parts below 0."""
    part = np.asarray(parts)
    found = np.full(labels.shape, np.nan)
    for index in sorted(set(part.tolist()) - {-1}):
        out = part == index
        layers = fit(values[~out & (part >= 0)], labels[~out & (part >= 0)], members=members)
        found[out] = predict(layers, values[out])
    return found


def scores(labels: Floats, predicted: Floats, excerpts: Sequence[str]) -> StyleScores:
    """Judges predictions; rows without one are passed over."""
    there = np.isfinite(predicted).all(1)
    y, p = labels[there], predicted[there]
    excerpt = np.asarray(excerpts)[there]
    spread = np.maximum(((y - y.mean(0)) ** 2).sum(0), 1e-9)
    r2 = 1.0 - ((y - p) ** 2).sum(0) / spread
    r = [_correlation(a, b) for a, b in zip(y.T, p.T, strict=True)]
    order = [_pairs(a, b, excerpt) for a, b in zip(y.T, p.T, strict=True)]
    columns = tuple(zip(r, order, strict=True))
    return StyleScores(float(r2.mean()), float(np.mean(r)), float(np.mean(order)), columns)


def coverage(labels: Floats, predicted: Floats, parts: Sequence[int]) -> float:
    """Share of labels of a part within the intervals that the residuals of the other parts give."""
    part = np.asarray(parts)
    inside = []
    for index in sorted(set(part.tolist())):
        rest = labels[part != index] - predicted[part != index]
        low, high = np.quantile(rest, _TENTHS, axis=0)
        off = labels[part == index] - predicted[part == index]
        inside.append(((off >= low) & (off <= high)).ravel())
    return float(np.concatenate(inside).mean())


def train_style(
    rated: RatedSet, out: Path, *, told: Callable[[str], None] = lambda _: None
) -> StyleManifest:
    """Trains on everything, judges on what is left out, writes the bundle.

    Args:
        rated: Measures and labels.
        out: Folder to make, which must not hold anything.
        told: Is told the figures.

    Raises:
        OutputError: The folder holds something, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is there already; name a new folder.")
    labels, excerpts = rated.dimensions(), [name.excerpt for name in rated.parsed]
    people = rated.people()
    networks, numbers = [], []
    for with_score in (False, True):
        names = chosen_measures(with_score=with_score)
        values = _columns(rated, names)
        layers = fit(values, labels)
        distance = np.sqrt((normal_scores(values, layers.knots) ** 2).mean(1))
        farthest = float(np.quantile(distance, _FARTHEST))
        networks.append(StyleNetwork(with_score, tuple(names), HIDDEN, MEMBERS, farthest))
        numbers.append(packed(layers))
    values = _columns(rated, chosen_measures(with_score=True))
    seen = scores(labels, held_out(values, labels, excerpt_folds(rated.parsed)), excerpts)
    told(f"unseen excerpts: R2 {seen.r2:.3f}, r {seen.r:.2f}, pairs {seen.pairs:.3f}")
    parts = np.asarray(movement_folds(rated.parsed))[people]
    new = held_out(values[people], labels[people], parts.tolist())
    far = scores(labels[people], new, list(np.asarray(excerpts)[people]))
    told(
        f"unseen movements, people only: R2 {far.r2:.3f}, r {far.r:.2f}, pairs {far.pairs:.3f}, "
        f"80 % intervals hold {coverage(labels[people], new, parts.tolist()):.1%}"
    )
    ends = np.quantile(labels[people] - new, _TENTHS, axis=0).T
    dimensions = tuple(
        StyleDimension(name, float(low), float(high), float(r), float(order))
        for name, (low, high), (r, order) in zip(DIMENSIONS, ends, seen.by_column, strict=True)
    )
    return _written(rated, out, dimensions, tuple(networks), np.concatenate(numbers))


def _written(
    rated: RatedSet,
    out: Path,
    dimensions: tuple[StyleDimension, ...],
    networks: tuple[StyleNetwork, ...],
    numbers: Floats,
) -> StyleManifest:
    from mt3_runtime import __version__  # noqa: PLC0415  read from the installed metadata

    data = numbers.astype("<f4").tobytes()
    digest = hashlib.sha256(data).hexdigest()
    manifest = StyleManifest(
        kind="assessor",
        family="measures",
        export_id=digest[:16],
        name=out.name,
        licence="of a user's copy of PercePiano: MIT; origin of its performances not stated",
        source={"name": "PercePiano", "digest": rated.digest, "recordings": str(len(rated.names))},
        exporter=f"mt3-runtime {__version__}",
        dimensions=dimensions,
        networks=networks,
        sha256=digest,
        size=len(data),
    )
    make_folder(out)
    write_atomic(out / WEIGHTS, data)
    write_atomic(out / MANIFEST, manifest.to_json())
    return manifest


def all_scales(rated: RatedSet, parts: Sequence[int]) -> StyleScores:
    """Judges networks on all 19 scales, with given parts."""
    values = _columns(rated, chosen_measures(with_score=True))
    found = held_out(values, rated.labels, parts)
    return scores(rated.labels, found, [name.excerpt for name in rated.parsed])


def report(rated: RatedSet, published: Sequence[int] | None) -> str:
    """Figures of all 19 scales as JSON: own parts by excerpt, and published ones if given."""
    found = {"excerpts": excerpt_folds(rated.parsed)}
    if published is not None:
        found["published"] = list(published)
    figures = {name: vars(all_scales(rated, parts)) for name, parts in found.items()}
    return json.dumps({"recordings": len(rated.names), **figures}, indent=1)


def _columns(rated: RatedSet, names: Sequence[str]) -> Floats:
    order = list(MEASURES)
    return rated.values[:, [order.index(name) for name in names]]


def _pairs(labels: Floats, predicted: Floats, excerpts: np.ndarray) -> float:
    right = total = 0
    for excerpt in np.unique(excerpts):
        rows = np.flatnonzero(excerpts == excerpt)
        for a, b in combinations(rows.tolist(), 2):
            if labels[a] != labels[b]:
                total += 1
                right += (labels[a] > labels[b]) == (predicted[a] > predicted[b])
    return right / total if total else 0.5


def _correlation(labels: Floats, predicted: Floats) -> float:
    """Of two columns; 0 where one of them says nothing."""
    if min(np.ptp(labels), np.ptp(predicted)) < 1e-9:
        return 0.0
    return float(np.corrcoef(labels, predicted)[0, 1])


def _member(inputs: Floats, labels: Floats, seed: int) -> tuple[Floats, Floats, Floats, Floats]:
    """One network: Adam on squares, with a strong decay of the weights."""
    rng = np.random.default_rng(seed)
    rows, width, outputs = len(inputs), inputs.shape[1], labels.shape[1]
    sizes = ((width, HIDDEN), (HIDDEN,), (HIDDEN, outputs), (outputs,))
    bound = [
        np.sqrt(6.0 / (a + b)) for a, b in ((width, HIDDEN), (HIDDEN, outputs)) for _ in (0, 1)
    ]
    weights = [rng.uniform(-b, b, size) for b, size in zip(bound, sizes, strict=True)]
    middle = labels.mean(0)
    spread = labels.std(0) + 1e-9
    target = (labels - middle) / spread
    first, second = [np.zeros(s) for s in sizes], [np.zeros(s) for s in sizes]
    step = 0
    for _ in range(EPOCHS):
        order = rng.permutation(rows)
        for start in range(0, rows, BATCH):
            batch = order[start : start + BATCH]
            step += 1
            for index, slope in enumerate(_slopes(weights, inputs[batch], target[batch])):
                first[index] += 0.1 * (slope - first[index])
                second[index] += 0.001 * (slope**2 - second[index])
                size = np.sqrt(second[index] / (1 - 0.999**step)) + 1e-8
                weights[index] = weights[index] - RATE * first[index] / (1 - 0.9**step) / size
    one, bias, two, last = weights
    return one, bias, two * spread, last * spread + middle


def _slopes(weights: Sequence[Floats], inputs: Floats, target: Floats) -> list[Floats]:
    one, bias, two, last = weights
    hidden = np.maximum(inputs @ one + bias, 0.0)
    off = (hidden @ two + last - target) / len(inputs)
    back = (off @ two.T) * (hidden > 0)
    decay = DECAY / len(inputs)
    return [inputs.T @ back + decay * one, back.sum(0), hidden.T @ off + decay * two, off.sum(0)]
