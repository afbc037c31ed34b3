"""Decodes a recording with the single graph of a model: what a host does, in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from mt3_runtime.audio.log_mel import FeatureExtractor
from mt3_runtime.audio.segments import Segment, cut
from mt3_runtime.bundles.bundle import Bundle


def decode(
    path: Path, audio: np.ndarray, *, extractor: FeatureExtractor, rows: int = 8
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and log-probabilities of all segments of mono audio at the model's rate."""
    bundle = Bundle(path)
    (graph,) = bundle.manifest.graphs
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(bundle.data(graph), options)
    segments, found = list(cut([audio], bundle.manifest.segments)), []
    for at in range(0, len(segments), rows):
        part = segments[at : at + rows]
        feeds = _feeds(part, bundle, extractor)
        tokens, log_probs = session.run(
            ["tokens", "log_probs"], {name: feeds[name] for name in graph.inputs}
        )
        found += [(t[t >= 0], p[t >= 0]) for t, p in zip(tokens, log_probs, strict=True)]
    return found


def _feeds(
    part: list[Segment], bundle: Bundle, extractor: FeatureExtractor
) -> dict[str, np.ndarray]:
    config = bundle.manifest.segments
    samples = np.zeros((len(part), config.samples), np.float32)
    for row, segment in zip(samples, part, strict=True):
        row[: len(segment.samples)] = segment.samples
    return {
        "samples": samples,
        "features": np.stack([extractor(segment.samples) for segment in part]),
        "frames": np.array([-(-len(segment.samples) // config.hop) for segment in part]),
        "index": np.array([segment.index for segment in part]),
        "last": np.array([segment.next_start is None for segment in part]),
    }
