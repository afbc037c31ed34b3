"""Compares MERT-v1-95M at its full size, with seeded weights, with `transformers` in float64.

Contract: no weights are fetched; the network has the published configuration and PyTorch's own
initial values, norms and positions made lively.  Hidden states 5, 6 and 7 of a clip of 10 s are
averaged, and seven of twelve layers are exported.  Prints sizes, the largest difference, and that
of one clip among four.

Run with torch 2.13.0, transformers 5.24.0, onnx, onnxruntime and this project's sources:
    python -m tests.parity.recipes.mert_full_size FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

SECONDS, RATE = 10, 24000


def main(folder: Path) -> None:
    """Does all of it; the folder is to be new."""
    import torch
    import transformers

    from mt3_analysis.assessment_networks.network_session import open_assessor_networks
    from mt3_export.assessors.assessor_writer import export_assessors

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.HubertConfig()  # the published numbers are those of HuBERT base
    model = transformers.HubertModel(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name and tensor.ndim == 1:
                tensor.add_(0.2 * torch.randn_like(tensor))
            elif name.endswith("weight") and tensor.ndim == 2:
                tensor.mul_(2.0)
    source = folder / "source"
    encoder = source / "audio_encoder"
    encoder.mkdir(parents=True)
    values = {**config.to_dict(), "model_type": "mert_model", "feature_extractor_cqt": False}
    (encoder / "config.json").write_text(json.dumps(values))
    (source / "config.json").write_text(json.dumps({"model_type": "performance-assessor"}))
    torch.save(model.state_dict(), encoder / "pytorch_model.bin")
    export_assessors(source, folder / "fp32", name="mert", storage="fp32")
    export_assessors(source, folder / "fp16", name="mert")
    chance = np.random.RandomState(3)
    at = np.arange(SECONDS * RATE) / RATE
    tones = sum(np.sin(2 * np.pi * 131 * k * at) / k for k in range(1, 9))
    clip = 0.1 * tones * np.exp(-3 * (at % 0.5)) + 0.01 * chance.standard_normal(len(at))
    clip = clip.astype(np.float32)
    given = clip.astype(np.float64)
    given = (given - given.mean()) / given.std(ddof=1)
    with torch.no_grad():
        said = model.double()(torch.from_numpy(given[None]), output_hidden_states=True)
    expected = sum(said.hidden_states[layer][0] for layer in (5, 6, 7)).numpy() / 3
    networks = open_assessor_networks(folder / "fp32", threads=1)
    found = networks.frames(clip)
    other = (0.01 * chance.standard_normal(len(at))).astype(np.float32)
    normal = ((clip - clip.mean()) / clip.std(ddof=1)).astype(np.float32)
    batch = np.stack([other, normal, other[::-1], other])
    among = networks._run("", "audio_encoder", {"audio": batch})["frames"][1]
    alone = networks._run("", "audio_encoder", {"audio": normal[np.newaxis]})["frames"][0]
    half = open_assessor_networks(folder / "fp16", threads=1).frames(clip)
    print(f"parameters {sum(p.numel() for p in model.parameters()):,}")
    for name in ("fp32", "fp16"):
        size = (folder / name / "audio_encoder.cpu.onnx").stat().st_size
        print(f"{name}: {size / 2**20:.1f} MiB")
    print(f"frames {found.shape}, deviation {expected.std():.3f}")
    print(f"largest difference {np.abs(found - expected).max():.2e}")
    print(f"one clip among four: {np.abs(among - alone).max():.2e}")
    print(f"weights stored as fp16: {np.abs(half - expected).max():.2e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
