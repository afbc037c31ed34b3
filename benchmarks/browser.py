#!/usr/bin/env python3
"""The JavaScript runtime in a browser against this one: same samples, then same files, and speed.

    python benchmarks/browser.py ../shared/audio --segments 8

Needs node, the browser and `npm ci --ignore-scripts --prefix runtime/web`.  Workers have one thread
each; the time of a recording is that of the page.  Of a file, F1 is that of notes within 50 ms of
ours; beside it stands that of our own notes after noise 160 dB below full scale: where that is not
1, the model decides between tokens that are equally likely, and no other decoder can agree.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from mt3_evaluation.scoring import match
from mt3_export.single_file import export_single_file
from mt3_runtime import Model, load_model
from mt3_runtime.audio.sources import load_audio
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.notes.note import Note

SCRIPTS = Path(__file__).parents[1] / "tests" / "web"
SOUNDS = (".flac", ".mp3", ".wav")
NOISE = 1e-8
"""Standard deviation: 160 dB below full scale, a tenth of what rounding to float32 does."""


def main() -> None:
    """Runs all recordings and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audio", type=Path, help="folder of recordings")
    parser.add_argument("--browser", default="/usr/bin/chromium", help="Chromium or Firefox")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--segments", type=int, default=0, help="of each recording (0: all)")
    parser.add_argument("-m", "--model", default=None)
    options = parser.parse_args()
    paths = sorted(path for path in options.audio.iterdir() if path.suffix in SOUNDS)
    with tempfile.TemporaryDirectory() as folder, load_model(options.model, device="cpu") as model:
        whole = {path.name: load_audio(path, target_rate=model.sample_rate) for path in paths}
        most = options.segments * model.info.segments.samples or None
        samples = {name: audio[:most] for name, audio in whole.items()}
        read = browser_samples(options.browser, Path(folder), paths)
        result = {
            "same samples": same_samples(
                options.browser, Path(folder), model, samples, workers=options.workers
            ),
            "same files": {n: same_file(model, samples[n], read[n][:most]) for n in samples},
        }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


def browser_samples(browser: str, folder: Path, paths: list[Path]) -> dict[str, np.ndarray]:
    """What a browser makes of files."""
    run("read_in_browser.mjs", browser, folder, *(path.resolve() for path in paths))
    return {p.name: np.fromfile(folder / f"{p.name}.f32", np.float32) for p in paths}


def same_samples(
    browser: str, folder: Path, model: Model, samples: dict[str, np.ndarray], *, workers: int = 1
) -> dict[str, Any]:
    """Equal segments and MIDI bytes, and times real time, recording by recording."""
    export_single_file(Bundle(model.path), folder / "model", start="features")
    place = folder / "samples"
    place.mkdir()
    for name, audio in samples.items():
        audio.tofile(place / name)
    files = [place / name for name in samples]
    found = {}
    printed = run("in_browser.mjs", browser, folder / "model", workers, *files)
    for line in printed.splitlines():
        answer = json.loads(line)
        audio = samples[answer["name"]]
        expected = [s.tokens.tolist() for s in model.forward(model.preprocess(audio))]
        midi = io.BytesIO()
        model.transcribe_notes(audio, auto_filter=False).to_midi().save(file=midi)
        pairs = zip(answer["tokens"], expected, strict=True)
        found[answer["name"]] = {
            "segments": len(expected),
            "equal": sum(a == b for a, b in pairs),
            "midi": bytes(answer["midi"]) == midi.getvalue(),
            "times real time": round(answer["duration"] / answer["seconds"], 2),
        }
    return found


def same_file(model: Model, ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Segments that differ, and F1 of notes, of two readings of one file."""
    random = np.random.default_rng(1)
    noisy = ours + random.normal(0, NOISE, len(ours)).astype(np.float32)
    first, second, third = (model.forward(model.preprocess(a)) for a in (ours, theirs, noisy))
    pairs = zip_longest(first, second)  # a browser may leave an encoder's padding at the end
    differing = [
        i for i, (a, b) in enumerate(pairs) if not (a and b and np.array_equal(a.tokens, b.tokens))
    ]
    both = min(len(ours), len(theirs))
    notes, read, shaken = (model.assemble(tokens) for tokens in (first, second, third))
    return {
        "segments": max(len(first), len(second)),
        "differing": differing,
        "notes F1": round(f1(notes, read), 4),
        "F1 with noise": round(f1(notes, shaken), 4),
        "difference [dB]": round(decibels(theirs[:both] - ours[:both]) - decibels(ours), 1),
    }


def decibels(samples: np.ndarray) -> float:
    """Mean power, in dB of full scale."""
    return float(10 * np.log10(np.mean(samples.astype(np.float64) ** 2) + 1e-30))


def f1(first: Sequence[Note], second: Sequence[Note]) -> float:
    """Of notes of equal pitch and instrument whose onsets are within 50 ms."""
    pairs = match(first, second, lambda note: (note.pitch, note.program, note.is_drum))
    count = len(first) + len(second)
    return 2 * len(pairs) / count if count else 1.0


def run(script: str, *arguments: object) -> str:
    """What a script of node prints."""
    command = ["node", str(SCRIPTS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout


if __name__ == "__main__":
    main()
