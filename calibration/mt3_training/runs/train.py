"""Runs training: steps, evaluations and checkpoints until the budget is used up.

Contract: a run that was interrupted, whenever, continues as it would have gone on; on one kind of
machine, with one number of threads and a budget in steps, bit by bit.

As it goes, the averaged weights are exported, transcribe held-out examples with the runtime, and
are kept if they are the best so far.  They are judged for the first time before the first step, so
that whatever is not installed or not writable shows at once and not after an hour.

This module imports torch; import it only where training really starts.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch

from mt3_export.weights import PositionTable, Weights
from mt3_runtime.commands.machine import peak_rss
from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.errors import CheckpointError, DeviceError, MissingDependencyError
from mt3_training.examples.batches import Batch, Feed, Order, Sources, held_out
from mt3_training.examples.tables import LOG, LOG_COLUMNS, SCORE_COLUMNS, SCORES, Table
from mt3_training.networks.learner import Learner
from mt3_training.runs.checkpointing import START, Best, Position, RunFolder
from mt3_training.runs.learning_rate import Schedule
from mt3_training.runs.progress_plot import save_picture
from mt3_training.shipping.small_model import digest, score_greedy

#: Steps between two rows of the log.
LOG_STEPS = 50

#: Seconds between two saved states.
SAVE_SECONDS = 300.0

#: A step's time counts up to so many seconds, and so many times its CPU time, even where others
#: have most of the machine.  What is more, a suspended computer or a stopped process, was no
#: training.
STALL_SECONDS, STALL_FACTOR = 5.0, 4.0

#: How often a paused run looks whether it may go on, in seconds.
POLL = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Machine:
    """What decides how fast a run goes, but not where.

    Attributes:
        device: "auto", "cpu" or "cuda".
        threads: Of the CPU, for training and for the runtime that judges; None takes all cores.
        workers: Processes that make examples; with 0 they are made between the steps.
    """

    device: str = "auto"
    threads: int | None = None
    workers: int = 1

    def torch_device(self) -> torch.device:
        """The device, checked.

        Raises:
            DeviceError: PyTorch cannot use it.
        """
        usable = torch.cuda.is_available()
        if self.device.startswith("cuda") and not usable:
            raise DeviceError(
                f"PyTorch {torch.__version__} finds no GPU here. Check the driver with nvidia-smi "
                "and that PyTorch was built for CUDA, or use --device cpu"
            )
        automatic = "cuda" if usable else "cpu"
        return torch.device(automatic if self.device == "auto" else self.device)


class Run:
    """One run on this machine; use it as a context manager, once.

    Args:
        folder: Where it lives; locked by the caller.
        sources: Where examples come from.
        machine: What it runs on.
        say: Told what happens, a line at a time.
    """

    def __init__(self, folder: RunFolder, sources: Sources, machine: Machine, say: Say) -> None:
        self._folder, self._sources, self._machine, self._say = folder, sources, machine, say
        self._schedule = Schedule(folder.config)
        state = folder.load()
        self._learner = Learner(
            self._schedule,
            machine.torch_device(),
            threads=machine.threads or usable_cores(),
            start=start_of(folder) if folder.config.start and state is None else None,
        )
        self._log = Table(folder.path / LOG, LOG_COLUMNS)
        self._scores = Table(folder.path / SCORES, SCORE_COLUMNS)
        self._feed: Feed | None = None
        self._judged_with: tuple[int, Batch] | None = None
        self._clock = _Clock()
        self._saved_at = 0.0
        self._drawing = True
        if state is not None:
            self._learner.restore(state)
        self.position = state.position if state else Position()
        self._logged = self.position
        for table in (self._log, self._scores):
            table.cut(self.position.step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_feed()

    def train(self, should_stop: Callable[[], bool]) -> bool:
        """Trains until the budget is used up, or until asked to stop; then saves.

        Args:
            should_stop: Asked between the steps.

        Returns:
            Whether the run is complete.

        Raises:
            OptionError: The run has diverged.
            OutputError: Something cannot be written; the last state is still there.
        """
        self._clock.start()
        self._saved_at = self.position.seconds
        while True:
            progress = self._schedule.progress(self.position.step, self.position.seconds)
            self._enter_stage(self._schedule.stage(progress))
            if self.position.evaluations < self._schedule.evaluations_due(progress):
                self._evaluate(progress)
            complete = progress >= 1.0
            if complete or should_stop() or self._folder.asked_to_stop():
                self._save()
                return complete
            self._wait_while_paused()
            self._step(progress)

    def _enter_stage(self, stage: int) -> None:
        if stage != self.position.stage:
            self._close_feed()
            self.position = replace(self.position, stage=stage, taken=0)

    def _batches(self) -> Feed:
        """The batches of this stage, from where the run stands."""
        if self._feed is None:
            config, stage = self._folder.config, self.position.stage
            settings = config.stages[stage]
            self._say(f"stage {settings.name}: {settings.frames} frames, {settings.music}")
            self._feed = Feed(
                partial(self._sources, stage, held_out=False),
                Order(config.seed, stage, settings.batch, config.bucket),
                taken=self.position.taken,
                workers=self._machine.workers,
            )
        return self._feed

    def _step(self, progress: float) -> None:
        batch = self._batches().take()
        self._learner.step(batch, self.position.step, progress)
        self.position = replace(
            self.position,
            step=self.position.step + 1,
            taken=self.position.taken + 1,
            examples=self.position.examples + len(batch.tokens),
        )
        self._account(batch.cpu_seconds)
        if self.position.step % LOG_STEPS == 0:
            self._write_log(progress)
            if self.position.seconds - self._saved_at >= SAVE_SECONDS:
                self._save()

    def _account(self, elsewhere: float = 0.0) -> None:
        """Adds the time since the last call to the position."""
        wall, cpu = self._clock.lap()
        cpu += elsewhere
        self.position = replace(
            self.position,
            seconds=self.position.seconds + min(wall, STALL_SECONDS + STALL_FACTOR * cpu),
            cpu_seconds=self.position.cpu_seconds + cpu,
        )

    def _write_log(self, progress: float) -> None:
        losses = self._learner.losses()
        factor = self._schedule.rate_factor(self.position.step - 1, progress)
        now, before = self.position, self._logged
        speed = (now.examples - before.examples) / max(now.seconds - before.seconds, 1e-9)
        memory = (peak_rss() or 0) / 2**20
        self._log.append(
            {
                **self._where(progress),
                "rate": factor * self._folder.config.rate,
                **losses,
                "examples_per_second": speed,
                "memory_mib": memory,
            }
        )
        self._logged = now
        self._say(
            f"{progress:6.1%}  step {now.step}  {now.examples} examples  "
            f"loss {losses['loss']:.3f}  {speed:.1f} examples/s  {memory:.0f} MiB"
        )

    def _where(self, progress: float) -> dict[str, object]:
        """The columns that both tables begin with."""
        now = dt.datetime.now(dt.UTC)
        position = self.position
        return {
            "time": now.isoformat(timespec="seconds"),
            "step": position.step,
            "progress": progress,
            "stage": self._folder.config.stages[position.stage].name,
            "examples": position.examples,
            "seconds": position.seconds,
            "cpu_seconds": position.cpu_seconds,
        }

    def _evaluate(self, progress: float) -> None:
        """Judges the averaged weights, and keeps them if they are the best."""
        position = self.position
        weights = self._learner.averaged()
        found = score_greedy(
            weights,
            self._held_out(),
            threads=self._machine.threads,
            folder=self._folder.path,
        )
        best = Best(position.step, position.stage, found.onset.f1 or 0.0)
        is_best = best.beats(self._folder.best())
        if is_best:
            self._folder.save_best(best, weights.tensors)
        self._scores.append(
            {
                **self._where(progress),
                "onset_f1": found.onset.f1,
                "onset_precision": found.onset.precision,
                "onset_recall": found.onset.recall,
                "drum_f1": found.drums.f1,
                "labels": found.onset.labels,
                "notes": found.onset.notes,
                "best": int(is_best),
            }
        )
        self._say(f"{progress:6.1%}  onset {found.onset}; drums {found.drums}")
        due = self._schedule.evaluations_due(progress)
        self.position = replace(self.position, evaluations=due)
        self._account()
        self._save()
        self._draw()

    def _held_out(self) -> Batch:
        """The examples of this stage that weights are judged with, made once."""
        stage = self.position.stage
        if self._judged_with is None or self._judged_with[0] != stage:
            source = self._sources(stage, held_out=True)
            self._judged_with = (stage, held_out(source, self._folder.config.held_out))
        return self._judged_with[1]

    def _save(self) -> None:
        self._folder.save(self._learner.state(self.position))
        self._saved_at = self.position.seconds

    def _draw(self) -> None:
        """Draws the picture; says once if it cannot."""
        if not self._drawing:
            return
        try:
            save_picture(self._folder)
        except MissingDependencyError as error:
            self._say(str(error))
            self._drawing = False

    def _wait_while_paused(self) -> None:
        file = self._folder.pause_file()
        if file is not None:
            self._say(f"paused until {file} is removed")
            while self._folder.pause_file() is not None:
                time.sleep(POLL)
            self._clock.start()

    def _close_feed(self) -> None:
        if self._feed is not None:
            self._feed.close()
            self._feed = None


def start_of(folder: RunFolder) -> Weights:
    """The weights that a run begins with, checked against its configuration.

    Raises:
        CheckpointError: They are missing, damaged, or others.
    """
    config = folder.config
    weights = Weights(config.shape, folder.start_weights(), PositionTable(255))
    if digest(weights) != config.start:
        raise CheckpointError(
            f"{folder.path / START} holds other weights than the run began with; put the file "
            "back, or begin a run in a new folder"
        )
    return weights


class _Clock:
    """Measures laps, in wall time and in CPU time of this process."""

    def start(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def lap(self) -> tuple[float, float]:
        wall, cpu = self._wall, self._cpu
        self.start()
        return self._wall - wall, self._cpu - cpu
