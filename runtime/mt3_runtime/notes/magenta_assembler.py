"""Assembles notes from the events of consecutive segments, by the rules of Magenta's MT3.

Contract: segments come in order of time; each is handed to `NoteAssembler.add` as the token ids
that the network emitted for it, and the notes that end there come back at once.  Whatever still
sounds after the last segment comes from `NoteAssembler.finish`.  Nothing is lost silently: for
every segment a `SegmentReport` counts the tokens that could not be used, and why.

The rules are those of the Magenta family (MT3, its PyTorch ports, MR-MT3); `NoteAssembler` states
them.  A model that holds notes over a segment border repeats them at the beginning of the next
segment, ahead of a *tie* token: what is not repeated ends there.  What differs between models is
data in `NoteRules`; a family that joins segments in another way gets another assembler with the
same methods (`mt3_runtime.notes.yourmt3_assembler`), chosen by `mt3_runtime.notes.assemblers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import BundleError
from mt3_runtime.notes.base import ChannelTokens, SegmentReport, both, check_order, paired
from mt3_runtime.notes.note import Note, Probabilities
from mt3_runtime.notes.note_rules import EMPTY_WITHOUT_EOS, UNK_IS_EOS, NoteRules
from mt3_runtime.notes.vocabulary import EventKind, TokenIds, Vocabulary


class _Open(NamedTuple):
    """A note that sounds."""

    onset: float
    velocity: int
    probabilities: Probabilities


class NoteAssembler:
    """The state machine over the segments of one recording.

    Time.  Consecutive shift tokens add up; each run of them states an offset from the start of the
    segment.  Any other event ends the run; ids without meaning do not.  A shift that leads past
    the start of the next segment drops the rest of the segment (at exactly that start, events
    still count).  The clock never runs back, also across segments: an earlier event is invalid.

    State.  Program and velocity tokens set state that outlives the segment.

    Pitch.  In the tie section it declares that an open note goes on.  Elsewhere velocity 0 closes
    the open note, any other velocity opens one, closing its predecessor first.  Drum: a note of
    fixed length.  Tie: ends the tie section and all notes not declared.

    Args:
        vocabulary: Meaning of the token ids.
        rules: Rules of the model.
        upstream_quirks: Imitate ``rules.quirks``.

    Raises:
        BundleError: The vocabulary lacks tokens that the rules speak of.
    """

    def __init__(
        self, vocabulary: Vocabulary, rules: NoteRules, *, upstream_quirks: bool = False
    ) -> None:
        bins = vocabulary.id_range(EventKind.VELOCITY)
        needed = [EventKind.SHIFT, EventKind.PITCH] + [EventKind.TIE] * rules.ties
        lacking = [kind.value for kind in needed if not vocabulary.id_range(kind)]
        if lacking or len(bins) != rules.velocity_bins + 1:
            raise BundleError(
                f"vocabulary and note rules do not fit: no tokens for {lacking}, {len(bins)} "
                f"velocity tokens for {rules.velocity_bins} bins and note-off; export again"
            )
        self._vocabulary = vocabulary
        self._rules = rules
        self._quirks = rules.quirks if upstream_quirks else ()
        self._segments = 0
        self._last_start = 0.0
        self._clock = 0.0
        self._program = rules.initial_program
        self._velocity = rules.initial_velocity
        self._open: dict[tuple[int, int], _Open] = {}  # by pitch and program
        self._tied: set[tuple[int, int]] = set()
        self._in_ties = False
        self._closed: list[Note] = []
        self._begun = 0
        # Of the tokens that set the time (None at the start of a segment) and the program.
        self._shift_chance: float | None = None
        self._program_chance: float | None = None

    def add(
        self,
        tokens: TokenIds,
        probabilities: Sequence[float] | npt.NDArray[np.floating[Any]] | None,
        start: float,
        next_start: float | None,
        *,
        truncated: bool = False,
    ) -> tuple[list[Note], SegmentReport]:
        """Take the next segment.

        Args:
            tokens: Model ids ``[n]`` without the start token; from the first end-of-sequence token
                on, if there is one, they are ignored.
            probabilities: Probability of each token ``[n]``, or None.
            start: Start of the segment in seconds, on the time grid of the model.
            next_start: Start of the next segment, None for the last one.
            truncated: Decoding stopped at the token limit, not at an end-of-sequence token.

        Returns:
            The notes that ended in this segment, in the order of their ends, and the report.

        Raises:
            OptionError: Segments are out of order, or the two arrays differ in length.
        """
        check_order(self._segments, self._last_start, start, next_start)
        ids, chances = paired(tokens, probabilities)
        count, has_eos = self._until(ids, self._vocabulary.eos)
        truncated = truncated and not has_eos
        used = self._apply_quirks(ids[:count], truncated=truncated)

        self._last_start = start
        self._in_ties = self._rules.ties
        self._tied.clear()
        self._closed, self._begun = [], 0
        self._shift_chance = None
        invalid, dropped = self._play(ids[:used], chances, start, next_start)
        report = SegmentReport(
            index=self._segments,
            start=start,
            token_count=count,
            truncated=truncated,
            missing_tie=self._in_ties,
            invalid_events=invalid,
            dropped_events=dropped,
            discarded_tokens=count - used,
            notes=self._begun,
        )
        self._segments += 1
        return self._closed, report

    def add_channels(
        self, channels: Sequence[ChannelTokens], start: float, next_start: float | None
    ) -> tuple[list[Note], SegmentReport]:
        """As `add`, for a list of one channel; the method that all assemblers have."""
        (only,) = channels
        return self.add(
            only.tokens, only.probabilities, start, next_start, truncated=only.truncated
        )

    def sounding(self) -> list[Note]:
        """The notes that have begun and not ended."""
        return [
            _note(found, found.onset, pitch, self._rules.program(program))
            for (pitch, program), found in self._open.items()
        ]

    def finish(self) -> list[Note]:
        """End the recording: all open notes end together, at the latest time seen."""
        self._closed = []
        for sounding in self._open.values():
            self._clock = max(self._clock, sounding.onset + self._rules.minimum_duration)
        for key in list(self._open):
            self._close(key)
        return self._closed

    @staticmethod
    def _until(ids: npt.NDArray[np.int64], token: int) -> tuple[int, bool]:
        """Number of ids ahead of the first ``token``, and whether there is one."""
        found = np.flatnonzero(ids == token)
        return (int(found[0]), True) if found.size else (len(ids), False)

    def _apply_quirks(self, ids: npt.NDArray[np.int64], *, truncated: bool) -> int:
        """Number of tokens of a segment that the original implementation would use."""
        used, ended = len(ids), not truncated
        if UNK_IS_EOS in self._quirks:
            used, has_unk = self._until(ids, self._vocabulary.unk)
            ended = ended or has_unk
        return 0 if EMPTY_WITHOUT_EOS in self._quirks and not ended else used

    def _play(
        self,
        ids: npt.NDArray[np.int64],
        chances: Sequence[float | None],
        start: float,
        next_start: float | None,
    ) -> tuple[int, int]:
        """Run the tokens of one segment; returns the numbers of invalid and of dropped ones."""
        invalid, steps, time = 0, 0, start
        run: float | None = None  # chance of the shifts since the last other event
        for position, event in enumerate(self._vocabulary.decode(ids)):
            chance = chances[position]
            if event is None:
                invalid += 1
            elif event.kind is EventKind.SHIFT:
                run = both(run, chance)
                self._shift_chance = run
                steps += event.value
                time = start + steps / self._vocabulary.steps_per_second
                if next_start and time > next_start:  # the original ignores a limit of 0.0
                    return invalid, len(ids) - position
            else:
                steps, run = 0, None
                invalid += not self._event(event.kind, event.value, time, chance)
        return invalid, 0

    def _event(self, kind: EventKind, value: int, time: float, chance: float | None) -> bool:
        """Take one event other than a shift; returns whether it was valid."""
        if time < self._clock:
            return False
        self._clock = time  # even if the event turns out to be invalid
        if kind is EventKind.PITCH:
            return self._pitch((value, self._program), chance)
        if kind is EventKind.DRUM:
            return self._drum(value, chance)
        if kind is EventKind.TIE:
            return self._tie()
        if kind is EventKind.VELOCITY:
            self._velocity = self._rules.velocity(value)
        elif not self._rules.flat_programs:
            self._program, self._program_chance = value, chance
        return True

    def _pitch(self, key: tuple[int, int], chance: float | None) -> bool:
        is_open = key in self._open
        if self._in_ties:
            if not is_open or key in self._tied:
                return False
            self._tied.add(key)
            return True
        if self._velocity == 0:
            if is_open:
                self._close(key, both(self._shift_chance, chance))
            return is_open
        if is_open:
            self._close(key)
        probabilities = Probabilities(self._shift_chance, chance, self._program_chance)
        self._open[key] = _Open(self._clock, self._velocity, probabilities)
        self._begun += 1
        return True

    def _drum(self, pitch: int, chance: float | None) -> bool:
        if self._velocity == 0:
            return False
        sounding = _Open(self._clock, self._velocity, Probabilities(self._shift_chance, chance))
        end = self._clock + self._rules.drum_duration
        self._closed.append(_note(sounding, end, pitch, is_drum=True))
        self._begun += 1
        return True

    def _tie(self) -> bool:
        if not self._in_ties:
            return False
        for key in [key for key in self._open if key not in self._tied]:
            self._close(key)
        self._in_ties = False
        return True

    def _close(self, key: tuple[int, int], offset_chance: float | None = None) -> None:
        pitch, program = key
        found = self._open.pop(key)
        found = found._replace(probabilities=found.probabilities._replace(offset=offset_chance))
        end = max(self._clock, found.onset + self._rules.minimum_duration)
        self._closed.append(_note(found, end, pitch, self._rules.program(program)))


def _note(found: _Open, end: float, pitch: int, program: int = 0, *, is_drum: bool = False) -> Note:
    known = found.probabilities
    confidence = 1.0 if known.pitch is None else known.pitch
    return Note(found.onset, end, pitch, found.velocity, program, is_drum, confidence, known)
