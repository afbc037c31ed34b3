"""Records what `transformers` computes with seeded classifiers, so the suite needs neither.

Contract: the suite writes small seeded networks in the published layouts (so strict loading judges
names and shapes, too); their features and logits are recorded for the signals below.

Arrays of the golden:
    kaldi_SIGNAL            every `STRIDE`-th number of ASTFeatureExtractor's NumPy path
    ast_S_SIGNAL            logits of an AST with stride S
    FAMILY_N                logits of the first N samples of the signal "music"
    versions                text

Run (first line in the suite's environment, second with torch 2.13.0 and transformers 5.24.0, and
without torchaudio):
    python -m tests.parity.recipes.classifiers write FOLDER
    python tests/parity/recipes/classifiers.py record FOLDER classifiers.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

GOLDEN = Path(__file__).parents[1] / "golden" / "classifiers.npz"
STRIDE = 101
STRIDES = (10, 12, 14, 16)
#: Samples that the wave classifiers hear: one frame, the last with one, odd ones, two seconds.
LENGTHS = (400, 719, 720, 16001, 32000)
RATE = 16000
AST_SIGNALS = ("music", "short")

Samples = npt.NDArray[np.float32]


def signals() -> dict[str, Samples]:
    """Noise, silence, clicks, a sweep, something like music; of lengths around the bounds."""
    noise = np.random.RandomState(7).standard_normal(RATE * 11)  # its stream never changes
    time = np.arange(RATE * 11) / RATE
    sweep = 0.5 * np.sin(2 * np.pi * (50 + 340 * time) * time)
    tones = sum(np.sin(2 * np.pi * 220 * k * time) / k for k in range(1, 9))
    music = 0.1 * tones * np.exp(-3 * (time % 0.5)) + 0.003 * noise
    clicks = np.where(np.arange(RATE * 11) % 4000 == 0, 0.9, 0.0)
    found = {
        "noise": 0.1 * noise[: 164080 - 1],
        "silence": np.zeros(20000),
        "clicks": clicks[:163841],
        "sweep": sweep[:164080],
        "music": music,
        "short": music[8000:11000],
        "frame": music[:400],
        "two": music[:560],
    }
    return {name: samples.astype(np.float32) for name, samples in found.items()}


def write(folder: Path) -> None:
    """Writes the networks."""
    from tests.classifier_networks import WAVES, ast_folder, wave_folder

    for stride in STRIDES:
        ast_folder(folder / f"ast_{stride}", stride)
    for family in WAVES:
        wave_folder(folder / family, family)


def record(folder: Path, out: Path) -> None:
    """Runs the originals."""
    import torch
    import transformers

    torch.manual_seed(0)
    found: dict[str, npt.NDArray[np.generic]] = {}
    extractor = transformers.ASTFeatureExtractor()
    features = {
        name: extractor(samples, sampling_rate=RATE, return_tensors="np")["input_values"][0]
        for name, samples in signals().items()
    }
    for name, values in features.items():
        found[f"kaldi_{name}"] = values.reshape(-1)[::STRIDE].astype(np.float32)
    with torch.no_grad():
        for stride in STRIDES:
            place = folder / f"ast_{stride}"
            model = transformers.ASTForAudioClassification.from_pretrained(place).eval()
            for name in AST_SIGNALS:
                logits = model(torch.from_numpy(features[name][None])).logits[0]
                found[f"ast_{stride}_{name}"] = logits.numpy()
        for family in ("hubert", "wav2vec2"):
            model = transformers.AutoModelForAudioClassification.from_pretrained(folder / family)
            own = transformers.AutoFeatureExtractor.from_pretrained(folder / family)
            for length in LENGTHS:
                given = own(signals()["music"][:length], sampling_rate=RATE, return_tensors="pt")
                logits = model.eval()(given["input_values"]).logits[0]
                found[f"{family}_{length}"] = logits.numpy()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    np.savez_compressed(out, versions=np.array(versions), **found)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        record(Path(sys.argv[2]), Path(sys.argv[3]))
