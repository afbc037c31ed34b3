"""Greedy and T5X search against plain restatements of their definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mt3_runtime.bundles.bundle import DecodingSpec
from mt3_runtime.decoding.search import Greedy, T5XBeam, search_for
from mt3_runtime.decoding.types import Sequence
from mt3_runtime.errors import OptionError
from tests.scripted import ScriptedBackend, decode_table

SPEC = DecodingSpec(start_id=0, eos_id=1, max_tokens=24, beam_alpha=0.6)
ALLOWED_VALUES = 7


def _table(seed: int, eos_bias: float) -> np.ndarray:
    """Log-probabilities [step, previous token, token] of one segment."""
    logits = np.random.default_rng(seed).normal(0, 2, (SPEC.max_tokens, 7, ALLOWED_VALUES))
    logits[..., 1] += eos_bias
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits.astype(np.float32)


def _greedy(table: np.ndarray) -> list[int]:
    token, out = 0, []
    for step in range(SPEC.max_tokens):
        token = int(table[step, token].argmax())
        out.append(token)
        if token == SPEC.eos_id:
            break
    return out


def _t5x_group(tables: list[np.ndarray]) -> list[list[int]]:
    """T5X's loop with its stop test over the whole group, row by row and in plain Python."""

    def penalty(length: int) -> np.float32:
        return np.float32(((5 + np.float32(length)) / np.float32(6)) ** np.float32(0.6))

    rows = [([0], np.float32(0), [], np.float32(-1e7)) for _ in tables]
    for step in range(SPEC.max_tokens):
        limit = penalty(SPEC.max_tokens + 1)
        if all(score > live / limit for _, live, _, score in rows):
            break
        for index, (sequence, live, *best_end) in enumerate(rows):
            finished, score = best_end
            log_probs = tables[index][step, sequence[-1]] + live
            best = np.argsort(-log_probs, kind="stable")[:2]
            if SPEC.eos_id in best:
                candidate = log_probs[SPEC.eos_id] / penalty(step + 1)
                if candidate > score:
                    finished, score = [*sequence[1:], SPEC.eos_id], candidate
            token = int(next(i for i in best if i != SPEC.eos_id))
            rows[index] = ([*sequence, token], log_probs[token], finished, score)
    return [finished or sequence[1:] for sequence, _, finished, _ in rows]


@pytest.mark.parametrize("eos_bias", [-9.0, -1.0, 0.5, 2.0, 4.0])
def test_greedy_takes_the_best_token_until_the_end(eos_bias: float) -> None:
    tables = [_table(seed, eos_bias) for seed in range(40)]
    found = decode_table(tables, Greedy, SPEC)
    assert [list(s.tokens) for s in found] == [_greedy(table) for table in tables]
    for sequence in found:
        assert sequence.truncated == (sequence.tokens[-1] != SPEC.eos_id)
        assert len(sequence.log_probs) == len(sequence.tokens)


def test_an_early_end_does_not_end_a_sequence() -> None:
    """YourMT3's loop does not look at the first token; end-of-sequence is fed back like others."""
    table = np.full((SPEC.max_tokens, 7, ALLOWED_VALUES), -9.0, np.float32)
    table[0, :, 1] = 0.0  # the end at once, then 4 where it is read back, else 3, then 5 and ends
    table[1, :, 3] = 0.0
    table[1, 1, 4] = 1.0
    table[2, :, 5] = 0.0
    table[3:, :, 1] = 0.0
    for least, expected in ((1, [1]), (2, [1, 4, 5, 1]), (4, [1, 4, 5, 1]), (5, [1, 4, 5, 1, 1])):
        (found,) = decode_table([table], Greedy, replace(SPEC, min_tokens=least))
        assert list(found.tokens) == expected
        assert not found.truncated
    lengths = [
        len(decode_table([table], T5XBeam, replace(SPEC, min_tokens=least))[0].tokens)
        for least in (1, 2, 4, 5)
    ]
    assert lengths == [1, 4, 4, 5]


@pytest.mark.parametrize("eos_bias", [-9.0, -1.0, 0.5, 2.0, 4.0])
def test_t5x_rows_alone_equal_groups_of_eight(eos_bias: float) -> None:
    """The original stops groups together; ours stops rows alone; the sequences are the same."""
    tables = [_table(seed, eos_bias) for seed in range(64)]
    expected = [row for at in range(0, 64, 8) for row in _t5x_group(tables[at : at + 8])]
    assert [list(s.tokens) for s in decode_table(tables, T5XBeam, SPEC)] == expected


def test_t5x_may_pass_a_likely_end() -> None:
    """The toy of the reference documents: greedy ends at step 4, T5X goes on to a better end."""
    rows = [{3: 0.30, 4: 0.25, 5: 0.20}] * 3 + [{1: 0.40, 5: 0.35}] + [{6: 0.97}] * 3 + [{1: 0.97}]
    table = np.full((SPEC.max_tokens, 8, 8), 1e-4)
    for step, row in enumerate(rows):
        for token, probability in row.items():
            table[step, :, token] = probability
    table = np.log(table / table.sum(-1, keepdims=True)).astype(np.float32)
    (greedy,), (t5x,) = (decode_table([table], kind, SPEC) for kind in (Greedy, T5XBeam))
    assert list(greedy.tokens) == [3, 3, 3, 1]
    assert list(t5x.tokens) == [3, 3, 3, 5, 6, 6, 6, 1]
    score = t5x.log_probs.sum() / ((5 + 8) / 6) ** 0.6
    assert score == pytest.approx(-2.2114, abs=1e-3)


def test_moving_a_slot_keeps_its_state() -> None:
    """Many segments of very different lengths through few slots, so that slots move often."""
    tables = [_table(seed, 0.5 if seed % 3 else -9.0) for seed in range(30)]
    for kind in (Greedy, T5XBeam):
        wide = decode_table(tables, kind, SPEC, slots=30)
        for slots in (1, 2, 5):
            narrow = decode_table(tables, kind, SPEC, slots=slots)
            for a, b in zip(wide, narrow, strict=True):
                assert a.tokens.tolist() == b.tokens.tolist()
                assert a.log_probs.tolist() == b.log_probs.tolist()


def test_unknown_search_is_refused() -> None:
    assert search_for("t5x") is T5XBeam
    with pytest.raises(OptionError, match="greedy, t5x"):
        search_for("beam")


def test_scripted_backend_reports_the_two_best() -> None:
    lane = ScriptedBackend([_table(0, 0.0)]).lane(1)
    lane.load(0, np.zeros((1, 1), np.float32))
    lane.step(1)
    expected = np.sort(_table(0, 0.0)[0, 0])[::-1][:2]
    assert lane.top_log_probs[0].tolist() == expected.tolist()
    assert isinstance(decode_table([_table(0, 9.0)], Greedy, SPEC)[0], Sequence)
