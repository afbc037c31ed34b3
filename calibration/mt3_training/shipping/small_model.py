"""The trained small model as the runtime sees it: variant tables, bundle, score.

Contract: what `score_greedy` returns was computed by the runtime itself, from a bundle: weights
that score well here transcribe well for a user.  Labels and answers are both tokens and go through
the same `NoteAssembler`, a segment at a time, so notes held over its start count for neither.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_evaluation.scoring import Score, score_drums, score_notes
from mt3_export.bundle_writer import export_bundle
from mt3_export.graphs.graph_builder import Storage
from mt3_export.variants import Variant
from mt3_export.weights import Weights
from mt3_runtime.audio.log_mel import FeatureConfig
from mt3_runtime.audio.segments import SegmentConfig
from mt3_runtime.bundles.bundle import DecodingSpec, Manifest
from mt3_runtime.loading import load_model
from mt3_runtime.notes.confidence import Calibration
from mt3_runtime.notes.magenta_assembler import NoteAssembler
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.note_rules import NoteRules
from mt3_runtime.notes.stems import OTHER
from mt3_runtime.notes.vocabulary import EOS, PAD, Vocabulary
from mt3_training.examples.batches import Batch

#: The tables of Magenta's ``mt3``, which the training data speak: same features, same tokens.
DEFAULT = Variant(
    name="default",
    family="mt3",
    licence="Apache-2.0; trained by this project on music it made up, see source",
    features=FeatureConfig(),
    # Features of a last segment that is not filled up end in rows of zeros.  Magenta's models were
    # trained with those; this one was not, and would find loud notes in them.
    segments=SegmentConfig(padding="full"),
    vocabulary=Vocabulary.mt3(),
    # Its training labels have the first program of each class only.
    notes=replace(
        NoteRules.mt3(), program_groups=tuple(tuple(range(c, c + 8)) for c in range(0, 128, 8))
    ),
    # No training example is longer than a few hundred tokens; the limit is that of the family.
    # All of them have one order (`mt3_training.examples.tokens`).
    decoding=DecodingSpec(PAD, EOS, max_tokens=1024, beam_alpha=0.6, orderly=True),
)


class Scores(NamedTuple):
    """How greedy decoding does on the held-out examples."""

    onset: Score
    drums: Score


def for_frames(frames: int, max_tokens: int) -> Variant:
    """The same model for segments of another length, as the stages of the curriculum have."""
    features = replace(DEFAULT.features, frames=frames)
    samples = frames * features.hop
    return replace(
        DEFAULT,
        features=features,
        segments=replace(DEFAULT.segments, samples=samples),
        decoding=replace(DEFAULT.decoding, max_tokens=max_tokens),
    )


def score_greedy(
    weights: Weights, batch: Batch, *, threads: int | None = None, folder: Path | None = None
) -> Scores:
    """Sums of `scores_by_example`; arguments and errors as there."""
    none = Score(0, 0, 0)
    found = scores_by_example(weights, batch, threads=threads, folder=folder)
    return Scores(sum((s.onset for s in found), none), sum((s.drums for s in found), none))


def scores_by_example(
    weights: Weights, batch: Batch, *, threads: int | None = None, folder: Path | None = None
) -> list[Scores]:
    """Exports weights, transcribes a batch with the runtime, and scores the notes of each example.

    Decoding ends at twice the length of the longest label: early weights never say that a segment
    is over.

    Args:
        weights: The network.
        batch: Features and labels.
        threads: Of the runtime.
        folder: Where the temporary bundle goes.

    Raises:
        MissingDependencyError: ONNX Runtime or mir_eval is not installed.
    """
    frames, limit = batch.features.shape[1], 2 * batch.tokens.shape[1]
    variant = for_frames(frames, min(limit, DEFAULT.decoding.max_tokens))
    with tempfile.TemporaryDirectory(prefix=".mt3-", suffix=".part", dir=folder) as place:
        path = Path(place) / "bundle"
        export_bundle(weights, variant, path, source={"digest": "0" * 64})
        with load_model(path, device="cpu", threads=threads) as model:
            answers = [found.tokens for found in model.forward(batch.features)]
    seconds = frames * variant.features.hop / variant.features.sample_rate
    pairs = [
        (notes_of(label, seconds), notes_of(answer, seconds))
        for label, answer in zip(batch.tokens, answers, strict=True)
    ]
    return [Scores(score_notes(*pair), score_drums(*pair)) for pair in pairs]


def notes_of(tokens: npt.NDArray[np.integer], seconds: float) -> list[Note]:
    """The notes that begin in a single segment of so many seconds."""
    assembler = NoteAssembler(DEFAULT.vocabulary, DEFAULT.notes)
    closed, _ = assembler.add(tokens, None, 0.0, seconds)
    return closed + assembler.finish()


def digest(weights: Weights) -> str:
    """SHA-256 over names and float32 bytes of all tensors, in the order of their names."""
    whole = hashlib.sha256()
    for name in sorted(weights.tensors):
        whole.update(name.encode() + b"\0")
        whole.update(np.ascontiguousarray(weights.tensors[name], "<f4").tobytes())
    return whole.hexdigest()


def write_bundle(
    weights: Weights,
    out: str | os.PathLike[str],
    *,
    origin: dict[str, str],
    storage: Storage = "fp16",
    name: str | None = None,
    stem: str = OTHER,
    licence: str | None = None,
    profiles: Sequence[str] = ("cpu",),
    confidence: Calibration | None = None,
) -> Manifest:
    """Writes the bundle of a trained model; arguments and errors as of `export_bundle`.

    Args:
        weights: The network.
        out: Folder, or ``.mt3`` file.
        origin: What people should know about the weights' origin.
        storage: Precision of the stored matrices.
        name: The model's name.
        stem: What it is for.
        licence: Of its weights; by default that of models trained on music made up here.
        profiles: Graph profiles.
        confidence: How reliable its notes are.
    """
    source = {"layout": "training", "digest": digest(weights), **origin}
    variant = replace(DEFAULT, confidence=confidence, licence=licence or DEFAULT.licence)
    return export_bundle(
        weights,
        variant,
        out,
        source=source,
        profiles=profiles,
        storage=storage,
        name=name,
        stem=stem,
    )
