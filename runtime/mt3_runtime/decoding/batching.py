"""Continuous batching: decodes many segments of many recordings through a few slots.

There is one `Loop` for a loaded model, whoever wants something decoded.  Its threads are there as
long as anybody does:

* *readers* read the recordings, a bounded number of segments ahead, so that slow input never stalls
  segments already running and memory does not depend on the length or number of the recordings; an
  input that may keep its reader waiting, such as a microphone, has a reader of its own;
* *workers* each drive a lane (`mt3_runtime.decoding.slots`).  A segment that nothing else could
  be decoded beside gets a lane with the whole device;
* between them is the schedule (`mt3_runtime.decoding.scheduler`), and behind it a `Run` per caller.

Results come out in order within each recording.  They depend on nothing but the segment (and its
predecessors, with memory): not on slots, threads, neighbours, or the order of the recordings.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

from mt3_runtime.decoding.decoding_run import Run
from mt3_runtime.decoding.scheduler import Pulse, Schedule
from mt3_runtime.decoding.search import previous_ids
from mt3_runtime.decoding.slots import Rows
from mt3_runtime.decoding.step_costs import StepCosts
from mt3_runtime.decoding.strands import Load, Priority
from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.diagnostics.work_totals import WorkCounter

if TYPE_CHECKING:
    from mt3_runtime.backends.base import Backend
    from mt3_runtime.bundles.manifest import Manifest
    from mt3_runtime.decoding.scheduler import Remember
    from mt3_runtime.decoding.search import MakeSearch
    from mt3_runtime.decoding.strands import Strand
    from mt3_runtime.decoding.types import Decoded, Ended, Jobs

#: How many segments per slot of one caller may be under way or wait for it.
_AHEAD_PER_SLOT = 32

_loops: weakref.WeakSet[Loop] = weakref.WeakSet()


class Loop:
    """The decoding loop of a loaded model.

    Args:
        backend: Loaded graphs.
        remember: Makes the ids that the encoder of a model with memory reads from what it said
            about the previous segment, None for the first one.
        readers: Threads that read recordings.

    Attributes:
        work: Counts what is done, for everybody.
    """

    def __init__(
        self, backend: Backend, *, remember: Remember | None = None, readers: int = 1
    ) -> None:
        self._backend, self._remember, self._readers = backend, remember, readers
        self._costs, self.work = StepCosts(backend.slots), WorkCounter()
        self._lock = threading.Lock()
        self._crew: _Crew | None = None
        _loops.add(self)

    def open(self, *, window: int | None = None, readers: int = 0) -> Run:
        """Begins a run; the loop has threads until the last one is closed.

        Args:
            window: How many segments may be under way or wait for the caller.
            readers: At least so many threads read, as others do the work for them.
        """
        with self._lock:
            if self._crew is None or self._crew.stopped:
                self._crew = _Crew(
                    self._backend, self._remember, self._readers, self._costs, self.work
                )
            crew = self._crew
            crew.read_with(readers)
            slots = self._backend.workers * self._backend.slots
            run = Run(
                crew.schedule,
                _AHEAD_PER_SLOT * slots if window is None else window,
                read_apart=crew.read_apart,
                leave=partial(self._leave, crew),
            )
            crew.runs.append(run)
            return run

    def pulse(self) -> Pulse:
        """How much there is to do, and whether it is done."""
        crew = self._crew
        return Pulse(0, 0, 0, 0.0) if crew is None else crew.schedule.pulse()

    def close(self, error: BaseException) -> None:
        """Lets all runs raise this; there may be new ones."""
        with self._lock:
            crew, self._crew = self._crew, None
        if crew is not None:
            crew.fail(error)
            crew.stop()

    def _leave(self, crew: _Crew, run: Run) -> None:
        with self._lock:
            crew.runs.remove(run)
            last = not crew.runs
            if last and self._crew is crew:
                self._crew = None
        if last:
            crew.stop()

    def _after_fork(self) -> None:
        """A child has none of its parent's threads, and must not wait for their locks."""
        self._lock, self._crew, self.work = threading.Lock(), None, WorkCounter()


class _Crew:
    """The threads of a loop, and what they share, from the first run to the last.

    Attributes:
        schedule: What there is to do.
        runs: Who wants it.
        stopped: No more work is done.
    """

    def __init__(
        self,
        backend: Backend,
        remember: Remember | None,
        readers: int,
        costs: StepCosts,
        work: WorkCounter,
    ) -> None:
        self._backend, slots = backend, backend.workers * backend.slots
        self.schedule = Schedule(
            workers=backend.workers, slots=slots, remember=remember, costs=costs, work=work
        )
        self.runs: list[Run] = []
        self._alone: Rows | None = None
        self._threads: list[threading.Thread] = []
        self._readers = 0
        try:
            for _ in range(backend.workers):
                self._threads.append(self._start(self._work, "mt3 work"))
            self.read_with(readers)
        except BaseException:
            self.schedule.close()
            raise

    @property
    def stopped(self) -> bool:
        return self.schedule.closed

    def read_with(self, readers: int) -> None:
        """Has at least so many threads read."""
        while self._readers < readers:
            self._threads.append(self._start(self._read, "mt3 read"))
            self._readers += 1

    def read_apart(self, strand: Strand) -> threading.Thread:
        """Starts a thread that reads one recording."""
        return self._start(partial(self._read, strand), "mt3 read apart")

    def fail(self, error: BaseException) -> None:
        """Ends all work; every caller raises this."""
        self.schedule.close()
        for run in list(self.runs):
            run.fail(error)

    def stop(self) -> None:
        """Ends all work and waits for the threads; readers get a second, see `Run.close`."""
        self.schedule.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(None if thread.name == "mt3 work" else 1.0)

    def _start(self, target: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=self._guard, args=(target,), name=name, daemon=True)
        thread.start()
        return thread

    def _guard(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001  handed to the callers, who raise it
            self.fail(error)

    def _read(self, only: Strand | None = None) -> None:
        """Reads one segment after another of whatever is wanted next."""
        while (strand := self.schedule.to_read(only)) is not None:
            job, fault = None, None
            try:
                # A reader of its own mostly waits for its input.
                with nullcontext() if strand.slow else self.schedule.work.stage("read"):
                    job = next(strand.jobs, None)
            except Exception as error:  # noqa: BLE001  handed to the caller, who knows what to do
                fault = error
            self.schedule.offer(strand, job, fault)

    def _work(self) -> None:
        """Decodes whatever comes next, in a lane made for it."""
        backend, schedule = self._backend, self.schedule
        shared, nothing = None, Load(0, backend.slots)
        while (turn := schedule.take(nothing, wait=True)) is not None:
            if turn.alone:
                if self._alone is None:
                    self._alone = Rows(backend, schedule, alone=True)
                self._alone.run(turn)
                schedule.leave_alone()
            else:
                if shared is None:
                    shared = Rows(backend, schedule)
                shared.run(turn)


def loop_of(info: Manifest, backend: Backend) -> Loop:
    """The decoding loop of a model on a device.

    Reading, listening and features take one thread of Python to 250 times real time, so there is
    one for every four cores.
    """
    spec = info.decoding
    remember = partial(previous_ids, spec=spec) if spec.memory_tokens else None
    return Loop(backend, remember=remember, readers=max(1, usable_cores() // 4))


def decode(
    backend: Backend,
    recordings: Iterable[Jobs],
    make_search: MakeSearch,
    *,
    remember: Remember | None = None,
    live: bool = False,
    lone: bool = False,
) -> Generator[Decoded | Ended, None, None]:
    """Decodes all segments of recordings in a loop of their own and yields them as they complete.

    Args:
        backend: Loaded graphs.
        recordings: The segments of each recording, in their order; read on threads of their own, a
            few ahead of need, and closed if not read to the end.
        make_search: Makes the search for a lane of that many slots.
        remember: As in `Loop`.
        live: Segments arrive one at a time.
        lone: There is one recording only.

    Yields:
        For each recording one `Decoded` per job, in the order of the jobs, then one `Ended`.  Those
        of different recordings may be mixed.

    Raises:
        Exception: Whatever ``recordings`` itself or running a graph raised.  What reading a single
            recording or computing its features raises does not end the others; see `Ended`.
    """
    with Loop(backend, remember=remember).open() as run:
        urgency = Priority.LIVE if live else Priority.BATCH
        run.feed(recordings, make_search, priority=urgency, live=live, slow=live, company=not lone)
        yield from run.results()


def _forget_threads() -> None:
    for loop in list(_loops):
        loop._after_fork()  # noqa: SLF001  of this module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
