"""The recordings beside the real weights, transcribed, and what is remembered of that."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.decoding.search import SearchName
from mt3_runtime.decoding.types import Sequence as TokenSequence
from mt3_runtime.files.formats import render
from mt3_runtime.model import Model, token_digest
from mt3_runtime.notes.note import Note

BASELINES = Path(__file__).with_name("baselines.json")
#: Runs a recipe, by file name and arguments, in the environment of the original implementations.
Oracle = Callable[..., subprocess.CompletedProcess[str]]

AUDIO_SUFFIXES = (".flac", ".mp3", ".wav")


@dataclass(frozen=True)
class Run:
    """One recording on its way through the model: features [S, T, bins], S sequences, notes."""

    features: npt.NDArray[np.float32]
    sequences: Sequence[TokenSequence]
    notes: tuple[Note, ...]


def recordings(shared: Path) -> list[Path]:
    """All recordings, by name."""
    return sorted(p for p in (shared / "audio").iterdir() if p.suffix in AUDIO_SUFFIXES)


def extract(model: Model, shared: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Features of all recordings, in full length."""
    return {path.name: model.preprocess(path) for path in recordings(shared)}


def transcribe(
    model: Model, features: Mapping[str, npt.NDArray[np.float32]], decoding: SearchName
) -> dict[str, Run]:
    """Decodes features of recordings."""
    runs = {}
    for name, rows in features.items():
        sequences = model.forward(rows, decoding=decoding)
        runs[name] = Run(rows, sequences, model.assemble(sequences))
    return runs


def remembered(run: Run) -> dict[str, Any]:
    """What `BASELINES` keeps of a run."""
    return {
        "tokens": token_digest(run.sequences),
        "midi": hashlib.sha256(render(run.notes, "midi")).hexdigest(),
        "notes": len(run.notes),
        "segments": " ".join(token_digest([sequence])[:8] for sequence in run.sequences),
    }


def pack(sequences: Iterable[TokenSequence]) -> dict[str, npt.NDArray[np.int32]]:
    """Tokens int32 [S, L], zero behind the end, and lengths int32 [S]."""
    rows = [sequence.tokens for sequence in sequences]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for packed, row in zip(tokens, rows, strict=True):
        packed[: len(row)] = row
    return {"tokens": tokens, "lengths": np.array([len(row) for row in rows], np.int32)}
