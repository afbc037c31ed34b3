"""Exporting taggers and genre classifiers: every layout, the same bytes; refusals that say why."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mt3_analysis import open_classifier
from mt3_export.classifiers import chunked_convolutions
from mt3_export.classifiers.classifier_writer import (
    export_classifier,
    find_classifier,
    read_classifier,
)
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.bundles.classifier import ClassifierBundle, open_bundle
from mt3_runtime.errors import BundleError, CheckpointError, OptionError
from tests.classifier_networks import (
    LABELS,
    ast_config,
    ast_folder,
    ast_tensors,
    in_memory,
    named,
    old_spelling,
    original,
    wave_folder,
    wave_tensors,
    write_folder,
    write_safetensors,
)
from tests.export.writers import write_torch
from tests.seeded import seeded_normal


def exported(source, out, **options):
    export_classifier(source, out, name="tiny", **options)
    return (out / f"{ClassifierBundle(out).manifest.kind}.cpu.onnx").read_bytes()


def layouts(folder, stride):
    """One AST in every layout, and the options that its export needs."""
    tensors, config = ast_tensors(stride), ast_config(stride)
    names = folder / "labels.txt"
    names.write_text("\n".join(LABELS))
    pth = write_torch(folder / "audioset.pth", original(tensors))
    return [
        (write_folder(folder / "published", config, tensors), {}),
        (write_folder(folder / "pickled", config, tensors, pickled=True), {}),
        (write_folder(folder / "memory", config, in_memory(tensors)), {}),
        (pth, {"labels": names}),
    ]


@pytest.mark.parametrize("stride", [10, 16])
def test_all_layouts_give_the_same_bytes(tmp_path, stride):
    found = [
        exported(source, tmp_path / f"bundle{number}", **options)
        for number, (source, options) in enumerate(layouts(tmp_path, stride))
    ]
    assert len(found) == 4
    assert len(set(found)) == 1


def test_all_layouts_are_recognised(tmp_path):
    assert all(find_classifier(source) for source, _ in layouts(tmp_path, 12))
    assert find_classifier(wave_folder(tmp_path / "wave"))
    assert not find_classifier(tmp_path)


@pytest.mark.parametrize("stride", [10, 12, 14, 16])
def test_strides_follow_from_the_positions(tmp_path, stride):
    pth = write_torch(tmp_path / "x.pth", original(ast_tensors(stride)))
    config = ast_config(stride)
    del config["frequency_stride"], config["time_stride"]
    folder = write_folder(tmp_path / "folder", config, ast_tensors(stride))
    one, other = read_classifier(pth), read_classifier(folder)
    graphs = [each.build("cpu", "fp32", {}).SerializeToString() for each in (one, other)]
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("family", ["hubert", "wav2vec2"])
def test_both_spellings_of_weight_norm_are_folded(tmp_path, family):
    new = exported(wave_folder(tmp_path / "new", family), tmp_path / "a")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    old = write_folder(tmp_path / "old", config, old_spelling(wave_tensors(family)), pickled=True)
    assert exported(old, tmp_path / "b") == new


def test_normalisation_follows_the_file(tmp_path):
    folder = wave_folder(tmp_path)
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert read_classifier(folder).front_end.wave.normalise is False


def test_a_manifest_survives_and_says_what_it_is(tmp_path):
    export_classifier(ast_folder(tmp_path / "s"), tmp_path / "b", name="tiny")
    bundle = open_bundle(tmp_path / "b")
    manifest = bundle.manifest
    assert isinstance(bundle, ClassifierBundle)
    assert (manifest.kind, manifest.network, manifest.labels) == ("tagger", "ast", LABELS)
    assert type(manifest).from_json(manifest.to_json(), "again") == manifest
    assert manifest.precision.weights == "fp16"
    with pytest.raises(BundleError, match="kind 'tagger', which writes no notes.*mt3 tag"):
        Bundle(tmp_path / "b")


def test_a_bundle_is_replaced_and_packed(tmp_path):
    source = ast_folder(tmp_path / "s")
    for _ in range(2):
        export_classifier(source, tmp_path / "b.mt3", name="tiny")
    bundle = ClassifierBundle(tmp_path / "b.mt3")
    assert bundle.verified(bundle.graph("cpu"))


def test_a_transcriber_is_no_tagger(tiny_bundle):
    with pytest.raises(BundleError, match="describes a transcriber"):
        ClassifierBundle(tiny_bundle)
    assert isinstance(open_bundle(tiny_bundle), Bundle)


def without(tensors, name):
    return {key: array for key, array in tensors.items() if key != name}


def changed(tensors, name, shape):
    return {**tensors, name: np.ones(shape, np.float32)}


AST_NORM = "audio_spectrogram_transformer.layernorm.weight"
LAST = "audio_spectrogram_transformer.encoder.layer.1.output.dense.weight"
TABLE = "audio_spectrogram_transformer.embeddings.position_embeddings"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (without(ast_tensors(), AST_NORM), "no tensor 'layernorm.weight'"),
        (without(ast_tensors(), LAST), "no tensor 'encoder.layer.1.output.dense.weight'"),
        (changed(ast_tensors(), AST_NORM, (64,)), "has the shape .*expected"),
        (changed(ast_tensors(), TABLE, (1, 1000, 128)), "1000 positions go with none"),
        ({**ast_tensors(), "extra.weight": np.ones(3, np.float32)}, "no such network has"),
        ({**ast_tensors(), AST_NORM: np.full(128, np.nan, np.float32)}, "no numbers"),
    ],
)
def test_misshapen_weights_are_refused(tmp_path, tensors, said):
    folder = write_folder(tmp_path / "s", ast_config(), tensors)
    with pytest.raises(CheckpointError, match=said):
        export_classifier(folder, tmp_path / "b", name="tiny")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"num_attention_heads": 5}, "num_attention_heads is 5"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3"),
        ({"frequency_stride": 0}, "frequency_stride is 0"),
        ({"time_stride": 10**9}, "time_stride is 1000000000"),
        ({"qkv_bias": False}, "qkv_bias is False"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        (named(("a", "b")), "names 2 classes, the network has 7"),
        (named((*LABELS[:-1], "tab\tulator")), "no name of a class"),
        ({"id2label": {str(i): "same" for i in range(7)}}, "names 'same' twice"),
        ({"id2label": {"1": "a", "3": "b"}}, "does not number"),
        ({"id2label": {str(i): str(i) for i in range(20000)}}, "at most"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, change, said):
    folder = write_folder(tmp_path / "s", {**ast_config(), **change}, ast_tensors())
    with pytest.raises(CheckpointError, match=said):
        export_classifier(folder, tmp_path / "b", name="tiny")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_weighted_layer_sum": True}, "use_weighted_layer_sum is True"),
        ({"add_adapter": True}, "add_adapter is True"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm is 'batch'"),
        ({"conv_dim": [32, -1]}, "conv_dim is"),
        ({"conv_kernel": [10, 3]}, "do not fit each other"),
        ({"num_attention_heads": 7}, "do not fit each other"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000"),
    ],
)
def test_wave_settings_that_do_not_fit_are_refused(tmp_path, change, said):
    with pytest.raises(CheckpointError, match=said):
        read_classifier(wave_folder(tmp_path, **change))


def test_weights_without_a_classifier_are_refused(tmp_path):
    folder = wave_folder(tmp_path)
    tensors = without(wave_tensors("hubert"), "classifier.weight")
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match="ForSequenceClassification"):
        read_classifier(folder)


def safetensors(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(shape, first, last, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (1 << 60).to_bytes(8, "little") + b"{}",
        safetensors(b"[1]"),
        safetensors(b"{" * 1000),
        safetensors({"a": 3}),
        safetensors({"a": entry([2], 0, 8)}, b"123"),
        safetensors({"a": entry([2], 0, 4)}, b"1234"),
        safetensors({"a": entry([2**60], 0, 8)}, b"12345678"),
        safetensors({"a": entry([1], 4, 0)}, b"1234"),
        safetensors({"a": entry([1], 0, 4), "b": entry([1], 2, 6)}, b"123456"),
        safetensors({"a": entry(["x"], 0, 4)}, b"1234"),
    ],
    ids=range(12),
)
def test_lying_safetensors_are_one_error(tmp_path, content):
    folder = ast_folder(tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError):
        read_classifier(folder)


def test_labels_come_from_a_file_where_the_weights_have_none(tmp_path):
    pth = write_torch(tmp_path / "x.pth", original(ast_tensors()))
    with pytest.raises(CheckpointError, match="does not name its 7 classes.*--labels FILE"):
        export_classifier(pth, tmp_path / "b", name="tiny")
    table = tmp_path / "labels.csv"
    rows = [f'{i},/m/{i},"{name}, {name}"' for i, name in enumerate(LABELS)]
    table.write_text("\n".join(["index,mid,display_name", *rows]))
    manifest = export_classifier(pth, tmp_path / "b", name="tiny", labels=table)
    assert manifest.labels[1] == "drum kit, drum kit"
    table.write_text("\n".join(LABELS[:3]))
    with pytest.raises(CheckpointError, match="names 3 classes, the network has 7"):
        export_classifier(pth, tmp_path / "c", name="tiny", labels=table)


@pytest.mark.parametrize("profiles", [(), ("cpu", "cpu"), ("fast",)])
def test_profiles_are_checked_first(tmp_path, profiles):
    with pytest.raises(OptionError, match="has the profiles cpu, portable and compat"):
        export_classifier(tmp_path, tmp_path / "b", name="tiny", profiles=profiles)


@pytest.mark.parametrize("family", ["hubert", "wav2vec2"])
def test_chunks_give_the_frames_of_the_whole_clip(tmp_path, family, monkeypatch):
    """The first norm is over the whole clip; lengths lie around the ends of chunks and frames."""
    monkeypatch.setattr(chunked_convolutions, "CHUNK_FRAMES", 7)
    source = wave_folder(tmp_path / "a", family)
    export_classifier(source, tmp_path / "b", name="a", profiles=("cpu", "compat"), storage="fp32")
    chunked, plain = (
        open_classifier(tmp_path / "b", profile=profile, threads=1) for profile in ("cpu", "compat")
    )
    hop, seen = 320, 400
    for frames in (1, 2, 6, 7, 8, 13, 14, 15, 22):
        for more in (0, 1, hop - 1):
            length = (frames - 1) * hop + seen + more
            samples = seeded_normal(f"{frames} {more}", (length,)) * np.float32(0.1)
            expected = plain.logits(samples)
            assert np.abs(chunked.logits(samples) - expected).max() <= 2e-5 * max(1, expected.std())
