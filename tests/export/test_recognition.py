"""Files of no known model: what is said about them."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_export.checkpoints.checkpoint import identify
from mt3_export.checkpoints.recognition import FAMILIES, describe_unknown
from mt3_export.checkpoints.torch_names import family_of
from mt3_export.weights import T5Shape
from mt3_runtime.errors import CheckpointError
from tests.export.writers import inverse_frequencies, torch_tensors, write_torch
from tests.export.yourmt3_writer import state_dict
from tests.seeded import MEMORY, TINY, TINY_MOE, TINY_MULTI, TINY_SINGLE, TINY_YMT3, seeded_weights

SHAPES: dict[str, T5Shape] = {
    "mt3_pytorch": TINY,
    "mr_mt3": MEMORY,
    "ymt3_plus": TINY_YMT3,
    "yptf_single": TINY_SINGLE,
    "yptf_multi": TINY_MULTI,
    "yptf_moe_multi": TINY_MOE,
}


def names_of(family: str) -> list[str]:
    """Names of all tensors of a file of this family."""
    weights = seeded_weights(SHAPES[family])
    if family in ("mt3_pytorch", "mr_mt3"):
        return list(torch_tensors(weights, inverse_frequencies(weights.shape.d_model)))
    return list(state_dict(weights))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_knows_its_own_files_wholly_and_no_others(family):
    for name in SHAPES:
        names = names_of(name)
        if name == family.name or (name, family.name) == ("mt3_pytorch", "mr_mt3"):
            assert [n for n in names if not family.knows(n)] == []
        else:
            assert not all(map(family.knows, names))
    assert set(family.needs) <= set(names_of(family.name))
    assert family_of(names_of(family.name)) == family.name


@pytest.mark.parametrize(
    ("family", "lost", "changed", "message"),
    [
        ("mt3_pytorch", "lm_head.", "", "mt3_pytorch, which cannot do without 'lm_head.weight'"),
        ("mt3_pytorch", "", "encoder.block.0", "which has no tensor 'x.encoder.block.0"),
        ("yptf_moe_multi", ".experts.", "", "yptf_moe_multi, which cannot do without 'encoder.bl"),
        ("yptf_single", "projection_layer", "", "yptf_single, which cannot do without 'pre_dec"),
        ("ymt3_plus", "additive_pe", "", "ymt3_plus, which cannot do without 'encoder.encoder."),
    ],
)
def test_the_nearest_family_and_the_first_difference_are_told(family, lost, changed, message):
    names = [n for n in names_of(family) if not lost or lost not in n]
    names = [f"x.{n}" if changed and n.startswith(changed) else n for n in names]
    text = describe_unknown(names)
    assert text.startswith(f"{len(names)} tensors of no known model (mt3_pytorch knows ")
    assert all(f"{name} knows " in text for name in SHAPES)
    assert message in text


def test_another_t5_is_near_the_port():
    names = ["shared.weight", *(n for n in names_of("mt3_pytorch") if ".block." in n)]
    text = describe_unknown(names)
    assert "nearest is mt3_pytorch, which has no tensor 'shared.weight'" in text


def test_a_foreign_model_is_near_none(tmp_path):
    write_torch(tmp_path / "a.pth", {"conv1.weight": np.ones(3, np.float32)})
    with pytest.raises(
        CheckpointError,
        match=r"a\.pth is a state dict of 1 tensors of no known model \(mt3_pytorch knows 0, .*"
        r"yptf_moe_multi knows 0\), the first named 'conv1\.weight'",
    ):
        identify(tmp_path / "a.pth")


def test_hostile_names_are_quoted_in_bounds():
    text = describe_unknown(["\x1b[2J" + "x" * 10_000])
    assert text.isprintable()
    assert len(text) < 500
