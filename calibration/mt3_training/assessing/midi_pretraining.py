"""Masked pretraining of the MIDI encoder: guess pitch, duration and velocity of hidden notes.

Contract: needs notes and no labels.  A hidden note has the type that no note of the published
tokens has and zeros in its other fields.  What comes out is ``pretrained.pt`` in the folder of a
run, which `mt3_training.assessing.assessor_learner` takes over when the run begins.  Resumable:
everything random follows from the seed and the step.

This module imports torch; import it only where training really starts.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from mt3_analysis.assessment_networks.octuple_tokens import FIELDS, octuple_tokens
from mt3_export.assessors.network_folder import TOKEN_FIELDS
from mt3_runtime.errors import CheckpointError, OptionError
from mt3_runtime.filesystem.atomic import make_folder, write_atomic
from mt3_training.assessing.assessor_config import AssessorTraining
from mt3_training.assessing.assessor_learner import PRETRAINED
from mt3_training.assessing.assessor_modules import MidiEncoder

HIDDEN_TYPE = 4
HIDDEN_SHARE = 0.15
GUESSED = ("pitch", "duration", "velocity")
RATE = 3e-4
_SAVE_EVERY = 100


class MaskedPretraining:
    """The encoder with what guesses fields from its output.

    Attributes:
        step: Steps done.
        losses: Of the last steps, newest last.
    """

    def __init__(
        self,
        folder: Path,
        config: AssessorTraining,
        recordings: Sequence[npt.ArrayLike],
        *,
        threads: int = 1,
    ) -> None:
        """Begins, or goes on.

        Args:
            folder: Of the run that will use it.
            config: Sizes, batch and seed.
            recordings: Notes [n, 4] of each.
            threads: CPU threads of an operation.

        Raises:
            OptionError: There are no recordings with notes.
            CheckpointError: What is in the folder is damaged, or of another size.
        """
        self._config, self._path = config, folder / PRETRAINED
        tokens = [octuple_tokens(notes, most=config.max_notes) for notes in recordings]
        self._tokens = [token for token in tokens if len(token)]
        if not self._tokens:
            raise OptionError("pretraining needs recordings with notes.")
        make_folder(folder)
        torch.set_num_threads(threads)
        torch.manual_seed(config.seed)
        self.encoder = MidiEncoder(config.shape, config.max_notes)
        sizes = {field: values for field, values, _ in TOKEN_FIELDS}
        self.guesses = nn.ModuleDict(
            {field: nn.Linear(config.shape.midi_width, sizes[field]) for field in GUESSED}
        )
        parameters = [*self.encoder.parameters(), *self.guesses.parameters()]
        self._optimiser = torch.optim.AdamW(parameters, RATE, weight_decay=config.weight_decay)
        self.step, self.losses = 0, list[float]()
        self._restore()

    def train(self, steps: int, stop: Callable[[], bool] = lambda: False) -> None:
        """Goes on to this number of steps, and keeps the state.

        Args:
            steps: In all.
            stop: Asked before each step.
        """
        while self.step < steps and not stop():
            self._one_step()
            if self.step % _SAVE_EVERY == 0:
                self.save()
        self.save()

    def _one_step(self) -> None:
        seed = np.random.SeedSequence((self._config.seed, self.step))
        torch.manual_seed(int(seed.generate_state(1)[0]))
        chance = np.random.default_rng(seed)
        rows = chance.integers(0, len(self._tokens), self._config.batch)
        chosen = [self._tokens[row] for row in rows]
        longest = max(map(len, chosen))
        tokens = np.zeros((len(chosen), longest, len(FIELDS)), np.int64)
        there = np.zeros((len(chosen), longest), np.bool_)
        for row, token in enumerate(chosen):
            tokens[row, : len(token)], there[row, : len(token)] = token, True
        hidden = there & (chance.random(there.shape) < HIDDEN_SHARE)
        hidden[0, int(chance.integers(0, len(chosen[0])))] = True  # one at least
        loss = self.loss(
            torch.from_numpy(tokens), torch.from_numpy(there), torch.from_numpy(hidden)
        )
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        self.step += 1
        self.losses.append(float(loss.detach()))

    def loss(self, tokens: Tensor, there: Tensor, hidden: Tensor) -> Tensor:
        """Mean cross-entropy of the guesses.

        Args:
            tokens: int64 [rows, n, 8].
            there: Where there is a note [rows, n].
            hidden: Which notes are guessed [rows, n].
        """
        self.encoder.train()
        seen = torch.where(hidden[..., None], torch.zeros_like(tokens), tokens)
        seen[..., FIELDS.index("type")] += HIDDEN_TYPE * hidden.long()
        found = self.encoder(seen, there)[hidden]
        losses = [
            functional.cross_entropy(guess(found), tokens[hidden][:, FIELDS.index(field)])
            for field, guess in self._guesses()
        ]
        return torch.stack(losses).mean()

    def _guesses(self) -> Iterator[tuple[str, nn.Module]]:
        return iter(self.guesses.items())

    def save(self) -> None:
        """Keeps the state; raises `OutputError`."""
        buffer = io.BytesIO()
        state = {
            "encoder": self.encoder.state_dict(),
            "guesses": self.guesses.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "step": self.step,
        }
        torch.save(state, buffer)
        write_atomic(self._path, buffer.getvalue())

    def _restore(self) -> None:
        if not self._path.is_file():
            return
        try:
            state = torch.load(self._path, weights_only=True)
            self.encoder.load_state_dict(state["encoder"])
            self.guesses.load_state_dict(state["guesses"])
            self._optimiser.load_state_dict(state["optimiser"])
            self.step = int(state["step"])
        except Exception as error:  # torch raises what its unpickler and its modules raise
            raise CheckpointError(f"{self._path} cannot be read: {error!s:.200}") from error
