"""What a batch with Ray has to do: sources, names of results, and what the journal says of each.

Contract: as for `mt3 transcribe` (docs/batch.md): what is done with the same options is skipped,
what is done with others is left as it is, and a result is replaced only if it is provably ours.
Results in a local folder and their journal are those of `mt3 transcribe`, which can go on with
them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mt3_runtime.batch.batch_report import Row
from mt3_runtime.batch.records.journal import Journal
from mt3_runtime.commands.folder_inputs import AUDIO_SUFFIXES
from mt3_runtime.errors import AudioNotFoundError, OptionError
from mt3_runtime.files.formats import SUFFIXES
from mt3_server.ray.note_table import PARQUET, SUFFIX
from mt3_server.ray.object_store import Store, StoredFile, is_remote


@dataclass(frozen=True)
class RaySource:
    """A file that is to be transcribed.

    Attributes:
        file: It.
        key: Its name in the journal.
        results: Names of its results by format, below the folder of the results.
    """

    file: StoredFile
    key: str
    results: Mapping[str, str]


@dataclass
class RayPlan:
    """What there is to do.

    Attributes:
        todo: To be done.
        rows: What is known of the others.
    """

    todo: list[RaySource] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


def find_files(inputs: Iterable[str]) -> list[StoredFile]:
    """The audio files of folders and object stores, at any depth, and files that are named.

    Args:
        inputs: Names, see `mt3_server.ray.object_store`.

    Raises:
        AudioError: One of the inputs cannot be read.
        AudioNotFoundError: There is no audio file.
    """
    found: dict[str, StoredFile] = {}
    names = list(inputs)
    for name in names:
        for file in Store(name).files():
            named = file.path == name or Path(file.path) == Path(name).absolute()
            if named or PurePosixPath(file.name).suffix.lower() in AUDIO_SUFFIXES:
                found.setdefault(file.path, file)
    if not found:
        raise AudioNotFoundError(f"There is no audio file in {', '.join(names) or 'nothing'}.")
    return list(found.values())


def name_results(files: Sequence[StoredFile], formats: Sequence[str]) -> dict[str, dict[str, str]]:
    """Names of the results of each file, by its path and the format.

    Files that share a name but for their suffix keep that: song.wav.mid and song.mp3.mid.

    Raises:
        OptionError: No suffix tells two files apart.
    """
    whole = Counter(file.name for file in files)
    if clash := [name for name, count in whole.items() if count > 1]:
        raise OptionError(
            f"Several inputs have a file {clash[0]}, whose results would have one name; give "
            "their common folder, or transcribe them separately."
        )
    short = Counter(str(PurePosixPath(file.name).with_suffix("")) for file in files)
    suffixes = {name: suffix for suffix, name in reversed(SUFFIXES.items())} | {PARQUET: SUFFIX}
    named = {}
    for file in files:
        stem = str(PurePosixPath(file.name).with_suffix(""))
        base = file.name if short[stem] > 1 else stem
        named[file.path] = {name: base + suffixes[name] for name in formats}
    return named


def plan_batch(
    files: Sequence[StoredFile],
    named: Mapping[str, Mapping[str, str]],
    store: Store,
    journal: Journal,
    options: str,
    *,
    home: Path,
    restart: bool = False,
    overwrite: bool = False,
) -> RayPlan:
    """Sorts files into those to be done and the others.

    Args:
        files: Those of this process.
        named: Their results, see `name_results`.
        store: Where these are.
        journal: What is known.
        options: Digest of the options.
        home: Folder of the journal.
        restart: Nothing counts as done.
        overwrite: Whatever has the name of a result may be replaced.
    """
    plan = RayPlan()
    for file in files:
        key = file.path if is_remote(file.path) else journal.key(Path(file.path))
        source = RaySource(file, key, named[file.path])
        entry = None if restart else journal.entry(key)
        there = {name for name in source.results.values() if store.has(name)}
        done = entry is not None and entry.status == "done" and entry.stamp == file.stamp
        complete = there == set(source.results.values())
        if entry and done and complete and entry.options == options:
            names = tuple(source.results.values())
            plan.rows.append(
                Row(file.path, "skipped", names, entry.seconds, entry.notes, entry.wall,
                    entry.attempts)
            )  # fmt: skip
        elif entry and done and there and entry.options != options and not overwrite:
            message = "done with other options; pass restart=True to do it again"
            plan.rows.append(Row(file.path, "failed", error="OptionError", message=message))
        elif foreign := _foreign(source, there, store, journal, home) if not overwrite else "":
            message = f"{foreign} exists and is not ours; pass overwrite=True to replace it"
            plan.rows.append(Row(file.path, "failed", error="OutputError", message=message))
        else:
            plan.todo.append(source)
    return plan


def _foreign(
    source: RaySource, there: Iterable[str], store: Store, journal: Journal, home: Path
) -> str:
    """A result of a source that somebody else has put there, or changed; "" if there is none."""
    for name in there:
        data = store.read(name)
        known = journal.digests(str(home / name), source.key)
        if data is None or hashlib.sha256(data).hexdigest() not in known:
            return name
    return ""
