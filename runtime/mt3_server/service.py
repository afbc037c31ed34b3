"""The service: models, engines, spool, rates, metrics and jobs, without anything of HTTP.

Contract: `Service.submit` is how every path has an upload transcribed.  A `Service` is made before
the port is opened, so whatever cannot work is said before anybody connects.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from mt3_runtime.errors import DeadlineError, EngineError, OptionError
from mt3_server.engine_keeper import MOST_FAILURES, EngineKeeper
from mt3_server.kept_jobs.job_store import JobStore
from mt3_server.observing.json_logs import log
from mt3_server.observing.service_metrics import ServiceMetrics
from mt3_server.protection.access import Access
from mt3_server.protection.refusals import Refusal
from mt3_server.protection.request_rates import RequestRates
from mt3_server.protection.upload_spool import UploadSpool

if TYPE_CHECKING:
    from pathlib import Path

    from mt3_runtime.diagnostics.engine_health import Health
    from mt3_runtime.model import Model
    from mt3_runtime.notes.note_events import NoteEvent
    from mt3_runtime.transcription import Handle, Progress, Tell, Transcription
    from mt3_server.api.transcribe_query import TranscribeQuery
    from mt3_server.settings import Settings

_LOOK_SECONDS = 1.0
"""Between two looks at the engines."""


class Service:
    """See the module docstring.

    Args:
        settings: How it runs.
        models: By the names that clients know; the first is the one used where none is named.

    Raises:
        OutputError: The spool cannot be used.
        EngineError: A model does not work.
    """

    def __init__(self, settings: Settings, models: Mapping[str, Model]) -> None:
        self.settings = settings
        self.spool = UploadSpool(
            settings.spool, most=settings.spool_bytes, free=settings.free_bytes
        )
        self.keepers = {name: EngineKeeper(name, each, settings) for name, each in models.items()}
        self.default = next(iter(self.keepers))
        self.access, self.rates = Access(settings), RequestRates(settings)
        self.metrics = ServiceMetrics(self.health, lambda: self.spool.used)
        self.jobs = JobStore(self.spool, settings)
        self._live: Counter[str] = Counter()
        self._ends_by: float | None = None
        for keeper in self.keepers.values():
            keeper.probe()

    def keeper(self, name: str | None) -> EngineKeeper:
        """The engine of a model.

        Raises:
            OptionError: There is no such model here; what is loaded was said at the start.
        """
        found = self.keepers.get(self.default if name is None else name)
        if found is None:
            raise OptionError(
                f"There is no model {str(name)[:40]!r} here; expected {', '.join(self.keepers)}."
            )
        return found

    def health(self) -> dict[str, Health]:
        """How the engines are."""
        return {name: keeper.health() for name, keeper in self.keepers.items()}

    @property
    def ready(self) -> bool:
        """Whether every model takes recordings."""
        return all(health.ready for health in self.health().values())

    @property
    def alive(self) -> bool:
        """Whether it makes sense to wait for it to be ready."""
        return all(keeper.failures < MOST_FAILURES for keeper in self.keepers.values())

    def check_ready(self, name: str | None) -> None:
        """Refuses a request for a model that takes nothing now, before its upload is read."""
        keeper = self.keeper(name)
        health = keeper.health()
        if not health.ready:
            why = "is about to end" if keeper.draining else "has failed and is opened again"
            raise Refusal(503, "not_ready", f"The engine {why}; try again later.", retry_after=5)
        if health.recordings - health.live >= self.settings.max_recordings:
            raise Refusal(
                503,
                "busy",
                f"{health.recordings - health.live} recordings are under way, as many as there "
                "may be.",
                retry_after=2,
            )

    def submit(
        self,
        upload: Path,
        query: TranscribeQuery,
        client: str,
        *,
        priority: str = "interactive",
        events: Tell | None = None,
    ) -> Handle:
        """Has an upload transcribed; what comes of it is counted.

        Raises:
            MT3Error: As `Engine.submit`.
        """
        begun = time.monotonic()
        handle = self.keeper(query.model).engine.submit(
            upload,
            priority="batch" if priority == "batch" else "interactive",
            client=client,
            deadline=query.deadline or self.settings.deadline,
            events=_FirstNote(self.metrics, priority, events).tell,
            **query.options,
        )
        handle.add_done_callback(partial(self._count, priority, begun))
        return handle

    def _count(self, priority: str, begun: float, handle: Future[Transcription]) -> None:
        metrics = self.metrics
        if handle.cancelled():
            return  # whoever cancelled it says why
        error = handle.exception()
        if isinstance(error, DeadlineError):
            metrics.cancelled.labels("deadline").inc()
        if error is not None:
            return
        result = handle.result()
        metrics.audio_seconds.labels(priority).inc(result.duration)
        metrics.request_seconds.labels(priority).observe(time.monotonic() - begun)
        metrics.notes.inc(len(result.notes))
        metrics.truncated_segments.inc(sum(report.truncated for report in result.segments))

    def begin_live(self, client: str) -> None:
        """A client opens a live input; `end_live` must follow.

        Raises:
            Refusal: It has too many.
        """
        if self._live[client] >= self.settings.live_per_client:
            raise Refusal(
                429, "concurrency", f"{self._live[client]} live inputs of yours are open, as many "
                "as a client may have.", retry_after=5,
            )  # fmt: skip
        self._live[client] += 1

    def end_live(self, client: str) -> None:
        """It is over."""
        self._live[client] -= 1
        if not self._live[client]:
            del self._live[client]

    async def watch(self) -> None:
        """Looks after engines and jobs until it is cancelled."""
        while True:
            for keeper in self.keepers.values():
                if not keeper.health().healthy:
                    await asyncio.to_thread(keeper.revive)
            self.jobs.forget_old()
            await asyncio.sleep(_LOOK_SECONDS)

    def stop_taking(self) -> None:
        """Begins to end: nothing more is taken, what is under way has `Settings.drain` seconds."""
        if self._ends_by is None:
            self._ends_by = time.monotonic() + self.settings.drain
            log("draining", seconds=self.settings.drain)
            for keeper in self.keepers.values():
                keeper.stop_taking()

    @property
    def seconds_left(self) -> float:
        """Until the end; the whole time while nobody has ended it."""
        if self._ends_by is None:
            return self.settings.drain
        return max(0.0, self._ends_by - time.monotonic())

    def close(self) -> None:
        """Ends; jobs that are not done are begun again by the next service."""
        self.stop_taking()
        for keeper in self.keepers.values():
            keeper.drain(self.seconds_left)
        for keeper in self.keepers.values():
            try:
                keeper.close()
            except EngineError as error:
                log("not_closed", level=logging.WARNING, error_text=str(error))
        self.spool.close()


class _FirstNote:
    """Observes when the first note of a recording is told, and passes everything on."""

    def __init__(self, metrics: ServiceMetrics, priority: str, tell: Tell | None) -> None:
        self._metrics, self._priority, self._tell = metrics, priority, tell
        self._begun = time.monotonic()
        self._found = False

    def tell(self, events: list[NoteEvent], progress: Progress) -> None:
        """Called by the engine."""
        if events and not self._found:
            self._found = True
            seconds = time.monotonic() - self._begun
            self._metrics.first_note_seconds.labels(self._priority).observe(seconds)
        if self._tell is not None:
            self._tell(events, progress)


def facts_of(health: Health) -> dict[str, Any]:
    """What is told of an engine in answers."""
    return {
        "ready": health.ready,
        "healthy": health.healthy,
        "recordings": health.recordings,
        "live": health.live,
        "waiting_audio_seconds": round(health.seconds, 3),
        "waiting_segments": health.waiting,
        "decoding_segments": health.decoding,
        "heartbeat_age_seconds": round(health.stalled, 3),
    }
