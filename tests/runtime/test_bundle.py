"""Bundles: whole ones load, changed ones are refused with a reason."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import variant_named
from mt3_export.weights import Weights
from mt3_runtime.bundles.bundle import MANIFEST, Bundle, Manifest
from mt3_runtime.errors import BundleError, BundleNotFoundError
from mt3_runtime.loading import load_model


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((path / MANIFEST).read_bytes())
    change(document)
    (path / MANIFEST).write_text(json.dumps(document))


def _remember(document: dict[str, Any], **changes: Any) -> None:
    """Makes it a model with memory, then changes it."""
    document["model"] |= {"memory": 32}
    document["decoding"] |= {"memory_tokens": 1024, "memory_start": [1134, 1]}
    for key, value in changes.items():
        document["model" if key in document["model"] else "decoding"][key] = value


def _sign(path: Path, name: str) -> None:
    """Makes the manifest agree with a changed graph file."""
    data = (path / name).read_bytes()

    def change(document: dict[str, Any]) -> None:
        graph = next(graph for graph in document["graphs"] if graph["file"] == name)
        graph |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}

    _edit(path, change)


def test_manifest_round_trip(tiny_bundle: Path) -> None:
    data = (tiny_bundle / MANIFEST).read_bytes()
    assert Manifest.from_json(data, "here").to_json() == data


def test_frames_may_differ_and_memory_survives(tiny_bundle: Path) -> None:
    document = json.loads((tiny_bundle / MANIFEST).read_bytes())
    document["model"]["frames"] = 110
    _remember(document)
    data = json.dumps(document).encode()
    manifest = Manifest.from_json(data, "here")
    assert (manifest.features.frames, manifest.model.cross_rows) == (256, 142)
    assert manifest.decoding.memory_start == (1134, 1)
    assert json.loads(manifest.to_json()) == document


def test_a_zip_is_the_same_bundle(tiny_bundle: Path, tiny_weights: Weights, tmp_path: Path) -> None:
    export_bundle(
        tiny_weights,
        variant_named("magenta_mt3"),
        tmp_path / "tiny.mt3",
        source={"layout": "seeded", "digest": "0" * 64},
        profiles=("cpu", "portable", "compat"),
        name="tiny",
    )
    packed = Bundle(tmp_path / "tiny.mt3")
    assert packed.manifest == Bundle(tiny_bundle).manifest
    graph = packed.graph("decoder", "cpu")
    assert packed.verified(graph) == (tiny_bundle / graph.file).read_bytes()
    load_model(tmp_path / "tiny.mt3").warmup()


def test_missing_bundle_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="mt3 export"):
        Bundle(tmp_path / "nothing")


def test_missing_profile_names_the_export_command(tiny_weights: Weights, tmp_path: Path) -> None:
    export_bundle(
        tiny_weights, variant_named("magenta_mt3"), tmp_path / "b", source={"digest": "0"}
    )
    with pytest.raises(BundleError, match="--profiles cpu,portable"):
        Bundle(tmp_path / "b").graph("decoder", "portable")


@pytest.mark.parametrize("role", ["encoder", "decoder"])
@pytest.mark.parametrize("at", [0, 1000, -1])
def test_one_changed_byte_is_refused(copy: Path, role: str, at: int) -> None:
    path = copy / f"{role}.cpu.onnx"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256 differs"):
        load_model(copy)


def test_another_size_is_refused(copy: Path) -> None:
    path = copy / "encoder.cpu.onnx"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(BundleError, match="bytes instead of"):
        load_model(copy)


def test_a_graph_of_another_export_is_refused(
    copy: Path, tiny_weights: Weights, tmp_path: Path
) -> None:
    """Even where somebody made the digests fit."""
    export_bundle(
        tiny_weights, variant_named("magenta_mt3"), tmp_path / "other", source={"digest": "1" * 64}
    )
    shutil.copy(tmp_path / "other" / "decoder.cpu.onnx", copy)
    with pytest.raises(BundleError, match="not the file that was exported"):
        load_model(copy)
    _sign(copy, "decoder.cpu.onnx")
    with pytest.raises(BundleError, match="belongs to another export"):
        load_model(copy)


def test_external_data_is_refused(copy: Path) -> None:
    path = copy / "encoder.cpu.onnx"
    model = onnx.load_model(path)
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    path.write_bytes(model.SerializeToString())
    _sign(copy, path.name)
    with pytest.raises(BundleError, match="refers to other files"):
        load_model(copy)


def test_a_linked_graph_is_refused(copy: Path, tmp_path: Path) -> None:
    path = copy / "encoder.cpu.onnx"
    path.rename(tmp_path / "elsewhere.onnx")
    path.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match="not a regular file"):
        load_model(copy)


def test_a_missing_graph_is_refused(copy: Path) -> None:
    (copy / "encoder.cpu.onnx").unlink()
    with pytest.raises(BundleError, match=r"encoder\.cpu\.onnx is missing"):
        load_model(copy)


def test_a_signed_but_broken_graph_is_refused(copy: Path) -> None:
    path = copy / "encoder.cpu.onnx"
    model = onnx.load_model(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    path.write_bytes(model.SerializeToString())
    _sign(copy, path.name)
    with pytest.raises(BundleError, match=r"cannot load encoder\.cpu\.onnx"):
        load_model(copy)


def test_other_inputs_than_promised_are_refused(copy: Path) -> None:
    _edit(copy, lambda d: d["graphs"][0]["outputs"].append("more"))
    with pytest.raises(BundleError, match="other inputs or outputs"):
        load_model(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("format"), "does not describe a bundle"),
        (lambda d: d.update(version=2), "format version 2"),
        (lambda d: d.pop("vocabulary"), r"missing keys \['vocabulary'\]"),
        (lambda d: d.update(extra=1), r"unknown keys \['extra'\]"),
        (lambda d: d.update(name=3), "name is 3, expected str"),
        (lambda d: d.update(stem="basses"), "Unknown stem 'basses'"),
        (lambda d: d.update(stem=["bass"]), "Unknown stem"),
        (lambda d: d.update(confidence=0.5), "confidence: expected an object"),
        (lambda d: d.update(confidence={"pitched": {}}), r"missing keys \['drums'\]"),
        (lambda d: d["model"].update(frames=1 << 40), "frames"),
        (lambda d: d["model"].update(frames="256"), "frames is '256', expected int"),
        (lambda d: d["decoding"].update(max_tokens=-1), "max_tokens"),
        (lambda d: d["decoding"].update(max_tokens=0), "max_tokens"),
        (lambda d: d["model"].update(vocab_size=1600), "1536 in vocabulary and 1600 in model"),
        (lambda d: d["model"].update(channels=0), "channels is 0, outside 1..256"),
        (lambda d: d["model"].update(channels=1 << 20), "channels is 1048576, outside 1..256"),
        (lambda d: d["model"].update(memory=-1), "memory is -1, outside 0"),
        (lambda d: d["model"].pop("memory"), r"missing keys \['memory'\]"),
        (lambda d: d["model"].update(memory=32), "32 rows of memory from 0 tokens"),
        (lambda d: d["decoding"].update(memory_tokens=1024), "0 rows of memory from 1024 tokens"),
        (lambda d: _remember(d, memory=33, memory_tokens=32), "exceed their 32 tokens"),
        (lambda d: _remember(d, channels=13), "memory with 13 channels"),
        (lambda d: _remember(d, memory_start=[1] * 1025), "1025 ids for 1024 tokens"),
        (lambda d: _remember(d, memory_start=[1536]), "leaves the vocabulary"),
        (lambda d: _remember(d, memory_start=[-1]), "expected a list of token ids"),
        (lambda d: _remember(d, memory_start=[True]), "expected a list of token ids"),
        (lambda d: _remember(d, memory_start=3), "expected a list of token ids"),
        (lambda d: d["decoding"].update(memory_start=[1]), "1 ids for 0 tokens"),
        (lambda d: d["decoding"].update(min_tokens=0), "min_tokens"),
        (lambda d: d["decoding"].update(min_tokens=1025), "min_tokens exceeds max_tokens"),
        (lambda d: d["segments"].update(sample_rate=22050), "16000 in features and 22050"),
        (lambda d: d["segments"].update(samples=65536), "are made of 1 to 32768"),
        (lambda d: d["features"].update(framing="centred", frames=255), "made of 32512 to 32640"),
        (
            lambda d: (
                d["features"].update(framing="centred"),
                d["segments"].update(samples=32640),
            ),
            "leaves less than 32640 samples",
        ),
        (lambda d: d["model"].update(channels=13), "channels is 1 in notes and 13 in model"),
        (lambda d: d["features"].update(scaling="square"), "scaling of features is 'square'"),
        (lambda d: d["decoding"].update(eos_id=5), "end-of-sequence"),
        (lambda d: d["decoding"].update(start_id=3), "start token"),
        (lambda d: d["graphs"][0].update(file="../encoder.onnx"), "plain file name"),
        (lambda d: d["graphs"][0].update(file="/etc/passwd"), "plain file name"),
        (lambda d: d["graphs"][0].update(sha256="00"), "64 hexadecimal"),
        (lambda d: d["graphs"][0].update(role="mixer"), "unknown role"),
        (lambda d: d["graphs"][0].pop("size"), r"missing keys \['size'\]"),
        (lambda d: d.update(graphs=7), "graphs"),
        (lambda d: d["features"].update(hop="x"), "features"),
        (lambda d: d["notes"].update(ties=1), "notes"),
        (lambda d: d["segments"].update(samples=0), "segments"),
    ],
)
def test_a_strange_manifest_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    _edit(copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["model"].update(heads=3), "has the shape"),
        (lambda d: d["model"].update(head_dim=32), "has the shape"),
        (lambda d: d["model"].update(layers=1), "other inputs or outputs"),
        (lambda d: d["model"].update(frames=128), "has the shape"),
        (_remember, "other inputs or outputs"),
        (lambda d: d["graphs"][0].update(cross_key_transposed=False), "has the shape"),
        (lambda d: d["graphs"][1].update(cache="concat"), "has the shape"),
        (lambda d: d["features"].update(bins=256), "has the shape"),
        (lambda d: d["decoding"].update(max_tokens=2000), "positions for 1024 tokens"),
    ],
)
def test_a_manifest_that_does_not_fit_its_graphs_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    _edit(copy, change)
    with pytest.raises(BundleError, match=message):
        load_model(copy)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_json_is_refused(copy: Path, data: bytes) -> None:
    (copy / MANIFEST).write_bytes(data)
    with pytest.raises(BundleError):
        Bundle(copy)


def test_a_huge_manifest_is_refused(copy: Path) -> None:
    (copy / MANIFEST).write_bytes(b" " * (2 << 20))
    with pytest.raises(BundleError, match="larger than"):
        Bundle(copy)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle(tmp_path)


def test_a_strange_zip_is_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    text = tmp_path / "text.mt3"
    text.write_text("not a zip")
    with pytest.raises(BundleError, match="neither a bundle folder nor a zip"):
        Bundle(text)
    empty = tmp_path / "empty.mt3"
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(BundleError, match="holds no bundle.json"):
        Bundle(empty)
    squeezed = tmp_path / "squeezed.mt3"
    with zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tiny_bundle / MANIFEST, MANIFEST)
    with pytest.raises(BundleError, match="compressed"):
        Bundle(squeezed)


def test_a_read_only_bundle_works(copy: Path) -> None:
    for path in copy.iterdir():
        path.chmod(0o444)
    copy.chmod(0o555)
    before = sorted(path.name for path in copy.iterdir())
    load_model(copy).warmup()
    assert sorted(path.name for path in copy.iterdir()) == before
    copy.chmod(0o755)
