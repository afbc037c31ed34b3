"""Transcribes folders or object stores with Ray Data: files in, notes out, resumed by our journal.

Contract: Ray carries files to actors, one model and one engine each, and their results back; this
process alone writes them and the journal.  So every file has one result however often Ray does a
block again, and a batch that is ended at any moment goes on with the same call.  What Ray has lost
(an actor that died more often than ``retries``) has failed, and is done by the next call.

Each actor needs mt3-runtime and the bundle at the same place, or by the same name.
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mt3_runtime.batch.batch_report import Row, write_report
from mt3_runtime.batch.records.fingerprint import digest, options_of
from mt3_runtime.batch.records.journal import Journal
from mt3_runtime.batch.records.shard import Shard
from mt3_runtime.errors import AudioError, MT3Error, OptionError, OutputError
from mt3_runtime.filesystem.atomic import is_folder, real_path
from mt3_runtime.imports.extras import require
from mt3_runtime.leakage.leakage_report import AUTO_FILTERS
from mt3_runtime.models.installed import resolve_model
from mt3_server.ray.note_table import check_formats
from mt3_server.ray.object_store import Store
from mt3_server.ray.ray_actor import Outcome, TranscribeActor, Work
from mt3_server.ray.ray_plan import RaySource, find_files, name_results, plan_batch

#: Files of a block: enough to fill the 16 slots of a lane with short ones, and what is done again
#: when an actor dies.
BLOCK = 8

#: Options of `transcribe_files` that decide notes, and their defaults.
_DEFAULTS: dict[str, Any] = {
    "decoding": "greedy",
    "instruments": None,
    "exclude": None,
    "grammar": False,
    "auto_filter": "on",
    "smooth": False,
    "min_confidence": 0.0,
    "upstream_quirks": False,
}


@dataclass(frozen=True)
class RayReport:
    """What became of a batch.

    Attributes:
        rows: One for each file, see `mt3_runtime.batch.batch_report`.
        wall: Seconds it took.
        repeated: Rows that Ray gave more than once, and that were dropped.
        options: What decided the results.
    """

    rows: tuple[Row, ...]
    wall: float
    repeated: int
    options: Mapping[str, Any]

    def count(self, status: str) -> int:
        """How many files are ``done``, ``skipped`` or ``failed``."""
        return sum(row.status == status for row in self.rows)

    def save(self, path: str) -> None:
        """Writes it as ``FILE.json`` or ``FILE.csv``, as ``--report-to`` does."""
        write_report(path, self.rows, options=self.options, left=0, wall=self.wall)


def transcribe_files(
    inputs: Sequence[str],
    output: str,
    *,
    model: str | None = None,
    formats: Sequence[str] = ("midi", "jsonl"),
    actors: int = 2,
    cpus: float = 1.0,
    gpus: float = 0.0,
    device: str = "auto",
    threads: int | None = None,
    readers: int = 1,
    timeout: float | None = None,
    retries: int = 2,
    journal: str | None = None,
    shard: str | None = None,
    restart: bool = False,
    overwrite: bool = False,
    tell: Callable[[Row], None] | None = None,
    **options: Any,
) -> RayReport:
    """Transcribes files on the Ray cluster that this process is connected to, or a local one.

    Args:
        inputs: Folders, files, or names in an object store, see `mt3_server.ray.object_store`.
        output: Folder of the results, or a name in an object store.
        model: As of `load_model`, on each worker; it must be known here, too.
        formats: Some of midi, json, jsonl, csv and parquet.
        actors: How many; each loads the model.
        cpus: Cores that each has for itself.
        gpus: GPUs that each has for itself.
        device: As of `load_model`.
        threads: As there; by default as many as it has cores.
        readers: Processes of each actor that decode files.
        timeout: Seconds that a file may take.
        retries: How often a block is done again whose actor died.
        journal: Local folder of the journal; ``output`` by default, which then has to be local.
        shard: ``K/N``: this part of the files alone, as of ``mt3 transcribe --shard``.
        restart: Nothing counts as done.
        overwrite: Whatever has the name of a result may be replaced.
        tell: Is told what became of each file.
        options: decoding, instruments, exclude, grammar, auto_filter, smooth, min_confidence and
            upstream_quirks, as of ``mt3 transcribe``.

    Raises:
        AudioError: An input cannot be read.
        MissingDependencyError: Ray is not installed.
        OptionError: An argument is out of range.
        OutputError: Another process works there, or a result cannot be written.
    """
    began = time.perf_counter()
    wanted = _checked(options, actors=actors, retries=retries)
    kinds, part = check_formats(tuple(formats)), None if shard is None else _shard(shard)
    require("ray.data", "a batch with Ray", "ray")
    store, path = Store(output), resolve_model(model)
    home = _home(store, journal)
    if is_folder(path) and real_path(home).is_relative_to(real_path(path)):
        raise OutputError(f"{home} is inside the model {path}; choose another folder.")
    every = find_files(inputs)
    named = name_results(every, kinds)
    mine = [file for file in every if part is None or part.has(file.name)]
    told = options_of(path, argparse.Namespace(**wanted, tempo=None))
    work = Work(
        load={
            "model": str(model or path), "device": device, "threads": threads or max(1, int(cpus)),
            "auto_filter": AUTO_FILTERS[wanted["auto_filter"]], "decoding": wanted["decoding"],
        },
        options={k: v for k, v in wanted.items() if k not in ("auto_filter", "decoding")},
        formats=kinds, readers=readers, timeout=timeout,
    )  # fmt: skip
    with Journal(home, part) as record:
        record.start(told, restart=restart)
        plan = plan_batch(
            mine, named, store, record, digest(told), home=home, restart=restart,
            overwrite=overwrite,
        )  # fmt: skip
        batch = _Batch(record, store, home, digest(told), tell or (lambda _row: None), plan.rows)
        batch.run(plan.todo, work, actors=actors, cpus=cpus, gpus=gpus, retries=retries)
        record.end()
    return RayReport(tuple(batch.rows), time.perf_counter() - began, batch.repeated, told)


class _Batch:
    """Takes what comes back, writes it, and keeps the journal."""

    def __init__(
        self,
        record: Journal,
        store: Store,
        home: Path,
        options: str,
        tell: Callable[[Row], None],
        rows: list[Row],
    ) -> None:
        self._record, self._store, self._home, self._options = record, store, home, options
        self._tell, self.rows, self.repeated = tell, rows, 0
        for row in rows:
            tell(row)

    def run(self, todo: list[RaySource], work: Work, **how: Any) -> None:
        """Does all of them; what does not come back has failed."""
        left = dict(enumerate(todo))
        for index, outcome in carry([source.file.path for source in todo], work, **how):
            source = left.pop(index, None)
            if source is None:
                self.repeated += 1
                continue
            self._finish(source, outcome)
        for source in left.values():
            message = "its worker died each time that it was tried; the next call tries it again"
            self._finish(source, Outcome(error="lost", message=message))

    def _finish(self, source: RaySource, outcome: Outcome) -> None:
        """Writes the results of a source, then the line of the journal."""
        file, attempts = source.file, 1 + self._attempts(source)
        self._record.begin(source.key, file.stamp)
        contents = {str(self._home / source.results[k]): v for k, v in outcome.contents.items()}
        names = tuple(source.results.values())
        if not outcome.error:
            self._record.writing(source.key, contents)
            for kind, data in outcome.contents.items():
                self._store.write(source.results[kind], data)
            self._record.finish(
                "done", source.key, file.stamp, options=self._options, split=False,
                outputs=contents, attempts=attempts, seconds=outcome.seconds, wall=outcome.wall,
                notes=outcome.notes, token_digest=outcome.token_digest,
            )  # fmt: skip
            row = Row(file.path, "done", names, outcome.seconds, outcome.notes, outcome.wall,
                      attempts, "", "; ".join(outcome.warnings))  # fmt: skip
        else:
            self._record.finish(
                "failed", source.key, file.stamp, error=outcome.error, message=outcome.message,
                attempts=attempts, wall=outcome.wall,
            )  # fmt: skip
            row = Row(file.path, "failed", wall=outcome.wall, attempts=attempts,
                      error=outcome.error, message=outcome.message)  # fmt: skip
        self.rows.append(row)
        self._tell(row)

    def _attempts(self, source: RaySource) -> int:
        entry = self._record.entry(source.key)
        return entry.attempts if entry and entry.status != "done" else 0


def carry(
    paths: Sequence[str], work: Work, *, actors: int, cpus: float, gpus: float, retries: int
) -> Iterator[tuple[int, Outcome]]:
    """Takes files through actors; yields the number of each with its outcome, in any order.

    Raises:
        MT3Error: Ray has failed.
    """
    if not paths:
        return
    data = require("ray.data", "a batch with Ray", "ray")
    items = [{"index": index, "path": path} for index, path in enumerate(paths)]
    blocks = max(min(len(items), actors), -(-len(items) // BLOCK))
    with _patient(data):
        dataset = data.from_items(items, override_num_blocks=blocks).map_batches(
            TranscribeActor,
            fn_constructor_args=(work,),
            batch_size=None,
            compute=data.ActorPoolStrategy(size=min(actors, blocks)),
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=retries,
        )
        try:
            for row in dataset.iter_rows():
                yield int(row["index"]), pickle.loads(row["outcome"])  # noqa: S301  of our actors
        except (MT3Error, OSError):
            raise
        except Exception as error:
            raise AudioError(
                f"Ray has failed ({type(error).__name__}: {error}). What is done is kept; the same "
                "call goes on from there."
            ) from error


@contextmanager
def _patient(data: Any) -> Iterator[None]:
    """Lets Ray Data go on without blocks whose actors have died too often."""
    context = data.DataContext.get_current()
    before, context.max_errored_blocks = context.max_errored_blocks, -1
    try:
        yield
    finally:
        context.max_errored_blocks = before


def _home(store: Store, journal: str | None) -> Path:
    if journal is None and store.remote:
        raise OptionError(
            f"{store.root} is no local folder, and the journal needs one: name it with journal=."
        )
    return Path(store.root if journal is None else journal).absolute()


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except ValueError as error:
        raise OptionError(f"{error}.") from error


def _checked(options: Mapping[str, Any], **counts: int) -> dict[str, Any]:
    """The options that decide notes, all of them; refuses others, and numbers that are none."""
    for name, value in counts.items():
        least = 1 if name == "actors" else 0
        if type(value) is not int or value < least:
            raise OptionError(f"{name} is {value!r}; expected a number of {least} or more.")
    if unknown := _unknown(options, _DEFAULTS):
        raise OptionError(f"There is no option {unknown!r}; expected {', '.join(_DEFAULTS)}.")
    wanted = _DEFAULTS | dict(options)
    if wanted["auto_filter"] not in AUTO_FILTERS:
        raise OptionError(f"auto_filter is {wanted['auto_filter']!r}; expected "
                          f"{', '.join(AUTO_FILTERS)}.")  # fmt: skip
    return wanted


def _unknown(names: Iterable[str], known: Iterable[str]) -> str:
    return next((name for name in names if name not in known), "")
