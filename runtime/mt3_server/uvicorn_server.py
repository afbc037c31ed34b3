"""The HTTP server: uvicorn, with bounds on connections, and an orderly end.

Contract: a connection beyond `Settings.connections` is told so at once; one on which nothing goes
on, be it a header that never ends or an answer that nobody takes, is cut off.  SIGTERM and SIGINT
let what is under way end, for `Settings.drain` seconds; a second one ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mt3_runtime.errors import OutputError
from mt3_server.live_audio.live_protocol import MOST_MESSAGE
from mt3_server.observing.json_logs import log
from mt3_server.protection.refusals import RETRY_SECONDS

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from mt3_server.service import Service

IDLE_SECONDS = 20.0
"""After which a connection is cut off on which nothing goes on."""

KEEP_ALIVE_SECONDS = 5
"""For the next request of a connection."""

_LOOK_SECONDS = 2.0
_LINGER_SECONDS = 5.0
"""In which a client that was turned away can send what it has begun to, and read why: a connection
that is closed before loses the answer."""

_MOST_HEADER = 16 * 1024
_PING_SECONDS = 20.0


def _turned_away() -> bytes:
    return _answer(
        "503 Service Unavailable",
        "busy",
        "There are as many connections as there may be; try again later.",
        f"retry-after: {RETRY_SECONDS}\r\n",
    )


def _too_early() -> bytes:
    return _answer(
        "400 Bad Request",
        "protocol",
        "Messages came before the handshake was answered, and would be lost; wait for 101.",
    )


def _answer(status: str, kind: str, message: str, header: str = "") -> bytes:
    """An answer of the server's own, as those of the service; the connection ends with it."""
    text = json.dumps({"type": kind, "message": message, "detail": message})
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{header}"
        f"content-length: {len(text)}\r\nconnection: close\r\n\r\n{text}"
    ).encode()


class GuardedProtocol(H11Protocol):
    """One connection, see the module docstring."""

    most = 512
    """Connections; set by `run_server`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        self._refused = len(self.connections) >= self.most
        self._timer: asyncio.TimerHandle | None = None
        if self._refused:
            self.transport = transport
            transport.write(_turned_away())
            if transport.can_write_eof():
                transport.write_eof()
            self._timer = self.loop.call_later(_LINGER_SECONDS, transport.abort)
            return
        super().connection_made(transport)
        self._seen: tuple[object, ...] = ()
        self._since = self.loop.time()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._stop_looking()
        if not self._refused:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes what has come."""
        if not self._refused:
            super().data_received(data)

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        if not self._refused:
            super().pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        if not self._refused:
            super().resume_writing()

    def handle_websocket_upgrade(self, event: Any) -> None:
        """The connection becomes a socket, which has bounds of its own."""
        self._stop_looking()
        if self.conn.trailing_data[0]:  # which uvicorn drops
            self.transport.write(_too_early())
            self.transport.close()
            return
        super().handle_websocket_upgrade(event)

    def _look(self) -> None:
        """Cuts the connection off if nothing has happened for long."""
        now, cycle = self.loop.time(), self.cycle
        idle = cycle is None or cycle.response_complete
        seen = (cycle, idle, self.transport.is_closing())
        if seen != self._seen:
            self._seen, self._since = seen, now
        elif now - self._since > IDLE_SECONDS and (idle or self.transport.is_closing()):
            self.transport.abort()
            return
        self._timer = self.loop.call_later(_LOOK_SECONDS, self._look)

    def _stop_looking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class ServiceServer(uvicorn.Server):
    """uvicorn's server, which begins to end by telling the service."""

    def __init__(self, config: uvicorn.Config, service: Service, url: str) -> None:
        super().__init__(config)
        self._service, self._url = service, url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens the port and says so."""
        await super().startup(sockets)
        log("listening", url=self._url, models=list(self._service.keepers))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Ends in order, at the second time at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._service.stop_taking()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes signals while it runs; unlike uvicorn's it does not raise them again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in _ENDING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


_ENDING = (signal.SIGINT, signal.SIGTERM)


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        OutputError: It cannot: the port is taken, or the address is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise OutputError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    try:
        if sys.platform != "win32":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise OutputError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port."
        ) from error
    return made


def server_of(app: ASGIApp, service: Service, listening: socket.socket) -> ServiceServer:
    """The server of an application, which takes connections once it runs."""
    settings = service.settings
    protocol = type("Protocol", (GuardedProtocol,), {"most": settings.connections})
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=protocol,
        ws="websockets-sansio",
        ws_max_size=MOST_MESSAGE,
        ws_ping_interval=_PING_SECONDS,
        ws_ping_timeout=None,  # an answer may wait behind audio that is not read yet
        ws_per_message_deflate=False,  # PCM hardly shrinks, and what shrinks may be a bomb
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=1024,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.drain)),
        h11_max_incomplete_event_size=_MOST_HEADER,
    )
    host, port = listening.getsockname()[:2]
    return ServiceServer(config, service, f"http://{f'[{host}]' if ':' in host else host}:{port}")


def raise_file_limit() -> None:
    """Lets this process have as many files open as the system allows: connections are files."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415  not on Windows

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
