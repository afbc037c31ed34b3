"""Losses of assessing networks, as published, each on scores and labels from 0 to 100.

Contract: plain functions of tensors.  Where the published code loses a part on the way (its
uncertainty weights and label weights never reach the gradient once the bootstrap is on), the part
is applied here: `regression` weighs each residual before anything is averaged.

This module imports torch; import it only where training really starts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from mt3_training.assessing.assessor_config import LossWeights
from mt3_training.assessing.assessor_modules import Inside

BINS, SIGMA, LEAST, MOST = 100, 2.0, 0.1, 10.0
"""Label distribution smoothing: bins over 0 to 100, kernel width in bins, bounds of the weights."""


def regression(
    scores: Tensor, labels: Tensor, log_variance: Tensor, weights: LossWeights, rare: Tensor
) -> Tensor:
    """Huber loss; rare labels weigh more, dimensions by their learned variance.

    Args:
        scores: [rows, k].
        labels: [rows, k].
        log_variance: [k]; L / (2 sigma^2) + log sigma, where it is wanted.
        weights: Which parts.
        rare: Weights of the labels [rows, k].
    """
    beta = weights.bootstrap
    target = labels if beta == 1.0 else beta * labels + (1.0 - beta) * scores.detach()
    each = functional.huber_loss(scores, target, reduction="none", delta=weights.huber_delta)
    if weights.smoothing:
        each = each * rare
    if weights.uncertainty:
        each = 0.5 * each * torch.exp(-log_variance) + 0.5 * log_variance
    return each.mean()


def ranking(scores: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Hinge on pairs of a batch: who has the better label is to be ahead by a margin."""
    better = labels[:, None] > labels[None]
    ahead = scores[:, None] - scores[None]
    losses = functional.relu(margin - ahead)[better]
    return losses.mean() if losses.numel() else scores.sum() * 0.0


def contrastive(audio: Tensor, midi: Tensor, temperature: float) -> Tensor:
    """InfoNCE both ways between embeddings [rows, W] of length one."""
    cosines = audio @ midi.T / temperature
    own = torch.arange(len(cosines), device=cosines.device)
    both = functional.cross_entropy(cosines, own) + functional.cross_entropy(cosines.T, own)
    return 0.5 * both


def ordinal(logits: Tensor, labels: Tensor) -> Tensor:
    """CORAL on the mean of the dimensions: is it above threshold c?"""
    classes = logits.shape[1] + 1
    edges = torch.arange(1, classes, device=labels.device) * (100.0 / classes)
    above = (labels.mean(1, keepdim=True) > edges).to(logits.dtype)
    return functional.binary_cross_entropy_with_logits(logits, above)


def total(
    inside: Inside, scores: Tensor, labels: Tensor, weights: LossWeights, rare: Tensor
) -> dict[str, Tensor]:
    """All parts by name, and their weighted sum as ``loss``.

    Args:
        inside: What the network made.
        scores: [rows, k]; those of mixed rows in place of `inside`'s, perhaps.
        labels: [rows, k], mixed alike.
        weights: Of the parts.
        rare: As in `regression`.
    """
    found = {"regression": regression(scores, labels, inside.log_variance, weights, rare)}
    if weights.ranking:
        found["ranking"] = weights.ranking * ranking(scores, labels, weights.ranking_margin)
    if weights.contrastive and len(inside.embeddings) == 2:
        found["contrastive"] = weights.contrastive * contrastive(
            inside.embeddings["audio"], inside.embeddings["midi"], weights.temperature
        )
    if weights.ordinal and inside.ordinal is not None:
        found["ordinal"] = weights.ordinal * ordinal(inside.ordinal, labels)
    return found | {"loss": torch.stack(list(found.values())).sum()}


def rarity(labels: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Weights [bins, k] of labels by how rare their neighbourhood is; mean 1 over the labels.

    Args:
        labels: [n, k] of the recordings that are taught.
    """
    columns = []
    for column in labels.T:
        counts = np.bincount(label_bins(column), minlength=BINS).astype(np.float64)
        reach = np.arange(-int(4 * SIGMA), int(4 * SIGMA) + 1)
        kernel = np.exp(-0.5 * (reach / SIGMA) ** 2)
        dense = np.convolve(counts, kernel / kernel.sum(), mode="same")
        inverse = 1.0 / np.maximum(dense, 1e-6)
        scale = len(column) / float((inverse[label_bins(column)]).sum())
        columns.append(np.clip(inverse * scale, LEAST, MOST))
    return np.stack(columns, axis=1).astype(np.float32)


def label_bins(labels: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """The bin of each label."""
    found: npt.NDArray[np.int64] = np.clip(labels * (BINS / 100.0), 0, BINS - 1).astype(np.int64)
    return found
