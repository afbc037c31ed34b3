"""Plans a batch: which sources are to be done, which are done already, which cannot be.

Contract, source by source, of a record that has been kept:

* It is done with the same options, has not changed, and its results are there: skipped.
* It is done with other options, and its results are there: left as it is, which is a failure that
  is said once for all of them; to replace a result takes a word of the user.
* Everything else is to be done.  A result that exists is replaced if it is provably ours.

Without a record, what exists is skipped only if that is asked for, and if all results are there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mt3_runtime.batch.batch_report import Row
from mt3_runtime.batch.records.journal import Record
from mt3_runtime.batch.records.ledger import Entry, Stamp
from mt3_runtime.batch.task import Task
from mt3_runtime.commands.jobs import STDIN, Draft, Job, possible
from mt3_runtime.errors import OutputError
from mt3_runtime.files.formats import SUFFIXES
from mt3_runtime.filesystem.folder_names import FolderNames


@dataclass(frozen=True)
class Policy:
    """What a user wants of results that exist.

    Attributes:
        options: Digest of the options.
        restart: Nothing counts as done.
        skip_existing: Results that exist are good as they are.
        overwrite: Whatever has the name of a result may be replaced.
    """

    options: str = ""
    restart: bool = False
    skip_existing: bool = False
    overwrite: bool = False


@dataclass
class Plan:
    """What there is to do.

    Attributes:
        tasks: To be done.
        rows: What is known of the others, for the report.
        skipped: How many are done.
        other: How many are done with other options.
        refused: Why the results of some cannot be written.
    """

    tasks: list[Task] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    skipped: int = 0
    other: int = 0
    refused: list[OutputError] = field(default_factory=list)


def plan_tasks(
    drafted: Draft, stamps: Mapping[Path, Stamp], record: Record, policy: Policy
) -> Plan:
    """Sorts jobs into those to be done and the others.

    Args:
        drafted: All jobs, also those that another process does: names depend on all of them.
        stamps: Of the sources that may be done.
        record: What is known of them.
        policy: What is wanted.

    Raises:
        OptionError: The output of the only source exists.
    """
    plan = Plan()
    entries: dict[Path, Entry | None] = {}
    names = FolderNames()

    def skip(job: Job) -> bool:
        if job.source not in stamps:
            return job.source is not STDIN
        key = record.key(job.source)
        entry = entries[job.source] = record.entry(key)
        known = _Known(entry, key, record, names)
        verdict = _verdict(job, known, stamps[job.source], policy)
        if verdict == "skipped":
            plan.skipped += 1
            plan.rows.append(_known(job, entry))
        elif verdict == "other":
            plan.other += 1
            message = "done with other options"
            plan.rows.append(Row(str(job.source), "failed", error="OptionError", message=message))
        return verdict != "do"

    def may_replace(job: Job, path: str) -> bool:
        return policy.skip_existing or record.owns(path, record.key(job.source))

    def refuse(job: Job, error: OutputError) -> None:
        plan.refused.append(error)
        plan.rows.append(Row(str(job.source), "failed", error="OutputError", message=str(error)))

    jobs = possible(
        drafted,
        overwrite=policy.overwrite,
        refuse=refuse,
        skip=skip,
        may_replace=may_replace,
    )
    for job in jobs:
        entry, piped = entries.get(job.source), job.source is STDIN
        plan.tasks.append(
            Task(
                job,
                key="" if piped else record.key(job.source),
                attempts=entry.attempts if entry and entry.status != "done" else 0,
                alone=bool(entry and entry.suspicious),
                keep=policy.skip_existing,
                size=0 if piped else stamps[job.source].size,
            )
        )
    return plan


class _Known(NamedTuple):
    """What is known of a source: its entry and key in the record, and which files there are."""

    entry: Entry | None
    key: str
    record: Record
    names: FolderNames


def _verdict(job: Job, known: _Known, stamp: Stamp, policy: Policy) -> str:
    """Whether a job is ``skipped``, done with ``other`` options, or to ``do``."""
    entry, exists, record = known.entry, known.names.exists, known.record
    if policy.restart:
        return "do"
    if policy.skip_existing and all(exists(result.path) for result in job.results):
        return "skipped"
    if entry is None or entry.status != "done" or entry.stamp != stamp:
        return "do"
    outputs = _recorded(job, entry, record)
    there = [path for path in outputs or () if exists(path)]
    ours = partial(record.owns, key=known.key)
    if outputs is None:  # a format is new; the others are replaced with it
        again, there = True, [result.path for result in job.results if ours(result.path)]
    elif len(there) < len(outputs):
        again = True
    else:
        again = policy.overwrite and not all(map(ours, outputs))
    if entry.options == policy.options:
        return "do" if again else "skipped"
    return "other" if there and not policy.overwrite else "do"


def _recorded(job: Job, entry: Entry, record: Record) -> list[str] | None:
    """The results that were written and are wanted; None if some are wanted that were not."""
    formats = {result.format for result in job.results}
    split = any(result.stem for result in job.results)
    written = {
        path: SUFFIXES.get(os.path.splitext(path)[1], "")  # noqa: PTH122  see `Stamp.of`
        for path in record.results(entry)
    }
    outputs = [path for path, form in written.items() if form in formats]
    covered = {written[path] for path in outputs} >= formats or (split and not written)
    return outputs if covered and entry.split == split else None


def _known(job: Job, entry: Entry | None) -> Row:
    """The row of a source that an earlier run has done."""
    outputs = tuple(result.path for result in job.results)
    if entry is None or entry.status != "done":
        return Row(str(job.source), "skipped", outputs)
    return Row(
        str(job.source), "skipped", entry.outputs, entry.seconds, entry.notes, entry.wall,
        entry.attempts,
    )  # fmt: skip
