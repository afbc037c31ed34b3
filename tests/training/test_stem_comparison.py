"""Specialists and general models on the same made-up recordings of a stem."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mt3_evaluation.scoring import Score
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.models.shipped import shipped_models
from mt3_runtime.notes.stems import HIGH, STEMS, stem_of
from mt3_synthesis.stem_music import TRAINED
from mt3_training.shipping.small_model import write_bundle
from mt3_training.stem_training.stem_comparison import (
    FLOORS,
    MOST_LOST,
    compare_stem,
    digest_of,
    passes,
    recordings,
    table,
)
from mt3_training.stem_training.stem_judgement import (
    NOTHING,
    Estimate,
    difference,
    estimate,
    score_of,
)
from tests import needs
from tests.seeded import seeded_weights
from tests.synthesis.sounds import tiny_palette
from tests.training.synthetic import SHAPE

FEW = {"count": 4, "seconds": 4.0}


@pytest.mark.parametrize("stem", ["bass", "piano", "drums", "high_percs"])
def test_recordings_hold_the_stem_and_faint_others(stem):
    some = list(recordings(stem, tiny_palette(), **FEW))
    assert digest_of(some) == digest_of(list(recordings(stem, tiny_palette(), **FEW)))
    assert digest_of(some) != digest_of(some[1:])
    allowed = {stem, HIGH} if stem == "drums" else {stem}
    for one in some:
        assert one.audio.shape == one.bled.shape == (64000,)
        assert {stem_of(note).name for note in one.labels} <= allowed
        assert max((note.onset for note in one.labels), default=0.0) < 3.5
    assert sum(len(one.labels) for one in some) > 10
    different = [np.abs(one.audio - one.bled).max() for one in some]
    assert sum(value > 1e-4 for value in different) >= 3


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The default model, and one that knows nothing."""
    if "default" not in shipped_models():
        needs.missing("default-model", "it is not in this package")
    path = tmp_path_factory.mktemp("models") / "nothing.mt3"
    write_bundle(seeded_weights(SHAPE, seed=5), path, origin={"step": "1"}, storage="fp32")
    return Bundle(shipped_models()["default"]), Bundle(path)


@pytest.mark.parametrize("better", [True, False])
def test_the_better_model_wins(bundles, better):
    good, bad = bundles
    specialist, general = (good, bad) if better else (bad, good)
    models = {"general": general, "control": general, "specialist": specialist}
    some = list(recordings("piano", tiny_palette(), count=6, seconds=4.0))
    said = []
    row = compare_stem("piano", models, some, threads=1, say=said.append)
    assert json.loads(json.dumps(row)) == row
    assert row["labels"] == sum(len(one.labels) for one in some)
    assert (row["gain"]["value"] > 0.2) is better
    assert (row["gain"]["low"] > 0.0) is better
    assert row["gain"] == row["gain_over_control"]
    assert row["passes"] is (better and row["lost_by_bleed"] < MOST_LOST)
    assert row["contenders"]["specialist"]["mode"] == "masked"
    assert row["contenders"]["specialist"]["export_id"] == specialist.manifest.export_id
    assert len(said) == 3
    text = table([row, {**row, "contenders": {"specialist": row["contenders"]["specialist"]},
                        "gain_over_control": None}])  # fmt: skip
    assert text.count("\n") == 4
    assert "| piano |" in text
    assert "| - |" in text


@pytest.mark.parametrize(
    ("gain", "lost", "wanted"),
    [
        (Estimate(0.07, 0.01, 0.12), 0.01, True),
        (Estimate(0.07, -0.01, 0.12), 0.01, False),
        (Estimate(0.05, 0.01, 0.12), 0.01, False),
        (Estimate(0.07, 0.01, 0.12), 0.06, False),
        (Estimate(0.07), 0.01, False),
        (NOTHING, 0.0, False),
    ],
)
def test_what_passes_is_sure_large_and_robust(gain, lost, wanted):
    assert passes(gain, lost, FLOORS["bass"]) is wanted


def test_every_floor_is_of_a_stem():
    assert set(FLOORS) <= set(TRAINED) <= {stem.name for stem in STEMS}


def test_estimates_of_nothing_are_nothing():
    none = [np.zeros((1, 2), np.int64)] * 3
    some = [np.array([[2, 4]]), np.array([[4, 4]])]
    assert estimate(none) == NOTHING == difference(none, none)
    assert str(NOTHING) == "-"
    assert estimate(some).value == 0.75
    assert str(replace(estimate(some), low=None)) == "0.750"
    drums, pitched = Score(1, 2, 2), Score(0, 2, 2)
    assert score_of("high_percs", pitched, drums) is drums
    assert score_of("bass", pitched, drums) is pitched is score_of("", pitched, drums)
