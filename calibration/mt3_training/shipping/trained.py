"""Exports the trained weights of a run as a bundle that states their provenance.

Contract: `export_run` turns the folder of a training run into a bundle; equal folders give equal
bytes.  Its manifest carries what somebody who finds the bundle may ask: which step of which run,
how well it did on the held-out examples, and whose sounds and music it was trained with, under
which licences.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mt3_evaluation.confidences.confidence_report import FORMAT as CONFIDENCE_FORMAT
from mt3_export.graphs.graph_builder import Storage
from mt3_export.weights import FloatArray, PositionTable, Weights
from mt3_runtime.bundles.bundle import Manifest
from mt3_runtime.errors import BundleError, CheckpointError, OptionError
from mt3_runtime.notes.confidence import Calibration
from mt3_runtime.notes.stems import OTHER
from mt3_synthesis.corpora import CREDIT as MUSIC_CREDIT
from mt3_training.runs.checkpointing import SOUNDS, RunFolder
from mt3_training.shipping.small_model import write_bundle

Which = Literal["best", "last"]

DEFAULT_NAME = "default"

RECORDED_LICENCE = "that of the recordings it was trained with, see source"
"""Of models that learned from somebody's recordings; whether and how those bind them is for their
user to find out."""


def export_run(
    folder: RunFolder,
    out: str | os.PathLike[str],
    *,
    which: Which = "best",
    storage: Storage = "fp16",
    name: str | None = None,
    stem: str | None = None,
    profiles: Sequence[str] = ("cpu",),
    confidence: Calibration | None = None,
) -> Manifest:
    """Writes the bundle of a run.

    Args:
        folder: The run.
        out: Folder, or ``.mt3`` file.
        which: The averaged weights of the best score, or those where the run stands.
        storage: Precision of the stored matrices; arithmetic is always fp32.
        name: The model's name; by default ``default``, or ``stem_`` and the stem.
        stem: What the model is for; by default what the run trained.
        profiles: Graph profiles.
        confidence: How reliable its notes are, see `read_confidence`.

    Raises:
        CheckpointError: There are no such weights, or the folder is damaged.
        OptionError: An unknown profile.
        OutputError: ``out`` is in the way or cannot be written.
    """
    weights, origin = _weights(folder, which)
    stem = stem or folder.config.stem or OTHER
    return write_bundle(
        weights,
        out,
        origin={**origin, **_credits(folder)},
        storage=storage,
        name=name or (DEFAULT_NAME if stem == OTHER else f"stem_{stem}"),
        stem=stem,
        licence=RECORDED_LICENCE if folder.config.index else None,
        profiles=profiles,
        confidence=confidence,
    )


def read_confidence(path: str | os.PathLike[str]) -> Calibration:
    """The fit in a document that ``mt3 evaluate --confidence --json`` wrote.

    Raises:
        OptionError: The file cannot be read, or is no such document.
    """
    try:
        document = json.loads(Path(path).read_bytes())
        if document["format"] != CONFIDENCE_FORMAT:
            raise OptionError(f"{path} is of the format {document['format']!r}")
        return Calibration.from_dict(document["fitted"])
    except (OSError, ValueError, KeyError, TypeError, BundleError) as error:
        raise OptionError(
            f"{path} holds no fit of confidence ({error}); make one with: mt3 evaluate RECORDINGS "
            "--confidence --json FILE"
        ) from error


def _weights(folder: RunFolder, which: Which) -> tuple[Weights, dict[str, str]]:
    """Averaged weights of a run, and where in the run they come from."""
    tensors: dict[str, FloatArray]
    if which == "best":
        best = folder.best()
        if best is None:
            raise CheckpointError(f"{folder.path} has no judged weights yet; train on")
        tensors = folder.best_weights()
        origin = {"step": str(best.step), "held_out_onset_f1": f"{best.onset_f1:.3f}"}
    else:
        state = folder.load()
        if state is None:
            raise CheckpointError(f"{folder.path} has no saved state yet; train on")
        prefix = "average."
        tensors = {
            name.removeprefix(prefix): array
            for name, array in state.arrays.items()
            if name.startswith(prefix)
        }
        origin = {"step": str(state.position.step)}
    return Weights(folder.config.shape, tensors, PositionTable(255)), origin


def _credits(folder: RunFolder) -> dict[str, str]:
    """Whose sounds and music a run was trained with."""
    found = {"music": MUSIC_CREDIT} if folder.config.corpus else {}
    if start := folder.origins().get("start"):
        found["start"] = start
    file = folder.path / SOUNDS
    if file.is_file():
        banks: list[dict[str, Any]] = json.loads(file.read_bytes())
        lines = [
            f"{bank['bank']} ({bank.get('licence', 'licence not stated')}; {bank.get('credit')})"
            for bank in banks
            if not bank["held_out"]
        ]
        found["recordings" if folder.config.index else "sounds"] = "; ".join(dict.fromkeys(lines))
    return found
