"""Our side of the YourMT3 benchmark: the worker of ours.py, decoding to given lengths."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ours
from common import serve
from forced import Forced

from mt3_runtime.backends.devices import open_backend
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.commands.machine import peak_rss
from mt3_runtime.decoding.batching import decode
from mt3_runtime.decoding.types import Decoded, Job, Span


def forced(lengths: list[list[int]]) -> dict[str, Any]:
    """Encodes and decodes the ready features; every sequence ends at its length.

    Returns:
        Among others the seconds of encoder and decoder, each the sum over the workers divided by
        their number: both together are the time that the workers work.
    """
    state = ours._state  # noqa: SLF001  the model and the features that it keeps
    backend = open_backend(Bundle(state["bundle"]), "cpu", threads=state["threads"])
    clock = {"load": 0.0, "step": 0.0}
    make, lock = backend.lane, threading.Lock()

    def clocked(slots: int, *, alone: bool = False) -> Any:
        lane = make(slots, alone=alone)
        for name in clock:
            setattr(lane, name, _timed(getattr(lane, name), name, clock, lock))
        return lane

    backend.lane = clocked  # type: ignore[method-assign]
    spec = state["model"].info.decoding
    jobs = (
        Job(Span(index, float(index), None), partial(_as_is, row))
        for index, row in enumerate(state["features"])
    )
    begin = time.perf_counter()
    found: list[Any] = [None] * len(lengths)
    for item in decode(backend, [jobs], lambda slots: Forced(slots, spec, lengths)):
        if isinstance(item, Decoded):
            found[item.span.index] = [sequence.tokens.tolist() for sequence in item.sequences]
    seconds = time.perf_counter() - begin
    tokens = [row for segment in found for row in segment]
    encoder, decoder = (clock[name] / backend.workers for name in ("load", "step"))
    return {"seconds": seconds, "encoder": encoder, "decoder": decoder, "tokens": tokens,
            "peak_rss": peak_rss()}  # fmt: skip


def _as_is(row: Any) -> Any:
    return row


def _timed(
    call: Callable[..., None], name: str, clock: dict[str, float], lock: threading.Lock
) -> Callable[..., None]:
    """The method, with its seconds added to the clock."""

    def timed(*arguments: Any) -> None:
        begin = time.perf_counter()
        call(*arguments)
        took = time.perf_counter() - begin
        with lock:
            clock[name] += took

    return timed


if __name__ == "__main__":
    serve({"load": ours.load, "features": ours.features, "forced": forced})
