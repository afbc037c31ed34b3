"""Exporting networks that assess performances: layouts, shared encoder, refusals that say why."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from mt3_analysis import open_assessor_networks
from mt3_export.assessors.assessor_writer import export_assessors, find_assessors, read_assessors
from mt3_runtime import cli
from mt3_runtime.bundles.assessor_networks import AssessorNetworksBundle, AssessorNetworksManifest
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.bundles.classifier import ClassifierBundle, open_bundle
from mt3_runtime.errors import BundleError, CheckpointError, MT3Error, OptionError, OutputError
from tests.assessor_folders import (
    DIMENSIONS,
    FUSIONS,
    assessors_folder,
    mert_folder,
    mert_tensors,
    network_config,
    network_folder,
    network_tensors,
)
from tests.classifier_networks import write_safetensors
from tests.export.writers import write_torch


def graph_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.onnx"))}


def test_five_networks_share_one_audio_encoder(tmp_path):
    manifest = export_assessors(
        assessors_folder(tmp_path / "s"), tmp_path / "b", name="all", profiles=("cpu", "compat")
    )
    encoders = [graph for graph in manifest.graphs if graph.role == "audio_encoder"]
    assert [graph.profile for graph in encoders] == ["cpu", "compat"]
    assert [network.name for network in manifest.networks] == list(FUSIONS)
    assert len(manifest.graphs) == 2 * (1 + 4 * 3 + 2)
    assert manifest.licence == "made for tests"
    bundle = open_bundle(tmp_path / "b")
    assert isinstance(bundle, AssessorNetworksBundle)
    assert AssessorNetworksManifest.from_json(manifest.to_json(), "again") == manifest
    for graph in manifest.graphs:
        assert bundle.verified(graph)


def test_layers_that_are_not_read_are_not_stored(tmp_path):
    export_assessors(assessors_folder(tmp_path / "s", ()), tmp_path / "b", name="mert")
    names = {p.name for p in onnx.load(tmp_path / "b" / "audio_encoder.cpu.onnx").graph.initializer}
    assert any(name.startswith("layers.0.") for name in names)
    assert not any(name.startswith("layers.1.") for name in names)


def test_every_way_of_storing_gives_the_same_bytes(tmp_path):
    one = assessors_folder(tmp_path / "one", ("gated",))
    other = assessors_folder(tmp_path / "other", ("gated",))
    (other / "gated" / "model.safetensors").unlink()
    write_torch(other / "gated" / "pytorch_model.bin", network_tensors("gated"))
    new = {f"mert.{name}": array for name, array in mert_tensors(old=False).items()}
    write_safetensors(
        other / "audio_encoder" / "model.safetensors", {**new, "head.weight": np.ones(3, "f4")}
    )
    for folder in (one, other):
        export_assessors(folder, folder / "bundle", name="same")
    assert graph_bytes(one / "bundle") == graph_bytes(other / "bundle")


def test_one_file_may_hold_a_network_and_its_audio_encoder(tmp_path):
    """As a training checkpoint does: it is then read from both folders."""
    whole = {f"audio_encoder.model.{name}": array for name, array in mert_tensors().items()}
    whole |= network_tensors("gated")
    one, other = (assessors_folder(tmp_path / name, ("gated",)) for name in "ab")
    for folder in ("audio_encoder", "gated"):
        write_safetensors(other / folder / "model.safetensors", whole)
    for folder in (one, other):
        export_assessors(folder, folder / "bundle", name="same")
    assert graph_bytes(one / "bundle") == graph_bytes(other / "bundle")


def test_a_published_mert_alone_is_an_audio_encoder(tmp_path):
    folder = mert_folder(tmp_path / "mert", num_hidden_layers=2)
    assert find_assessors(folder)
    with pytest.raises(CheckpointError, match="hidden states 5, 6, 7 .* from 0 to 2"):
        read_assessors(folder)


def test_a_network_alone_needs_frames_from_elsewhere(tmp_path):
    export_assessors(network_folder(tmp_path / "n", "audio"), tmp_path / "b.mt3", name="alone")
    networks = open_assessor_networks(tmp_path / "b.mt3", threads=1)
    said = networks.assess("audio", frames=np.ones((9, 48), np.float32))
    assert said.dimensions == DIMENSIONS
    with pytest.raises(BundleError, match="holds no audio encoder.*audio_encoder/"):
        networks.frames(np.zeros(2000))


def test_half_precision_stays_close(tmp_path):
    source = assessors_folder(tmp_path / "s", ("gated",))
    frames = np.linspace(-1, 1, 20 * 48).reshape(20, 48).astype(np.float32)
    notes = [[0.0, 0.2, 60, 70], [0.1, 0.4, 64, 80]]
    said = {}
    for storage in ("fp16", "fp32"):
        export_assessors(source, tmp_path / storage, name="x", storage=storage)
        networks = open_assessor_networks(tmp_path / storage, threads=1)
        said[storage] = networks.assess("gated", frames=frames, notes=notes).scores
    assert 0 < np.abs(said["fp16"] - said["fp32"]).max() < 1.0


def without(tensors, name):
    return {key: array for key, array in tensors.items() if key != name}


GATED = network_tensors("gated")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (without(GATED, "fusion.gate.weight"), "no tensor 'fusion.gate.weight'"),
        (without(GATED, "aggregator.lstm.bias_hh_l1_reverse"), "bias_hh_l1_reverse"),
        ({**GATED, "fusion.gate.bias": np.ones(3, "f4")}, "has the shape .*expected"),
        ({**GATED, "mtl_head.log_vars": np.full(3, np.nan, "f4")}, "no numbers"),
        ({**GATED, "loss.weight": np.ones(3, "f4")}, "that no such network has"),
        (network_tensors("concat"), "no tensor 'fusion.audio_transform.0.weight'"),
    ],
    ids=range(6),
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, tensors, said):
    folder = network_folder(tmp_path / "n", "gated")
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=said):
        export_assessors(folder, tmp_path / "b", name="x")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fusion": "film"}, "fusion is 'film'"),
        ({"alignment": "attention"}, "alignment is 'attention'"),
        ({"dimensions": []}, "dimensions must be a list"),
        ({"dimensions": ["timing", "timing"]}, "one of them twice"),
        ({"dimensions": ["Timing!"]}, "lower-case names"),
        ({"midi_heads": 5}, "no multiple"),
        ({"midi_width": 10**9}, "midi_width is 1000000000"),
        ({"head_widths": [20, 16]}, "not three"),
        ({"ordinal_classes": 1}, "ordinal output of one class"),
        ({"max_notes": 0}, "max_notes is 0"),
        ({"fill": "yes"}, "fill is 'yes'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, change, said):
    folder = network_folder(tmp_path / "n", "gated")
    (folder / "config.json").write_text(json.dumps({**network_config("gated"), **change}))
    with pytest.raises(CheckpointError, match=said):
        read_assessors(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"networks": ["../gated"]}, "different lower-case names"),
        ({"networks": ["gated", "gated"]}, "different lower-case names"),
        ({"networks": 3}, "different lower-case names"),
        ({"audio_layers": [0, 9]}, "hidden states 0, 9"),
        ({"audio_layers": "all"}, "audio_layers must be"),
        ({"clip_samples": 5}, "clip_samples is 5"),
        ({"licence": "\n"}, "licence must be"),
        ({"networks": ["nowhere"]}, "cannot be read"),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path, change, said):
    folder = assessors_folder(tmp_path / "s", ("gated",), **change)
    with pytest.raises(CheckpointError, match=said):
        read_assessors(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"feature_extractor_cqt": True}, "feature_extractor_cqt is True"),
        ({"deepnorm": True}, "deepnorm is True"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        (
            {"hidden_size": 24, "num_attention_heads": 3, "num_conv_pos_embedding_groups": 4},
            "shape",
        ),
    ],
)
def test_other_merts_are_refused(tmp_path, change, said):
    folder = assessors_folder(tmp_path / "s", ("gated",))
    config = folder / "audio_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(CheckpointError, match=said):
        read_assessors(folder)


def test_frames_of_another_width_are_refused(tmp_path):
    folder = assessors_folder(tmp_path / "s", ("audio",))
    tensors = network_tensors("audio")
    name = "projection.audio_proj.projection.0.weight"
    write_safetensors(
        folder / "audio" / "model.safetensors", {**tensors, name: tensors[name][:, :40]}
    )
    (folder / "audio" / "config.json").write_text(
        json.dumps(network_config("audio", audio_width=40))
    )
    with pytest.raises(
        CheckpointError, match="reads frames of 40 numbers, audio_encoder/ gives 48"
    ):
        read_assessors(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"3"])
def test_settings_that_are_none_are_one_error(tmp_path, content):
    folder = network_folder(tmp_path / "n", "gated")
    (folder / "config.json").write_bytes(content)
    assert not find_assessors(folder)
    with pytest.raises(CheckpointError):
        read_assessors(folder)


def test_manifests_that_contradict_themselves_are_refused(tmp_path):
    export_assessors(assessors_folder(tmp_path / "s", ("gated", "audio")), tmp_path / "b", name="x")
    good = json.loads((tmp_path / "b" / "bundle.json").read_text())
    changes = [
        {"networks": good["networks"][:1]},
        {"networks": good["networks"] * 2},
        {"audio": None},
        {"graphs": good["graphs"][1:]},
        {"source": {}},
        {"kind": "tagger"},
        {"family": "measures"},
        {"networks": [{**good["networks"][0], "fusion": "midi"}, good["networks"][1]]},
        {"networks": [{**good["networks"][0], "name": "../x"}, good["networks"][1]]},
        {"graphs": [{**good["graphs"][0], "file": "../x"}, *good["graphs"][1:]]},
        {"graphs": [{**good["graphs"][0], "sha256": "0"}, *good["graphs"][1:]]},
    ]
    for change in changes:
        data = json.dumps({**good, **change}).encode()
        with pytest.raises(BundleError):
            AssessorNetworksManifest.from_json(data, "test")


def test_what_is_asked_for_and_is_not_there_is_named(tmp_path):
    export_assessors(assessors_folder(tmp_path / "s", ("gated",)), tmp_path / "b", name="x")
    bundle = AssessorNetworksBundle(tmp_path / "b")
    with pytest.raises(BundleError, match="holds no network 'cross' .it has: gated"):
        bundle.network("cross")
    with pytest.raises(BundleError, match="no head of profile 'compat'"):
        bundle.graph("gated", "head", "compat")
    with pytest.raises(BundleError, match="open_assessor_networks"):
        Bundle(tmp_path / "b")
    with pytest.raises(BundleError):
        ClassifierBundle(tmp_path / "b")
    with pytest.raises(BundleError, match="no graphs of profile 'compat'"):
        open_assessor_networks(tmp_path / "b", profile="compat")


def test_only_an_older_bundle_is_replaced(tmp_path):
    source = assessors_folder(tmp_path / "s", ("gated",))
    for _ in range(2):
        export_assessors(source, tmp_path / "b", name="x")
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="notes.txt"):
        export_assessors(source, tmp_path / "b", name="x")


@pytest.mark.parametrize("profiles", [(), ("cpu", "cpu"), ("fast",)])
def test_profiles_are_checked_first(tmp_path, profiles):
    with pytest.raises(OptionError, match="have the profiles"):
        export_assessors(tmp_path, tmp_path / "b", name="x", profiles=profiles)


def test_the_command_writes_a_bundle(tmp_path, capsys):
    source = assessors_folder(tmp_path / "s", ("gated", "midi"))
    assert (
        cli.main(["export", str(source), "-o", str(tmp_path / "b.mt3"), "--profiles", "cpu"]) == 0
    )
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "b.mt3")
    assert "gated: gated, 3 dimensions" in said.err
    assert open_assessor_networks(tmp_path / "b.mt3").networks == ("gated", "midi")


@pytest.mark.parametrize("more", [[], ["-o", "x", "--labels", "y"], ["-o", "x", "--via", "torch"]])
def test_options_of_other_models_are_refused(tmp_path, more, capsys):
    assert cli.main(["export", str(network_folder(tmp_path / "n", "midi")), *more]) != 0
    assert "Traceback" not in capsys.readouterr().err


def test_errors_are_of_the_project():
    assert issubclass(CheckpointError, MT3Error)
