"""Token search: greedy, or T5X's beam search with one beam.

A search owns the tokens of a lane's slots.  After every step it reads the two best tokens of each
row, records one, decides which one the row reads next, and says which rows have ended.  Both
searches are independent of the other rows, so results never depend on batch composition.  If there
is a constraint, the search tells it what was chosen, and it says what may be chosen next.

Rows of one lane may belong to different searches; each is told which ones are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from mt3_runtime.decoding.types import Sequence
from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    from mt3_runtime.backends.base import FloatArray, IdArray, Lane
    from mt3_runtime.bundles.bundle import DecodingSpec
    from mt3_runtime.decoding.token_masks import UnwrittenTokens
    from mt3_runtime.decoding.types import BoolArray, Constraint, Rows, Span

SearchName = Literal["greedy", "t5x"]


def previous_ids(last: Sequence | None, spec: DecodingSpec) -> IdArray:
    """What a model with memory reads before a segment: what it said about the previous one.

    The start token and the end-of-sequence token are part of it, as in MR-MT3's inference loop
    (its training left the start token out).

    Args:
        last: The previous segment's sequence; None for the first segment of a recording.
        spec: Of the model.

    Returns:
        int64 [memory_tokens].
    """
    said = spec.memory_start if last is None else (spec.start_id, *last.tokens)
    ids = np.full(spec.memory_tokens, spec.start_id, np.int64)
    ids[: len(said)] = said[: spec.memory_tokens]
    return ids


class Greedy:
    """The most probable allowed token at every step, until end-of-sequence or the token limit.

    Args:
        slots: Number of slots of the lane.
        spec: Start and end tokens, token limit.
        constrain: Makes the constraint for a lane of so many slots; None if all tokens are allowed.
        silence: What is left out of the sequences; None for nothing.
    """

    def __init__(
        self,
        slots: int,
        spec: DecodingSpec,
        constrain: Callable[[int], Constraint] | None = None,
        silence: UnwrittenTokens | None = None,
    ) -> None:
        self._spec, self._silence = spec, silence
        self._constraint = constrain(slots) if constrain else None
        self._tokens = np.zeros((slots, spec.max_tokens), np.int32)
        self._log_probs = np.zeros((slots, spec.max_tokens), np.float32)
        self._lengths = np.zeros(slots, np.int32)
        self._rows = np.arange(slots)

    def start(self, lane: Lane, slot: int, span: Span) -> None:
        """Empties a slot for the segment that the lane has loaded into it."""
        self._lengths[slot] = 0
        if self._constraint:
            self._constraint.start(lane.allowed, slot, span)
        else:
            lane.allowed[slot] = True

    def move(self, source: int, target: int) -> None:
        """Copies a slot's sequence, following `Lane.move`."""
        for state in (self._tokens, self._log_probs, self._lengths):
            state[target] = state[source]
        if self._constraint:
            self._constraint.move(source, target)

    def advance(self, lane: Lane, rows: Rows) -> BoolArray:
        """Takes in one step of the lane in those rows that are this search's.

        Returns:
            bool [rows], true where the row's sequence is complete.
        """
        chosen = lane.top_ids[rows, 0]
        self._record(lane, rows, chosen, lane.top_log_probs[rows, 0])
        lengths = self._lengths[rows]
        ended: BoolArray = chosen == self._spec.eos_id
        ended &= lengths >= self._spec.min_tokens
        return ended | (lengths >= self._spec.max_tokens)

    def result(self, slot: int) -> Sequence:
        """The complete sequence of a row that ended."""
        return self._cut(slot, int(self._lengths[slot]))

    def _record(
        self, lane: Lane, rows: Rows, tokens: npt.NDArray[np.int64], log_probs: FloatArray
    ) -> None:
        """Appends the token that each of some rows reads next."""
        slots, at = self._rows[rows], self._lengths[rows]
        self._tokens[slots, at] = tokens
        self._log_probs[slots, at] = log_probs
        self._lengths[rows] += 1
        if self._constraint:
            self._constraint.advance(lane.allowed, tokens, rows)

    def _cut(self, slot: int, length: int) -> Sequence:
        tokens = self._tokens[slot, :length].copy()
        log_probs = self._log_probs[slot, :length].copy()
        ended = length > 0 and tokens[-1] == self._spec.eos_id
        if self._silence:
            written = self._silence.written(tokens)
            tokens, log_probs = tokens[written], log_probs[written]
        return Sequence(tokens, log_probs, not ended)


class T5XBeam(Greedy):
    """T5X's ``beam_search`` with one beam, the way the published MT3 notebook decodes.

    At every step the end-of-sequence token, if it is one of the two best, makes a *finished*
    candidate with score p / bp(n), where p is the sequence's log-probability and bp(n) =
    ((5 + n) / 6) ** alpha for n generated tokens (t5x/decoding.py, ``brevity_penalty``); the best
    one so far is kept.  The *live* sequence goes on with the best other token.  The loop ends when
    the finished score exceeds p_live / bp(limit + 1), the best any continuation could reach.

    The original tests this for its whole batch of 8 segments at once and keeps stepping rows that
    passed until all have.  That cannot change a row that passed: p_live never rises and bp never
    exceeds bp(limit + 1), so every later candidate scores at most p_live / bp(limit + 1), which is
    below the finished score.  Ending each row alone therefore gives the original's result exactly.
    """

    _NONE = np.float32(-1e7)  # T5X's NEG_INF: no finished sequence yet

    def __init__(
        self,
        slots: int,
        spec: DecodingSpec,
        constrain: Callable[[int], Constraint] | None = None,
        silence: UnwrittenTokens | None = None,
    ) -> None:
        super().__init__(slots, spec, constrain, silence)
        lengths = np.arange(spec.max_tokens + 2, dtype=np.float32)
        self._penalty = ((5 + lengths) / np.float32(6)) ** np.float32(spec.beam_alpha)
        self._live = np.zeros(slots, np.float32)
        self._score = np.zeros(slots, np.float32)
        self._finished = np.zeros(slots, np.int32)  # length with end-of-sequence, 0: none
        self._finished_log_prob = np.zeros(slots, np.float32)

    def start(self, lane: Lane, slot: int, span: Span) -> None:
        super().start(lane, slot, span)
        self._live[slot] = 0.0
        self._score[slot] = self._NONE
        self._finished[slot] = 0

    def move(self, source: int, target: int) -> None:
        super().move(source, target)
        for state in (self._live, self._score, self._finished, self._finished_log_prob):
            state[target] = state[source]

    def advance(self, lane: Lane, rows: Rows) -> BoolArray:
        ids, log_probs = lane.top_ids[rows], lane.top_log_probs[rows]
        slots, lengths, live = self._rows[rows], self._lengths[rows], self._live[rows]
        is_eos = ids == self._spec.eos_id

        eos_log_prob = np.where(is_eos[:, 0], log_probs[:, 0], log_probs[:, 1])
        score = (live + eos_log_prob) / self._penalty[lengths + 1]
        may_end = is_eos.any(axis=1) & (lengths + 1 >= self._spec.min_tokens)
        better = np.flatnonzero(may_end & (score > self._score[rows]))
        self._score[slots[better]] = score[better]
        self._finished[slots[better]] = lengths[better] + 1
        self._finished_log_prob[slots[better]] = eos_log_prob[better]

        best_other = is_eos[:, 0].astype(np.intp)
        each = self._rows[: len(slots)]
        chosen, chosen_log_prob = ids[each, best_other], log_probs[each, best_other]
        self._live[rows] = live = live + chosen_log_prob
        lane.token_ids[rows, 0] = chosen
        self._record(lane, rows, chosen, chosen_log_prob)
        settled: BoolArray = self._score[rows] > live / self._penalty[-1]
        return settled | (self._lengths[rows] >= self._spec.max_tokens)

    def result(self, slot: int) -> Sequence:
        length = int(self._finished[slot])
        if length == 0:
            return self._cut(slot, int(self._lengths[slot]))
        self._tokens[slot, length - 1] = self._spec.eos_id
        self._log_probs[slot, length - 1] = self._finished_log_prob[slot]
        return self._cut(slot, length)


MakeSearch = Callable[[int], Greedy]
"""Makes the search for a lane of so many slots."""

_SEARCHES: dict[str, type[Greedy]] = {"greedy": Greedy, "t5x": T5XBeam}


def search_for(name: str) -> type[Greedy]:
    """Returns the search of that name.

    Raises:
        OptionError: There is none.
    """
    if not isinstance(name, str) or name not in _SEARCHES:
        raise OptionError(
            f"decoding must be one of {', '.join(get_args(SearchName))}, got {name!r}."
        )
    return _SEARCHES[name]
