#!/usr/bin/env python3
"""One graph of a whole model against the runtime: tokens of all segments, and processor time.

    python benchmarks/one_graph.py ../shared/audio default path/to/magenta_mt3

Both get the same samples; the runtime makes features, decodes and refills its slots, the graph does
everything in calls of eight segments.  One thread each, in turns, recording by recording.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from mt3_export.single_file import export_single_file
from mt3_runtime import load_model
from mt3_runtime.audio.segments import Segment, cut
from mt3_runtime.audio.sources import load_audio
from mt3_runtime.bundles.bundle import Bundle, Manifest
from mt3_runtime.models.installed import resolve_model

ROWS = 8
SOUNDS = (".flac", ".mp3", ".wav")


def main() -> None:
    """Runs all models on all recordings and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audio", type=Path, help="folder of recordings")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--segments", type=int, default=0, help="of each recording (0: all)")
    options = parser.parse_args()
    paths = sorted(path for path in options.audio.iterdir() if path.suffix in SOUNDS)
    result = {name: compared(name, paths, options.segments) for name in options.models}
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


def compared(name: str, paths: list[Path], limit: int) -> dict[str, Any]:
    """Counts of equal segments, and seconds of processor time, of one model."""
    bundle = Bundle(resolve_model(name))
    with (
        tempfile.TemporaryDirectory() as folder,
        load_model(name, device="cpu", threads=1) as model,
    ):
        single = export_single_file(bundle, Path(folder) / "single")
        session = opened(Path(folder) / "single" / single.graphs[0].file)
        total = {"segments": 0, "equal": 0, "tokens": 0, "runtime": 0.0, "graph": 0.0}
        rows = {}
        for path in paths:
            rate, size = model.sample_rate, single.segments.samples
            audio = load_audio(path, target_rate=rate)
            audio = audio[: limit * size] if limit else audio
            said, ours = timed(lambda audio=audio: model.forward(model.preprocess(audio)))
            found, theirs = timed(lambda audio=audio: decoded(session, single, audio))
            pairs = zip(found, said, strict=True)
            equal = sum(np.array_equal(a, b.tokens) for a, b in pairs)
            counts = {"segments": len(said), "equal": equal}
            counts["tokens"] = sum(len(sequence.tokens) for sequence in said)
            rows[path.name] = counts | {"runtime": round(ours, 2), "graph": round(theirs, 2)}
            for key, value in rows[path.name].items():
                total[key] += value
    return {"ratio": round(total["graph"] / total["runtime"], 3), "all": total, "recordings": rows}


def opened(path: Path) -> onnxruntime.InferenceSession:
    """A session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its processor time [s]."""
    started = time.process_time()
    return work(), time.process_time() - started


def decoded(
    session: onnxruntime.InferenceSession, manifest: Manifest, audio: np.ndarray
) -> list[np.ndarray]:
    """Tokens of all segments."""
    segments, found = list(cut([audio], manifest.segments)), []
    for at in range(0, len(segments), ROWS):
        feeds = inputs(segments[at : at + ROWS], manifest)
        wanted = {name: feeds[name] for name in manifest.graphs[0].inputs}
        (tokens,) = session.run(["tokens"], wanted)
        found += [row[row >= 0] for row in tokens]
    return found


def inputs(part: list[Segment], manifest: Manifest) -> dict[str, np.ndarray]:
    """All that a graph may read."""
    samples = np.zeros((len(part), manifest.segments.samples), np.float32)
    for row, segment in zip(samples, part, strict=True):
        row[: len(segment.samples)] = segment.samples
    hop = manifest.segments.hop
    return {
        "samples": samples,
        "frames": np.array([-(-len(segment.samples) // hop) for segment in part]),
        "index": np.array([segment.index for segment in part]),
        "last": np.array([segment.next_start is None for segment in part]),
    }


if __name__ == "__main__":
    main()
