"""Options of a transcription, checked before any audio is read.

Contract: `Request.of` takes the arguments as a user gives them and raises for every one that makes
no sense, before any audio is read.  A request makes the search of a lane, and the assembler and the
leakage filter of a recording; it has no state, so one serves any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, TypedDict

from mt3_runtime.arguments.argument_checks import as_flag, as_number, refused
from mt3_runtime.audio.sources import AudioStream, is_recording
from mt3_runtime.decoding.search import MakeSearch, SearchName, search_for
from mt3_runtime.decoding.token_masks import constraint_for, stand_ins, unwritten_for
from mt3_runtime.errors import OptionError
from mt3_runtime.leakage.leakage_filter import LeakageFilter, leakage_filter, listens
from mt3_runtime.leakage.leakage_report import (
    AutoFilter,
    Filtered,
    LeakageReport,
    check_auto_filter,
)
from mt3_runtime.leakage.program_smoothing import smooth
from mt3_runtime.notes.assemblers import Finisher, assembler_for
from mt3_runtime.notes.instruments import Instruments, Lineup, choose
from mt3_runtime.notes.selection import Selection
from mt3_runtime.notes.vocabulary import EventKind
from mt3_runtime.reading.reading_plan import ReadingPlan

if TYPE_CHECKING:
    from mt3_runtime.bundles.manifest import Manifest
    from mt3_runtime.notes.note import Note


Searches = Callable[[SearchName, Lineup | None, bool], MakeSearch]
"""Makes what makes the search, of its name, the line-up, and whether there is a grammar; what was
asked for before comes out again, so that rows of equal requests share their search."""


class LiveOptions(TypedDict, total=False):
    """What a call of a model may ask for.

    Attributes:
        auto_filter: How to repair instrument leakage, see `mt3_runtime.leakage.leakage_report`:
            True, False, or ``"classic"``; the model's default if None.
        decoding: ``greedy``, or ``t5x`` for the search of the published MT3 notebook; the model's
            default if None.
        instruments: What may occur, see `mt3_runtime.notes.instruments.choose`: names, families,
            General MIDI program numbers, ``drums``.  The model cannot say anything else.  Or
            ``"auto"``, see `mt3_runtime.extensions.auto_lineup`: of whole recordings, one by one.
        exclude: What may not.
        grammar: Whether the model may only say what means something; see
            `mt3_runtime.decoding.grammar`.
        min_confidence: Notes below it are left out, and counted in the result.
    """

    auto_filter: AutoFilter | None
    decoding: SearchName | None
    instruments: Instruments | None
    exclude: Instruments | None
    grammar: bool
    min_confidence: float


class Options(LiveOptions, total=False):
    """That, and what needs a whole recording.

    Attributes:
        smooth: Whether to repair programs that slip for one segment; see
            `mt3_runtime.leakage.program_smoothing`.
        upstream_quirks: Imitate known defects of the model's original implementation.
    """

    smooth: bool
    upstream_quirks: bool


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
        searches: Searches,
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
        """Checks what is asked for, see `Options`, of a model and its `searches_of`.

        Raises:
            OptionError: An argument is out of range, or an instrument is not known, or the model
                has none of those asked for.
        """
        check_auto_filter(auto_filter)
        search_for(decoding)
        least = as_number("min_confidence", min_confidence, "a number from 0 to 1")
        if not 0.0 <= least <= 1.0:
            raise refused("min_confidence", min_confidence, "a number from 0 to 1")
        lineup = choose(instruments, exclude)
        drums = bool(info.vocabulary.id_range(EventKind.DRUM))
        return cls(
            info,
            searches(decoding, lineup, as_flag("grammar", grammar)),
            Lineup() if lineup is None else lineup,
            # A model without drums, or of one instrument, has none to confuse with another.
            auto_filter if drums and not info.notes.flat_programs else False,
            least,
            as_flag("smooth", smooth),
            as_flag("upstream_quirks", upstream_quirks),
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

    @cached_property
    def plan(self) -> ReadingPlan:
        """What is made of a recording while it is read."""
        segments, features = self.info.segments, self.info.features
        heard = listens(self.auto_filter)
        return ReadingPlan(segments.sample_rate, segments, features, salience=heard)

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


def check_many(sources: object) -> None:
    """Refuse what is no collection of recordings.

    Raises:
        OptionError: It is one recording, or nothing that one can go through.
    """
    if is_recording(sources) or isinstance(sources, AudioStream):
        raise OptionError("sources must be several recordings; put a single one into a list.")
    if not isinstance(sources, Iterable) or isinstance(sources, Mapping):
        raise refused("sources", sources, "a list, or another iterable, of recordings")


def check_live(options: Iterable[str]) -> None:
    """Refuses options that need a whole recording, as Python refuses those that do not exist.

    Raises:
        TypeError: There is one.
    """
    for name in options:
        if name not in LiveOptions.__optional_keys__:
            raise TypeError(f"a stream has no option {name!r}")


def searches_of(info: Manifest) -> Searches:
    """The searches of a model; of the latest requests they are kept."""

    @lru_cache(64)
    def make(decoding: SearchName, lineup: Lineup | None, grammar: bool) -> MakeSearch:  # noqa: FBT001
        search = search_for(decoding)
        constrain = constraint_for(
            info.vocabulary,
            info.notes,
            lineup,
            grammar=grammar,
            orderly=info.decoding.orderly,
            seconds=info.segments.samples / info.segments.sample_rate,
        )
        silence = unwritten_for(info.vocabulary, info.notes, lineup)
        return partial(search, spec=info.decoding, constrain=constrain, silence=silence)

    return make
