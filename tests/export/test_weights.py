from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt3_export.weights import (
    MemoryShape,
    PositionTable,
    T5Shape,
    Weights,
    check_inventory,
    infer_shape,
    inventory,
    validate,
)
from mt3_runtime.errors import CheckpointError
from tests.seeded import MEMORY, TINY, seeded_normal, seeded_weights


@pytest.fixture
def tensors():
    return dict(seeded_weights().tensors)


def test_the_public_model_has_189_tensors_and_45_896_704_parameters():
    names = inventory(T5Shape())
    assert len(names) == 189
    assert sum(math.prod(shape) for shape in names.values()) == 45_896_704
    assert sum(math.prod(s) for s in inventory(T5Shape(vocab_size=1664)).values()) == 46_027_776
    assert sum(name.endswith(".scale") for name in names) == 42


def test_mr_mt3_has_48_519_680_parameters():
    names = inventory(MemoryShape())
    assert sum(math.prod(shape) for shape in names.values()) == 48_519_680
    arrays = seeded_weights(replace(MEMORY, memory_layers=3)).tensors
    assert infer_shape(arrays) == replace(MEMORY, memory_layers=3)


@given(
    d_model=st.sampled_from([4, 10, 32]),
    heads=st.integers(1, 3),
    d_ff=st.integers(1, 40),
    layers=st.tuples(st.integers(1, 3), st.integers(1, 12)),
    vocab_size=st.integers(3, 70),
    input_bins=st.integers(1, 20),
)
def test_a_shape_is_deduced_from_its_own_tensors(
    d_model, heads, d_ff, layers, vocab_size, input_bins
):
    shape = T5Shape(
        d_model=d_model,
        heads=heads,
        d_ff=d_ff,
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        vocab_size=vocab_size,
        input_bins=input_bins,
    )
    arrays = {name: np.ones(size, np.float32) for name, size in inventory(shape).items()}
    assert infer_shape(arrays) == shape
    assert Weights(shape, arrays, PositionTable(255)).parameters == sum(
        array.size for array in arrays.values()
    )


def test_weights_cannot_be_changed():
    weights = seeded_weights()
    with pytest.raises(TypeError):
        weights.tensors["encoder.encoder_norm.scale"] = np.ones(32, np.float32)


@pytest.mark.parametrize("name", sorted(inventory(TINY)))
def test_no_tensor_may_be_missing(tensors, name):
    del tensors[name]
    with pytest.raises(CheckpointError, match=rf"missing: {name}\. Nothing is filled in"):
        validate(tensors, TINY)


def test_one_error_names_every_kind_of_fault_and_counts_the_rest(tensors):
    for name in [name for name in tensors if name.endswith(".scale")]:
        del tensors[name]
    tensors["encoder.rogue"] = np.ones(3, np.float32)
    tensors["decoder.logits_dense.kernel"] = np.ones((3, 4), np.float32)
    with pytest.raises(CheckpointError) as caught:
        validate(tensors, TINY)
    message = str(caught.value)
    assert "missing: encoder.layers_0.pre_attention_layer_norm.scale, " in message
    assert (
        "and 8 more; unexpected: encoder.rogue; wrong shape: decoder.logits_dense.kernel" in message
    )
    assert "(3, 4), expected (32, 1536)" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_value_that_is_not_finite_is_found(tensors, value):
    kernel = tensors["decoder.layers_1.mlp.wo.kernel"].copy()
    kernel[5, 7] = value
    tensors["decoder.layers_1.mlp.wo.kernel"] = kernel
    with pytest.raises(CheckpointError, match=r"not finite: decoder\.layers_1\.mlp\.wo\.kernel\."):
        Weights(TINY, tensors, PositionTable(255))


def test_only_float32_is_canonical(tensors):
    tensors["encoder.encoder_norm.scale"] = np.ones(32, np.float64)
    with pytest.raises(CheckpointError, match=r"not float32: encoder\.encoder_norm\.scale float64"):
        validate(tensors, TINY)


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("decoder.token_embedder.embedding", None, "token_embedder.embedding is missing"),
        ("encoder.layers_0.mlp.wi_0.kernel", (3,), r"has shape \(3,\), expected a matrix"),
        ("encoder.layers_0.attention.query.kernel", (32, 96), "96 is not a multiple"),
        ("encoder.layers_0.attention.query.kernel", (32, 32), "32 is not a multiple"),
    ],
)
def test_a_shape_that_cannot_be_deduced_is_an_error(tensors, name, replacement, message):
    del tensors[name]
    if replacement:
        tensors[name] = np.ones(replacement, np.float32)
    with pytest.raises(CheckpointError, match=message):
        infer_shape(tensors)


def test_an_absurdly_large_network_is_refused_by_its_shapes_alone():
    class Claim:
        def __init__(self, shape):
            self.shape = shape

    shape = T5Shape(d_model=4096, d_ff=16384, encoder_layers=40)
    claims = {name: Claim(size) for name, size in inventory(shape).items()}
    assert infer_shape(claims) == shape
    with pytest.raises(CheckpointError, match="parameters; no supported model has more"):
        check_inventory(claims, shape)


# Recorded values: Magenta's layers.sinusoidal and the PyTorch ports, at position 100.
@pytest.mark.parametrize(
    ("denominator", "first", "middle"), [(255, 0.805678, 0.831667), (256, 0.797542, 0.841471)]
)
def test_position_tables_have_the_recorded_values(denominator, first, middle):
    table = PositionTable(denominator).table(2048, 512)
    assert table.shape == (2048, 512)
    assert table.dtype == np.float32
    assert table[100, 1] == pytest.approx(first, abs=1e-6)
    assert table[100, 128] == pytest.approx(middle, abs=1e-6)
    assert np.array_equal(table[0], np.repeat(np.float32([0, 1]), 256))


def test_the_two_position_tables_are_far_apart():
    difference = np.abs(PositionTable(255).table(1024, 512) - PositionTable(256).table(1024, 512))
    assert difference[:256].max() == pytest.approx(0.36, abs=0.01)
    assert difference.max() == pytest.approx(1.34, abs=0.01)


@pytest.mark.parametrize("denominator", [255, 256])
def test_position_tables_scale_with_the_width(denominator):
    half = 16
    divisor = half - 1 if denominator == 255 else half
    positions, columns = np.arange(300)[:, None], np.arange(half)
    angles = positions * 10000.0 ** (-columns / divisor)
    table = PositionTable(denominator).table(300, 2 * half)
    assert np.allclose(table, np.hstack([np.sin(angles), np.cos(angles)]), atol=3e-5)


def test_stored_frequencies_replace_the_formula():
    frequencies = np.float32([1.0, 0.5])
    table = PositionTable(256, frequencies).table(3, 4)
    assert np.allclose(table[2], [np.sin(2.0), np.sin(1.0), np.cos(2.0), np.cos(1.0)])
    with pytest.raises(CheckpointError, match=r"shape \(2,\), but d_model 8 needs \(4,\)"):
        PositionTable(256, frequencies).table(3, 8)


@pytest.mark.parametrize("d_model", [2, 7])
def test_a_width_without_sinusoids_is_refused(d_model):
    with pytest.raises(CheckpointError, match="even d_model"):
        PositionTable(255).table(3, d_model)


def test_seeded_values_never_change():
    values = seeded_normal("0:decoder.logits_dense.kernel", (1000, 100))
    assert values.ravel()[:3].tolist() == [
        0.25710129737854004,
        2.0962953567504883,
        -0.9093161225318909,
    ]
    assert values.mean() == pytest.approx(0, abs=0.01)
    assert values.std() == pytest.approx(1, abs=0.01)
