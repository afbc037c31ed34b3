"""int8 caches: scales that cover what was heard, numbers that are near, buffers left alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from mt3_export.bundle_writer import export_bundle
from mt3_export.graphs.lint import lint
from mt3_export.variants import variant_named
from mt3_quantisation.forms.caches import MARGIN, find_scales, int8_decoder, int8_encoder
from mt3_quantisation.forms.precision_bundle import write_graphs
from mt3_quantisation.gates.exact_bundle import Heard, Source
from mt3_quantisation.gates.measure import ROLES, drift, independent
from mt3_quantisation.gates.teacher_forcing import (
    Segment,
    encoded,
    forced,
    open_session,
    segments_of,
)
from mt3_runtime.backends.ort_cpu import OrtCpuBackend
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.bundles.precision import Precision
from mt3_runtime.errors import BundleError
from mt3_runtime.loading import load_model
from tests.quantisation.tiny_material import plain_material
from tests.seeded import MEMORY, TINY_MULTI, seeded_weights

PRECISION = Precision("caches", self_cache="int8", cross_cache="int8")
LAYERS, HEADS, WIDTH = 2, 2, 64
MULTI = replace(TINY_MULTI, input_bins=1024, position_rows=120, decoder_channels=13, latents=26)


@pytest.fixture(scope="module")
def source(tiny_bundle: Path) -> Source:
    return Source(Bundle(tiny_bundle), threads=1)


@pytest.fixture(scope="module")
def heard(source: Source) -> list[Heard]:
    return source.listen(plain_material().calibration)


@pytest.fixture(scope="module")
def segments(source: Source, heard: list[Heard]) -> list[Segment]:
    return segments_of(heard, source.manifest)


@pytest.fixture(scope="module")
def scales(source: Source, segments: list[Segment]) -> dict[str, Any]:
    return find_scales(source, segments)


def made(source: Source, scales: Mapping[str, Any]) -> dict[Any, Any]:
    return {
        "encoder": int8_encoder(source.graph("encoder", "cpu"), scales),
        "decoder": int8_decoder(source.graph("decoder", "cpu"), scales),
    }


def written(source: Source, graphs: Mapping[Any, Any], folder: Path) -> Bundle:
    folder.mkdir()
    named = {(role, "cpu"): graph for role, graph in graphs.items()}
    write_graphs(source.manifest, named, folder, precision=PRECISION)
    return Bundle(folder)


def test_scales_reach_a_little_further_than_what_was_heard(source, segments, scales):
    names = {f"{kind}_{part}_{layer}" for kind in ("past", "cross")
             for part in ("key", "value") for layer in range(LAYERS)}  # fmt: skip
    assert set(scales) == names
    assert all(s.shape == (HEADS, WIDTH) and s.dtype == np.float32 for s in scales.values())
    exact = encoded(open_session(source.graph("encoder", "cpu"), 1), segments)
    keys = np.abs(exact["cross_key_1"]).max(axis=(0, 3))  # [N, H, D, T]
    values = np.abs(exact["cross_value_1"]).max(axis=(0, 2))  # [N, H, T, D]
    assert np.allclose(127 * scales["cross_key_1"], MARGIN * keys)
    assert np.allclose(127 * scales["cross_value_1"], MARGIN * values)


def test_a_channel_that_is_always_zero_has_a_scale(source, segments, monkeypatch):
    silent = source.graph("encoder", "cpu")
    name = "decoder.layers_0.encoder_decoder_attention.key+value.kernel"
    (weight,) = [tensor for tensor in silent.graph.initializer if tensor.name == name]
    values = numpy_helper.to_array(weight).copy()
    values[:, 5] = 0.0
    weight.CopyFrom(numpy_helper.from_array(values, name))
    decoder = source.graph("decoder", "cpu")
    monkeypatch.setattr(source, "graph", lambda role, _: silent if role == "encoder" else decoder)
    found = find_scales(source, segments[:1])
    assert found["cross_key_0"][0, 5] == 1.0
    rounded = encoded(open_session(int8_encoder(silent, found), 1), segments[:1])
    assert not rounded["cross_key_0"][:, 0, :, 5].any()


def test_cross_caches_are_the_exact_ones_rounded(source, segments, scales):
    exact = encoded(open_session(source.graph("encoder", "cpu"), 1), segments[:2])
    rounded = encoded(open_session(made(source, scales)["encoder"], 1), segments[:2])
    for name, value in rounded.items():
        assert value.dtype == np.int8
        wanted = exact[name].swapaxes(2, 3) if "key" in name else exact[name]
        step = scales[name][:, np.newaxis]
        assert np.abs(value * step - wanted).max() <= 0.501 * step.max()


def test_what_was_never_heard_is_clipped(source, segments, scales):
    coarse = {name: scale / 50 for name, scale in scales.items()}
    rounded = encoded(open_session(made(source, coarse)["encoder"], 1), segments[:1])
    value = rounded["cross_value_0"]
    assert (value.min(), value.max()) == (-128, 127)


def test_self_caches_are_the_exact_ones_rounded(source, segments, scales):
    """At the first position the first layer's keys and values depend on the start token alone."""
    found = {}
    for name, graphs in (
        ("exact", {role: source.graph(role, "cpu") for role in ROLES}),
        ("int8", made(source, scales)),
    ):
        feeds = encoded(open_session(graphs["encoder"], 1), segments[:1])
        kind = np.int8 if name == "int8" else np.float32
        for layer in range(LAYERS):
            for part in ("key", "value"):
                feeds[f"past_{part}_{layer}"] = np.zeros((1, HEADS, 4, WIDTH), kind)
        feeds["token_ids"] = np.zeros((1, 1), np.int64)
        feeds["positions"] = np.zeros(1, np.int32)
        feeds["allowed"] = np.ones((1, 1536), np.bool_)
        names = ["present_key_0", "present_value_0"]
        found[name] = open_session(graphs["decoder"], 1).run(names, feeds)
    for index, part in enumerate(("key", "value")):
        step = scales[f"past_{part}_0"]
        exact, rounded = (found[name][index][0, :, 0] for name in ("exact", "int8"))
        assert rounded.dtype == np.int8
        clipped = np.clip(exact, -128 * step, 127 * step)
        assert np.abs(rounded * step - clipped).max() <= 0.501 * step.max()


def test_thoughts_stay_near(source, segments, scales):
    exact = {role: source.graph(role, "cpu") for role in ROLES}
    near = drift(exact, made(source, scales), source.manifest, segments, threads=1)
    assert 0.0 < near.kl < 2e-3
    far = drift(
        exact,
        made(source, {name: 8 * scale for name, scale in scales.items()}),
        source.manifest,
        segments,
        threads=1,
    )
    assert far.kl > 10 * near.kl


def test_graphs_keep_the_promises(source, scales):
    graphs = made(source, scales)
    for graph in graphs.values():
        assert lint(graph) == []
    decoder = graphs["decoder"]
    decoder.graph.node.add(op_type="Identity", input=["cross_key_0"], output=["spare"])
    assert any("cross_key_0 is read by 2 nodes" in fault for fault in lint(decoder))


def test_steps_leave_the_cross_cache_alone(source, heard, scales, tmp_path):
    backend = OrtCpuBackend(written(source, made(source, scales), tmp_path / "out"), threads=1)
    lane = backend.lane(3)
    for slot in range(2):
        lane.load(slot, heard[0].features[slot])
    before = {name: buffer.copy() for name, buffer in lane._cross.items()}
    assert all(buffer.dtype == np.int8 for buffer in before.values())
    for _ in range(70):  # beyond the first capacity
        lane.step(2)
    for name, buffer in lane._cross.items():
        assert np.array_equal(buffer[:2], before[name][:2])
    assert all(buffer.dtype == np.int8 for buffer in lane._cache)


def test_tokens_do_not_depend_on_slots_or_buffers(source, heard, scales, tmp_path):
    """A lane binds the cross caches to what they are read from; `forced` does not."""
    graphs = made(source, scales)
    bundle = written(source, graphs, tmp_path / "out")
    with load_model(bundle.path, threads=2) as model:
        said = [each._replace(tokens=tuple(model.forward(each.features))) for each in heard]
    assert independent(bundle, "cpu", said)
    for thought in forced(graphs, source.manifest, segments_of(said, source.manifest), threads=1):
        assert np.array_equal(thought.log_probs.argmax(axis=1), thought.said)


def test_nothing_else_than_the_bundle_says_is_loaded(source, scales, tmp_path):
    bundle = written(source, made(source, scales), tmp_path / "out")
    wrong = replace(bundle.manifest, precision=Precision("fp32"))
    (bundle.path / "bundle.json").write_bytes(wrong.to_json())
    with pytest.raises(BundleError, match=r"is a tensor\(int8\)"):
        load_model(bundle.path, device="cpu")


@pytest.mark.parametrize(
    ("shape", "variant"), [(MEMORY, "mr_mt3_context32"), (MULTI, "yptf_multi")]
)
def test_other_families_have_them_too(shape, variant, tmp_path):
    """A memory's rows are cross keys like others, and channels are rows like others."""
    out = tmp_path / variant
    export_bundle(seeded_weights(shape), variant_named(variant), out, source={"digest": "0" * 64})
    source = Source(Bundle(out), threads=1)
    audio = plain_material().calibration[:1]
    segments = segments_of(source.listen(audio), source.manifest, most=2)
    scales = find_scales(source, segments)
    bundle = written(source, made(source, scales), tmp_path / "small")
    exact = {role: source.graph(role, "cpu") for role in ROLES}
    assert drift(exact, made(source, scales), source.manifest, segments, threads=1).kl < 2e-3
    with load_model(bundle.path, threads=1) as model:
        model.warmup()


def test_graphs_of_another_make_are_refused(source, scales):
    with pytest.raises(BundleError, match="Export the model again"):
        int8_decoder(source.graph("decoder", "portable"), scales)
    with pytest.raises(BundleError, match="Export the model again"):
        int8_encoder(int8_encoder(source.graph("encoder", "cpu"), scales), scales)


def test_without_the_profile_there_is_nothing_to_start_from(tiny_weights, segments, tmp_path):
    export_bundle(
        tiny_weights,
        variant_named("magenta_mt3"),
        tmp_path / "out",
        source={"digest": "0" * 64},
        profiles=("compat",),
    )
    with pytest.raises(BundleError, match="no encoder of profile 'cpu'"):
        find_scales(Source(Bundle(tmp_path / "out")), segments)
