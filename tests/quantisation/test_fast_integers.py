"""Products of integers: how weights are rounded, inputs smoothed, and graphs rewritten."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mt3_quantisation.integers.channel_smoothing import ROWS, divide_norm, divisible, smoothed
from mt3_quantisation.integers.integer_inputs import Inputs, layer_products
from mt3_quantisation.integers.integer_products import Plan, multiply_integers
from mt3_quantisation.integers.rounding import column_scales, nearest, rounded
from mt3_runtime.backends.ort_common import import_onnxruntime
from tests.seeded import seeded_normal

KERNEL = "encoder.layers_0.attention.out.kernel"


def related_inputs(rows: int, width: int) -> np.ndarray:
    """Inputs that have much in common, as those of a network do."""
    few = seeded_normal("few", (rows, width // 4)).astype(np.float64)
    mixed = few @ seeded_normal("mix", (width // 4, width))
    return mixed + 0.1 * seeded_normal("own", (rows, width))


def seen(inputs: np.ndarray) -> Inputs:
    return Inputs(
        inputs.T @ inputs, np.abs(inputs).max(axis=0).astype(np.float32), inputs.astype(np.float32)
    )


def test_learned_rounding_keeps_products_where_the_nearest_does_not():
    weight = seeded_normal("weight", (96, 40)).astype(np.float64)
    inputs = related_inputs(2000, 96)
    moments = inputs[:1000].T @ inputs[:1000]
    learned = rounded(weight, moments)
    assert learned.levels.dtype == np.int8
    assert learned.scales.dtype == np.float32
    assert np.abs(learned.levels).max() <= 127
    scales = column_scales(weight, np.diag(moments))
    plain = nearest(weight, scales) * scales
    unseen = inputs[1000:]
    errors = [np.linalg.norm(unseen @ (weight - other)) for other in (learned.values(), plain)]
    assert errors[0] < 0.6 * errors[1]
    assert np.abs(weight - learned.values()).max() < 3 * scales.max()


def test_unrelated_inputs_round_to_the_nearest():
    weight = seeded_normal("weight", (32, 8)).astype(np.float64)
    learned = rounded(weight, np.eye(32))
    assert np.array_equal(learned.levels, nearest(weight, learned.scales.astype(np.float64)))


def test_rounding_takes_zeros():
    """A column of zeros, an input that never comes, and no input at all."""
    weight = seeded_normal("weight", (8, 4)).astype(np.float64)
    weight[:, 2] = 0
    moments = np.diag([1.0] * 7 + [0.0])
    for known in (moments, np.zeros((8, 8))):
        found = rounded(weight, known)
        assert (found.levels[:, 2] == 0).all()
        assert np.abs(found.values() - weight).max() < 0.03


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    from mt3_quantisation.integers import rounding

    weight = seeded_normal("weight", (96, 8)).astype(np.float64)
    inputs = related_inputs(400, 96)
    whole = rounded(weight, inputs.T @ inputs)
    monkeypatch.setattr(rounding, "BLOCK", 7)
    parts = rounded(weight, inputs.T @ inputs)
    assert np.mean(whole.levels != parts.levels) < 0.01


def test_scales_clip_what_hardly_counts():
    weight = np.full((50, 1), 0.1)
    weight[0] = 10.0
    energies = np.ones(50)
    assert column_scales(weight, energies)[0] == np.float32(10 / 127)
    energies[0] = 0.0
    assert column_scales(weight, energies)[0] < 0.8 * 10 / 127


def test_smoothing_takes_large_columns_down():
    inputs = seeded_normal("inputs", (256, 32)).astype(np.float64)
    inputs[:, 3] *= 40
    weights = [seeded_normal(key, (32, 16)).astype(np.float64) for key in ("a", "b")]
    plain = smoothed(seen(inputs), weights, fixed=True)
    found = smoothed(seen(inputs), weights)
    assert (plain.factors == 1).all()
    assert found.factors[3] > 4 * np.median(found.factors)
    assert found.input_error < plain.input_error / 2
    # Where inputs lose nothing, weights are not made worse for their sake.
    exact = smoothed(seen(inputs), weights, exact_inputs=True)
    assert exact.weight_error <= min(plain.weight_error, found.weight_error)


def test_smoothing_looks_at_all_frames():
    """Chunks of inputs begin alike; a sample of every sixth row must not be all beginnings."""
    inputs = np.ones((6 * 2 * ROWS, 8))
    inputs[np.arange(len(inputs)) % 6 == 3, 5] = 60.0
    factors = smoothed(seen(inputs), [seeded_normal("weight", (8, 16)).astype(np.float64)]).factors
    assert factors[5] > 2 * np.median(factors)


def test_smoothing_takes_zeros():
    found = smoothed(seen(np.zeros((4, 8))), [np.zeros((8, 2))])
    assert (found.factors == 1).all()
    assert (found.input_error, found.weight_error) == (0.0, 0.0)


def graph_of(nodes: list[onnx.NodeProto], **tensors: np.ndarray) -> onnx.ModelProto:
    """A graph from ``x`` [rows, tokens, K] to ``y``."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", "t", n]) for n in "xy")
    stored = [numpy_helper.from_array(v, n.replace("__", ".")) for n, v in tensors.items()]
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    return helper.make_model(graph, opset_imports=opsets[:1], ir_version=11)


def product(weight: np.ndarray) -> onnx.ModelProto:
    model = graph_of([helper.make_node("MatMul", ["x", KERNEL], ["y"])])
    model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), KERNEL))
    return model


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = import_onnxruntime().SessionOptions()
    options.intra_op_num_threads = 1
    session = import_onnxruntime().InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x.astype(np.float32)})[0]


@pytest.mark.parametrize(
    ("terms", "scale", "error"), [(1, None, 0.012), (2, None, 1e-4), (2, 0.12, 2e-4)]
)
def test_integers_give_what_the_rounded_weight_gives(terms: int, scale: float | None, error: float):
    weight = seeded_normal("weight", (64, 48)).astype(np.float64)
    became = rounded(weight, np.eye(64))
    model = multiply_integers(product(weight), {KERNEL: Plan(became, terms, scale)})
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node].count("MatMulIntegerToFloat") == terms
    levels = {t.name: t.data_type for t in model.graph.initializer}
    assert levels[KERNEL] == TensorProto.INT8
    x = seeded_normal("x", (20, 3, 64)) * np.linspace(0.2, 2, 20)[:, None, None]
    expected = x @ became.values()
    found = run(model, x)
    assert np.linalg.norm(found - expected) < error * np.linalg.norm(expected)
    # A row's result is its own, to the last bit.
    for rows in (slice(0, 1), slice(5, 9)):
        assert np.array_equal(run(model, x[rows]), found[rows])


@pytest.mark.parametrize("sign", [1, -1])
def test_a_row_s_largest_may_lie_on_either_side_of_zero(sign: int):
    became = rounded(np.eye(16), np.eye(16))
    model = multiply_integers(product(np.zeros((16, 16))), {KERNEL: Plan(became, 1)})
    x = sign * np.array([[np.linspace(0, 1, 16), np.linspace(0, 500, 16)]])
    assert run(model, x) == pytest.approx(x, abs=0.005 * 500, rel=0.01)
    assert run(model, x)[0, 0] == pytest.approx(x[0, 0], abs=0.006)


@pytest.mark.parametrize("terms", [1, 2])
def test_rows_of_zeros_stay_zero(terms: int):
    became = rounded(seeded_normal("weight", (16, 4)).astype(np.float64), np.eye(16))
    model = multiply_integers(product(np.zeros((16, 4))), {KERNEL: Plan(became, terms)})
    assert (run(model, np.zeros((2, 1, 16))) == 0).all()


def test_a_fixed_scale_cuts_off_what_it_has_no_room_for():
    became = rounded(np.eye(16), np.eye(16))
    model = multiply_integers(product(np.zeros((16, 16))), {KERNEL: Plan(became, 2, 1 / 127)})
    x = np.zeros((1, 1, 16))
    x[0, 0, :2] = 1.0, 5.0
    found = run(model, x)[0, 0]
    assert found[0] == pytest.approx(1.0, abs=1e-3)
    assert found[1] == pytest.approx(1.0, abs=0.02)


def split_graph(weight: np.ndarray, *readers: str) -> onnx.ModelProto:
    """A product whose columns are split in three and joined again, turned round."""
    nodes = [
        helper.make_node("MatMul", ["x", KERNEL], ["product"]),
        helper.make_node("Split", ["product", "widths"], ["first", "second", "third"], axis=-1),
        helper.make_node("Concat", ["third", "first", "second", *readers], ["y"], axis=-1),
    ]
    model = graph_of(nodes, widths=np.array([16, 24, 8]))
    model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), KERNEL))
    return model


@pytest.mark.parametrize(("terms", "scale"), [(1, None), (2, None), (2, 0.12)])
def test_products_of_parts_say_the_same_to_the_last_bit(terms: int, scale: float | None):
    weight = seeded_normal("weight", (64, 48)).astype(np.float64)
    plan = Plan(rounded(weight, np.eye(64)), terms, scale)
    whole = multiply_integers(split_graph(weight), {KERNEL: plan})
    parts = multiply_integers(split_graph(weight), {KERNEL: plan}, apart=True)
    onnx.checker.check_model(parts)
    kinds = [node.op_type for node in parts.graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 3 * terms
    assert "Split" not in kinds
    assert {tensor.name for tensor in parts.graph.initializer} >= {
        f"{KERNEL}/{k}" for k in range(3)
    }
    x = seeded_normal("x", (5, 3, 64))
    assert np.array_equal(run(parts, x), run(whole, x))


def test_a_product_that_is_read_as_a_whole_too_stays_whole():
    weight = seeded_normal("weight", (64, 48)).astype(np.float64)
    plan = Plan(rounded(weight, np.eye(64)), 2)
    model = multiply_integers(split_graph(weight, "product"), {KERNEL: plan}, apart=True)
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("MatMulIntegerToFloat"), kinds.count("Split")) == (2, 1)
    assert run(model, seeded_normal("x", (2, 3, 64))).shape == (2, 3, 96)


def norm_graph(*readers: str) -> onnx.ModelProto:
    nodes = [
        helper.make_node("RMSNormalization", ["x", "scale"], ["normed"], axis=-1),
        helper.make_node("MatMul", ["normed", KERNEL], ["y"]),
    ]
    nodes += [helper.make_node("Identity", [name], [f"{name}_too"]) for name in readers]
    model = graph_of(nodes, scale=np.linspace(1, 2, 16, dtype=np.float32))
    kernel = seeded_normal("kernel", (16, 4)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(kernel, KERNEL))
    return model


def test_norms_are_divided():
    model, x = norm_graph(), seeded_normal("x", (2, 3, 16))
    before = run(model, x)
    (found,) = layer_products(model, "encoder")
    assert (found.weight, found.activation) == (KERNEL, "normed")
    assert divisible(model, "normed", [KERNEL]) == "scale"
    factors = np.linspace(0.5, 4, 16)
    divide_norm(model, "scale", factors)
    kernel = model.graph.initializer[1]
    scaled = (numpy_helper.to_array(kernel) * factors[:, None]).astype(np.float32)
    kernel.CopyFrom(numpy_helper.from_array(scaled, KERNEL))
    assert np.allclose(run(model, x), before, atol=1e-5)


def test_what_serves_something_else_is_not_divided():
    assert divisible(norm_graph("normed"), "normed", [KERNEL]) is None
    assert divisible(norm_graph("scale"), "normed", [KERNEL]) is None
    assert divisible(product(np.eye(16)), "x", [KERNEL]) is None


def test_only_products_of_layers_are_found():
    model = graph_of([helper.make_node("MatMul", ["x", "decoder.logits_dense.kernel"], ["y"])])
    head = numpy_helper.from_array(np.eye(4, dtype=np.float32), "decoder.logits_dense.kernel")
    model.graph.initializer.append(head)
    assert layer_products(model, "decoder") == []
