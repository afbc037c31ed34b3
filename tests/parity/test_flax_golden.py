"""Our graphs and our float64 reference against Magenta's Flax network (recipes/flax_goldens.py).

Tolerances are twice what two float32 implementations of one network differ by anyway: PyTorch and
Flax on the very inputs of the goldens (`NOISE`).  Ours differ from Flax by up to 0.7 of that noise
on the real encoder, 1.3 on the seeded network's logits; float64 differs from Flax by up to 0.9.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mt3_export.graphs.encoder import build_encoder
from mt3_export.graphs.profiles import PROFILES
from mt3_export.weights import Weights
from tests import reference_t5
from tests.parity.recipes.flax_goldens import (
    EVENTS,
    FRAMES,
    STEPS,
    decoder_input,
    digest,
    golden_features,
    golden_tokens,
)
from tests.seeded import ISMIR2021, seeded_weights
from tests.stepper import Stepper, session

GOLDEN = Path(__file__).with_name("golden")


@dataclass(frozen=True)
class Noise:
    """The largest absolute difference between PyTorch and Flax, both float32 on a CPU."""

    encoded: float
    logits: float


NOISE = {
    "seeded": Noise(encoded=5e-6, logits=3.4e-5),  # of values with an rms of 1.08 and 5.92
    "seeded_ismir2021": Noise(encoded=6.6e-6, logits=7.0e-5),  # of 1.08 and 5.92
    "magenta_mt3": Noise(encoded=2.6e-5, logits=5.7e-5),  # of 0.64 and 30.7
}
FACTOR = 2.0

#: The last bit of a float32 near one: mathematical libraries round sines either way.
LAST_BIT = 2.0**-24

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(params=NOISE)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def weights(name: str, request: pytest.FixtureRequest) -> Weights:
    if name == "seeded":
        return seeded_weights()
    if name == "seeded_ismir2021":
        return seeded_weights(ISMIR2021)
    return request.getfixturevalue("real_weights")


@pytest.fixture
def golden(name: str) -> Arrays:
    with np.load(GOLDEN / f"flax_{name}.npz") as file:
        return dict(file)


@pytest.fixture
def features(golden: Arrays) -> np.ndarray:
    return golden_features(json.loads(str(golden["recipe"])).get("frames", FRAMES))


@pytest.fixture
def read(golden: Arrays) -> np.ndarray:
    """What the decoder reads, int32 [S, STEPS]."""
    events = json.loads(str(golden["recipe"])).get("events", EVENTS)
    return decoder_input(golden_tokens(events))


def test_the_golden_is_of_these_weights(name: str, weights: Weights, golden: Arrays) -> None:
    recipe = json.loads(str(golden["recipe"]))
    assert digest(weights.tensors) == recipe["weights_sha256"], (
        f"The {name} weights are not those the golden was recorded with: record it again with "
        "tests/parity/recipes/flax_goldens.py."
    )
    assert weights.parameters == recipe["parameters"]
    assert weights.shape.heads == recipe["heads"]


def test_position_table(weights: Weights, golden: Arrays) -> None:
    rows = golden["positions_at"]
    table = weights.positions.table(int(rows.max()) + 1, weights.shape.d_model)
    assert np.abs(table[rows] - golden["positions"]).max() <= LAST_BIT


@pytest.mark.parametrize("profile", PROFILES)
def test_encoder(
    name: str, weights: Weights, golden: Arrays, features: np.ndarray, profile: str
) -> None:
    frames = features.shape[1]
    graph = session(build_encoder(weights, frames, profile=profile, expose_output=True))
    (encoded,) = graph.run(["encoded"], {"features": features})
    assert difference(encoded, golden, "encoded") <= FACTOR * NOISE[name].encoded


@pytest.mark.parametrize("profile", PROFILES)
def test_decoder(
    name: str,
    weights: Weights,
    golden: Arrays,
    features: np.ndarray,
    read: np.ndarray,
    profile: str,
) -> None:
    """Teacher-forced, one step at a time, as the runtime drives the graph."""
    stepper = Stepper(weights, features.shape[1], profile, features, expose_logits=True)
    logits, top_ids = [], []
    for tokens in read.T:
        stepper.ids = tokens[:, np.newaxis].astype(np.int64)
        found = stepper.step()
        logits.append(found["logits"])
        top_ids.append(found["top_ids"])
    compare_logits(np.stack(logits, 1), golden, FACTOR * NOISE[name].logits)
    assert np.array_equal(np.stack(top_ids, 1), golden["top_ids"])


def test_the_float64_reference(
    name: str, weights: Weights, golden: Arrays, features: np.ndarray, read: np.ndarray
) -> None:
    """It judges the graphs in tests that have no golden, so it is judged here."""
    encoded = reference_t5.encode(weights, features)
    assert difference(encoded, golden, "encoded") <= FACTOR * NOISE[name].encoded
    logits = reference_t5.teacher_forced(weights, encoded, read)
    compare_logits(logits, golden, FACTOR * NOISE[name].logits)


def compare_logits(logits: np.ndarray, golden: Arrays, tolerance: float) -> None:
    """Logits [S, STEPS, V] at the stored places, and the two best of every step."""
    assert logits.shape[1] == STEPS
    assert difference(logits, golden, "logits") <= tolerance
    best = np.argsort(-logits, axis=-1, kind="stable")[..., :2]
    assert np.array_equal(best, golden["top_ids"])
    values = np.take_along_axis(logits, best, axis=-1)
    assert np.abs(values - golden["top_logits"]).max() <= tolerance


def difference(values: np.ndarray, golden: Arrays, kind: str) -> float:
    """Largest absolute difference at the places a golden holds."""
    return float(np.abs(values[tuple(golden[f"{kind}_at"].T)] - golden[kind]).max())
