"""Builds the indices of a data set: one of all stems, one per stem, and a list of what is left out.

Contract: `build_index` reads a data set with one of the readers and writes into a folder

::

    dataset.json           every stem of every song, a kit once
    dataset_STEM.json      those of one stem; a kit is among the drums and the high percussion,
                           each with its own percussion keys
    left_out.csv           song, stem, reason and detail of everything that is not taken
    .mt3-index.sqlite      what was read of the files: a second run reads what has changed

Equal data give equal bytes, whatever the order in which a file system lists them.  An interrupted
run goes on where it was.  Memory holds a few texts per stem, so that 50,000 are none too many.
"""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mt3_runtime.files.slakh_song import DRUM_PROGRAM
from mt3_runtime.filesystem.atomic import make_folder, write_atomic_parts
from mt3_runtime.notes.stems import HIGH, HIGH_KEYS, STEMS, Role, Stem, stem_named, stem_of_program
from mt3_training.datasets.facts_cache import FactsCache, state_of
from mt3_training.datasets.folder_reader import folder_stems
from mt3_training.datasets.found_stem import Found, FoundStem, LeftOut
from mt3_training.datasets.index_entry import IndexEntry, from_object, to_object, write_index
from mt3_training.datasets.pairs_reader import is_pairs, pair_stems
from mt3_training.datasets.slakh_reader import is_slakh, slakh_stems
from mt3_training.datasets.split_groups import SplitGroups
from mt3_training.datasets.stem_facts import Facts, read_facts

READERS: dict[str, Callable[[Path], Found]] = {
    "slakh": slakh_stems,
    "folders": folder_stems,
    "pairs": pair_stems,
}
"""Readers of data sets, by the name of the layout."""

CACHE, INDEX, LEFT_OUT = ".mt3-index.sqlite", "dataset.json", "left_out.csv"

ORGANS = range(16, 24)
"""Programs that count as keys if one wants; they belong to the stem *other* otherwise."""

TOLD_EVERY = 100
"""Stems between two lines about the progress."""


@dataclass(frozen=True)
class IndexOptions:
    """How an index is made.

    Attributes:
        layout: One of `READERS`.
        stems: Names of the stems that get an index of their own.
        organs_are_keys: Whether organs count as piano.
        dataset: Name of the data set.
        licence: Its licence, as somebody has read it.
    """

    layout: str
    stems: Sequence[str] = tuple(stem.name for stem in STEMS)
    organs_are_keys: bool = False
    dataset: str = ""
    licence: str = ""


@dataclass(frozen=True)
class IndexReport:
    """What became of a data set.

    Attributes:
        entries: Stems in the whole index.
        by_stem: Stems in each index.
        left_out: Stems and songs left out, by reason.
        unsure: Entries whose stem the sound did not say clearly.
    """

    entries: int
    by_stem: dict[str, int]
    left_out: dict[str, int]
    unsure: int


def layout_of(root: Path) -> str:
    """The layout of a data set, by what is in it."""
    if is_pairs(root):
        return "pairs"
    return "slakh" if is_slakh(root) else "folders"


def index_name(stem: str) -> str:
    """Name of the index of a stem."""
    return f"dataset_{stem}.json"


def build_index(
    root: Path, output: Path, options: IndexOptions, tell: Callable[[str], None]
) -> IndexReport:
    """Makes the indices of a data set.

    Args:
        root: Where it is.
        output: Folder of the indices; it is made.
        options: How.
        tell: Is told how far it is.

    Raises:
        OptionError: There is no data set of this layout.
        OutputError: The folder cannot be written to.
    """
    make_folder(output)
    with FactsCache(output / CACHE) as cache:
        kept = _Kept(output)
        for found in READERS[options.layout](root):
            if isinstance(found, LeftOut):
                kept.lose(found)
            else:
                facts = _facts(found, cache)
                entry = _entry(found, facts, options)
                if isinstance(entry, LeftOut):
                    kept.lose(entry)
                else:
                    kept.take(entry, found.split, facts.drum_keys)
            if (kept.entries + kept.lost) % TOLD_EVERY == 0:
                tell(f"{kept.entries} stems, {kept.lost} left out; at {found.track}")
    return kept.write(options)


def _facts(found: FoundStem, cache: FactsCache) -> Facts:
    """What the files of a stem say, now or in an earlier run."""
    told = "" if found.stem is None else found.stem.name
    name = f"{found.audio.absolute()}\0{found.labels.absolute()}"
    state = state_of((found.audio, found.labels), found.is_drum, told)
    kept = cache.get(name, state)
    if kept is not None:
        return Facts.from_json(kept)
    facts = read_facts(found)
    cache.put(name, state, facts.to_json())
    return facts


def _entry(found: FoundStem, facts: Facts, options: IndexOptions) -> IndexEntry | LeftOut:
    if facts.reason:
        return LeftOut(found.track, found.stem_id, facts.reason, facts.detail)
    drums = found.is_drum or (found.stem is None and found.program is None and not facts.programs)
    keys: tuple[int, ...] = ()
    if drums and (facts.drum_keys or found.is_drum):
        stem, keys = _drum_stem(found, facts)
        count = sum((facts.drum_keys or facts.pitches).values())
        program = DRUM_PROGRAM
    elif drums:
        return LeftOut(found.track, found.stem_id, "no notes", "nothing says what it holds")
    else:
        told = _pitched_stem(found, facts, organs_are_keys=options.organs_are_keys)
        if told is None:
            many = "notes of several stems"
            return LeftOut(found.track, found.stem_id, many, f"programs {[*facts.programs]}")
        stem, program = told
        count = sum(facts.programs.values())
    return IndexEntry(
        id=found.id,
        track=found.track,
        stem_id=found.stem_id,
        audio=found.audio.absolute(),
        labels=found.labels.absolute(),
        program=program,
        stem=stem.name,
        role=stem.role,
        is_drum=bool(stem.role is Role.PERCUSSIVE),
        seconds=facts.seconds,
        onsets=count,
        digest=facts.digest,
        split="train",
        keys=keys,
        licence=options.licence,
        low_db=facts.low_db,
        unsure=facts.unsure,
        metadata=found.metadata,
    )


def _drum_stem(found: FoundStem, facts: Facts) -> tuple[Stem, tuple[int, ...]]:
    """Which drums: by keys, else by name, else by sound; and the keys."""
    if facts.drum_keys:
        high = set(facts.drum_keys) <= HIGH_KEYS
        return stem_named(HIGH if high else "drums"), tuple(facts.drum_keys)
    if found.stem is not None:
        return found.stem, tuple(facts.pitches)
    return stem_named(HIGH if facts.high else "drums"), tuple(facts.pitches)


def _pitched_stem(
    found: FoundStem, facts: Facts, *, organs_are_keys: bool
) -> tuple[Stem, int] | None:
    """Stem and program of pitched notes; None if several stems are in them."""

    def of_program(program: int) -> Stem:
        organ = organs_are_keys and program in ORGANS
        return stem_named("piano") if organ else stem_of_program(program)

    common = max(facts.programs, key=lambda p: (facts.programs[p], -p), default=None)
    if found.program is not None:
        return of_program(found.program), found.program
    if found.stem is None:
        stems = {of_program(program).name for program in facts.programs}
        if len(stems) != 1 or facts.drum_keys or common is None:
            return None
        return of_program(common), common
    if common is not None and common in found.stem.lineup.programs:
        return found.stem, common
    fitting = found.stem.program
    return found.stem, min(found.stem.lineup.programs) if fitting is None else fitting


class _Kept:
    """Entries on their way to the indices, in a temporary table."""

    def __init__(self, folder: Path) -> None:
        self.entries = self.lost = self.unsure = 0
        self._folder = folder.absolute()
        self._reasons: Counter[str] = Counter()
        self._groups = SplitGroups()
        self._base = sqlite3.connect("")  # a file of its own that nobody sees, gone at the end
        self._base.execute("CREATE TABLE entry (id TEXT, stem TEXT, value TEXT, counts TEXT)")
        self._base.execute("CREATE TABLE lost (song TEXT, stem TEXT, reason TEXT, detail TEXT)")

    def take(self, entry: IndexEntry, split: str | None, counts: Mapping[int, int]) -> None:
        """Keeps an entry, with its percussion keys and how many notes each has."""
        self.entries += 1
        self.unsure += entry.unsure
        self._groups.add(entry.track, entry.digest, split)
        # As ASCII, whatever the names hold.
        values = (entry.id, to_object(entry, self._folder), [*counts.items()])
        name, value, keys = map(json.dumps, values)
        self._base.execute("INSERT INTO entry VALUES (?, ?, ?, ?)", (name, entry.stem, value, keys))

    def lose(self, what: LeftOut) -> None:
        """Keeps a reason."""
        self.lost += 1
        self._reasons[what.reason] += 1
        row = [*map(printable, (what.track, what.stem_id, what.reason, what.detail))]
        self._base.execute("INSERT INTO lost VALUES (?, ?, ?, ?)", row)

    def write(self, options: IndexOptions) -> IndexReport:
        """Writes everything.

        Raises:
            OutputError: It does not work.
        """
        about: dict[str, Any] = {
            "dataset": options.dataset or options.layout,
            "licence": options.licence,
            "filter_instruments": list(options.stems),
            "left_out": dict(sorted(self._reasons.items())),
        }
        entries = write_index(self._folder / INDEX, self._read(None), about)
        by_stem = {}
        for name in options.stems:
            one = {**about, "filter_instruments": [name]}
            by_stem[name] = write_index(self._folder / index_name(name), self._read(name), one)
        lost = self._base.execute("SELECT song, stem, reason, detail FROM lost")
        write_atomic_parts(self._folder / LEFT_OUT, table_lines(lost))
        self._base.close()
        return IndexReport(entries, by_stem, about["left_out"], self.unsure)

    def _read(self, stem: str | None) -> Iterator[IndexEntry]:
        whole = "drums" if stem == HIGH else stem  # a kit is kept among the drums
        rows = self._base.execute(
            "SELECT id, value, counts FROM entry WHERE ? IS NULL OR stem IN (?, ?)",
            (stem, stem, whole),
        )
        for row in rows:
            name, value, counts = map(json.loads, row)
            entry = from_object(name, value, self._folder, self._folder)
            entry = replace(entry, split=self._groups.split(entry.track))
            part = entry if stem is None else _part(entry, stem, dict(counts))
            if part is not None:
                yield part


def _part(entry: IndexEntry, stem: str, counts: Mapping[int, int]) -> IndexEntry | None:
    """What an entry is in the index of one stem, such as the hi-hats of a kit; None if nothing."""
    if not counts:  # no percussion, or none whose keys say anything
        return entry if entry.stem == stem else None
    own = tuple(key for key in counts if (key in HIGH_KEYS) == (stem == HIGH))
    if not own:
        return None
    count = sum(counts[key] for key in own)
    return replace(entry, stem=stem, role=stem_named(stem).role, keys=own, onsets=count)


def table_lines(rows: Iterable[Sequence[str]]) -> Iterator[bytes]:
    """Lines of the table of what is left out."""
    for row in (("track", "stem_id", "reason", "detail"), *rows):
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow(row)
        yield buffer.getvalue().encode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """A text that SQLite takes: names of files may hold what is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
