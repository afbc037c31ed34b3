"""Bundles: whole ones load, changed ones are refused with a reason."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy as copy_of
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import pytest

from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import variant_named
from mt3_export.weights import Weights
from mt3_runtime.bundles.bundle import MANIFEST, Bundle, Manifest
from mt3_runtime.bundles.precision import Verdict
from mt3_runtime.errors import BundleError, BundleNotFoundError
from mt3_runtime.loading import load_model
from tests.protobuf_spellings import delimited


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


@pytest.mark.parametrize("high", [0, 1 << 32, 1 << 33])
def test_hidden_external_data_is_refused(copy: Path, high: int) -> None:
    """A weight in a file of its own, and the graph under a key that parsers cut to its own."""
    path = copy / "decoder.cpu.onnx"
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if len(t.raw_data) > 4096)
    (copy / "extra.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="extra.bin")
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    data = model.SerializeToString() + delimited(7 << 3 | 2 | high, graph)
    path.write_bytes(data)
    _sign(copy, path.name)
    with pytest.raises(BundleError, match=r"decoder\.cpu\.onnx in .* (refers to other|is refused)"):
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
        (lambda d: d.update(stem="basses"), "stem 'basses' is none of bass"),
        (lambda d: d.update(stem=["bass"]), "expected str"),
        (lambda d: d.update(confidence=0.5), "confidence: expected an object"),
        (lambda d: d.update(confidence={"pitched": {}}), r"missing keys \['drums'\]"),
        (lambda d: d["model"].update(frames=1 << 40), "frames"),
        (lambda d: d["model"].update(frames="256"), "frames is '256', expected int"),
        (lambda d: d["decoding"].update(max_tokens=-1), "max_tokens"),
        (lambda d: d["decoding"].update(max_tokens=0), "max_tokens"),
        (lambda d: d["model"].update(vocab_size=1600), "1536 in vocabulary and 1600 in model"),
        (lambda d: d["model"].update(channels=0), "channels is 0, expected a number from 1 to 256"),
        (
            lambda d: d["model"].update(channels=1 << 20),
            "channels is 1048576, expected",
        ),
        (lambda d: d["model"].update(memory=-1), "memory is -1, expected a number from 0"),
        (lambda d: d["model"].pop("memory"), r"missing keys \['memory'\]"),
        (lambda d: d["model"].update(memory=32), "32 rows of memory from 0 tokens"),
        (lambda d: d["decoding"].update(memory_tokens=1024), "0 rows of memory from 1024 tokens"),
        (lambda d: _remember(d, memory=33, memory_tokens=32), "exceed their 32 tokens"),
        (lambda d: _remember(d, channels=13), "memory with 13 channels"),
        (lambda d: _remember(d, memory_start=[1] * 1025), "1025 ids for 1024 tokens"),
        (lambda d: _remember(d, memory_start=[1536]), "leaves the vocabulary"),
        (lambda d: _remember(d, memory_start=[-1]), r"memory_start\[0\] is -1, expected a number"),
        (lambda d: _remember(d, memory_start=[True]), r"memory_start\[0\] is True, expected int"),
        (lambda d: _remember(d, memory_start=3), "memory_start is 3, expected a list"),
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
        (
            lambda d: d["graphs"][0].update(role="mixer"),
            "role is 'mixer', expected one of",
        ),
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


#: What no value of a type may be replaced with.
WRONG: dict[type, tuple[Any, ...]] = {
    int: (True, False, "1", None, [], {}, 1.5, 2**53, -(2**70), 10**30, 1e308, math.nan, math.inf),
    float: (True, "1.0", [], {}, 10**30, 1e308, -1e300, math.nan, math.inf, -math.inf),
    str: (0, True, None, [], {}, math.nan, "a\nb", "a\x1b[31mb", "\ud800", "\x00"),
    bool: (0, 1, 1.0, "true", None, [], math.nan),
    list: (0, True, "x", {}, None, math.nan),
    dict: (0, True, "x", [], math.inf),
}


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Places and values of everything in a document."""
    if path:
        yield path, value
    listed = enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in value.items() if isinstance(value, dict) else listed:
        yield from _leaves(item, (*path, key))


def _replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    document = copy_of(document)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return document


@pytest.mark.parametrize("kind", list(WRONG))
def test_no_value_of_another_type_or_magnitude_passes(tiny_bundle: Path, kind: type) -> None:
    document = json.loads((tiny_bundle / MANIFEST).read_bytes())
    _remember(document)
    document["precision"]["gate"] = asdict(
        Verdict("relaxed", passed=False, faults=("f",), judged="j", figures={"a": 0.5})
    )
    document["notes"] |= {"general_midi": [[100, 53]], "program_groups": [[1, 2]]}
    assert Manifest.from_json(json.dumps(document).encode(), "here")
    tried = 0
    for path, value in _leaves(document):
        for wrong in WRONG[kind] if type(value) is kind else ():
            data = json.dumps(_replaced(document, path, wrong)).encode()
            with pytest.raises(BundleError) as caught:
                pytest.fail(f"{path} = {Manifest.from_json(data, 'here')}")
            assert "\n" not in str(caught.value)
            tried += 1
    assert tried >= 7


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("features", "floor", 1e300),
        ("features", "floor", 1e-320),
        ("features", "floor", 5.0),
        ("features", "low_hz", -0.5),
        ("features", "high_hz", 20.0000001),
        ("vocabulary", "steps_per_second", 2**40),
        ("vocabulary", "steps_per_second", 0),
        ("decoding", "beam_alpha", 400.0),
        ("decoding", "beam_alpha", -1.0),
        ("segments", "time_grid", 1e8),
        ("segments", "time_grid", 1e-300),
        ("notes", "minimum_duration", 3600.0),
    ],
)
def test_absurd_numbers_are_refused(copy: Path, section: str, key: str, value: float) -> None:
    _edit(copy, lambda d: d[section].update({key: value}))
    with pytest.raises(BundleError, match=key):
        Bundle(copy)


def test_sizes_that_are_absurd_together_are_refused(copy: Path) -> None:
    _edit(copy, lambda d: d["model"].update(layers=1 << 15, heads=1 << 15))
    with pytest.raises(BundleError, match="keys and values of a row"):
        Bundle(copy)


@pytest.mark.parametrize("text", ["true", "1.0", '"1"', "[1]", "NaN", "1e400", "10" * 3000])
def test_other_spellings_of_the_version_are_refused(copy: Path, text: str) -> None:
    path = copy / MANIFEST
    path.write_text(path.read_text().replace('"version": 1', f'"version": {text}'))
    with pytest.raises(BundleError):
        Bundle(copy)


@pytest.mark.parametrize("key", ["name", "variant", "version"])
def test_a_key_that_is_there_twice_is_refused(copy: Path, key: str) -> None:
    """Readers of JSON differ in which of them they take."""
    path = copy / MANIFEST
    line = f'"{key}": {json.dumps(json.loads(path.read_bytes())[key])},'
    path.write_text(path.read_text().replace(line, line + line))
    with pytest.raises(BundleError, match=f"key '{key}' is there twice"):
        Bundle(copy)


def test_two_graphs_of_one_role_are_refused(copy: Path) -> None:
    _edit(copy, lambda d: d["graphs"].append(d["graphs"][0]))
    with pytest.raises(BundleError, match="two graphs of one role"):
        Bundle(copy)


def test_a_source_without_digest_is_refused(copy: Path) -> None:
    _edit(copy, lambda d: d["source"].pop("digest"))
    with pytest.raises(BundleError, match="no digest"):
        Bundle(copy)


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
