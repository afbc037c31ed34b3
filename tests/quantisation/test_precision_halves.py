"""Graphs that compute in 16 bits: what stays fp32, and that they compute nearly the same."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_attention

from mt3_engines.building.half_precision import bf16_words, to_half
from mt3_export.graphs.decoder import build_decoder
from mt3_export.graphs.encoder import build_encoder
from mt3_quantisation.forms.halves import BF16, FP16, widened
from mt3_quantisation.forms.precision_bundle import write_graphs
from mt3_quantisation.forms.recipes import Product
from mt3_quantisation.gates.exact_bundle import Source
from mt3_quantisation.gates.material import Material
from mt3_quantisation.gates.measure import drift
from mt3_quantisation.gates.teacher_forcing import segments_of
from mt3_runtime import cli
from mt3_runtime.backends.ort_gpu.ort_cuda import OrtCudaBackend
from mt3_runtime.backends.ort_gpu.ort_memory import DeviceSpec
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import DeviceError
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from tests.quantisation.tiny_material import known_material
from tests.seeded import MEMORY, TINY, TINY_MOE, seeded_normal, seeded_weights
from tests.stepper import session

FRAMES, ROWS, CAPACITY = 12, 2, 16

#: Divergence in nats where tokens are given: 11 and 8 bits; it grows with the square of the error.
NEAR = {"fp16": 1e-4, "bf16": 5e-3}


@pytest.fixture(scope="module")
def source(tiny_bundle: Path) -> Source:
    return Source(Bundle(tiny_bundle), threads=1)


@pytest.fixture(scope="module")
def material(tiny_bundle: Path) -> Material:
    return known_material(tiny_bundle)


@pytest.fixture(scope="module", params=[FP16, BF16], ids=lambda recipe: recipe.name)
def product(request, source: Source, material: Material) -> Product:
    return request.param.apply(source, material, print)


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of all tensors."""
    found = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*found.input, *found.output, *found.value_info]
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    return kinds | {tensor.name: tensor.data_type for tensor in found.initializer}


def test_products_and_caches_have_16_bits_and_the_rest_32(product: Product):
    half = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[product.precision.name]
    for (role, profile), model in product.graphs.items():
        onnx.checker.check_model(model, full_check=True)
        assert profile == "portable"
        kinds = types(model)
        for node in model.graph.node:
            kind = kinds[node.input[0]]
            if node.op_type in ("RMSNormalization", "LogSoftmax", "Add", "Gelu", "TopK"):
                assert kind in (TensorProto.FLOAT, TensorProto.INT64), node
            elif any("logits_dense" in name for name in node.input):
                assert kind == TensorProto.FLOAT
            elif node.op_type in ("MatMul", "Attention", "TensorScatter"):
                assert kind == half, node
        carried = [v for v in (*model.graph.input, *model.graph.output) if "_key_" in v.name]
        assert carried
        assert {kinds[value.name] for value in carried} == {half}
        assert (role == "decoder") == any(v.name == "past_key_0" for v in carried)


def test_probabilities_are_near(product: Product, source: Source, material: Material):
    segments = segments_of(source.listen(material.calibration), source.manifest, most=2)
    graphs = product.stand_ins or product.graphs
    exact = {role: source.graph(role, "portable") for role in ("encoder", "decoder")}
    other = {role: graphs[role, "portable"] for role in ("encoder", "decoder")}
    found = drift(exact, other, source.manifest, segments, threads=1)
    assert NEAR[product.precision.name] / 100 < found.kl < NEAR[product.precision.name]


def wide(value):
    return (
        value.astype(np.float32) if getattr(value, "dtype", None) == ml_dtypes.bfloat16 else value
    )


class MatMul(OpRun):
    """The reference's own sums up in bf16, as no GPU does."""

    def _run(self, a, b):
        return ((wide(a) @ wide(b)).astype(a.dtype),)


class Attention(op_attention.Attention):
    """As above."""

    def _run(self, query, *others, **options):
        found = super()._run(wide(query), *map(wide, others), **options)
        return (found[0].astype(query.dtype), *found[1:])


class OneHot(OpRun):
    """The reference's own takes no depth of one element, which the standard allows."""

    def _run(self, indices, depth, values, axis=None):
        found = indices[..., np.newaxis] == np.arange(int(np.squeeze(depth)))
        return (np.where(found, values[1], values[0]).astype(values.dtype),)


class GatherElements(OpRun):
    """The reference's own ends at 64 columns."""

    def _run(self, data, indices, axis=None):
        return (np.take_along_axis(data, indices, axis),)


def by_the_book(model: onnx.ModelProto) -> ReferenceEvaluator:
    return ReferenceEvaluator(model, new_ops=[MatMul, Attention, OneHot, GatherElements])


@pytest.mark.parametrize("shape", [TINY, MEMORY, TINY_MOE], ids=["mt3", "memory", "experts"])
def test_stand_ins_compute_what_bf16_graphs_say(shape):
    """The encoder, node by node in ONNX's own reference with its bf16, and in fp32 as widened."""
    memory = (4, 8) if shape == MEMORY else (0, 0)
    model = build_encoder(
        seeded_weights(shape),
        FRAMES,
        profile="portable",
        memory=memory[0],
        memory_tokens=memory[1],
    )
    features = np.clip(0.4 * np.abs(seeded_normal("f", (1, FRAMES, shape.input_bins))), 0, 1)
    feeds = {"features": features.astype(np.float32)}
    if shape == MEMORY:
        feeds["previous_ids"] = np.arange(8).reshape(1, -1)
    exact = session(model).run(None, feeds)
    to_half(model, "bf16")
    stand_in = session(widened(model)).run(None, feeds)
    reference = by_the_book(model).run(None, feeds)
    for right, mine, theirs in zip(exact, stand_in, reference, strict=True):
        assert theirs.dtype == ml_dtypes.bfloat16
        off = float(np.sqrt(np.mean((wide(theirs) - right) ** 2)))
        # Experts are added up in ONNX Runtime's own order; then roundings differ here and there.
        limit = 0.25 * off if shape == TINY_MOE else 0.02 * off
        assert float(np.sqrt(np.mean((mine - wide(theirs)) ** 2))) < limit
        assert np.array_equal(mine, mine.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_words_are_rounded_to_the_nearest():
    values = np.concatenate([seeded_normal("words", (1000,)), [0.0, 1.0, -1.0, 1e-30, 3e38]])
    values = values.astype(np.float32)
    assert np.array_equal(bf16_words(values), values.astype(ml_dtypes.bfloat16).view(np.uint16))


def test_routers_stay_exact():
    model = build_encoder(seeded_weights(TINY_MOE), FRAMES, profile="portable")
    to_half(model, "bf16")
    routers = [t for t in model.graph.initializer if ".router." in t.name]
    assert routers
    assert {tensor.data_type for tensor in routers} == {TensorProto.FLOAT}


def test_bf16_steps_are_those_of_the_reference():
    """A decoder step, in ONNX's reference with true bf16 caches, and as widened."""
    model = build_decoder(seeded_weights(TINY), FRAMES, max_tokens=CAPACITY, profile="portable")
    to_half(model, "bf16")
    stand_in = session(widened(model))
    feeds = {
        "token_ids": np.full((ROWS, 1), 5, np.int64),
        "positions": np.array([0, 3], np.int32),
        "allowed": np.ones((ROWS, TINY.vocab_size), np.bool_),
    }
    caches = {}
    for value in model.graph.input:
        if "_key_" in value.name or "_value_" in value.name:
            length = FRAMES if value.name.startswith("cross") else CAPACITY
            size = (ROWS, TINY.heads, length, TINY.head_dim)
            caches[value.name] = seeded_normal(value.name, size).astype(ml_dtypes.bfloat16)
    reference = by_the_book(model).run(None, feeds | caches)
    plain = {name: value.astype(np.float32) for name, value in caches.items()}
    found = stand_in.run(None, feeds | plain)
    for value, mine, theirs in zip(model.graph.output, found, reference, strict=True):
        assert np.allclose(mine, wide(theirs), atol=1e-4), value.name


def written(product: Product, source: Source, folder: Path) -> Bundle:
    folder.mkdir()
    write_graphs(source.manifest, product.graphs, folder, precision=product.precision)
    return Bundle(folder)


def test_who_runs_them(product: Product, source: Source, material: Material, tmp_path: Path):
    bundle = written(product, source, tmp_path / "half")
    features = source.listen(material.calibration)[0].features
    if product.precision.name == "bf16":
        with pytest.raises(DeviceError, match="no bf16 arithmetic"):
            load_model(bundle.path, device="cpu")
        return
    with load_model(bundle.path, device="cpu", threads=1) as model:
        here = [sequence.tokens for sequence in model.forward(features)]
    backend = OrtCudaBackend(bundle, place=DeviceSpec("CPUExecutionProvider", "cpu"))
    with Model(bundle, backend) as model:  # the GPU's way with buffers
        there = [sequence.tokens for sequence in model.forward(features)]
    assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))


def test_engines_are_not_built_of_them(product: Product, source: Source, tmp_path: Path, capsys):
    bundle = written(product, source, tmp_path / "half")
    words = ["build", str(bundle.path), "--graphs", str(tmp_path / "graphs")]
    assert cli.main(words) == cli.ExitCode.USAGE
    assert "build engines of the exact bundle" in capsys.readouterr().err
