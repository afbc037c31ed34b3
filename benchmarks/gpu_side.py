"""Our side of gpu.py: a worker process (see `common.serve`) with one model on one device.

``rehearsal`` runs the CUDA backend over the CPU provider, and engines on the tests' fake GPU, so
that the benchmark itself can be tried where there is none.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, serve, talk

from mt3_runtime.backends.devices import open_backend
from mt3_runtime.backends.ort_cpu import OrtCpuBackend
from mt3_runtime.backends.ort_gpu.ort_cuda import CPU, OrtCudaBackend
from mt3_runtime.backends.ort_gpu.ort_memory import DeviceSpec
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.model import Model, token_digest

_state: dict[str, Any] = {}


def load(
    bundle: str,
    *,
    device: str,
    cuda_graph: bool = True,
    rehearsal: bool = False,
    precision: str = "",
    engines: str = "",
) -> dict[str, Any]:
    """Loads the bundle; ``device`` is cpu or cuda, or tensorrt or rtx with a precision."""
    if device in ("tensorrt", "rtx") and not rehearsal:
        build(bundle, device, precision, engines)
    _state["before"] = memory()["used"]
    begin, found = time.perf_counter(), Bundle(bundle)
    if device == "cpu":
        profile = "cpu" if "cpu" in found.profiles else "portable"
        backend: Any = OrtCpuBackend(found, profile=profile)
    elif rehearsal and device == "rtx":
        backend = rehearsed(found, precision, engines)
    elif device in ("tensorrt", "rtx"):
        os.environ |= {"MT3_ENGINES": engines, "MT3_TENSORRT_PRECISION": precision}
        backend = open_backend(found, device)
    else:
        place = DeviceSpec(CPU, "cpu") if rehearsal else None
        backend = OrtCudaBackend(found, cuda_graph=cuda_graph, place=place)
    loaded, weights = time.perf_counter(), memory()["used"]
    model = Model(found, backend, auto_filter=False)
    model.warmup()
    _state.update(model=model, backend=backend)
    return {
        "seconds": loaded - begin,
        "warmup": time.perf_counter() - loaded,
        "device": model.device,
        "precision": found.manifest.precision.name,
        "memory loaded": _more(weights),
        "memory warm": _more(memory()["used"]),
    }


def build(bundle: str, maker: str, precision: str, engines: str) -> None:
    """Builds the engines that are not there yet, in a process of its own."""
    words = ["build", bundle, "--for", maker, "--precision", precision, "--engines", engines]
    command = [sys.executable, "-m", "mt3_runtime", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  ours
    talk(done.stderr)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise SystemExit(" ".join(last) or f"mt3 build ended with {done.returncode}")


def rehearsed(bundle: Bundle, precision: str, engines: str) -> Any:
    """Engines on a GPU made of NumPy."""
    sys.path.insert(0, str(ROOT))
    from mt3_engines.storage.requests import BuildOptions  # noqa: PLC0415
    from mt3_engines.storage.store import EngineStore  # noqa: PLC0415
    from mt3_engines.versions import RTX  # noqa: PLC0415
    from tests.engines.test_backend import Machine  # noqa: PLC0415  needs the path above

    store, targets = EngineStore(Path(engines)), RTX.targets[1:]
    wish = BuildOptions(precision)  # type: ignore[arg-type]
    return Machine(
        bundle.path, store, "1.7.1.116", wish, maker=RTX, targets=targets, capability="8.9"
    ).backend()


def features(audio: str, out: str, segments: int | None = None) -> dict[str, Any]:
    """Makes the features that all sides start from, and keeps them in ``out`` (.npy)."""
    found = _state["model"].preprocess(audio)[:segments]
    np.save(out, found)
    return {"segments": len(found)}


def take(path: str) -> dict[str, Any]:
    """Takes over the features that another side made."""
    _state["features"] = np.load(path)
    return {"segments": len(_state["features"])}


def forward(copies: int = 1) -> dict[str, Any]:
    """Encodes and decodes the ready features, so many times over in one call."""
    inputs = np.concatenate([_state["features"]] * copies)
    begin = time.perf_counter()
    found = _state["model"].forward(inputs)
    seconds = time.perf_counter() - begin
    one = found[: len(found) // copies]
    return {
        "seconds": seconds,
        "digest": token_digest(one),
        "said": [sequence.tokens.tolist() for sequence in one],
        "log_probs": [sequence.log_probs.tolist() for sequence in one],
        "tokens": sum(len(sequence.tokens) for sequence in found),
    }


def song(audio: str, midi: str) -> dict[str, Any]:
    """Audio file to MIDI file."""
    begin = time.perf_counter()
    result = _state["model"].transcribe_notes(audio)
    result.save(midi)
    return {"seconds": time.perf_counter() - begin, "digest": result.token_digest}


def songs(audio: str, copies: int) -> dict[str, Any]:
    """So many audio files at once, to notes."""
    begin = time.perf_counter()
    found = list(_state["model"].transcribe_many([audio] * copies))
    digests = {result.token_digest for result in found}
    return {"seconds": time.perf_counter() - begin, "digest": " ".join(sorted(digests))}


def first_note(audio: str) -> dict[str, Any]:
    """From the call to the first note of a file that is read as a stream."""
    begin = time.perf_counter()
    notes = _state["model"].stream(audio)
    next(notes, None)
    seconds = time.perf_counter() - begin
    notes.close()
    return {"seconds": seconds}


def steps(rows: int, count: int) -> dict[str, Any]:
    """Times ``count`` decoder steps of one lane with so many rows; end-of-sequence is ignored."""
    backend, inputs = _state["backend"], _state["features"]
    lane = backend.lane(rows)
    while lane.room < rows:
        if not lane.widen():
            raise SystemExit(f"no memory for {rows} rows")
    for slot in range(rows):
        lane.load(slot, inputs[slot % len(inputs)])
    for _ in range(count):  # caches grow, steps are recorded
        lane.step(rows)
    lane.restart(slice(0, rows))
    begin = time.perf_counter()
    for _ in range(count):
        lane.step(rows)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds / count, "last_ids": lane.token_ids[:, 0].tolist()}


def held() -> dict[str, Any]:
    """MiB of the GPU's memory that were taken since the model was loaded, others' included."""
    return {"memory": _more(memory()["used"])}


def memory() -> dict[str, Any]:
    """What the GPU's processes hold together, in MiB, as nvidia-smi says; None without it."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.check_output(command, text=True)  # noqa: S603  a fixed command
        return {"used": int(lines.split()[0])}
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return {"used": None}


def _more(now: int | None) -> int | None:
    before = _state.get("before")
    return None if now is None or before is None else now - before


if __name__ == "__main__":
    serve({"load": load, "features": features, "take": take, "forward": forward, "song": song,
           "songs": songs, "first_note": first_note, "steps": steps, "held": held,
           "memory": memory})  # fmt: skip
