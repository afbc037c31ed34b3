"""Training losses: token cross-entropy and three auxiliary frame-wise losses.

Contract: every function takes logits or log-probabilities and targets of some padded examples and
returns a sum in nats, so that the parts of a batch add up; `Counts` says what to divide by.
Padding counts for nothing.

* `token_loss`: cross-entropy of the next token, the only loss whose network is exported.
* `roll_loss`: binary cross-entropy of the frame-wise heads (`mt3_training.networks.network.Aids`).
* `next_event_loss`: how well the encoder knows, at each frame, when the next event comes.  That is
  what a shift token says, so the decoder need not search for it.
* `guide_loss`: how far the guided heads' attention is from the event that a token writes, and from
  the one before; untaught heads find neither for long, and the network writes too many notes.

This module imports torch; import it only where training really starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mt3_runtime.notes.vocabulary import EventKind, Vocabulary
from mt3_training.examples.batches import Batch
from mt3_training.examples.tables import KINDS

#: Positive rolls count this much more, by roll: onsets and drum hits are rare (about 1 cell in
#: 1000), sounding notes and instruments are not.
POSITIVE_WEIGHTS = (6.0, 2.0, 6.0, 2.0)

#: Frames by which guided heads look ahead of an event's own frame.  Frame i sees samples from
#: 128 i on for 2048 samples under a window whose middle is 8 frames later, so an onset enters at
#: 16 frames ahead and is strongest, with what follows it, around 5 frames ahead.
GUIDE_LEAD = 5.0

#: Standard deviation of the attention taught to the head that looks at the event, in frames.
GUIDE_WIDTH = 4.0

#: The same of the head that looks at the present, where the encoder says when the next event comes.
PRESENT_WIDTH = 1.5


def kind_table(vocabulary: Vocabulary) -> Tensor:
    """Number of each id's kind in `KINDS`, int64 [V]; one more for ids without meaning."""
    table = np.full(vocabulary.size, len(KINDS), np.int64)
    for number, kind in enumerate(EventKind):
        table[list(vocabulary.id_range(kind))] = number
    table[vocabulary.eos] = KINDS.index("eos")
    return torch.from_numpy(table)


class Counts(NamedTuple):
    """By what the sums of a batch are divided, which makes them means.

    Attributes:
        tokens: Targets that are no padding.
        frames: Frames of all examples.
        rolls: The same, times the number of rolls.
        taught: Targets that write an event.
    """

    tokens: int
    frames: int
    rolls: int
    taught: int

    @classmethod
    def of(cls, batch: Batch) -> Counts:
        """Counts a batch; none is below 1."""
        found = (
            (batch.tokens != 0).sum(),
            math.prod(batch.features.shape[:2]),
            math.prod(batch.rolls.shape[:3]),
            (~np.isnan(batch.frames)).sum(),
        )
        return cls(*(max(int(count), 1) for count in found))


def token_loss(
    logits: Tensor, targets: Tensor, kinds: Tensor, weights: Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the targets.

    Args:
        logits: [n, L, V].
        targets: int64 [n, L]; padding is 0.
        kinds: `kind_table` on the same device.
        weights: Of the kinds of tokens, in the order of `KINDS`; None for ones.

    Returns:
        The weighted sum over all targets, and sums and counts by kind [2, kinds], which are neither
        weighted nor have a gradient.
    """
    each = functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=0, reduction="none"
    )
    kind = kinds[targets.flatten()]
    totals = torch.zeros(2, len(KINDS) + 1, device=logits.device)
    totals[0].index_add_(0, kind, each.detach())
    totals[1].index_add_(0, kind, torch.ones_like(each))
    if weights is not None:
        each = each * torch.tensor([*weights, 1.0], device=each.device)[kind]
    return each.sum(), totals[:, :-1]


def roll_loss(logits: Tensor, rolls: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Binary cross-entropy of the frame-wise heads.

    Args:
        logits: [n, T, rolls, pitches].
        rolls: The same shape, 0 or 1.
        weights: Of the rolls; None for ones.
    """
    positive = torch.tensor(POSITIVE_WEIGHTS, device=logits.device)[:, None]
    own = None if weights is None else torch.tensor(weights, device=logits.device)[:, None]
    return functional.binary_cross_entropy_with_logits(
        logits.float(), rolls.float(), own, pos_weight=positive, reduction="sum"
    )


def next_event_loss(logits: Tensor, frames: Tensor) -> Tensor:
    """Cross-entropy of the distance to the next event, at all frames.

    Args:
        logits: [n, T, `NEXT_EVENT`]; the last class stands for all distances from there on, and
            for no event.
        frames: Frame of the event that each target writes, float32 [n, L]; NaN where there is none.
    """
    n, width, classes = logits.shape
    never = width + classes
    nearest = torch.full((n, width + 1), never, device=logits.device)
    known = ~torch.isnan(frames)
    at = torch.where(known, frames, float(width)).long()  # the last column takes what is unknown
    nearest.scatter_(1, at, torch.where(known, at, never))
    nearest = nearest.flip(1).cummin(dim=1).values.flip(1)[:, 1:]
    distance = nearest - 1 - torch.arange(width, device=logits.device)
    wanted = distance.clamp(max=classes - 1).flatten()
    return functional.cross_entropy(logits.flatten(0, 1).float(), wanted, reduction="sum")


def guide_loss(attention: Tensor, frames: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the guided heads from looking where they are to.

    The first looks at the event that is written, the second at the present: the event before it.

    Args:
        attention: Logarithm of the attention, [n, heads, L, T] of two heads, or of
            the only one.
        frames: Frame of the event that each target writes, float32 [n, L]; NaN where there is none
            (padding, and whatever else is not to be taught).
    """
    taught = ~torch.isnan(frames)
    event = torch.where(taught, frames, 0.0)
    before = functional.pad(event[:, :-1], (1, 0)).cummax(dim=1).values
    last = attention.shape[-1] - 1.0
    place = torch.arange(attention.shape[-1], device=attention.device, dtype=torch.float32)
    total = attention.new_zeros(())
    lessons = ((event, GUIDE_LEAD, GUIDE_WIDTH), (before, 0.0, PRESENT_WIDTH))
    for head, (centre, lead, width) in enumerate(lessons[: attention.shape[1]]):
        away = place - (centre - lead).clamp(0.0, last)[..., None]
        wanted = functional.log_softmax(-0.5 * (away / width).square(), dim=-1)
        divergence = (wanted.exp() * (wanted - attention[:, head])).sum(dim=-1)
        total = total + torch.where(taught, divergence, 0.0).sum()
    return total
