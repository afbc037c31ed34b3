"""Records what PyTorch and `transformers` compute with seeded assessing networks, in float64.

Contract: the suite writes the small seeded networks of `tests.assessor_folders`; strict loading of
their state judges names and shapes, too.  MERT is judged by `transformers.HubertModel`, whose
hidden states 0 and 1 are averaged; fusions, aggregation and heads by PyTorch's own modules.

Arrays of the golden:
    mert_SAMPLES              frames of so many samples
    FUSION_PART, FUSION_index_PART     outputs of a network with that fusion, and with the pairing
                              of frame i with note i
    versions                  text

Run (first line in the suite's environment, second with torch 2.13.0, transformers 5.24.0 and this
project's sources on the path):
    python -m tests.parity.recipes.assessor_networks write FOLDER
    python -m tests.parity.recipes.assessor_networks record FOLDER assessor_networks.npz
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

GOLDEN = Path(__file__).parents[1] / "golden" / "assessor_networks.npz"
#: One frame, the last with one, odd ones, one second.
LENGTHS = (400, 719, 720, 16001, 24000)
ROWS, FRAMES, NOTES = 2, 31, 17
RATE = 24000


def samples() -> npt.NDArray[np.float32]:
    """Something like music."""
    time = np.arange(RATE) / RATE
    tones = sum(np.sin(2 * np.pi * 196 * k * time) / k for k in range(1, 7))
    noise = np.random.RandomState(11).standard_normal(RATE)  # its stream never changes
    return (0.1 * tones * np.exp(-4 * (time % 0.4)) + 0.003 * noise).astype(np.float32)


def inputs() -> dict[str, npt.NDArray[np.generic]]:
    """Frames, tokens and spans of a batch."""
    chance = np.random.RandomState(5)
    limits = (5, 16, 16, 88, 128, 128, 1, 512)
    tokens = np.stack([chance.randint(0, n, (ROWS, NOTES)) for n in limits], -1)
    first = chance.randint(0, FRAMES - 1, (ROWS, NOTES))
    last = np.minimum(first + chance.randint(1, 9, (ROWS, NOTES)), FRAMES)
    return {
        "frames": chance.standard_normal((ROWS, FRAMES, 48)).astype(np.float32),
        "tokens": tokens.astype(np.int64),
        "spans": np.stack([first, last], -1).astype(np.int64),
    }


def variants() -> dict[str, tuple[str, str]]:
    """Name in the golden -> fusion and alignment."""
    from tests.assessor_folders import ALIGNMENTS, FUSIONS

    found = {fusion: (fusion, ALIGNMENTS.get(fusion, "none")) for fusion in FUSIONS}
    return found | {f"{name}_index": (name, "frame_index") for name in ("gated", "concat")}


def write(folder: Path) -> None:
    """Writes the networks, and a MERT."""
    from tests.assessor_folders import mert_folder, network_folder

    mert_folder(folder / "mert")
    for name, (fusion, alignment) in variants().items():
        network_folder(folder / name, fusion, alignment=alignment)


def record(folder: Path, out: Path) -> None:
    """Runs the originals."""
    import torch
    import transformers
    from safetensors.torch import load_file

    from mt3_export.assessors.network_folder import read_network
    from mt3_export.classifiers.model_folder import open_source
    from mt3_training.assessing.assessor_modules import AssessorModule

    torch.manual_seed(0)
    found: dict[str, npt.NDArray[np.generic]] = {}
    config = json.loads((folder / "mert" / "config.json").read_text())
    config.pop("model_type")
    hubert = transformers.HubertModel(transformers.HubertConfig(**config)).eval()
    state = load_file(folder / "mert" / "model.safetensors")
    state = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): tensor
        for name, tensor in state.items()
    }
    hubert.load_state_dict(state, strict=True)
    hubert = hubert.double()
    with torch.no_grad():
        for length in LENGTHS:
            clip = samples()[:length].astype(np.float64)
            given = (clip - clip.mean()) / max(clip.std(ddof=1), 1e-7)
            said = hubert(torch.from_numpy(given[None]), output_hidden_states=True)
            mean = (said.hidden_states[0] + said.hidden_states[1]) / 2
            found[f"mert_{length}"] = mean[0].numpy()
        for name in variants():
            with open_source(folder / name) as source:
                weights = read_network(source, "tested")
            module = AssessorModule(weights.spec, weights.shape).eval()
            module.load_state_dict(load_file(folder / name / "model.safetensors"), strict=True)
            module = module.double()
            given = inputs()
            inside = module(
                frames=torch.from_numpy(given["frames"]).double(),
                tokens=torch.from_numpy(given["tokens"]),
                spans=torch.from_numpy(given["spans"]),
            )
            parts = {
                "scores": inside.scores,
                "log_variance": inside.log_variance,
                "ordinal": inside.ordinal,
                "pooled": inside.pooled,
                "gates": inside.gates,
                "steps_attention": inside.steps_attention,
                "audio_to_midi": inside.attention and inside.attention[0],
                "midi_to_audio": inside.attention and inside.attention[1],
                **{f"{side}_embedding": x for side, x in inside.embeddings.items()},
            }
            if weights.spec.reads:
                parts["notes"] = module.midi_encoder(torch.from_numpy(given["tokens"]))
            for part, value in parts.items():
                if value is not None:
                    found[f"{name}_{part}"] = value.numpy()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    small = {name: np.asarray(value, np.float32) for name, value in found.items()}
    np.savez_compressed(out, versions=np.array(versions), **small)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        record(Path(sys.argv[2]), Path(sys.argv[3]))
