"""YourMT3's graphs of every profile against the float64 reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from mt3_export.graphs.decoder import build_decoder
from mt3_export.graphs.encoder import build_encoder
from mt3_export.graphs.latent_blocks import LATENT_BLOCKS, LatentBlocks
from mt3_export.graphs.lint import lint
from mt3_export.graphs.perceiver_encoder import fold_batch_norm
from mt3_export.graphs.profiles import PROFILES
from mt3_export.weights import Weights
from mt3_runtime.errors import CheckpointError
from tests import reference_t5, reference_yourmt3
from tests.seeded import TINY_MOE, TINY_MULTI, TINY_SINGLE, TINY_YMT3, seeded_normal, seeded_weights
from tests.stepper import Stepper, session

SHAPES = {"ymt3_plus": TINY_YMT3, "single": TINY_SINGLE, "multi": TINY_MULTI, "moe": TINY_MOE}
FRAMES, SEGMENTS, STEPS = 12, 2, 16

#: As for T5 alone (test_graphs), where values have a standard deviation of 1, too.
ENCODED = 2e-5
LOGITS = 2e-4


@pytest.fixture(scope="module", params=SHAPES)
def weights(request: pytest.FixtureRequest) -> Weights:
    return seeded_weights(SHAPES[request.param])


def features(weights: Weights, segments: int = SEGMENTS) -> np.ndarray:
    """Values as the front end makes them, 0 to 1."""
    shape = (segments, FRAMES, weights.shape.input_bins)
    return np.asarray(np.clip(0.5 + 0.2 * seeded_normal("features", shape), 0, 1), np.float32)


def reference(weights: Weights, inputs: np.ndarray) -> np.ndarray:
    module = reference_t5 if weights.shape.encoder_layers else reference_yourmt3
    return module.encode(weights, inputs)


def encode(weights: Weights, profile: str, inputs: np.ndarray) -> np.ndarray:
    model = build_encoder(weights, FRAMES, profile=profile, expose_output=True)
    return session(model).run(["encoded"], {"features": inputs})[0]


@pytest.mark.parametrize("profile", PROFILES)
def test_encoder_equals_the_reference(profile: str, weights: Weights) -> None:
    inputs = features(weights)
    found = encode(weights, profile, inputs)
    assert found.shape == (SEGMENTS * weights.shape.channels, FRAMES, weights.shape.d_model)
    np.testing.assert_allclose(found, reference(weights, inputs), atol=ENCODED)


@pytest.mark.parametrize("profile", PROFILES)
def test_segments_do_not_touch_each_other(profile: str, weights: Weights) -> None:
    """Rows of one segment stand together, in the order of the channels, whatever is beside it."""
    inputs, channels = features(weights, 3), weights.shape.channels
    together = encode(weights, profile, inputs)
    alone = encode(weights, profile, inputs[1:2])
    np.testing.assert_allclose(together[channels : 2 * channels], alone, atol=ENCODED)


@pytest.mark.parametrize("profile", PROFILES)
def test_decoder_equals_the_reference(profile: str, weights: Weights) -> None:
    inputs = features(weights)
    stepper = Stepper(weights, FRAMES, profile, inputs, expose_logits=True)
    encoded = reference(weights, inputs)
    read = np.zeros((len(encoded), 1), np.int64)
    for _ in range(STEPS):
        logits = reference_t5.teacher_forced(weights, encoded, read)[:, -1]
        found = stepper.step()
        np.testing.assert_allclose(found["logits"], logits, atol=LOGITS)
        assert found["next_ids"][:, 0].tolist() == logits.argmax(-1).tolist()
        read = np.concatenate([read, found["next_ids"]], axis=1)
    assert len({tuple(row) for row in read.tolist()}) > 1 or len(read) == 1


@pytest.mark.parametrize("profile", PROFILES)
def test_graphs_keep_their_promises(profile: str, weights: Weights) -> None:
    for storage in ("fp32", "fp16"):
        encoder = build_encoder(weights, FRAMES, profile=profile, storage=storage)
        decoder = build_decoder(weights, FRAMES, max_tokens=32, profile=profile, storage=storage)
        for model in (encoder, decoder):
            assert lint(model) == []
            if profile != "cpu":
                assert {node.domain for node in model.graph.node} == {""}
            onnx.checker.check_model(model, full_check=profile != "cpu")


@pytest.mark.parametrize("profile", ["cpu", "compat"])
def test_parameter_names_survive(profile: str, weights: Weights) -> None:
    """Every tensor is found again: alone, in a fused name, or among the experts side by side."""
    found: set[str] = set()
    for model in (
        build_encoder(weights, FRAMES, profile=profile),
        build_decoder(weights, FRAMES, max_tokens=32, profile=profile),
    ):
        for tensor in model.graph.initializer:
            head, _, kind = tensor.name.rpartition(".")
            prefix, _, parts = head.rpartition(".")
            found |= {f"{prefix}.{part}.{kind}".lstrip(".") for part in parts.split("+")}
    experts = range(getattr(weights.shape, "experts", 0))
    found |= {n.replace(".experts.", f".experts_{e}.") for n in found for e in experts}
    found |= {
        f"{n.rpartition('.')[0]}.{s}"
        for n in found
        for s in ("scale", "mean", "variance")
        if ".norm_" in n
    }
    turned = {name for name in weights.tensors if ".rotary." in name}
    assert weights.tensors.keys() - turned <= found


def test_routers_norms_and_biases_stay_exact() -> None:
    model = build_encoder(seeded_weights(TINY_MOE), FRAMES, profile="cpu", storage="fp16")
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    prefix = "encoder.blocks_0.local_0"
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert kinds[f"{prefix}.mlp.experts_0.wi_0+wi_1.kernel"] == half
    assert kinds["encoder.conv_1.conv_1+norm_1.filters"] == half
    for name in ("mlp.router.kernel", "mlp_norm.scale", "attention.out.bias"):
        assert kinds[f"{prefix}.{name}"] == full


def with_filled(weights: Weights, part: str, value: float) -> Weights:
    """The network with one value throughout the tensors of a part."""
    tensors = {
        name: np.full_like(tensor, value) if part in name else tensor
        for name, tensor in weights.tensors.items()
    }
    return Weights(weights.shape, tensors, weights.positions)


@pytest.mark.parametrize("profile", LATENT_BLOCKS)
def test_experts_without_tokens(profile: str) -> None:
    """A router of zeros always wants the two lowest experts and leaves the others none."""
    weights = with_filled(seeded_weights(TINY_MOE), ".router.", 0.0)
    inputs = features(weights)
    expected = reference_yourmt3.encode(weights, inputs)
    np.testing.assert_allclose(encode(weights, profile, inputs), expected, atol=ENCODED)


def test_only_chosen_experts_are_asked_on_the_cpu() -> None:
    """Experts full of huge values that are never chosen leave no trace, not even as 0 * inf."""
    weights = with_filled(seeded_weights(TINY_MOE), ".router.", 0.0)
    changed = with_filled(weights, ".experts_3.", 1e30)
    inputs = features(weights)
    assert np.array_equal(encode(changed, "cpu", inputs), encode(weights, "cpu", inputs))


def test_folding_uses_the_running_statistics() -> None:
    tensors = dict(seeded_weights(TINY_MULTI).tensors)
    filters, bias = fold_batch_norm(tensors, "encoder.conv_1", 2)
    tensors["encoder.conv_1.norm_2.variance"] *= np.float32(4)
    tensors["encoder.conv_1.norm_2.mean"] += np.float32(1)
    halved, moved = fold_batch_norm(tensors, "encoder.conv_1", 2)
    np.testing.assert_allclose(halved, filters / 2, rtol=1e-4)
    assert not np.allclose(moved, bias)


def test_rows_behind_the_segment_are_cut_from_the_position_table() -> None:
    """The stored table has a few spare rows; they have no say."""
    weights = seeded_weights(TINY_SINGLE)
    longer = seeded_weights(replace(TINY_SINGLE, position_rows=30))
    name = "encoder.latent_positions"
    table = np.concatenate([weights.tensors[name], longer.tensors[name][20:]])
    padded = Weights(longer.shape, {**weights.tensors, name: table}, weights.positions)
    found = [encode(w, "cpu", features(w)) for w in (weights, padded)]
    assert np.array_equal(*found)


def test_a_table_of_positions_must_reach_the_end_of_a_segment() -> None:
    weights = seeded_weights(TINY_SINGLE)
    with pytest.raises(CheckpointError, match="positions of 20 frames, but segments have 21"):
        build_encoder(weights, TINY_SINGLE.position_rows + 1, profile="cpu")


def test_a_profile_may_only_change_the_spelling() -> None:
    for blocks in LATENT_BLOCKS.values():
        assert issubclass(blocks, LatentBlocks)
    assert LATENT_BLOCKS.keys() == PROFILES.keys()
