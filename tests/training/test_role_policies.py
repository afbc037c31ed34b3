"""Role policies as data: those of the package, files of users, and how a run keeps its own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from mt3_runtime.errors import OptionError
from mt3_runtime.notes.stems import STEMS, Role
from mt3_synthesis.augment import AugmentConfig
from mt3_synthesis.mixer import faint
from mt3_synthesis.music import MusicConfig
from mt3_synthesis.stem_music import backing, stem_recipe
from mt3_training.examples.dataset import Bleed, DatasetConfig, Examples
from mt3_training.examples.tables import KINDS
from mt3_training.runs.config import TrainConfig
from mt3_training.runs.role_policies import NONE, RolePolicy, policies, policy_for, policy_named
from tests.synthesis.sounds import tiny_palette
from tests.training.synthetic import tiny

#: Tokens of forty examples as they were before there were policies.
TOKENS = {
    False: "e08604d7b2d6cb5df44c91bec738f53ff5f0316fe880ce4520136ba4d0e80d8a",
    True: "38b14eccd2294d0b3a255697f0885feaffc583bba3ba032ddca6f98bffd35099",
}


def test_every_role_has_a_policy():
    assert list(policies()) == [role.value for role in Role]
    percussive = policies()["percussive"]
    assert percussive.roll_weights[1] == percussive.roll_weights[3] == 0.0  # active, class
    assert min(percussive.roll_weights[0], percussive.roll_weights[2]) > 0.0  # onset, drum
    assert policies()["harmonic"].rolls["active"] > 1.0
    assert all(len(policy.token_weights) == len(KINDS) for policy in policies().values())


@pytest.mark.parametrize("stem", [stem.name for stem in STEMS])
def test_a_stem_gets_the_policy_of_its_role_or_the_chosen_one(stem):
    role = next(own.role for own in STEMS if own.name == stem)
    assert policy_for(stem) == policies()[role.value]
    assert policy_for(stem, "harmonic") == policies()["harmonic"]
    assert policy_for(stem, NONE) is None


def test_without_a_stem_there_is_no_policy():
    assert policy_for("") is None


def test_a_policy_of_ones_weighs_nothing():
    policy = RolePolicy("plain")
    assert set(policy.token_weights) == set(policy.roll_weights) == {1.0}
    assert policy.augment == AugmentConfig()
    assert policy.bleed.share == 0.0


def test_users_write_their_own(tmp_path):
    own = replace(policies()["melodic"], name="picked", tokens={"pitch": 3.0})
    path = tmp_path / "picked.json"
    path.write_text(json.dumps(asdict(own)))
    assert policy_named(str(path)) == own
    config = tiny(stem="bass", policy=own)
    again = TrainConfig.from_json(config.to_json(), "config.json")
    assert again == config
    other = tiny(stem="bass", policy=replace(own, rolls={"onset": 2.0}))
    assert "policy.rolls.onset: 1.5, not 2.0" in config.differences(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(tokens={"pitches": 1.0}), r"no tokens \['pitches'\]; expected some of"),
        (lambda d: d.update(rolls={"onset": -1.0}), "numbers from 0 on"),
        (lambda d: d.update(rolls={"onset": float("nan")}), "numbers from 0 on"),
        (lambda d: d.update(tokens={"pitch": "high"}), "expected numbers by name"),
        (lambda d: d.update(tokens=[1.0]), "expected Mapping"),
        (lambda d: d.update(bleed={"share": 2.0, "low": -30.0, "high": -18.0}), "probability 2.0"),
        (lambda d: d.update(bleed={"share": 0.5, "low": -3.0, "high": -18.0}), "ascending pair"),
        (lambda d: d.update(bleed={"share": 0.5}), r"missing are \['high', 'low'\]"),
        (lambda d: d["augment"].update(room=1.5), "room is 1.5"),
        (lambda d: d["augment"].update(level=[1.0]), "expected two numbers"),
        (lambda d: d.pop("name"), r"missing are \['name'\]"),
        (lambda d: d.update(colour="blue"), r"unknown \['colour'\]"),
    ],
)
def test_damaged_policies_are_refused(tmp_path, change, message):
    document = asdict(policies()["harmonic"])
    change(document)
    path = tmp_path / "own.json"
    path.write_text(json.dumps(document))
    with pytest.raises(OptionError, match=message):
        policy_named(str(path))


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "an object")])
def test_files_that_are_no_policy_are_refused(tmp_path, text, message):
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(OptionError, match=message):
        policy_named(str(path))
    with pytest.raises(OptionError, match="no policy 'loud'.*melodic"):
        policy_named("loud")


# --- what they do to examples --------------------------------------------------------------------


@pytest.mark.parametrize("vary", [False, True])
def test_examples_without_a_policy_are_those_of_before(vary):
    examples = Examples(DatasetConfig(vary=vary), tiny_palette())
    whole = hashlib.sha256()
    for index in range(40):
        drawn = examples.draw(index)
        assert drawn.others is None
        whole.update(drawn.tokens.tobytes() + drawn.token_frames.tobytes() + drawn.spans.tobytes())
    assert whole.hexdigest() == TOKENS[vary]


@pytest.mark.parametrize("stem", ["bass", "piano", "drums"])
def test_others_are_heard_and_not_labelled(stem):
    base = DatasetConfig(recipe=stem_recipe(stem), corpus=0.0, backing=backing(stem), augment=None)
    quiet = Examples(base, tiny_palette())
    bled = Examples(replace(base, bleed=Bleed(1.0, -20.0, -20.0)), tiny_palette())
    heard = 0
    for index in range(12):
        one, other = quiet.draw(index), bled.draw(index)
        assert np.array_equal(one.tokens, other.tokens)
        assert np.array_equal(one.spans, other.spans)
        own, difference = quiet.audio(one), bled.audio(other) - quiet.audio(one)
        level = np.sqrt(np.mean(difference**2))
        if level > 0.0 and np.sqrt(np.mean(own**2)) > 0.012:
            heard += 1
            assert -30.0 < 20.0 * np.log10(level / np.sqrt(np.mean(own**2))) < -10.0
    assert heard >= 6


def test_a_share_of_windows_has_others():
    config = DatasetConfig(
        recipe=((1.0, MusicConfig.piano()),), backing=backing("piano"), bleed=Bleed(0.3)
    )
    examples = Examples(config, tiny_palette())
    count = sum(examples.draw(index).others is not None for index in range(200))
    assert 40 <= count <= 80


def test_others_have_the_level_they_were_given():
    rng = np.random.default_rng(0)
    own, others = rng.standard_normal((2, 16000)).astype(np.float32)
    found = faint(others, 0.3 * own, -20.0)
    assert 20.0 * np.log10(np.std(found) / np.std(0.3 * own)) == pytest.approx(-20.0, abs=0.05)
    assert not faint(np.zeros(100, np.float32), own[:100], -20.0).any()
    rest = faint(others, np.zeros_like(own), -20.0)
    assert np.std(rest) == pytest.approx(0.001, rel=0.05)
