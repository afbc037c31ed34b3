"""What a step of training changes: network, aids, optimisers, and the averaged weights.

Contract: `Learner.step` follows from the configuration, the step's number, the batch and the state
before it, and from nothing else: dropout is drawn from a seed per step.  `Learner.state` is all of
that state, so a learner that is restored from it goes on as the first one would have.

This module imports torch; import it only where training really starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mt3_calibration.batches import Batch
from mt3_calibration.checkpointing import Position, State
from mt3_calibration.losses import guide_loss, kind_table, roll_loss, token_loss
from mt3_calibration.network import Aids, Network, as_weights
from mt3_calibration.optimisers import Optimisers, average_
from mt3_calibration.schedule import Schedule
from mt3_calibration.small_model import DEFAULT
from mt3_calibration.tables import KINDS
from mt3_export.weights import FloatArray, Weights
from mt3_runtime.errors import CheckpointError, OptionError

#: Early averages would remember the initial weights: the share kept is at most (1+n) / (10+n).
AVERAGE_WARMUP = 10.0

_MEANS = ("loss", "auxiliary", "guide", "norm")
_TALLY = (*(f"{what} {kind}" for what in ("sum", "count") for kind in KINDS), *_MEANS, "steps")


@dataclass(frozen=True)
class Tensors:
    """A batch on the device; see `mt3_calibration.batches.Batch`.

    Attributes:
        features: float32 [n, T, bins].
        tokens: int64 [n, L].
        frames: float32 [n, L].
        rolls: uint8 [n, T, 3, 128].
    """

    features: Tensor
    tokens: Tensor
    frames: Tensor
    rolls: Tensor

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Tensors:
        """Sends a batch to a device."""
        names = ("features", "tokens", "frames", "rolls")
        sent = (torch.from_numpy(getattr(batch, name)).to(device) for name in names)
        features, tokens, frames, rolls = sent
        return cls(features, tokens, frames, rolls.transpose(1, 2))


class Learner:
    """Network, aids, optimisers and averaged weights: what a step changes."""

    def __init__(self, schedule: Schedule, device: torch.device) -> None:
        self.schedule, self.config, self.device = schedule, schedule.config, device
        torch.manual_seed(self.config.seed)
        self.network = Network(self.config.shape, dropout=self.config.dropout).to(device)
        self.aids = Aids(self.config.shape).to(device)
        self._parameters = dict(self.network.named_parameters()) | {
            f"aids.{name}": parameter for name, parameter in self.aids.named_parameters()
        }
        self.average = {
            name: parameter.detach().clone() for name, parameter in self.network.named_parameters()
        }
        self._optimisers = Optimisers(self.config, self._parameters)
        self._kinds = kind_table(DEFAULT.vocabulary).to(device)
        self._tally = torch.zeros(len(_TALLY), device=device)

    def step(self, batch: Batch, number: int, progress: float) -> None:
        """One step of the optimisers; adds its losses to the tally."""
        config = self.config
        torch.manual_seed((config.seed << 32) + number + 1)
        data = Tensors.of(batch, self.device)
        fade = self.schedule.aid_factor(progress)
        weights = {"auxiliary": fade * config.auxiliary, "guide": fade * config.guide}
        read = functional.pad(data.tokens[:, :-1], (1, 0), value=DEFAULT.decoding.start_id)
        bf16 = config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            out = self.network(data.features, read, guide=weights["guide"] > 0.0)
            rolls = self.aids(out.encoded) if weights["auxiliary"] else None
        loss, kinds = token_loss(out.logits, data.tokens, self._kinds)
        total, zero = loss, loss.new_zeros(())
        auxiliary = zero if rolls is None else roll_loss(rolls, data.rolls)
        guide = zero if out.attention is None else guide_loss(out.attention, data.frames)
        total = loss + weights["auxiliary"] * auxiliary + weights["guide"] * guide
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), config.clip)
        self._optimisers.step(self.schedule.rate_factor(number, progress))
        keep = min(config.average, (1.0 + number) / (AVERAGE_WARMUP + number))
        average_(list(self.average.values()), list(self.network.parameters()), keep)
        each = torch.stack([loss, auxiliary, guide, norm, zero + 1.0])
        self._tally += torch.cat([kinds.flatten(), each]).detach()

    def losses(self) -> dict[str, float]:
        """Mean losses since the last call, by the log's names.

        Raises:
            OptionError: They are not finite: the run has diverged.
        """
        values = dict(zip(_TALLY, self._tally.tolist(), strict=True))
        self._tally.zero_()
        steps = max(values["steps"], 1.0)
        means = {name: values[name] / steps for name in _MEANS}
        if not all(map(math.isfinite, means.values())):
            raise OptionError(
                "the losses are no longer finite: the run has diverged. Begin another one with a "
                f"lower learning rate than {self.config.rate:g}, or with precision fp32"
            )
        kinds = {
            kind: values[f"sum {kind}"] / values[f"count {kind}"]
            for kind in KINDS
            if values[f"count {kind}"]
        }
        return means | kinds

    def averaged(self) -> Weights:
        """The averaged weights.

        Raises:
            CheckpointError: They are not finite.
        """
        return as_weights(self.average, self.config.shape, self.network.positions)

    def state(self, position: Position) -> State:
        """All that is needed to go on from here."""
        arrays: dict[str, FloatArray] = {
            name: tensor.detach().cpu().numpy() for name, tensor in self._tensors().items()
        }
        return State(position, arrays, self._optimisers.to_bytes())

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Goes back to a state.

        Raises:
            CheckpointError: It is of another network, or damaged.
        """
        own = self._tensors()
        wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
        found = {name: array.shape for name, array in state.arrays.items()}
        if wanted != found:
            strange = sorted(k for k in {*wanted, *found} if wanted.get(k) != found.get(k))
            raise CheckpointError(
                f"the saved state does not fit the run's network, beginning with {strange[0]}; "
                "the folder is damaged"
            )
        for name, tensor in own.items():
            tensor.copy_(torch.from_numpy(state.arrays[name]))
        self._optimisers.load(state.optimiser, self.device)

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that a state holds, by name, but the optimisers."""
        return {
            **{f"weights.{name}": tensor for name, tensor in self._parameters.items()},
            **{f"average.{name}": tensor for name, tensor in self.average.items()},
            "tally": self._tally,
        }
