#!/usr/bin/env python3
"""A stage of a larger program: warm start, a budget of time, progress, and cancelling.

The model is loaded and warmed up once, when the program starts.  Each recording may take so long
and no longer: a deadline ends it between two steps of the network, and so does `cancel` from any
thread.  Other recordings of the same engine go on.

    python examples/pipeline_stage.py MODEL song.wav SECONDS
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Self

from mt3_runtime import Note, Progress, load_model
from mt3_runtime.transcription import Handle


class TranscriptionStage:
    """Transcribes one recording after the other within a budget.

    Args:
        model: Name of an installed bundle, or the path of one.
        budget_seconds: Time for each recording, from the call on.
    """

    def __init__(self, model: str, *, budget_seconds: float) -> None:
        self._model = load_model(model)
        self._model.warmup()  # the first recording need not wait for it
        self._engine = self._model.engine()
        self._budget = budget_seconds
        self._running: Handle | None = None

    def run(self, audio: str, *, on_progress: Callable[[float], object] = float) -> Sequence[Note]:
        """The notes of a recording.

        Args:
            audio: A file.
            on_progress: Gets the part that is done, 0 to 1, after every segment, on the engine's
                thread; it should return soon.

        Raises:
            DeadlineError: The budget is spent.
            concurrent.futures.CancelledError: `cancel` was called.
        """

        def heard(_: object, progress: Progress) -> None:
            if progress.seconds_total:
                on_progress(min(progress.seconds_done / progress.seconds_total, 1.0))

        handle = self._engine.submit(audio, deadline=self._budget, events=heard)
        self._running = handle
        return handle.result().notes

    def cancel(self) -> None:
        """Ends the recording under way, from any thread; without one it does nothing."""
        if self._running is not None:
            self._running.cancel()

    def close(self) -> None:
        """Ends what runs, and frees the model."""
        self._engine.close()
        self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main() -> int:
    """Prints the part that is done, and then the number of notes."""
    model, audio, seconds = sys.argv[1:]
    with TranscriptionStage(model, budget_seconds=float(seconds)) as stage:
        notes = stage.run(audio, on_progress=lambda part: sys.stderr.write(f"{part:.0%}\n"))
    sys.stdout.write(f"{len(notes)} notes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
