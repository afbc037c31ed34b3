"""Products in 8 bits: their ranges, their graphs, what each costs, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from mt3_evaluation.plots import to_bytes
from mt3_export.bundle_writer import export_bundle
from mt3_export.graphs.encoder import build_encoder
from mt3_export.variants import variant_named
from mt3_quantisation import precision_command, qdq_command
from mt3_quantisation.forms.products import find_products, without
from mt3_quantisation.forms.step_graphs import exposing
from mt3_quantisation.gates.exact_bundle import Source
from mt3_quantisation.gates.material import Material, Part
from mt3_quantisation.gates.measure import drift
from mt3_quantisation.gates.teacher_forcing import Segment, open_session, segments_of
from mt3_quantisation.qdq import qdq_recipe as recipe
from mt3_quantisation.qdq.collector import PROFILE, _Histogram, _range, collect
from mt3_quantisation.qdq.insertion import insert
from mt3_quantisation.qdq.qdq_recipe import FP8, INT8, portable_graphs, weight_products
from mt3_quantisation.qdq.ranges import (
    BARS,
    METHODS,
    Ranges,
    TensorRange,
    read_ranges,
    write_ranges,
)
from mt3_quantisation.qdq.sensitivity import Loss, Sensitivity, parts_of
from mt3_quantisation.qdq.sensitivity_report import chart
from mt3_quantisation.qdq.standin import simulated
from mt3_runtime import cli
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import BundleError, OptionError
from mt3_runtime.loading import load_model
from mt3_synthesis.soundfonts import Role
from tests.quantisation import modelopt_recipe
from tests.seeded import TINY_MOE, seeded_weights
from tests.synthesis.sounds import tiny_bank

GROUPS = [
    "encoder.continuous_inputs_projection",
    "encoder.attention.query+key+value",
    "encoder.attention.out",
    "encoder.mlp.wi_0+wi_1",
    "encoder.mlp.wo",
    "decoder.encoder_decoder_attention.key+value",
    "decoder.self_attention.query+key+value",
    "decoder.self_attention.out",
    "decoder.encoder_decoder_attention.query",
    "decoder.encoder_decoder_attention.out",
    "decoder.mlp.wi_0+wi_1",
    "decoder.mlp.wo",
]


@pytest.fixture(scope="module")
def material() -> Material:
    parts = (Part("calibration", (Role.TRAIN,), 1, 3.0), Part("check", (Role.CHOICE,), 2, 3.0))
    return Material({p.name: [tiny_bank()] for p in parts}, parts=parts)


@pytest.fixture(scope="module")
def source(tiny_bundle: Path) -> Source:
    return Source(Bundle(tiny_bundle), threads=1)


@pytest.fixture(scope="module")
def graphs(source: Source) -> dict[str, onnx.ModelProto]:
    return portable_graphs(source)


@pytest.fixture(scope="module")
def segments(source: Source, material: Material) -> list[Segment]:
    found = segments_of(source.listen(material.calibration), source.manifest, most=2)
    return [one._replace(tokens=tuple(t[:12] for t in one.tokens)) for one in found]


@pytest.fixture(scope="module")
def ranges(source, graphs, segments) -> Ranges:
    return collect(source, graphs, weight_products(graphs), segments, material="tones")


def quantised(graphs, ranges: Ranges, kind: str) -> dict[str, onnx.ModelProto]:
    return {
        role: insert(model, find_products(model, role), ranges.of(role), kind)
        for role, model in graphs.items()
    }


# What is quantised -------------------------------------------------------------------------------


def test_all_products_with_weights_but_the_head(graphs):
    products = weight_products(graphs)
    assert list(dict.fromkeys(p.group for p in products)) == GROUPS
    assert len(products) == 23
    assert {p.layer for p in products} == {
        "encoder.continuous_inputs_projection",
        *(f"{role}.layers_{i}" for role in ("encoder", "decoder") for i in (0, 1)),
    }
    last = products[-1]
    assert (last.name, last.weight) == ("decoder.layers_1.mlp.wo", "decoder.layers_1.mlp.wo.kernel")


def test_experts_are_but_not_what_chooses_them():
    model = build_encoder(seeded_weights(TINY_MOE), 12, profile=PROFILE)
    found = find_products(model, "encoder")
    assert any("experts.wi_0" in p.name for p in found)
    assert not any("router" in p.name for p in found)
    experts = [p for p in found if "experts.wi_0" in p.name]
    ranges = {
        p.activation: TensorRange("encoder", p.activation, (p.name,), 4.0, 4.0, 1, (1,) * BARS)
        for p in experts
    }
    made = insert(model, experts, ranges, "int8")
    before = {n.name: list(n.input) for n in model.graph.node}
    for node in made.graph.node:
        if any(".router." in name for name in node.input):
            assert list(node.input) == before[node.name]  # the exact tensor, not the rounded one


def test_keeping_by_group_layer_and_name(graphs):
    products = weight_products(graphs)
    assert len(without(products, ["decoder.mlp.wo"])) == 21
    assert {p.layer for p in products} - {p.layer for p in without(products, ["encoder.layers_1"])}
    assert len(without(products, ["decoder.layers_0.mlp.wo", "decoder.mlp.wo"])) == 21
    with pytest.raises(OptionError, match=r"no product 'decoder.mlp' to keep.*decoder.mlp.wo"):
        without(products, ["decoder.mlp"])


# Ranges ------------------------------------------------------------------------------------------


def test_ranges_are_those_of_the_exact_graphs(source, graphs, segments, ranges):
    session = open_session(graphs["encoder"])
    found = ranges.of("encoder")["features"]
    features = np.stack([segment.features for segment in segments])
    assert found.products == ("encoder.continuous_inputs_projection",)
    assert found.absmax == pytest.approx(np.abs(features).max())
    assert found.values == features.size == sum(found.histogram)
    assert 0 < found.amax <= found.absmax
    shared = [one for one in ranges.tensors if len(one.products) > 1]
    assert [len(one.products) for one in shared] == [2]  # the encoder's output, by two layers
    assert (ranges.segments, ranges.tokens) == (2, sum(len(t) for s in segments for t in s.tokens))
    assert session.get_inputs()[0].name == "features"
    ranges.check(source.bundle)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_ranges(source, graphs, segments, ranges, method):
    found = collect(source, graphs, weight_products(graphs), segments, method=method)
    for one, other in zip(found.tensors, ranges.tensors, strict=True):
        assert one.tensor == other.tensor
        assert one.absmax == other.absmax
        assert 0.1 * one.absmax < one.amax <= one.absmax
        if method == "absmax":
            assert one.amax == one.absmax


def test_histograms_widen_and_lose_nothing():
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(1000).astype(np.float32) * 4.0**k for k in range(-2, 4)]
    seen = _Histogram()
    for part in (np.zeros(10, np.float32), *parts):
        seen.add(part)
    values = np.abs(np.concatenate(parts))
    assert seen.absmax == values.max()
    assert seen.counts.sum() == len(values) + 10
    expected, _ = np.histogram(np.append(values, np.zeros(10)), BARS, (0.0, seen.absmax))
    assert np.abs(np.cumsum(seen.bars(BARS)) - np.cumsum(expected)).max() <= 5  # at borders of bars


def test_the_least_error_clips_a_few_to_serve_the_rest():
    rng = np.random.default_rng(0)
    values = np.append(rng.standard_normal(100_000), [12.0, -12.0]).astype(np.float32)
    seen = _Histogram()
    seen.add(values)
    found = _range("encoder", "x", ("a",), seen, "mse")

    def error(amax: float) -> float:
        step = amax / 127
        return float(np.mean((np.clip(np.round(values / step), -127, 127) * step - values) ** 2))

    tried = [error(amax) for amax in np.linspace(0.5, 12.0, 200)]
    assert error(found.amax) <= 1.02 * min(tried)
    assert found.amax < 0.8 * found.absmax
    assert not found.outlying


def test_values_far_from_all_others_are_noticed():
    seen = _Histogram()
    seen.add(np.append(np.random.default_rng(0).standard_normal(100_000), [300.0]))
    assert _range("encoder", "x", ("a",), seen, "absmax").outlying


def test_silence_has_no_range(source, graphs, segments):
    silent = [one._replace(features=np.zeros_like(one.features)) for one in segments]
    with pytest.raises(OptionError, match="continuous_inputs_projection was zero throughout"):
        collect(source, graphs, weight_products(graphs), silent)


def test_ranges_come_back_from_their_file(tmp_path, ranges):
    path = tmp_path / "ranges.json"
    write_ranges(path, ranges)
    assert read_ranges(path) == ranges
    document = json.loads(path.read_bytes())
    assert (document["format"], document["version"]) == ("mt3-runtime.ranges", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), "holds no ranges"),
        (lambda d: d.update(version=2), "format version 2, not 1"),
        (lambda d: d.update(method="guess"), "method is 'guess', expected one of mse"),
        (lambda d: d.update(segments=0), "segments is 0, expected a number from 1"),
        (lambda d: d.update(extra=1), "unknown keys"),
        (lambda d: d.update(tensors=3), "tensors is 3, expected a list"),
        (lambda d: d["tensors"].append(d["tensors"][0]), "names a tensor twice"),
        (lambda d: d["tensors"][0].update(amax=0.0), "is no range"),
        (lambda d: d["tensors"][0].update(amax=1e9), "is no range"),
        (lambda d: d["tensors"][0].update(absmax=float("inf")), "Infinity is no number"),
        (lambda d: d["tensors"][0].update(histogram=[1]), "is no range"),
        (lambda d: d["tensors"][0].update(role="head"), "role is 'head', expected one of encoder"),
        (lambda d: d["tensors"][0].update(values="many"), "expected int"),
    ],
)
def test_damaged_ranges_are_refused(tmp_path, ranges, change, message):
    document = json.loads(ranges.to_json())
    change(document)
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message):
        read_ranges(path)


def test_what_is_no_ranges_file_is_refused(tmp_path):
    with pytest.raises(BundleError, match="cannot be read"):
        read_ranges(tmp_path / "absent")
    (tmp_path / "text").write_text("{")
    with pytest.raises(BundleError, match="not readable as JSON"):
        read_ranges(tmp_path / "text")


def test_ranges_of_other_graphs_are_refused(source, ranges):
    with pytest.raises(BundleError, match="measured on other graphs"):
        replace(ranges, decoder="0" * 64).check(source.bundle)


# Graphs ------------------------------------------------------------------------------------------


def test_weights_are_stored_by_column_and_keep_their_names(graphs, ranges):
    made = quantised(graphs, ranges, "int8")["decoder"]
    exact = {t.name: numpy_helper.to_array(t) for t in graphs["decoder"].graph.initializer}
    found = {t.name: t for t in made.graph.initializer}
    assert set(exact) <= set(found)
    name = "decoder.layers_0.mlp.wo.kernel"
    (node,) = [n for n in made.graph.node if n.input[0] == name]
    assert (node.op_type, found[name].data_type) == ("DequantizeLinear", TensorProto.INT8)
    scales = numpy_helper.to_array(found[node.input[1]])
    assert scales.shape == exact[name].shape[1:]
    values = numpy_helper.to_array(found[name]).astype(np.float32) * scales
    assert np.abs(values - exact[name]).max() <= 0.501 * scales.max()
    assert np.abs(numpy_helper.to_array(found[name])).max() <= 127


@pytest.mark.parametrize(("kind", "largest"), [("int8", 127), ("fp8", 448)])
def test_scales_are_half_precision_numbers_that_clip_nothing(graphs, ranges, kind, largest):
    for role, made in quantised(graphs, ranges, kind).items():
        tensors = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
        for node in made.graph.node:
            if node.op_type == "QuantizeLinear":
                scale = tensors[node.input[1]]
                amax = ranges.of(role)[node.input[0]].amax
                assert scale.astype(np.float16).astype(np.float32) == scale
                assert amax <= scale * largest <= 1.002 * amax


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_scales_are_those_of_nvidias_optimizer(role):
    """But for the rounding to fp16, which goes up; and the head, which it quantises as well."""
    expected = json.loads((Path(__file__).parent / "golden" / "modelopt.json").read_bytes())[role]
    expected.pop("decoder.logits_dense.kernel", None)
    model = modelopt_recipe.graphs()[role]
    feeds = modelopt_recipe.feeds(model)
    products = find_products(model, role)
    inner = list(dict.fromkeys(p.activation for p in products if p.activation not in feeds))
    heard = open_session(exposing(model, inner)).run(inner, feeds)
    values = feeds | dict(zip(inner, heard, strict=True))
    largest = {p.activation: float(np.abs(values[p.activation]).max()) for p in products}
    ranges = {
        name: TensorRange(role, name, (), amax, amax, 1, (1,) * BARS)
        for name, amax in largest.items()
    }
    found = modelopt_recipe.scales(insert(model, products, ranges, "int8"))
    assert found.keys() == expected.keys()
    for name, theirs in expected.items():
        for part, scales in theirs.items():
            ratio = np.array(found[name][part]) / np.array(scales)
            assert 0.9999 < ratio.min() <= ratio.max() < 1.001, (name, part)


def test_what_describes_a_graph_stays(graphs, ranges):
    for role, made in quantised(graphs, ranges, "int8").items():
        onnx.checker.check_model(made, full_check=True)
        model = graphs[role]
        assert made.metadata_props == model.metadata_props
        assert made.opset_import == model.opset_import
        assert (made.ir_version, made.producer_name) == (model.ir_version, model.producer_name)
        assert made.graph.input == model.graph.input
        assert made.graph.output == model.graph.output
        assert model.graph.node != made.graph.node


def test_nothing_to_quantise_is_the_graph_itself(graphs):
    assert insert(graphs["encoder"], [], {}, "int8") == graphs["encoder"]


def test_an_activation_without_range_is_refused(graphs, ranges):
    found = {k: v for k, v in ranges.of("encoder").items() if k != "features"}
    products = find_products(graphs["encoder"], "encoder")
    with pytest.raises(BundleError, match="do not say anything about features"):
        insert(graphs["encoder"], products, found, "int8")


def test_int8_loses_little_and_fp8_more(source, graphs, ranges, segments):
    lost = {
        kind: drift(graphs, quantised(graphs, ranges, kind), source.manifest, segments).kl
        for kind in ("int8", "fp8")
    }
    assert 1e-5 < lost["int8"] < 0.1
    assert lost["int8"] < lost["fp8"] < 1.0


def test_what_stands_in_for_fp8_computes_the_same(graphs, ranges, segments):
    made = quantised(graphs, ranges, "fp8")["encoder"]
    feeds = {"features": segments[0].features[np.newaxis]}
    expected = open_session(made).run(None, feeds)
    other = simulated(made)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {n.op_type for n in other.graph.node}
    usual = onnxruntime.InferenceSession(other.SerializeToString())
    for one, two in zip(expected, usual.run(None, feeds), strict=True):
        # Another order of summation moves single values to the next of fp8's coarse steps; what fp8
        # itself loses is several times as much.
        assert np.sqrt(np.mean((one - two) ** 2)) < 0.05 * np.std(one)
        assert np.median(np.abs(one - two)) < 1e-3 * np.std(one)


# Sensitivity -------------------------------------------------------------------------------------


def test_no_part_is_measured_twice(graphs):
    parts = parts_of(weight_products(graphs), each=True)
    assert [p.kind for p in parts].count("group") == 12
    assert [p.kind for p in parts].count("layer") == 4
    assert [p.kind for p in parts].count("product") == 22  # the projection is a group by itself
    assert len({p.products for p in parts}) == len(parts)
    assert {p.kind for p in parts_of(weight_products(graphs))} == {"all", "group", "layer"}


def test_a_single_part_has_a_picture():
    loss = Loss("all", "all", ("encoder.mlp.wo",), kl=0.0, flips=0.0, rms=0.0)
    found = Sensitivity("0" * 32, "tiny", "int8", segments=1, steps=1, losses=(loss,))
    assert to_bytes(chart(found), "svg").count(b"% flips") == 1


# The command -------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, material: Material, tiny_bundle: Path):
    """`mt3 calibrate` of the tiny bundle, with small material."""
    monkeypatch.setattr(precision_command, "Material", lambda: material)
    monkeypatch.setattr(qdq_command, "Material", lambda: material)
    monkeypatch.setattr(qdq_command, "SEGMENTS", 1)
    monkeypatch.setattr(recipe, "SEGMENTS", 1)
    return lambda *words: cli.main(
        ["calibrate", str(tiny_bundle), *map(str, words), "--threads", "1"]
    )


def test_int8_becomes_a_bundle(tmp_path, run, ranges, capsys):
    out = tmp_path / "int8"
    assert run("--precision", "int8", "-o", out, "--force", "--keep", "decoder.mlp.wo") == 0
    said = capsys.readouterr()
    assert "21 of 23 products are int8" in said.err
    bundle = Bundle(out)
    assert bundle.profiles == [PROFILE]
    assert (bundle.manifest.precision.name, bundle.manifest.precision.arithmetic) == ("int8",) * 2
    assert bundle.manifest.precision.gate.gate == "relaxed"
    measured = read_ranges(out / "ranges.json")
    assert measured.profile == PROFILE
    with load_model(out, device="cpu") as model:
        assert model.forward(np.zeros((1, 256, 512), np.float32))
    again = tmp_path / "again"
    words = ("--precision", "int8", "--keep", "decoder.mlp.wo", "--ranges", out / "ranges.json")
    assert run(*words, "-o", again, "--force") == 0
    assert "measuring ranges" not in capsys.readouterr().err
    for name in ("encoder.portable.onnx", "decoder.portable.onnx", "ranges.json"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_int8_leaves_out_what_it_cannot_serve(tmp_path, ranges, graphs):
    """fp8, which has exponents, does not."""
    document = json.loads(ranges.to_json())
    for tensor in document["tensors"]:
        if tensor["products"] == ["encoder.layers_1.mlp.wo"]:
            tensor["histogram"] = [tensor["values"], *[0] * (BARS - 1)]
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps(document))
    found = read_ranges(path)
    products = weight_products(graphs)
    said = []
    left = set(products) - set(INT8.chosen(products, found, said.append))
    assert [product.name for product in left] == ["encoder.layers_1.mlp.wo"]
    assert said == [
        "encoder.layers_1.mlp.wo stays exact: a few of its inputs are ten times all others"
    ]
    assert len(FP8.chosen(products, found, said.append)) == len(products)


def test_what_was_stored_as_half_is_again(tmp_path, tiny_weights, material, monkeypatch):
    export_bundle(
        tiny_weights,
        variant_named("magenta_mt3"),
        tmp_path / "half",
        source={"layout": "seeded", "digest": "0" * 64},
        profiles=("cpu", PROFILE),
        storage="fp16",
    )
    source = Source(Bundle(tmp_path / "half"), threads=1)
    monkeypatch.setattr(recipe, "SEGMENTS", 1)
    made = INT8.apply(source, material, lambda line: None)
    kinds = {t.name: t.data_type for t in made.graphs["decoder", PROFILE].graph.initializer}
    assert kinds["decoder.logits_dense.kernel"] == TensorProto.FLOAT16
    assert kinds["decoder.layers_0.mlp.wo.kernel"] == TensorProto.INT8
    assert kinds["decoder.decoder_norm.scale"] == TensorProto.FLOAT
    for model in made.graphs.values():
        onnx.checker.check_model(model, full_check=True)


def test_fp8_is_judged_by_a_stand_in(tmp_path, run, capsys):
    out = tmp_path / "fp8"
    assert run("--precision", "fp8", "-o", out, "--force") == 0
    bundle = Bundle(out)
    assert bundle.manifest.precision.arithmetic == "fp8"
    assert "stand in" in bundle.manifest.precision.gate.judged
    model = onnx.load(out / "decoder.portable.onnx")
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert kinds["decoder.layers_0.mlp.wo.kernel"] == TensorProto.FLOAT8E4M3FN


def test_the_report(tmp_path, run, capsys):
    path, picture = tmp_path / "report.json", tmp_path / "report.svg"
    assert run("--sensitivity", "-o", path, "--plot", picture) == 0
    found = json.loads(path.read_bytes())
    assert (found["format"], found["version"]) == ("mt3-runtime.sensitivity", 1)
    assert (found["precision"], found["model"]) == ("int8", "tiny")
    losses = found["losses"]
    assert [loss["kind"] for loss in losses] == ["all"] + ["group"] * 12 + ["layer"] * 4
    for kind in ("group", "layer"):
        ranked = [loss["kl"] for loss in losses if loss["kind"] == kind]
        assert ranked == sorted(ranked, reverse=True)
        assert max(ranked) < losses[0]["kl"]  # everything together loses most
    shown = capsys.readouterr().out
    assert all(group in shown for group in GROUPS)
    assert b"decoder.mlp.wo" in picture.read_bytes()


def test_the_report_as_data(run, capsys):
    words = [word for group in GROUPS[1:] for word in ("--keep", group)]
    assert run("--sensitivity", "--precision", "fp8", "--each", "-o", "-", *words) == 0
    found = json.loads(capsys.readouterr().out)
    (loss,) = found["losses"]
    assert (found["precision"], loss["kind"], loss["products"]) == ("fp8", "all", [GROUPS[0]])
    assert loss["kl"] > 0
    assert loss["rms"] > 0
    assert 0 <= loss["flips"] <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--precision", "int8"), "-o needs the name"),
        (("-o", "x"), "Say what to make, with --precision: one of"),
        (("--precision", "fp16-stored", "-o", "x", "--keep", "a"), "go with --precision int8"),
        (("--precision", "int8", "-o", "x", "--plot", "a.png"), "go with --sensitivity"),
        (("--precision", "fp16-stored", "--sensitivity"), "knows --precision int8 and fp8"),
        (("--precision", "int8", "-o", "x", "--ranges", "r", "--ranges-by", "absmax"), "brings"),
        (("--precision", "int8", "-o", "x", "--ranges", "absent.json"), "cannot be read"),
    ],
)
def test_contradictions_are_refused(tmp_path, monkeypatch, run, words, message, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*words) != 0
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_report_of_parts_replaces_no_bundle_and_no_ranges(tmp_path, run, ranges, capsys):
    older = tmp_path / "older.mt3"
    older.write_text("a bundle")
    found = tmp_path / "ranges.json"
    found.write_bytes(ranges.to_json())
    for out in (older, found):
        words = ("--sensitivity", "--precision", "int8", "--ranges", found, "-o", out)
        assert run(*words) in (1, 2)
        assert "error" in capsys.readouterr().err
    assert older.read_text() == "a bundle"
    assert found.read_bytes() == ranges.to_json()
