"""A call of `mt3 transcribe`: finds sources, plans, loads the model if need be, and runs the batch.

Contract: everything that can go wrong by names, options and places is found before the model is
loaded; it is loaded once, and only if something is to be done.  The journal is opened where all
results have one folder: that of ``-o``, or the only input if that is a folder.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Collection
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mt3_runtime.batch.auto_engine import AutoEngine
from mt3_runtime.batch.batch_engine import BatchEngine
from mt3_runtime.batch.batch_plan import Plan, Policy, plan_tasks
from mt3_runtime.batch.batch_progress import BatchProgress
from mt3_runtime.batch.batch_report import Row, write_report
from mt3_runtime.batch.batch_run import BatchRun, Manner
from mt3_runtime.batch.lone_process import LoneProcess
from mt3_runtime.batch.note_stream import stream_notes
from mt3_runtime.batch.records.fingerprint import digest, options_of
from mt3_runtime.batch.records.journal import Journal, NoJournal, Record
from mt3_runtime.batch.records.ledger import Stamp
from mt3_runtime.batch.source_list import Source
from mt3_runtime.batch.task import Task
from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.commands.jobs import STDIN, Draft, draft, parse_formats
from mt3_runtime.commands.results import check_stdout, check_tempo, keep_out
from mt3_runtime.errors import MT3Error, OptionError, OutputError
from mt3_runtime.extensions.auto_lineup import is_auto
from mt3_runtime.filesystem.atomic import (
    STDOUT,
    check_output,
    is_folder,
    real_path,
    remove_temporary,
)
from mt3_runtime.leakage.leakage_report import AUTO_FILTERS
from mt3_runtime.models.installed import resolve_model
from mt3_runtime.models.shipped import shipped_models
from mt3_runtime.notes.stems import STEMS

if TYPE_CHECKING:
    from mt3_runtime.model import Model


class Session:
    """See the module docstring; a context manager.

    Args:
        args: Of `mt3 transcribe`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._stack = ExitStack()
        self._model: Model | None = None
        self._path: Path | None = None
        self._record: Record | None = None
        self._options: dict[str, Any] = {}
        self._rows: list[Row] = []
        self._left, self._begun = 0, time.perf_counter()
        self._report = ""  # once it is known that it replaces nothing of value
        self.code: int = ExitCode.OK

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        # What came first is said, and not that the disk is still full.
        with self._stack, suppress(OutputError) if error else nullcontext():
            if isinstance(self._record, Journal) and _orderly(error):
                self._record.end()
            if self._report and not isinstance(error, OptionError):
                write_report(
                    self._report, self._rows, options=self._options, left=self._left,
                    wall=time.perf_counter() - self._begun,
                )  # fmt: skip

    def fail(self, error: object) -> None:
        """Says what has failed, and that the command has."""
        talk(f"error: {error}")
        self.code = self.code or ExitCode.FAILED

    def run(self, sources: list[Source], settled: Collection[Path] | None = None) -> None:
        """Does what is to be done of some sources.

        Args:
            sources: All of them, because names depend on all.
            settled: Those to be done; None for all.

        Raises:
            MT3Error: Something else than a single source is at fault.
        """
        drafted = self._draft(sources)
        stamps = self._stamps(sources, drafted, settled)
        piped = STDIN in [source.path for source in sources] and self._is_piped()
        if not stamps and not piped:
            return
        record = self._open_record(drafted)
        policy = Policy(
            digest(self._options) if self._options else "",
            restart=self._args.restart,
            skip_existing=self._args.skip_existing,
            overwrite=self._args.overwrite,
        )
        plan = plan_tasks(drafted, stamps, record, policy)
        tasks = [task for task in plan.tasks if task.job.source != STDIN or piped]
        self._tell_plan(plan, record, tasks)
        if tasks:
            _clean(record, tasks)
            self._load(tasks)
            self._transcribe(tasks, plan, record, policy)

    def _draft(self, sources: list[Source]) -> Draft:
        args = self._args
        drafted = draft(
            [source.path for source in sources],
            output=args.output,
            formats=() if args.format is None else parse_formats(args.format),
            folder=args.files_from is not None or any(map(is_folder, args.files)),
            stems=tuple(stem.name for stem in STEMS) if args.split else (),
            places={source.path: source.place for source in sources},
            longer=args.collisions == "suffix",
        )
        for job in drafted.jobs:
            check_stdout(job)
        check_tempo(drafted.jobs, args.tempo)
        if args.report_to:
            self._path = resolve_model(args.model)
            listed = [] if args.files_from in (None, STDOUT) else [args.files_from]
            check_output(
                args.report_to,
                [*listed, *(source.path for source in sources)],
                bundles=[self._path],
            )
            results = {real_path(r.path) for job in drafted.jobs for r in job.results}
            if real_path(args.report_to) in results:
                raise OutputError(
                    f"{args.report_to} is a result and the report; choose other names."
                )
            self._report = args.report_to
        return drafted

    def _stamps(
        self, sources: list[Source], drafted: Draft, settled: Collection[Path] | None
    ) -> dict[Path, Stamp]:
        """Those that are there, ours to do, and to be done now."""
        kept, shard = {job.source for job in drafted.jobs}, self._args.shard
        found: dict[Path, Stamp] = {}
        for source in sources:
            path = source.path
            if path is STDIN or path not in kept or (shard and not shard.has(source.name)):
                continue
            if settled is not None and path not in settled:
                continue
            try:
                status = os.stat(path)  # noqa: PTH116  see `Stamp.of`
            except (OSError, ValueError) as error:
                missing = isinstance(error, FileNotFoundError | NotADirectoryError)
                reason = "there is no such file" if missing else getattr(error, "strerror", error)
                self.fail(f"{path}: {reason}.")
                self._rows.append(Row(str(path), "failed", error=type(error).__name__,
                                      message=str(reason)))  # fmt: skip
            else:
                found[path] = Stamp(status.st_size, status.st_mtime_ns)
        return found

    def _is_piped(self) -> bool:
        """Whether there may be audio on standard input."""
        if sys.stdin is None or sys.stdin.closed:
            self.fail("there is no standard input to read audio from.")
        elif sys.stdin.isatty():
            self.fail("standard input is a terminal; expected audio from a pipe or a file.")
        else:
            return True
        return False

    def _home(self, drafted: Draft) -> Path | None:
        """The one folder of all results, where they are a batch; None if there is none."""
        args = self._args
        if args.no_journal:
            return None
        listed = args.files_from is not None or any(map(is_folder, args.files))
        if drafted.folder is not None:
            return drafted.folder if listed or len(drafted.jobs) > 1 else None
        lone = args.output is None and args.files_from is None and len(args.files) == 1
        return Path(args.files[0]) if lone and is_folder(args.files[0]) else None

    def _open_record(self, drafted: Draft) -> Record:
        if self._record is not None:
            return self._record
        home = self._home(drafted)
        if home is None:
            if self._args.watch or self._args.restart:
                word = "--watch" if self._args.watch else "--restart"
                raise OptionError(f"{word} needs a journal: name one folder, or -o FOLDER.")
            self._record = NoJournal()
            return self._record
        self._path = resolve_model(self._args.model)
        if is_folder(self._path) and real_path(home).is_relative_to(real_path(self._path)):
            raise OutputError(f"{home} is inside the model {self._path}; choose another folder.")
        self._options = options_of(self._path, self._args)
        journal = self._stack.enter_context(Journal(home, self._args.shard))
        if not journal.locked:
            talk(f"warning: {home} has no locks; see that only one process works there.")
        if journal.damaged:
            talk(f"warning: {journal.path}: lines without meaning: {journal.damaged}; what they "
                 "said is done again.")  # fmt: skip
        journal.start(self._options, restart=self._args.restart)
        self._record = journal
        return journal

    def _tell_plan(self, plan: Plan, record: Record, tasks: list[Task]) -> None:
        for error in plan.refused:
            self.fail(error)
        if plan.other:
            self.fail(
                f"{_files(plan.other)} done before with other options, or by another version: "
                "pass --restart to do that again, or --skip-existing to keep it."
            )
        self._rows += plan.rows
        if plan.skipped and not self._args.quiet:
            where = record.path if isinstance(record, Journal) else "their results exist"
            talk(f"{_files(plan.skipped)} done before ({where}), {_files(len(tasks))} to do")

    def _load(self, tasks: list[Task]) -> None:
        """Loads the model, once."""
        if self._model is not None:
            return
        args = self._args
        self._path = path = self._path or resolve_model(args.model)
        keep_out(path, [task.job for task in tasks])
        from mt3_runtime.loading import load_model  # noqa: PLC0415  not needed for --help

        self._model = self._stack.enter_context(load_model(path, **self._load_options()))
        if not args.quiet:
            own = path in shipped_models().values()
            small = " (the package's small model; mt3 models lists better ones)" if own else ""
            talk(f"{path.name}{small} on {self._model.device}, {_files(len(tasks))}")

    def _load_options(self) -> dict[str, Any]:
        args = self._args
        return {
            "device": args.device,
            "threads": args.threads,
            "auto_filter": AUTO_FILTERS[args.auto_filter],
            "decoding": args.decoding,
            "profile": args.profile,
        }

    def _transcribe(self, tasks: list[Task], plan: Plan, record: Record, policy: Policy) -> None:
        args, model = self._args, self._model
        assert model is not None  # noqa: S101  loaded by now
        options = {name: getattr(args, name) for name in ("instruments", "exclude", "grammar",
                   "min_confidence")}  # fmt: skip
        whole = {"smooth": args.smooth, "upstream_quirks": args.upstream_quirks}
        if _streams(tasks, args):
            failed = stream_notes(
                model,
                tasks,
                named=len(tasks) > 1,
                quiet=args.quiet,
                fail_fast=args.fail_fast,
                options=options,
            )
            self.code = ExitCode.FAILED if failed else self.code
            return
        progress = BatchProgress(
            tasks,
            style="none" if args.quiet and args.progress == "bar" else args.progress,
            skipped=plan.skipped,
            failed=plan.other + len(plan.refused),
        )
        common: dict[str, Any] = {
            "begin": partial(_begin, record),
            "look": progress.look,
            "timeout": args.timeout,
            "longest": args.max_duration,
        }
        engine: BatchEngine | AutoEngine
        if is_auto(args.instruments):
            engine = AutoEngine(model, options | whole, update=progress.update, **common)
        else:
            engine = BatchEngine(
                model, options | whole, update=progress.update, readers=args.readers, **common
            )
        load = {"model": self._path, **self._load_options()}
        lone = LoneProcess(load, options | whole, **common)
        manner = Manner(
            tempo=args.tempo,
            options=policy.options,
            split=bool(args.split),
            retries=args.retries,
            fail_fast=args.fail_fast,
            quiet=args.quiet,
            report=args.report,
            watchful=isinstance(record, Journal),
        )
        run = BatchRun(engine, lone, record, manner, progress, self._rows)
        before = len(self._rows)
        try:
            with lone, progress:
                run.run(tasks)
        finally:
            left = len(tasks) - (len(self._rows) - before)
            self._left += left
            self.code = run.code or self.code
        if engine.broken:
            self.fail(f"the device has failed; {_files(left)} left. The same command goes on.")


def _clean(record: Record, tasks: list[Task]) -> None:
    """Removes what processes that were killed have left beside the results of some sources."""
    if isinstance(record, Journal):
        places = [Path(result.path).parent for task in tasks if task.alone
                  for result in task.job.results]  # fmt: skip
        for place in dict.fromkeys(places):
            remove_temporary(place, record.dead)


def _begin(record: Record, task: Task) -> None:
    """Notes that a source is about to be read, and what it is like at that moment."""
    task.stamp = Stamp.of(task.job.source)
    if task.key and task.stamp:
        record.begin(task.key, task.stamp)


def _streams(tasks: list[Task], args: argparse.Namespace) -> bool:
    """Whether notes go to standard output as they come.

    Raises:
        OptionError: They are to, and an option needs whole recordings.
    """
    result = tasks[0].job.results[0]
    if (result.path, result.format) != (STDOUT, "jsonl"):
        return False
    whole = [name for name in ("smooth", "upstream_quirks", "report") if getattr(args, name)]
    whole += ["instruments auto"] if is_auto(args.instruments) else []
    if whole and len(tasks) > 1:
        option = whole[0].replace("_", "-")
        raise OptionError(f"--{option} needs whole recordings, and -o - streams; name a folder.")
    return not whole


def _orderly(error: BaseException | None) -> bool:
    """Whether the work ends by itself or was called off, so that no source is suspected."""
    if isinstance(error, MT3Error):
        return isinstance(error, OptionError | OutputError)
    return not isinstance(error, Exception)


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"
