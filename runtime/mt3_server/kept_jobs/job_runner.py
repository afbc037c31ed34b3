"""Runs jobs: hands them to an engine in order, and keeps what comes of them.

Contract: as many jobs as `Settings.max_recordings` leaves room for are under way; they are of the
class ``batch``, behind whoever waits for an answer.  A job whose engine failed is begun again when
another one is open; one that the service ended in the middle of is left to the next service.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mt3_runtime.errors import EngineBusyError, EngineError
from mt3_runtime.files.formats import FORMATS
from mt3_server.api.result_files import SUFFIXES, contents, without_paths
from mt3_server.api.transcribe_query import TranscribeQuery
from mt3_server.kept_jobs.job_store import MOST_BEGUN, QUEUED, Job
from mt3_server.observing.json_logs import log
from mt3_server.protection.refusals import Refusal, refusal_of

if TYPE_CHECKING:
    from mt3_runtime.transcription import Handle, Transcription
    from mt3_server.service import Service

MOST_RUNNING = 8
"""Jobs under way; enough segments for all slots, and few enough that those who wait get theirs."""

_PAUSE = 1.0
"""Seconds until a job is tried again that an engine did not take."""


class JobRunner:
    """See the module docstring; lives on the event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._handles: dict[str, Handle] = {}
        self._room = asyncio.Semaphore(MOST_RUNNING)

    def resume(self) -> None:
        """Goes on with what an earlier service has left."""
        for job in self._service.jobs.unfinished():
            if job.begun >= MOST_BEGUN:
                self._service.jobs.fail(job, _crashed().body(job.id))
            else:
                self.start(job)

    def start(self, job: Job) -> None:
        """Does a job, when there is room."""
        task = asyncio.create_task(self._run(job))
        self._tasks[job.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.id, None))

    def progress(self, job: Job) -> dict[str, Any] | None:
        """How far a job is; None if it is not under way."""
        handle = self._handles.get(job.id)
        now = handle.progress if handle else None
        if now is None:
            return None
        return {"seconds_done": round(now.seconds_done, 3), "seconds_total": now.seconds_total,
                "notes": now.notes}  # fmt: skip

    def cancel(self, job: Job) -> None:
        """Calls a job off."""
        task, handle = self._tasks.get(job.id), self._handles.get(job.id)
        if task is not None:
            task.cancel()
        if handle is not None and handle.cancel():
            self._service.metrics.cancelled.labels("deleted").inc()

    async def stop(self, seconds: float) -> None:
        """Waits so long for the jobs under way, and calls the others off."""
        waiting = [task for number, task in self._tasks.items() if number not in self._handles]
        for task in waiting:
            task.cancel()
        if self._tasks:
            await asyncio.wait([*self._tasks.values()], timeout=max(seconds, 0.01))
        for task in [*self._tasks.values()]:
            task.cancel()
            self._service.metrics.cancelled.labels("shutdown").inc()
        for handle in [*self._handles.values()]:
            handle.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _run(self, job: Job) -> None:
        async with self._room:
            while True:
                try:
                    keeper = self._service.keeper(job.query.get("model"))
                    if keeper.health().ready:
                        job = await self._attempt(job)
                        if job.over or keeper.draining:
                            return  # or the next service does it
                    elif keeper.draining:
                        return
                except Exception as error:  # noqa: BLE001  it is this job's alone
                    refusal = refusal_of(error)
                    if refusal.status == 500:
                        log("job_error", level=logging.ERROR, error=error, job=job.id)
                    self._service.jobs.fail(job, refusal.body(job.id))
                    return
                await asyncio.sleep(_PAUSE)

    async def _attempt(self, job: Job) -> Job:
        """Does a job, and returns its record; it is not over if the engine did not do it."""
        service, query = self._service, TranscribeQuery(**job.query)
        begun = service.jobs.begin(job)
        try:
            handle = service.submit(service.jobs.upload(job), query, job.client, priority="batch")
            self._handles[job.id] = handle
            try:
                result = without_paths(await handle)
            finally:
                del self._handles[job.id]
                handle.cancel()
        except EngineBusyError:
            return service.jobs.put(job)
        except EngineError:
            if begun.begun >= MOST_BEGUN and not service.keeper(query.model).draining:
                raise
            return service.jobs.put(replace(begun, status=QUEUED))
        results = await asyncio.to_thread(results_of, result, query.tempo)
        log("job_done", job=job.id, audio_seconds=round(result.duration, 3))
        return service.jobs.finish(begun, results, facts_of_result(result))


def results_of(result: Transcription, tempo: float) -> dict[str, bytes]:
    """The files that are kept of a result, by name: every format, and stems in each of them."""
    files: dict[str, bytes] = {}
    for name in FORMATS:
        files[f"result.{SUFFIXES[name]}"], _ = contents(result, name, tempo=tempo)
        files[f"stems-{name}.zip"], _ = contents(result, name, tempo=tempo, split=True)
    return files


def facts_of_result(result: Transcription) -> dict[str, Any]:
    """What is said of a result beside its files."""
    return {
        "model": result.model,
        "duration": round(result.duration, 6),
        "notes": len(result.notes),
        "token_digest": result.token_digest,
        "warnings": result.warnings,
    }


def _crashed() -> Refusal:
    return Refusal(
        400,
        "crashed",
        f"The service was ended {MOST_BEGUN} times while it did this job, so it does not try it "
        "again. The file is probably damaged; convert it, for example with ffmpeg.",
    )
