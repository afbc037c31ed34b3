"""Our graphs and loop with memory, and our float64 reference, against MR-MT3's own network.

The numbers are from recipes/mr_mt3_goldens.py, on seeded weights in the published layout.
Tolerances are twice the distance of the original's float32 results from its own float64 ones: two
float32 implementations may stand that far apart on either side of the truth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from mt3_export.bundle_writer import export_bundle
from mt3_export.checkpoints.mr_mt3 import CONTEXTS
from mt3_export.graphs.encoder import build_encoder
from mt3_export.graphs.profiles import PROFILES, blocks_for
from mt3_export.variants import variant_named
from mt3_export.weights import PositionTable, Weights
from mt3_runtime.loading import load_model
from tests import reference_t5
from tests.export.writers import inverse_frequencies, torch_tensors
from tests.parity.recipes.mr_mt3_goldens import (
    EOS,
    FRAMES,
    MEMORIES,
    TOKENS,
    digest,
    golden_features,
    golden_previous,
    golden_tokens,
)
from tests.seeded import MEMORY, seeded_weights
from tests.stepper import Stepper, session

GOLDEN = Path(__file__).with_name("golden") / "mr_mt3_seeded.npz"
ROWS = MEMORIES[-1]
FREQUENCIES = inverse_frequencies(MEMORY.d_model)
#: Of sixty seeds the one whose six segments have most to say at every M: 3 to 1023 tokens.
SEED = 39
FACTOR = 2.0

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return seeded_weights(MEMORY, SEED, positions=PositionTable(256, FREQUENCIES))


@pytest.fixture(scope="module")
def golden() -> Arrays:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def noise(golden: Arrays) -> Mapping[str, float]:
    found: dict[str, float] = json.loads(str(golden["recipe"]))["noise"]
    return found


@pytest.fixture(scope="module")
def read() -> np.ndarray:
    """What the decoder reads, int64 [S, L]."""
    tokens = golden_tokens().astype(np.int64)
    return np.concatenate([np.zeros_like(tokens[:, :1]), tokens[:, :-1]], axis=1)


def test_the_golden_is_of_these_weights(weights: Weights, golden: Arrays) -> None:
    recipe = json.loads(str(golden["recipe"]))
    assert recipe["weights_sha256"] == digest(torch_tensors(weights, FREQUENCIES))
    assert recipe["parameters"] == weights.parameters


@pytest.mark.parametrize("profile", PROFILES)
def test_memory_and_cross_attention(
    weights: Weights, golden: Arrays, noise: Mapping[str, float], profile: str
) -> None:
    options = {"memory": ROWS, "memory_tokens": TOKENS, "expose_output": True}
    graph = session(build_encoder(weights, FRAMES, profile=profile, **options))
    names = [output.name for output in graph.get_outputs()]
    feeds = {"features": golden_features(), "previous_ids": golden_previous()}
    found = dict(zip(names, graph.run(names, feeds), strict=True))
    found["memory"] = found.pop("encoded")[:, FRAMES:]
    for name, values in found.items():
        if name.startswith("cross"):
            transposed = blocks_for(profile).cross_key_transposed and "key" in name
            merged = values.transpose(0, 3, 1, 2) if transposed else values.transpose(0, 2, 1, 3)
            values = merged.reshape(*merged.shape[:2], -1)  # noqa: PLW2901
        assert difference(values, golden, name) <= FACTOR * noise[name], name
    assert len(found) == 1 + 2 * MEMORY.decoder_layers


@pytest.mark.parametrize("profile", PROFILES)
def test_logits(
    weights: Weights, golden: Arrays, noise: Mapping[str, float], read: np.ndarray, profile: str
) -> None:
    """Teacher-forced, one step at a time, as the runtime drives the graph."""
    stepper = Stepper(
        weights,
        FRAMES,
        profile,
        golden_features(),
        previous=golden_previous(),
        memory=ROWS,
        expose_logits=True,
    )
    logits, top_ids = [], []
    for tokens in read.T:
        stepper.ids = tokens[:, np.newaxis]
        found = stepper.step()
        logits.append(found["logits"])
        top_ids.append(found["top_ids"])
    assert difference(np.stack(logits, 1), golden, "logits") <= FACTOR * noise["logits"]
    assert np.array_equal(np.stack(top_ids, 1), golden["top_ids"])


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("profile", PROFILES)
def test_tokens_of_consecutive_segments(
    weights: Weights, golden: Arrays, profile: str, memory: int, tmp_path: Path
) -> None:
    """Greedy, each segment with the memory of the one before; two of M = 64 have no end."""
    variant, out = variant_named(CONTEXTS[memory]), tmp_path / "bundle"
    export_bundle(weights, variant, out, source={"digest": "0" * 64}, profiles=(profile,))
    with load_model(out, profile=profile) as model:
        found = model.forward(golden_features())
    tokens, lengths = golden[f"tokens_{memory}"], golden[f"lengths_{memory}"]
    for sequence, row, length in zip(found, tokens, lengths, strict=True):
        assert sequence.tokens.tolist() == row[:length].tolist()
        assert sequence.truncated == (EOS not in row)


def test_the_float64_reference(
    weights: Weights, golden: Arrays, noise: Mapping[str, float], read: np.ndarray
) -> None:
    """It judges the graphs in tests that have no golden, so it is judged here."""
    memory = reference_t5.remember(weights, golden_previous(), ROWS)
    assert difference(memory, golden, "memory") <= FACTOR * noise["memory"]
    encoded = np.concatenate([reference_t5.encode(weights, golden_features()), memory], axis=1)
    logits = reference_t5.teacher_forced(weights, encoded, read)
    assert difference(logits, golden, "logits") <= FACTOR * noise["logits"]
    best = np.argsort(-logits, axis=-1, kind="stable")[..., :2]
    assert np.array_equal(best, golden["top_ids"])


def difference(values: np.ndarray, golden: Arrays, kind: str) -> float:
    """Largest absolute difference at the places a golden holds."""
    return float(np.abs(values[tuple(golden[f"{kind}_at"].T)] - golden[kind]).max())
