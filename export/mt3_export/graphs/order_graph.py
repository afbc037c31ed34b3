"""Adds the grammar of canonically ordered tokens to a decoding loop: a mask before each step.

Contract: `CanonicalMask` is `mt3_runtime.decoding.canonical_order.CanonicalOrder` in operators of
a graph, for models whose sequences say time since the start of the segment (`NoteRules.assembly`
"magenta").  `mask` writes what a row may say next from its state, `advance` the state after what it
said; the state of a row are a few numbers [N, 1] and which pitches sound [N, 128 * 128 + 1].  There
is no selection between truth values on the CPU in ONNX Runtime, so they are combined by and, or.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from mt3_runtime.decoding.grammar import (
    DRUM,
    KINDS,
    NOTHING,
    PITCH,
    PROGRAM,
    SHIFT,
    TIE,
    VELOCITY,
)
from mt3_runtime.errors import OptionError
from mt3_runtime.notes.vocabulary import EventKind

if TYPE_CHECKING:
    from mt3_export.graphs.graph_builder import Graph
    from mt3_runtime.audio.segments import SegmentConfig
    from mt3_runtime.bundles.manifest import Manifest

_UNKNOWN = -1
#: Notes of one step stand in the order of keys: offsets, onsets, drums; each by program and pitch.
_NONE = -1
_ONSETS = 128 * 128
_DRUMS = 2 * _ONSETS
#: The column that takes what is no pitch.
_NOWHERE = 128 * 128


@dataclass(frozen=True)
class OrderState:
    """Names of the state of all rows; int64 [N, 1] but for the last two.

    Attributes:
        time: Of the last time shift, in steps.
        program: -1 before any was said.
        velocity: -1 before any was said.
        key: Of the last note of this step, what sorts notes.
        said: Kind of the last token.
        ties: bool [N, 1], whether the row is in its tie section.
        sounding: bool [N, 128 * 128 + 1], pitches by program.
    """

    time: str
    program: str
    velocity: str
    key: str
    said: str
    ties: str
    sounding: str

    def names(self) -> list[str]:
        """In the order of the fields."""
        return [getattr(self, field.name) for field in fields(self)]

    @classmethod
    def types(cls) -> list[TensorProto.DataType]:
        """ONNX types in the order of the fields."""
        return [TensorProto.INT64] * 5 + [TensorProto.BOOL] * 2


class CanonicalMask:
    """Mask and state of the canonical order in the graph of one decoding step.

    Args:
        manifest: Of the model.

    Raises:
        OptionError: The model says time, or programs, in another way.
    """

    def __init__(self, manifest: Manifest) -> None:
        rules, vocabulary = manifest.notes, manifest.vocabulary
        if rules.assembly != "magenta" or rules.flat_programs or not rules.ties:
            raise OptionError(
                "Only the grammar of models with tie sections and programs, as Magenta's, can be "
                "part of a graph; export without --single-file."
            )
        self._ids = {kind: vocabulary.id_range(kind) for kind in KINDS}
        self._eos, self._size = vocabulary.eos, vocabulary.size
        self._kinds = np.full(vocabulary.size, NOTHING, np.int64)
        self._values = np.zeros(vocabulary.size, np.int64)
        for token, event in enumerate(vocabulary.decode(range(vocabulary.size))):
            if event is not None:
                self._kinds[token] = KINDS.index(event.kind)
                self._values[token] = event.value

    def start(self, graph: Graph, rows: str) -> OrderState:
        """Adds the state before the first token; ``rows`` is int64 [1], their number."""
        one = graph.op("Concat", rows, graph.constant([1], np.int64), axis=0)
        all_ = graph.op("Concat", rows, graph.constant([_NOWHERE + 1], np.int64), axis=0)

        def filled(value: int) -> str:
            return graph.op("Expand", graph.constant(value, np.int64), one)

        ties = graph.op("Expand", graph.constant(1, np.bool_), one)
        sounding = graph.op("Expand", graph.constant(0, np.bool_), all_)
        unknown, nothing, none = filled(_UNKNOWN), filled(NOTHING), filled(_NONE)
        return OrderState(filled(0), unknown, unknown, none, nothing, ties, sounding)

    def mask(self, graph: Graph, state: OrderState, first: str, end: str) -> str:
        """Adds what may be said: bool [N, V].

        Args:
            graph: Of the step.
            state: Of the rows.
            first: bool [N, 1], whether a row is the first segment of a recording.
            end: int64 [N, 1], the latest step a row may lead to.
        """
        step = _Step(graph, state, first)
        pieces = {
            EventKind.SHIFT: self._shifts(step, end),
            EventKind.PITCH: self._pitches(step),
            EventKind.DRUM: self._drums(step),
            EventKind.PROGRAM: self._programs(step),
            EventKind.VELOCITY: self._velocities(step),
            EventKind.TIE: state.ties,
        }
        runs = [(ids.start, len(ids), pieces[kind]) for kind, ids in self._ids.items() if len(ids)]
        runs.append((self._eos, 1, step.main))
        columns, at = [], 0
        for start, count, piece in sorted(runs):
            if start > at:
                columns.append(step.never(start - at))
            columns.append(piece)
            at = start + count
        if at < self._size:
            columns.append(step.never(self._size - at))
        return graph.op("Concat", *columns, axis=1)

    def advance(self, graph: Graph, state: OrderState, token: str) -> OrderState:
        """Adds the state after tokens int64 [N, 1]."""
        kind = graph.op("Gather", graph.constant(self._kinds, np.int64), token)
        value = graph.op("Gather", graph.constant(self._values, np.int64), token)
        is_ = {
            which: graph.op("Equal", kind, graph.constant(which, np.int64))
            for which in range(len(KINDS))
        }
        number = graph.constant
        step = _Step(graph, state, "")
        pitched = graph.op("Add", step.pitched_key, value)
        drums = graph.op("Add", number(_DRUMS, np.int64), value)
        key = graph.op("Where", is_[PITCH], pitched, state.key)
        key = graph.op("Where", is_[DRUM], drums, key)
        moved = graph.op("Or", is_[SHIFT], is_[TIE])
        key = graph.op("Where", moved, number(_NONE, np.int64), key)
        place = graph.op("Add", graph.op("Mul", state.program, number(128, np.int64)), value)
        place = graph.op("Where", is_[PITCH], place, number(_NOWHERE, np.int64))
        opened = graph.op("Or", state.ties, step.loud)
        return OrderState(
            time=graph.op("Where", is_[SHIFT], value, state.time),
            program=graph.op("Where", is_[PROGRAM], value, state.program),
            velocity=graph.op("Where", is_[VELOCITY], value, state.velocity),
            key=key,
            said=kind,
            ties=graph.op("And", state.ties, graph.op("Not", is_[TIE])),
            sounding=graph.op("ScatterElements", state.sounding, place, opened, axis=1),
        )

    def _values_of(self, step: _Step, kind: EventKind) -> str:
        ids = self._ids[kind]
        return step.graph.constant(self._values[ids.start : ids.stop], np.int64)

    def _shifts(self, step: _Step, end: str) -> str:
        """Later than now, up to the next segment; an event must stand in between."""
        values = self._values_of(step, EventKind.SHIFT)
        later = step.graph.op("Greater", values, step.state.time)
        within = step.graph.op("LessOrEqual", values, end)
        may = step.both(step.main, step.none_of(SHIFT, PROGRAM, VELOCITY))
        return step.both(later, within, may)

    def _programs(self, step: _Step) -> str:
        """Another than the last one, and higher, where notes of this kind were said already."""
        graph, key = step.graph, step.state.key
        onsets = graph.constant(_ONSETS, np.int64)
        main = graph.op(
            "Where",
            graph.op("GreaterOrEqual", key, onsets),
            graph.op("Sub", key, onsets),
            graph.constant(_NONE, np.int64),
        )
        bound = graph.op("Where", step.state.ties, key, main)
        values = self._values_of(step, EventKind.PROGRAM)
        scaled = graph.op("Mul", values, graph.constant(128, np.int64))
        higher = graph.op("Greater", scaled, bound)
        other = graph.op("Not", graph.op("Equal", values, step.state.program))
        declared = graph.op("Not", graph.op("And", step.state.ties, step.first))
        return step.both(higher, other, step.both(step.none_of(PROGRAM, VELOCITY), declared))

    def _velocities(self, step: _Step) -> str:
        """Another than the last one; 0 ahead of the first note of a step, if any sounds."""
        graph, state = step.graph, step.state
        values = self._values_of(step, EventKind.VELOCITY)
        other = graph.op("Not", graph.op("Equal", values, state.velocity))
        zero = graph.constant(0, np.int64)
        sounds = graph.op("Cast", step.sounding, to=TensorProto.INT32)
        sounds = graph.op("ReduceMax", sounds, graph.constant([1], np.int64), keepdims=1)
        sounds = graph.op("Cast", sounds, to=TensorProto.BOOL)
        fresh = graph.op("Equal", state.key, graph.constant(_NONE, np.int64))
        ends = step.both(sounds, step.known, fresh)
        sort = graph.op("Or", graph.op("Greater", values, zero), ends)
        return step.both(other, sort, step.both(step.main, step.none_of(VELOCITY)))

    def _pitches(self, step: _Step) -> str:
        """Above the last one of the program; with velocity 0 those that sound."""
        graph, state = step.graph, step.state
        later = graph.op("Not", step.first)
        # In the tie section what was not declared; else all if loud, and what sounds if heard.
        silent = graph.op("Or", graph.op("And", state.ties, later), step.loud)
        heard = graph.op("GreaterOrEqual", state.velocity, graph.constant(0, np.int64))
        heard = graph.op("And", heard, step.main)
        either = graph.op(
            "Or",
            graph.op("And", step.sounding, heard),
            graph.op("And", graph.op("Not", step.sounding), silent),
        )
        values = self._values_of(step, EventKind.PITCH)
        above = graph.op("Greater", graph.op("Add", values, step.pitched_key), state.key)
        return step.both(either, step.known, above)

    def _drums(self, step: _Step) -> str:
        values = self._values_of(step, EventKind.DRUM)
        drums = step.graph.op("Add", values, step.graph.constant(_DRUMS, np.int64))
        return step.both(step.graph.op("Greater", drums, step.state.key), step.loud)


class _Step:
    """Expressions that the parts of one step share, each added to the graph once."""

    def __init__(self, graph: Graph, state: OrderState, first: str) -> None:
        self.graph, self.state, self.first = graph, state, first
        zero = graph.constant(0, np.int64)
        self.main = graph.op("Not", state.ties)
        #: Notes are onsets.
        self.loud = graph.op("And", graph.op("Greater", state.velocity, zero), self.main)
        base = graph.op("Mul", state.program, graph.constant(128, np.int64))
        onset = graph.op("Add", base, graph.constant(_ONSETS, np.int64))
        #: The key of pitch 0 of the current program.
        self.pitched_key = graph.op("Where", self.loud, onset, base)
        if first:
            self.known = graph.op("GreaterOrEqual", state.program, zero)
            # Without a program nothing sounds: it is column 0, and `known` says no.
            places = graph.op("Max", base, zero)
            places = graph.op("Add", places, graph.constant(np.arange(128), np.int64))
            #: Which pitches of the current program sound, bool [N, 128].
            self.sounding = graph.op("GatherElements", state.sounding, places, axis=1)

    def both(self, *conditions: str) -> str:
        """All of several conditions."""
        found = conditions[0]
        for condition in conditions[1:]:
            found = self.graph.op("And", found, condition)
        return found

    def none_of(self, *kinds: int) -> str:
        """Whether the last token was of no such kind."""
        equal = [
            self.graph.op("Equal", self.state.said, self.graph.constant(kind, np.int64))
            for kind in kinds
        ]
        found = equal[0]
        for other in equal[1:]:
            found = self.graph.op("Or", found, other)
        return self.graph.op("Not", found)

    def never(self, count: int) -> str:
        """So many columns that may not be said."""
        no = self.graph.constant(np.zeros((1, count)), np.bool_)
        return self.graph.op("And", self.main, no)


def add_ends(graph: Graph, segments: SegmentConfig, steps: int, index: str, last: str) -> str:
    """Adds the latest time a segment may speak of: int64 [N, 1], in steps from its start.

    It is the last step that is not past the start of the next segment, in float64 as the note
    rules compute it; the last segment of a recording may go on for its whole length.

    Args:
        graph: Where to.
        segments: How audio is cut.
        steps: Steps per second.
        index: int64 [N, 1], number of the segment in its recording.
        last: bool [N, 1], whether it is the recording's last.
    """
    starts = []
    for offset in (0, 1):
        number = graph.op("Add", index, graph.constant(offset, np.int64))
        number = graph.op("Cast", number, to=TensorProto.DOUBLE)
        samples = graph.op("Mul", number, graph.constant(segments.samples, np.float64))
        seconds = graph.op("Div", samples, graph.constant(segments.sample_rate, np.float64))
        if segments.time_grid is not None:
            grid = graph.constant(segments.time_grid, np.float64)
            seconds = graph.op("Sub", seconds, graph.op("Mod", seconds, grid, fmod=1))
        starts.append(seconds)
    rate = graph.constant(steps, np.float64)
    span = graph.op("Mul", graph.op("Sub", starts[1], starts[0]), rate)
    end = graph.op("Ceil", span)
    one = graph.constant(1.0, np.float64)
    for _ in range(2):  # rounding moves the product by less than a step
        reached = graph.op("Add", starts[0], graph.op("Div", end, rate))
        past = graph.op("Greater", reached, starts[1])
        end = graph.op("Where", past, graph.op("Sub", end, one), end)
    whole = math.ceil(segments.samples / segments.sample_rate * steps)
    end = graph.op("Cast", end, to=TensorProto.INT64)
    return graph.op("Where", last, graph.constant(whole, np.int64), end)
