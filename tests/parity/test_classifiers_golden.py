"""Taggers and genre classifiers against values of `transformers` (see recipes/classifiers.py)."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_analysis.front_ends.feature_makers import features_of
from mt3_analysis.networks.classifier_session import open_classifier
from mt3_export.classifiers.classifier_writer import export_classifier, read_classifier
from tests.classifier_networks import WAVES, ast_folder, wave_folder
from tests.parity.recipes.classifiers import (
    AST_SIGNALS,
    GOLDEN,
    LENGTHS,
    STRIDE,
    STRIDES,
    signals,
)

#: torchaudio differs from transformers' own NumPy path by as much.
FRONT_END = 2e-4
LOGITS = 2e-5
PROFILES = ("cpu", "compat")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Bundles of the networks, each made once."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            stride = name.removeprefix("ast_")
            if name in WAVES:
                source = wave_folder(folder / "source", name)
            else:
                source = ast_folder(folder / "source", int(stride))
            export_classifier(
                source, folder / "bundle", name="tiny", profiles=PROFILES, storage="fp32"
            )
            made[name] = folder / "bundle"
        return made[name]

    return get


@pytest.mark.parametrize("name", signals())
def test_the_kaldi_front_end(golden, tmp_path, name):
    front_end = read_classifier(ast_folder(tmp_path)).front_end
    found = features_of(signals()[name], front_end).reshape(-1)[::STRIDE]
    assert np.abs(found - golden[f"kaldi_{name}"]).max() <= FRONT_END


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("stride", STRIDES)
def test_audio_spectrogram_transformers(golden, exported, stride, profile):
    classifier = open_classifier(exported(f"ast_{stride}"), profile=profile, threads=1)
    for name in AST_SIGNALS:
        expected = golden[f"ast_{stride}_{name}"]
        assert expected.std() > 0.3  # a network that says the same of everything proves nothing
        assert np.abs(classifier.logits(signals()[name]) - expected).max() <= LOGITS


def test_seeded_networks_hear_a_difference(golden):
    for stride in STRIDES:
        one, other = (golden[f"ast_{stride}_{name}"] for name in AST_SIGNALS)
        assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("family", WAVES)
def test_wave_classifiers(golden, exported, family, profile):
    classifier = open_classifier(exported(family), profile=profile, threads=1)
    for length in LENGTHS:
        expected = golden[f"{family}_{length}"]
        found = classifier.logits(signals()["music"][:length])
        assert expected.std() > 0.1
        assert np.abs(found - expected).max() <= LOGITS, length
