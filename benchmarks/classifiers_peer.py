"""PyTorch's side of `classifiers.py`: makes seeded networks of the published sizes, and runs them.

    python classifiers_peer.py make FOLDER
    python classifiers_peer.py serve FOLDER THREADS

`serve` loads both networks, says ``ready``, and runs the one that is named on a line of stdin, on
samples of noise; it answers with the seconds that took, and with its peak of memory [MiB].
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    HubertConfig,
    HubertForSequenceClassification,
    Wav2Vec2FeatureExtractor,
)

AST, HUBERT = "ast", "hubert"
GTZAN = (
    "blues",
    "classical",
    "country",
    "disco",
    "hiphop",
    "jazz",
    "metal",
    "pop",
    "reggae",
    "rock",
)


def make(folder: Path) -> None:
    """Writes both networks as Hugging Face folders."""
    torch.manual_seed(0)
    labels = ["Piano", "Drum kit", *(f"class {i}" for i in range(525))]
    names = dict(enumerate(labels))
    config = ASTConfig(num_labels=527, id2label=names, label2id={v: k for k, v in names.items()})
    ASTForAudioClassification(config).save_pretrained(folder / AST)
    ASTFeatureExtractor().save_pretrained(folder / AST)
    names = dict(enumerate(GTZAN))
    small = HubertConfig(
        num_hidden_layers=2,
        feat_proj_layer_norm=False,
        id2label=names,
        label2id={v: k for k, v in names.items()},
    )
    HubertForSequenceClassification(small).save_pretrained(folder / HUBERT)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder / HUBERT)


def serve(folder: Path, threads: int) -> None:
    """Answers as the module says."""
    torch.set_num_threads(threads)
    begun = time.perf_counter()
    networks = {
        AST: (ASTFeatureExtractor(), ASTForAudioClassification.from_pretrained(folder / AST)),
        HUBERT: (
            Wav2Vec2FeatureExtractor(),
            HubertForSequenceClassification.from_pretrained(folder / HUBERT),
        ),
    }
    for _, network in networks.values():
        network.eval()
    print("ready", time.perf_counter() - begun, flush=True)
    noise = np.random.default_rng(0).standard_normal(30 * 16000).astype(np.float32) * 0.1
    for line in sys.stdin:
        name = line.strip()
        samples = noise[: 16384 * 10] if name == AST else noise
        extract, network = networks[name]
        begun = time.perf_counter()
        with torch.inference_mode():
            network(**extract(samples, sampling_rate=16000, return_tensors="pt"))
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(seconds, peak, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        serve(Path(sys.argv[2]), int(sys.argv[3]))
