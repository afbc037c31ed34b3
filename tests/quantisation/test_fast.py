"""``--precision fast``: what becomes integers, in which families, and how near it stays."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from mt3_export.bundle_writer import export_bundle
from mt3_export.graphs.decoder import build_decoder
from mt3_export.graphs.encoder import build_encoder
from mt3_export.graphs.lint import lint
from mt3_quantisation.forms.precision_bundle import write_graphs
from mt3_quantisation.forms.recipes import Product, recipe_named
from mt3_quantisation.gates.exact_bundle import Source
from mt3_quantisation.gates.material import Material
from mt3_quantisation.gates.measure import drift
from mt3_quantisation.gates.teacher_forcing import Segment, segments_of
from mt3_quantisation.integers.integer_inputs import Inputs, layer_products, watch_encoder
from mt3_quantisation.integers.integer_recipe import FAST, quantised
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.bundles.precision import Precision
from mt3_runtime.errors import BundleError
from mt3_runtime.loading import load_model
from tests.quantisation.tiny_material import known_material
from tests.seeded import MEMORY, TINY_MOE, seeded_normal, seeded_weights


@pytest.fixture(scope="module")
def material(tiny_bundle: Path) -> Material:
    return known_material(tiny_bundle)


@pytest.fixture(scope="module")
def source(tiny_bundle: Path) -> Source:
    return Source(Bundle(tiny_bundle), threads=1)


@pytest.fixture(scope="module")
def product(source: Source, material: Material) -> Product:
    return FAST.apply(source, material, lambda line: None)


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_it_is_a_recipe_under_the_relaxed_gate(product: Product):
    assert recipe_named("fast") is FAST
    assert FAST.gate == "relaxed"
    assert product.precision == Precision(
        "fast", weights="int8", arithmetic="int8", self_cache="int8", cross_cache="int8"
    )
    assert set(product.graphs) == {("encoder", "cpu"), ("decoder", "cpu")}


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_all_products_of_layers_become_integers(source: Source, product: Product, role):
    exact, made = source.graph(role, "cpu"), product.graphs[role, "cpu"]
    assert lint(made) == []
    assert layer_products(made, role) == []
    became = kinds(made)
    for name, kind in kinds(exact).items():  # under their own names
        if "." not in name:
            continue  # a constant of attention that is gone
        layers = "layers_" in name and name.endswith(".kernel")
        layers &= not (role == "decoder" and "layers_1" in name)  # the last one
        found = became[name] if name in became else became[f"{name}/0"]  # a product in parts
        assert found == (TensorProto.INT8 if layers else kind)
    assert [p.name for p in made.graph.input] == [p.name for p in exact.graph.input]
    outputs = [p.name for p in made.graph.output]
    assert [n for n in outputs if "present_cross" not in n] == [p.name for p in exact.graph.output]


def test_inputs_of_the_decoder_have_two_terms(product: Product):
    nodes = product.graphs["decoder", "cpu"].graph.node
    integers = [node for node in nodes if node.op_type == "MatMulIntegerToFloat"]
    assert len(integers) == 2 * 6 * 1  # terms, products of a layer, layers but the last
    assert not [node.name for node in nodes if node.name.endswith("/int8/scale")]


def test_rows_of_the_encoder_have_scales_where_nothing_bounds_them(
    source: Source, product: Product
):
    nodes = product.graphs["encoder", "cpu"].graph.node
    products = [node for node in nodes if node.op_type == "MatMulIntegerToFloat"]
    scaled = {n.name.removesuffix("/int8/scale") for n in nodes if n.name.endswith("/int8/scale")}
    terms = Counter(node.input[1] for node in products)
    for node in products:
        inputs = node.input[0].rpartition("/int8/")[0]
        by_row = ".mlp.wo." in node.input[1] or terms[node.input[1]] == 1
        assert (inputs in scaled) == by_row, node.name
    assert any(".mlp.wo." in node.input[1] for node in products)


def test_products_that_are_split_are_written_in_parts(source: Source, product: Product):
    def splits(model: ModelProto) -> int:
        return sum(node.op_type == "Split" for node in model.graph.node)

    exact, made = source.graph("encoder", "cpu"), product.graphs["encoder", "cpu"]
    assert splits(made) < splits(exact)
    used = {name for node in made.graph.node for name in node.input}
    assert {tensor.name for tensor in made.graph.initializer} <= used
    decoders = source.graph("decoder", "cpu"), product.graphs["decoder", "cpu"]
    assert splits(decoders[0]) == splits(decoders[1])


def test_it_stays_near_and_keeps_rows_apart(
    source: Source, material: Material, product: Product, tmp_path: Path
):
    segments = segments_of(source.listen(material.check), source.manifest)
    exact = {role: source.graph(role, "cpu") for role in ("encoder", "decoder")}
    made = {role: product.graphs[role, "cpu"] for role in ("encoder", "decoder")}
    assert drift(exact, made, source.manifest, segments, threads=1).kl < 0.02
    write_graphs(source.manifest, product.graphs, tmp_path, precision=product.precision)
    heard = source.listen(material.check)
    with load_model(tmp_path, threads=2) as model:
        alone = [model.forward(one.features) for one in heard]
        together = model.forward(np.concatenate([one.features for one in heard]))
    said = [sequence.tokens.tolist() for one in alone for sequence in one]
    assert said == [sequence.tokens.tolist() for sequence in together]


def test_equal_material_gives_equal_graphs(source: Source, material: Material, product: Product):
    again = FAST.apply(source, material, lambda line: None)
    for key, model in product.graphs.items():
        # Writing stamps the metadata, so only the graphs are compared.
        same = again.graphs[key].graph
        assert model.graph.SerializeToString(deterministic=True) == same.SerializeToString(
            deterministic=True
        )


def test_other_profiles_are_no_source(tmp_path: Path, tiny_weights, material: Material):
    from mt3_export.variants import variant_named

    export_bundle(
        tiny_weights,
        variant_named("magenta_mt3"),
        tmp_path / "compat",
        source={"digest": "0" * 64},
        profiles=("compat",),
    )
    with pytest.raises(BundleError, match="cpu"):
        FAST.apply(Source(Bundle(tmp_path / "compat")), material, lambda line: None)


def test_graphs_without_the_names_are_refused(source: Source, material, monkeypatch):
    monkeypatch.setattr(
        "mt3_quantisation.integers.integer_recipe.layer_products", lambda model, role: []
    )
    with pytest.raises(BundleError, match="none of the products"):
        FAST.apply(source, material, lambda line: None)


def any_inputs(model: onnx.ModelProto, role) -> dict[str, Inputs]:
    """Inputs of the right widths."""
    widths = {t.name: t.dims[0] for t in model.graph.initializer if t.dims}
    found = {}
    for each in layer_products(model, role):
        rows = seeded_normal(each.activation, (64, widths[each.weight]))
        moments = rows.T.astype(np.float64) @ rows
        found[each.activation] = Inputs(moments, np.abs(rows).max(axis=0), rows)
    return found


def test_a_memory_is_made_of_integers_as_well():
    model = build_encoder(seeded_weights(MEMORY), 16, profile="cpu", memory=4, memory_tokens=8)
    segment = Segment(seeded_normal("features", (16, 512)), (), np.arange(8, dtype=np.int64))
    inputs = watch_encoder(model, [segment], threads=1)
    made = quantised(model, "encoder", inputs, lost=0.006)
    assert lint(made) == []
    memory = {n: k for n, k in kinds(made).items() if n.startswith("memory_encoder.layers_")}
    became = {n for n, k in memory.items() if k == TensorProto.INT8}
    assert became == {n for n in memory if n.endswith((".kernel", ".kernel/0", ".kernel/1"))}
    assert any(".key+value." in name for name in became)  # the last layer's, cut to the memory


def test_of_a_perceiver_only_the_cross_projections_become_integers():
    weights = seeded_weights(TINY_MOE)
    frames = 8
    model = build_encoder(weights, frames, profile="cpu")
    made = quantised(model, "encoder", any_inputs(model, "encoder"), lost=0.0)
    assert lint(made) == []
    integers = {
        name.removesuffix("/0").removesuffix("/1")
        for name, kind in kinds(made).items()
        if kind == TensorProto.INT8
    }
    assert integers == {
        f"decoder.layers_{layer}.encoder_decoder_attention.key+value.kernel"
        for layer in range(TINY_MOE.decoder_layers)
    }
    decoder = build_decoder(weights, frames, max_tokens=16, profile="cpu")
    inputs = any_inputs(decoder, "decoder")
    assert layer_products(quantised(decoder, "decoder", inputs, lost=0.0), "decoder") == []


def test_a_second_term_is_taken_where_one_loses_too_much():
    model = build_encoder(seeded_weights(MEMORY), 16, profile="cpu")
    segment = Segment(seeded_normal("features", (16, 512)), (), None)
    inputs = watch_encoder(model, [segment], threads=1)

    def products(lost: float) -> int:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        made = quantised(copy, "encoder", inputs, lost=lost)
        products = [n for n in made.graph.node if n.op_type == "MatMulIntegerToFloat"]
        return sum(not re.search(r"/[1-9]$", node.input[1]) for node in products)  # parts are one

    weights = sum(name.endswith(".kernel") for name in kinds(model) if "layers_" in name)
    assert products(np.inf) == weights
    assert products(0.0) == 2 * weights
    some = [products(lost) for lost in (0.006, 0.01)]
    assert 2 * weights >= some[0] >= some[1] >= weights
