"""Events of notes of what an engine decodes: `EventStream` of a recording, `LiveInput` of blocks.

Contract: events come as soon as their segment is decoded, in the order of
`mt3_runtime.notes.note_events`.  One thread takes them; any thread may cancel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from mt3_runtime.audio.live_blocks import LiveBlocks
from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    import numpy.typing as npt

    from mt3_runtime.decoding.decoding_run import Run
    from mt3_runtime.notes.note_events import NoteEvent
    from mt3_runtime.recording import Recording


class EventStream:
    """The events of notes of a recording that is decoded meanwhile; an iterator.

    Whoever has opened it takes it to its end, or cancels it, also while another thread waits for
    the next event.  Raises in between what went wrong: `AudioError`, or `EngineError`.
    """

    def __init__(self, recording: Recording, run: Run) -> None:
        self._events, self._run = recording.events(lambda: run), run

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> NoteEvent:
        return next(self._events)

    def cancel(self) -> None:
        """Stops the work; events end."""
        self._run.close()


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
