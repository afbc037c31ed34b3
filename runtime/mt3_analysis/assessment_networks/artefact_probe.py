"""Artefact probe: how much of a label six numbers about the recording give away.

Contract: `nuisances` measures what no judgement of playing should need; `artefact_probe` fits a
ridge regression on such numbers, piece by piece left out, and is flagged where it reaches half of
what the model does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mt3_analysis.assessment_networks.label_diagnostics import Finding, finding
from mt3_analysis.assessment_networks.piece_bootstrap import (
    Floats,
    correlations,
    group_ids,
    mean_correlation,
    pair,
    table,
)
from mt3_runtime.errors import OptionError

NUISANCES = ("noise_floor", "bandwidth", "level", "length", "note_rate", "file_rate")
"""[dB under the signal], [Hz], [dB of full scale], [s], [notes a second], [Hz]."""
TOO_MUCH = 0.5
"""Share of the model's r from which the probe is flagged."""
WEAKEST = 0.2
"""A probe that reaches less says nothing, whatever the model does."""
PENALTY = 1.0
"""Of the ridge, for standardised numbers: as strong as one recording."""
FOLDS = 5

_FRAME = 1024
_BAND = (3500.0, 5500.0)
"""[Hz] where a piano is quiet between its notes, and noise is not."""
_SILENCE = 1e-10
_BANDWIDTH_SHARE = 0.99
_BLOCK = 4096
"""Frames that are transformed at once: 16 MiB of spectra."""


def nuisances(
    samples: npt.ArrayLike, rate: float, *, notes: int = 0, file_rate: float | None = None
) -> Floats:
    """The numbers called `NUISANCES` of a recording, [6].

    Args:
        samples: Mono [n].
        rate: Of the samples [Hz].
        notes: How many are played.
        file_rate: Of the file, if it was resampled [Hz].

    Raises:
        OptionError: They are no samples, or fewer than a frame of 1,024.
    """
    found = np.asarray(samples, np.float64)
    if found.ndim != 1 or len(found) < _FRAME or not np.isfinite(found).all() or rate <= 0:
        raise OptionError(f"samples must be one row of {_FRAME} finite numbers or more.")
    frames = np.lib.stride_tricks.sliding_window_view(found, _FRAME)[:: _FRAME // 2]
    window = np.hanning(_FRAME)
    frequencies = np.fft.rfftfreq(_FRAME, 1.0 / rate)
    inside = (frequencies >= _BAND[0]) & (frequencies <= _BAND[1])
    total, quiet = np.zeros(len(frequencies)), []
    for start in range(0, len(frames), _BLOCK):
        power = np.abs(np.fft.rfft(frames[start : start + _BLOCK] * window, axis=1)) ** 2
        total += power.sum(axis=0)
        quiet.append(power[:, inside].mean(axis=1) if inside.any() else power.mean(axis=1))
    mean = total / len(frames)
    floor = float(np.quantile(np.concatenate(quiet), 0.1))
    grown = np.cumsum(mean)
    edge = int(np.searchsorted(grown, _BANDWIDTH_SHARE * grown[-1]))
    seconds = len(found) / rate
    return np.array(
        [
            _decibels(floor) - _decibels(float(mean.mean())),
            frequencies[min(edge, len(frequencies) - 1)],
            _decibels(float((found**2).mean())),
            seconds,
            notes / seconds,
            rate if file_rate is None else file_rate,
        ]
    )


def _decibels(power: float) -> float:
    return float(10.0 * np.log10(max(power, _SILENCE)))


def ridge_predictions(
    features: npt.ArrayLike, labels: npt.ArrayLike, pieces: npt.ArrayLike, *, folds: int = FOLDS
) -> Floats:
    """Predictions [n, k] of a ridge regression that never saw the piece it predicts.

    Args:
        features: [n, f]; standardised by those of the training pieces.
        labels: [n, k].
        pieces: Whose each recording is; pieces go to folds in the order of their names.
        folds: How many.

    Raises:
        OptionError: There are fewer than two pieces.
    """
    known = table("labels", labels)
    given = table("features", features, len(known))
    ids = group_ids(pieces, len(known))
    count = int(ids.max()) + 1
    if count < 2:
        raise OptionError("a probe needs recordings of two pieces or more.")
    found = np.zeros_like(known)
    for fold in range(min(folds, count)):
        test = ids % min(folds, count) == fold
        found[test] = _fit(given[~test], known[~test])(given[test])
    return found


def _fit(features: Floats, labels: Floats) -> Callable[[Floats], Floats]:
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    scaled, level = (features - mean) / spread, labels.mean(axis=0)
    inner = scaled.T @ scaled + PENALTY * np.eye(scaled.shape[1])
    weights = np.linalg.solve(inner, scaled.T @ (labels - level))
    return lambda rows: np.asarray((rows - mean) / spread @ weights + level)


def artefact_probe(
    features: npt.ArrayLike,
    predictions: npt.ArrayLike,
    labels: npt.ArrayLike,
    pieces: npt.ArrayLike,
) -> Finding:
    """Whether numbers about the recording predict labels half as well as a model does.

    Args:
        features: [n, f], such as `nuisances`.
        predictions: Of the model [n, k].
        labels: [n, k].
        pieces: Whose each recording is.
    """
    said, known = pair(predictions, labels)
    probed = ridge_predictions(features, known, pieces)
    reached, model = float(correlations(probed, known).mean()), mean_correlation(said, known)
    flagged = reached > max(TOO_MUCH * model, WEAKEST)
    return finding(
        "artefact probe",
        {"probe": reached, "model": model},
        flagged=flagged,
        said=f"numbers about the recording reach r {reached:.3f}, the model {model:.3f}"
        + (": labels can be read off the recording" if flagged else ""),
    )
