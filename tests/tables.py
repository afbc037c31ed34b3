"""Tables of log-probabilities in a real vocabulary, for the scripted backend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mt3_runtime.bundles.bundle import DecodingSpec
from mt3_runtime.notes.vocabulary import EventKind, Vocabulary
from tests.scripted import Table

SPEC = DecodingSpec(start_id=0, eos_id=1, max_tokens=40, beam_alpha=0.6)


def random_tables(
    seed: int, vocabulary: Vocabulary, count: int = 6, *, kinds: float = 2.0
) -> list[Table]:
    """Segments in which every kind of event is about as likely, whatever came before.

    Args:
        seed: Of the random numbers.
        vocabulary: What the tokens are.
        count: Number of segments.
        kinds: How much more likely tokens are that mean something.
    """
    random = np.random.default_rng(seed)
    tables = []
    for _ in range(count):
        logits = random.normal(0, 1, (SPEC.max_tokens, 1, vocabulary.size))
        for kind in EventKind:
            ids = vocabulary.id_range(kind)
            if ids:  # fewer ids, more for each: the best of n normal values grows with n
                logits[..., ids] += random.normal(kinds, 1, (SPEC.max_tokens, 1, 1))
                logits[..., ids] -= np.sqrt(2 * np.log(len(ids) + 1))
        logits[..., 1] += random.choice([-9, 0, 2])
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        every = (SPEC.max_tokens, vocabulary.size, vocabulary.size)
        tables.append(np.broadcast_to(logits.astype(np.float32), every))
    return tables


def saying(vocabulary: Vocabulary, wanted: Sequence[Sequence[int]]) -> list[Table]:
    """Segments that say these tokens, whatever was said before."""
    longest = max(map(len, wanted))
    tables = []
    for tokens in wanted:
        table = np.full((longest, 1, vocabulary.size), -9.0, np.float32)
        table[np.arange(len(tokens)), 0, tokens] = -0.1
        tables.append(np.broadcast_to(table, (longest, vocabulary.size, vocabulary.size)))
    return tables


def wishing(vocabulary: Vocabulary, *wishes: dict[int, float]) -> Table:
    """A segment that wishes for tokens step by step, with weights, and for its end afterwards."""
    table = np.full((SPEC.max_tokens, 1, vocabulary.size), -20.0, np.float32)
    table[:, :, 1] = -5.0
    for step, wish in enumerate(wishes):
        for token, weight in wish.items():
            table[step, :, token] = weight
    return np.broadcast_to(table, (SPEC.max_tokens, vocabulary.size, vocabulary.size))
