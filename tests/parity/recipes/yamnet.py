"""Records what LiteRT says of the recordings with YAMNet's file, so the suite needs no LiteRT.

Arrays of the golden:
    NAME        uint8 [windows, 521]: scores times 256 (the file's own steps) of windows of 15,600
                samples, 7,680 apart, the last one filled up with zeros
    versions    text

Run (first line in the suite's environment, second with ai-edge-litert 2.3.0):
    python -m tests.parity.recipes.yamnet write FOLDER
    python tests/parity/recipes/yamnet.py record FOLDER YAMNET.tflite yamnet.npz
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

GOLDEN = Path(__file__).parents[1] / "golden" / "yamnet.npz"
WINDOW, HOP, SHORTEST, STEPS = 15600, 7680, 400, 256

Samples = npt.NDArray[np.float32]


def windows(samples: Samples) -> Iterator[Samples]:
    """The windows of a recording; a last one that brings nothing new is left out."""
    for start in range(0, len(samples), HOP):
        rest = samples[start:]
        if len(rest) < SHORTEST or (start and len(rest) <= WINDOW - HOP):
            return
        yield rest[:WINDOW]


def write(folder: Path) -> None:
    """Writes the samples of the recordings, as the suite reads them."""
    from mt3_runtime.audio.sources import load_audio
    from tests.needs import shared_folder

    for path in sorted((shared_folder() / "audio").iterdir()):
        if path.suffix != ".csv":
            np.save(folder / f"{path.stem}.npy", load_audio(path))


def record(folder: Path, model: Path, out: Path) -> None:
    """Runs the original."""
    import ai_edge_litert
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(model), num_threads=1)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]["index"]
    scores = interpreter.get_output_details()[0]["index"]
    found = {}
    for path in sorted(folder.glob("*.npy")):
        rows = []
        for window in windows(np.load(path)):
            interpreter.set_tensor(given, np.pad(window, (0, WINDOW - len(window))))
            interpreter.invoke()
            rows.append(np.rint(interpreter.get_tensor(scores)[0] * STEPS).astype(np.uint8))
        found[path.stem] = np.array(rows)
    np.savez_compressed(out, versions=f"ai-edge-litert {ai_edge_litert.__version__}", **found)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        record(*map(Path, sys.argv[2:5]))
