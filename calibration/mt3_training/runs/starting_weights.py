"""Starting weights of a training run: those of a bundle, or of another run.

Contract: `read_start` gives canonical weights whose features, tokens and note rules are those that
this project trains with, so going on from them for no step at all gives the same tokens.  A bundle
that keeps its matrices as fp16 gives what they were rounded to.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mt3_export.weights import FloatArray, PositionTable, T5Shape, Weights
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import CheckpointError, OptionError
from mt3_runtime.models.installed import resolve_model
from mt3_training.runs.checkpointing import CONFIG, RunFolder
from mt3_training.shipping.small_model import DEFAULT


class Start(NamedTuple):
    """Weights to begin with, and what people should know about them."""

    weights: Weights
    name: str


def read_start(source: str | os.PathLike[str]) -> Start:
    """Weights of a bundle, by name or path, or the best ones of a run's folder.

    Raises:
        BundleNotFoundError: There is no such bundle.
        CheckpointError: The run has no judged weights, or the weights cannot be read back.
        OptionError: They are those of a model of another kind.
    """
    folder = Path(source)
    if (folder / CONFIG).is_file():
        run = RunFolder.existing(folder)
        best = run.best()
        if best is None:
            raise CheckpointError(f"{folder} has no judged weights yet; train on")
        weights = Weights(run.config.shape, run.best_weights(), PositionTable(255))
        return Start(weights, f"{folder.resolve().name}, step {best.step}")
    from mt3_export.bundle_weights import read_bundle  # noqa: PLC0415  onnx: 0.3 s

    bundle = Bundle(resolve_model(source))
    manifest = bundle.manifest
    if manifest.variant != DEFAULT.name or manifest.features != DEFAULT.features:
        raise OptionError(
            f"{bundle.path} is a model of the variant {manifest.variant}, and training starts from "
            f"models that were trained here (variant {DEFAULT.name}): their tokens mean the same"
        )
    found = read_bundle(bundle).weights
    table, own = found.positions.rows, PositionTable(255)
    if type(found.shape) is not T5Shape or (
        table is not None and not _same(own.table(len(table), found.shape.d_model), table)
    ):
        raise OptionError(f"{bundle.path} has another kind of network than those trained here")
    weights = Weights(found.shape, found.tensors, own)
    return Start(weights, f"{manifest.name}, export id {manifest.export_id}")


def _same(own: FloatArray, stored: FloatArray) -> bool:
    """Whether tables of positions are equal, or were before the second was stored as fp16."""
    return any(np.array_equal(own.astype(kind), stored) for kind in (np.float32, np.float16))
