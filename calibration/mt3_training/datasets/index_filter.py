"""Filters the indices of a data set: writes those entries that teach something, and why others not.

Contract: `filter_indices` reads ``dataset_STEM.json`` of a folder and writes
``filtered_dataset_STEM.json`` beside it, with the digest of what it filtered, and
``filtered_out.csv`` with every entry that is left out, its reason and what was measured.  Verdicts
are kept between runs (`mt3_training.datasets.facts_cache`), so that an interrupted run goes on
where it was.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mt3_runtime.errors import OptionError
from mt3_runtime.filesystem.atomic import is_folder, write_atomic_parts
from mt3_runtime.notes.stems import stem_named
from mt3_training.datasets.facts_cache import FactsCache, state_of
from mt3_training.datasets.filter_rules import SILENCE, Verdict, examine
from mt3_training.datasets.found_stem import is_file
from mt3_training.datasets.index_builder import (
    CACHE,
    TOLD_EVERY,
    index_name,
    printable,
    table_lines,
)
from mt3_training.datasets.index_entry import (
    IndexEntry,
    read_index,
    read_metadata,
    require_files,
    write_index,
)

FILTERED_OUT = "filtered_out.csv"


@dataclass(frozen=True)
class FilterReport:
    """What became of the entries of one index.

    Attributes:
        kept: How many are in the filtered index.
        left_out: How many are not, by reason.
    """

    kept: int
    left_out: dict[str, int]


def filtered_name(stem: str) -> str:
    """Name of the filtered index of a stem."""
    return f"filtered_{index_name(stem)}"


def filter_indices(
    folder: Path,
    stems: Sequence[str],
    tell: Callable[[str], None],
    *,
    silence: float = SILENCE,
) -> dict[str, FilterReport]:
    """Filters the indices of some stems.

    Args:
        folder: Where they are.
        stems: Names of the stems; indices that are not there are passed over.
        tell: Is told how far it is.
        silence: See `mt3_training.datasets.filter_rules.SILENCE` [dB].

    Returns:
        What became of each index.

    Raises:
        OptionError: There is none, one cannot be read, or its files are not where it says.
        OutputError: The folder cannot be written to.
    """
    if not is_folder(folder):
        raise OptionError(f"{folder} is no folder; name that of the indices.")
    there = {name: path for name in stems if is_file(path := folder / index_name(name))}
    if not there:
        raise OptionError(
            f"There is no index of {', '.join(stems)} in {folder}; `mt3 calibrate index` makes "
            "them."
        )
    for path in there.values():
        require_files(path)
    with FactsCache(folder / CACHE) as cache:
        work = _Filter(cache, tell, silence)
        reports = {name: work.filter(path, folder, name) for name, path in there.items()}
    write_atomic_parts(folder / FILTERED_OUT, table_lines(work.lost))
    return reports


class _Filter:
    """Judges entries, and remembers those left out."""

    def __init__(self, cache: FactsCache, tell: Callable[[str], None], silence: float) -> None:
        self.lost: list[tuple[str, ...]] = []
        self._cache, self._tell, self._silence = cache, tell, silence
        self._done = 0

    def filter(self, path: Path, folder: Path, stem: str) -> FilterReport:
        """Filters one index."""
        reasons: Counter[str] = Counter()
        about = {
            **read_metadata(path),
            "source": path.name,
            "source_digest": _digest(path),
            "filter_instruments": [stem],
            "filter_programs": sorted(stem_named(stem).lineup.programs),
            "silence": self._silence,
            "left_out": reasons,  # which fills while entries are written, ahead of this
        }
        kept = write_index(folder / filtered_name(stem), self._keep(path, stem, reasons), about)
        return FilterReport(kept, dict(sorted(reasons.items())))

    def _keep(self, path: Path, stem: str, reasons: Counter[str]) -> Iterator[IndexEntry]:
        for entry in read_index(path):
            verdict = self._verdict(entry)
            if verdict.reason:
                reasons[verdict.reason] += 1
                row = (entry.track, entry.stem_id, f"{stem}: {verdict.reason}", verdict.detail)
                self.lost.append(tuple(map(printable, row)))
            else:
                yield entry
            self._done += 1
            if self._done % TOLD_EVERY == 0:
                self._tell(f"{self._done} stems, {len(self.lost)} left out; at {entry.track}")

    def _verdict(self, entry: IndexEntry) -> Verdict:
        name = f"verdict {entry.stem} {entry.audio}\0{entry.labels}"
        state = state_of((entry.audio, entry.labels), self._silence, *entry.keys)
        kept = self._cache.get(name, state)
        if kept is not None:
            return Verdict(**kept)
        verdict = examine(entry, silence=self._silence)
        self._cache.put(name, state, asdict(verdict))
        return verdict


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
