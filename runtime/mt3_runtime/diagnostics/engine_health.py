"""How an engine is: whether its device works, what waits, and what was done."""

from __future__ import annotations

from dataclasses import dataclass, field

from mt3_runtime.diagnostics.work_totals import WorkTotals


@dataclass(frozen=True)
class Health:
    """How an engine is.

    Attributes:
        healthy: Its device works; otherwise close it and open another one.
        ready: It is healthy and takes recordings.
        recordings: Recordings and live inputs that were taken in and are not done.
        live: How many of them are live.
        seconds: Audio of recordings that was not transcribed yet, as far as lengths are known.
        oldest: Seconds since the oldest recording was taken in.
        waiting: Segments, of the whole model, that were read and wait for a slot.
        decoding: Segments that are in the slots.
        stalled: Seconds since a worker did anything, 0 if there is nothing to do.
        error: What the device raised.
        work: What the decoding loop of the model has done so far, for everybody.
    """

    healthy: bool
    ready: bool
    recordings: int
    live: int
    seconds: float
    oldest: float
    waiting: int
    decoding: int
    stalled: float
    error: str | None = None
    work: WorkTotals = field(default_factory=WorkTotals)
