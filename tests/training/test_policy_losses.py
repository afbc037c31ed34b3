"""Role policies in the losses: what they weigh, and that a run without one computes as before."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_training.examples.dataset import ROLLS
from mt3_training.examples.tables import KINDS
from mt3_training.runs.checkpointing import Position
from mt3_training.runs.learning_rate import Schedule
from mt3_training.runs.role_policies import RolePolicy, policies
from tests import needs
from tests.training.synthetic import VOCABULARY, Blips, tiny

torch = needs.torch()

from torch.nn import functional  # noqa: E402

from mt3_training.networks.learner import Learner  # noqa: E402
from mt3_training.networks.losses import (  # noqa: E402
    POSITIVE_WEIGHTS,
    kind_table,
    roll_loss,
    token_loss,
)

#: Losses of a fifth step as they were before there were policies.
BEFORE = {
    "adamw": {"loss": 7.4725847, "auxiliary": 6.177842, "norm": 10.95924},
    "muon": {"loss": 7.5705609, "auxiliary": 6.1727607, "norm": 11.0147873},
}


def learned(policy: RolePolicy | None, optimiser: str = "adamw", steps: int = 5) -> Learner:
    config = tiny(dropout=0.3, optimiser=optimiser, policy=policy)
    learner, source = Learner(Schedule(config), torch.device("cpu")), Blips(40)
    for number in range(steps):
        batch = source.batch([source.draw(8 * number + i) for i in range(8)])
        learner.step(batch, number, 0.1)
    return learner


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_run_without_a_policy_computes_what_it_did_before(optimiser):
    none, ones = learned(None, optimiser), learned(RolePolicy("ones"), optimiser)
    one, other = none.state(Position()), ones.state(Position())
    assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
    assert one.optimiser == other.optimiser
    losses = none.losses()
    for name, value in BEFORE[optimiser].items():
        assert losses[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("name", ["melodic", "harmonic", "percussive"])
def test_every_policy_trains_in_its_own_way(name):
    own, plain = learned(policies()[name]), learned(None)
    one, other = own.state(Position()).arrays, plain.state(Position()).arrays
    assert any(not np.array_equal(one[key], other[key]) for key in one if key.startswith("weights"))
    assert all(np.isfinite(array).all() for array in one.values())


def test_tokens_weigh_by_their_kind():
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 6, VOCABULARY.size, generator=rng)
    source = Blips(40)
    targets = torch.from_numpy(source.batch([source.draw(0), source.draw(1)]).tokens[:, :6])
    kinds = kind_table(VOCABULARY)
    each = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    weights = [0.0, 2.0, 0.5, 1.0, 3.0, 0.25, 1.5]
    wanted = sum(
        float(value) * weights[int(kinds[target])]
        for value, target in zip(each, targets.flatten().tolist(), strict=True)
        if target != 0
    )
    total, tally = token_loss(logits, targets, kinds, weights)
    assert float(total) == pytest.approx(wanted, rel=1e-5)
    _, plain = token_loss(logits, targets, kinds)
    assert torch.equal(tally, plain)  # the log tells what happened, not what it was worth
    assert len(weights) == len(KINDS)


def test_rolls_weigh_alone():
    rng = torch.Generator().manual_seed(4)
    shape = (2, 10, len(ROLLS), 128)
    logits, rolls = torch.randn(shape, generator=rng), torch.rand(shape, generator=rng) < 0.1
    parts = [
        float(
            functional.binary_cross_entropy_with_logits(
                logits[:, :, i], rolls[:, :, i].float(), reduction="sum",
                pos_weight=torch.tensor(POSITIVE_WEIGHTS[i]),
            )
        )
        for i in range(len(ROLLS))
    ]  # fmt: skip
    assert float(roll_loss(logits, rolls)) == pytest.approx(sum(parts), rel=1e-5)
    weights = policies()["percussive"].roll_weights
    assert float(roll_loss(logits, rolls, weights)) == pytest.approx(
        sum(w * part for w, part in zip(weights, parts, strict=True)), rel=1e-5
    )
