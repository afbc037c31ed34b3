"""Metrics of the service for Prometheus.

Contract: `ServiceMetrics` owns the names that docs/serving.md lists, all of which are there from
the first scrape on.  What the engines know is asked for when it is scraped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import generate_latest

from mt3_runtime.diagnostics.work_totals import STAGES

if TYPE_CHECKING:
    from mt3_runtime.diagnostics.engine_health import Health
    from mt3_runtime.diagnostics.work_totals import WorkTotals

CLASSES = ("interactive", "batch", "live")
"""Of requests: somebody waits, a job, a live input."""

CANCELLED = ("client", "deadline", "deleted", "shutdown")
"""Why work was called off."""

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 300.0, 900.0)

#: Gauges of an engine: name, what it is, and where it is in its health.
_GAUGES: tuple[tuple[str, str, Callable[[Health], float]], ...] = (
    ("mt3_engine_healthy", "1 if the device works", lambda h: float(h.healthy)),
    ("mt3_open_recordings", "recordings and live inputs under way", lambda h: h.recordings),
    ("mt3_open_live", "live inputs under way", lambda h: h.live),
    ("mt3_waiting_audio_seconds", "audio taken in and not transcribed", lambda h: h.seconds),
    ("mt3_waiting_segments", "segments that were read and wait for a slot", lambda h: h.waiting),
    ("mt3_decoding_segments", "segments in the slots", lambda h: h.decoding),
    ("mt3_oldest_recording_seconds", "age of the oldest recording", lambda h: h.oldest),
    ("mt3_engine_heartbeat_age_seconds", "since a worker did anything, 0 if idle",
     lambda h: h.stalled),
)  # fmt: skip

#: Counters of a model's decoding loop; rows by steps are the slots in use.
_COUNTERS: tuple[tuple[str, str, Callable[[WorkTotals], float]], ...] = (
    ("mt3_steps", "steps of decoders", lambda w: w.steps),
    ("mt3_step_rows", "rows of all steps", lambda w: w.step_rows),
    ("mt3_tokens", "tokens in finished segments", lambda w: w.tokens),
)


# A time for every number of them, which nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it unannotated


class ServiceMetrics:
    """See the module docstring.

    Args:
        engines: Gives the health of the engines, by model.
        used: Gives the bytes in the spool.

    Attributes:
        requests: Answered, by route and status.
        audio_seconds: Transcribed, by class.
        request_seconds: From the end of an upload to the result, by class.
        first_note_seconds: To the first note that is told.
        cancelled: Work that was called off, by reason.
        rejected: Requests that were refused, by reason.
        truncated_segments: Which reached the token limit.
        live_lag_seconds: From the arrival of the last block of a segment to its events.
        upload_bytes: Received.
    """

    def __init__(
        self, engines: Callable[[], Mapping[str, Health]], used: Callable[[], int]
    ) -> None:
        registry = self._registry = CollectorRegistry()
        self._engines, self._used = engines, used
        self.requests = Counter(
            "mt3_requests", "requests that were answered", ["route", "code"], registry=registry
        )
        self.audio_seconds = Counter(
            "mt3_audio_seconds", "audio that was transcribed", ["class"], registry=registry
        )
        self.request_seconds = Histogram(
            "mt3_request_seconds", "from the end of the upload to the result", ["class"],
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self.first_note_seconds = Histogram(
            "mt3_first_note_seconds", "from the end of the upload to the first note", ["class"],
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self.live_lag_seconds = Histogram(
            "mt3_live_lag_seconds", "from the arrival of live audio to its events",
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self.cancelled = Counter(
            "mt3_cancelled", "work that was called off", ["why"], registry=registry
        )
        self.rejected = Counter(
            "mt3_rejected", "requests that were refused", ["why"], registry=registry
        )
        self.truncated_segments = Counter(
            "mt3_truncated_segments", "segments that reached the token limit", registry=registry
        )
        self.notes = Counter("mt3_notes", "notes that were found", registry=registry)
        self.upload_bytes = Counter("mt3_upload_bytes", "uploads received", registry=registry)
        for name in CLASSES:
            self.audio_seconds.labels(name)
            self.request_seconds.labels(name)
            self.first_note_seconds.labels(name)
        for why in CANCELLED:
            self.cancelled.labels(why)
        ProcessCollector(registry=registry)
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """What the engines know, for the registry."""
        health = self._engines()
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["model"])
            for model, one in health.items():
                gauge.add_metric([model], value(one))
            yield gauge
        for name, text, count in _COUNTERS:
            counter = CounterMetricFamily(name, text, labels=["model"])
            for model, one in health.items():
                counter.add_metric([model], count(one.work))
            yield counter
        yield from _times({model: one.work for model, one in health.items()})
        yield GaugeMetricFamily("mt3_spool_bytes", "uploads and results on disk", self._used())

    def text(self) -> bytes:
        """All of it in the text format of Prometheus."""
        return generate_latest(self._registry)


def _times(work: Mapping[str, WorkTotals]) -> Iterable[Metric]:
    """Seconds of stages, and seconds that recordings waited for their first slot."""
    stages = CounterMetricFamily(
        "mt3_stage_seconds", "seconds of threads, by stage", labels=["model", "stage"]
    )
    queue = SummaryMetricFamily(
        "mt3_queue_seconds", "from admission to the first slot", labels=["model"]
    )
    for model, one in work.items():
        for stage in STAGES:
            stages.add_metric([model, stage], one.seconds[stage])
        queue.add_metric([model], one.begun, one.waited)
    yield stages
    yield queue
