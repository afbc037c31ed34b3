"""One training step: network, auxiliary heads, optimisers, averaged weights.

Contract: `Learner.step` follows from the configuration, the step's number, the batch and the state
before it, and from nothing else: dropout is drawn from a seed per slice.  `Learner.state` is all of
that state, so a learner that is restored from it goes on as the first one would have.

This module imports torch; import it only where training really starts.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mt3_export.weights import FloatArray, Weights
from mt3_runtime.errors import CheckpointError, OptionError
from mt3_training.examples.batches import Batch
from mt3_training.examples.tables import KINDS
from mt3_training.networks.initialisation import align_
from mt3_training.networks.losses import (
    Counts,
    guide_loss,
    kind_table,
    next_event_loss,
    roll_loss,
    token_loss,
)
from mt3_training.networks.network import Aids, Network, as_weights
from mt3_training.networks.optimisers import Optimisers, average_
from mt3_training.runs.checkpointing import Position, State
from mt3_training.runs.learning_rate import Schedule
from mt3_training.shipping.small_model import DEFAULT

#: Early averages would remember the initial weights: the share kept is at most (1+n) / (10+n).
AVERAGE_WARMUP = 10.0

#: Means of the steps; of the last one the slices know nothing.
_MEANS = ("loss", "auxiliary", "next_event", "guide", "norm")
_TALLY = (*(f"{what} {kind}" for what in ("sum", "count") for kind in KINDS), *_MEANS, "steps")


class _Job(NamedTuple):
    """What the slices of a step have in common."""

    batch: Batch
    number: int
    counts: Counts
    auxiliary: float
    next_event: float
    guide: float

    @property
    def framewise(self) -> bool:
        """Whether the frame-wise heads learn."""
        return self.auxiliary > 0.0 or self.next_event > 0.0


class Learner:
    """Network, aids, optimisers and averaged weights: what a step changes.

    A batch is worked on in slices (`TrainConfig.slice_size`), on a CPU as many at a time as there
    are threads, each on one core: that keeps two cores busier than sharing out single operations,
    loses nothing while another program has one of them, and gives the same bits with any number.

    Args:
        schedule: What is done when.
        device: Where.
        threads: CPU threads.
        start: Weights to begin with instead of fresh ones.

    Raises:
        CheckpointError: These weights are those of another network.
    """

    def __init__(
        self,
        schedule: Schedule,
        device: torch.device,
        *,
        threads: int = 1,
        start: Weights | None = None,
    ) -> None:
        self.schedule, self.config, self.device = schedule, schedule.config, device
        torch.manual_seed(self.config.seed)
        self.network = Network(self.config.shape, dropout=self.config.dropout).to(device)
        align_(self.network, DEFAULT.vocabulary)
        if start is not None:
            self.network.begin_with(start)
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
        # PyTorch's own threads wait for one another in a loop: where another program has one of two
        # cores, that makes a step six times as slow.  The setting counts per thread.
        torch.set_num_threads(1)
        self._threads = ThreadPoolExecutor(threads, "slice", partial(torch.set_num_threads, 1))

    def step(self, batch: Batch, number: int, progress: float) -> None:
        """One step of the optimisers; adds its losses to the tally."""
        config = self.config
        fade = self.schedule.aid_factor(progress)
        weights = (fade * w for w in (config.auxiliary, config.next_event, config.guide))
        job = _Job(batch, number, Counts.of(batch), *weights)
        starts = range(0, len(batch.tokens), config.slice_size)
        first, *others = self._threads.map(partial(self._slice, job), starts)
        sums, gradients = first
        for more, theirs in others:  # in their order: sums do not depend on who was first
            sums += more
            torch._foreach_add_(gradients, theirs)
        parameters = self._learning(job)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        self._optimisers.step(self.schedule.rate_factor(number, progress), self._threads)
        keep = min(config.average, (1.0 + number) / (AVERAGE_WARMUP + number))
        average_(list(self.average.values()), list(self.network.parameters()), keep)
        self._tally += torch.cat([sums, torch.stack([norm, torch.ones_like(norm)])])

    def _slice(self, job: _Job, start: int) -> tuple[Tensor, list[Tensor]]:
        """Sums for the tally, and gradients, of the slice of a batch that begins at an example."""
        config, counts = self.config, job.counts
        seed = np.random.SeedSequence((config.seed, job.number, start)).generate_state(1)
        self.network.dropout.seed(int(seed[0]), self.device)
        features, tokens, frames, rolls = (
            torch.from_numpy(array[start : start + config.slice_size]).to(self.device)
            for array in job.batch[:4]
        )
        read = functional.pad(tokens[:, :-1], (1, 0), value=DEFAULT.decoding.start_id)
        bf16 = config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            out = self.network(features, read, guide=job.guide > 0.0)
            framewise = self.aids(out.encoded) if job.framewise else None
        policy = config.policy
        loss, kinds = token_loss(
            out.logits, tokens, self._kinds, policy.token_weights if policy else None
        )
        auxiliary = following = guide = loss.new_zeros(())
        if framewise is not None:
            auxiliary = roll_loss(
                framewise[0], rolls.transpose(1, 2), policy.roll_weights if policy else None
            )
            following = next_event_loss(framewise[1], frames)
        if out.attention is not None:
            guide = guide_loss(out.attention, frames)
        means = (
            loss / counts.tokens,
            auxiliary / counts.rolls,
            following / counts.frames,
            guide / counts.taught,
        )
        weights = (1.0, job.auxiliary, job.next_event, job.guide)
        total = sum((w * mean for w, mean in zip(weights, means, strict=True)), loss.new_zeros(()))
        gradients = torch.autograd.grad(total, self._learning(job))
        return torch.cat([kinds.flatten(), torch.stack(means).detach()]), list(gradients)

    def _learning(self, job: _Job) -> list[Tensor]:
        """The parameters that a step changes."""
        aids = self.aids.parameters() if job.framewise else ()
        return [*self.network.parameters(), *aids]

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
