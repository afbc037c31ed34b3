"""Our side of the benchmarks: a worker process (see `common.serve`) with one loaded model.

Everything goes through the public face of `mt3_runtime`; only the decoder steps are driven through
the backend's lanes, and only `steps` with ``session_threads`` changes anything about them.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
from common import serve

from mt3_runtime.backends.devices import open_backend
from mt3_runtime.backends.ort_plugin import OrtPluginBackend
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.commands.machine import peak_rss
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model, token_digest

_state: dict[str, Any] = {}


def load(
    bundle: str, threads: int | None = None, plugin: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Loads the bundle and runs one silent segment.

    Args:
        bundle: Path.
        threads: Worker threads.
        plugin: Name of a plug-in provider to encode with, and the arithmetic it is asked for.
    """
    begin, worked = time.perf_counter(), time.process_time()
    if plugin is None:
        model = load_model(bundle, device="cpu", threads=threads)
    else:
        opened = Bundle(bundle)
        name, arithmetic = plugin
        model = Model(
            opened, OrtPluginBackend(opened, name, threads=threads, arithmetic=arithmetic)
        )
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - worked
    load_peak_rss = peak_rss()
    model.warmup()
    _state.update(model=model, bundle=bundle, threads=threads)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "device": model.device,
        "load_peak_rss": load_peak_rss,
        "peak_rss": peak_rss(),
    }


def song(audio: str, midi: str) -> dict[str, Any]:
    """Audio file to MIDI file."""
    begin, worked = time.perf_counter(), time.process_time()
    result = _state["model"].transcribe_notes(audio)
    result.save(midi)
    return {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - worked,
        "segments": len(result.segments),
        "notes": len(result.notes),
        "digest": result.token_digest,
        "peak_rss": peak_rss(),
    }


def features(audio: str, out: str, segments: int | None = None) -> dict[str, Any]:
    """Makes the features that all sides start from, and keeps them in `out` (.npy)."""
    begin = time.perf_counter()
    _state["features"] = _state["model"].preprocess(audio)[:segments]
    seconds = time.perf_counter() - begin
    np.save(out, _state["features"])
    return {"seconds": seconds, "segments": len(_state["features"])}


def forward() -> dict[str, Any]:
    """Encodes and decodes the ready features."""
    begin = time.perf_counter()
    found = _state["model"].forward(_state["features"])
    seconds = time.perf_counter() - begin
    lengths = [len(sequence.tokens) for sequence in found]
    return {
        "seconds": seconds,
        "digest": token_digest(found),
        "each": [token_digest([sequence]) for sequence in found],
        "lengths": lengths,
    }


def encode(segments: int = 8) -> dict[str, Any]:
    """Encodes ready features in one lane; processor time of all threads, per segment."""
    lane = _state["model"]._backend.lane(_state["model"].info.model.channels)  # noqa: SLF001
    took = []
    for each in _state["features"][:segments]:
        begin = time.process_time()
        lane.load(0, each)
        took.append(time.process_time() - begin)
    return {"cpu_ms": 1e3 * min(took)}


def recordings(path: str, out: str) -> dict[str, Any]:
    """Takes over recordings, float32 [recordings, samples], and saves their features."""
    _state["recordings"] = list(np.load(path))
    model = _state["model"]
    found = np.stack([model.preprocess(recording) for recording in _state["recordings"]])
    np.save(out, found)
    return {"shape": found.shape}


def many(tokens: int, *, together: bool) -> dict[str, Any]:
    """Transcribes the recordings, with a token limit below the model's own.

    Args:
        tokens: Most tokens of a segment.
        together: In one call, not one after another.
    """
    model = _state["model"]
    model.info = replace(model.info, decoding=replace(model.info.decoding, max_tokens=tokens))
    sources = _state["recordings"]
    begin = time.perf_counter()
    if together:
        found = list(model.transcribe_many(sources))
    else:
        found = [model.transcribe_notes(recording) for recording in sources]
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "digests": [result.token_digest for result in found],
        "tokens": sum(report.token_count for result in found for report in result.segments),
        "peak_rss": peak_rss(),
    }


def schedule() -> dict[str, Any]:
    """Rows of every decoder step of one (slower, untimed) `forward`."""
    backend = open_backend(Bundle(_state["bundle"]), "cpu", threads=_state["threads"])
    rows: list[int] = []
    make = backend.lane

    def counting(slots: int, *, alone: bool = False) -> Any:
        lane = make(slots, alone=alone)
        step = lane.step

        def counted(count: int) -> None:
            rows.append(count)
            step(count)

        lane.step = counted  # type: ignore[method-assign]
        return lane

    backend.lane = counting  # type: ignore[method-assign]
    Model(Bundle(_state["bundle"]), backend).forward(_state["features"])
    return {"rows": rows, "workers": backend.workers, "slots": backend.slots}


def steps(batch: int, count: int, *, lanes: int = 1, alone: bool = False) -> dict[str, Any]:
    """Times `count` decoder steps of `batch` rows spread over `lanes` threads; EOS is ignored.

    Args:
        batch: Rows in all.
        count: Steps.
        lanes: Lanes, each on a thread of its own.
        alone: One lane with all threads, as the runtime gives a lone segment.
    """
    backend = _backend()
    shares = [len(part) for part in np.array_split(np.arange(batch), lanes)]
    running = [backend.lane(share, alone=alone) for share in shares]
    inputs, segment = _state["features"], 0
    for lane, share in zip(running, shares, strict=True):
        for slot in range(share):
            lane.load(slot, inputs[segment % len(inputs)])
            segment += 1
    _drive(running, shares, count)  # caches grow to their final size
    for lane in running:
        lane.positions[:], lane.token_ids[:] = 0, backend.start_id
    seconds = _drive(running, shares, count)
    # The last token of every row: all sides must end at the same ones.
    ids = [int(row[0]) for lane in running for row in lane.token_ids]
    return {"seconds": seconds / count, "last_ids": ids}


def _backend() -> Any:
    if "backend" not in _state:
        _state["backend"] = open_backend(Bundle(_state["bundle"]), "cpu")
    return _state["backend"]


def _drive(lanes: list[Any], shares: list[int], count: int) -> float:
    """Steps all lanes at once; returns the seconds until the last one is done."""
    gate = threading.Barrier(len(lanes) + 1)

    def work(lane: Any, rows: int) -> None:
        gate.wait()
        for _ in range(count):
            lane.step(rows)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(lanes, shares, strict=True)]
    for thread in threads:
        thread.start()
    gate.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin


if __name__ == "__main__":
    serve({"load": load, "song": song, "features": features, "forward": forward,
           "encode": encode, "recordings": recordings, "many": many, "schedule": schedule,
           "steps": steps})  # fmt: skip
