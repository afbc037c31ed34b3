"""Graphs that a framework's converter wrote, beside those we write: one contract, equal tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from mt3_export.bundle_writer import export_bundle
from mt3_export.checkpoints.checkpoint import read_checkpoint
from mt3_export.graphs.decoder import build_decoder
from mt3_export.graphs.encoder import build_encoder
from mt3_export.graphs.lint import lint
from mt3_export.routes.traced_graphs import (
    ROUTES,
    Port,
    Ports,
    decoder_ports,
    encoder_ports,
    finish,
    load_tracer,
)
from mt3_export.variants import variant_named
from mt3_export.weights import Weights
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import main
from mt3_runtime.errors import MissingDependencyError, OptionError
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model, token_digest
from tests import reference_t5
from tests.export.writers import write_t5x
from tests.seeded import MEMORY, seeded_normal, seeded_weights
from tests.stepper import Stepper

RECIPE = Path(__file__).with_name("route_recipe.py")

#: Route -> packages it needs.
FRAMEWORKS = {
    "torch": ("torch", "onnxscript"),
    "jax2tf": ("jax", "flax", "tensorflow", "tf2onnx"),
}


# The routes themselves, each in an environment that has its framework ----------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Weights) -> Path:
    return write_t5x(tmp_path_factory.mktemp("t5x") / "mt3", tiny_weights.tensors)


@pytest.fixture(
    scope="module",
    params=["torch", pytest.param("jax2tf", marks=pytest.mark.nightly(part="jax2tf"))],
)
def traced(request, tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """The small network's bundle by each traced route."""
    route, out = request.param, tmp_path_factory.mktemp("traced") / request.param
    beside = request.getfixturevalue(f"beside_{route}")
    beside(RECIPE, route, checkpoint, out)
    return out


def test_a_traced_bundle_says_how_it_was_made(traced: Path, checkpoint: Path) -> None:
    manifest = Bundle(traced).manifest
    assert manifest.exporter.endswith(f" via {traced.name}")
    assert manifest.source["digest"] == read_checkpoint(checkpoint).digest
    assert {(g.profile, g.cache, g.cross_key_transposed) for g in manifest.graphs} == {
        ("compat", "in_place", False)
    }


def test_traced_graphs_keep_the_promises(traced: Path) -> None:
    for path in traced.glob("*.onnx"):
        model = onnx.load(path)
        assert lint(model, traced=True) == []
        assert {node.domain for node in model.graph.node} == {""}
        assert not any(node.metadata_props for node in model.graph.node)
        onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("decoding", ["greedy", "t5x"])
@pytest.mark.parametrize("threads", [1, 2])
def test_tokens_are_those_of_the_direct_route(
    traced: Path, tiny_model: Model, audio, decoding, threads
) -> None:
    features = tiny_model.preprocess(audio)
    expected = tiny_model.forward(features, decoding=decoding)
    with load_model(traced, threads=threads) as model:
        found = model.forward(features, decoding=decoding)
    assert token_digest(found) == token_digest(expected)
    assert len(expected) == 5
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_allclose(theirs.log_probs, ours.log_probs, atol=2e-4)


def test_traced_graphs_compute_what_the_formulas_say(traced: Path, tiny_weights: Weights) -> None:
    """Against float64; one row has a mask, and one starts over beside others that go on."""
    rows, steps, restart = 3, 12, 4
    features = np.clip(seeded_normal("features", (rows, 256, 512)) * 2 - 4, -12, 2)
    encoded = reference_t5.encode(tiny_weights, features)
    encoder, decoder = (
        onnx.load(traced / f"{role}.compat.onnx") for role in ("encoder", "decoder")
    )
    stepper = Stepper(tiny_weights, 256, "portable", features, graphs=(encoder, decoder))
    read = [[0] for _ in range(rows)]
    for step in range(steps):
        if step == restart:
            stepper.restart(0)
            read[0] = [0]
        banned = np.random.default_rng(step).permutation(1536)[:700]
        stepper.allowed[1] = True
        stepper.allowed[1, banned] = False
        found = stepper.step()
        for row, tokens in enumerate(read):
            logits = reference_t5.teacher_forced(
                tiny_weights, encoded[row : row + 1], np.array([tokens])
            )[0, -1]
            log_probs = logits - logits.max()
            log_probs -= np.log(np.exp(log_probs).sum())
            best = np.argsort(-np.where(stepper.allowed[row], log_probs, -np.inf))[:2]
            assert found["top_ids"][row].tolist() == best.tolist()
            assert found["next_ids"][row, 0] == best[0]
            np.testing.assert_allclose(found["top_log_probs"][row], log_probs[best], atol=2e-4)
            tokens.append(int(best[0]))


# What needs no framework: a tracer that hands out our own graphs ---------------------------------


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands for the route through PyTorch; its cache is in place, as ours in `portable`."""

    def trace_encoder(weights: Weights, ports: Ports) -> onnx.ModelProto:
        return build_encoder(weights, int(ports.inputs[0].shape[1]), profile="portable")

    def trace_decoder(weights: Weights, ports: Ports, *, max_tokens: int) -> onnx.ModelProto:
        frames = next(int(p.shape[2]) for p in ports.inputs if p.name == "cross_value_0")
        return build_decoder(weights, frames, max_tokens=max_tokens, profile="portable")

    made = SimpleNamespace(trace_encoder=trace_encoder, trace_decoder=trace_decoder)
    monkeypatch.setitem(sys.modules, "mt3_export.routes.torch_route", made)
    return made


def test_a_traced_bundle_runs_like_any_other(
    tracer, checkpoint: Path, tmp_path: Path, tiny_model: Model, audio, capsys
) -> None:
    out = tmp_path / "model"
    assert main(["export", str(checkpoint), "--via", "torch", "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    manifest = Bundle(out).manifest
    assert manifest.exporter.endswith(" via torch")
    assert [(g.role, g.profile, g.cache, g.opset) for g in manifest.graphs] == [
        ("encoder", "compat", "in_place", 24),
        ("decoder", "compat", "in_place", 24),
    ]
    with load_model(out) as model:
        assert "compat" in model.device
        features = model.preprocess(audio)
        assert token_digest(model.forward(features)) == token_digest(tiny_model.forward(features))


def test_the_export_id_tells_routes_apart(tracer, tiny_weights: Weights, tmp_path: Path) -> None:
    ids = set()
    for route in ("direct", "torch"):
        manifest = export_bundle(
            tiny_weights,
            variant_named("magenta_mt3"),
            tmp_path / route,
            source={"layout": "seeded", "digest": "0" * 64},
            profiles=("compat",),
            route=route,
        )
        ids.add(manifest.export_id)
    assert len(ids) == 2


@pytest.mark.parametrize("options", [["--profiles", "cpu"], ["--profiles", "compat,cpu"],
                                     ["--weights", "fp16"]])  # fmt: skip
def test_a_route_refuses_what_it_cannot_write(
    tracer, checkpoint: Path, tmp_path: Path, capsys, options
) -> None:
    out = tmp_path / "model"
    assert main(["export", str(checkpoint), "--via", "torch", "-o", str(out), *options]) == 2
    assert "profile compat with fp32 weights and nothing else" in capsys.readouterr().err
    assert not out.exists()


def test_a_route_refuses_other_networks(tracer, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="T5 networks of Magenta"):
        export_bundle(
            seeded_weights(MEMORY),
            variant_named("magenta_mt3"),
            tmp_path / "model",
            source={"layout": "seeded", "digest": "0" * 64},
            profiles=("compat",),
            route="torch",
        )


@pytest.mark.parametrize("route", FRAMEWORKS)
def test_a_missing_framework_names_the_extra(monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    monkeypatch.delitem(sys.modules, f"mt3_export.{route}_route", raising=False)
    for package in FRAMEWORKS[route]:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"extras \[export,{route}\].* pip install"):
        load_tracer(route)


def test_the_ports_are_the_direct_routes_signature(tiny_weights: Weights) -> None:
    """Names, types and shapes, whatever the order."""

    def signature(values) -> dict[str, tuple[int, list[object]]]:
        return {
            value.name: (
                value.type.tensor_type.elem_type,
                [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            )
            for value in values
        }

    def declared(ports: tuple[Port, ...]) -> dict[str, tuple[int, list[object]]]:
        return {port.name: (port.dtype, list(port.shape)) for port in ports}

    shape = tiny_weights.shape
    encoder = build_encoder(tiny_weights, 24, profile="portable").graph
    decoder = build_decoder(tiny_weights, 24, max_tokens=32, profile="portable").graph
    for graph, ports in ((encoder, encoder_ports(shape, 24)), (decoder, decoder_ports(shape, 24))):
        assert declared(ports.inputs) == signature(graph.input)
        assert declared(ports.outputs) == signature(graph.output)


def test_a_graph_of_another_signature_is_a_bug(tiny_weights: Weights) -> None:
    model = build_encoder(tiny_weights, 24, profile="compat")
    with pytest.raises(RuntimeError, match="traced"):
        finish(model, Ports((Port("audio", TensorProto.FLOAT, ("rows",)),), ()), {})


def late_reader(*nodes: tuple[str, list[str], list[str]]) -> onnx.ModelProto:
    """A step whose cache is written by a sum; further nodes as given."""
    tensor = [
        onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("past_k", "x")
    ]
    out = [
        onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("present_k", "y")
    ]
    all_nodes = [
        ("Mul", ["past_k", "x"], ["kept"]),
        ("Add", ["kept", "x"], ["present_k"]),
        *nodes,
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, *ends) for kind, *ends in all_nodes], "step", tensor, out
    )
    opset = onnx.helper.make_opsetid("", 17)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)


def test_lint_follows_a_traced_cache_to_its_writer() -> None:
    fine = late_reader(("Neg", ["present_k"], ["y"]))
    assert lint(fine, traced=True) == []
    assert any("does not write" in fault for fault in lint(fine))
    sizes = late_reader(("Shape", ["past_k"], ["n"]), ("Cast", ["n"], ["y"]))
    assert lint(sizes, traced=True) == []
    for nodes in (
        [("Neg", ["past_k"], ["y"])],
        [("Identity", ["past_k"], ["same"]), ("Neg", ["same"], ["y"])],
        [("Identity", ["past_k"], ["a"]), ("Identity", ["a"], ["b"]), ("Neg", ["b"], ["y"])],
    ):
        faults = lint(late_reader(*nodes), traced=True)
        assert any("Neg reads past_k, and present_k does not wait" in fault for fault in faults)


def test_the_command_knows_the_routes() -> None:
    from mt3_export.export_command import ROUTE_NAMES

    assert ROUTE_NAMES == ROUTES


def test_a_route_is_checked_before_the_target_is_touched(
    tiny_weights: Weights, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="Route torch writes profile compat"):
        export_bundle(
            tiny_weights,
            variant_named("magenta_mt3"),
            tmp_path / "model",
            source={"layout": "seeded", "digest": "0" * 64},
            route="torch",
        )
    assert not any(tmp_path.iterdir())
