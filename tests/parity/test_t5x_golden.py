"""Our search against T5X's own beam loop: on small tables, and on whole recordings.

The tables need no weights (recipes/t5x_goldens.py); the recordings need the real ones
(recipes/t5x_recordings.py), and then everything between features and tokens is under test.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mt3_runtime.bundles.bundle import DecodingSpec
from mt3_runtime.decoding.search import T5XBeam
from mt3_runtime.decoding.types import Sequence
from tests.parity.recipes.t5x_goldens import ALPHA, EOS, KINDS
from tests.scripted import decode_table

GOLDEN = Path(__file__).with_name("golden")

#: Both sides add up 64 float32 log-probabilities, in other orders; scores go down to -74.
TABLE_SCORE_TOLERANCE = 5e-5

#: Two float32 networks whose logits differ by up to 5.7e-5 (see test_flax_golden).  Measured: 1e-5.
RECORDING_SCORE_TOLERANCE = 1e-4


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name) as file:
        return dict(file)


def score(sequence: Sequence) -> float:
    """T5X's score of a finished sequence; of an unfinished one, the bare log-probability."""
    total = float(sequence.log_probs.sum())
    return total if sequence.truncated else total / ((5 + len(sequence.tokens)) / 6) ** ALPHA


@pytest.fixture(scope="module")
def tables() -> dict[str, np.ndarray]:
    return load("t5x_beam.npz")


def log_probs(tables: dict[str, np.ndarray], case: int) -> np.ndarray:
    """Log-probabilities [length, previous token, token] of one case."""
    size, length = tables["vocabulary"][case], tables["length"][case]
    scale = json.loads(str(tables["recipe"]))["scale"]
    steps = tables["step_table"][case, :length, np.newaxis, :size]
    total = steps + tables["token_table"][case, np.newaxis, :size, :size]
    logits = total.astype(np.float32) / np.float32(scale)
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float32)


def spec(length: int) -> DecodingSpec:
    return DecodingSpec(start_id=0, eos_id=EOS, max_tokens=length, beam_alpha=ALPHA)


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_tables(tables: dict[str, np.ndarray], slots: int) -> None:
    """Every group of the golden through one lane: sequences equal, scores to rounding."""
    assert len(tables["group"]) == 57
    for group in np.unique(tables["group"]):
        cases = np.flatnonzero(tables["group"] == group)
        limit = spec(int(tables["length"][cases[0]]))
        played = [log_probs(tables, case) for case in cases]
        sequences = decode_table(played, T5XBeam, limit, slots=slots)
        for case, found in zip(cases, sequences, strict=True):
            expected = tables["sequence"][case]
            kind = KINDS[tables["kind"][case]]
            assert found.tokens.tolist() == expected[expected != 0].tolist(), (case, kind)
            assert found.truncated == (kind == "unfinished")
            assert abs(score(found) - tables["score"][case]) < TABLE_SCORE_TOLERANCE, (case, kind)


def test_the_tables_are_of_every_kind(tables: dict[str, np.ndarray]) -> None:
    """Greedy decoding would fail on many of them, and all ways to end occur."""
    assert set(np.unique(tables["kind"])) == set(range(len(KINDS)))
    assert tables["greedy_differs"].sum() >= 20


#: Segments where greedy decoding ends early: here the golden can tell the two searches apart.
PASSED_AN_END = {("violin_solo.mp3", 1), ("violin_solo.mp3", 41)}


#: (recording, segment)
Place = tuple[str, int]


@pytest.fixture(scope="module")
def recordings() -> dict[Place, tuple[np.ndarray, float]]:
    """What Magenta's network and search say of our features: tokens and score of each segment."""
    golden = load("t5x_recordings.npz")
    counts = zip(golden["names"].tolist(), golden["counts"].tolist(), strict=True)
    places = [(name, index) for name, count in counts for index in range(count)]
    ends = np.cumsum(golden["lengths"].astype(np.int64))
    said = zip(np.split(golden["tokens"], ends[:-1]), golden["scores"].tolist(), strict=True)
    return dict(zip(places, said, strict=True))


def differences(
    found: dict[Place, Sequence],
    recordings: dict[Place, tuple[np.ndarray, float]],
) -> list[str]:
    """What is not as in the golden."""
    faults = []
    for place, sequence in found.items():
        tokens, value = recordings[place]
        if sequence.tokens.tolist() != tokens.tolist():
            faults.append(f"{place}: {sequence.tokens} is not {tokens}")
        elif abs(score(sequence) - value) >= RECORDING_SCORE_TOLERANCE:
            faults.append(f"{place}: score {score(sequence)} is not {value}")
    return faults


def test_some_segments_of_every_recording(recordings, features, real_model, greedy_runs) -> None:
    """Two of each, and where the searches differ; all of them take minutes (below)."""
    places = sorted({*((name, k) for name in features for k in (0, 4)), *PASSED_AN_END})
    rows = np.stack([features[name][index] for name, index in places])
    found = dict(zip(places, real_model.forward(rows, decoding="t5x"), strict=True))
    assert differences(found, recordings) == []
    greedy = {(n, k): greedy_runs[n].sequences[k].tokens.tolist() for n, k in places}
    assert {p for p in places if found[p].tokens.tolist() != greedy[p]} == PASSED_AN_END


@pytest.mark.nightly(part="recordings")
def test_every_segment_of_every_recording(recordings, t5x_runs, greedy_runs) -> None:
    found, passed = {}, set()
    for name, run in t5x_runs.items():
        for index, sequence in enumerate(run.sequences):
            found[name, index] = sequence
            if sequence.tokens.tolist() != greedy_runs[name].sequences[index].tokens.tolist():
                passed.add((name, index))
    assert found.keys() == recordings.keys()
    assert differences(found, recordings) == []
    assert passed == PASSED_AN_END
