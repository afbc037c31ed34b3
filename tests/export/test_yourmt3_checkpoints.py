"""Reading YourMT3's files: every layout, what is left unread, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mt3_export.checkpoints.checkpoint import identify, read_checkpoint
from mt3_export.checkpoints.torch_names import PITCH_SHIFTED
from mt3_export.weights import PositionTable, Weights, inventory
from mt3_export.yourmt3 import infer_yourmt3
from mt3_runtime.errors import CheckpointError
from tests.export.writers import write_torch
from tests.export.yourmt3_writer import state_dict, write_yourmt3
from tests.seeded import (
    TINY_MOE,
    TINY_MULTI,
    TINY_SINGLE,
    TINY_YMT3,
    YOURMT3,
    seeded_weights,
)

TINY = {
    "ymt3_plus": TINY_YMT3,
    "yptf_single": TINY_SINGLE,
    "yptf_multi": TINY_MULTI,
    "yptf_moe_multi": TINY_MOE,
}

#: Entries of the state dict and trained values of the published files; the running statistics of
#: the batch norms and the rotary frequencies are not trained, but are part of the network.
PUBLISHED = {
    "ymt3_plus": (192, 44_672_000),
    "yptf_single": (386, 29_868_416 + 1536),
    "yptf_multi": (386, 28_457_600 + 1536),
    "yptf_moe_multi": (655, 46_548_608 + 1536 + 6),
}


@pytest.mark.parametrize("bare", [False, True], ids=["training", "bare"])
@pytest.mark.parametrize("pitch_shift", [False, True], ids=["", "ps"])
@pytest.mark.parametrize("name", TINY)
def test_every_layout_is_read_bit_exactly(tmp_path, name, pitch_shift, bare):
    """Moments and pitch kernels are declared but absent: reading them would fail."""
    weights = seeded_weights(TINY[name])
    path = tmp_path / "model.ckpt"
    write_yourmt3(path, weights, pitch_shift=pitch_shift, bare=bare)
    variant = f"{name}_ps" if pitch_shift and name in PITCH_SHIFTED else name
    assert (identify(path).layout, identify(path).variant) == ("torch", variant)
    contents = read_checkpoint(path, variant)
    assert contents.weights.shape == TINY[name]
    assert contents.weights.tensors.keys() == weights.tensors.keys()
    for tensor, array in weights.tensors.items():
        assert np.array_equal(contents.weights.tensors[tensor], array), tensor
    assert np.array_equal(contents.weights.positions.rows, weights.positions.rows)


@pytest.mark.parametrize("name", PUBLISHED)
def test_inventories_are_the_published_ones(name):
    """Counts from instantiating the original modules; see docs/parity.md."""
    shape, (entries, parameters) = YOURMT3[name], PUBLISHED[name]
    sizes = inventory(shape)
    assert sum(map(math.prod, sizes.values())) == parameters
    holes = {tensor: np.broadcast_to(np.float32(0), size) for tensor, size in sizes.items()}
    assert infer_yourmt3(holes) == shape
    weights = Weights(shape, holes, PositionTable(256, rows=np.zeros((1034, 512), np.float32)))
    assert len(state_dict(weights)) == entries


def changed(name, **changes):
    """The state dict of a tiny model with entries replaced, or left out where None."""
    found = state_dict(seeded_weights(TINY[name])) | changes
    return {key: np.asarray(value, "f4") for key, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "yptf_multi",
            {"encoder.blocks.1.local_transformer.0.layernorm.bias": None},
            "missing: encoder.blocks_1.local_0.mlp_norm.bias",
        ),
        (
            "yptf_single",
            {"pre_encoder.0.blocks.2.bn1.running_var": None},
            "missing: encoder.conv_2.norm_1.variance",
        ),
        (
            "yptf_moe_multi",
            {"encoder.blocks.0.local_transformer.1.mlp.experts.3.w2.weight": np.zeros((64, 25))},
            r"wrong shape: encoder.blocks_0.local_1.mlp.experts_3.wo.kernel \(25, 64\), expected",
        ),
        ("ymt3_plus", {"encoder.novel.weight": np.ones(3)}, "unexpected: encoder.novel.weight"),
        (
            "yptf_single",
            {"encoder.blocks.0.spectral_cross_attention.self.query.gain": np.ones(3)},
            "unexpected: encoder.blocks.0.spectral_cross_attention.self.query.gain",
        ),
        (
            "yptf_multi",
            {"pre_encoder.0.blocks.1.shortcut.weight": np.ones((12, 12, 1, 1))},
            "unexpected: encoder.conv_1.shortcut.filters",
        ),
        ("yptf_multi", {"encoder.latent_array.latents": None}, "encoder.latents is missing"),
        (
            "yptf_multi",
            {"encoder.latent_array.latents": np.ones(5)},
            r"encoder.latents has shape \(5,\)",
        ),
        ("yptf_multi", {"decoder.decoder.additive_pe.weight": None}, "additive_pe.* is missing"),
        (
            "yptf_multi",
            {"decoder.decoder.additive_pe.weight": np.ones((9, 31))},
            r"shape \(9, 31\).*expected a table of positions 32 wide",
        ),
        (
            "ymt3_plus",
            {"encoder.encoder.additive_pe.weight": np.ones((1034, 32))},
            "must be equal",
        ),
        (
            "yptf_moe_multi",
            {"encoder.rotary_emb_latent.freqs": np.ones(2)},
            "are one tensor of the model, but differ",
        ),
    ],
)
def test_incomplete_networks_are_refused(tmp_path, name, changes, message):
    write_torch(tmp_path / "a.pt", changed(name, **changes))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "a.pt")


def test_a_table_is_as_long_as_it_is_stored():
    table = PositionTable(256, rows=np.zeros((7, 4), np.float32))
    assert table.table(7, 4).shape == (7, 4)
    for length, width in ((8, 4), (7, 6)):
        with pytest.raises(CheckpointError, match=r"table of shape \(7, 4\)"):
            table.table(length, width)
