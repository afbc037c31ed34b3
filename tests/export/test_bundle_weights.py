"""Weights read back from bundles: every family, from every profile, to the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mt3_export.bundle_weights import read_bundle
from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import variant_named
from mt3_export.weights import T5Shape, Weights
from mt3_runtime.bundles.bundle import MANIFEST, Bundle
from mt3_runtime.bundles.precision import Precision
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.errors import BundleError, CheckpointError
from mt3_runtime.models.cache import cache_dir
from mt3_runtime.models.installed import export_advice
from tests.export.test_yourmt3_end_to_end import SMALL
from tests.export.writers import write_t5x
from tests.seeded import ISMIR2021, MEMORY, TINY, seeded_weights

PROFILES = ("cpu", "portable", "compat")
SHAPES: dict[str, T5Shape] = {
    "magenta_mt3": TINY,
    "magenta_ismir2021": ISMIR2021,
    "mr_mt3_context0": TINY,
    "mr_mt3_context32": MEMORY,
    **SMALL,
}
SOURCE = {"layout": "seeded", "digest": "0" * 64, "credit": "nobody"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path: Path, tiny_weights: Weights) -> Path:
    path = tmp_path / "a bundle"
    variant = variant_named("magenta_mt3")
    export_bundle(tiny_weights, variant, path, source=SOURCE, storage="fp16", stem="bass")
    return path


def _files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
@pytest.mark.parametrize("name", list(SHAPES))
def test_a_bundle_is_as_good_as_its_checkpoint(name: str, storage, tmp_path: Path) -> None:
    weights, variant = seeded_weights(SHAPES[name], seed=3), variant_named(name)
    export_bundle(
        weights, variant, tmp_path / "whole", source=SOURCE, profiles=PROFILES, storage=storage
    )
    for profile in PROFILES:
        part, again = tmp_path / profile, tmp_path / f"{profile} again"
        export_bundle(weights, variant, part, source=SOURCE, profiles=(profile,), storage=storage)
        contents = read_bundle(Bundle(part))
        assert contents.storage == storage
        if storage == "fp32" and ".conv_" not in "".join(weights.tensors):
            for tensor, value in weights.tensors.items():
                assert np.array_equal(contents.weights.tensors[tensor], value), tensor
        export_bundle(
            contents.weights,
            contents.variant,
            again,
            source=Bundle(part).manifest.source,
            profiles=PROFILES,
            storage=contents.storage,
        )
        assert _files(again) == _files(tmp_path / "whole")


def test_the_command_adds_profiles(bundle: Path, tmp_path: Path, capsys) -> None:
    before, out = _files(bundle), tmp_path / "more.mt3"
    words = ["export", str(bundle), "--profiles", "cpu,portable", "-o", str(out)]
    assert main(words) == ExitCode.OK
    assert capsys.readouterr().out == f"{out}\n"
    old, new = Bundle(bundle).manifest, Bundle(out).manifest
    assert replace(new, graphs=()) == replace(old, graphs=())
    assert new.stem == "bass"
    assert new.graphs[:2] == old.graphs
    assert _files(bundle) == before
    assert main(["export", str(out)]) == ExitCode.OK  # by its own name, with its own profiles
    assert Bundle(cache_dir() / "bundles" / "magenta_mt3").profiles == ["cpu", "portable"]


def test_a_bundle_may_replace_itself(bundle: Path) -> None:
    before = _files(bundle)
    words = ["export", str(bundle), "--profiles", "cpu,compat", "-o", str(bundle)]
    assert main(words) == ExitCode.OK
    after = _files(bundle)
    assert {name: after[name] for name in before if name != MANIFEST} == {
        name: digest for name, digest in before.items() if name != MANIFEST
    }
    assert Bundle(bundle).profiles == ["cpu", "compat"]


def test_a_pulled_checkpoint_comes_first(bundle: Path, tiny_weights: Weights, capsys) -> None:
    assert main(["export", str(bundle)]) == ExitCode.OK
    assert main(["export", "magenta", "--profiles", "compat"]) == ExitCode.OK, (
        "an alias of the bundle"
    )
    assert Bundle(cache_dir() / "bundles" / "magenta_mt3").profiles == ["compat"]
    write_t5x(cache_dir() / "checkpoints" / "magenta_mt3", tiny_weights.tensors)
    capsys.readouterr()
    assert main(["export", "magenta_mt3"]) == ExitCode.UNUSABLE  # not what the catalogue promises
    assert "models pull" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "fp32"], "were rounded to fp16"),
        (["--variant", "mt3_pytorch"], "is magenta_mt3, not mt3_pytorch"),
        (["--via", "torch"], "needs a checkpoint"),
        (["--profiles", "gpu"], "--profiles takes"),
        (["-o", ""], "-o needs the name"),
    ],
)
def test_what_a_bundle_cannot_become_is_refused(
    bundle: Path, capsys, words: list[str], message: str
) -> None:
    assert main(["export", str(bundle), *words]) in (ExitCode.USAGE, ExitCode.UNUSABLE)
    assert message in capsys.readouterr().err
    assert not cache_dir().exists()


def test_another_bundle_of_the_name_is_left_alone(bundle: Path, tiny_weights, capsys) -> None:
    for name in ("magenta_mt3", "magenta_mt3.mt3"):
        other = cache_dir() / "bundles" / name
        export_bundle(tiny_weights, variant_named("magenta_mt3"), other, source={"digest": "1"})
        digest = Bundle(other).manifest.export_id
        assert main(["export", str(bundle)]) == ExitCode.USAGE
        assert "another bundle of the same name" in capsys.readouterr().err
        assert Bundle(other).manifest.export_id == digest
        shutil.rmtree(cache_dir())


@pytest.mark.parametrize("name", ["../../outside", "/tmp/mt3-outside", "..", "a b", "", ".hidden"])
def test_a_name_that_leads_elsewhere_is_refused(bundle: Path, capsys, name: str) -> None:
    """The name is the bundle's own, and the bundle a stranger's."""
    (bundle / MANIFEST).write_bytes(replace(Bundle(bundle).manifest, name=name).to_json())
    before = sorted(bundle.parent.rglob("*"))
    assert main(["export", str(bundle)]) == ExitCode.USAGE
    assert "is no name for a folder" in capsys.readouterr().err
    assert sorted(bundle.parent.rglob("*")) == before
    assert "exported-portable" in export_advice(Bundle(bundle), "portable")


def test_other_features_make_another_model(bundle: Path, capsys) -> None:
    assert main(["export", str(bundle), "--features", "mt3-infer"]) == ExitCode.OK
    made = Bundle(cache_dir() / "bundles" / "magenta_mt3_as_mt3_infer").manifest
    old = Bundle(bundle).manifest
    assert made.features != old.features
    assert made.export_id != old.export_id


def test_inexact_bundles_are_refused(bundle: Path) -> None:
    manifest = replace(Bundle(bundle).manifest, precision=Precision("fp16", arithmetic="fp16"))
    (bundle / MANIFEST).write_bytes(manifest.to_json())
    with pytest.raises(CheckpointError, match="only exact ones can be exported again"):
        read_bundle(Bundle(bundle))


def _changed(bundle: Path, role: str, change: Callable[[onnx.GraphProto], None]) -> Bundle:
    path = bundle / f"{role}.cpu.onnx"
    model = onnx.load(path)
    change(model.graph)
    data = model.SerializeToString()
    path.write_bytes(data)
    document = json.loads((bundle / MANIFEST).read_bytes())
    for graph in document["graphs"]:
        if graph["role"] == role:
            graph |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (bundle / MANIFEST).write_text(json.dumps(document))
    return Bundle(bundle)


def _rename(graph: onnx.GraphProto) -> None:
    graph.initializer[0].name = "onnx::MatMul_1.weight"


def _drop(graph: onnx.GraphProto) -> None:
    names = [tensor.name for tensor in graph.initializer]
    del graph.initializer[next(i for i, n in enumerate(names) if n.endswith(".scale"))]


def _other_table(graph: onnx.GraphProto) -> None:
    table = next(t for t in graph.initializer if t.name.endswith(".position_table"))
    values = numpy_helper.to_array(table).copy()
    values[..., 3, 1] += 1
    table.CopyFrom(numpy_helper.from_array(values, table.name))


def _odd_width(graph: onnx.GraphProto) -> None:
    fused = next(t for t in graph.initializer if "query+key+value" in t.name)
    values = numpy_helper.to_array(fused)[:, :-1]
    fused.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), fused.name))


@pytest.mark.parametrize("role", ["encoder", "decoder"])
@pytest.mark.parametrize("change", [_rename, _drop, _other_table, _odd_width])
def test_graphs_with_other_parameters_are_refused(
    bundle: Path, capsys, change: Callable[[onnx.GraphProto], None], role: str
) -> None:
    with pytest.raises(CheckpointError, match="export the checkpoint it came from"):
        read_bundle(_changed(bundle, role, change))
    assert main(["export", str(bundle)]) == ExitCode.UNUSABLE
    assert capsys.readouterr().err.count("\n") == 1
    assert not cache_dir().exists()


def test_a_graph_that_is_no_onnx_inside_is_refused(bundle: Path) -> None:
    path = bundle / "decoder.cpu.onnx"
    data = path.read_bytes() + b"\x42\x01\x07"  # an import of operators that is no message
    path.write_bytes(data)
    document = json.loads((bundle / MANIFEST).read_bytes())
    document["graphs"][1] |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (bundle / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(BundleError, match="is no ONNX model"):
        read_bundle(Bundle(bundle))


def test_rotary_tables_of_no_frequency_are_refused(tmp_path: Path) -> None:
    weights = seeded_weights(SHAPES["yptf_moe_multi"], seed=3)
    path = tmp_path / "moe"
    export_bundle(weights, variant_named("yptf_moe_multi"), path, source=SOURCE)

    def spoil(graph: onnx.GraphProto) -> None:
        swaps = [n for n in graph.node if n.op_type == "MatMul" and n.input[1].startswith("const")]
        after = list(graph.node).index(swaps[0]) + 1
        table = next(t for t in graph.initializer if t.name == graph.node[after].input[1])
        table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table) * 0.5, table.name))

    with pytest.raises(CheckpointError, match="rotary tables are those of no frequency"):
        read_bundle(_changed(path, "encoder", spoil))
