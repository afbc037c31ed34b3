"""Compares the PyTorch mixer and augmenter with NumPy's; runs in any Python that has PyTorch."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import torch

importlib.metadata.version = lambda name: "0"  # mt3-runtime need not be installed beside PyTorch

from mt3_synthesis.augment import PREROLL, AugmentConfig, Augmenter  # noqa: E402
from mt3_synthesis.mixer import Voices, render  # noqa: E402
from mt3_training.examples.dataset import DatasetConfig, Examples, dense_rolls  # noqa: E402
from mt3_training.examples.torch_augment import TorchAugmenter  # noqa: E402
from mt3_training.examples.torch_mixer import TorchMixer, torch_rolls  # noqa: E402
from tests.synthesis.sounds import tiny_palette  # noqa: E402

TOLERANCE = 3e-5
"""Greatest RMS difference; 1e-3 of a quiet mix."""


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def main() -> None:
    count, frames = 12, 64
    everything = AugmentConfig(1.0, 1.0, 1.0, 0.5, 1.0)
    config = DatasetConfig(seed=3, frames=frames, augment=everything)
    examples = Examples(config, tiny_palette())
    drawn = [examples.draw(index) for index in range(count)]
    batch = examples.batch(0, count)
    samples = PREROLL + examples.samples
    ours = np.stack([render(one.voices, tiny_palette(), samples=samples) for one in drawn])
    for elements in (1 << 16, 1 << 22):
        mixer = TorchMixer(tiny_palette(), elements=elements)
        theirs = mixer.render(batch.voices, batch.rows, windows=count, samples=samples)
        difference = max(rms(theirs.numpy()[row] - ours[row]) for row in range(count))
        print("mixes differ by", difference, "at", rms(ours))
        assert difference < TOLERANCE
    assert rms(ours) > 0.01

    augmenter = Augmenter(examples.samples)
    colours = [colour._replace(early=0.0, tail=0.0) for colour in batch.colours[:3]]
    colours = [*colours, *batch.colours[3:]]
    coloured = np.stack([augmenter(*pair) for pair in zip(ours, colours, strict=True)])
    theirs = TorchAugmenter(examples.samples)(torch.from_numpy(ours), colours).numpy()
    difference = max(rms(theirs[row] - coloured[row]) for row in range(count))
    print("colours differ by", difference, "at", rms(coloured))
    assert difference < TOLERANCE
    assert rms(coloured) > 0.01

    rolls = torch_rolls(torch.from_numpy(batch.spans), windows=count, frames=frames).numpy()
    for row, one in enumerate(drawn):
        np.testing.assert_array_equal(rolls[row], dense_rolls(one.spans, frames=frames))

    silent = TorchMixer(tiny_palette()).render(
        Voices.none(), np.zeros(0, np.int64), windows=2, samples=100
    )
    assert silent.shape == (2, 100)
    assert not silent.any()


if __name__ == "__main__":
    main()
