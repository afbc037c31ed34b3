"""Magenta's piano model, from a checkpoint in its published layout to notes with velocities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mt3_export.weights import Weights
from mt3_runtime.cli import main
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from tests import reference_t5
from tests.export.writers import write_t5x
from tests.seeded import ISMIR2021, seeded_weights


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Of two dozen seeds the one that says most about `audio`: 33, 99 and 70 tokens, 21 notes."""
    return seeded_weights(ISMIR2021, seed=8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> Path:
    folder = tmp_path_factory.mktemp("ismir2021")
    write_t5x(folder / "checkpoint_1", weights.tensors)
    arguments = ["export", str(folder), "-o", str(folder / "piano.mt3"), "--weights", "fp32"]
    assert main([*arguments, "--profiles", "cpu,portable,compat"]) == 0
    return folder / "piano.mt3"


@pytest.fixture
def model(bundle: Path) -> Model:
    return load_model(bundle)


def test_segments_are_twice_as_long(model: Model, audio) -> None:
    assert model.info.variant == "magenta_ismir2021"
    assert model.preprocess(audio).shape == (3, 512, 512)
    result = model.transcribe_notes(audio)
    assert [report.start for report in result.segments] == [0.0, 4.09, 8.19]
    assert not any(report.missing_tie for report in result.segments)  # there are none
    assert len(result.notes) == 21
    assert {note.program for note in result.notes} == {0}
    assert {note.velocity for note in result.notes} == {27, 100}


@pytest.mark.parametrize("profile", ["cpu", "portable", "compat"])
def test_tokens_are_the_references(bundle: Path, weights: Weights, audio, profile: str) -> None:
    """The float64 reference, given a segment's own tokens, would have chosen each of them."""
    with load_model(bundle, profile=profile) as model:
        features = model.preprocess(audio)
        sequences = model.forward(features)
    for row, sequence in zip(features, sequences, strict=True):
        assert not sequence.truncated
        read = np.concatenate([[0], sequence.tokens[:-1]]).astype(np.int64)
        encoded = reference_t5.encode(weights, row[np.newaxis])
        logits = reference_t5.teacher_forced(weights, encoded, read[np.newaxis])[0]
        assert logits.argmax(-1).tolist() == sequence.tokens.tolist()


def test_velocities_reach_the_file(model: Model, audio) -> None:
    played = [message for message in model.transcribe(audio) if message.type == "note_on"]
    # 100 is the velocity before the first token that sets one; 0 ends a note.
    assert {message.velocity for message in played} - {0} == {27, 100}


def test_the_notebooks_search_runs(model: Model, audio) -> None:
    assert model.transcribe_notes(audio, decoding="t5x").segments[0].token_count > 0
