"""Optimisers of a training run, as one object.

Contract: AdamW for everything, or Muon for the matrices inside the layers (its updates are
orthogonalised, which makes sense for maps between equal things only) and AdamW for embedding, input
projection, output head, norms and aids.  Norm scales and biases do not decay.

This module imports torch; import it only where training really starts.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor, nn

from mt3_runtime.errors import CheckpointError, MissingDependencyError
from mt3_training.runs.config import TrainConfig

#: AdamW's averages of gradients and squares; 0.98 forgets early, large gradients soon enough.
BETAS = (0.9, 0.98)

#: Optimisers that share Muon's matrices, so that several threads can work on them.  Its updates
#: cost as much as 30 short or 6 full examples of the small model.
MUON_PARTS = 4

#: Matrices that are no map between two streams of the network.
_NO_MAPS = ("continuous_inputs_projection", "token_embedder", "logits_dense")


class Optimisers:
    """All optimisers of a run.

    Args:
        config: Which ones, and how.
        parameters: What is trained, by name.

    Raises:
        MissingDependencyError: This PyTorch has no Muon.
    """

    def __init__(self, config: TrainConfig, parameters: Mapping[str, nn.Parameter]) -> None:
        groups: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "plain": []}
        for name, parameter in parameters.items():
            map_ = parameter.ndim == 2 and ".layers_" in f".{name}" and not _is_no_map(name)
            kind = "muon" if map_ and config.optimiser == "muon" else "decay"
            groups[kind if parameter.ndim > 1 else "plain"].append(parameter)
        self._rate = config.rate
        decay = {"weight_decay": config.weight_decay}
        self._optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [{"params": groups["decay"], **decay}, {"params": groups["plain"]}],
                betas=BETAS,
                weight_decay=0.0,
                fused=True,
            )
        ]
        if groups["muon"]:
            if not hasattr(torch.optim, "Muon"):
                raise MissingDependencyError(
                    f"PyTorch {torch.__version__} has no Muon. Install 2.9 or newer, or begin a "
                    "run with the optimiser adamw"
                )
            # The adjustment makes one learning rate right for Muon and AdamW.
            self._optimisers += [
                torch.optim.Muon(part, adjust_lr_fn="match_rms_adamw", **decay)
                for part in (groups["muon"][n::MUON_PARTS] for n in range(MUON_PARTS))
                if part
            ]

    def step(self, factor: float, threads: Executor) -> None:
        """One update with ``factor`` times the highest learning rate; clears the gradients."""

        def update(optimiser: torch.optim.Optimizer) -> None:
            for group in optimiser.param_groups:
                group["lr"] = self._rate * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        for _ in threads.map(update, self._optimisers):
            pass  # each changes parameters of its own, so it does not matter who is first

    def to_bytes(self) -> bytes:
        """Their state as torch.save writes it."""
        buffer = io.BytesIO()
        torch.save([optimiser.state_dict() for optimiser in self._optimisers], buffer)
        return buffer.getvalue()

    def load(self, data: bytes, device: torch.device) -> None:
        """Takes what `to_bytes` gave; nothing in it is executed.

        Raises:
            CheckpointError: It is damaged, or of other optimisers.
        """
        try:
            states: list[dict[str, Any]] = torch.load(
                io.BytesIO(data), map_location=device, weights_only=True
            )
            for optimiser, state in zip(self._optimisers, states, strict=True):
                optimiser.load_state_dict(state)
        except Exception as error:  # torch.load raises whatever its parsers do
            raise CheckpointError(f"the optimisers' state cannot be read: {error}") from error


def _is_no_map(name: str) -> bool:
    return any(part in name for part in _NO_MAPS)


def average_(averages: list[Tensor], values: list[Tensor], keep: float) -> None:
    """Moves averages towards values, in place; they keep the share ``keep`` of themselves."""
    torch._foreach_lerp_(averages, values, 1.0 - keep)  # one call for all of them
