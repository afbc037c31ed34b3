"""Training batches: which examples are seen when, and the worker processes that make them.

Contract: the n-th batch of a stage depends on the run's seed and on n alone, not on the number of
processes or on where a run was interrupted.  Examples are taken in blocks of consecutive numbers,
sorted by length within a block, so that batches hold little padding, and the batches of a block
come in a drawn order.

`ExampleSource` is all that is asked of a data set, in two halves: `draw` decides about an example,
cheaply; `batch` makes the audio and the features of several.  `SyntheticSources` fulfils it with
`mt3_training.examples.dataset`.  This module does not import torch, so its processes stay small.
"""

from __future__ import annotations

import itertools
import multiprocessing
import queue
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import DeviceError

#: Token lists are padded to a multiple of this.
MULTIPLE = 16

#: Examples of each stage have numbers of their own, this far apart.
STAGE_STRIDE = 1 << 40

#: Number of the first held-out example: training never gets there.
HELD_OUT = 1 << 60

#: How often a blocked process looks whether it is still needed, in seconds.
_POLL = 1.0


class Batch(NamedTuple):
    """Some examples of one stage.

    Attributes:
        features: float32 [n, T, bins].
        tokens: int64 [n, L], with end-of-sequence, padded with 0.
        frames: float32 [n, L], frame of the event that each token writes; NaN where there is none.
        rolls: uint8 [n, 4, T, 128], see `mt3_training.examples.dataset.ROLLS`.
        cpu_seconds: What it cost to make, where that was another process.
    """

    features: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int64]
    frames: npt.NDArray[np.float32]
    rolls: npt.NDArray[np.uint8]
    cpu_seconds: float = 0.0


class Drawn(Protocol):
    """An example that was decided about."""

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Targets [n], with the end-of-sequence token unless they were cut."""


class ExampleSource(Protocol):
    """A data set without end."""

    def draw(self, index: int) -> Any:
        """Decides about an example; equal numbers give equal examples.  Returns a `Drawn`."""

    def batch(self, drawn: Sequence[Any]) -> Batch:
        """Makes a batch of what `draw` returned."""


class Sources(Protocol):
    """Opens data sets; instances are sent to worker processes, so they must be picklable."""

    def __call__(self, stage: int, *, held_out: bool) -> ExampleSource:
        """The data set of a stage, or the one that its weights are judged with."""


@dataclass(frozen=True)
class Order:
    """Which examples are in which batch.

    Attributes:
        seed: Of the run.
        stage: Number of the stage.
        batch: Examples per batch.
        bucket: Batches per block.
    """

    seed: int
    stage: int
    batch: int
    bucket: int

    def block(self, source: ExampleSource, number: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of a block but the first ``skip``."""
        size = self.batch * self.bucket
        first = self.stage * STAGE_STRIDE + number * size
        drawn = [source.draw(index) for index in range(first, first + size)]
        drawn.sort(key=lambda one: len(one.tokens))  # stable, so equal lengths keep their order
        rng = np.random.default_rng((self.seed, self.stage, number))
        for part in rng.permutation(self.bucket)[skip:].tolist():
            yield source.batch(drawn[part * self.batch : (part + 1) * self.batch])


def held_out(source: ExampleSource, count: int, *, skip: int = 0) -> Batch:
    """The examples that weights are judged with, but the first ``skip``."""
    first = HELD_OUT + skip
    return source.batch([source.draw(index) for index in range(first, first + count)])


def padded(
    tokens: Sequence[npt.NDArray[np.integer[Any]]], frames: Sequence[npt.NDArray[np.integer[Any]]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Token lists and their event frames as `Batch` holds them; negative frames mean none."""
    width = -(-max(map(len, tokens)) // MULTIPLE) * MULTIPLE
    ids = np.zeros((len(tokens), width), np.int64)
    places = np.full((len(tokens), width), np.nan, np.float32)
    for row, (own, where) in enumerate(zip(tokens, frames, strict=True)):
        ids[row, : len(own)] = own
        places[row, : len(own)] = np.where(np.asarray(where) < 0, np.nan, where)
    return ids, places


class Feed:
    """The batches of one stage, one after the other.

    Args:
        open_source: Makes the data set, in each process anew; picklable.
        order: Which examples are in which batch.
        taken: Batches that were taken before.
        workers: Processes that make batches ahead of need; with 0 they are made when asked for.
    """

    def __init__(
        self,
        open_source: Callable[[], ExampleSource],
        order: Order,
        *,
        taken: int = 0,
        workers: int = 0,
    ) -> None:
        self._processes: list[BaseProcess] = []
        if not workers:
            self._batches = _batches(open_source(), order, taken)
            return
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks
        queues = []
        for worker in range(workers):
            # A block is made at once, so there must be room for one.
            made: multiprocessing.Queue[Batch | BaseException] = context.Queue(order.bucket)
            process = context.Process(
                target=_work, args=(open_source, order, taken, worker, workers, made), daemon=True
            )
            process.start()
            queues.append(made)
            self._processes.append(process)
        self._batches = self._collect(queues, order, taken)

    def take(self) -> Batch:
        """The next batch.

        Raises:
            DeviceError: A worker process has died.
            Exception: Whatever making the batch raised.
        """
        return next(self._batches)

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        self._processes = []
        self._batches = iter(())  # lets go of the queues, and with them of their semaphores

    def _collect(self, queues: Sequence[Any], order: Order, taken: int) -> Iterator[Batch]:
        for number in itertools.count(taken):
            worker = number // order.bucket % len(queues)
            item = self._wait(queues[worker], self._processes[worker])
            if isinstance(item, BaseException):
                raise item
            yield item

    @staticmethod
    def _wait(made: Any, process: BaseProcess) -> Any:
        while True:
            try:
                return made.get(timeout=_POLL)
            except queue.Empty:
                if not process.is_alive():
                    raise DeviceError(
                        f"a process that makes training data has died (exit code "
                        f"{process.exitcode}; -9 is what a full memory leads to); start again, "
                        "with fewer --workers if there is too little memory"
                    ) from None


def _batches(source: ExampleSource, order: Order, taken: int) -> Iterator[Batch]:
    first, skip = divmod(taken, order.bucket)
    yield from order.block(source, first, skip)
    for number in itertools.count(first + 1):
        yield from order.block(source, number)


def _work(
    open_source: Callable[[], ExampleSource],
    order: Order,
    taken: int,
    worker: int,
    workers: int,
    made: Any,
) -> None:
    """A worker process: every ``workers``-th block, until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    try:
        source = open_source()
        first, skip = divmod(taken, order.bucket)
        for number in itertools.count(first):
            if number % workers == worker:
                spent = time.process_time()
                for batch in order.block(source, number, skip if number == first else 0):
                    now = time.process_time()
                    _put(made, batch._replace(cpu_seconds=now - spent))
                    spent = time.process_time()
    except Exception as error:  # noqa: BLE001  handed to the parent, which raises it
        _put(made, error)
        made.close()
        made.join_thread()


def _put(made: Any, item: object) -> None:
    """Queues an item; ends the process if nobody is left to read it."""
    parent = multiprocessing.parent_process()
    while True:
        try:
            made.put(item, timeout=_POLL)
        except queue.Full:
            if parent is not None and not parent.is_alive():
                made.cancel_join_thread()
                raise SystemExit(1) from None
        else:
            return
