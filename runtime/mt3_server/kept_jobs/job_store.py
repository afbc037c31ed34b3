"""Jobs on disk: each has a folder with its upload, its record and its results.

Contract: the record, ``job.json``, is replaced in one step and flushed, results before the record
that calls them done.  So a service that was killed at any moment finds every job either not done,
and does it, or done and whole.  A job that was begun `MOST_BEGUN` times and never ended has ended
the process, and has failed.  Results are kept for a bounded time and number.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mt3_runtime.filesystem.atomic import write_atomic
from mt3_server.observing.json_logs import log
from mt3_server.protection.refusals import Refusal

if TYPE_CHECKING:
    from mt3_server.protection.upload_spool import SpooledFile, UploadSpool
    from mt3_server.settings import Settings

MOST_BEGUN = 3
"""Times that a job is begun; more than once only if the service was ended meanwhile."""

QUEUED, RUNNING, DONE, FAILED = "queued", "running", "done", "failed"
"""States of a job."""

_ID = re.compile(r"[0-9a-f]{32}")
_RECORD, _UPLOAD = "job.json", "upload"


@dataclass(frozen=True)
class Job:
    """The record of a job.

    Attributes:
        id: 128 random bits.
        client: Whose it is.
        created: Seconds since 1970.
        query: What is asked for, as of `TranscribeQuery`.
        status: One of the states.
        begun: How many times it was begun.
        ended: Seconds since 1970; None while it is not.
        error: Of a failed one, as it is sent.
        facts: Of a done one: what is said beside the result.
    """

    id: str
    client: str
    created: float
    query: dict[str, Any]
    status: str = QUEUED
    begun: int = 0
    ended: float | None = None
    error: dict[str, Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether nothing more becomes of it."""
        return self.status in (DONE, FAILED)


class JobStore:
    """See the module docstring.

    Args:
        spool: In whose folder they are.
        settings: How long and how many are kept.
    """

    def __init__(self, spool: UploadSpool, settings: Settings) -> None:
        self._spool, self._settings = spool, settings
        self._folder = spool.jobs
        self._jobs: dict[str, Job] = {}
        for folder in self._folder.iterdir():
            if not _ID.fullmatch(folder.name):
                continue
            job = _read(folder / _RECORD)
            if job is None:  # killed before its first record: nobody was told of it
                self._remove(folder)
                continue
            self._jobs[job.id] = job

    def unfinished(self) -> list[Job]:
        """The jobs that are to be done, the oldest first."""
        jobs = [job for job in self._jobs.values() if not job.over]
        return sorted(jobs, key=lambda job: job.created)

    def add(self, upload: SpooledFile, query: dict[str, Any], client: str) -> Job:
        """Takes in a job, with its upload.

        Raises:
            Refusal: The client has too many.
            OutputError: The disk is full.
        """
        mine = [job for job in self._jobs.values() if job.client == client]
        if len(mine) >= self._settings.jobs_per_client:
            raise Refusal(
                429,
                "jobs",
                f"{len(mine)} jobs of yours are kept; delete those you have the results of.",
                retry_after=60,
            )
        job = Job(secrets.token_hex(16), client, round(time.time(), 3), query)
        folder = self._folder / job.id
        folder.mkdir(mode=0o700)
        try:
            upload.move(folder / _UPLOAD)
            self.put(job)
        except BaseException:
            self._remove(folder)
            raise
        return job

    def get(self, number: str, client: str) -> Job:
        """A job of a client.

        Raises:
            Refusal: It has none of that number.
        """
        job = self._jobs.get(number)
        if job is None or job.client != client:
            raise Refusal(404, "no_job", "There is no such job, or it is not kept any more.")
        return job

    def of(self, client: str) -> list[Job]:
        """The jobs of a client, the latest first."""
        jobs = [job for job in self._jobs.values() if job.client == client]
        return sorted(jobs, key=lambda job: -job.created)

    def put(self, job: Job) -> Job:
        """Writes the record of a job."""
        data = json.dumps(asdict(job)).encode()
        write_atomic(self._folder / job.id / _RECORD, data)
        self._jobs[job.id] = job
        return job

    def begin(self, job: Job) -> Job:
        """A job is handed to an engine."""
        return self.put(replace(job, status=RUNNING, begun=job.begun + 1))

    def finish(self, job: Job, results: dict[str, bytes], facts: dict[str, Any]) -> Job:
        """A job is done; keeps the files of its results, by name, and forgets the upload."""
        done = replace(job, status=DONE, ended=round(time.time(), 3), facts=facts)
        if job.id not in self._jobs:
            return done  # deleted meanwhile
        for name, data in results.items():
            self._spool.reserve(len(data))
            write_atomic(self._folder / job.id / name, data)
        self.put(done)
        self._forget_upload(job)
        return done

    def fail(self, job: Job, error: dict[str, Any]) -> None:
        """A job has failed."""
        if job.id in self._jobs:
            self.put(replace(job, status=FAILED, ended=round(time.time(), 3), error=error))
            self._forget_upload(job)

    def upload(self, job: Job) -> Path:
        """Where the upload of a job is."""
        return self._folder / job.id / _UPLOAD

    def result(self, job: Job, name: str) -> bytes:
        """A file of the results of a job that is done.

        Raises:
            FileNotFoundError: It was deleted meanwhile.
        """
        return (self._folder / job.id / name).read_bytes()

    def delete(self, job: Job) -> None:
        """Forgets a job and all that is kept of it."""
        self._jobs.pop(job.id, None)
        self._remove(self._folder / job.id)

    def forget_old(self) -> None:
        """Forgets jobs whose time is over."""
        until = time.time() - self._settings.keep
        for job in [job for job in self._jobs.values() if job.ended and job.ended < until]:
            log("job_forgotten", job=job.id)
            self.delete(job)

    def _forget_upload(self, job: Job) -> None:
        path = self.upload(job)
        if path.exists():
            self._spool.release(path.stat().st_size)
            path.unlink()

    def _remove(self, folder: Path) -> None:
        size = sum(path.lstat().st_size for path in folder.glob("*"))
        shutil.rmtree(folder, ignore_errors=True)
        self._spool.release(size)


def _read(path: Path) -> Job | None:
    try:
        return Job(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
