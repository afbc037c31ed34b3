"""A service of the small network on a port of this machine, as clients meet it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import numpy.typing as npt
import soundfile
from starlette.types import ASGIApp

from mt3_runtime.model import Model
from mt3_server.service import Service
from mt3_server.service_app import service_app
from mt3_server.settings import Settings
from mt3_server.uvicorn_server import ServiceServer, open_socket, server_of
from tests.pace import HANGS, until

T = TypeVar("T")


@dataclass
class Running:
    """A service that answers.

    Attributes:
        service: What it stands on.
        server: What takes its connections.
        url: Where it is.
        port: The same.
    """

    service: Service
    server: ServiceServer
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=HANGS, trust_env=False, **options)

    @property
    def app(self) -> ASGIApp:
        """The application behind the server."""
        return self.server.config.loaded_app

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What some work comes to in the server's event loop."""
        loop = self.server.servers[0].get_loop()
        return asyncio.run_coroutine_threadsafe(work, loop).result(HANGS)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=HANGS)

    def metric(self, name: str) -> float:
        """The value of a sample, by its name with labels."""
        for line in self.service.metrics.text().decode().splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no metric {name}")

    def idle(self) -> None:
        """Waits until nothing is under way, and nothing of it is left."""
        keeper = self.service.keeper(None)
        until(lambda: not keeper.health().recordings and not self.service.rates.open)
        until(lambda: not list(self.service.spool.uploads.iterdir()))


@contextmanager
def running(
    model: Model, spool: Path, page: Path | None = None, **options: Any
) -> Iterator[Running]:
    """A service of one model, until the block is left."""
    settings = Settings(spool=spool, port=0, **options)
    service = Service(settings, {"tiny": _Shared(model)})
    listening = open_socket(settings.host, 0)
    server = server_of(service_app(service, page=page), service, listening)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until(lambda: server.started or not thread.is_alive())
    try:
        yield Running(service, server, listening.getsockname()[1] if server.started else 0)
    finally:
        server.should_exit = True
        server.force_exit = False
        thread.join(HANGS)
        listening.close()
        with suppress(OSError):
            service.close()
        assert not thread.is_alive()


class _Shared:
    """A model that several services use: its own end is none of theirs."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def close(self) -> None:
        pass


def flac(samples: npt.NDArray[np.float32], path: Path, rate: int = 16000) -> bytes:
    """Samples as a FLAC file."""
    soundfile.write(path, samples, rate, format="FLAC")
    return path.read_bytes()


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line]


def data_of_events(text: str) -> list[dict[str, Any]]:
    """The objects of server-sent events."""
    found = [line.removeprefix("data: ") for line in text.splitlines()]
    return [json.loads(line) for line in found if line.startswith("{")]
