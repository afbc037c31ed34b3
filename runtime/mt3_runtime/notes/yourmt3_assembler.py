"""Assembles notes from the events of consecutive segments, by the rules of YourMT3.

Contract: as `magenta_assembler`.  The rules differ from Magenta's in five points:

* A segment has one or more *channels*, sequences of tokens that were decoded on their own.  Each is
  joined over the segments by itself; then notes of equal pitch and program are cut where the next
  one begins, whatever channel they come from.
* A time shift states the offset from the start of the segment; shifts do not add up.
* Events are sorted by time before they are played: within an instant note-offs come before note-ons
  of their pitch, whatever order the network chose.
* A held note that the tie section of the next segment does not repeat ends at that segment's exact
  start; all other times are on a grid of one step.
* The tie section ends at the first *tie* or shift, and whatever is no program or pitch in it,
  end-of-sequence included, is read over.

The original drops all notes of a channel of a segment that lacks its tie token, and shortens notes
of more than ten seconds to one hundredth, as well as those that sound at the end of the recording.
Here they are kept, unless the quirks ask for it: a tie section without tie token ends ahead of the
first shift, velocity or drum, and does not end held notes; open notes end at the latest time seen.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from mt3_runtime.errors import BundleError, OptionError
from mt3_runtime.notes.base import ChannelTokens, SegmentReport, both, check_order, paired
from mt3_runtime.notes.note import Note, Probabilities
from mt3_runtime.notes.note_rules import (
    CUT_LONG_NOTES,
    CUT_OPEN_NOTES,
    EMPTY_WITHOUT_TIE,
    NoteRules,
)
from mt3_runtime.notes.vocabulary import Event, EventKind, Vocabulary

LONGEST_NOTE = 10.0
"""Seconds; longer notes are cut by the quirk `CUT_LONG_NOTES`."""


_Pitch = tuple[int, int]  # program, pitch
_Said = tuple[Event | None, float | None]  # what a token says, and its probability


class _Program(NamedTuple):
    """The program in force, and the probability of its token."""

    number: int
    chance: float | None


class _Key(NamedTuple):
    """What cannot sound twice at a time."""

    pitch: int
    program: int
    is_drum: bool


class _Change(NamedTuple):
    """An event with its time; all but the last field give the order in which events are played."""

    time: float
    is_drum: bool = False
    pitch: int = 0
    is_on: bool = False
    program: int = 0
    chances: Probabilities = Probabilities()

    @property
    def key(self) -> _Key:
        return _Key(self.pitch, self.program, self.is_drum)


@dataclass(slots=True)
class _Draft:
    """A note whose end may change; infinite while it sounds."""

    onset: float
    offset: float
    chances: Probabilities

    def end(self, time: float, chance: float | None = None) -> None:
        """Ends it, unless it has ended; ``chance`` is that of the tokens that say so."""
        if time < self.offset:
            self.offset = time
            self.chances = self.chances._replace(offset=chance)


class _Heard(NamedTuple):
    """What became of the tokens of one channel of a segment."""

    token_count: int
    missing_tie: bool = False
    invalid: int = 0
    discarded: int = 0
    begun: int = 0


class ChannelAssembler:
    """The state machine over the segments of one recording; see the module docstring.

    A note is returned when no later segment can change it.  With the quirks that shorten notes it
    is returned by `finish`, as their ends decide which of two notes of equal onset is dropped.

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
        lacking = [kind.value for kind in EventKind if not vocabulary.id_range(kind)]
        if lacking or len(vocabulary.id_range(EventKind.VELOCITY)) != 2:
            raise BundleError(
                f"vocabulary and note rules do not fit: no tokens for {lacking}, or not two for "
                "velocity (on and off); export again"
            )
        self._vocabulary = vocabulary
        self._rules = rules
        self._quirks = frozenset(rules.quirks if upstream_quirks else ())
        self._score: dict[_Key, list[_Draft]] = defaultdict(list)
        self._channels = [
            _Channel(vocabulary, rules, self._quirks, self._score)
            for _ in range(max(1, len(rules.channels)))
        ]
        self._segments = 0
        self._last_start = 0.0

    def add_channels(
        self, channels: Sequence[ChannelTokens], start: float, next_start: float | None
    ) -> tuple[list[Note], SegmentReport]:
        """As `Assembler.add_channels`; the channels are in the order of ``rules.channels``."""
        check_order(self._segments, self._last_start, start, next_start)
        if len(channels) != len(self._channels):
            raise OptionError(
                f"segment {self._segments} has {len(channels)} channels; the model has "
                f"{len(self._channels)}"
            )
        pairs = list(zip(self._channels, channels, strict=True))
        heard = [channel.read(decoded, start) for channel, decoded in pairs]
        horizon = math.inf
        if next_start is not None:
            # The next segment has note-offs at its exact start, all else on the grid of steps.
            horizon = min(next_start, self._on_grid(next_start))
        for channel in self._channels:
            channel.play(horizon)
        report = SegmentReport(
            index=self._segments,
            start=start,
            token_count=sum(one.token_count for one in heard),
            truncated=any(decoded.truncated for decoded in channels),
            missing_tie=any(one.missing_tie for one in heard),
            invalid_events=sum(one.invalid for one in heard),
            discarded_tokens=sum(one.discarded for one in heard),
            notes=sum(one.begun for one in heard),
        )
        self._segments += 1
        self._last_start = start
        late = self._quirks & {CUT_LONG_NOTES, CUT_OPEN_NOTES}
        return ([] if late else self._settled(horizon)), report

    def sounding(self) -> list[Note]:
        """The notes that have begun, ended ones too as long as they are not settled."""
        drafts = ((key, draft) for key, drafts in self._score.items() for draft in drafts)
        begun = [self._note(key, replace(draft, offset=draft.onset)) for key, draft in drafts]
        return sorted(set(begun))

    def finish(self) -> list[Note]:
        """End the recording: all open notes end together, at the latest time seen."""
        for channel in self._channels:
            channel.play(math.inf)
        end = max([self._last_start, *(channel.clock for channel in self._channels)])
        for channel in self._channels:
            channel.end_all(end)
        return self._settled(math.inf)

    def _on_grid(self, seconds: float) -> float:
        steps = self._vocabulary.steps_per_second
        return round(seconds * steps) / steps

    def _settled(self, horizon: float) -> list[Note]:
        """Removes the notes that nothing at or behind ``horizon`` can change, and returns them."""
        notes = []
        for key in list(self._score):
            drafts = self._score[key]
            drafts.sort(key=lambda draft: (draft.onset, draft.offset))
            last = drafts[-1]
            # Notes of one onset are one note: the longest.  That may not be known yet.
            ended = last.offset <= horizon and math.isfinite(last.offset)
            settled = [draft for draft in drafts if ended or draft.onset < last.onset]
            for draft, following in pairwise([*settled, last]):
                if following is not draft:
                    draft.end(following.onset)
            notes += [self._note(key, draft) for draft in settled if draft.onset < draft.offset]
            self._score[key] = drafts[len(settled) :]
            if not self._score[key]:
                del self._score[key]
        return sorted(notes, key=lambda note: (note.offset, note))

    def _note(self, key: _Key, draft: _Draft) -> Note:
        onset, offset = draft.onset, draft.offset
        if not key.is_drum and offset - onset < self._rules.minimum_duration:
            offset = onset + self._rules.minimum_duration
        return Note(
            onset,
            offset,
            key.pitch,
            self._rules.initial_velocity,
            0 if key.is_drum else self._rules.program(key.program),
            is_drum=key.is_drum,
            confidence=1.0 if draft.chances.pitch is None else draft.chances.pitch,
            probabilities=draft.chances,
        )


class _Channel:
    """What one channel has said so far.

    Attributes:
        clock: The latest time of an event, in seconds.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        rules: NoteRules,
        quirks: frozenset[str],
        score: dict[_Key, list[_Draft]],
    ) -> None:
        self.clock = 0.0
        self._vocabulary = vocabulary
        self._rules = rules
        self._quirks = quirks
        self._score = score
        self._waiting: list[_Change] = []
        self._active: list[_Pitch] = []  # once per onset that no note-off has met
        self._open: dict[_Key, _Draft] = {}
        self._ended: dict[_Key, _Draft] = {}

    def read(self, decoded: ChannelTokens, start: float) -> _Heard:
        """Notes down what the tokens of the next segment say, to be played later."""
        ids, chances = paired(decoded.tokens, decoded.probabilities)
        count = len(ids) - 1 if len(ids) and ids[-1] == self._vocabulary.eos else len(ids)
        events = self._vocabulary.decode(ids[:count])
        ties = _find(events, EventKind.TIE, EventKind.SHIFT)
        missing = ties == count or events[ties] != Event(EventKind.TIE, 0)
        if missing and EMPTY_WITHOUT_TIE in self._quirks:
            self._hold([], start)
            return _Heard(count, missing_tie=True, discarded=count)
        if missing:
            ties = _find(events, EventKind.SHIFT, EventKind.VELOCITY, EventKind.DRUM)
        program, tied, invalid = _tied(events[:ties], chances)
        unmentioned = [pitch for pitch in self._active if missing and pitch not in tied]
        self._hold(tied + unmentioned, start)
        first = ties if missing else ties + 1
        ends = np.flatnonzero(ids[first:count] == self._vocabulary.eos)
        end = first + int(ends[0]) if ends.size else count
        said = zip(events[first:end], chances[first:end], strict=True)
        heard = list(self._changes(said, program, start))
        changes = [change for change in heard if change is not None]
        self._waiting += changes
        return _Heard(
            count,
            missing_tie=missing,
            invalid=invalid + len(heard) - len(changes),
            begun=len({(change.time, change.key) for change in changes if change.is_on}),
        )

    def _hold(self, pitches: list[_Pitch], start: float) -> None:
        """Ends what the segment before held, but for these; from here on they are active."""
        for program, pitch in self._active:
            if (program, pitch) not in pitches:
                self._waiting.append(_Change(start, pitch=pitch, program=program))
        self._active = pitches

    def _changes(
        self, said: Iterable[_Said], program: _Program | None, start: float
    ) -> Iterator[_Change | None]:
        """What the events behind the tie section change; None for each that is invalid."""
        steps = self._vocabulary.steps_per_second
        first = now = round(start * steps)
        is_on: bool | None = None
        shift: float | None = None  # chance of the shift that states the time
        for event, chance in said:
            kind, value = event or (None, 0)
            if kind is EventKind.SHIFT and value > 0:
                now, shift = first + value, chance
            elif kind is EventKind.PROGRAM:
                program = _Program(value, chance)
            elif kind is EventKind.VELOCITY:
                is_on = value > 0
            elif kind is EventKind.DRUM:
                known = Probabilities(shift, chance)
                yield _Change(now / steps, is_drum=True, pitch=value, is_on=True, chances=known)
            elif (
                kind is EventKind.PITCH
                and program is not None
                and is_on is not None
                and self._activate((program.number, value), is_on=is_on)
            ):
                known = Probabilities(shift, chance, program.chance)
                if not is_on:
                    known = Probabilities(offset=both(shift, chance))
                yield _Change(
                    now / steps, pitch=value, is_on=is_on, program=program.number, chances=known
                )
            else:
                yield None

    def _activate(self, pitch: _Pitch, *, is_on: bool) -> bool:
        """Keeps the list of active pitches; returns whether the event is valid."""
        if is_on:
            self._active.append(pitch)
        elif pitch in self._active:
            self._active.remove(pitch)
        else:
            return False
        return True

    def play(self, horizon: float) -> None:
        """Plays what was noted down for times ahead of ``horizon``."""
        self._waiting.sort(key=lambda change: change[:-1])
        ready = bisect_left(self._waiting, horizon, key=attrgetter("time"))
        for change in self._waiting[:ready]:
            self.clock = change.time
            if change.is_on:
                self._begin(change)
            elif change.key in self._open:
                self._end(change.key, change.time, change.chances.offset)
        del self._waiting[:ready]

    def _begin(self, change: _Change) -> None:
        key, onset = change.key, change.time
        before = self._open.get(key) or self._ended.get(key)
        if before and before.onset == onset:
            return  # the same note again
        if key in self._open:
            self._end(key, onset)
        if before:
            before.end(onset)
        end = onset + self._rules.drum_duration if key.is_drum else math.inf
        draft = _Draft(onset, end, change.chances)
        (self._ended if key.is_drum else self._open)[key] = draft
        self._score[key].append(draft)

    def _end(self, key: _Key, time: float, chance: float | None = None) -> None:
        draft, shortest = self._open.pop(key), self._rules.minimum_duration
        length = time - draft.onset
        cut = CUT_LONG_NOTES in self._quirks and length > LONGEST_NOTE
        offset = draft.onset + shortest if cut or length < shortest else time
        draft.end(offset, chance)
        self._ended[key] = draft

    def end_all(self, time: float) -> None:
        """Ends all open notes together."""
        for key, draft in list(self._open.items()):
            self._end(key, draft.onset if CUT_OPEN_NOTES in self._quirks else time)


def _find(events: Sequence[Event | None], *kinds: EventKind) -> int:
    """Position of the first event of some kinds, or the number of events."""
    found = (i for i, event in enumerate(events) if event and event.kind in kinds)
    return next(found, len(events))


def _tied(
    events: Sequence[Event | None], chances: Iterable[float | None]
) -> tuple[_Program | None, list[_Pitch], int]:
    """What a tie section repeats: the last program, the pitches, the number of invalid events."""
    program, tied, invalid = None, list[_Pitch](), 0
    for event, chance in zip(events, chances, strict=False):
        if event and event.kind is EventKind.PROGRAM:
            program = _Program(event.value, chance)
        elif event and event.kind is EventKind.PITCH and program is not None:
            tied.append((program.number, event.value))
        else:
            invalid += 1
    return program, tied, invalid
