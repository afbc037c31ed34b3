#!/usr/bin/env python3
"""Embedding without files: an array of samples in, notes and the bytes of a MIDI file out.

    python examples/notes_from_arrays.py [MODEL]

At the model's own rate this needs NumPy, ONNX Runtime and mido; neither soundfile nor soxr.
"""

from __future__ import annotations

import io
import sys

import numpy as np
import numpy.typing as npt

from mt3_runtime import Note, load_model

RATE = 16000
"""Rate of all models of the family [Hz]: what comes at this rate is not resampled."""


def melody() -> npt.NDArray[np.float32]:
    """A scale of struck strings, two notes a second: float32 [samples], -1 to 1."""
    since = np.arange(RATE // 2) / RATE
    tones = []
    for pitch in (60, 62, 64, 65, 67, 69, 71, 72):
        phase = 2 * np.pi * 440.0 * 2.0 ** ((pitch - 69) / 12) * since
        tones.append(sum(np.sin(k * phase) * np.exp(-(3 + k) * since) / k for k in range(1, 7)))
    return np.asarray(0.2 * np.concatenate(tones), np.float32)


def transcribed(
    samples: npt.NDArray[np.float32], rate: int, model_name: str | None = None
) -> tuple[tuple[Note, ...], bytes]:
    """Notes of an array [samples] or [samples, channels], and the MIDI file of them."""
    with load_model(
        model_name, threads=1
    ) as model:  # a program of its own may want the other cores
        result = model.transcribe_notes(samples, rate)
    written = io.BytesIO()
    result.to_midi().save(file=written)
    return result.notes, written.getvalue()


if __name__ == "__main__":
    found, midi = transcribed(melody(), RATE, *sys.argv[1:2])
    for note in found:
        sys.stdout.write(f"{note.onset:6.2f} {note.pitch:4d}  confidence {note.confidence:.2f}\n")
    sys.stdout.write(f"{len(found)} notes, {len(midi)} bytes of MIDI\n")
