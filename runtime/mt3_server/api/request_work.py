"""Work for a request: who asks, how long they stay, and what they have sent.

Contract: `while_there` does something as long as the client is connected, and calls it off when it
leaves.  `taken_in` admits a request, receives its upload and checks what is asked of it, in this
order; the upload is gone behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from starlette.requests import Request

from mt3_server.api.result_files import without_paths
from mt3_server.api.transcribe_query import NAMES, TranscribeQuery
from mt3_server.protection.refusals import ClientGoneError
from mt3_server.protection.request_bodies import Upload, receive_upload

if TYPE_CHECKING:
    from mt3_runtime.transcription import Handle, Transcription
    from mt3_server.service import Service

T = TypeVar("T")


@dataclass
class Caller:
    """Who asks.

    Attributes:
        request_id: Of the request, in answers and logs.
        client: On whose account it goes; None if no token was shown yet.
        facts: What the log says of the request.
    """

    request_id: str
    client: str | None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The client, for those that have been let in."""
        return self.client or "anybody"


def caller_of(request: Request) -> Caller:
    """Who asks, as the gate found out."""
    return cast("Caller", request.scope["mt3.caller"])


def service_of(request: Request) -> Service:
    """The service that is asked."""
    return cast("Service", request.app.state.service)


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """What some work comes to; it is called off when the client leaves.

    Raises:
        ClientGoneError: It has left.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def result_of(request: Request, handle: Handle) -> Transcription:
    """The result of a recording that is under way; it is cancelled when the client leaves."""
    try:
        return without_paths(await while_there(request, asyncio.wrap_future(handle)))
    finally:
        if handle.cancel():
            service_of(request).metrics.cancelled.labels("client").inc()


@asynccontextmanager
async def taken_in(
    request: Request, *, names: tuple[str, ...] = NAMES
) -> AsyncIterator[tuple[Upload, TranscribeQuery]]:
    """A request with its upload, and what is asked for in its query and its form.

    Args:
        request: Whose body was not read.
        names: Of the options that may be given.

    Raises:
        Refusal: It is refused.
        OptionError: What is asked for makes no sense.
    """
    service = service_of(request)
    asked = request.query_params.multi_items()
    query = TranscribeQuery.of(asked, names=names)  # before anything is read
    service.check_ready(query.model)
    upload = await receive_upload(request, service.spool, service.settings)
    try:
        count_upload(request, upload)
        if upload.fields:
            query = TranscribeQuery.of([*asked, *upload.fields], names=names)
            service.check_ready(query.model)
        yield upload, query
    finally:
        upload.file.remove()


def count_upload(request: Request, upload: Upload) -> None:
    """Counts an upload, and notes it for the log."""
    service, facts = service_of(request), caller_of(request).facts
    service.metrics.upload_bytes.inc(upload.file.size)
    facts["bytes"] = upload.file.size
    if service.settings.log_names and upload.name:
        facts["name"] = upload.name[:200]
