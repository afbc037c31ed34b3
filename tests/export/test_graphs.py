"""Graphs of every profile against the float64 reference, and the promises the lint keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from mt3_export.graphs.decoder import build_decoder
from mt3_export.graphs.encoder import build_encoder
from mt3_export.graphs.graph_builder import IR_VERSIONS, Graph, Storage
from mt3_export.graphs.lint import lint
from mt3_export.graphs.profiles import PROFILES, blocks_for
from mt3_export.weights import Weights
from mt3_runtime.errors import CheckpointError, OptionError
from tests import reference_t5
from tests.seeded import MEMORY, seeded_normal, seeded_weights
from tests.stepper import Stepper, session

FRAMES, ROWS, STEPS = 24, 3, 20
STANDARD_OPSETS = {"cpu": 24, "portable": 24, "compat": 17}


def _features() -> np.ndarray:
    return np.clip(seeded_normal("features", (ROWS, FRAMES, 512)) * 2 - 4, -12, 2)


def _previous() -> np.ndarray:
    """What three memories are made of, int64 [rows, 40]: nothing, little, and no padding."""
    ids = np.zeros((ROWS, 40), np.int64)
    ids[0, :2] = 1134, 1
    ids[1, 1:6] = 700, 701, 1002, 5, 1
    ids[2, 1:] = 3 + 37 * np.arange(39) % 1388
    return ids


@pytest.fixture(scope="module")
def reference(tiny_weights: Weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encoder output, greedy tokens [rows, steps] and their logits, all by the reference."""
    encoded = reference_t5.encode(tiny_weights, _features())
    read = np.zeros((ROWS, 1), np.int64)
    for _ in range(STEPS):
        logits = reference_t5.teacher_forced(tiny_weights, encoded, read)
        read = np.concatenate([read, logits[:, -1:].argmax(-1)], axis=1)
    return encoded, read[:, 1:], logits


@pytest.mark.parametrize("profile", PROFILES)
def test_encoder_equals_the_reference(profile: str, tiny_weights: Weights, reference) -> None:
    model = build_encoder(tiny_weights, FRAMES, profile=profile, expose_output=True)
    (encoded,) = session(model).run(["encoded"], {"features": _features()})
    np.testing.assert_allclose(encoded, reference[0], atol=2e-5)


@pytest.mark.parametrize("profile", PROFILES)
def test_decoder_equals_the_reference(profile: str, tiny_weights: Weights, reference) -> None:
    _, tokens, logits = reference
    stepper = Stepper(tiny_weights, FRAMES, profile, _features(), expose_logits=True)
    for step in range(STEPS):
        found = stepper.step()
        assert found["next_ids"][:, 0].tolist() == tokens[:, step].tolist()
        np.testing.assert_allclose(found["logits"], logits[:, step], atol=2e-4)
        shifted = logits[:, step] - logits[:, step].max(-1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        best = np.argsort(-log_probs, axis=-1)[:, :2]
        assert found["top_ids"].tolist() == best.tolist()
        expected = np.take_along_axis(log_probs, best, axis=1)
        np.testing.assert_allclose(found["top_log_probs"], expected, atol=2e-4)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("profile", PROFILES)
def test_memory_equals_the_reference(profile: str, layers: int) -> None:
    """Only some rows of the last layer are computed; the reference computes all."""
    weights, rows = seeded_weights(replace(MEMORY, memory_layers=layers)), 7
    model = build_encoder(
        weights,
        FRAMES,
        profile=profile,
        memory=rows,
        memory_tokens=_previous().shape[1],
        expose_output=True,
    )
    feeds = {"features": _features(), "previous_ids": _previous()}
    (encoded,) = session(model).run(["encoded"], feeds)
    assert encoded.shape == (ROWS, FRAMES + rows, weights.shape.d_model)
    expected = reference_t5.encode(weights, _features())
    np.testing.assert_allclose(encoded[:, :FRAMES], expected, atol=2e-5)
    expected = reference_t5.remember(weights, _previous(), rows)
    np.testing.assert_allclose(encoded[:, FRAMES:], expected, atol=2e-5)


@pytest.mark.parametrize("profile", PROFILES)
def test_decoding_with_memory_equals_the_reference(profile: str) -> None:
    weights, rows = seeded_weights(MEMORY), 7
    encoded = np.concatenate(
        [
            reference_t5.encode(weights, _features()),
            reference_t5.remember(weights, _previous(), rows),
        ],
        axis=1,
    )
    stepper = Stepper(
        weights,
        FRAMES,
        profile,
        _features(),
        previous=_previous(),
        memory=rows,
        expose_logits=True,
    )
    read = np.zeros((ROWS, 1), np.int64)
    for _ in range(STEPS):
        found = stepper.step()
        logits = reference_t5.teacher_forced(weights, encoded, read)[:, -1]
        np.testing.assert_allclose(found["logits"], logits, atol=2e-4)
        read = np.concatenate([read, logits.argmax(-1)[:, None]], axis=1)
        assert found["next_ids"].tolist() == read[:, -1:].tolist()


def test_weights_without_a_memory_make_none(tiny_weights: Weights) -> None:
    with pytest.raises(CheckpointError, match="a memory of 7 rows needs weights that make it"):
        build_encoder(tiny_weights, FRAMES, profile="cpu", memory=7, memory_tokens=40)


def test_rows_of_memory_that_no_query_needs_are_not_computed() -> None:
    """The last layer's feed-forward block sees the memory only, not all tokens."""
    model = build_encoder(
        seeded_weights(MEMORY), FRAMES, profile="portable", memory=7, memory_tokens=40
    )
    shapes = {
        value.name: [size.dim_value or size.dim_param for size in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    rows = {
        tensor: shapes[node.output[0]][1]
        for node in model.graph.node
        for tensor in node.input
        if tensor.startswith("memory_encoder.layers_0.") and tensor.endswith("kernel")
    }
    assert rows == {
        "memory_encoder.layers_0.attention.key+value.kernel": 40,
        "memory_encoder.layers_0.attention.query.kernel": 7,
        "memory_encoder.layers_0.attention.out.kernel": 7,
        "memory_encoder.layers_0.mlp.wi_0+wi_1.kernel": 7,
        "memory_encoder.layers_0.mlp.wo.kernel": 7,
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_the_mask_changes_the_choice_but_not_the_probabilities(
    profile: str, tiny_weights: Weights
) -> None:
    free = Stepper(tiny_weights, FRAMES, profile, _features()).step()
    stepper = Stepper(tiny_weights, FRAMES, profile, _features())
    stepper.allowed[:, free["top_ids"][:, 0]] = False
    masked = stepper.step()
    for row in range(ROWS):
        first, second = free["top_ids"][row]
        if second not in free["top_ids"][:, 0]:
            assert masked["top_ids"][row, 0] == second
            assert masked["top_log_probs"][row, 0] == free["top_log_probs"][row, 1]
        assert masked["next_ids"][row, 0] == masked["top_ids"][row, 0] != first


@pytest.mark.parametrize("profile", PROFILES)
def test_rows_may_stand_at_different_positions(profile: str, tiny_weights: Weights) -> None:
    """A row that starts three steps later decodes what it decodes alone."""
    alone = Stepper(tiny_weights, FRAMES, profile, _features()[:1])
    expected = [alone.step()["next_ids"][0, 0] for _ in range(6)]
    together = Stepper(tiny_weights, FRAMES, profile, _features())
    for _ in range(3):
        together.step()
    together.restart(0)
    assert [together.step()["next_ids"][0, 0] for _ in range(6)] == expected


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
@pytest.mark.parametrize("profile", PROFILES)
def test_graphs_keep_their_promises(profile: str, storage: Storage, tiny_weights: Weights) -> None:
    for model in (
        build_encoder(tiny_weights, FRAMES, profile=profile, storage=storage),
        _memory_encoder(profile, storage),
        build_decoder(tiny_weights, FRAMES, max_tokens=32, profile=profile, storage=storage),
    ):
        assert lint(model) == []
        opset = next(item.version for item in model.opset_import if item.domain == "")
        assert opset == STANDARD_OPSETS[profile]
        assert model.ir_version == IR_VERSIONS[opset]
        if profile != "cpu":
            assert {node.domain for node in model.graph.node} == {""}
        onnx.checker.check_model(model, full_check=profile != "cpu")


def test_parameter_names_survive() -> None:
    """Every canonical tensor is found again in an initialiser's name, alone or fused."""
    weights = seeded_weights(MEMORY)
    names: set[str] = set()
    for model in (
        _memory_encoder("portable", "fp32"),
        build_decoder(weights, FRAMES, max_tokens=32, profile="portable"),
    ):
        for tensor in model.graph.initializer:
            head, _, kind = tensor.name.rpartition(".")
            prefix, _, parts = head.rpartition(".")
            names |= {f"{prefix}.{part}.{kind}" for part in parts.split("+")}
    assert weights.tensors.keys() <= names


def test_half_storage_halves_the_file_and_keeps_norm_scales(tiny_weights: Weights) -> None:
    full, half = (
        build_encoder(tiny_weights, FRAMES, profile="cpu", storage=storage)
        for storage in ("fp32", "fp16")
    )
    assert half.ByteSize() < 0.6 * full.ByteSize()
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert kinds["encoder.encoder_norm.scale"] == onnx.TensorProto.FLOAT
    assert kinds["encoder.layers_0.mlp.wo.kernel"] == onnx.TensorProto.FLOAT16
    (encoded,) = onnxruntime.InferenceSession(half.SerializeToString()).run(
        ["cross_value_0"], {"features": _features()}
    )
    (expected,) = onnxruntime.InferenceSession(full.SerializeToString()).run(
        ["cross_value_0"], {"features": _features()}
    )
    np.testing.assert_allclose(encoded, expected, atol=0.02)
    assert not np.array_equal(encoded, expected)


def _memory_encoder(profile: str, storage: Storage) -> onnx.ModelProto:
    return build_encoder(
        seeded_weights(MEMORY),
        FRAMES,
        profile=profile,
        storage=storage,
        memory=7,
        memory_tokens=40,
    )


def test_unknown_profile_is_refused() -> None:
    with pytest.raises(OptionError, match="cpu, portable, compat"):
        blocks_for("gpu")


def _broken(model: onnx.ModelProto, fault: str) -> onnx.ModelProto:
    """A copy of a sound decoder with one promise broken."""
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    graph = broken.graph
    if fault == "second reader":
        graph.node.add(op_type="Identity", input=["past_key_0"], output=["copy"])
    elif fault == "other writer":
        node = next(node for node in graph.node if "present_key_0" in node.output)
        node.output[list(node.output).index("present_key_0")] = "elsewhere"
        graph.node.add(op_type="Identity", input=["elsewhere"], output=["present_key_0"])
    elif fault == "external":
        graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    elif fault == "unused input":
        graph.input.add(name="spare")
    elif fault == "unwritten output":
        graph.output.add(name="nothing")
    elif fault == "name twice":
        graph.initializer.add(name=graph.initializer[0].name)
    elif fault == "version":
        broken.ir_version = 3
    return broken


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("second reader", "past_key_0 is read by 2 nodes"),
        ("other writer", "does not write present_key_0"),
        ("external", "lies outside the file"),
        ("unused input", "input spare is not used"),
        ("unwritten output", "output nothing is not written"),
        ("name twice", "is used twice"),
        ("version", "IR version 3"),
    ],
)
def test_lint_finds_broken_promises(fault: str, message: str, tiny_weights: Weights) -> None:
    model = build_decoder(tiny_weights, FRAMES, max_tokens=32, profile="portable")
    assert any(message in sentence for sentence in lint(_broken(model, fault)))


def test_what_half_precision_cannot_hold_stays_as_it_is() -> None:
    graph = Graph("g", opset=24, storage="fp16")
    for name, largest in (("small", 65504.0), ("large", 65536.0)):
        graph.parameter(name, np.array([[1.0, -largest]], np.float32))
    kinds = {tensor.name: tensor.data_type for tensor in graph._initializers}
    assert kinds == {"small": onnx.TensorProto.FLOAT16, "large": onnx.TensorProto.FLOAT}
