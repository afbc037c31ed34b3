"""An engine: recordings and live inputs are submitted to a model's decoding loop while it runs.

Contract: an `Engine` takes in what it has room for, counted in recordings and in seconds of audio,
or refuses it at once.  What is taken in shares the slots of the model with everything else that the
model does, in the order of `mt3_runtime.decoding.priorities`, and gives what it gives alone.

A recording that cannot be read, decoded or assembled fails alone.  If the device fails, all that
was taken in fails, the engine says so (`Engine.health`), and takes no more.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Literal, Self, Unpack, get_args

from mt3_runtime.arguments.argument_checks import as_choice, as_number, as_seconds
from mt3_runtime.audio.live_blocks import LiveBlocks
from mt3_runtime.decoding.strands import Priority
from mt3_runtime.diagnostics.engine_health import Health
from mt3_runtime.errors import DeadlineError, EngineBusyError, EngineError, OptionError
from mt3_runtime.recording import Recording, open_run
from mt3_runtime.request import LiveOptions, Options, check_live
from mt3_runtime.transcription import Handle, Progress, Tell, Transcription

if TYPE_CHECKING:
    import numpy.typing as npt

    from mt3_runtime.audio.sources import AudioSource
    from mt3_runtime.decoding.batching import Loop
    from mt3_runtime.decoding.decoding_run import Run
    from mt3_runtime.decoding.types import Decoded, Ended
    from mt3_runtime.notes.note_events import NoteEvent
    from mt3_runtime.reading.reader_pool import ReaderPool
    from mt3_runtime.request import Request

PriorityName = Literal["interactive", "batch"]

LIVE_BUFFER = 10.0
"""Seconds of audio that may wait for a live input's reader before `LiveInput.feed` refuses more."""

LIVE_WINDOW = 8
"""Segments of a live input that are decoded ahead of whoever takes its events."""

STALLED = 60.0
"""Seconds without a step, though there is something to do, after which an engine is not healthy; a
step takes milliseconds, the features and the encoder of a segment some tenths of a second."""


class LiveInput:
    """A live input: blocks of samples in, events of notes out.  A context manager.

    One thread feeds, another takes the events; either may be the one that opened it.
    """

    def __init__(self, blocks: LiveBlocks, recording: Recording, run: Run) -> None:
        self._blocks, self._recording, self._run = blocks, recording, run
        self._taken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    @property
    def buffered(self) -> float:
        """Seconds of audio that were fed and not read yet."""
        return self._blocks.seconds

    def feed(self, block: npt.ArrayLike) -> bool:
        """Takes the next samples, [n] or [n, channels]; never waits.

        Returns:
            False if they were not taken, as ten seconds wait already: the machine is too slow, or
            nobody takes the events.

        Raises:
            AudioError: They are no samples.
            OptionError: The input has ended.
        """
        return self._blocks.put(block)

    def end(self) -> None:
        """No more will come; what was fed is still transcribed."""
        self._blocks.end()

    def events(self) -> Iterator[NoteEvent]:
        """The events, as soon as their segment is decoded, until the end of the input; once.

        Raises:
            AudioError: What was fed is no audio, or it was nothing.
            EngineError: The engine was closed, or its device failed.
        """
        if self._taken:
            raise OptionError("The events of a live input can be taken once only.")
        self._taken = True
        return self._recording.events(lambda: self._run)

    def cancel(self) -> None:
        """Stops the work; events end."""
        self._blocks.end()
        self._run.close()


class Engine:
    """See the module docstring; a context manager, and made by `Model.engine`.

    Threads may share it.
    """

    def __init__(
        self,
        loop: Loop,
        request: Callable[..., Request],
        pool: ReaderPool | None = None,
        *,
        max_recordings: int,
        max_seconds: float,
        max_live: int,
    ) -> None:
        for name, value in (("max_recordings", max_recordings), ("max_live", max_live)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise OptionError(f"{name} is {value!r}; expected a number of 0 or more.")
        max_seconds = as_seconds("max_seconds", max_seconds)
        self._loop, self._request, self._pool = loop, request, pool
        self._most, self._most_live, self._most_seconds = max_recordings, max_live, max_seconds
        self._handles: dict[int, Handle] = {}
        self._recordings: dict[int, Recording] = {}
        self._live: set[LiveInput] = set()
        self._changed = threading.Condition()
        self._process = os.getpid()
        self._draining = self._closed = False
        self._error: BaseException | None = None
        self._run = open_run(loop, pool)
        self._collector = threading.Thread(target=self._collect, name="mt3 collect", daemon=True)
        self._collector.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self,
        audio: AudioSource,
        sr: float | None = None,
        *,
        priority: PriorityName = "interactive",
        client: str = "",
        deadline: float | None = None,
        events: Tell | None = None,
        **options: Unpack[Options],
    ) -> Handle:
        """Takes in a recording and returns at once.

        Args:
            audio: As in `Model.transcribe_notes`; an array must not be changed meanwhile.
            sr: As there.
            priority: ``interactive``, or ``batch`` for what nobody waits for.
            client: On whose account it goes; clients take turns.
            deadline: Seconds after which it is given up.
            events: Is told of its segments, see `mt3_runtime.transcription.Tell`; must not wait.
            options: As there.

        Raises:
            EngineBusyError: There is no room for it now.
            EngineError: The engine was closed, is being drained, or its device failed.
            OptionError: An argument is out of range.
        """
        urgency = Priority[as_choice("priority", priority, get_args(PriorityName)).upper()]
        if deadline is not None:
            deadline = as_seconds("deadline", deadline)
        recording = Recording.of(self._request(**options), audio, sr, self._pool, events)
        recording.measure()
        handle = Handle(recording.length, deadline, stop=self._cancelled)
        with self._changed:
            self._admit(handle)
            number = recording.submit(self._run, priority=urgency, client=str(client))
            self._handles[number] = handle
            self._recordings[number] = recording
        self._run.wake()  # it may be the first one with a deadline
        return handle

    def open_live(
        self, sr: float | None = None, *, client: str = "", **options: Unpack[LiveOptions]
    ) -> LiveInput:
        """Opens a live input.

        Args:
            sr: Sample rate of the blocks in Hz; the model's own if None.
            client: As in `submit`.
            options: As in `Model.stream`.

        Raises:
            EngineBusyError: There are as many as there may be.
            EngineError: As in `submit`.
            OptionError: As in `submit`.
        """
        check_live(options)
        request = self._request(**options)
        sr = request.plan.rate if sr is None else sr
        blocks = LiveBlocks(sr, LIVE_BUFFER)
        recording = Recording.live_blocks(request, blocks, sr)
        with self._changed:
            self._check()
            if len(self._live) >= self._most_live:
                raise EngineBusyError(
                    f"{len(self._live)} live inputs are open, as many as this engine takes. Close "
                    "one, or try again later."
                )
            run = recording.begin(self._loop, window=LIVE_WINDOW, client=str(client))
            live = LiveInput(blocks, recording, run)
            self._live.add(live)
        run.when_closed(partial(self._live_closed, live))
        return live

    def health(self) -> Health:
        """How the engine is, without waiting for anything."""
        pulse, now = self._loop.pulse(), time.monotonic()
        with self._changed:
            handles = list(self._handles.values())
            healthy = self._error is None and pulse.stalled < STALLED and self._alive()
            return Health(
                healthy=healthy,
                ready=healthy and not (self._draining or self._closed),
                recordings=len(handles) + len(self._live),
                live=len(self._live),
                seconds=sum(handle.left for handle in handles),
                oldest=max((handle.age(now) for handle in handles), default=0.0),
                waiting=pulse.waiting,
                decoding=pulse.decoding,
                stalled=pulse.stalled,
                error=None if self._error is None else str(self._error),
                work=self._loop.work.totals(),
            )

    def drain(self, timeout: float | None = None) -> bool:
        """Takes nothing more and waits until all that was taken in is done.

        Live inputs go on until they are ended.  If all is done, reader processes end, too.

        Returns:
            False if it was not within so many seconds; then it goes on.
        """
        if timeout is not None:
            timeout = min(as_number("timeout", timeout, "seconds, or None"), threading.TIMEOUT_MAX)
        with self._changed:
            self._draining = True
            done = self._changed.wait_for(lambda: not (self._handles or self._live), timeout)
        if done and self._pool:
            self._pool.close()
        return done

    def close(self) -> None:
        """Stops all work; what is not done raises `EngineError`.  More than once does nothing."""
        with self._changed:
            self._closed, live = True, list(self._live)
        for each in live:
            each.cancel()
        self._run.wake()
        if self._collector is not threading.current_thread() and self._alive():
            self._collector.join()

    # --- the thread that collects results

    def _collect(self) -> None:
        try:
            with self._run as run:
                while not self._closed:
                    item = run.get(self._give_up())
                    if item is not None:
                        self._take(item)
            self._end(EngineError("The engine was closed before this recording was done."))
        except BaseException as error:  # noqa: BLE001  told to everybody who waits
            self._error = error
            self._end(_failure(error))

    def _take(self, item: Decoded | Ended) -> None:
        handle, recording = self._handles.get(item.recording), self._recordings.get(item.recording)
        if handle is None or recording is None:
            return  # cancelled
        try:
            with self._loop.work.stage("finish"):
                outcome = recording.take(item)
        except Exception as error:  # noqa: BLE001  it is this recording's alone
            self._run.cancel(item.recording)
            outcome = error
        if isinstance(outcome, Progress):
            handle.progress = outcome
        else:
            self._finish(item.recording, outcome)

    def _give_up(self) -> float | None:
        """Ends recordings that took too long; returns the seconds until the next deadline."""
        now = time.monotonic()
        with self._changed:
            times = {number: handle.time_left(now) for number, handle in self._handles.items()}
        for number in [number for number, left in times.items() if left <= 0.0]:
            self._run.cancel(number)
            self._finish(number, DeadlineError("The recording was not done by its deadline."))
        next_one = min((left for left in times.values() if left > 0.0), default=math.inf)
        return None if next_one > threading.TIMEOUT_MAX else next_one

    def _finish(self, number: int, outcome: Transcription | BaseException | None) -> None:
        """Forgets a recording and sets its result, if it has one."""
        with self._changed:
            self._recordings.pop(number, None)
            handle = self._handles.pop(number, None)
            self._changed.notify_all()
        if handle is not None and outcome is not None:
            handle.finish(outcome)

    def _end(self, error: EngineError) -> None:
        """Everything that is not done fails."""
        with self._changed:
            self._closed, numbers = True, list(self._handles)
        for number in numbers:
            self._finish(number, error)

    # --- what comes in

    def _cancelled(self, handle: Handle) -> None:
        with self._changed:
            numbers = [number for number, other in self._handles.items() if other is handle]
        for number in numbers:
            self._run.cancel(number)
            self._finish(number, None)

    def _live_closed(self, live: LiveInput) -> None:
        live.end()
        with self._changed:
            self._live.discard(live)
            self._changed.notify_all()

    def _alive(self) -> bool:
        return self._process == os.getpid() and self._collector.is_alive()

    def _check(self) -> None:
        """Refuses everything, if that is so; the lock is held."""
        if self._error is not None:
            raise _failure(self._error)
        if self._closed or self._draining or not self._alive():
            raise EngineError("The engine was closed, or is being drained; open another one.")

    def _admit(self, handle: Handle) -> None:
        """Refuses what there is no room for; the lock is held."""
        self._check()
        if len(self._handles) >= self._most:
            raise EngineBusyError(
                f"{len(self._handles)} recordings are under way, as many as this engine takes. Try "
                "again later."
            )
        queued = sum(other.counted for other in self._handles.values())
        if queued + handle.counted > self._most_seconds:
            known = "has" if handle.length_known else "is of unknown length, which counts as"
            raise EngineBusyError(
                f"{queued:.0f} s of audio are under way, and this recording {known} "
                f"{handle.counted:.0f} s; this engine takes {self._most_seconds:.0f} s at a time. "
                "Try again later, or send less."
            )


def _failure(error: BaseException) -> EngineError:
    failed = EngineError(f"The engine has stopped: {error} Open another engine.")
    failed.__cause__ = error
    return failed
