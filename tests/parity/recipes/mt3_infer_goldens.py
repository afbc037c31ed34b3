"""Makes tests/parity/golden/mt3_infer.npz: features and leakage rules of mt3-infer's own code.

Run it in the environment of tests/parity/oracle-requirements.txt, with torchaudio besides, from the
root of this repository:

    .venvs/oracle/bin/pip install --no-deps torchaudio==2.11.0
    PYTHONPATH=. .venvs/oracle/bin/python tests/parity/recipes/mt3_infer_goldens.py

(Beside a CPU build of torch the compiled part of torchaudio cannot be loaded and is not needed:
remove torchaudio/lib from the environment.)

mt3-infer 0.2.0 is executed as it is.  Arrays of the result: `SIGNAL` holds every `STRIDE`-th value
of the first 256 rows that its ``mt3_pytorch`` adapter makes of a segment, `SIGNAL_rest` the largest
magnitude in the 257th, `SIGNAL_noise` by how much they differ, at most and on average, from a
float64 evaluation with its window and filters.  `actions` uint8 [n, n, n, n] is what its filter
does to a file of so many drums, basses, chromatic percussions and pianos: see `ACTIONS`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.parity.recipes.log_mel import Samples, broadband, ramp

GOLDEN = Path(__file__).parents[1] / "golden" / "mt3_infer.npz"
STRIDE = 53
"""Odd, so that the samples visit every bin and every frame."""

SIGNALS = {"ramp": ramp, "broadband": broadband}

MOST = 8
"""Notes of a kind; enough to meet every threshold from both sides and exactly."""

PLAYERS = ((9, 0), (0, 33), (1, 8), (2, 0))
"""Channel and program of each kind."""

ACTIONS = ("nothing", "drums only", "all to drums")


def counts() -> Iterator[tuple[int, ...]]:
    """Numbers of drums, basses, chromatic percussions and pianos."""
    return itertools.product(range(MOST), repeat=len(PLAYERS))


def in_float64(samples: Samples, filters: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The same formulas without the rounding of float32, window and filters excepted."""
    import torch

    window = torch.hann_window(2048).numpy().astype(np.float64)
    padded = np.pad(samples.astype(np.float64), 1024, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, 2048)[::128]
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    return np.log(power @ filters + 1e-6)


def main() -> None:
    """Asks mt3-infer."""
    import mido
    from mt3_infer.adapters.mt3_pytorch import MT3PyTorchAdapter
    from mt3_infer.models.mt3_pytorch.contrib.spectrograms_torch import SpectrogramProcessor

    adapter = MT3PyTorchAdapter()
    adapter._model_loaded = True
    adapter._spectrogram_processor = processor = SpectrogramProcessor()
    filters = processor.mel_transform.mel_scale.fb.numpy().astype(np.float64)
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for name, signal in SIGNALS.items():
        # The sample behind the segment keeps it from being the last one, whose end is cleared.
        samples = np.append(signal(), np.float32(0.0))
        features = adapter.preprocess(samples, 16000)[0]
        noise = np.abs(features[:256] - in_float64(samples[:-1], filters)[:256])
        arrays[name] = features[:256].astype(np.float32).reshape(-1)[::STRIDE]
        arrays[f"{name}_rest"] = np.abs(features[256:]).max()
        arrays[f"{name}_noise"] = np.array([noise.max(), noise.mean()])

    def action(numbers: tuple[int, ...]) -> int:
        tracks = []
        for (channel, program), number in zip(PLAYERS, numbers, strict=True):
            track = mido.MidiTrack(
                [mido.Message("program_change", channel=channel, program=program)]
            )
            for _ in range(number):
                for kind in ("note_on", "note_off"):
                    track.append(mido.Message(kind, channel=channel, note=60, velocity=90, time=9))
            tracks.append(track)
        given = mido.MidiFile(tracks=tracks)
        made = adapter._apply_auto_filtering(given)
        hits = [m.channel == 9 for t in made.tracks for m in t if m.type == "note_on"]
        if made is given:
            return 0
        return 1 if len(hits) == numbers[0] else 2

    table = np.array([action(numbers) for numbers in counts()], np.uint8)
    arrays["actions"] = table.reshape([MOST] * len(PLAYERS))
    np.savez_compressed(GOLDEN, **arrays)
    print({name: array.shape for name, array in arrays.items()}, np.bincount(table))


if __name__ == "__main__":
    main()
