"""Trains an assessing network: steps, evaluation, and a folder that a run goes on from.

::

    config.json      the run (`mt3_training.assessing.assessor_config.AssessorTraining`)
    state.pt         weights, optimiser, best weights, position; replaced in one step
    log.csv          losses and score of each evaluation, gates, alignment, attention
    network/         config.json and pytorch_model.bin of the best weights: `mt3 export` reads it

Contract: everything random follows from the seed and the number of the step, so a run that was
stopped and goes on gives the weights of one that was not.  The audio encoder is not trained:
examples hold its frames.

This module imports torch; import it only where training really starts.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mt3_analysis.assessment_networks.piece_bootstrap import mean_correlation
from mt3_runtime.errors import CheckpointError, OptionError
from mt3_runtime.filesystem.atomic import make_folder, write_atomic
from mt3_training.assessing.assessor_config import AssessorTraining, folder_config
from mt3_training.assessing.assessor_examples import AssessmentBatch, Examples, batches, collate
from mt3_training.assessing.assessor_losses import label_bins, rarity, total
from mt3_training.assessing.assessor_modules import AssessorModule, Inside
from mt3_training.assessing.assessor_watch import WATCHED, FusionWatch

CONFIG, STATE, LOG, NETWORK, PRETRAINED = (
    "config.json",
    "state.pt",
    "log.csv",
    "network",
    "pretrained.pt",
)
_COLUMNS = ("step", "loss", "regression", "ranking", "contrastive", "ordinal", "r", *WATCHED)
_EVALUATION_ROWS = 16


class AssessorLearner:
    """A run: the network, its optimiser, and where it stands.

    Attributes:
        config: What it does.
        module: The network.
        step: Steps done.
        best: Best score so far, the mean r on what is judged.
    """

    def __init__(
        self,
        folder: Path,
        config: AssessorTraining,
        examples: Examples,
        *,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        """Begins a run, or goes on with the one in the folder.

        Args:
            folder: Of the run; made if it is not there.
            config: What it does.
            examples: Of both parts.
            device: ``cpu`` or ``cuda[:N]``.
            threads: CPU threads of an operation.  PyTorch's wait for one another in a loop: where
                another program has one of two cores, two are far slower than one.

        Raises:
            OptionError: The folder is of another run or holds something else, or a part of the
                examples has fewer than two recordings.
            CheckpointError: The state is damaged.
        """
        self.folder, self.config = folder, config
        self._taught, self._judged = examples.part(judged=False), examples.part(judged=True)
        if min(len(self._taught.items), len(self._judged.items)) < 2:
            raise OptionError(
                f"{len(self._taught.items)} recordings are taught and {len(self._judged.items)} "
                "judged; expected two or more of each: add recordings of other pieces."
            )
        width = examples.items[0].frames.shape[1]
        if config.fusion != "midi" and width != config.shape.audio_width:
            raise OptionError(
                f"frames have {width} numbers, the network reads {config.shape.audio_width}."
            )
        self.network = config.network(examples.dimensions)
        self._open_folder()
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        torch.manual_seed(config.seed)
        self.module = AssessorModule(self.network, config.shape).to(self._device)
        self._rare = torch.from_numpy(rarity(self._taught.labels)).to(self._device)
        self._optimiser = torch.optim.AdamW(self._groups(), weight_decay=config.weight_decay)
        self.step, self.best, self._worse = 0, -math.inf, 0
        self._best_state: dict[str, Tensor] = {}
        self._sums: dict[str, float] = {}
        self._restore()

    def _open_folder(self) -> None:
        path = self.folder / CONFIG
        if path.is_file():
            found = AssessorTraining.from_json(path.read_bytes(), str(path))
            if differences := found.differences(self.config):
                raise OptionError(
                    f"{self.folder} is a run with another configuration: "
                    f"{'; '.join(differences)}. Begin this one in a new folder."
                )
            return
        strange = [p.name for p in self.folder.glob("*") if p.name != PRETRAINED]
        if strange:
            raise OptionError(f"{self.folder} holds something else; name a new folder for the run.")
        make_folder(self.folder)
        write_atomic(path, self.config.to_json())

    def _groups(self) -> list[dict[str, Any]]:
        """The MIDI encoder learns more slowly than the rest."""
        backbone: list[Tensor] = []
        rest: list[Tensor] = []
        for name, parameter in self.module.named_parameters():
            (backbone if name.startswith("midi_encoder.") else rest).append(parameter)
        pairs = ((backbone, self.config.backbone_rate), (rest, self.config.head_rate))
        return [{"params": found, "lr": rate, "usual": rate} for found, rate in pairs if found]

    def train(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Goes on until the run is complete, or somebody stops it; gives whether it is complete.

        Args:
            stop: Asked before each step.

        Raises:
            OptionError: The losses are no longer finite.
            OutputError: The state cannot be written.
        """
        config = self.config
        source = batches(
            self._taught,
            self.network,
            rows=config.batch,
            seed=config.seed,
            first=self.step * config.accumulate,
        )
        while self.step < config.steps and self._worse < config.patience:
            if stop():
                self.save()
                return False
            self._one_step([next(source) for _ in range(config.accumulate)])
            if self.step % config.evaluate_every == 0 or self.step == config.steps:
                self._evaluate()
                self.save()
        self._write_network()
        return True

    def _one_step(self, parts: list[AssessmentBatch]) -> None:
        config = self.config
        torch.manual_seed(
            int(np.random.SeedSequence((config.seed, self.step)).generate_state(1)[0])
        )
        chance = np.random.default_rng((config.seed, self.step))
        self.module.train()
        for group in self._optimiser.param_groups:
            group["lr"] = group["usual"] * self._rate_factor()
        self._optimiser.zero_grad()
        for batch in parts:
            inside = self._run(batch, self._kept(len(batch.labels), chance))
            labels = torch.from_numpy(batch.labels).to(self._device)
            scores, labels = self._mixed(inside, labels, chance)
            rare = self._rarity(labels)
            found = total(inside, scores, labels, config.losses, rare)
            if not torch.isfinite(found["loss"]):
                raise OptionError(
                    "the losses are no longer finite: the run has diverged. Begin another one with "
                    f"lower rates than {config.backbone_rate:g} and {config.head_rate:g}."
                )
            (found["loss"] / len(parts)).backward()
            for name, value in found.items():
                self._sums[name] = self._sums.get(name, 0.0) + float(value.detach()) / len(parts)
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), config.clip)
        self._optimiser.step()
        self.step += 1
        self._sums["steps"] = self._sums.get("steps", 0.0) + 1

    def _rate_factor(self) -> float:
        """Rises in the warm-up, then falls as a cosine to nothing."""
        warmup, steps = self.config.warmup, self.config.steps
        if self.step < warmup:
            return (self.step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (self.step - warmup) / max(1, steps - warmup)))

    def _kept(self, rows: int, chance: np.random.Generator) -> dict[str, Tensor] | None:
        """Which rows keep which modality; none loses both."""
        share = self.config.modality_dropout
        if share == 0.0 or not (self.network.hears and self.network.reads):
            return None
        drawn = chance.random(rows)
        kept = {"audio": drawn >= share, "midi": (drawn < share) | (drawn >= 2 * share)}
        return {side: torch.from_numpy(value).to(self._device) for side, value in kept.items()}

    def _mixed(
        self, inside: Inside, labels: Tensor, chance: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Scores and labels, on half of the batches those of mixed pooled vectors."""
        alpha = self.config.mixup
        if alpha == 0.0 or chance.random() < 0.5:
            return inside.scores, labels
        share = float(chance.beta(alpha, alpha))
        other = torch.from_numpy(chance.permutation(len(labels))).to(self._device)
        pooled = share * inside.pooled + (1.0 - share) * inside.pooled[other]
        scores, _ = self.module.mtl_head(pooled)
        return scores, share * labels + (1.0 - share) * labels[other]

    def _rarity(self, labels: Tensor) -> Tensor:
        bins = torch.from_numpy(label_bins(labels.detach().cpu().numpy())).to(self._device)
        return torch.gather(self._rare, 0, bins)

    def _run(self, batch: AssessmentBatch, kept: dict[str, Tensor] | None = None) -> Inside:
        def tensor(array: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(self._device)

        found: Inside = self.module(
            frames=tensor(batch.frames),
            tokens=tensor(batch.tokens),
            spans=tensor(batch.spans),
            frame_mask=tensor(batch.frame_mask),
            note_mask=tensor(batch.note_mask),
            kept=kept,
        )
        return found

    @torch.no_grad()
    def predictions(
        self, examples: Examples, watch: FusionWatch | None = None
    ) -> npt.NDArray[np.float64]:
        """Scores [n, k] of recordings; what happens inside goes to ``watch``."""
        self.module.eval()
        found = []
        for start in range(0, len(examples.items), _EVALUATION_ROWS):
            items = examples.items[start : start + _EVALUATION_ROWS]
            batch = collate(items, self.network, examples.frame_seconds)
            inside = self._run(batch)
            found.append(inside.scores.cpu().numpy())
            if watch is not None:
                both = inside.attention
                watch.add(
                    batch,
                    gates=None if inside.gates is None else inside.gates.cpu().numpy(),
                    embeddings={s: x.cpu().numpy() for s, x in inside.embeddings.items()},
                    attention=both and (both[0].cpu().numpy(), both[1].cpu().numpy()),
                    by_index=self.network.alignment == "frame_index",
                )
        return np.concatenate(found).astype(np.float64)

    def _evaluate(self) -> None:
        watch = FusionWatch()
        score = mean_correlation(self.predictions(self._judged, watch), self._judged.labels)
        if score > self.best:
            self.best, self._worse = score, 0
            self._best_state = {
                name: tensor.detach().cpu().clone()
                for name, tensor in self.module.state_dict().items()
            }
        else:
            self._worse += 1
        steps = self._sums.pop("steps", 1.0)
        row = {name: f"{value / steps:.6g}" for name, value in self._sums.items()}
        row |= {name: f"{value:.6g}" for name, value in watch.figures().items()}
        row |= {"step": str(self.step), "r": f"{score:.6g}"}
        self._sums = {}
        self._log(",".join(row.get(name, "") for name in _COLUMNS))

    def _log(self, line: str) -> None:
        """Adds a row; rows of steps that are done again are replaced."""
        path, kept = self.folder / LOG, [",".join(_COLUMNS)]
        with suppress(FileNotFoundError):
            before = path.read_text(encoding="utf-8").splitlines()[1:]
            kept += [old for old in before if int(old.partition(",")[0]) < self.step]
        write_atomic(path, ("\n".join([*kept, line]) + "\n").encode())

    def save(self) -> None:
        """Keeps the state; raises `OutputError`."""
        buffer = io.BytesIO()
        state = {
            "module": self.module.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "best_state": self._best_state,
            "sums": self._sums,
            "position": [self.step, self._worse],
            "best": self.best,
        }
        torch.save(state, buffer)
        write_atomic(self.folder / STATE, buffer.getvalue())

    def _restore(self) -> None:
        path = self.folder / STATE
        if not path.is_file():
            self._take_pretrained()
            return
        try:
            state = torch.load(path, map_location=self._device, weights_only=True)
            self.module.load_state_dict(state["module"])
            self._optimiser.load_state_dict(state["optimiser"])
            self.step, self._worse = state["position"]
            self.best, self._sums = state["best"], state["sums"]
            self._best_state = state["best_state"]
        except Exception as error:  # torch raises what its unpickler and its modules raise
            raise CheckpointError(f"{path} cannot be read: {error!s:.200}") from error

    def _take_pretrained(self) -> None:
        """Takes over a pretrained MIDI encoder (`midi_pretraining`), if it is there."""
        path = self.folder / PRETRAINED
        if not path.is_file() or not self.network.reads:
            return
        try:
            state = torch.load(path, map_location=self._device, weights_only=True)
            self.module.midi_encoder.load_state_dict(state["encoder"])
        except Exception as error:  # as in `_restore`
            raise CheckpointError(f"{path} does not fit this network: {error!s:.200}") from error

    def _write_network(self) -> None:
        folder = self.folder / NETWORK
        make_folder(folder)
        buffer = io.BytesIO()
        torch.save(self._best_state or self.module.state_dict(), buffer)
        write_atomic(folder / "pytorch_model.bin", buffer.getvalue())
        write_atomic(folder / CONFIG, folder_config(self.config, self.network).encode())
