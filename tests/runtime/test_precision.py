"""What a manifest says about numbers, and what devices refuse."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from mt3_runtime.backends import ort_cpu
from mt3_runtime.backends.ort_gpu.ort_cuda import OrtCudaBackend
from mt3_runtime.backends.ort_gpu.ort_memory import DeviceSpec
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.bundles.precision import Precision, Verdict
from mt3_runtime.bundles.tiny_graphs import product_model
from mt3_runtime.errors import BundleError, DeviceError
from mt3_runtime.loading import load_model

FAILED = Verdict("relaxed", passed=False, faults=("too low",), judged="a song", figures={"kl": 0.1})
FAST = Precision("fast", "int8", "int8", gate=FAILED)


def test_what_is_written_is_read():
    for precision in (Precision("fp32"), FAST):
        assert Precision.from_dict(json.loads(json.dumps(precision.to_dict()))) == precision


def test_only_stored_weights_leave_arithmetic_exact():
    assert Precision("fp16-stored", weights="fp16").exact
    for part in ("arithmetic", "self_cache", "cross_cache"):
        assert not Precision("x", **{part: "fp16"}).exact


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "fp12"},
        {"arithmetic": 3},
        {"name": ""},
        {"extra": "fp32"},
        {"gate": {"gate": "relaxed"}},
        {"gate": {**asdict(FAILED), "faults": [1]}},
        {"gate": {**asdict(FAILED), "faults": "no"}},
        {"gate": {**asdict(FAILED), "faults": []}},
        {"gate": {**asdict(FAILED), "passed": True, "faults": ["no"]}},
        {"gate": {**asdict(FAILED), "figures": {"kl": "small"}}},
        {"gate": {**asdict(FAILED), "figures": {"kl": float("nan")}}},
        {"gate": {**asdict(FAILED), "figures": [0.1]}},
    ],
)
def test_anything_else_is_refused(change: dict):
    data = {**json.loads(json.dumps(FAST.to_dict())), **change}
    with pytest.raises(BundleError):
        Precision.from_dict(data)


def told(bundle: Path, out: Path, precision: Precision) -> Path:
    """A bundle that says something else about its numbers."""
    shutil.copytree(bundle, out)
    manifest = replace(Bundle(out).manifest, precision=precision)
    (out / "bundle.json").write_bytes(manifest.to_json())
    return out


def test_the_cpu_refuses_bf16_in_one_sentence(tiny_bundle: Path, tmp_path: Path):
    path = told(tiny_bundle, tmp_path / "x", Precision("bf16", arithmetic="bf16"))
    with pytest.raises(DeviceError, match=r"precision bf16, and device cpu has no bf16 arithmetic"):
        load_model(path, device="cpu")


def test_a_gpu_refuses_int8(tiny_bundle: Path, tmp_path: Path):
    path = told(tiny_bundle, tmp_path / "x", FAST)
    with pytest.raises(DeviceError, match="device cuda has no int8 arithmetic"):
        OrtCudaBackend(Bundle(path), place=DeviceSpec("CPUExecutionProvider", "cpu"))


def test_a_cpu_that_cuts_off_sums_refuses_int8(tiny_bundle: Path, tmp_path: Path, monkeypatch):
    """As x86 without VNNI does: 255 * 127 + 255 * 127 becomes 32767."""

    class Saturating:
        def run(self, _names, feeds):
            rows, depth = feeds["rows"].shape
            return [np.full((rows, feeds["columns"].shape[1]), depth // 2 * 32767, np.int32)]

    path = told(tiny_bundle, tmp_path / "x", FAST)
    monkeypatch.setattr(
        ort_cpu,
        "import_onnxruntime",
        lambda: SimpleNamespace(
            SessionOptions=onnxruntime.SessionOptions,
            InferenceSession=lambda *args, **kwargs: Saturating(),
        ),
    )
    with pytest.raises(DeviceError, match="multiplies 8-bit integers inexactly"):
        load_model(path, device="cpu")


def test_this_cpu_multiplies_bytes_exactly_or_is_refused(tiny_bundle: Path, tmp_path: Path):
    """What it may do is what its products of random bytes say, which NumPy knows exactly."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (40, 96), np.uint8)
    columns = rng.choice(np.array([-128, -127, 126, 127], np.int8), (96, 40))
    session = onnxruntime.InferenceSession(product_model(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"rows": rows, "columns": columns})
    path = told(tiny_bundle, tmp_path / "x", FAST)
    if np.array_equal(found, rows.astype(np.int64) @ columns.astype(np.int64)):
        with load_model(path, device="cpu") as model:
            assert model.info.precision.name == "fast"
    else:
        with pytest.raises(DeviceError, match="multiplies 8-bit integers inexactly"):
            load_model(path, device="cpu")


@pytest.mark.parametrize("part", ["self_cache", "cross_cache"])
def test_graphs_have_the_types_the_manifest_says(tiny_bundle: Path, tmp_path: Path, part: str):
    path = told(tiny_bundle, tmp_path / "x", Precision("small", **{part: "int8"}))
    with pytest.raises(
        BundleError, match=r"is a tensor\(float\); the manifest says tensor\(int8\)"
    ):
        load_model(path, device="cpu")
