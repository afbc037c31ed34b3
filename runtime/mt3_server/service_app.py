"""The ASGI application: paths, and what every request passes before it reaches one.

Contract: a `Gate` gives every request a number, checks host, origin, token and rate, counts it,
answers what goes wrong, and writes one line of log; then a route does the work.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mt3_runtime.errors import MT3Error
from mt3_server.api import (
    analysis_route,
    job_routes,
    listing_routes,
    muscriptor_api,
    transcription_route,
)
from mt3_server.api.page_files import page_routes
from mt3_server.api.request_work import Caller, caller_of
from mt3_server.kept_jobs.job_runner import JobRunner
from mt3_server.live_audio import live_socket
from mt3_server.observing.json_logs import log
from mt3_server.protection.access import OPEN_PATHS
from mt3_server.protection.refusals import ClientGoneError, Refusal, refusal_of

if TYPE_CHECKING:
    from mt3_server.service import Service

GONE = 499
"""Status, in logs and metrics, of requests whose client has left (nginx's)."""

LINGER_SECONDS = 5.0
"""In which a client that was answered early can send on."""

SAFE_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"cross-origin-resource-policy": b"same-origin",
}
"""Of every answer."""


def service_app(service: Service, *, page: Path | None = None) -> ASGIApp:
    """The application of a service.

    Args:
        service: What it answers for.
        page: Folder of files to serve at ``/``; the one of the package if None.
    """
    cors = Middleware(
        CORSMiddleware,
        allow_origins=sorted(service.settings.origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["authorization", "content-type"],
        expose_headers=["x-mt3-token-digest", "x-mt3-duration", "x-mt3-notes", "retry-after"],
    )
    app = Starlette(
        routes=[*api_routes(), *page_routes(page)],
        lifespan=_lifespan,
        middleware=[cors] if service.settings.origins else [],
        exception_handlers={
            Refusal: _answer_error,
            MT3Error: _answer_error,
            OSError: _answer_error,
            HTTPException: _answer_error,
            ClientGoneError: _answer_nobody,
            Exception: _answer_unexpected,
        },
    )
    app.router.redirect_slashes = False  # a path is right or wrong
    app.state.service, app.state.runner = service, JobRunner(service)
    return Gate(app, service)


def api_routes() -> list[BaseRoute]:
    """All paths but those of the page."""
    jobs, analyse = "/v1/jobs", analysis_route.analyse
    return [
        Route("/v1/transcriptions", transcription_route.transcribe, methods=["POST"]),
        Route(jobs, job_routes.add_job, methods=["POST"]),
        Route(jobs, job_routes.list_jobs, methods=["GET"]),
        Route(jobs + "/{job}", job_routes.show_job, methods=["GET"]),
        Route(jobs + "/{job}", job_routes.delete_job, methods=["DELETE"]),
        Route(jobs + "/{job}/result", job_routes.job_result, methods=["GET"]),
        WebSocketRoute("/v1/live", live_socket.live),
        Route("/v1/models", listing_routes.list_models, methods=["GET"]),
        Route("/v1/instruments", listing_routes.list_instruments, methods=["GET"]),
        *(Route(f"/v1/{name}", analyse, methods=["POST"])
          for name in analysis_route.analysis_names()),
        Route("/version", listing_routes.show_version, methods=["GET"]),
        Route("/openapi.json", listing_routes.show_openapi, methods=["GET"]),
        Route("/metrics", listing_routes.metrics, methods=["GET"]),
        Route("/health/live", listing_routes.live, methods=["GET"]),
        Route("/health/ready", listing_routes.ready, methods=["GET"]),
        Route("/health", muscriptor_api.health, methods=["GET"]),
        Route("/instruments", muscriptor_api.instruments, methods=["GET"]),
        Route("/transcribe", muscriptor_api.transcribe, methods=["POST"]),
        Route("/transcribe/midi", muscriptor_api.transcribe_midi, methods=["POST"]),
    ]  # fmt: skip


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    """Looks after engines and jobs while the application runs."""
    service, runner = app.state.service, app.state.runner
    runner.resume()
    watching = asyncio.create_task(service.watch())
    try:
        yield
    finally:
        service.stop_taking()
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await runner.stop(service.seconds_left)
        await asyncio.to_thread(service.close)


async def _answer_error(request: Request, error: Exception) -> Response:
    refusal, caller = refusal_of(error), caller_of(request)
    if refusal.status == 500:
        raise error
    caller.facts["refused"] = refusal.why
    request.app.state.service.metrics.rejected.labels(refusal.why).inc()
    return refusal.response(caller.request_id)


async def _answer_unexpected(request: Request, error: Exception) -> Response:
    return refusal_of(error).response(caller_of(request).request_id)  # raised again to the gate


async def _answer_nobody(request: Request, _error: Exception) -> Response:
    caller_of(request).facts["gone"] = True
    return Response(status_code=GONE)


class Gate:
    """What every request passes, see the module docstring."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request, or socket."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        caller = Caller(secrets.token_hex(8), None)
        scope["mt3.caller"] = caller
        passage = _Passage(self._service, scope, (receive, send), caller)
        counted: str | None = None
        try:
            account = self._let_in(scope, caller)
            if account is not None:
                self._service.rates.begin(account)
                counted = account
            await self._app(scope, passage.receive, passage.send)
        except Exception as error:  # noqa: BLE001  the last line of defence
            await passage.refuse(error)
        finally:
            if counted is not None:
                self._service.rates.end(counted)
            passage.tell()

    def _let_in(self, scope: Scope, caller: Caller) -> str | None:
        """Checks a request; returns on whose account it is counted, None if on nobody's."""
        service, headers = self._service, Headers(scope=scope)
        address = scope["client"][0] if scope.get("client") else "local"
        service.access.check_host(headers)
        if scope["path"] in OPEN_PATHS and scope["type"] == "http":
            caller.client = "anybody"
            return None
        service.rates.count(address)
        service.access.check_origin(headers)
        caller.client = service.access.client(headers, address)
        if scope["type"] == "websocket":
            return caller.client or address  # it may show its token in its first message
        if scope["method"] != "OPTIONS" and not _is_page(scope["path"]):
            service.access.check_token(caller.client, scope["path"])
        return caller.client or address


def _is_page(path: str) -> bool:
    """Whether a path is one of the page's files, which hold nothing that needs a token."""
    names = ("/v1/", "/metrics", "/openapi.json", "/version", *muscriptor_api.PATHS)
    return not path.startswith(names)


class _Passage:
    """One request on its way out."""

    def __init__(
        self, service: Service, scope: Scope, ends: tuple[Receive, Send], caller: Caller
    ) -> None:
        self._service, self._scope, self._caller = service, scope, caller
        self._receive, self._send = ends
        self._begun = time.monotonic()
        self._status = 0
        headers = Headers(scope=scope)
        self._more = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers

    async def receive(self) -> Message:
        """Receives a part of a request."""
        message = await self._receive()
        self._more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Sends a part of an answer; a client that takes none is given up."""
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self._status = message["status"]
            own = [(b"x-request-id", self._caller.request_id.encode()), *SAFE_HEADERS.items()]
            message["headers"] = [*message.get("headers", []), *own]
        elif message["type"] == "websocket.accept":
            self._status = 101
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        try:
            async with asyncio.timeout(self._service.settings.patience):
                if last and self._more:
                    await self._send({**message, "more_body": True})
                    await self._read_on()
                    message = {"type": "http.response.body", "body": b"", "more_body": False}
                await self._send(message)
        except TimeoutError:
            raise ClientGoneError from None

    async def _read_on(self) -> None:
        """Lets a client that was answered before its end send the rest, which nobody reads.

        If the connection were closed on it, it would lose the answer.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self._more:
                    await self.receive()

    async def refuse(self, error: Exception) -> None:
        """Answers what went wrong, if that is still possible."""
        refusal = refusal_of(error)
        if isinstance(error, ClientGoneError):
            self._caller.facts["gone"] = True
            self._status = GONE
            return
        if refusal.status == 500:
            log("error", level=logging.ERROR, error=error, request_id=self._caller.request_id)
        self._caller.facts["refused"] = refusal.why
        self._service.metrics.rejected.labels(refusal.why).inc()
        if self._status:
            return  # the answer has begun: the server cuts it off
        response = refusal.response(self._caller.request_id)
        bare = "websocket.http.response" not in self._scope.get("extensions", {})
        if self._scope["type"] == "websocket" and bare:
            await self._send({"type": "websocket.close", "code": 1008})
            return
        with suppress(ClientGoneError, RuntimeError):
            await response(self._scope, _nothing, self.send)

    def tell(self) -> None:
        """Counts the request and writes its line."""
        route = self._scope.get("route")
        path = getattr(route, "path", None) or ("page" if self._status < 400 else "other")
        code = GONE if self._caller.facts.get("gone") else self._status
        self._service.metrics.requests.labels(path, str(code)).inc()
        if self._scope["path"] in OPEN_PATHS:
            return  # asked every few seconds
        log(
            "request",
            request_id=self._caller.request_id,
            client=self._caller.client or "unknown",
            method=self._scope.get("method", "WS"),
            route=path,
            status=code,
            seconds=round(time.monotonic() - self._begun, 4),
            **self._caller.facts,
        )


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
