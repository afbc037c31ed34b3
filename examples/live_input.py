#!/usr/bin/env python3
"""Live input: blocks of samples in as they are recorded, notes out as their segments complete.

    python examples/live_input.py [MODEL]

The microphone is generated here.  A real one puts its blocks into the same queue, from the callback
of its audio library, and ``None`` when it ends.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from mt3_runtime import Note, load_model

RATE = 16000
"""Sample rate of the microphone [Hz]; any other is resampled, which needs soxr."""

BLOCK = RATE // 10
"""Samples a block: a tenth of a second."""

MELODY = (60, 64, 67, 72, 67, 64)
"""MIDI pitches, a new one every half second."""

Block = npt.NDArray[np.float32]


def recorded(seconds: float) -> Iterator[Block]:
    """What the microphone records: a melody of struck strings, float32 [BLOCK] at a time."""
    for start in range(0, round(seconds * RATE), BLOCK):
        time_ = np.arange(start, start + BLOCK) / RATE
        number, since = np.divmod(time_, 0.5)
        pitch = np.asarray(MELODY)[number.astype(int) % len(MELODY)]
        phase = 2 * np.pi * 440.0 * 2.0 ** ((pitch - 69) / 12) * since
        partials = sum(np.sin(k * phase) * np.exp(-(3 + k) * since) / k for k in range(1, 7))
        yield np.asarray(0.2 * partials, np.float32)


def fill(blocks: queue.Queue[Block | None], seconds: float, pace: float) -> None:
    """Stands for the audio library: a block every tenth of a second times ``pace``."""
    for block in recorded(seconds):
        blocks.put(block)
        time.sleep(pace * BLOCK / RATE)
    blocks.put(None)


def arriving(blocks: queue.Queue[Block | None]) -> Iterator[Block]:
    """The blocks of a queue until ``None``; `Model.stream` reads them on a thread of its own."""
    while (block := blocks.get()) is not None:
        yield block


def transcribe_live(
    model_name: str | None = None, seconds: float = 8.0, pace: float = 1.0
) -> list[Note]:
    """Prints every note as it comes, with the time since recording began; returns them all."""
    blocks: queue.Queue[Block | None] = queue.Queue()
    notes = []
    with load_model(model_name) as model:
        model.warmup(live=True)
        began = time.monotonic()
        threading.Thread(target=fill, args=(blocks, seconds, pace), daemon=True).start()
        for note in model.stream(arriving(blocks), RATE):
            notes.append(note)
            sys.stdout.write(
                f"after {time.monotonic() - began:4.1f} s: pitch {note.pitch} "
                f"from {note.onset:.2f} to {note.offset:.2f} s\n"
            )
    return notes


if __name__ == "__main__":
    transcribe_live(*sys.argv[1:2])
