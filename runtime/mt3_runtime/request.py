"""Options of a transcription, checked before any audio is read.

Contract: `Request.of` takes the arguments as a user gives them and raises for every one that makes
no sense, before any audio is read.  A request makes the search of a lane, and the assembler and the
leakage filter of a recording; it has no state, so one serves any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypedDict

from mt3_runtime.decoding.search import Greedy, SearchName, search_for
from mt3_runtime.decoding.token_masks import constraint_for, stand_ins, unwritten_for
from mt3_runtime.errors import OptionError
from mt3_runtime.leakage.leakage_filter import LeakageFilter, leakage_filter
from mt3_runtime.leakage.leakage_report import (
    AutoFilter,
    Filtered,
    LeakageReport,
    check_auto_filter,
)
from mt3_runtime.leakage.program_smoothing import smooth
from mt3_runtime.notes.assemblers import assembler_for
from mt3_runtime.notes.finisher import Finisher
from mt3_runtime.notes.instruments import Instruments, Lineup, choose
from mt3_runtime.notes.selection import Selection
from mt3_runtime.notes.vocabulary import EventKind

if TYPE_CHECKING:
    from mt3_runtime.bundles.manifest import Manifest
    from mt3_runtime.notes.note import Note

MakeSearch = Callable[[int], Greedy]
"""Makes the search for a lane of so many slots."""


class Wishes(TypedDict, total=False):
    """What a call may ask for; see `mt3_runtime.model.Model.transcribe_notes`."""

    instruments: Instruments | None
    exclude: Instruments | None
    grammar: bool
    min_confidence: float
    smooth: bool
    upstream_quirks: bool


class Options(Wishes, total=False):
    """That, and what the model has a default for."""

    auto_filter: AutoFilter | None
    decoding: SearchName | None


@dataclass(frozen=True)
class Request:
    """See the module docstring.

    Attributes:
        info: Of the model that is asked.
        search: Makes the search for a lane.
        lineup: The instruments that may occur.
        auto_filter: Which leakage filter.
        min_confidence: Notes below it are left out.
        smooth: Whether programs that slip for one segment are repaired.
        upstream_quirks: Whether known defects of the original are imitated.
    """

    info: Manifest
    search: MakeSearch
    lineup: Lineup
    auto_filter: AutoFilter
    min_confidence: float
    smooth: bool
    upstream_quirks: bool
    _programs: Mapping[int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_programs", stand_ins(self.info.notes, self.lineup))

    @classmethod
    def of(
        cls,
        info: Manifest,
        *,
        auto_filter: AutoFilter,
        decoding: SearchName,
        instruments: Instruments | None = None,
        exclude: Instruments | None = None,
        grammar: bool = False,
        min_confidence: float = 0.0,
        smooth: bool = False,
        upstream_quirks: bool = False,
    ) -> Request:
        """Checks the arguments of `Model.transcribe_notes`.

        Raises:
            OptionError: As there.
        """
        check_auto_filter(auto_filter)
        number = isinstance(min_confidence, int | float)
        if not number or not 0.0 <= min_confidence <= 1.0:
            raise OptionError(
                f"min_confidence is {min_confidence!r}; expected a number from 0 to 1."
            )
        lineup = choose(instruments, exclude)
        drums = bool(info.vocabulary.id_range(EventKind.DRUM))
        constrain = constraint_for(
            info.vocabulary,
            info.notes,
            lineup,
            grammar=grammar,
            orderly=info.decoding.orderly,
            seconds=info.segments.samples / info.segments.sample_rate,
        )
        silence = unwritten_for(info.vocabulary, info.notes, lineup)
        return cls(
            info,
            partial(search_for(decoding), spec=info.decoding, constrain=constrain, silence=silence),
            Lineup() if lineup is None else lineup,
            # A model without drums, or of one instrument, has none to confuse with another.
            auto_filter if drums and not info.notes.flat_programs else False,
            min_confidence,
            smooth,
            upstream_quirks,
        )

    def assembler(self) -> Finisher:
        """Makes the assembler of a recording."""
        info, quirks = self.info, self.upstream_quirks
        inner = assembler_for(info.vocabulary, info.notes, upstream_quirks=quirks)
        return Finisher(inner, info.confidence, self._programs)

    def leakage(self) -> LeakageFilter:
        """Makes the leakage filter of a recording."""
        return leakage_filter(
            self.auto_filter,
            rate=self.info.segments.sample_rate,
            drum_keys=self.lineup.drum_keys,
            drum_duration=self.info.notes.drum_duration,
        )

    def smoothed(self, notes: Sequence[Note], starts: Sequence[float]) -> Filtered:
        """The notes with repaired programs, if that is asked for.

        Args:
            notes: Of a recording.
            starts: Start times of its segments.
        """
        return smooth(notes, starts) if self.smooth else Filtered(list(notes), LeakageReport())

    def selection(self) -> Selection:
        """Makes the selection by confidence of a recording."""
        return Selection(self.min_confidence, limited=self.lineup != Lineup())
