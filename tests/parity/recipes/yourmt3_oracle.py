"""Runs the original YourMT3 on given features: encoder, greedy tokens, logits, choice of experts.

Contract: a stand-alone program for the environment of tests/parity/yourmt3-requirements.txt (the
package `yourmt3` of PyPI, the authors' code); it imports nothing of this project. Networks, greedy
loop and key/value cache are used as published; only the spectrogram is replaced by the given
features. Weights are loaded strictly: no entry of the file, but those of spectrogram and pitch
shifter, may be missing in the network or be left over.

Usage: python yourmt3_oracle.py JOBS.json, a list of objects with

    model      "YMT3+", "YPTF+Single", "YPTF+Multi" or "YPTF+MoE+Multi"
    weights    a bare state dict
    features   npy, float32 [N, T, bins]
    steps      tokens to decode
    out        npz to write

Of every job the result holds, C being the decoder's channels,

    tokens         int64 [N * C, steps], greedy, in segment-major order
    encoded        float32 [N * C, T, M], what the decoder attends to
    logits         float32 [N * C, steps, V], after the start token and all but the last of `tokens`
    encoded_noise, logits_noise
                   the largest difference to the same network in float64 (softmax and norms of the
                   decoder, and the routers' softmax, stay in float32: the code says so)
    experts        int64 [layers, tokens, 2], best first; what float64 chooses is in `experts64`,
                   the probability by which the second expert beats the third in `margins`
"""

from __future__ import annotations

import copy
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch


def import_package() -> Any:
    """The package, without what a CPU build of torch makes fail: torchaudio's own library."""
    extension = types.ModuleType("torchaudio._extension")
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False
    extension._IS_ALIGN_AVAILABLE = False
    extension.fail_if_no_align = lambda function: function
    extension._check_cuda_version = lambda: None
    sys.modules["torchaudio._extension"] = extension
    sys.modules["torchvision"] = None  # transformers would import a build for CUDA
    import yourmt3
    import yourmt3.config.config

    torch.set_float32_matmul_precision("highest")  # the package asks for less
    torch.set_num_threads(1)  # threads that wait for each other suffer on a busy machine
    return yourmt3


def load(package: Any, pristine: dict[str, Any], model: str, weights: str) -> Any:
    """A network with the weights; constructors change the package's configuration for good."""
    for name, value in pristine.items():
        shared = getattr(package.config.config, name)
        shared.clear()
        shared.update(copy.deepcopy(value))
    network = package.YMT3(weights, model).model
    state = torch.load(weights, weights_only=True)
    missing, unexpected = network.load_state_dict(state, strict=False)
    beside = ("spectrogram.", "pitchshift.")
    left = [name for name in [*missing, *unexpected] if not name.startswith(beside)]
    if left:
        raise SystemExit(f"{weights} is not the layout of {model}: {left[:5]}")
    network.spectrogram = torch.nn.Identity()
    return network


class Routes:
    """Listens to the routers of all layers."""

    def __init__(self, network: Any) -> None:
        self.logits: list[torch.Tensor] = []
        for name, module in network.named_modules():
            if name.endswith(".mlp.gate"):
                module.register_forward_hook(self._hear)

    def _hear(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        self.logits.append(output.detach())

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Experts and margins since the last call."""
        shares = [torch.softmax(logits, -1, dtype=torch.float32) for logits in self.logits]
        self.logits.clear()
        if not shares:
            return np.zeros((0, 0, 2), np.int64), np.zeros((0, 0), np.float32)
        best, experts = torch.topk(torch.stack(shares), 3, dim=-1)
        return experts[..., :2].numpy(), (best[..., 1] - best[..., 2]).numpy()


def encode(network: Any, features: torch.Tensor) -> torch.Tensor:
    """What the decoder attends to, [N, (C,) T, M]."""
    hidden = network.encoder(inputs_embeds=network.pre_encoder(features))
    return network.pre_decoder(hidden["last_hidden_state"])


def teach(network: Any, encoded: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [N, C, L, V] of tokens [N, C, L], by one uncached pass."""
    read = torch.nn.functional.pad(tokens, (1, -1))
    if encoded.dim() == 3:
        read = read[:, 0]
    hidden, _ = network.decoder(
        inputs_embeds=network.embed_tokens(read), encoder_hidden_states=encoded, return_dict=False
    )
    logits = network.lm_head(hidden)
    return logits if logits.dim() == 4 else logits[:, None]


@torch.inference_mode()
def run(package: Any, pristine: dict[str, Any], job: dict[str, Any]) -> None:
    network = load(package, pristine, job["model"], job["weights"])
    routes = Routes(network)
    features = torch.from_numpy(np.load(job["features"]))
    tokens = network.inference(features, None, max_token_length=job["steps"])
    tokens = torch.nn.functional.pad(tokens, (0, job["steps"] - tokens.shape[-1]))
    routes.take()
    encoded = encode(network, features)
    experts, margins = routes.take()
    logits = teach(network, encoded, tokens)
    network.double()
    encoded64 = encode(network, features.double())
    experts64, _ = routes.take()
    logits64 = teach(network, encoded64, tokens)
    np.savez(
        job["out"],
        tokens=tokens.flatten(0, 1).numpy(),
        encoded=encoded.reshape(-1, *encoded.shape[-2:]).numpy(),
        logits=logits.flatten(0, 1).numpy(),
        encoded_noise=(encoded.double() - encoded64).abs().max().item(),
        logits_noise=(logits.double() - logits64).abs().max().item(),
        experts=experts,
        experts64=experts64,
        margins=margins,
    )


def main() -> None:
    package = import_package()
    config = package.config.config
    names = ("audio_cfg", "model_cfg")
    pristine = {name: copy.deepcopy(getattr(config, name)) for name in names}
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(package, pristine, job)


if __name__ == "__main__":
    main()
