"""Routes: functions by which installed packages answer requests of the service.

Contract: an entry point ``NAME = "module:function"`` of the group `ROUTE_GROUP` becomes
``POST /v1/NAME``.  The function gets a `RouteRequest`, runs on a worker thread, answers a mapping
that JSON can hold, and raises `MT3Error` for a user's mistake.  So a package that hears something
needs to know nothing of HTTP, and the service nothing of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mt3_runtime.backends.base import FloatArray
    from mt3_runtime.model import Model
    from mt3_runtime.transcription import Transcription

ROUTE_GROUP = "mt3_runtime.routes"
"""Entry-point group of functions of the shape `Route`."""


@dataclass(frozen=True)
class RouteRequest:
    """One request, as a route sees it.

    Attributes:
        upload: The file that was sent, under a name of the service's own; it is gone when the route
            has answered.  Its format is that of a stranger's file: read it through `samples`.
        options: What the client asked for, by name; checking it is the route's business.
        model: What transcribes; `transcribe` shares its decoding loop with all other requests.
        samples: Gives the upload as mono samples, float32 [n], at a rate in Hz; decoded in a reader
            process, under the service's limits.  Raises `AudioError`.
        transcribe: Transcribes the upload through the service's engine, with the options of
            `mt3_runtime.request.Options`.  Raises `AudioError`, `OptionError` and `EngineError`.
    """

    upload: Path
    options: Mapping[str, str]
    model: Model
    samples: Callable[[int], FloatArray]
    transcribe: Callable[..., Transcription]


Route = Callable[[RouteRequest], Mapping[str, Any]]
"""Answers a request."""


def route_entries() -> dict[str, EntryPoint]:
    """The routes of all installed packages by name, none of them imported."""
    return {entry.name: entry for entry in entry_points(group=ROUTE_GROUP)}
