"""Networks that assess performances against PyTorch and `transformers`."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_analysis.assessment_networks.network_session import open_assessor_networks
from mt3_export.assessors.assessor_writer import export_assessors
from tests.assessor_folders import assessors_folder, network_folder
from tests.parity.recipes.assessor_networks import GOLDEN, LENGTHS, inputs, samples, variants

CLOSE = 2e-5
#: Scores are from 0 to 100: the same share of their range.
SCORES = 100 * CLOSE
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
            fusion, alignment = variants()[name]
            source = network_folder(folder / "source", fusion, alignment=alignment)
            export_assessors(
                source, folder / "bundle", name="tiny", profiles=PROFILES, storage="fp32"
            )
            made[name] = folder / "bundle"
        return made[name]

    return get


@pytest.mark.parametrize("profile", PROFILES)
def test_frames_of_mert(golden, tmp_path, profile):
    source = assessors_folder(tmp_path / "source", ())
    export_assessors(source, tmp_path / "b", name="tiny", profiles=PROFILES, storage="fp32")
    networks = open_assessor_networks(tmp_path / "b", profile=profile, threads=1)
    for length in LENGTHS:
        expected = golden[f"mert_{length}"]
        assert expected.std() > 0.3  # frames that are all alike prove nothing
        found = networks.frames(samples()[:length])
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= CLOSE, length


def outputs_of(path, profile, name):
    """All outputs of all graphs of a network, for the batch of the recipe."""
    networks = open_assessor_networks(path, profile=profile, threads=1)
    (spec,) = networks.manifest.networks
    fed = inputs()
    found = {}
    if spec.reads:
        found = networks._run(spec.name, "midi_encoder", {"tokens": fed["tokens"]})
    given = dict(found)
    if spec.hears:
        given["frames"] = fed["frames"]
    if spec.alignment == "note":
        given["spans"] = fed["spans"]
    found = found | networks._run(spec.name, "fusion", given)
    return found | networks._run(spec.name, "head", {"pooled": found["pooled"]})


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", variants())
def test_networks(golden, exported, name, profile):
    own = f"{name}_"
    others = tuple(f"{other}_" for other in variants() if other.startswith(own))
    expected = {
        part.removeprefix(own): value
        for part, value in golden.items()
        if part.startswith(own) and not part.startswith(others or ("?",))
    }
    found = outputs_of(exported(name), profile, name)
    assert found.keys() == expected.keys()
    for part, value in expected.items():
        assert found[part].shape == value.shape, part
        limit = SCORES if part == "scores" else CLOSE
        assert np.abs(found[part] - value).max() <= limit, part


def test_the_networks_say_something(golden):
    for name in variants():
        assert golden[f"{name}_scores"].std() > 3
        assert np.abs(np.diff(golden[f"{name}_scores"], axis=0)).max() > 0.5  # of what they hear
    assert golden["gated_gates"].std() > 0.05
    weights = golden["cross_audio_to_midi"]
    assert weights.max() > 2 / weights.shape[-1]


def test_the_published_pairing_is_another_network(golden):
    for name in ("gated", "concat"):
        assert np.abs(golden[f"{name}_scores"] - golden[f"{name}_index_scores"]).max() > 0.1


@pytest.mark.parametrize("name", variants())
def test_a_row_does_not_depend_on_those_beside_it(exported, name):
    networks = open_assessor_networks(exported(name), threads=1)
    (spec,) = networks.manifest.networks
    fed = inputs()
    whole = outputs_of(exported(name), "cpu", name)
    given = {}
    if spec.reads:
        given = networks._run(spec.name, "midi_encoder", {"tokens": fed["tokens"][1:]})
    if spec.hears:
        given["frames"] = fed["frames"][1:]
    if spec.alignment == "note":
        given["spans"] = fed["spans"][1:]
    alone = networks._run(spec.name, "fusion", given)
    assert np.abs(alone["pooled"] - whole["pooled"][1:]).max() <= CLOSE
