"""``/v1/jobs``: transcriptions that outlive their connection, and the service."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mt3_server.api.request_work import caller_of, service_of, taken_in
from mt3_server.api.result_files import SUFFIXES, attachment
from mt3_server.api.transcribe_query import OPTIONS, TranscribeQuery
from mt3_server.kept_jobs.job_store import DONE, FAILED, Job
from mt3_server.protection.refusals import Refusal

if TYPE_CHECKING:
    from mt3_server.kept_jobs.job_runner import JobRunner

_NAMES = (*OPTIONS, "model", "tempo", "deadline")


async def add_job(request: Request) -> Response:
    """Takes in a job and answers at once."""
    service, caller = service_of(request), caller_of(request)
    async with taken_in(request, names=_NAMES) as (upload, asked):
        query = replace(asked, model=asked.model or service.default)
        job = service.jobs.add(upload.file, query.to_dict(), caller.name)
    runner_of(request).start(job)
    caller.facts["job"] = job.id
    return JSONResponse(_shown(request, job), 202, {"location": f"/v1/jobs/{job.id}"})


async def list_jobs(request: Request) -> Response:
    """All jobs of the client, the latest first."""
    jobs = service_of(request).jobs.of(caller_of(request).name)
    return JSONResponse({"jobs": [_shown(request, job) for job in jobs]})


async def show_job(request: Request) -> Response:
    """How far a job is."""
    return JSONResponse(_shown(request, _job(request)))


async def delete_job(request: Request) -> Response:
    """Calls a job off, and forgets it."""
    job = _job(request)
    runner_of(request).cancel(job)
    service_of(request).jobs.delete(job)
    return Response(status_code=204)


async def job_result(request: Request) -> Response:
    """A file of the result of a job."""
    asked = request.query_params.multi_items()
    query = TranscribeQuery.of(asked, names=("format", "split"))
    job = _job(request)
    if job.status == FAILED:
        error = job.error or {}
        raise Refusal(409, "failed", f"The job has failed: {error.get('message')}")
    if job.status != DONE:
        raise Refusal(409, "not_done", "The job is not done; ask again later.", retry_after=2)
    wanted = query.format or "midi"
    kind, name = (
        ("zip", f"stems-{wanted}.zip") if query.split else (wanted, f"result.{SUFFIXES[wanted]}")
    )
    try:
        content = await asyncio.to_thread(service_of(request).jobs.result, job, name)
    except FileNotFoundError:
        raise Refusal(404, "no_job", "There is no such job, or it is not kept any more.") from None
    return Response(content, headers=attachment(kind))


def runner_of(request: Request) -> JobRunner:
    """What does the jobs."""
    return cast("JobRunner", request.app.state.runner)


def _job(request: Request) -> Job:
    number = request.path_params["job"]
    return service_of(request).jobs.get(number, caller_of(request).name)


def _shown(request: Request, job: Job) -> dict[str, Any]:
    """What is told of a job."""
    shown: dict[str, Any] = {
        "id": job.id,
        "status": job.status,
        "created": job.created,
        "ended": job.ended,
        "error": job.error,
        "progress": runner_of(request).progress(job),
        "kept_until": job.ended and round(job.ended + service_of(request).settings.keep, 3),
    }
    return shown | ({"result": job.facts} if job.facts else {})
