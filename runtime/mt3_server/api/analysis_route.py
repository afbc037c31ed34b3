"""``POST /v1/NAME``: what else can be heard, by the routes of installed packages.

Contract: see `mt3_runtime.extensions.service_routes`.  A route that this project has, and this
installation lacks, says what to install.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from mt3_runtime.errors import OptionError
from mt3_runtime.extensions.service_routes import Route, RouteRequest, route_entries
from mt3_runtime.imports import extras
from mt3_runtime.reading.reader_pool import ReaderPool
from mt3_runtime.reading.reading_plan import ReadingPlan
from mt3_server.api.request_work import caller_of, count_upload, service_of, while_there
from mt3_server.api.result_files import without_paths
from mt3_server.api.transcribe_query import MOST_TEXT, TranscribeQuery
from mt3_server.protection.refusals import not_installed
from mt3_server.protection.request_bodies import receive_upload

if TYPE_CHECKING:
    from pathlib import Path

    from mt3_runtime.backends.base import FloatArray
    from mt3_runtime.transcription import Handle, Transcription
    from mt3_server.service import Service

KNOWN = ("assess", "genre", "tags")
"""Routes of this project's own packages."""

_MOST_RATE = 192_000


def analysis_names() -> list[str]:
    """All routes there may be: those of this project, and those of installed packages."""
    return sorted({*KNOWN, *route_entries()})


async def analyse(request: Request) -> Response:
    """Answers with what the route of that name makes of an upload."""
    name = request.url.path.rpartition("/")[2]
    route = await asyncio.to_thread(_load, name)
    service = service_of(request)
    asked = _options(request.query_params.multi_items())
    service.check_ready(asked.pop("model", None))
    upload = await receive_upload(request, service.spool, service.settings)
    try:
        count_upload(request, upload)
        options = _options([*request.query_params.multi_items(), *upload.fields])
        keeper = service.keeper(options.pop("model", None))
        work = _Work(service, upload.file.path, keeper.name, caller_of(request).name)
        asked_of = RouteRequest(
            upload.file.path, options, keeper.model, work.samples, work.transcribe
        )
        try:
            answer = await while_there(request, asyncio.to_thread(route, asked_of))
        finally:
            work.stop()
    finally:
        upload.file.remove()
    text = json.dumps(dict(answer), allow_nan=False)
    return Response(text, media_type="application/json")


class _Work:
    """What a route may have done for it, until its client leaves."""

    def __init__(self, service: Service, upload: Path, model: str, client: str) -> None:
        self._service, self._upload, self._model = service, upload, model
        self._client = client
        self._handles: list[Handle] = []
        self._pools: list[ReaderPool] = []

    def samples(self, rate: int) -> FloatArray:
        """The upload as mono samples, float32 [n]."""
        if isinstance(rate, bool) or not isinstance(rate, int) or not 0 < rate <= _MOST_RATE:
            raise OptionError(f"{rate!r} is no sample rate up to {_MOST_RATE} Hz.")
        with ReaderPool(1, limits=self._service.settings.limits) as pool:
            self._pools.append(pool)
            with pool.open(self._upload, ReadingPlan(rate)) as reading:
                blocks = [part.data for part in reading]
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)

    def transcribe(self, **options: Any) -> Transcription:
        """The upload, transcribed."""
        query = TranscribeQuery(model=self._model, options=options)
        handle = self._service.submit(self._upload, query, self._client)
        self._handles.append(handle)
        return without_paths(handle.result())

    def stop(self) -> None:
        """Calls off what is under way."""
        for handle in self._handles:
            if handle.cancel():
                self._service.metrics.cancelled.labels("client").inc()
        for pool in self._pools:
            pool.close()


def _options(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """The options of a route by name; what they mean is its own business."""
    given: dict[str, str] = {}
    for name, value in pairs:
        if name in given:
            raise OptionError(f"The option {name[:40]} is given twice.")
        if len(name) > MOST_TEXT or len(value) > MOST_TEXT or "\0" in name + value:
            raise OptionError(f"An option has more than {MOST_TEXT} characters, or a NUL.")
        given[name] = value
    return given


def _load(name: str) -> Route:
    entry = route_entries().get(name)
    if entry is None:
        raise not_installed(
            f"{name} is not part of this installation ({extras.DISTRIBUTION}). Install it again, "
            "with the extra [serve] and all its packages."
        )
    try:
        with extras.named(f"/v1/{name}", "cpu"):
            route: Route = partial(entry.load())
    except ModuleNotFoundError as error:
        raise not_installed(extras.absent(f"The route {name!r}", error)) from error
    return route
