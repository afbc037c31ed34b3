"""The graphs engines are built from: what TensorRT reads, and that they compute the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mt3_engines.building.network_graph import parameters
from mt3_engines.building.operators import faults, table
from mt3_engines.building.prepare import prepare
from mt3_engines.versions import Version
from mt3_export.graphs.decoder import build_decoder
from mt3_export.graphs.encoder import build_encoder
from mt3_export.weights import Weights
from tests import needs
from tests.seeded import (
    MEMORY,
    TINY,
    TINY_MOE,
    TINY_MULTI,
    TINY_SINGLE,
    TINY_YMT3,
    seeded_normal,
    seeded_weights,
)
from tests.stepper import CAPACITY, session

OLD, NEW = Version(10, 3), Version(10, 16)
VERSIONS = (OLD, Version(10, 14), Version(10, 15), NEW, Version(11, 1), Version(11, 4))
SHAPES = {
    "mt3": TINY,
    "mr_mt3": MEMORY,
    "ymt3_plus": TINY_YMT3,
    "yptf_single": TINY_SINGLE,
    "yptf_multi": TINY_MULTI,
    "yptf_moe": TINY_MOE,
}
FRAMES, ROWS, STEPS, MEMORY_ROWS, MEMORY_TOKENS = 12, 3, 24, 4, 8

#: fp32 spelled in other operators differs by its order of summation, as between profiles.
SPELLED = 2e-5
#: fp16 carries 11 bits; cross keys and values have a standard deviation of about 1.
HALF = 0.02
#: Where it makes one of a few hundred tokens choose another expert.
HALF_EXPERTS = 0.05


@pytest.fixture(scope="module", params=SHAPES)
def weights(request) -> Weights:
    return seeded_weights(SHAPES[request.param])


def encoder(weights: Weights, profile: str = "portable") -> onnx.ModelProto:
    memory = (MEMORY_ROWS, MEMORY_TOKENS) if weights.shape == MEMORY else (0, 0)
    return build_encoder(
        weights, FRAMES, profile=profile, memory=memory[0], memory_tokens=memory[1]
    )


def decoder(weights: Weights, profile: str = "portable") -> onnx.ModelProto:
    return build_decoder(weights, FRAMES, max_tokens=CAPACITY, profile=profile)


def encode(model: onnx.ModelProto, weights: Weights) -> dict[str, np.ndarray]:
    features = np.abs(seeded_normal("features", (2, FRAMES, weights.shape.input_bins)))
    feeds = {"features": np.clip(0.4 * features, 0, 1).astype(np.float32)}
    if weights.shape == MEMORY:
        feeds["previous_ids"] = np.arange(2 * MEMORY_TOKENS).reshape(2, -1)
    loaded = session(model)
    names = [output.name for output in loaded.get_outputs()]
    return dict(zip(names, loaded.run(names, feeds), strict=True))


def decode(model: onnx.ModelProto, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [rows, steps] and their log-probabilities; rows start one after another."""
    loaded, shape = session(model), weights.shape
    feeds = {}
    for value in loaded.get_inputs():
        size = [ROWS if index == 0 else dim for index, dim in enumerate(value.shape)]
        size = [CAPACITY if isinstance(dim, str) else dim for dim in size]
        kind = np.float16 if value.type == "tensor(float16)" else np.float32
        if value.name.startswith("cross"):
            feeds[value.name] = seeded_normal(value.name, tuple(size)).astype(kind)
        elif value.name.startswith("past"):
            feeds[value.name] = np.zeros(size, kind)
    feeds["allowed"] = np.ones((ROWS, shape.vocab_size), np.bool_)
    feeds["token_ids"] = np.zeros((ROWS, 1), np.int64)
    feeds["positions"] = np.array([0, 5, 11], np.int32)  # of cleared caches
    names = [output.name for output in loaded.get_outputs()]
    tokens, scores = [], []
    for _ in range(STEPS):
        found = dict(zip(names, loaded.run(names, feeds), strict=True))
        feeds |= {name: found[name.replace("past", "present")] for name in feeds if "past" in name}
        feeds["token_ids"] = found["next_ids"]
        feeds["positions"] = feeds["positions"] + np.int32(1)
        tokens.append(found["next_ids"][:, 0])
        scores.append(found["top_log_probs"][:, 0])
    return np.stack(tokens, 1), np.stack(scores, 1)


# What the parser accepts -------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_prepared_graph_is_accepted(weights, version, precision):
    for model in (encoder(weights), decoder(weights)):
        made = prepare(model, version, precision=precision, capacity=CAPACITY)
        onnx.checker.check_model(made, full_check=True)
        assert faults(made, version) == []


def test_profile_compat_is_accepted_by_all(weights):
    for model in (encoder(weights, "compat"), decoder(weights, "compat")):
        for version in VERSIONS:
            assert faults(model, version) == []


def test_profile_portable_is_not_read_as_it_is_meant(weights):
    assert set(faults(decoder(weights), NEW)) == {
        "TensorScatter: the length of the cache is not fixed",
        "Attention: input 6 is not read",  # the lengths: unwritten columns would be attended
    }
    assert "opset 24 is newer than 20" in faults(decoder(weights), OLD)
    assert "TensorScatter came with TensorRT 10.15" in faults(decoder(weights), OLD)


def test_profile_cpu_is_refused(tiny_bundle):
    found = faults(onnx.load(tiny_bundle / "decoder.cpu.onnx"), NEW)
    assert "there is no operator com.microsoft::GroupQueryAttention" in found


def test_real_graphs_are_accepted(real_bundle):
    for role in ("encoder", "decoder"):
        model = onnx.load(real_bundle / f"{role}.portable.onnx")
        for version in (OLD, NEW):
            made = prepare(model, version, precision="fp16", capacity=128)
            assert faults(made, version) == []


def node(kind: str, *inputs: str, **attributes) -> onnx.ModelProto:
    """A graph of one node whose inputs x, y are rank-2 inputs and c constant."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 2]) for n in "xy"]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    constant = numpy_helper.from_array(np.array([4000]), "c")
    names = ["out", "ids"] if kind == "TopK" else ["out"]
    body = helper.make_node(kind, inputs, names, **attributes)
    graph = helper.make_graph([body], "one", values, [out], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (node("AveragePool", "x", kernel_shape=[1]), "AveragePool: input 0 has rank 2, not 4"),
        (node("TopK", "x", "c", sorted=0), "TopK: sorted is 0, not 1"),
        (node("TopK", "x", "c"), "TopK: k is too large"),
        (node("OneHot", "x", "y", "c"), "OneHot: y is not constant"),
        (node("ScatterND", "x", "c", "y", reduction="add"), "ScatterND: reduction is add, not no"),
        (node("Nonsense", "x"), "there is no operator ai.onnx::Nonsense"),
    ],
)
def test_each_rule_finds_its_fault(model, fault):
    assert [found for found in faults(model, NEW) if found.startswith(fault)]


def test_the_table_knows_its_sources():
    path = Path(sys.modules["mt3_engines.building"].__file__).with_name("operators.json")
    document = json.loads(path.read_text())
    assert set(document["versions"]) <= set(document["sources"])
    assert table().opset(Version(11, 4)) == 24
    assert table().opset(Version(10, 9)) == 20


# That they compute the same ----------------------------------------------------------------------


@pytest.mark.parametrize(("version", "limit"), [(OLD, SPELLED), (NEW, SPELLED)])
def test_encoders_compute_the_same(weights, version, limit):
    model = encoder(weights)
    expected = encode(model, weights)
    found = encode(prepare(model, version), weights)
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=limit * np.abs(values).max())


def test_half_encoders_compute_nearly_the_same(weights):
    model = encoder(weights)
    expected = encode(model, weights)
    limit = HALF_EXPERTS if getattr(weights.shape, "experts", 0) else HALF
    for name, values in encode(prepare(model, NEW, precision="fp16"), weights).items():
        assert values.dtype == np.float16
        error = np.abs(values.astype(np.float32) - expected[name])
        assert np.sqrt(np.mean(error**2)) < limit * np.std(expected[name]), name


@pytest.mark.parametrize("version", [OLD, NEW], ids=str)
def test_decoders_say_the_same(weights, version):
    model = decoder(weights)
    tokens, scores = decode(model, weights)
    made = prepare(model, version, capacity=CAPACITY)
    found = decode(made, weights)
    np.testing.assert_array_equal(found[0], tokens)
    np.testing.assert_allclose(found[1], scores, atol=2e-4)


@pytest.mark.parametrize("version", [OLD, NEW], ids=str)
def test_half_decoders_say_nearly_the_same(weights, version):
    model = decoder(weights)
    tokens, scores = decode(model, weights)
    found = decode(prepare(model, version, precision="fp16", capacity=CAPACITY), weights)
    alike = np.cumprod(found[0] == tokens, axis=1).astype(bool)
    assert alike[:, :4].all()
    np.testing.assert_allclose(found[1][alike], scores[alike], atol=0.2)


def test_what_decides_stays_exact(weights):
    made = prepare(decoder(weights), NEW, precision="fp16", capacity=CAPACITY)
    kinds = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert kinds["decoder.logits_dense.kernel"] == TensorProto.FLOAT
    assert kinds["decoder.layers_0.self_attention.out.kernel"] == TensorProto.FLOAT16
    halved = {v.name for v in made.graph.input if v.type.tensor_type.elem_type == 10}
    assert halved == {v.name for v in made.graph.input if v.name.startswith(("past_", "cross_"))}


def test_attention_relies_on_lengths_alone(weights):
    """ONNX Runtime's kernels for fp32 and fp16 differ in causal alignment; ours ask for none."""
    nodes = [node for node in decoder(weights).graph.node if node.op_type == "Attention"]
    assert nodes
    for node in nodes:
        assert not [a for a in node.attribute if a.name == "is_causal" and a.i]
        query, key, _, *others = node.input
        mask_and_past, lengths = others[:3], others[3:]
        assert query
        assert not any(mask_and_past)
        assert bool(lengths) is not key.startswith("cross_key_")


def products_of(model, name: str) -> list[tuple[str, str]]:
    """Operators and types of the products with parameters of that name."""
    found, types = parameters(model), {}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    for value in [*inferred.value_info, *inferred.input, *inferred.output]:
        types[value.name] = value.type.tensor_type.elem_type
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return [
        (node.op_type, TensorProto.DataType.Name(types[node.input[1]]))
        for node in model.graph.node
        if node.op_type in ("MatMul", "Mul") and any(name in found.get(i, "") for i in node.input)
    ]


@pytest.mark.parametrize("stored", ["fp32", "fp16"])
@pytest.mark.parametrize("version", [OLD, NEW], ids=str)
@pytest.mark.parametrize(
    ("shape", "name"),
    [(TINY, "logits_dense"), (TINY_MOE, ".router."), (TINY_MULTI, "logits_dense")],
)
def test_what_decides_stays_exact_however_it_is_stored(stored, version, shape, name):
    """Bundles store fp16, which a cast makes fp32 in front of the product."""
    weights = seeded_weights(shape)
    if name == ".router.":
        model = build_encoder(weights, FRAMES, profile="portable", storage=stored)
    else:
        model = build_decoder(
            weights, FRAMES, max_tokens=CAPACITY, profile="portable", storage=stored
        )
    for products in (True, False):
        made = prepare(
            model, version, precision="fp16", capacity=CAPACITY, matrix_products=products
        )
        found = products_of(made, name)
        assert found
        assert set(found) == {("MatMul" if products else "Mul", "FLOAT")}


def test_the_model_itself_is_left_as_it_is(weights):
    model = decoder(weights)
    before = model.SerializeToString()
    prepare(model, OLD, precision="fp16", capacity=CAPACITY)
    assert model.SerializeToString() == before


def test_weights_beyond_half_are_refused(weights):
    model = decoder(weights)
    for tensor in model.graph.initializer:
        if tensor.name == "decoder.layers_0.mlp.wo.kernel":
            values = numpy_helper.to_array(tensor) * np.float32(1e6)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ValueError, match="wo.kernel holds values beyond fp16"):
        prepare(model, NEW, precision="fp16", capacity=CAPACITY)


def test_stored_half_weights_are_used_as_they_are():
    weights = seeded_weights()
    model = build_decoder(weights, FRAMES, max_tokens=CAPACITY, profile="portable", storage="fp16")
    made = prepare(model, NEW, precision="fp16", capacity=CAPACITY)
    name = "decoder.layers_0.self_attention.out.kernel"
    (product,) = [n for n in made.graph.node if name in n.input]
    assert product.op_type == "MatMul"


# What polygraphy says ----------------------------------------------------------------------------


@pytest.mark.parametrize("version", [OLD, NEW], ids=str)
def test_polygraphy_reads_and_folds_the_graphs(tmp_path, version):
    needs.package("polygraphy")
    tool = Path(sys.executable).with_name("polygraphy")
    weights = seeded_weights()
    for name, model in (("encoder", encoder(weights)), ("decoder", decoder(weights))):
        path, report = tmp_path / f"{name}.onnx", tmp_path / f"{name}.json"
        onnx.save(prepare(model, version, precision="fp16", capacity=CAPACITY), path)
        subprocess.run([tool, "check", "lint", path, "-o", report], check=True, capture_output=True)
        entries = json.loads(report.read_bytes())["lint_entries"]
        assert not [entry for entry in entries if entry["level"] == "exception"]
        folded = tmp_path / f"{name}.folded.onnx"
        subprocess.run(
            [tool, "surgeon", "sanitize", path, "--fold-constants", "-o", folded],
            check=True,
            capture_output=True,
        )
        assert faults(onnx.load(folded), version) == []


# Half precision around operators that stay exact ------------------------------------------------


def carried(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """A graph from ``past_key_0`` to ``present_key_0`` and ``sum``, both fp32 [1, 1, 2, 2]."""
    float32 = TensorProto.FLOAT
    values = [
        helper.make_tensor_value_info(name, float32, [1, 1, 2, 2])
        for name in ("past_key_0", "present_key_0", "sum")
    ]
    graph = helper.make_graph(list(nodes), "carried", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def test_exact_operators_between_half_inputs_and_outputs():
    """They read what is carried as fp16 through a cast, and hand it over through another."""
    model = carried(
        helper.make_node("Neg", ["past_key_0"], ["negative"]),
        helper.make_node("Add", ["past_key_0", "negative"], ["zero"]),
        helper.make_node("Neg", ["zero"], ["sum"]),
        helper.make_node("Sub", ["zero", "past_key_0"], ["present_key_0"]),
    )
    made = prepare(model, NEW, precision="fp16")
    onnx.checker.check_model(made, full_check=True)
    assert [node.op_type for node in made.graph.node].count("Cast") == 2
    past = np.array([[[[1, 2], [3, 4]]]], np.float16)
    present, total = session(made).run(["present_key_0", "sum"], {"past_key_0": past})
    assert present.dtype == np.float16
    np.testing.assert_array_equal(present, -past)
    assert total.dtype == np.float32


def test_attention_without_a_scale_is_not_ours():
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 2, 2])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1, 2, 2])
    body = helper.make_node("Attention", ["x", "x", "x"], ["out"])
    graph = helper.make_graph([body], "unscaled", [value], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    with pytest.raises(ValueError, match="without a scale"):
        prepare(model, NEW)
