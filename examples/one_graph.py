#!/usr/bin/env python3
"""A whole model as one graph, with onnxruntime and NumPy alone: samples in, tokens out.

    mt3 export default --single-file -o model
    python examples/one_graph.py model song.wav        (16 kHz, mono, 16 bits)

Prints the tokens of each segment; `runtime/web/vectors.json` tells what they mean as notes.
"""

from __future__ import annotations

import json
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

ROWS = 8
"""Segments decoded in one call: a compromise of speed and memory."""


def read_wave(path: Path, rate: int) -> npt.NDArray[np.float32]:
    """Samples [n] of a mono file of 16 bits."""
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (rate, 1, 2):
            raise SystemExit(f"{path} must be mono, 16 bits, {rate} Hz")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.astype(np.float32) / np.float32(32768)


def tokens_of(folder: Path, samples: npt.NDArray[np.float32]) -> Iterator[list[int]]:
    """Tokens of the consecutive segments of a recording."""
    manifest = json.loads((folder / "bundle.json").read_text())
    (graph,) = manifest["graphs"]
    session = onnxruntime.InferenceSession(folder / graph["file"])
    size, hop = manifest["segments"]["samples"], manifest["segments"]["hop"]
    extra = manifest["segments"]["padding"] == "extra_hop"
    count = len(samples) // size + 1 if extra else -(-len(samples) // size)
    padded = np.zeros(count * size, np.float32)
    padded[: len(samples)] = samples
    frames = np.full(count, size // hop)
    frames[-1] = len(samples) % size // hop + 1
    index = np.arange(count)
    everything = {
        "samples": padded.reshape(count, size),
        "frames": frames,
        "index": index,
        "last": index == count - 1,
    }
    for at in range(0, count, ROWS):
        feeds = {name: everything[name][at : at + ROWS] for name in graph["inputs"]}
        tokens, _log_probs = session.run(["tokens", "log_probs"], feeds)
        for row in tokens:
            yield row[row >= 0].tolist()


if __name__ == "__main__":
    model, song = map(Path, sys.argv[1:3])
    for said in tokens_of(model, read_wave(song, 16000)):
        sys.stdout.write(" ".join(map(str, said)) + "\n")
